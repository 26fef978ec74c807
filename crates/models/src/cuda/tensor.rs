//! What lies on the device between ops.

use cudarc::driver::DeviceSlice;
use device::gpu::{Pool, Pooled, download};
use device::{ActivationShape, Check, E4m3, QuantizedActivation, Result};
use half::bf16;
use std::sync::Mutex;

/// bf16 `[tokens, features]`.
#[derive(Debug)]
pub struct Tensor {
    pub(super) values: Pooled<bf16>,
    pub(super) tokens: usize,
    pub(super) features: usize,
}

/// An activation in the form that a linear layer reads.
#[derive(Debug)]
pub enum Input {
    /// bf16 `[tokens, in_features]`.
    Plain(Tensor),
    /// e4m3 with its scales and, for INT4 weights, group sums.
    Quantized(Quantized),
}

/// e4m3 with its scales and group sums, in pooled buffers.
pub type Quantized = QuantizedActivation<Pooled<E4m3>, Pooled<f32>>;

/// f32 `[rows, vocab_size]` with the token of each row's largest; rows of a captured step's padding last.
#[derive(Debug)]
pub struct Logits {
    /// Penalties change them for a moment.
    pub(super) values: Mutex<Pooled<f32>>,
    pub(super) tokens: Pooled<u32>,
    pub(super) vocab_size: usize,
}

impl Tensor {
    pub(super) fn new(pool: &Pool, tokens: usize, features: usize) -> Result<Self> {
        let len = Check("activation").product("features", &[tokens, features])?;
        Ok(Self { values: pool.take(len, "activations")?, tokens, features })
    }

    /// Copies it to the host, f32 `[tokens, features]`.
    pub fn to_host(&self) -> Result<Vec<f32>> {
        let values: Vec<bf16> = download(self.values.stream(), &self.values)?;
        Ok(values.into_iter().map(bf16::to_f32).collect())
    }
}

pub(super) fn quantized(pool: &Pool, shape: ActivationShape) -> Result<Quantized> {
    let len = Check("activation").product("features", &[shape.tokens, shape.features])?;
    Ok(Quantized {
        shape,
        codes: pool.take(len, "quantized activations")?,
        scales: pool.take(shape.tokens, "scales of activations")?,
        group_sums: pool.take(shape.tokens * shape.groups(), "group sums of activations")?,
    })
}
