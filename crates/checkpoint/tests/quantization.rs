//! Quantization settings: those of published checkpoints, and those that are refused, each with its exact error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use checkpoint::quantization::{Group, KvCacheScheme};
use checkpoint::{Checkpoint, ConfigError, Error, LinearFormat};
use common::{
    LLAMA, assert_one_line, assert_refused, conflict, folder, missing, range, unsupported, wrong_type,
};

const CONFIG: &str = "config.json";

/// config.json of a Llama with this `quantization_config`.
fn quantized(settings: &str) -> String {
    LLAMA.replacen('{', &format!("{{\"quantization_config\": {settings},"), 1)
}

const LAYER: &str = "model.layers.3.mlp.down_proj";

fn open(settings: &str) -> Checkpoint {
    folder(&quantized(settings)).open().unwrap()
}

/// hugging-quants' Llama-3.1-70B-Instruct AWQ-INT4, TheBloke's Falcon-180B-Chat-AWQ.
#[test]
fn published_awq() {
    let format = LinearFormat::AutoAwq { group: Group::Size(128) };
    let llama = open(
        r#"{"bits": 4, "do_fuse": false, "exllama_config": null, "fuse_max_seq_len": null, "group_size": 128,
        "modules_to_fuse": null, "modules_to_not_convert": null, "quant_method": "awq", "version": "gemm",
        "zero_point": true}"#,
    );
    assert_eq!((llama.linear_format(LAYER), llama.quantization.kv_cache), (format, KvCacheScheme::None));
    let falcon =
        r#"{"bits": 4, "group_size": 128, "quant_method": "awq", "version": "GEMM", "zero_point": true}"#;
    assert_eq!(open(falcon).linear_format("transformer.h.0.mlp.dense_h_to_4h"), format);
    let excluded =
        r#"{"quant_method": "awq", "group_size": -1, "modules_to_not_convert": ["mlp.down", "gate"]}"#;
    assert_eq!(open(excluded).linear_format(LAYER), LinearFormat::Plain);
    let channel = LinearFormat::AutoAwq { group: Group::Channel };
    assert_eq!(open(excluded).linear_format("model.layers.3.mlp.up_proj"), channel);
}

/// RedHatAI's Meta-Llama-3.1-70B-Instruct-FP8, -FP8-dynamic and -quantized.w4a16.
#[test]
fn published_compressed_tensors() {
    let settings = |format: &str, weights: &str, inputs: &str, rest: &str| {
        format!(
            r#"{{"config_groups": {{"group_0": {{"input_activations": {inputs}, "output_activations": null,
            "targets": ["Linear"], "weights": {{"block_structure": null, "dynamic": false, "observer": "minmax",
            "observer_kwargs": {{}}, "symmetric": true, {weights}}}}}}}, "format": "{format}",
            "global_compression_ratio": 1.46, "ignore": ["lm_head"], "quant_method": "compressed-tensors",
            "quantization_status": "frozen" {rest}}}"#
        )
    };
    let fp8 = |strategy: &str| {
        format!(r#""group_size": null, "num_bits": 8, "strategy": "{strategy}", "type": "float""#)
    };
    let inputs = |dynamic: bool, strategy: &str| {
        format!(
            r#"{{"block_structure": null, "dynamic": {dynamic}, "group_size": null, "num_bits": 8, "observer": "minmax",
            "observer_kwargs": {{}}, "strategy": "{strategy}", "symmetric": true, "type": "float"}}"#
        )
    };
    let cache = format!(r#", "kv_cache_scheme": {}"#, inputs(false, "tensor"));
    let checkpoint = open(&settings("float-quantized", &fp8("tensor"), &inputs(false, "tensor"), &cache));
    assert_eq!(checkpoint.linear_format(LAYER), LinearFormat::Fp8 { per_row: false, static_input: true });
    assert_eq!(checkpoint.linear_format("lm_head"), LinearFormat::Plain);
    assert_eq!(checkpoint.quantization.kv_cache, KvCacheScheme::Fp8);
    let checkpoint = open(&settings("float-quantized", &fp8("channel"), &inputs(true, "token"), ""));
    assert_eq!(checkpoint.linear_format(LAYER), LinearFormat::Fp8 { per_row: true, static_input: false });
    let packed =
        r#""actorder": "weight", "group_size": 128, "num_bits": 4, "strategy": "group", "type": "int""#;
    let checkpoint = open(&settings("pack-quantized", packed, "null", ""));
    let format = LinearFormat::PackQuantized { group: Group::Size(128), symmetric: true };
    assert_eq!(
        (checkpoint.linear_format(LAYER), checkpoint.quantization.kv_cache),
        (format, KvCacheScheme::None)
    );
    // The key that compressed-tensors wrote at first.
    let first = quantized(&settings("pack-quantized", packed, "null", "")).replacen(
        "quantization_",
        "compression_",
        1,
    );
    assert_eq!(folder(&first).open().unwrap().linear_format(LAYER), format);
}

