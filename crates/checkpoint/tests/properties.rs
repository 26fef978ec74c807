//! Laws that hold for every file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use checkpoint::config::FalconBlock;
use checkpoint::{Checkpoint, Files, ModelConfig, Quantization, Tensors};
use common::{FALCON, Folder, LLAMA, Piece, leak, safetensors};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A dtype's name and the bytes of an element.
const DTYPES: [(&str, usize); 8] =
    [("F32", 4), ("F16", 2), ("BF16", 2), ("F8_E4M3", 1), ("I32", 4), ("I64", 8), ("U8", 1), ("BOOL", 1)];

/// Tensors of any dtype and rank, empty ones and scalars among them.
fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let tensor = (0..DTYPES.len(), vec(0usize..5, 0..4), any::<u64>());
    btree_map("[a-z][a-z0-9._]{0,12}", tensor, 0..12).prop_map(|tensors| {
        let piece = |(name, (dtype, shape, seed)): (String, (usize, Vec<usize>, u64))| {
            let (dtype, bytes) = DTYPES[dtype];
            let count = bytes * shape.iter().product::<usize>();
            let bytes = (0..count as u64).map(|i| (seed.wrapping_mul(i + 1) >> 32) as u8).collect();
            Piece::new(&name, dtype, &shape, bytes)
        };
        tensors.into_iter().map(piece).collect()
    })
}

fn open(file: Vec<u8>) -> checkpoint::Result<Tensors> {
    Tensors::open(&Files::memory([("model.safetensors", leak(file))]))
}

/// The value of two bytes, from the definition: sign, exponent, mantissa.
fn widened(bits: u16, exponent_bits: u32) -> f64 {
    let mantissa_bits = 15 - exponent_bits;
    let (exponent, mantissa) = ((bits & 0x7fff) >> mantissa_bits, bits & ((1 << mantissa_bits) - 1));
    let bias = (1 << (exponent_bits - 1)) - 1;
    let fraction = f64::from(mantissa) / f64::from(1u32 << mantissa_bits);
    let magnitude = match i32::from(exponent) {
        0 => fraction * 2f64.powi(1 - bias),
        all if all == (1 << exponent_bits) - 1 => {
            if mantissa == 0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        exponent => (1.0 + fraction) * 2f64.powi(exponent - bias),
    };
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

/// Every 16-bit pattern, through a file: widening is exact.
#[test]
fn every_half_and_bfloat16_widens_exactly() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let half = Piece::new("half", "F16", &[256, 256], bytes.clone());
    let brain = Piece::new("brain", "BF16", &[65536], bytes);
    let tensors = open(safetensors(&[half, brain])).unwrap();
    for (name, shape, exponent_bits) in [("half", &[256, 256][..], 5), ("brain", &[65536], 8)] {
        for (bits, value) in tensors.f32s(name, shape).unwrap().into_iter().enumerate() {
            let expected = widened(bits as u16, exponent_bits);
            assert!(
                f64::from(value).to_bits() == expected.to_bits() || expected.is_nan() && value.is_nan(),
                "{bits:x}"
            );
        }
    }
}

/// A dimension as a setting that transformers would accept, or one that it would not.
fn setting() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        (0u64..300).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9_]{0,8}".prop_map(Value::from),
        vec(any::<u8>(), 0..3).prop_map(Value::from),
        Just(json!({"type": "linear", "factor": 2})),
        Just(json!({"rope_type": "llama3", "factor": 2, "low_freq_factor": 1, "high_freq_factor": 4})),
        Just(json!({"quant_method": "awq"})),
    ]
}

/// What every reader of a config may rely on.
fn assert_sound(config: &ModelConfig) {
    let common = config.common();
    let sizes = [common.vocab_size, common.hidden_size, common.layers, common.query_heads, common.kv_heads];
    assert!(
        sizes.iter().chain([&common.head_dim, &common.ffn_hidden_size]).all(|&size| size > 0),
        "{config:?}"
    );
    assert_eq!((common.query_heads % common.kv_heads, common.head_dim % 2), (0, 0));
    assert!(
        common.norm_epsilon > 0.0 && common.norm_epsilon.is_finite() && common.max_position_embeddings > 0
    );
    let tokens = common.eos_token_ids.iter().chain(&common.bos_token_id).chain(&common.pad_token_id);
    assert!(tokens.into_iter().all(|&token| (token as usize) < common.vocab_size));
    if let ModelConfig::Falcon(falcon) = config {
        assert_eq!(common.query_heads * common.head_dim, common.hidden_size);
        assert!(
            falcon.block != FalconBlock::ParallelTwoNorms
                || falcon.qkv == checkpoint::config::FusedQkv::Grouped
        );
    }
}

const KEYS: [&str; 30] = [
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_kv_heads",
    "n_head",
    "n_layer",
    "n_head_kv",
    "head_dim",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "max_position_embeddings",
    "tie_word_embeddings",
    "new_decoder_architecture",
    "parallel_attn",
    "multi_query",
    "num_ln_in_parallel_attn",
    "alibi",
    "bias",
    "eos_token_id",
    "ffn_hidden_size",
    "torch_dtype",
    "quantization_config",
];

