//! Settings as published checkpoints write them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use checkpoint::config::{FalconBlock, FalconPositions, FusedQkv};
use checkpoint::{Checkpoint, FalconConfig, LlamaConfig, ModelConfig, Rope, RopeScaling, TorchDtype};
use common::{Folder, leak, safetensors};

fn open(config: &str) -> Checkpoint {
    Folder::default().with("config.json", config).with("model.safetensors", safetensors(&[])).open().unwrap()
}

fn falcon(config: &str) -> FalconConfig {
    match open(config).config {
        ModelConfig::Falcon(config) => config,
        other => panic!("{other:?}"),
    }
}

fn llama(config: &str) -> LlamaConfig {
    match open(config).config {
        ModelConfig::Llama(config) => config,
        other => panic!("{other:?}"),
    }
}

const PLAIN_ROPE: Rope = Rope { theta: 10_000.0, scaling: RopeScaling::None };

#[test]
fn falcon_180b() {
    let config = falcon(
        r#"{"alibi": false, "architectures": ["FalconForCausalLM"], "attention_dropout": 0.0, "bias": false,
        "bos_token_id": 11, "eos_token_id": 11, "hidden_dropout": 0.0, "hidden_size": 14848, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "falcon", "multi_query": true, "new_decoder_architecture": true,
        "num_attention_heads": 232, "num_hidden_layers": 80, "num_kv_heads": 8, "parallel_attn": true,
        "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 65024}"#,
    );
    let common = &config.common;
    assert_eq!((common.query_heads, common.kv_heads, common.head_dim), (232, 8, 64));
    assert_eq!((common.layers, common.hidden_size, common.ffn_hidden_size), (80, 14848, 59392));
    assert_eq!((common.vocab_size, common.max_position_embeddings), (65024, 2048));
    assert_eq!((common.norm_epsilon, common.tie_word_embeddings), (1e-5, true));
    assert_eq!(
        (common.bos_token_id, common.pad_token_id, common.dtype),
        (Some(11), None, Some(TorchDtype::Bf16))
    );
    assert_eq!(common.eos_token_ids, [11]);
    assert_eq!(
        (config.qkv, config.block, config.bias),
        (FusedQkv::Grouped, FalconBlock::ParallelTwoNorms, false)
    );
    assert_eq!(config.positions, FalconPositions::Rotary(PLAIN_ROPE));
}

#[test]
fn falcon_7b_and_its_first_config() {
    let config = falcon(
        r#"{"alibi": false, "architectures": ["FalconForCausalLM"], "bias": false, "bos_token_id": 11,
        "eos_token_id": 11, "hidden_size": 4544, "model_type": "falcon", "multi_query": true,
        "new_decoder_architecture": false, "num_attention_heads": 71, "num_hidden_layers": 32, "num_kv_heads": 71,
        "parallel_attn": true, "vocab_size": 65024}"#,
    );
    assert_eq!((config.common.query_heads, config.common.kv_heads, config.common.head_dim), (71, 1, 64));
    assert_eq!((config.qkv, config.block), (FusedQkv::MultiQuery, FalconBlock::ParallelSharedNorm));
    let first = falcon(
        r#"{"alibi": false, "apply_residual_connection_post_layernorm": false, "architectures": ["RWForCausalLM"],
        "bias": false, "bos_token_id": 11, "eos_token_id": 11, "hidden_size": 4544, "model_type": "RefinedWebModel",
        "multi_query": true, "n_head": 71, "n_layer": 32, "parallel_attn": true, "vocab_size": 65024}"#,
    );
    assert_eq!(first, config);
}

#[test]
fn falcon_40b_and_its_first_config() {
    let config = falcon(
        r#"{"alibi": false, "bias": false, "bos_token_id": 11, "eos_token_id": 11, "hidden_size": 8192,
        "model_type": "falcon", "multi_query": true, "new_decoder_architecture": true, "num_attention_heads": 128,
        "num_hidden_layers": 60, "num_kv_heads": 8, "parallel_attn": true, "vocab_size": 65024}"#,
    );
    assert_eq!((config.qkv, config.block), (FusedQkv::Grouped, FalconBlock::ParallelTwoNorms));
    let first = falcon(
        r#"{"alibi": false, "apply_residual_connection_post_layernorm": false, "architectures": ["RWForCausalLM"],
        "bias": false, "bos_token_id": 11, "eos_token_id": 11, "hidden_size": 8192, "model_type": "RefinedWeb",
        "n_head": 128, "n_head_kv": 8, "n_layer": 60, "parallel_attn": true, "vocab_size": 65024}"#,
    );
    assert_eq!(first, config);
}

