//! The tiny checkpoints in every format that `models` is held against, read raw and dequantized here by the formats'
//! definitions, one element at a time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use checkpoint::{Checkpoint, Fp8Scale, LinearFormat, LinearWeight};
use serde_json::Value;

/// Element `[n][k]` of a weight, as the documentation of [`LinearWeight`] has it.
fn element(weight: &LinearWeight, in_features: usize, out_features: usize, n: usize, k: usize) -> f32 {
    let nibble = |word: i32, place: usize| ((word as u32) >> (4 * place)) & 15;
    match weight {
        LinearWeight::Plain { weight } => weight[n * in_features + k],
        LinearWeight::AutoAwq { qweight, qzeros, scales, group_size } => {
            let place = [0, 2, 4, 6, 1, 3, 5, 7].iter().position(|&column| column == n % 8).unwrap();
            let (words, group) = (out_features / 8, k / group_size);
            let q = nibble(qweight[k * words + n / 8], place) as f32;
            let zero = nibble(qzeros[group * words + n / 8], place) as f32;
            (q - zero) * scales[group * out_features + n].to_f32()
        }
        LinearWeight::PackQuantized { packed, scales, zero_points, group_size } => {
            let (groups, group) = (in_features / group_size, k / group_size);
            let q = nibble(packed[n * in_features / 8 + k / 8], k % 8) as f32 - 8.0;
            let zero = zero_points
                .as_ref()
                .map_or(0.0, |zeros| nibble(zeros[n / 8 * groups + group], n % 8) as f32 - 8.0);
            (q - zero) * scales[n * groups + group]
        }
        LinearWeight::W4a8Awq { packed, scales, group_size, .. } => {
            let byte = packed[n / 2 * in_features + k];
            let q = i32::from(if n.is_multiple_of(2) { byte & 15 } else { byte >> 4 });
            let q = if q > 7 { q - 16 } else { q };
            q as f32 * scales[n * (in_features / group_size) + k / group_size]
        }
        LinearWeight::Fp8 { codes, weight_scale, .. } => {
            let scale = match weight_scale {
                Fp8Scale::Tensor(scale) => *scale,
                Fp8Scale::Rows(scales) => scales[n],
            };
            codes[n * in_features + k].to_f32() * scale
        }
    }
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

#[test]
fn every_fixture_reads() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/formats");
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.is_dir());
    assert_eq!(names.len(), 14);
    for path in names {
        let name = path.file_name().unwrap().to_str().unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let expected = std::fs::read_to_string(path.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        for (prefix, layer) in expected["linear"].as_object().unwrap() {
            let (k, n) = (
                layer["in_features"].as_u64().unwrap() as usize,
                layer["out_features"].as_u64().unwrap() as usize,
            );
            let format = checkpoint.linear_format(prefix);
            assert!(name.contains("plain") == (format == LinearFormat::Plain), "{name} {prefix}: {format:?}");
            let linear = checkpoint.linear(prefix, k, n).unwrap();
            let mut emptied = linear.clone();
            assert_eq!((linear.in_features, linear.out_features, linear.bias), (k, n, None));
            let at = |row, column| element(&linear.weight, k, n, row, column);
            let first: Vec<f32> = (0..4).map(|column| at(0, column)).collect();
            let last: Vec<f32> = (k - 4..k).map(|column| at(n - 1, column)).collect();
            assert_eq!(first, floats(&layer["weight"]["first"]), "{name} {prefix}");
            assert_eq!(last, floats(&layer["weight"]["last"]), "{name} {prefix}");
            match &mut emptied.weight {
                LinearWeight::Plain { weight } => weight.clear(),
                LinearWeight::AutoAwq { qweight, .. } => qweight.clear(),
                LinearWeight::PackQuantized { packed, .. } => packed.clear(),
                LinearWeight::Fp8 { codes, .. } => codes.clear(),
                LinearWeight::W4a8Awq { .. } => {}
            }
            assert_eq!(checkpoint.linear_to_stream(prefix, k, n).unwrap(), emptied, "{name} {prefix}");
            let input_scale = match &linear.weight {
                LinearWeight::W4a8Awq { input_scale, .. } => Some(*input_scale),
                LinearWeight::Fp8 { input_scale, .. } => *input_scale,
                _ => None,
            };
            assert_eq!(
                input_scale,
                layer["input_scale"].as_f64().map(|scale| scale as f32),
                "{name} {prefix}"
            );
            let multiplier = match &linear.weight {
                LinearWeight::W4a8Awq { pre_quant_scale: Some(scale), .. } => Some(scale[..4].to_vec()),
                _ => None,
            };
            assert_eq!(
                multiplier,
                layer.get("input_multiplier").map(|scale| floats(&scale["first"])),
                "{name}"
            );
        }
        for (tensor, described) in expected["tensors"].as_object().unwrap() {
            let shape: Vec<usize> = checkpoint.tensors.get(tensor).unwrap().shape;
            let values = checkpoint.tensors.f32s(tensor, &shape).unwrap();
            assert_eq!(values[..4], floats(&described["first"]), "{name} {tensor}");
            assert_eq!(values[values.len() - 4..], floats(&described["last"]), "{name} {tensor}");
        }
        if checkpoint.tensors.contains("lm_head.weight") {
            assert_eq!(checkpoint.linear_format("lm_head"), LinearFormat::Plain, "{name}");
        }
        let scales = expected.get("kv_scales").and_then(|scales| scales.as_object()?.iter().next());
        let attention = scales.map_or("model.layers.0.self_attn", |(attention, _)| attention.as_str());
        let found = checkpoint.kv_scales(attention).unwrap().map(|scales| vec![scales.key, scales.value]);
        assert_eq!(found, scales.map(|(_, scales)| floats(scales)), "{name}");
    }
}