#[test]
fn the_most_specific_target_counts() {
    let group = |targets: &str, strategy: &str| {
        format!(
            r#"{{"targets": [{targets}], "weights": {{"num_bits": 8, "type": "float", "strategy": "{strategy}"}}}}"#
        )
    };
    let settings = format!(
        r#"{{"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {{"a": {},
        "b": {}, "c": {{"targets": ["{LAYER}"], "format": "pack-quantized",
        "weights": {{"num_bits": 4, "type": "int", "group_size": -1, "symmetric": false}}}}}}}}"#,
        group("\"Linear\"", "tensor"),
        group("\"re:.*mlp\"", "channel"),
    );
    let checkpoint = open(&settings);
    let format = |layer| checkpoint.linear_format(layer);
    assert_eq!(format(LAYER), LinearFormat::PackQuantized { group: Group::Channel, symmetric: false });
    assert_eq!(
        format("model.layers.3.mlp.up_proj"),
        LinearFormat::Fp8 { per_row: true, static_input: false }
    );
    assert_eq!(
        format("model.layers.3.self_attn.o_proj"),
        LinearFormat::Fp8 { per_row: false, static_input: false }
    );
}

/// nvidia's Llama-3.1-70B-Instruct-FP8: the file of its own, and what newer exports copy into config.json.
#[test]
fn published_model_opt() {
    let file = |quantization: &str| {
        let text = format!(
            r#"{{"producer": {{"name": "modelopt", "version": "0.29.0"}}, "quantization": {quantization}}}"#
        );
        folder(LLAMA).with("hf_quant_config.json", text)
    };
    let fp8 = LinearFormat::Fp8 { per_row: false, static_input: true };
    let own = file(
        r#"{"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head", "model.layers.0*"]}"#,
    );
    let checkpoint = own.open().unwrap();
    assert_eq!(
        (checkpoint.linear_format(LAYER), checkpoint.quantization.kv_cache),
        (fp8, KvCacheScheme::Fp8)
    );
    assert_eq!(checkpoint.linear_format("lm_head"), LinearFormat::Plain);
    assert_eq!(checkpoint.linear_format("model.layers.0.mlp.up_proj"), LinearFormat::Plain);
    let copied = open(
        r#"{"config_groups": {"group_0": {"input_activations": {"dynamic": false, "num_bits": 8, "type": "float"},
        "targets": ["Linear"], "weights": {"dynamic": false, "num_bits": 8, "type": "float"}}}, "ignore": ["lm_head"],
        "kv_cache_scheme": {"dynamic": false, "num_bits": 8, "type": "float"}, "quant_algo": "FP8",
        "quant_method": "modelopt"}"#,
    );
    assert_eq!((copied.linear_format(LAYER), copied.quantization.kv_cache), (fp8, KvCacheScheme::Fp8));
    assert_eq!(copied.linear_format("lm_head"), LinearFormat::Plain);
    // The copy has no group size: the file of its own counts where both are there.
    let awq = file(
        r#"{"quant_algo": "W4A8_AWQ", "group_size": 64, "has_zero_point": false, "pre_quant_scale": true}"#,
    );
    let both = awq.with(CONFIG, quantized(r#"{"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}"#));
    assert_eq!(both.open().unwrap().linear_format(LAYER), LinearFormat::W4a8Awq { group_size: 64 });
    let cache_only = file(r#"{"quant_algo": null, "kv_cache_quant_algo": "FP8"}"#).open().unwrap();
    assert_eq!(
        (cache_only.linear_format(LAYER), cache_only.quantization.kv_cache),
        (LinearFormat::Plain, KvCacheScheme::Fp8)
    );
}

#[test]
fn methods() {
    let methods = "awq, compressed-tensors, modelopt, or none";
    let key = |key: &str| format!("quantization_config.{key}");
    let refuse = |value: &str| unsupported(&key("quant_method"), value, methods);
    let awq = |settings: &str| quantized(&format!(r#"{{"quant_method": "awq", {settings}}}"#));
    let model_opt = |settings: &str| quantized(&format!(r#"{{"quant_method": "modelopt", {settings}}}"#));
    let zeros = "true (AutoAWQ gemm always stores qzeros)";
    let algorithms = "FP8, FP8_PER_CHANNEL_PER_TOKEN, W4A8_AWQ";
    let cases = [
        (quantized("7"), wrong_type("quantization_config", "an object", "7")),
        (quantized("{}"), missing(&key("quant_method"))),
        (quantized(r#"{"quant_method": "gptq", "bits": 4}"#), refuse("\"gptq\"")),
        (quantized(r#"{"quant_method": "bitsandbytes"}"#), refuse("\"bitsandbytes\"")),
        (quantized(r#"{"quant_method": "fp8", "weight_block_size": [128, 128]}"#), refuse("\"fp8\"")),
        (awq(r#""version": "gemv""#), unsupported(&key("version"), "\"gemv\"", "gemm")),
        (awq(r#""bits": 8"#), unsupported(&key("bits"), "8", "4")),
        (awq(r#""zero_point": false"#), unsupported(&key("zero_point"), "false", zeros)),
        (awq(r#""group_size": 12"#), range(&key("group_size"), "a multiple of 8", "12")),
        (awq(r#""group_size": 0"#), range(&key("group_size"), "a whole number from 8 to 1048576", "0")),
        (
            awq(r#""group_size": 64, "q_group_size": 128"#),
            conflict(&key("group_size"), "64", &key("q_group_size"), "128"),
        ),
        (
            awq(r#""modules_to_not_convert": "lm_head""#),
            wrong_type(&key("modules_to_not_convert"), "a list of strings", "\"lm_head\""),
        ),
        (model_opt(r#""ignore": []"#), missing(&key("quant_algo"))),
        (model_opt(r#""quant_algo": "NVFP4""#), unsupported(&key("quant_algo"), "\"NVFP4\"", algorithms)),
        (
            model_opt(r#""quant_algo": "W4A8_AWQ", "has_zero_point": true"#),
            unsupported(&key("has_zero_point"), "true", "false"),
        ),
        (
            model_opt(r#""quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 4, "type": "float"}"#),
            unsupported(&key("kv_cache_scheme.num_bits"), "4", "8"),
        ),
        (
            model_opt(r#""quant_algo": "FP8", "kv_cache_scheme": "NVFP4""#),
            unsupported(&key("kv_cache_scheme"), "\"NVFP4\"", "FP8"),
        ),
    ];
    for (config, expected) in cases {
        let error = folder(&config).open().expect_err(&config);
        assert_eq!(error, expected);
        assert_one_line(&error);
    }
}

#[test]
fn compressed_tensors() {
    let base = |format: &str, weights: &str, inputs: &str| {
        quantized(&format!(
            r#"{{"quant_method": "compressed-tensors", "format": "{format}", "ignore": ["lm_head"],
            "config_groups": {{"group_0": {{"targets": ["Linear"], "weights": {weights},
            "input_activations": {inputs}}}}}}}"#
        ))
    };
    let key = |key: &str| format!("quantization_config.{key}");
    let weights = |name: &str| key(&format!("config_groups.group_0.weights.{name}"));
    let inputs = |name: &str| key(&format!("config_groups.group_0.input_activations.{name}"));
    let formats = "pack-quantized, float-quantized, naive-quantized";
    assert_refused(
        &base(
            "pack-quantized",
            r#"{"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": true}"#,
            "null",
        ),
        &[
            ("\"config_groups\"", "\"groups\"", missing(&key("config_groups"))),
            (r#""format": "pack-quantized", "#, "", missing(&key("format"))),
            ("pack-quantized", "marlin-24", unsupported(&key("format"), "\"marlin-24\"", formats)),
            ("pack-quantized", "int-quantized", unsupported(&key("format"), "\"int-quantized\"", formats)),
            (
                r#""targets": ["Linear"], "#,
                r#""format": "dense", "targets": ["Linear"], "#,
                unsupported(&key("config_groups.group_0.format"), "\"dense\"", formats),
            ),
            (
                r#""ignore": ["lm_head"]"#,
                r#""sparsity_config": {"format": "sparse-24-bitmask"}"#,
                unsupported(&key("sparsity_config.format"), "\"sparse-24-bitmask\"", "dense"),
            ),
            (r#""targets": ["Linear"], "#, "", missing(&key("config_groups.group_0.targets"))),
            (
                r#"["Linear"]"#,
                r#"["re:model.(?=layers)"]"#,
                ConfigError::Pattern {
                    file: CONFIG.to_owned(),
                    key: key("config_groups.group_0.targets"),
                    pattern: "model.(?=layers)".to_owned(),
                    message: "error: look-around, including look-ahead and look-behind, is not supported"
                        .to_owned(),
                }
                .into(),
            ),
            (
                r#"["lm_head"]"#,
                r#"["re:(((a{100}){100}){100}){100}"]"#,
                ConfigError::Pattern {
                    file: CONFIG.to_owned(),
                    key: key("ignore"),
                    pattern: "(((a{100}){100}){100}){100}".to_owned(),
                    message: "Compiled regex exceeds size limit of 262144 bytes.".to_owned(),
                }
                .into(),
            ),
            (r#""num_bits": 4"#, r#""num_bits": 8"#, unsupported(&weights("num_bits"), "8", "4")),
            (r#""type": "int""#, r#""type": "float""#, unsupported(&weights("type"), "\"float\"", "int")),
            (r#""group_size": 128, "#, "", missing(&weights("group_size"))),
            (
                r#""group_size": 128"#,
                r#""group_size": 20"#,
                range(&weights("group_size"), "a multiple of 8", "20"),
            ),
            (r#""group""#, r#""tensor""#, unsupported(&weights("strategy"), "\"tensor\"", "group, channel")),
            (
                r#""symmetric": true"#,
                r#""actorder": "group""#,
                unsupported(&weights("actorder"), "\"group\"", "weight, static, or none"),
            ),
            (
                r#""input_activations": null"#,
                r#""input_activations": {"num_bits": 8, "type": "int", "dynamic": true}"#,
                unsupported(&inputs("type"), "\"int\"", "float"),
            ),
            (
                r#""input_activations": null"#,
                r#""input_activations": {"num_bits": 8, "type": "float", "dynamic": false}"#,
                unsupported(&inputs("dynamic"), "false", "true beside 4-bit weights"),
            ),
            (
                r#""ignore": ["lm_head"]"#,
                r#""kv_cache_scheme": {"num_bits": 8, "type": "int", "strategy": "tensor"}"#,
                unsupported(&key("kv_cache_scheme.type"), "\"int\"", "float"),
            ),
        ],
    );
    assert_refused(
        &base(
            "float-quantized",
            r#"{"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true}"#,
            r#"{"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true}"#,
        ),
        &[
            (r#""num_bits": 8"#, r#""num_bits": 4"#, unsupported(&weights("num_bits"), "4", "8")),
            (r#""channel""#, r#""block""#, unsupported(&weights("strategy"), "\"block\"", "tensor, channel")),
            (
                r#""symmetric": true"#,
                r#""symmetric": false"#,
                unsupported(&weights("symmetric"), "false", "true"),
            ),
            (
                r#""dynamic": true"#,
                r#""dynamic": false"#,
                unsupported(&inputs("strategy"), "\"token\"", "tensor; token where dynamic"),
            ),
            (
                r#""dynamic": true"#,
                r#""dynamic": "local""#,
                unsupported(&inputs("dynamic"), "\"local\"", "true, false"),
            ),
        ],
    );
}

#[test]
fn hf_quant_config() {
    let file = || "hf_quant_config.json".to_owned();
    let algorithms = "FP8, FP8_PER_CHANNEL_PER_TOKEN, W4A8_AWQ";
    let refuse = |key: &str, value: &str, supported| {
        Error::from(ConfigError::Unsupported {
            file: file(),
            key: format!("quantization.{key}"),
            value: value.to_owned(),
            supported,
        })
    };
    let cases = [
        ("{}", ConfigError::Missing { file: file(), key: "quantization".to_owned() }.into()),
        (
            r#"{"quantization": {"quant_algo": "W4A16_AWQ"}}"#,
            refuse("quant_algo", "\"W4A16_AWQ\"", algorithms),
        ),
        (
            r#"{"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}}"#,
            refuse("kv_cache_quant_algo", "\"NVFP4\"", "FP8"),
        ),
        (
            r#"{"quantization": {"quant_algo": "W4A8_AWQ", "group_size": -1}}"#,
            refuse("group_size", "-1", "a multiple of 8"),
        ),
    ];
    for (text, expected) in cases {
        let error = folder(LLAMA).with("hf_quant_config.json", text).open().expect_err(text);
        assert_eq!(error, expected);
        assert_one_line(&error);
    }
}
