//! Untrusted checkpoints, parsed under limits.
//!
//! ```text
//! folder or memory ([`Files`])
//!   config.json              ─► [`ModelConfig`]        every number checked, unsupported settings refused by name
//!   hf_quant_config.json     ─► [`Quantization`]       which format each linear layer is stored in
//!   generation_config.json   ─► [`GenerationConfig`]   the sampling settings a request falls back to
//!   *.safetensors (+ index)  ─► [`Tensors`]            headers checked without reading data; typed, checked reads
//!   tokenizer.json           ─► [`Tokenizer`]
//!   chat template            ─► [`ChatTemplate`]
//! ```
//!
//! [`Checkpoint::linear`] puts them together: a linear layer's tensors as they are stored, shapes and dtypes and
//! scales checked. Turning them into a kernel's layout is the business of the op crates.
//!
//! ```
//! use checkpoint::{Checkpoint, Files, LinearWeight};
//!
//! // A model of one tensor, embedded in the binary.
//! static CONFIG: &[u8] = br#"{"model_type": "llama", "vocab_size": 32, "hidden_size": 2, "intermediate_size": 4,
//!     "num_hidden_layers": 1, "num_attention_heads": 1}"#;
//! static WEIGHTS: &[u8] = b"\x3f\0\0\0\0\0\0\0\
//!     {\"l.weight\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]}}\
//!     \0\0\x80\x3f\0\0\0\x40";
//! let checkpoint = Checkpoint::from_files(Files::memory([("config.json", CONFIG), ("model.safetensors", WEIGHTS)]))?;
//! assert_eq!(checkpoint.config.common().head_dim, 2);
//! assert_eq!(checkpoint.linear("l", 2, 1)?.weight, LinearWeight::Plain { weight: vec![1.0, 2.0] });
//!
//! let error = checkpoint.linear("l", 2, 2).unwrap_err();
//! assert_eq!(error.to_string(), "tensor \"l.weight\": expected shape [2, 2], got [1, 2]");
//! # Ok::<(), checkpoint::Error>(())
//! ```
#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod checkpoint;
pub mod config;
mod error;
mod files;
mod generation;
mod json;
pub mod limits;
mod linear;
pub mod quantization;
mod tensors;
mod text;

pub use checkpoint::{Checkpoint, KvScales, settings};
pub use config::{
    FalconBlock, FalconConfig, FalconPositions, FusedQkv, LlamaConfig, ModelConfig, Rope, RopeScaling,
    TorchDtype,
};
pub use error::{ConfigError, Error, FileError, JsonError, Result, TensorError, TextError};
pub use files::Files;
pub use generation::GenerationConfig;
pub use linear::{Fp8Scale, LinearTensors, LinearWeight};
pub use quantization::{LinearFormat, Quantization};
pub use tensors::{Dtype, TensorInfo, Tensors};
pub use text::{ChatMessage, ChatTemplate, StreamDecoder, Tokenizer};
