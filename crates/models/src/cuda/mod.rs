//! The CUDA backend: every op's kernel on one stream, activations in bf16 between them.

mod batch;
mod cache;
mod graphs;
mod linear;
mod load;
mod rows;
mod sample;
mod stage;
mod tensor;

pub use batch::Batch;
pub use cache::Cache;
pub use linear::Linear;
pub use tensor::{Input, Logits, Tensor};

use crate::backend::{Backend, CacheSpec, NormWeights};
use crate::cpu::Int4Activations;
use crate::load::{EmbeddingSource, LinearSource};
use crate::step::{Sample, Step};
use crate::synthetic::SyntheticLinear;
use crate::weights::LinearWeights;
use awq_gemm::{W4A8Workspace, W4A16Workspace};
use batch::{Indices, lay_out};
use cudarc::driver::{CudaSlice, CudaStream, DeviceSlice};
use device::gpu::{Gpu, Pinned, Pool, download, upload};
use device::{Check, Result};
use graphs::Graphs;
use half::bf16;
use kv_cache::CopyPage;
use layers::Activation;
use linear::{Form, to_bf16};
use sampling::Sampled;
use stage::Stage;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tensor::quantized;

/// The CUDA backend. One serves one model.
pub struct Cuda {
    gpu: Gpu,
    pool: Pool,
    int4_activations: Int4Activations,
    w4a8: Mutex<Option<W4A8Workspace>>,
    w4a16: Mutex<Option<W4A16Workspace>>,
    indices: Mutex<Indices>,
    graphs: Mutex<Graphs>,
    /// Where sampled tokens land, and their log-probabilities behind them.
    sampled: Mutex<Pinned<u32>>,
    /// What options of sampling are copied through.
    staging: Mutex<Option<sample::Staging>>,
    /// What weights are streamed through while a model is loaded.
    stage: Mutex<Option<Stage>>,
}

/// A norm with its weights.
pub struct Norm {
    norm: layers::Norm,
    weight: CudaSlice<f32>,
    bias: Option<CudaSlice<f32>>,
}

/// An embedding table, shared with a tied head.
pub struct Embedding {
    plan: layers::Embedding,
    rows: Arc<CudaSlice<bf16>>,
    features: usize,
}

/// Indices of a step that there is room for at first.
const FIRST_INDICES: usize = 1 << 16;

impl Cuda {
    /// On an opened GPU, whose stream takes all work.
    pub fn new(gpu: Gpu) -> Result<Self> {
        let pool = Pool::new(gpu.stream());
        Ok(Self {
            int4_activations: Int4Activations::default(),
            w4a8: Mutex::default(),
            w4a16: Mutex::default(),
            indices: Mutex::new(Indices::new(&pool, FIRST_INDICES)?),
            graphs: Mutex::default(),
            sampled: Mutex::new(Pinned::zeros(gpu.context(), FIRST_INDICES)?),
            staging: Mutex::default(),
            stage: Mutex::default(),
            gpu,
            pool,
        })
    }

    /// The same, with activations meeting INT4 weights in this way.
    pub fn with_int4_activations(self, int4_activations: Int4Activations) -> Self {
        Self { int4_activations, ..self }
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.gpu.stream()
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Where `words` words of what was sampled can land.
    fn landing(&self, words: usize) -> Result<MutexGuard<'_, Pinned<u32>>> {
        let mut sampled = lock(&self.sampled);
        if words > sampled.len() {
            *sampled = Pinned::zeros(self.gpu.context(), words.next_power_of_two())?;
        }
        Ok(sampled)
    }
}

impl Embedding {
    /// Of a table `[rows, features]` that is on the device already.
    fn on_device(table: CudaSlice<bf16>, rows: usize, features: usize) -> Result<Self> {
        Ok(Self { plan: layers::Embedding::new(rows, features)?, rows: Arc::new(table), features })
    }

    /// Copies the table to the host, bf16 `[vocab_size, features]`.
    pub fn to_host(&self) -> Result<Vec<bf16>> {
        download(self.rows.stream(), self.rows.as_ref())
    }
}

impl Backend for Cuda {
    type Tensor = Tensor;
    type Input = Input;
    type Logits = Arc<Logits>;
    type Linear = Linear;
    type Norm = Norm;
    type Embedding = Embedding;
    type Cache = Cache;
    type Batch = Batch;

    fn load_linear(&self, weights: LinearWeights) -> Result<Linear> {
        Linear::new(self, weights)
    }

    fn load_norm(&self, weights: NormWeights) -> Result<Norm> {
        let NormWeights { kind, weight, bias, epsilon } = weights;
        let norm = layers::Norm::new(kind, weight.len(), epsilon)?;
        let weight = upload(self.stream(), &weight, "a norm's weight")?;
        let bias = bias.map(|bias| upload(self.stream(), &bias, "a norm's bias")).transpose()?;
        Ok(Norm { norm, weight, bias })
    }

    fn load_embedding(&self, rows: Vec<f32>, features: usize) -> Result<Embedding> {
        Check("embedding").multiple("rows", rows.len(), features)?;
        let table = upload(self.stream(), &to_bf16(&rows), "the embedding")?;
        Embedding::on_device(table, rows.len() / features, features)
    }

    fn read_linear(&self, source: &LinearSource<'_>) -> crate::Result<Linear> {
        Linear::read(self, source)
    }

    fn read_embedding(&self, source: &EmbeddingSource<'_>) -> crate::Result<Embedding> {
        Embedding::read(self, source)
    }

    fn synthetic_linear(&self, synthetic: &SyntheticLinear) -> Result<Linear> {
        Linear::synthetic(self, synthetic)
    }

