//! A backend around another that tells how long each op of a step took.

use crate::backend::{Backend, CacheSpec, NormWeights};
use crate::cpu::Cpu;
use crate::load::{EmbeddingSource, LinearSource};
use crate::step::Step;
use crate::synthetic::SyntheticLinear;
use crate::weights::LinearWeights;
use device::Result;
use kv_cache::CopyPage;
use layers::Activation;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A backend that can tell the time of its own work.
pub trait Clock: Backend {
    /// A point in that work.
    type Mark;
    /// The point where all work given so far ends.
    fn mark(&self) -> Result<Self::Mark>;
    /// From one point to a later one, after waiting for both.
    fn elapsed(start: &Self::Mark, end: &Self::Mark) -> Result<Duration>;
}

impl Clock for Cpu {
    type Mark = Instant;

    fn mark(&self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn elapsed(start: &Instant, end: &Instant) -> Result<Duration> {
        Ok(end.duration_since(*start))
    }
}

#[cfg(feature = "cuda")]
impl Clock for crate::Cuda {
    type Mark = device::gpu::Event;

    fn mark(&self) -> Result<Self::Mark> {
        let event = device::gpu::Event::new(self.gpu().context())?;
        event.record(self.gpu().stream())?;
        Ok(event)
    }

    fn elapsed(start: &Self::Mark, end: &Self::Mark) -> Result<Duration> {
        end.synchronize()?;
        start.elapsed(end)
    }
}

/// What a step is made of, in the order of its first occurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// The step's token ids, lengths and block tables made ready.
    Begin,
    /// The embedding.
    Embed,
    /// The norm before attention, quantized for `qkv`.
    AttentionNorm,
    /// The fused product of queries, keys and values.
    Qkv,
    /// Rotation of queries and keys, append to the pages.
    RopeAppend,
    /// Attention, quantized for the product behind it.
    Attend,
    /// The product behind attention.
    Output,
    /// The norm before the MLP, quantized for `up`.
    MlpNorm,
    /// The MLP's first product, gate and up where it is gated.
    Up,
    /// The activation function, quantized for `down`.
    Activate,
    /// The MLP's second product.
    Down,
    /// The rows that tokens are chosen from.
    SampledRows,
    /// The last norm.
    HeadNorm,
    /// The product with the vocabulary.
    Head,
    /// The choice of the tokens, and their way to the host.
    Sample,
    /// Logits copied to the host.
    ToHost,
}

/// The method of [`Backend`] that was called: what it was called for shows in its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Begin,
    Embed,
    AddNorm,
    Linear,
    RopeAppend,
    Attend,
    Activate,
    SampledRows,
    Logits,
    Sample,
    ToHost,
}

/// What each call was for.
///
/// ```text
/// add_norm linear rope_append attend linear | add_norm linear activate linear | ... sampled_rows add_norm logits
///          qkv                       output            up              down
/// ```
fn ops(methods: &[Method]) -> Vec<Op> {
    let at = |index: usize| methods.get(index).copied();
    let linear = |index: usize| match (index.checked_sub(1).and_then(at), at(index + 1)) {
        (Some(Method::Attend), _) => Op::Output,
        (Some(Method::Activate), _) => Op::Down,
        (_, Some(Method::RopeAppend)) => Op::Qkv,
        _ => Op::Up,
    };
    let norm = |index: usize| match at(index + 1) {
        Some(Method::Linear) if linear(index + 1) == Op::Qkv => Op::AttentionNorm,
        Some(Method::Linear) => Op::MlpNorm,
        _ => Op::HeadNorm,
    };
    let op = |(index, method): (usize, &Method)| match method {
        Method::Begin => Op::Begin,
        Method::Embed => Op::Embed,
        Method::AddNorm => norm(index),
        Method::Linear => linear(index),
        Method::RopeAppend => Op::RopeAppend,
        Method::Attend => Op::Attend,
        Method::Activate => Op::Activate,
        Method::SampledRows => Op::SampledRows,
        Method::Logits => Op::Head,
        Method::Sample => Op::Sample,
        Method::ToHost => Op::ToHost,
    };
    methods.iter().enumerate().map(op).collect()
}

