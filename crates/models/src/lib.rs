//! Falcon and Llama, assembled once, generic over the backend.
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

mod backend;
mod batch;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod falcon;
mod head;
mod llama;
mod load;
mod memory;
mod model;
mod step;
mod synthetic;
mod timed;
mod weights;

pub use backend::{Backend, CacheSpec, KvDtype, NormWeights, Positions};
pub use batch::{Batch, Ragged};
pub use cpu::{Cpu, Int4Activations};
#[cfg(feature = "cuda")]
pub use cuda::Cuda;
pub use error::{Error, Result};
pub use falcon::Falcon;
pub use llama::Llama;
pub use load::{EmbeddingSource, LinearLayer, LinearSource, Loader, Progress};
pub use memory::{MemoryPlan, Part};
pub use model::Model;
pub use step::{Sample, Step, StepSequence};
pub use synthetic::{SyntheticFormat, SyntheticLinear};
pub use timed::{Clock, Op, Timed, Trace};
pub use weights::{LinearWeights, Matrix};

/// `config.json` of Falcon-180B, quantized by AutoAWQ in groups of 128.
pub const FALCON_180B: &str = include_str!("../presets/falcon-180b.json");

/// `config.json` of Llama-2-70B, quantized to FP8 with a scale per row and per token.
pub const LLAMA_2_70B: &str = include_str!("../presets/llama-2-70b.json");
