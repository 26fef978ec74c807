//! Checkpoints made up for tests, written by hand: nothing here is the crate's own code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(dead_code, reason = "every test binary uses its part of this")]

use checkpoint::{Checkpoint, ConfigError, Error, Files, Result, Tensors};
use std::collections::BTreeMap;

/// The message is one line, so that a command can print it as it is.
pub fn assert_one_line(error: &Error) {
    let text = error.to_string();
    assert!(!text.contains('\n') && !text.is_empty(), "{text:?}");
}

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Piece {
    pub fn new(name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
    }

    pub fn f32s(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self::new(name, "F32", shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn i32s(name: &str, shape: &[usize], values: &[i32]) -> Self {
        Self::new(name, "I32", shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Zeros; `element` is the bytes of an element.
    pub fn zeros(name: &str, dtype: &'static str, element: usize, shape: &[usize]) -> Self {
        Self::new(name, dtype, shape, vec![0; element * shape.iter().product::<usize>()])
    }

    /// f32 ones.
    pub fn ones(name: &str, shape: &[usize]) -> Self {
        Self::f32s(name, shape, &vec![1.0; shape.iter().product()])
    }
}

/// A safetensors file from its header and data.
pub fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// The header of `pieces`, laid out in order.
pub fn header(pieces: &[Piece]) -> String {
    let mut entries = vec![r#""__metadata__":{"format":"pt"}"#.to_owned()];
    let mut begin = 0;
    for piece in pieces {
        let end = begin + piece.bytes.len();
        let (name, dtype, shape) = (serde_json::to_string(&piece.name).unwrap(), piece.dtype, &piece.shape);
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        entries.push(format!(
            r#"{name}:{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{begin},{end}]}}"#
        ));
        begin = end;
    }
    format!("{{{}}}", entries.join(","))
}

/// A safetensors file of `pieces`.
pub fn safetensors(pieces: &[Piece]) -> Vec<u8> {
    raw(&header(pieces), &pieces.iter().flat_map(|piece| piece.bytes.clone()).collect::<Vec<_>>())
}

/// The files of a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Folder(pub BTreeMap<String, Vec<u8>>);

impl Folder {
    /// A Llama of one layer and 16 features, plain.
    pub fn llama() -> Self {
        Self::default().with("config.json", LLAMA).with("model.safetensors", safetensors(&llama_pieces()))
    }

    pub fn with(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.0.insert(name.to_owned(), bytes.into());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }

    /// With `from` in a file replaced by `to`; `from` must be there.
    pub fn edit(self, name: &str, from: &str, to: &str) -> Self {
        let text = String::from_utf8(self.0[name].clone()).unwrap();
        assert!(text.contains(from), "{name}: no {from}");
        self.with(name, text.replacen(from, to, 1))
    }

    /// In memory, for good: tests are short-lived.
    pub fn files(&self) -> Files {
        Files::memory(self.0.iter().map(|(name, bytes)| (name.as_str(), leak(bytes.clone()))))
    }

    pub fn open(&self) -> Result<Checkpoint> {
        Checkpoint::from_files(self.files())
    }

    pub fn tensors(&self) -> Result<Tensors> {
        Tensors::open(&self.files())
    }

    pub fn write(&self, folder: &std::path::Path) {
        for (name, bytes) in &self.0 {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
}

pub fn leak(bytes: Vec<u8>) -> &'static [u8] {
    Box::leak(bytes.into_boxed_slice())
}

pub const LLAMA: &str = r#"{
 "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
 "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
 "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "hidden_act": "silu",
 "tie_word_embeddings": true, "torch_dtype": "float32"
}"#;

pub const FALCON: &str = r#"{
 "model_type": "falcon", "architectures": ["FalconForCausalLM"], "vocab_size": 32, "hidden_size": 16,
 "num_hidden_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": true,
 "parallel_attn": true, "multi_query": true, "alibi": false, "bias": false, "layer_norm_epsilon": 1e-5
}"#;

/// Every tensor of the tiny Llama, of values that tell them apart.
pub fn llama_pieces() -> Vec<Piece> {
    let layer = |part: &str| format!("model.layers.0.{part}.weight");
    let shapes = [
        ("model.embed_tokens.weight".to_owned(), vec![32, 16]),
        (layer("input_layernorm"), vec![16]),
        (layer("self_attn.q_proj"), vec![16, 16]),
        (layer("self_attn.k_proj"), vec![8, 16]),
        (layer("self_attn.v_proj"), vec![8, 16]),
        (layer("self_attn.o_proj"), vec![16, 16]),
        (layer("post_attention_layernorm"), vec![16]),
        (layer("mlp.gate_proj"), vec![32, 16]),
        (layer("mlp.up_proj"), vec![32, 16]),
        (layer("mlp.down_proj"), vec![16, 32]),
        ("model.norm.weight".to_owned(), vec![16]),
    ];
    let piece = |(index, (name, shape)): (usize, &(String, Vec<usize>))| {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| (index * 1000 + i) as f32 / 4096.0 - 1.0).collect();
        Piece::f32s(name, shape, &values)
    };
    shapes.iter().enumerate().map(piece).collect()
}

/// A setting that is needed is not in config.json.
pub fn missing(key: &str) -> Error {
    ConfigError::Missing { file: "config.json".to_owned(), key: key.to_owned() }.into()
}

pub fn wrong_type(key: &str, expected: &'static str, got: &str) -> Error {
    ConfigError::Type { file: "config.json".to_owned(), key: key.to_owned(), expected, got: got.to_owned() }
        .into()
}

pub fn range(key: &str, expected: &str, got: &str) -> Error {
    let (expected, got) = (expected.to_owned(), got.to_owned());
    ConfigError::Range { file: "config.json".to_owned(), key: key.to_owned(), expected, got }.into()
}

pub fn conflict(key: &str, value: &str, other: &str, other_value: &str) -> Error {
    let own = str::to_owned;
    let (key, value, other, other_value) = (own(key), own(value), own(other), own(other_value));
    ConfigError::Conflict { file: "config.json".to_owned(), key, value, other, other_value }.into()
}

pub fn unsupported(key: &str, value: &str, supported: &'static str) -> Error {
    let (key, value) = (key.to_owned(), value.to_owned());
    ConfigError::Unsupported { file: "config.json".to_owned(), key, value, supported }.into()
}

/// A checkpoint without tensors.
pub fn folder(config: &str) -> Folder {
    Folder::default().with("config.json", config).with("model.safetensors", safetensors(&[]))
}

/// Every case is `base` with a piece of its text replaced.
pub fn assert_refused(base: &str, cases: &[(&str, &str, Error)]) {
    folder(base).open().unwrap();
    for (from, to, expected) in cases {
        let error = folder(base).edit("config.json", from, to).open().expect_err(to);
        assert_eq!(&error, expected, "{from} -> {to}");
        assert_one_line(&error);
    }
}
