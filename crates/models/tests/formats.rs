//! Checkpoints written by an independent script load to its own dequantization, bit for bit: tests/formats/README.md.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation fails the test"
)]

use checkpoint::Checkpoint;
use models::{Cpu, KvDtype, LinearWeights, Matrix, Model, Sample, Step, StepSequence};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Expected {
    linear: BTreeMap<String, Linear>,
    tensors: BTreeMap<String, Array>,
    #[serde(default)]
    kv_scales: BTreeMap<String, [f32; 2]>,
}

#[derive(Deserialize)]
struct Linear {
    in_features: usize,
    out_features: usize,
    weight: Array,
    input_scale: Option<f32>,
    input_multiplier: Option<Array>,
}

#[derive(Deserialize)]
struct Array {
    shape: Vec<usize>,
    sha256: String,
    first: Vec<f32>,
    last: Vec<f32>,
}

impl Array {
    #[track_caller]
    fn hold(&self, got: &[f32], what: &str) {
        assert_eq!(got.len(), self.shape.iter().product::<usize>(), "{what}: elements");
        // The plain values first: they say more than a digest.
        assert_eq!(got[..self.first.len()], self.first, "{what}: first");
        assert_eq!(got[got.len() - self.last.len()..], self.last, "{what}: last");
        let bytes: Vec<u8> = got.iter().flat_map(|x| x.to_le_bytes()).collect();
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, self.sha256, "{what}: bit for bit");
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats")
}

fn open(name: &str) -> (Checkpoint, Expected) {
    let folder = folder().join(name);
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    (Checkpoint::open(&folder).unwrap(), serde_json::from_str(&expected).unwrap())
}

fn weights(checkpoint: &Checkpoint, name: &str, linear: &Linear) -> LinearWeights {
    let tensors = checkpoint.linear(name, linear.in_features, linear.out_features).unwrap();
    LinearWeights::from_tensors(name, tensors).unwrap()
}

fn check(name: &str, quantized: bool) {
    let (checkpoint, expected) = open(name);
    for (layer, linear) in &expected.linear {
        let got = weights(&checkpoint, layer, linear);
        linear.weight.hold(&got.dequantize(), &format!("{name}: {layer}"));
        let input_scale = match &got.matrix {
            Matrix::Dense(_) => None,
            Matrix::Int4 { input_scale, .. } | Matrix::Fp8 { input_scale, .. } => *input_scale,
        };
        assert_eq!(input_scale, linear.input_scale, "{name}: {layer}: input_scale");
        match (&got.input_multiplier, &linear.input_multiplier) {
            (Some(got), Some(want)) => want.hold(got, &format!("{name}: {layer}: input_multiplier")),
            (got, want) => assert_eq!(got.is_some(), want.is_some(), "{name}: {layer}: input_multiplier"),
        }
        let plain = matches!(got.matrix, Matrix::Dense(_));
        assert!(!(plain && quantized), "{name}: {layer} was taken for a plain one");
    }
    for (tensor, want) in &expected.tensors {
        want.hold(&checkpoint.tensors.f32s(tensor, &want.shape).unwrap(), &format!("{name}: {tensor}"));
    }
    for (attention, want) in &expected.kv_scales {
        let got = checkpoint.kv_scales(attention).unwrap().unwrap();
        assert_eq!([got.key, got.value], *want, "{name}: {attention}");
    }
    runs(&checkpoint, name);
}

/// The whole folder loads and gives finite logits, over pages of every kind.
fn runs(checkpoint: &Checkpoint, name: &str) {
    for kv in [KvDtype::F32, KvDtype::Bf16, KvDtype::Fp8] {
        let mut model = Model::load(checkpoint, Cpu::default(), 2, kv, &mut |_| ()).unwrap();
        let params = sampling::Params::default();
        let tokens = [1, 2, 3];
        let sample = Some(Sample { params: &params, history: &tokens, prompt_len: 3 });
        let sequence = StepSequence { tokens: &tokens, context_len: 3, prompt_len: 3, pages: &[1], sample };
        let logits = model.logits(&Step { sequences: vec![sequence] }).unwrap();
        assert!(logits.iter().all(|x| x.is_finite()) && logits.iter().any(|x| *x != 0.0), "{name}, {kv:?}");
    }
}

