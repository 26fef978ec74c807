//! Linear layers whose tensors are not what their format says: each case with its exact error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use checkpoint::{Dtype, Error, TensorError};
use common::{FALCON, Folder, LLAMA, Piece, assert_one_line, header, safetensors};

const FILE: &str = "model.safetensors";

/// A layer `l` of 16 inputs and 8 outputs in each format, from which the cases differ in one tensor.
fn layer(format: &str) -> (String, Vec<Piece>) {
    let llama =
        |quantization: &str| LLAMA.replacen('{', &format!("{{\"quantization_config\": {quantization},"), 1);
    let compressed = |format: &str, weights: &str, inputs: &str| {
        llama(&format!(
            r#"{{"quant_method": "compressed-tensors", "format": "{format}", "config_groups": {{"g": {{"targets": ["Linear"],
            "weights": {weights}, "input_activations": {inputs}}}}}}}"#
        ))
    };
    let halves = |name: &str, shape: &[usize]| {
        let one = half::f16::ONE.to_le_bytes();
        Piece::new(name, "F16", shape, one.repeat(shape.iter().product()))
    };
    match format {
        "plain" => (LLAMA.to_owned(), vec![Piece::ones("l.weight", &[8, 16]), Piece::ones("l.bias", &[8])]),
        "awq" => (
            llama(
                r#"{"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 8, "zero_point": true}"#,
            ),
            vec![
                Piece::zeros("l.qweight", "I32", 4, &[16, 1]),
                Piece::zeros("l.qzeros", "I32", 4, &[2, 1]),
                halves("l.scales", &[2, 8]),
            ],
        ),
        "packed" => (
            compressed(
                "pack-quantized",
                r#"{"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 8}"#,
                "null",
            ),
            vec![
                Piece::zeros("l.weight_packed", "I32", 4, &[8, 2]),
                Piece::ones("l.weight_scale", &[8, 2]),
                Piece::zeros("l.weight_zero_point", "I32", 4, &[1, 2]),
                Piece::new(
                    "l.weight_shape",
                    "I64",
                    &[2],
                    [8i64, 16].iter().flat_map(|n| n.to_le_bytes()).collect(),
                ),
            ],
        ),
        "fp8" => (
            compressed(
                "float-quantized",
                r#"{"num_bits": 8, "type": "float", "strategy": "tensor"}"#,
                r#"{"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": false}"#,
            ),
            vec![
                Piece::zeros("l.weight", "F8_E4M3", 1, &[8, 16]),
                Piece::ones("l.weight_scale", &[1]),
                Piece::ones("l.input_scale", &[]),
            ],
        ),
        "fp8 rows" => (
            compressed(
                "float-quantized",
                r#"{"num_bits": 8, "type": "float", "strategy": "channel"}"#,
                "null",
            ),
            vec![Piece::zeros("l.weight", "F8_E4M3", 1, &[8, 16]), Piece::ones("l.weight_scale", &[8, 1])],
        ),
        "w4a8" => (
            llama(r#"{"quant_method": "modelopt", "quant_algo": "W4A8_AWQ", "group_size": 8}"#),
            vec![
                Piece::zeros("l.weight", "U8", 1, &[4, 16]),
                Piece::ones("l.weight_scale", &[8, 2]),
                Piece::ones("l.weight_scale_2", &[]),
                Piece::ones("l.input_scale", &[]),
                Piece::ones("l.pre_quant_scale", &[16]),
            ],
        ),
        other => panic!("{other}"),
    }
}

