//! The steps between products: norms, activations, the choice of tokens.

use super::Bench;
use super::products::{Activation as Quantized, output, random};
use cudarc::driver::{CudaSlice, CudaStream};
use device::gpu::{upload, zeros};
use device::{NEAR_NORMAL_DEVIATION, Result, near_normal, random_bits};
use fp8::Quantize;
use half::bf16;
use layers::{Activate, Activation, Norm};
use sampling::{Argmax, BatchSampler, BatchWorkspace, Params, RowParams, Rows};
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

/// The choice of tokens by all options of a request, from f32 logits.
pub struct Sampling {
    stream: Arc<CudaStream>,
    plan: BatchSampler,
    copies: Vec<CudaSlice<f32>>,
    rows: Rows<CudaSlice<RowParams>, CudaSlice<u32>, CudaSlice<f32>>,
    workspace: BatchWorkspace,
    tokens: CudaSlice<u32>,
    logprobs: CudaSlice<f32>,
}

impl Sampling {
    /// From `[rows, vocab_size]`, `copies` times, all rows by `params` behind `history` tokens of prompt and text.
    pub fn new(
        bench: &Bench,
        [rows, vocab_size]: [usize; 2],
        params: &Params,
        history: usize,
        copies: usize,
    ) -> Result<Self> {
        let stream = bench.gpu().stream();
        // Logits that deviate by 4: a model's are that far apart. Rows begin at different places of the numbers.
        let number = |index| near_normal(random_bits(5, index) as u32) as f32 * (4.0 / NEAR_NORMAL_DEVIATION);
        let distinct: Vec<f32> = (0..1 << 20).map(number).collect();
        let host: Vec<f32> = distinct.iter().copied().cycle().take(rows * vocab_size).collect();
        let draws = (0..rows as u64).map(|row| RowParams::new(params, row)).collect::<Result<Vec<_>>>()?;
        let seen: Vec<u32> = (0..rows * history).map(|index| (index * 37 % vocab_size) as u32).collect();
        let offsets: Vec<u32> = (0..=rows).map(|row| (row * history) as u32).collect();
        Ok(Self {
            stream: stream.clone(),
            plan: BatchSampler::new(vocab_size)?,
            copies: (0..copies).map(|_| upload(stream, &host, "logits")).collect::<Result<_>>()?,
            rows: Rows {
                params: upload(stream, &draws, "options")?,
                history: upload(stream, &seen, "history")?,
                history_offsets: upload(stream, &offsets, "offsets")?,
                prompt_lens: upload(stream, &vec![history as u32 / 2; rows], "lengths of prompts")?,
                bias_tokens: zeros(stream, 0, "bias")?,
                bias_values: zeros(stream, 0, "bias")?,
                bias_offsets: zeros(stream, rows + 1, "bias")?,
            },
            workspace: BatchWorkspace::new(stream, seen.len())?,
            tokens: zeros(stream, rows, "tokens")?,
            logprobs: zeros(stream, rows, "log-probabilities")?,
        })
    }

    /// One launch on copy number `copy`.
    pub fn launch(&mut self, copy: usize) -> Result<()> {
        let (logits, workspace) = (&mut self.copies[copy], &mut self.workspace);
        self.plan.launch(&self.stream, logits, &self.rows, workspace, &mut self.tokens, &mut self.logprobs)
    }
}