    fn synthetic_embedding(&self, rows: usize, features: usize, seed: u64) -> Result<Embedding> {
        Embedding::synthetic(self, rows, features, seed)
    }

    fn tied_head(&self, embedding: &Embedding) -> Result<Linear> {
        Linear::shared(embedding.rows.clone(), embedding.features)
    }

    fn new_cache(&self, spec: &CacheSpec) -> Result<Cache> {
        // A model makes its cache when all weights are there.
        lock(&self.stage).take();
        Cache::new(self, spec)
    }

    fn add_host_pages(&self, cache: &mut Cache, pages: usize) -> Result<()> {
        cache.add_host_pages(self, pages)
    }

    fn copy_pages(&self, cache: &mut Cache, copies: &[CopyPage]) -> Result<()> {
        cache.copy_pages(self, copies)
    }

    fn begin(&self, step: &Step<'_>, cache: &Cache) -> Result<Batch> {
        let (batch, flat) = lay_out(step, cache.pages, &cache.positions, cache.id)?;
        let mut indices = lock(&self.indices);
        if flat.len() > indices.capacity() {
            *indices = Indices::new(&self.pool, flat.len().next_power_of_two())?;
            // Graphs read the old place.
            lock(&self.graphs).clear();
        }
        indices.write(self.stream(), &flat)?;
        Ok(batch)
    }

    fn run(&self, batch: &Batch, mut forward: impl FnMut() -> Result<Arc<Logits>>) -> Result<Arc<Logits>> {
        match batch.key {
            Some(key) => lock(&self.graphs).run(key, &self.pool, forward),
            None => forward(),
        }
    }

    fn embed(&self, table: &Embedding, batch: &Batch) -> Result<Tensor> {
        let mut output = Tensor::new(&self.pool, batch.tokens.len(), table.features)?;
        let indices = lock(&self.indices);
        let tokens = indices.view(&batch.tokens)?;
        table.plan.launch(self.stream(), table.rows.as_ref(), &tokens, &mut output.values)?;
        Ok(output)
    }

    fn add_norm(
        &self,
        residual: &mut Tensor,
        deltas: &[Tensor],
        norm: &Norm,
        into: &Linear,
    ) -> Result<Input> {
        let (stream, Norm { norm, weight, bias }) = (self.stream(), norm);
        let deltas: Vec<_> = deltas.iter().map(|delta| &delta.values).collect();
        let (bias, x) = (bias.as_ref(), &mut residual.values);
        if let (Form::PerToken(quantize), None) = (into.form, &into.input_multiplier) {
            let mut output = quantized(&self.pool, quantize.shape(residual.tokens))?;
            norm.launch_quantized(stream, weight, bias, &deltas, x, &mut output)?;
            return Ok(Input::Quantized(output));
        }
        let mut output = Tensor::new(&self.pool, residual.tokens, residual.features)?;
        norm.launch(stream, weight, bias, &deltas, x, &mut output.values)?;
        into.input(self, output)
    }

    fn linear(&self, input: &Input, linear: &Linear) -> Result<Tensor> {
        linear.apply(self, input)
    }

    fn rope_append(&self, qkv: &Tensor, cache: &mut Cache, layer: usize, batch: &Batch) -> Result<Tensor> {
        cache.append(self, qkv, layer, batch, &lock(&self.indices))
    }

    fn attend(
        &self,
        queries: &Tensor,
        cache: &Cache,
        layer: usize,
        batch: &Batch,
        into: &Linear,
    ) -> Result<Input> {
        let output = cache.attend(self, queries, layer, batch, &lock(&self.indices))?;
        into.input(self, output)
    }

    fn activate(&self, x: &Tensor, activation: Activation, into: &Linear) -> Result<Input> {
        into.activate(self, x, activation)
    }

    fn sampled_rows(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let mut output = Tensor::new(&self.pool, batch.sampled.len(), x.features)?;
        let indices = lock(&self.indices);
        // The rows that tokens name in a table, where the table is the activation.
        if !batch.sampled.is_empty() {
            let rows = layers::Embedding::new(x.tokens, x.features)?;
            rows.launch(self.stream(), &x.values, &indices.view(&batch.sampled)?, &mut output.values)?;
        }
        Ok(output)
    }

    fn logits(&self, input: &Input, head: &Linear) -> Result<Arc<Logits>> {
        Ok(Arc::new(head.logits(self, input)?))
    }

    fn sample(&self, logits: &Arc<Logits>, step: &Step<'_>) -> Result<Vec<Sampled>> {
        let samples: Vec<Sample> = step.sequences.iter().filter_map(|sequence| sequence.sample).collect();
        if !samples.iter().all(|sample| sample.params.is_argmax()) {
            if samples.iter().all(sample::on_device) {
                return sample::sample(self, logits, &samples);
            }
            let values = self.to_host(logits)?;
            let rows = values.chunks_exact(logits.vocab_size);
            return samples.iter().zip(rows).map(|(sample, row)| sample.choose(row)).collect();
        }
        let mut tokens = self.landing(logits.tokens.len())?;
        tokens.download(self.stream(), &logits.tokens)?;
        let tokens = &tokens.as_slice()?[..samples.len()];
        tokens.iter().map(|&token| sample::sampled(token, None)).collect()
    }

    fn to_host(&self, logits: &Arc<Logits>) -> Result<Vec<f32>> {
        download(self.stream(), &*lock(&logits.values))
    }
}

/// What the first layer that needs it makes, when it is loaded: a workspace may be large.
fn made<T>(slot: &mut Option<T>, make: impl FnOnce() -> Result<T>) -> Result<&mut T> {
    match slot {
        Some(value) => Ok(value),
        none => Ok(none.insert(make()?)),
    }
}

/// What is behind these locks is replaced or written as a whole, so it is sound whatever happened to another holder.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