fn read(config: String, pieces: &[Piece], in_features: usize, out_features: usize) -> checkpoint::Result<()> {
    let folder = Folder::default().with("config.json", config).with(FILE, safetensors(pieces));
    let checkpoint = folder.open()?;
    let read = checkpoint.linear("l", in_features, out_features).map(|_| ());
    // Whoever streams the largest tensor is refused by the same words, but for the numbers in it, which he reads himself.
    let to_stream = checkpoint.linear_to_stream("l", in_features, out_features).map(|_| ());
    match &read {
        Err(Error::Tensor(TensorError::Nan { .. })) => assert_eq!(to_stream, Ok(())),
        Err(error) => assert_eq!(to_stream.expect_err("refused").to_string(), error.to_string()),
        Ok(()) => assert_eq!(to_stream, Ok(())),
    }
    read
}

#[test]
fn linear_layers() {
    let name = |tensor: &str| tensor.to_owned();
    let missing = |tensor: &str| TensorError::Missing { tensor: name(tensor) };
    let dtype = |tensor: &str, expected, got| TensorError::Dtype { tensor: name(tensor), expected, got };
    let shape = |tensor: &str, expected: &str, got: &[usize]| TensorError::Shape {
        tensor: name(tensor),
        expected: name(expected),
        got: got.to_vec(),
    };
    let scale = |tensor: &str, index, value| TensorError::Scale { tensor: name(tensor), index, value };
    let floats = |tensor: &str, shape: &[usize], index: usize, value: f32| {
        let mut values = vec![1.0; shape.iter().product()];
        values[index] = value;
        Piece::f32s(tensor, shape, &values)
    };
    let f32s = "F32, F16 or BF16";
    // Format, the tensor that takes the place of its namesake (or is added), what comes of it.
    let replaced: Vec<(&str, Piece, TensorError)> = vec![
        ("plain", Piece::zeros("l.weight", "I8", 1, &[8, 16]), dtype("l.weight", f32s, Dtype::I8)),
        ("plain", Piece::zeros("l.weight", "F64", 8, &[8, 16]), dtype("l.weight", f32s, Dtype::F64)),
        ("plain", Piece::ones("l.weight", &[16, 8]), shape("l.weight", "[8, 16]", &[16, 8])),
        ("plain", Piece::ones("l.weight", &[128]), shape("l.weight", "[8, 16]", &[128])),
        ("plain", Piece::ones("l.bias", &[16]), shape("l.bias", "[8]", &[16])),
        ("awq", Piece::zeros("l.qweight", "U32", 4, &[16, 1]), dtype("l.qweight", "I32", Dtype::U32)),
        ("awq", Piece::zeros("l.qweight", "I32", 4, &[8, 1]), shape("l.qweight", "[16, 1]", &[8, 1])),
        ("awq", Piece::zeros("l.qzeros", "I32", 4, &[1, 1]), shape("l.qzeros", "[2, 1]", &[1, 1])),
        ("awq", Piece::ones("l.scales", &[2, 8]), dtype("l.scales", "F16", Dtype::F32)),
        ("awq", Piece::zeros("l.scales", "F16", 2, &[2, 8]), scale("l.scales", 0, 0.0)),
        (
            "awq",
            Piece::new("l.scales", "F16", &[2, 8], half::f16::INFINITY.to_le_bytes().repeat(16)),
            scale("l.scales", 0, f32::INFINITY),
        ),
        (
            "packed",
            Piece::zeros("l.weight_packed", "I32", 4, &[8, 16]),
            shape("l.weight_packed", "[8, 2]", &[8, 16]),
        ),
        ("packed", floats("l.weight_scale", &[8, 2], 5, -0.5), scale("l.weight_scale", 5, -0.5)),
        ("packed", Piece::ones("l.weight_scale", &[8, 1]), shape("l.weight_scale", "[8, 2]", &[8, 1])),
        (
            "packed",
            Piece::zeros("l.weight_zero_point", "I32", 4, &[8, 2]),
            shape("l.weight_zero_point", "[1, 2]", &[8, 2]),
        ),
        (
            "packed",
            Piece::new("l.weight_zero_point", "I8", &[8, 2], [&[0; 9][..], &[8], &[0; 6]].concat()),
            TensorError::ZeroPoint { tensor: name("l.weight_zero_point"), index: 9, value: 8 },
        ),
        (
            "packed",
            Piece::new(
                "l.weight_shape",
                "I64",
                &[2],
                [16i64, 8].iter().flat_map(|n| n.to_le_bytes()).collect(),
            ),
            TensorError::WeightShape { tensor: name("l.weight_shape"), expected: [8, 16], got: [16, 8] },
        ),
        (
            "packed",
            Piece::zeros("l.weight_g_idx", "I32", 4, &[16]),
            TensorError::Unsupported {
                tensor: name("l.weight_g_idx"),
                what: "a reordering of the input features",
                supported: "actorder weight, or none",
            },
        ),
        ("fp8", Piece::ones("l.weight", &[8, 16]), dtype("l.weight", "F8_E4M3", Dtype::F32)),
        (
            "fp8",
            Piece::zeros("l.weight", "F8_E5M2", 1, &[8, 16]),
            dtype("l.weight", "F8_E4M3", Dtype::F8E5m2),
        ),
        (
            "fp8",
            Piece::new("l.weight", "F8_E4M3", &[8, 16], [&[0; 100][..], &[0xff], &[0; 27]].concat()),
            TensorError::Nan { tensor: name("l.weight"), index: 100 },
        ),
        ("fp8", floats("l.weight_scale", &[1], 0, 0.0), scale("l.weight_scale", 0, 0.0)),
        ("fp8", floats("l.input_scale", &[], 0, f32::INFINITY), scale("l.input_scale", 0, f32::INFINITY)),
        ("fp8", Piece::ones("l.weight_scale", &[8, 1]), shape("l.weight_scale", "[] or [1]", &[8, 1])),
        ("fp8", Piece::ones("l.input_scale", &[16]), shape("l.input_scale", "[] or [1]", &[16])),
        ("fp8 rows", Piece::ones("l.weight_scale", &[1]), shape("l.weight_scale", "[8]", &[1])),
        ("fp8 rows", Piece::ones("l.weight_scale", &[1, 8]), shape("l.weight_scale", "[8, 1]", &[1, 8])),
        ("fp8 rows", Piece::ones("l.weight_scale", &[]), shape("l.weight_scale", "[8, 1]", &[])),
        ("w4a8", Piece::zeros("l.weight", "I8", 1, &[4, 16]), dtype("l.weight", "U8", Dtype::I8)),
        ("w4a8", Piece::zeros("l.weight", "U8", 1, &[8, 16]), shape("l.weight", "[4, 16]", &[8, 16])),
        ("w4a8", floats("l.pre_quant_scale", &[16], 15, 0.0), scale("l.pre_quant_scale", 15, 0.0)),
        ("w4a8", Piece::ones("l.pre_quant_scale", &[8]), shape("l.pre_quant_scale", "[16]", &[8])),
    ];
    for (format, piece, expected) in replaced {
        let (config, mut pieces) = layer(format);
        match pieces.iter_mut().find(|own| own.name == piece.name) {
            Some(own) => *own = piece,
            None => pieces.push(piece),
        }
        let error = read(config, &pieces, 16, 8).expect_err(format);
        assert_eq!(error, Error::from(expected), "{format}");
        assert_one_line(&error);
    }
    // NaN equals nothing, so it is compared in words.
    let (config, mut pieces) = layer("w4a8");
    pieces[2] = floats("l.weight_scale_2", &[], 0, f32::NAN);
    let text = read(config, &pieces, 16, 8).expect_err("NaN").to_string();
    assert_eq!(text, "tensor \"l.weight_scale_2\": element 0: expected a finite scale over 0, got NaN");
    for format in ["plain", "awq", "packed", "fp8", "fp8 rows", "w4a8"] {
        let (config, pieces) = layer(format);
        assert_eq!(read(config.clone(), &pieces, 16, 8), Ok(()), "{format}");
        // Each tensor in turn left out. Without `qweight` an AutoAWQ layer would still be one: there is no `weight`.
        for left_out in &pieces {
            let rest: Vec<_> = pieces.iter().filter(|piece| *piece != left_out).cloned().collect();
            let result = read(config.clone(), &rest, 16, 8);
            match left_out.name.as_str() {
                "l.bias" | "l.weight_shape" | "l.pre_quant_scale" => assert_eq!(result, Ok(()), "{format}"),
                tensor => assert_eq!(result, Err(missing(tensor).into()), "{format}"),
            }
        }
    }
    let features =
        |format, argument, unit, got| TensorError::Features { layer: name("l"), format, argument, unit, got };
    let sizes: Vec<(&str, usize, usize, TensorError)> = vec![
        ("awq", 16, 12, features("AutoAWQ", "out_features", 8, 12)),
        ("awq", 12, 8, features("AutoAWQ", "in_features", 8, 12)),
        ("awq", 0, 8, features("AutoAWQ", "in_features", 8, 0)),
        ("packed", 12, 8, features("pack-quantized", "in_features", 8, 12)),
        ("w4a8", 12, 8, features("W4A8_AWQ", "in_features", 8, 12)),
        ("w4a8", 16, 7, features("W4A8_AWQ", "out_features", 2, 7)),
    ];
    for (format, in_features, out_features, expected) in sizes {
        let (config, pieces) = layer(format);
        assert_eq!(read(config, &pieces, in_features, out_features), Err(expected.into()), "{format}");
    }
}