#[test]
fn fused_parts_keep_their_weights_bit_for_bit() {
    // Parts with scales of their own: an FP8 scale a tensor, static inputs.
    for name in
        ["llama-fp8-static", "llama-modelopt-w4a8-awq", "llama-pack-quantized-asymmetric", "llama-autoawq"]
    {
        let (checkpoint, expected) = open(name);
        let parts = ["q_proj", "k_proj", "v_proj"].map(|part| format!("model.layers.0.self_attn.{part}"));
        let parts: Vec<LinearWeights> =
            parts.iter().map(|part| weights(&checkpoint, part, &expected.linear[part])).collect();
        let alone: Vec<f32> = parts.iter().flat_map(LinearWeights::dequantize).collect();
        let fused = LinearWeights::fuse("qkv", parts).unwrap();
        assert!(!matches!(fused.matrix, Matrix::Dense(_)), "{name}");
        assert_eq!(fused.dequantize(), alone, "{name}");
        let reversed: Vec<usize> = (0..fused.out_features).rev().collect();
        let columns = fused.in_features;
        let rows: Vec<f32> = alone.chunks_exact(columns).rev().flatten().copied().collect();
        assert_eq!(fused.permuted(&reversed).unwrap().dequantize(), rows, "{name}");
    }
}

#[test]
fn parts_of_different_formats_become_plain_and_stay_exact() {
    let (first, first_expected) = open("llama-fp8-static");
    let (second, second_expected) = open("llama-plain-bf16");
    let name = "model.layers.0.self_attn.q_proj";
    let parts = vec![
        weights(&first, name, &first_expected.linear[name]),
        weights(&second, name, &second_expected.linear[name]),
    ];
    let alone: Vec<f32> = parts.iter().flat_map(LinearWeights::dequantize).collect();
    let fused = LinearWeights::fuse(name, parts).unwrap();
    assert!(matches!(fused.matrix, Matrix::Dense(_)));
    assert_eq!(fused.dequantize(), alone);
}

#[test]
fn the_scales_of_a_scaled_activation_are_divided_by() {
    let (checkpoint, expected) = open("falcon-autoawq");
    let name = "transformer.h.0.mlp.dense_4h_to_h";
    let mut down = weights(&checkpoint, name, &expected.linear[name]);
    let scales = checkpoint.tensors.f32s("transformer.h.0.mlp.act.scales", &[down.in_features]).unwrap();
    down.divide_input("act.scales", &scales).unwrap();
    let reciprocals: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
    assert_eq!(down.input_multiplier.as_deref(), Some(reciprocals.as_slice()));
    let error = down.divide_input("act.scales", &vec![0.0; scales.len()]).unwrap_err();
    assert!(error.to_string().starts_with("1 / act.scales: has values that are not finite"), "{error}");
}

macro_rules! formats {
    ($($test:ident = $name:literal, $quantized:literal;)*) => {
        $(#[test]
        fn $test() {
            check($name, $quantized);
        })*

        #[test]
        fn every_format_is_held() {
            let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
            let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
            let mut names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
            names.sort();
            assert_eq!(names, [$($name),*]);
        }
    };
}

formats! {
    falcon_autoawq = "falcon-autoawq", true;
    llama_autoawq = "llama-autoawq", true;
    llama_fp8_dynamic = "llama-fp8-dynamic", true;
    llama_fp8_static = "llama-fp8-static", true;
    llama_modelopt_fp8 = "llama-modelopt-fp8", true;
    llama_modelopt_fp8_rows = "llama-modelopt-fp8-rows", true;
    llama_modelopt_w4a8_awq = "llama-modelopt-w4a8-awq", true;
    llama_pack_quantized = "llama-pack-quantized", true;
    llama_pack_quantized_asymmetric = "llama-pack-quantized-asymmetric", true;
    llama_pack_quantized_byte_zeros = "llama-pack-quantized-byte-zeros", true;
    llama_pack_quantized_channel = "llama-pack-quantized-channel", true;
    llama_plain_bf16 = "llama-plain-bf16", false;
    llama_plain_f16_sharded = "llama-plain-f16-sharded", false;
    llama_plain_f32 = "llama-plain-f32", false;
}