proptest! {
    #![proptest_config(op_test::cases())]

    #[test]
    fn what_is_written_is_read(pieces in pieces()) {
        // Headers need not be in the order of names.
        let reversed: Vec<_> = pieces.iter().rev().cloned().collect();
        let tensors = open(safetensors(&reversed)).unwrap();
        let names: Vec<_> = pieces.iter().map(|piece| piece.name.as_str()).collect();
        prop_assert_eq!(tensors.names().collect::<Vec<_>>(), names);
        for piece in &pieces {
            let info = tensors.get(&piece.name).unwrap();
            prop_assert_eq!((info.dtype.name(), &info.shape), (piece.dtype, &piece.shape));
            prop_assert_eq!(info.bytes, piece.bytes.len() as u64);
            prop_assert_eq!(&tensors.read(&piece.name).unwrap(), &piece.bytes);
            let middle = piece.bytes.len() / 3;
            let mut part = vec![0; piece.bytes.len() - middle];
            tensors.read_into(&piece.name, middle as u64, &mut part).unwrap();
            prop_assert_eq!(&part, &piece.bytes[middle..]);
        }
    }

    /// However tensors are spread over files, they are the same tensors.
    #[test]
    fn shards_are_one(pieces in pieces(), spread in vec(0usize..4, 12)) {
        let mut folder = Folder::default();
        let mut map = serde_json::Map::new();
        for shard in 0..4 {
            let own: Vec<_> = pieces.iter().zip(&spread).filter(|(_, at)| **at == shard).map(|(piece, _)| piece.clone()).collect();
            let name = format!("model-{shard}.safetensors");
            map.extend(own.iter().map(|piece| (piece.name.clone(), json!(name))));
            folder = folder.with(&name, safetensors(&own));
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
        let tensors = folder.with("model.safetensors.index.json", index.to_string()).tensors().unwrap();
        prop_assert_eq!(tensors.names().count(), pieces.len());
        for piece in &pieces {
            prop_assert_eq!(&tensors.read(&piece.name).unwrap(), &piece.bytes);
        }
    }

    /// Any bytes changed anywhere: an error, or tensors that can all be read.
    #[test]
    fn changed_bytes_never_panic(pieces in pieces(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut file = safetensors(&pieces);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(tensors) = open(file) {
            for name in tensors.names() {
                prop_assert_eq!(tensors.read(name).unwrap().len() as u64, tensors.get(name).unwrap().bytes);
            }
        }
    }

    /// Random bytes are no safetensors, and no header either.
    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), header in "\\PC{0,60}") {
        let _ = open(bytes.clone());
        let _ = open(common::raw(&header, &bytes));
        let _ = Folder::default().with("config.json", bytes).open();
        let _ = Folder::default().with("config.json", header).open();
    }

    /// Settings changed at random: an error on one line, or a model that makes sense.
    #[test]
    fn changed_settings_are_refused_or_sound(
        falcon in any::<bool>(),
        changes in vec((0..KEYS.len(), setting()), 1..5),
    ) {
        let mut config: Value = serde_json::from_str(if falcon { FALCON } else { LLAMA }).unwrap();
        for (key, value) in changes {
            config[KEYS[key]] = value;
        }
        let folder = Folder::default().with("config.json", config.to_string()).with("model.safetensors", safetensors(&[]));
        match folder.open() {
            Ok(checkpoint) => assert_sound(&checkpoint.config),
            Err(error) => common::assert_one_line(&error),
        }
    }

    /// Patterns that say nothing about a layer leave it quantized; those that do make it plain.
    #[test]
    fn ignored_layers_are_plain(layer in "[a-z]{1,4}(\\.[a-z0-9]{1,4}){0,3}", other in "[A-Z]{1,6}") {
        let config = |ignore: &str| {
            let quantization = json!({
                "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": [ignore],
                "config_groups": {"g": {"targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}},
            });
            let mut config: Value = serde_json::from_str(LLAMA).unwrap();
            config["quantization_config"] = quantization;
            Folder::llama().with("config.json", config.to_string()).open().unwrap()
        };
        let plain = |checkpoint: Checkpoint| checkpoint.linear_format(&layer) == checkpoint::LinearFormat::Plain;
        let escaped = layer.replace('.', "\\.");
        let last = &layer[layer.len() - 1..];
        for pattern in [layer.clone(), format!("re:{escaped}"), format!("re:.*{last}$"), "Linear".to_owned()] {
            prop_assert!(plain(config(&pattern)), "{}", pattern);
        }
        // Python's `re.match` looks at the start only.
        for pattern in [other.clone(), format!("re:{other}"), format!("{layer}x"), format!("re:x{escaped}")] {
            prop_assert!(!plain(config(&pattern)), "{}", pattern);
        }
    }
}

#[test]
fn plain_checkpoints_are_plain() {
    assert_eq!(Folder::llama().open().unwrap().quantization, Quantization::NONE);
}
