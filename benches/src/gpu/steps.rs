//! The steps between products: norms, activations, the greedy choice.

use super::Bench;
use super::products::{Activation as Quantized, output, random};
use cudarc::driver::{CudaSlice, CudaStream};
use device::Result;
use device::gpu::{upload, zeros};
use fp8::Quantize;
use half::bf16;
use layers::{Activate, Activation, Norm};
use sampling::Argmax;
use std::sync::Arc;

const GROUP_SIZE: usize = 128;

/// A norm with the quantization behind it, behind 0, 1 or 2 deltas.
pub struct Norming {
    stream: Arc<CudaStream>,
    norm: Norm,
    weight: CudaSlice<f32>,
    deltas: Vec<CudaSlice<bf16>>,
    copies: Vec<(CudaSlice<bf16>, Quantized)>,
}

impl Norming {
    /// `[tokens, features]`, `copies` times.
    pub fn new(
        bench: &Bench,
        norm: Norm,
        [tokens, features]: [usize; 2],
        deltas: usize,
        copies: usize,
    ) -> Result<Self> {
        let stream = bench.gpu().stream();
        let plan = Quantize::per_token(features)?.with_group_sums(GROUP_SIZE)?;
        let len = tokens * features;
        let copy = |_| Ok((random(bench, len, 1)?, output(bench, &plan, tokens)?));
        Ok(Self {
            stream: stream.clone(),
            norm,
            weight: upload(stream, &vec![1.0; features], "weight")?,
            // A delta for each copy and each addition: all come from memory.
            deltas: (0..deltas * copies).map(|_| random(bench, len, 1)).collect::<Result<_>>()?,
            copies: (0..copies).map(copy).collect::<Result<_>>()?,
        })
    }

    /// Bytes: the residual read and, where anything is added, written; deltas read; codes written.
    pub fn bytes([tokens, features]: [usize; 2], deltas: usize) -> usize {
        tokens * features * (2 + if deltas > 0 { 2 + 2 * deltas } else { 0 } + 1)
    }

    /// One launch on copy number `copy`.
    pub fn launch(&mut self, copy: usize) -> Result<()> {
        let added = self.deltas.len() / self.copies.len();
        let deltas: Vec<_> = self.deltas[copy * added..][..added].iter().collect();
        let (residual, output) = &mut self.copies[copy];
        self.norm.launch_quantized(&self.stream, &self.weight, None, &deltas, residual, output)
    }
}

/// An activation with the quantization behind it.
pub struct Activating {
    stream: Arc<CudaStream>,
    plan: Activate,
    copies: Vec<(CudaSlice<bf16>, Quantized)>,
}

impl Activating {
    /// To `[tokens, features]`, `copies` times.
    pub fn new(
        bench: &Bench,
        activation: Activation,
        [tokens, features]: [usize; 2],
        copies: usize,
    ) -> Result<Self> {
        let quantize = Quantize::per_token(features)?.with_group_sums(GROUP_SIZE)?;
        let len = tokens * features * activation.fan_in();
        let copy = |_| Ok((random(bench, len, 1)?, output(bench, &quantize, tokens)?));
        let copies = (0..copies).map(copy).collect::<Result<_>>()?;
        Ok(Self { stream: bench.gpu().stream().clone(), plan: Activate::new(activation, features)?, copies })
    }

    /// Bytes read and written.
    pub fn bytes(activation: Activation, [tokens, features]: [usize; 2]) -> usize {
        tokens * features * (2 * activation.fan_in() + 1)
    }

    /// One launch on copy number `copy`.
    pub fn launch(&mut self, copy: usize) -> Result<()> {
        let (x, output) = &mut self.copies[copy];
        self.plan.launch_quantized(&self.stream, x, None::<&CudaSlice<f32>>, output)
    }
}

/// The greedy choice from bf16 logits.
pub struct Choosing {
    stream: Arc<CudaStream>,
    plan: Argmax,
    copies: Vec<CudaSlice<bf16>>,
    tokens: CudaSlice<u32>,
}

impl Choosing {
    /// From `[rows, vocab_size]`, `copies` times.
    pub fn new(bench: &Bench, [rows, vocab_size]: [usize; 2], copies: usize) -> Result<Self> {
        let stream = bench.gpu().stream();
        let logits = |_| random(bench, rows * vocab_size, 1);
        Ok(Self {
            stream: stream.clone(),
            plan: Argmax::new(vocab_size)?,
            copies: (0..copies).map(logits).collect::<Result<_>>()?,
            tokens: zeros(stream, rows, "tokens")?,
        })
    }

    /// One launch on copy number `copy`.
    pub fn launch(&mut self, copy: usize) -> Result<()> {
        self.plan.launch(&self.stream, &self.copies[copy], &mut self.tokens)
    }
}
