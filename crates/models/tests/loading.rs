//! What a loader makes of weights, and what it refuses, with its exact error.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation fails the test")]

use awq_gemm::{Int4Shape, quantize};
use checkpoint::{Checkpoint, Files, LinearTensors, LinearWeight};
use models::{Cpu, KvDtype, LinearWeights, Matrix, Model};
use safetensors::tensor::{Dtype, TensorView};

/// A Llama of one layer whose tensors are all ones, but for what `edit` does to them.
fn load(config: &str, edit: impl FnOnce(&mut Vec<(String, Vec<usize>, f32)>)) -> String {
    let mut tensors: Vec<(String, Vec<usize>, f32)> = vec![
        ("model.embed_tokens.weight".to_owned(), vec![8, 4], 1.0),
        ("model.norm.weight".to_owned(), vec![4], 1.0),
        ("lm_head.weight".to_owned(), vec![8, 4], 1.0),
    ];
    for (name, shape) in [
        ("input_layernorm", vec![4]),
        ("post_attention_layernorm", vec![4]),
        ("self_attn.q_proj", vec![4, 4]),
        ("self_attn.k_proj", vec![4, 4]),
        ("self_attn.v_proj", vec![4, 4]),
        ("self_attn.o_proj", vec![4, 4]),
        ("mlp.gate_proj", vec![6, 4]),
        ("mlp.up_proj", vec![6, 4]),
        ("mlp.down_proj", vec![4, 6]),
    ] {
        tensors.push((format!("model.layers.0.{name}.weight"), shape, 1.0));
    }
    edit(&mut tensors);
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, shape, value)| value.to_le_bytes().repeat(shape.iter().product())).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let file = safetensors::serialize(views, None).unwrap();
    let files: [(&str, &'static [u8]); 2] =
        [("config.json", config.to_owned().leak().as_bytes()), ("model.safetensors", file.leak())];
    let checkpoint = Checkpoint::from_files(Files::memory(files)).unwrap();
    match Model::load(&checkpoint, Cpu::default(), 1, KvDtype::F32, &mut |_| ()) {
        Ok(_) => "loaded".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn config(attention_bias: bool) -> String {
    format!(
        r#"{{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4,
            "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
            "attention_bias": {attention_bias}}}"#
    )
}

#[test]
fn a_model_that_is_whole_loads() {
    assert_eq!(load(&config(false), |_| ()), "loaded");
}

#[test]
fn values_that_are_not_finite_are_refused_by_name() {
    let damaged = "has values that are not finite; the file is damaged or was exported from a diverged model";
    for name in ["model.layers.0.mlp.up_proj", "model.norm.weight", "model.embed_tokens.weight"] {
        for value in [f32::NAN, f32::INFINITY] {
            let error = load(&config(false), |tensors| {
                tensors
                    .iter_mut()
                    .filter(|tensor| tensor.0.starts_with(name))
                    .for_each(|tensor| tensor.2 = value);
            });
            assert_eq!(error, format!("{name}: {damaged}"));
        }
    }
}

#[test]
fn biases_that_config_and_tensors_disagree_on_are_refused() {
    let (one, none) = ("config.json says there is one", "config.json says there is none");
    let name = "model.layers.0.self_attn.q_proj.bias";
    assert_eq!(load(&config(true), |_| ()), format!("{name}: {one}, the tensors say otherwise"));
    let extra = |tensors: &mut Vec<_>| tensors.push((name.to_owned(), vec![4], 1.0));
    assert_eq!(load(&config(false), extra), format!("{name}: {none}, the tensors say otherwise"));
}

#[test]
fn parts_that_cannot_be_computed_as_one_are_refused() {
    let part = || LinearWeights::dense(4, 2, vec![1.0; 8]);
    let error = |parts| LinearWeights::fuse("qkv", parts).unwrap_err().to_string();
    assert_eq!(error(vec![]), "qkv: cannot be fused: no parts");
    let biased = LinearWeights { bias: Some(vec![0.0; 2]), ..part() };
    assert_eq!(error(vec![part(), biased]), "qkv: cannot be fused: only some of its parts have a bias");
    let scaled = LinearWeights { input_multiplier: Some(vec![2.0; 4]), ..part() };
    let differs = "qkv: cannot be fused: pre_quant_scale differs between its parts";
    assert_eq!(error(vec![part(), scaled]), differs);
}

#[test]
fn groups_of_different_sizes_become_plain_and_stay_exact() {
    let part = |group_size| {
        let weights: Vec<f32> = (0..16).map(|x| x as f32 - 7.5).collect();
        let weights = quantize(Int4Shape::new(8, 2, group_size).unwrap(), &weights).unwrap();
        LinearWeights {
            in_features: 8,
            out_features: 2,
            matrix: Matrix::Int4 { weights, input_scale: None },
            bias: None,
            input_multiplier: None,
        }
    };
    let alone = [part(4).dequantize(), part(8).dequantize()].concat();
    let fused = LinearWeights::fuse("gate_up", vec![part(4), part(8)]).unwrap();
    assert!(matches!(fused.matrix, Matrix::Dense(_)));
    assert_eq!(fused.dequantize(), alone);
}

#[test]
fn a_tensor_scale_counts_for_every_row() {
    let codes = vec![device::E4m3::from_f32(2.0); 8];
    let tensors = |weight_scale| LinearTensors {
        in_features: 4,
        out_features: 2,
        weight: LinearWeight::Fp8 { codes: codes.clone(), weight_scale, input_scale: Some(0.5) },
        bias: None,
    };
    let one = LinearWeights::from_tensors("q", tensors(checkpoint::Fp8Scale::Tensor(3.0))).unwrap();
    let rows = LinearWeights::from_tensors("q", tensors(checkpoint::Fp8Scale::Rows(vec![3.0, 3.0]))).unwrap();
    assert_eq!(one, rows);
    assert_eq!(one.dequantize(), [6.0; 8]);
}

#[test]
fn of_static_input_scales_the_largest_is_taken_and_none_beats_all() {
    let part = |input_scale| {
        let matrix = Matrix::Fp8 { codes: vec![device::E4m3(0x38); 4], row_scales: vec![1.0], input_scale };
        LinearWeights { in_features: 4, out_features: 1, matrix, bias: None, input_multiplier: None }
    };
    let fused = |scales: [Option<f32>; 2]| match LinearWeights::fuse("qkv", scales.map(part).to_vec())
        .unwrap()
        .matrix
    {
        Matrix::Fp8 { input_scale, .. } => input_scale,
        other => panic!("{other:?}"),
    };
    assert_eq!(fused([Some(0.5), Some(2.0)]), Some(2.0));
    // A part that wants a scale per token gets it: then all are quantized so.
    assert_eq!(fused([Some(0.5), None]), None);
}