struct Recording<M> {
    on: bool,
    calls: Vec<(Method, M, M)>,
}

/// What a [`Timed`] backend has recorded.
pub struct Trace<B: Clock>(Rc<RefCell<Recording<B::Mark>>>);

impl<B: Clock> Trace<B> {
    /// Records from here on. Steps are then run op by op, not repeated from what the backend has captured.
    pub fn start(&self) {
        let mut recording = self.0.borrow_mut();
        recording.calls.clear();
        recording.on = true;
    }

    /// Ends the recording; every op since [`Self::start`] with its time, in the order of the calls.
    pub fn stop(&self) -> Result<Vec<(Op, Duration)>> {
        let mut recording = self.0.borrow_mut();
        recording.on = false;
        let calls = std::mem::take(&mut recording.calls);
        let methods: Vec<Method> = calls.iter().map(|call| call.0).collect();
        let times = calls.iter().map(|(_, start, end)| B::elapsed(start, end));
        ops(&methods).into_iter().zip(times).map(|(op, time)| Ok((op, time?))).collect()
    }
}

/// A backend around another that tells how long each op took, while its [`Trace`] records.
pub struct Timed<B: Clock> {
    inner: B,
    trace: Trace<B>,
}

impl<B: Clock> Timed<B> {
    /// Around `inner`.
    pub fn new(inner: B) -> Self {
        let recording = Recording { on: false, calls: Vec::new() };
        Self { inner, trace: Trace(Rc::new(RefCell::new(recording))) }
    }

    /// The record, which stays in the caller's hands when a model takes over the backend.
    pub fn trace(&self) -> Trace<B> {
        Trace(self.trace.0.clone())
    }

    fn records(&self) -> bool {
        self.trace.0.borrow().on
    }

    fn time<T>(&self, method: Method, op: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.records() {
            return op();
        }
        let start = self.inner.mark()?;
        let value = op()?;
        let end = self.inner.mark()?;
        self.trace.0.borrow_mut().calls.push((method, start, end));
        Ok(value)
    }
}

impl<B: Clock> Backend for Timed<B> {
    type Tensor = B::Tensor;
    type Input = B::Input;
    type Logits = B::Logits;
    type Linear = B::Linear;
    type Norm = B::Norm;
    type Embedding = B::Embedding;
    type Cache = B::Cache;
    type Batch = B::Batch;

    fn load_linear(&self, weights: LinearWeights) -> Result<B::Linear> {
        self.inner.load_linear(weights)
    }

    fn load_norm(&self, weights: NormWeights) -> Result<B::Norm> {
        self.inner.load_norm(weights)
    }

    fn load_embedding(&self, rows: Vec<f32>, features: usize) -> Result<B::Embedding> {
        self.inner.load_embedding(rows, features)
    }

    fn read_linear(&self, source: &LinearSource<'_>) -> crate::Result<B::Linear> {
        self.inner.read_linear(source)
    }

    fn read_embedding(&self, source: &EmbeddingSource<'_>) -> crate::Result<B::Embedding> {
        self.inner.read_embedding(source)
    }

    fn synthetic_linear(&self, synthetic: &SyntheticLinear) -> Result<B::Linear> {
        self.inner.synthetic_linear(synthetic)
    }

    fn synthetic_embedding(&self, rows: usize, features: usize, seed: u64) -> Result<B::Embedding> {
        self.inner.synthetic_embedding(rows, features, seed)
    }

    fn tied_head(&self, embedding: &B::Embedding) -> Result<B::Linear> {
        self.inner.tied_head(embedding)
    }

    fn new_cache(&self, spec: &CacheSpec) -> Result<B::Cache> {
        self.inner.new_cache(spec)
    }