#[test]
fn falcon_11b() {
    let config = falcon(
        r#"{"alibi": false, "architectures": ["FalconForCausalLM"], "bias": false, "bos_token_id": 11,
        "eos_token_id": 11, "ff_factor": 4, "ffn_hidden_size": 16384, "hidden_size": 4096, "model_type": "falcon",
        "multi_query": true, "new_decoder_architecture": true, "num_attention_heads": 32, "num_hidden_layers": 60,
        "num_kv_heads": 8, "num_ln_in_parallel_attn": 1, "max_position_embeddings": 8192, "parallel_attn": true,
        "rope_scaling": null, "rope_theta": 500042.0, "tie_word_embeddings": false, "vocab_size": 65024}"#,
    );
    assert_eq!((config.qkv, config.block), (FusedQkv::Grouped, FalconBlock::ParallelSharedNorm));
    assert_eq!((config.common.tie_word_embeddings, config.common.max_position_embeddings), (false, 8192));
    let rope = Rope { theta: 500_042.0, scaling: RopeScaling::None };
    assert_eq!(config.positions, FalconPositions::Rotary(rope));
}

#[test]
fn falcon_rw() {
    let config = falcon(
        r#"{"alibi": true, "architectures": ["FalconForCausalLM"], "bias": true, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_size": 2048, "model_type": "falcon", "multi_query": false,
        "new_decoder_architecture": false, "num_attention_heads": 32, "num_hidden_layers": 24,
        "parallel_attn": false, "vocab_size": 50304}"#,
    );
    assert_eq!((config.common.query_heads, config.common.kv_heads), (32, 32));
    assert_eq!((config.qkv, config.block), (FusedQkv::PerHead, FalconBlock::Sequential));
    assert_eq!((config.positions, config.bias), (FalconPositions::Alibi, true));
    assert_eq!(config.common.eos_token_ids, [2]);
}

#[test]
fn llama_2_70b() {
    let config = llama(
        r#"{"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 8192, "initializer_range": 0.02, "intermediate_size": 28672, "max_position_embeddings": 4096,
        "model_type": "llama", "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8,
        "pad_token_id": -1, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
        "tie_word_embeddings": false, "torch_dtype": "float16", "use_cache": true, "vocab_size": 32000}"#,
    );
    let common = &config.common;
    assert_eq!((common.query_heads, common.kv_heads, common.head_dim), (64, 8, 128));
    assert_eq!((common.layers, common.hidden_size, common.ffn_hidden_size), (80, 8192, 28672));
    assert_eq!(
        (common.bos_token_id, common.pad_token_id, common.dtype),
        (Some(1), None, Some(TorchDtype::F16))
    );
    assert_eq!((config.attention_bias, config.mlp_bias, config.rope), (false, false, PLAIN_ROPE));
}

#[test]
fn llama_3_1_70b_in_both_spellings() {
    let common = r#""architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 8192,
        "intermediate_size": 28672, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "tie_word_embeddings": false, "vocab_size": 128256"#;
    let scaling = r#""factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3""#;
    let old = format!(
        r#"{{{common}, "rope_scaling": {{{scaling}}}, "rope_theta": 500000.0, "torch_dtype": "bfloat16"}}"#
    );
    let new = format!(
        r#"{{{common}, "rope_parameters": {{{scaling}, "rope_theta": 500000.0}}, "dtype": "bfloat16"}}"#
    );
    let config = llama(&old);
    assert_eq!(config, llama(&new));
    assert_eq!(config.common.eos_token_ids, [128001, 128008, 128009]);
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(config.rope, Rope { theta: 500_000.0, scaling });
}