#[test]
fn kv_scales() {
    let read = |pieces: &[Piece]| {
        let folder = Folder::default().with("config.json", LLAMA).with(FILE, safetensors(pieces));
        folder.open().unwrap().kv_scales("a").map(|scales| scales.map(|scales| (scales.key, scales.value)))
    };
    let (key, value) = (Piece::f32s("a.k_scale", &[1], &[0.5]), Piece::f32s("a.v_scale", &[], &[0.25]));
    assert_eq!(read(&[]), Ok(None));
    assert_eq!(read(&[key.clone(), value]), Ok(Some((0.5, 0.25))));
    assert_eq!(read(&[key]), Err(TensorError::Missing { tensor: "a.v_scale".to_owned() }.into()));
    let zero = [Piece::f32s("a.k_proj.k_scale", &[], &[0.0]), Piece::f32s("a.v_proj.v_scale", &[], &[1.0])];
    let tensor = "a.k_proj.k_scale".to_owned();
    assert_eq!(read(&zero), Err(TensorError::Scale { tensor, index: 0, value: 0.0 }.into()));
}

#[test]
fn tensors_that_are_asked_for() {
    let tensors = Folder::llama().tensors().unwrap();
    let norm = "model.norm.weight";
    let owned = || norm.to_owned();
    let past =
        |offset, bytes| Err(TensorError::ReadPastEnd { tensor: owned(), offset, bytes, has: 64 }.into());
    assert_eq!(
        tensors.get("model.norm"),
        Err(TensorError::Missing { tensor: "model.norm".to_owned() }.into())
    );
    assert_eq!(tensors.read_into(norm, 61, &mut [0; 4]), past(61, 4));
    assert_eq!(tensors.read_into(norm, u64::MAX, &mut [0; 4]), past(u64::MAX, 4));
    assert_eq!(tensors.read_into(norm, 65, &mut []), past(65, 0));
    assert_eq!(tensors.read_into(norm, 64, &mut []), Ok(()));
    let (expected, got) = ("[] or [1]".to_owned(), vec![16]);
    assert_eq!(tensors.scalar(norm), Err(TensorError::Shape { tensor: owned(), expected, got }.into()));
    let folder = Folder::default().with("config.json", FALCON).with(FILE, header(&[]));
    let message = folder.open().expect_err("a header alone").to_string();
    assert!(message.starts_with("model.safetensors: header of "), "{message}");
}
