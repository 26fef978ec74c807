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
#![forbid(unsafe_code)]

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