#[test]
fn rope_scalings() {
    let rope = |settings: &str| llama(&common::LLAMA.replacen("\"rope_theta\": 10000.0", settings, 1)).rope;
    assert_eq!(rope(r#""rope_scaling": null"#), PLAIN_ROPE);
    assert_eq!(rope(r#""rope_scaling": {}"#), PLAIN_ROPE);
    assert_eq!(rope(r#""rope_parameters": {"rope_type": "default"}"#), PLAIN_ROPE);
    let linear = Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 2.5 } };
    assert_eq!(rope(r#""rope_scaling": {"type": "linear", "factor": 2.5}"#), linear);
    assert_eq!(rope(r#""rope_scaling": {"rope_type": "linear", "type": "other", "factor": 2.5}"#), linear);
    let dynamic = RopeScaling::Dynamic { factor: 4.0, original_max_position_embeddings: 64 };
    assert_eq!(rope(r#""rope_scaling": {"type": "dynamic", "factor": 4}"#).scaling, dynamic);
    // As in transformers: rope_scaling before rope_parameters, a theta inside before the one outside.
    let both = r#""rope_theta": 7, "rope_scaling": {"type": "linear", "factor": 2.5, "rope_theta": 10000},
        "rope_parameters": {"rope_type": "default", "rope_theta": 9}"#;
    assert_eq!(rope(both), linear);
}

#[test]
fn dynamic_scaling_has_room_for_what_it_stretches_to() {
    let max_context = |settings: &str| {
        ModelConfig::Llama(llama(&common::LLAMA.replacen("\"rope_theta\": 10000.0", settings, 1)))
            .max_context()
    };
    assert_eq!(max_context(r#""rope_scaling": null"#), 64);
    assert_eq!(max_context(r#""rope_scaling": {"type": "dynamic", "factor": 4}"#), 256);
    assert_eq!(max_context(r#""rope_scaling": {"type": "dynamic", "factor": 1e6}"#), 64_000_000);
    assert_eq!(max_context(r#""rope_scaling": {"type": "linear", "factor": 4}"#), 64);
    assert_eq!(ModelConfig::Falcon(falcon(common::FALCON)).max_context(), 2048);
}

#[test]
fn defaults_where_a_key_is_absent_and_none_where_it_is_null() {
    let without = |key: &str, to: &str| common::LLAMA.replacen(key, to, 1);
    let config = llama(&without("\"num_key_value_heads\": 1,", ""));
    assert_eq!((config.common.query_heads, config.common.kv_heads), (2, 2));
    assert_eq!((config.common.bos_token_id, config.common.eos_token_ids), (Some(1), vec![2]));
    let config = llama(&without(
        "\"vocab_size\": 32,",
        "\"vocab_size\": 32, \"eos_token_id\": null, \"head_dim\": 6,",
    ));
    assert_eq!((config.common.eos_token_ids.len(), config.common.head_dim), (0, 6));
}

#[test]
fn generation_settings() {
    let folder = Folder::llama().with(
        "generation_config.json",
        r#"{"bos_token_id": 1, "do_sample": true, "eos_token_id": [3, 4], "max_length": 4096, "temperature": 0.6,
        "top_k": 50, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "max_new_tokens": 7, "pad_token_id": 0,
        "transformers_version": "4.43.0"}"#,
    );
    let checkpoint = folder.open().unwrap();
    let generation = &checkpoint.generation;
    assert_eq!(checkpoint.eos_token_ids(), [3, 4]);
    assert_eq!((generation.do_sample, generation.temperature), (Some(true), Some(0.6)));
    assert_eq!((generation.top_k, generation.top_p, generation.min_p), (Some(50), Some(0.9), Some(0.05)));
    assert_eq!((generation.repetition_penalty, generation.max_new_tokens), (Some(1.1), Some(7)));
    assert_eq!((generation.bos_token_id, generation.pad_token_id), (Some(1), Some(0)));
    assert_eq!(Folder::llama().open().unwrap().eos_token_ids(), [2]);
    assert_eq!(Folder::llama().open().unwrap().generation, Default::default());
}

/// The configs that the goldens of `models` were made with, some of them saved by transformers itself.
#[test]
fn every_golden_config_reads() {
    let goldens = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/goldens");
    let mut count = 0;
    for entry in std::fs::read_dir(goldens).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let config = leak(golden["config"].to_string().into_bytes());
            open(std::str::from_utf8(config).unwrap());
            count += 1;
        }
    }
    assert!(count >= 24, "{count}");
}