    fn add_host_pages(&self, cache: &mut B::Cache, pages: usize) -> Result<()> {
        self.inner.add_host_pages(cache, pages)
    }

    fn copy_pages(&self, cache: &mut B::Cache, copies: &[CopyPage]) -> Result<()> {
        self.inner.copy_pages(cache, copies)
    }

    fn begin(&self, step: &Step<'_>, cache: &B::Cache) -> Result<B::Batch> {
        self.time(Method::Begin, || self.inner.begin(step, cache))
    }

    fn run(&self, batch: &B::Batch, mut forward: impl FnMut() -> Result<B::Logits>) -> Result<B::Logits> {
        if self.records() { forward() } else { self.inner.run(batch, forward) }
    }

    fn embed(&self, table: &B::Embedding, batch: &B::Batch) -> Result<B::Tensor> {
        self.time(Method::Embed, || self.inner.embed(table, batch))
    }

    fn add_norm(
        &self,
        residual: &mut B::Tensor,
        deltas: &[B::Tensor],
        norm: &B::Norm,
        into: &B::Linear,
    ) -> Result<B::Input> {
        self.time(Method::AddNorm, || self.inner.add_norm(residual, deltas, norm, into))
    }

    fn linear(&self, input: &B::Input, linear: &B::Linear) -> Result<B::Tensor> {
        self.time(Method::Linear, || self.inner.linear(input, linear))
    }

    fn rope_append(
        &self,
        qkv: &B::Tensor,
        cache: &mut B::Cache,
        layer: usize,
        batch: &B::Batch,
    ) -> Result<B::Tensor> {
        self.time(Method::RopeAppend, || self.inner.rope_append(qkv, cache, layer, batch))
    }

    fn attend(
        &self,
        queries: &B::Tensor,
        cache: &B::Cache,
        layer: usize,
        batch: &B::Batch,
        into: &B::Linear,
    ) -> Result<B::Input> {
        self.time(Method::Attend, || self.inner.attend(queries, cache, layer, batch, into))
    }

    fn activate(&self, x: &B::Tensor, activation: Activation, into: &B::Linear) -> Result<B::Input> {
        self.time(Method::Activate, || self.inner.activate(x, activation, into))
    }

    fn sampled_rows(&self, x: &B::Tensor, batch: &B::Batch) -> Result<B::Tensor> {
        self.time(Method::SampledRows, || self.inner.sampled_rows(x, batch))
    }

    fn logits(&self, input: &B::Input, head: &B::Linear) -> Result<B::Logits> {
        self.time(Method::Logits, || self.inner.logits(input, head))
    }

    fn sample(&self, logits: &B::Logits, step: &Step<'_>) -> Result<Vec<sampling::Sampled>> {
        self.time(Method::Sample, || self.inner.sample(logits, step))
    }

    fn to_host(&self, logits: &B::Logits) -> Result<Vec<f32>> {
        self.time(Method::ToHost, || self.inner.to_host(logits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_tell_what_a_call_was_for() {
        use Method::*;
        let layer = [AddNorm, Linear, RopeAppend, Attend, Linear, AddNorm, Linear, Activate, Linear];
        let head = [SampledRows, SampledRows, AddNorm, Logits, Sample];
        let methods = [&[Begin, Embed][..], &layer, &layer, &head].concat();
        let of_layer = [
            Op::AttentionNorm,
            Op::Qkv,
            Op::RopeAppend,
            Op::Attend,
            Op::Output,
            Op::MlpNorm,
            Op::Up,
            Op::Activate,
            Op::Down,
        ];
        let of_head = [Op::SampledRows, Op::SampledRows, Op::HeadNorm, Op::Head, Op::Sample];
        assert_eq!(ops(&methods), [&[Op::Begin, Op::Embed][..], &of_layer, &of_layer, &of_head].concat());
    }
}
