//! Small models of every architecture and format, of sizes that the kernels take.

use checkpoint::{Files, ModelConfig, Quantization};
use serde_json::json;

pub fn settings(config: serde_json::Value) -> (ModelConfig, Quantization) {
    let text = config.to_string();
    let text: &'static str = text.leak();
    checkpoint::settings(&Files::memory([("config.json", text.as_bytes())])).unwrap()
}

pub fn llama(layers: usize, quantization: serde_json::Value) -> serde_json::Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 512,
        "intermediate_size": 1024, "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
        "quantization_config": quantization,
    })
}

pub fn falcon(layers: usize, quantization: serde_json::Value) -> serde_json::Value {
    json!({
        "model_type": "falcon", "architectures": ["FalconForCausalLM"], "vocab_size": 512, "hidden_size": 512,
        "num_hidden_layers": layers, "num_attention_heads": 8, "num_kv_heads": 2, "new_decoder_architecture": true,
        "parallel_attn": true, "multi_query": true, "alibi": false, "bias": false, "layer_norm_epsilon": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 512, "quantization_config": quantization,
    })
}

pub fn fp8(dynamic: bool) -> serde_json::Value {
    let strategy = if dynamic { ("channel", "token") } else { ("tensor", "tensor") };
    json!({
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "symmetric": true, "dynamic": false, "strategy": strategy.0},
            "input_activations":
                {"num_bits": 8, "type": "float", "symmetric": true, "dynamic": dynamic, "strategy": strategy.1},
        }},
    })
}

pub fn awq(group_size: usize) -> serde_json::Value {
    json!({"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group_size, "zero_point": true})
}

pub fn packed(symmetric: bool) -> serde_json::Value {
    json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights":
                {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 128},
        }},
    })
}
