//! Malformed and unsupported settings: each case with its exact error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use checkpoint::{ConfigError, Error, JsonError, limits};
use common::{
    FALCON, LLAMA, assert_one_line, assert_refused, conflict, folder, missing, range, unsupported, wrong_type,
};

const CONFIG: &str = "config.json";

#[test]
fn json() {
    let file = || CONFIG.to_owned();
    let syntax = |message: &str| Error::from(JsonError::Syntax { file: file(), message: message.to_owned() });
    let duplicate = |key: &str| Error::from(JsonError::DuplicateKey { file: file(), key: key.to_owned() });
    let object = |got| Error::from(JsonError::NotAnObject { file: file(), got });
    let deep = Error::from(JsonError::TooDeep { file: file(), limit: limits::JSON_DEPTH });
    let cases = [
        ("", syntax("EOF while parsing a value at line 1 column 0")),
        ("{", syntax("EOF while parsing an object at line 1 column 1")),
        ("{} {}", syntax("trailing characters at line 1 column 4")),
        ("{\"a\": NaN}", syntax("expected value at line 1 column 7")),
        ("{\"a\": 1e999}", syntax("number out of range at line 1 column 11")),
        ("{\"a\": \"\\ud800\"}", syntax("unexpected end of hex escape at line 1 column 14")),
        ("[]", object("an array")),
        ("\"llama\"", object("a string")),
        ("null", object("null")),
        (r#"{"a": 1, "a": 1}"#, duplicate("a")),
        (r#"{"x": {"b": 1, "\u0062": 2}}"#, duplicate("b")),
        (&"[".repeat(1 << 20), deep.clone()),
        (&format!("{}1{}", "{\"a\":".repeat(65), "}".repeat(65)), deep),
    ];
    for (text, expected) in cases {
        let error = folder(text).open().expect_err("opened");
        assert_eq!(error, expected);
        assert_one_line(&error);
    }
}

#[test]
fn llama() {
    let heads = r#""num_attention_heads": 2"#;
    let features = "a whole number from 1 to 1048576";
    let rope = r#""rope_theta": 10000.0"#;
    let llama3 = r#""rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}"#;
    let ropes = "default, linear, dynamic, llama3";
    let model_types = "falcon, RefinedWeb, RefinedWebModel, llama";
    assert_refused(
        LLAMA,
        &[
            (r#""model_type": "llama", "#, "", missing("model_type")),
            (r#""llama""#, "7", wrong_type("model_type", "a string", "7")),
            (r#""llama""#, r#""mixtral""#, unsupported("model_type", "\"mixtral\"", model_types)),
            (
                "LlamaForCausalLM",
                "LlamaForSequenceClassification",
                unsupported("architectures", "\"LlamaForSequenceClassification\"", "LlamaForCausalLM"),
            ),
            (
                r#"["LlamaForCausalLM"]"#,
                "\"LlamaForCausalLM\"",
                wrong_type("architectures", "a list of strings", "\"LlamaForCausalLM\""),
            ),
            (r#""hidden_size": 16,"#, "", missing("hidden_size")),
            (r#""hidden_size": 16"#, r#""hidden_size": null"#, missing("hidden_size")),
            (
                r#""hidden_size": 16"#,
                r#""hidden_size": "16""#,
                wrong_type("hidden_size", "a whole number", "\"16\""),
            ),
            (r#""hidden_size": 16"#, r#""hidden_size": 0"#, range("hidden_size", features, "0")),
            (r#""hidden_size": 16"#, r#""hidden_size": -16"#, range("hidden_size", features, "-16")),
            (r#""hidden_size": 16"#, r#""hidden_size": 16.5"#, range("hidden_size", features, "16.5")),
            (r#""hidden_size": 16"#, r#""hidden_size": 1e30"#, range("hidden_size", features, "1e+30")),
            (
                r#""hidden_size": 16"#,
                r#""hidden_size": 18446744073709551615"#,
                range("hidden_size", features, "18446744073709551615"),
            ),
            (
                r#""hidden_size": 16"#,
                r#""hidden_size": 15"#,
                range("hidden_size", "a multiple of num_attention_heads 2, as there is no head_dim", "15"),
            ),
            (r#""hidden_size": 16"#, r#""hidden_size": 6"#, range("head_dim", "an even number", "3")),
            (heads, r#""num_attention_heads": 0"#, range("num_attention_heads", features, "0")),
            (
                heads,
                r#""head_dim": 1048576, "num_attention_heads": 2"#,
                range("head_dim", "at most 1048576 features in 2 heads", "1048576"),
            ),
            (
                r#""num_key_value_heads": 1"#,
                r#""num_key_value_heads": 3"#,
                range("num_key_value_heads", "a whole number from 1 to 2", "3"),
            ),
            (
                r#""num_attention_heads": 2, "num_key_value_heads": 1"#,
                r#""num_attention_heads": 8, "num_key_value_heads": 3"#,
                range("num_key_value_heads", "a divisor of num_attention_heads 8", "3"),
            ),
            (
                r#""intermediate_size": 32"#,
                r#""intermediate_size": 0"#,
                range("intermediate_size", features, "0"),
            ),
            (
                r#""num_hidden_layers": 1"#,
                r#""num_hidden_layers": 5000"#,
                range("num_hidden_layers", "a whole number from 1 to 4096", "5000"),
            ),
            (
                r#""vocab_size": 32"#,
                r#""vocab_size": 0"#,
                range("vocab_size", "a whole number from 1 to 16777216", "0"),
            ),
            (
                r#""max_position_embeddings": 64"#,
                r#""max_position_embeddings": 0"#,
                range("max_position_embeddings", "a whole number from 1 to 268435456", "0"),
            ),
            ("1e-5", "0", range("rms_norm_eps", "a number from 1e-30 to 1.0", "0")),
            ("1e-5", "\"small\"", wrong_type("rms_norm_eps", "a number", "\"small\"")),
            (r#""silu""#, r#""relu""#, unsupported("hidden_act", "\"relu\"", "silu")),
            ("true", "1", wrong_type("tie_word_embeddings", "true or false", "1")),
            ("float32", "float64", unsupported("torch_dtype", "\"float64\"", "float32, float16, bfloat16")),
            (
                r#""torch_dtype": "float32""#,
                r#""torch_dtype": "float32", "dtype": "float16""#,
                conflict("torch_dtype", "\"float32\"", "dtype", "\"float16\""),
            ),
            (rope, r#""eos_token_id": 32"#, range("eos_token_id", "a token id below vocab_size 32", "32")),
            (
                rope,
                r#""eos_token_id": [1, -1]"#,
                range("eos_token_id", "a token id below vocab_size 32", "-1"),
            ),
            (rope, r#""bos_token_id": "<s>""#, wrong_type("bos_token_id", "a token id", "\"<s>\"")),
            (rope, r#""rope_theta": -1"#, rope_range("rope_theta", "-1")),
            (
                rope,
                r#""partial_rotary_factor": 0.5"#,
                unsupported("partial_rotary_factor", "0.5", "1 (the whole head)"),
            ),
            (rope, r#""rope_scaling": []"#, wrong_type("rope_scaling", "an object", "an array")),
            (
                rope,
                r#""rope_scaling": {"type": "yarn", "factor": 2}"#,
                unsupported("rope_scaling.type", "\"yarn\"", ropes),
            ),
            (
                rope,
                r#""rope_parameters": {"rope_type": "longrope"}"#,
                unsupported("rope_parameters.rope_type", "\"longrope\"", ropes),
            ),
            (
                rope,
                r#""rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}"#,
                unsupported("rope_parameters.partial_rotary_factor", "0.25", "1 (the whole head)"),
            ),
            (rope, r#""rope_scaling": {"type": 1}"#, wrong_type("rope_scaling.type", "a string", "1")),
            (rope, r#""rope_scaling": {"type": "linear"}"#, missing("rope_scaling.factor")),
            (
                rope,
                r#""rope_scaling": {"type": "linear", "factor": 0.5}"#,
                range("rope_scaling.factor", "a number from 1.0 to 1000000.0", "0.5"),
            ),
            (rope, llama3, range("rope_scaling.high_freq_factor", "a number over low_freq_factor 4", "4")),
        ],
    );
}

fn rope_range(key: &str, got: &str) -> Error {
    range(key, &format!("a number from {:?} to {:?}", f64::MIN_POSITIVE, 1e12), got)
}

#[test]
fn falcon() {
    assert_refused(
        FALCON,
        &[
            (
                "FalconForCausalLM",
                "LlamaForCausalLM",
                unsupported("architectures", "\"LlamaForCausalLM\"", "FalconForCausalLM, RWForCausalLM"),
            ),
            (
                r#""num_attention_heads": 4"#,
                r#""num_attention_heads": 4, "n_head": 8"#,
                conflict("num_attention_heads", "4", "n_head", "8"),
            ),
            (
                r#""num_kv_heads": 2"#,
                r#""num_kv_heads": 2, "n_head_kv": 1"#,
                conflict("num_kv_heads", "2", "n_head_kv", "1"),
            ),
            (
                r#""hidden_size": 16"#,
                r#""hidden_size": 18"#,
                range("hidden_size", "a multiple of num_attention_heads 4", "18"),
            ),
            (
                r#""num_kv_heads": 2"#,
                r#""num_kv_heads": 3"#,
                range("num_kv_heads", "a divisor of num_attention_heads 4", "3"),
            ),
            (
                r#""parallel_attn": true"#,
                r#""parallel_attn": false"#,
                conflict("new_decoder_architecture", "true", "parallel_attn", "false"),
            ),
            (
                r#""new_decoder_architecture": true"#,
                r#""new_decoder_architecture": false, "num_ln_in_parallel_attn": 2"#,
                conflict("new_decoder_architecture", "false", "num_ln_in_parallel_attn", "2"),
            ),
            (
                r#""new_decoder_architecture": true"#,
                r#""num_ln_in_parallel_attn": 3"#,
                range("num_ln_in_parallel_attn", "a whole number from 1 to 2", "3"),
            ),
            (
                r#""new_decoder_architecture": true,
 "parallel_attn": true, "multi_query": true"#,
                r#""multi_query": false"#,
                conflict("multi_query", "false", "num_kv_heads", "2"),
            ),
            (
                r#""bias": false"#,
                r#""activation": "gelu_new""#,
                unsupported("activation", "\"gelu_new\"", "gelu"),
            ),
            (
                r#""bias": false"#,
                r#""apply_residual_connection_post_layernorm": true"#,
                unsupported("apply_residual_connection_post_layernorm", "true", "false"),
            ),
            (r#""alibi": false"#, r#""alibi": "no""#, wrong_type("alibi", "true or false", "\"no\"")),
        ],
    );
}

#[test]
fn generation() {
    let file = || "generation_config.json".to_owned();
    let ranged = |key: &str, expected: &str, got: &str| {
        let (expected, got) = (expected.to_owned(), got.to_owned());
        Error::from(ConfigError::Range { file: file(), key: key.to_owned(), expected, got })
    };
    let cases = [
        (r#"{"temperature": -1}"#, ranged("temperature", "a number from 0.0 to 1000000.0", "-1")),
        (r#"{"top_p": 0}"#, ranged("top_p", "a number from 1e-9 to 1.0", "0")),
        (r#"{"top_p": 1.5}"#, ranged("top_p", "a number from 1e-9 to 1.0", "1.5")),
        (r#"{"top_k": -1}"#, ranged("top_k", "a whole number from 0 to 4294967295", "-1")),
        (r#"{"min_p": 2}"#, ranged("min_p", "a number from 0.0 to 1.0", "2")),
        (
            r#"{"repetition_penalty": 0}"#,
            ranged("repetition_penalty", "a number from 1e-6 to 1000000.0", "0"),
        ),
        (
            r#"{"max_new_tokens": 1e10}"#,
            ranged("max_new_tokens", "a whole number from 0 to 268435456", "10000000000.0"),
        ),
        (r#"{"eos_token_id": [2, 99]}"#, ranged("eos_token_id", "a token id below vocab_size 32", "99")),
        (
            r#"{"do_sample": 1}"#,
            ConfigError::Type {
                file: file(),
                key: "do_sample".to_owned(),
                expected: "true or false",
                got: "1".to_owned(),
            }
            .into(),
        ),
        ("[1]", JsonError::NotAnObject { file: file(), got: "an array" }.into()),
    ];
    for (text, expected) in cases {
        let error = folder(LLAMA).with("generation_config.json", text).open().expect_err(text);
        assert_eq!(error, expected, "{text}");
        assert_one_line(&error);
    }
}
