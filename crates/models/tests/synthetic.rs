//! Random models: the same for the same seed, with activations that neither fade nor grow without bound.
#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use checkpoint::{Files, ModelConfig, Quantization, settings};
use models::{Cpu, KvDtype, MemoryPlan, Model, Step, StepSequence};

/// 40 layers deep, of both architectures and in every format of linear layers.
fn configs() -> Vec<(&'static str, ModelConfig, Quantization)> {
    let falcon = r#""model_type": "falcon", "vocab_size": 384, "hidden_size": 128, "num_hidden_layers": 40,
        "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": true"#;
    let llama = r#""model_type": "llama", "vocab_size": 384, "hidden_size": 128, "intermediate_size": 192,
        "num_hidden_layers": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": true"#;
    let awq = r#""quant_method": "awq", "version": "gemm", "bits": 4, "zero_point": true, "group_size""#;
    let compressed = |format: &str, weights: &str, inputs: &str| {
        format!(
            r#""quant_method": "compressed-tensors", "format": "{format}", "ignore": ["lm_head"],
            "config_groups": {{"group_0": {{"targets": ["Linear"], "weights": {{{weights}}}{inputs}}}}}"#
        )
    };
    let packed = compressed(
        "pack-quantized",
        r#""num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": true"#,
        "",
    );
    let fp8 = |dynamic| {
        let input = if dynamic { ("token", "true") } else { ("tensor", "false") };
        compressed(
            "float-quantized",
            r#""num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true, "dynamic": false"#,
            &format!(
                r#", "input_activations": {{"num_bits": 8, "type": "float", "strategy": "{}", "symmetric": true,
                "dynamic": {}}}"#,
                input.0, input.1
            ),
        )
    };
    let model_opt =
        r#""quant_method": "modelopt", "quant_algo": "W4A8_AWQ", "group_size": 64, "ignore": ["lm_head"]"#;
    let quantized = |what: &str| format!(r#", "quantization_config": {{{what}}}"#);
    let cases = [
        ("falcon bf16", falcon, String::new()),
        ("falcon awq 128", falcon, quantized(&format!("{awq}: 128"))),
        ("falcon fp8", falcon, quantized(&fp8(true))),
        ("llama bf16", llama, String::new()),
        ("llama awq 64", llama, quantized(&format!("{awq}: 64"))),
        ("llama awq a row", llama, quantized(&format!("{awq}: -1"))),
        ("llama packed", llama, quantized(&packed)),
        ("llama fp8", llama, quantized(&fp8(true))),
        ("llama static fp8", llama, quantized(&fp8(false))),
        ("llama modelopt w4a8", llama, quantized(model_opt)),
    ];
    let case = |(name, model, quantization): (&'static str, &str, String)| {
        let text: &'static str = format!("{{{model}{quantization}}}").leak();
        let (config, quantization) = settings(&Files::memory([("config.json", text.as_bytes())])).unwrap();
        (name, config, quantization)
    };
    cases.into_iter().map(case).collect()
}

/// The logits behind each of 20 tokens.
fn logits(config: &ModelConfig, quantization: &Quantization, seed: u64) -> Vec<f32> {
    let mut told = Vec::new();
    let mut model =
        Model::synthetic(config, quantization, Cpu::default(), 1, KvDtype::Fp8, seed, &mut |progress| {
            told.push(progress);
        })
        .unwrap();
    let last = told.last().unwrap();
    assert_eq!((last.loaded, last.total), (last.total, total(config, quantization)));
    assert!(told.is_sorted_by_key(|progress| progress.loaded));

    let params = sampling::Params::default();
    let mut logits = Vec::new();
    for token in 0..20u32 {
        let sample = Some(models::Sample { params: &params, history: &[], prompt_len: 0 });
        let context_len = token as usize + 1;
        let sequence =
            StepSequence { tokens: &[token * 17], context_len, prompt_len: 20, pages: &[0], sample };
        logits.extend(model.logits(&Step { sequences: vec![sequence] }).unwrap());
    }
    logits
}

fn total(config: &ModelConfig, quantization: &Quantization) -> u64 {
    MemoryPlan::new(config, quantization, KvDtype::Fp8).weight_bytes()
}

#[test]
fn logits_of_deep_random_models_spread_by_about_one() {
    for (name, config, quantization) in configs() {
        let logits = logits(&config, &quantization, 5);
        let mean_square = logits.iter().map(|x| f64::from(x * x)).sum::<f64>() / logits.len() as f64;
        assert!((0.5..2.0).contains(&mean_square.sqrt()), "{name}: {mean_square}");
        // Tokens differ: the model has not settled on one answer.
        let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        let answers: std::collections::HashSet<usize> = logits.chunks(384).map(best).collect();
        assert!(answers.len() > 2, "{name}: {answers:?}");
    }
}

#[test]
fn a_seed_gives_one_model() {
    let (_, config, quantization) = configs().swap_remove(1);
    let first = logits(&config, &quantization, 5);
    assert_eq!(logits(&config, &quantization, 5), first);
    assert_ne!(logits(&config, &quantization, 6), first);
}
