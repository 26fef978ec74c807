//! A model with its weights and its KV cache, ready to step.

use crate::backend::{Backend, CacheSpec, KvDtype, Positions};
use crate::error::Result;
use crate::load::{Loader, Progress, cache_spec, cache_spec_of};
use crate::step::Step;
use crate::{Falcon, Llama};
use checkpoint::{Checkpoint, ModelConfig, Quantization};
use kv_cache::CopyPage;
use sampling::Sampled;

/// A Falcon or a Llama, held by backend `B`.
pub struct Model<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    cache: B::Cache,
    pages: usize,
    host_pages: usize,
    vocab_size: usize,
    max_context: usize,
    keys_depend_on_prompt_len: bool,
}

enum Decoder<B: Backend> {
    Falcon(Falcon<B>),
    Llama(Llama<B>),
}

impl<B: Backend> Decoder<B> {
    fn load(config: &ModelConfig, loader: &mut Loader<'_, B>) -> Result<Self> {
        Ok(match config {
            ModelConfig::Falcon(config) => Self::Falcon(Falcon::load(config, loader)?),
            ModelConfig::Llama(config) => Self::Llama(Llama::load(config, loader)?),
        })
    }
}

impl<B: Backend> Model<B> {
    /// Loads all weights of `checkpoint` and makes a KV cache of `pages` pages of 64 tokens.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: B,
        pages: usize,
        kv: KvDtype,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let spec = cache_spec_of(checkpoint, pages, kv)?;
        let mut loader = Loader::new(checkpoint, &backend, progress);
        let decoder = Decoder::load(&checkpoint.config, &mut loader)?;
        Self::new(&checkpoint.config, backend, decoder, &spec)
    }

    /// A model of random weights that are stored as `quantization` says, of the size that trained weights have:
    /// activations keep the spread they have in a real model, tokens mean nothing. One seed gives one model, on any
    /// backend.
    pub fn synthetic(
        config: &ModelConfig,
        quantization: &Quantization,
        backend: B,
        pages: usize,
        kv: KvDtype,
        seed: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let spec = cache_spec(config, pages, kv)?;
        let mut loader = Loader::synthetic(config, quantization, seed, &backend, progress);
        let decoder = Decoder::load(config, &mut loader)?;
        Self::new(config, backend, decoder, &spec)
    }

    fn new(config: &ModelConfig, backend: B, decoder: Decoder<B>, spec: &CacheSpec) -> Result<Self> {
        let cache = backend.new_cache(spec)?;
        let dims = config.common();
        Ok(Self {
            backend,
            decoder,
            cache,
            pages: spec.pages,
            host_pages: 0,
            vocab_size: dims.vocab_size,
            max_context: config.max_context(),
            keys_depend_on_prompt_len: matches!(&spec.positions, Positions::Rotary(rotary) if rotary.is_dynamic()),
        })
    }

    /// The same, with `pages` pages of 64 tokens in host memory for what is moved out of the KV cache.
    pub fn with_host_pages(mut self, pages: usize) -> Result<Self> {
        self.backend.add_host_pages(&mut self.cache, pages)?;
        Ok(Self { host_pages: pages, ..self })
    }

    /// Token ids run below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Tokens a sequence can have.
    pub fn max_context(&self) -> usize {
        self.max_context
    }

    /// Pages of 64 tokens in the KV cache.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Pages of 64 tokens in host memory, for what is moved out of the KV cache.
    pub fn host_pages(&self) -> usize {
        self.host_pages
    }

    /// Whether a token's keys depend on how long its prompt is, not on the tokens up to it alone: dynamic rotary scaling.
    pub fn keys_depend_on_prompt_len(&self) -> bool {
        self.keys_depend_on_prompt_len
    }

    /// Copies pages of all layers, in this order, before the next step.
    pub fn copy_pages(&mut self, copies: &[CopyPage]) -> device::Result<()> {
        self.backend.copy_pages(&mut self.cache, copies)
    }

    /// Runs one step and chooses a token for each sampled sequence, in order.
    pub fn step(&mut self, step: &Step<'_>) -> device::Result<Vec<Sampled>> {
        let logits = self.forward(step)?;
        self.backend.sample(&logits, step)
    }

    /// Runs one step; the logits of each sampled sequence, f32 `[sampled, vocab_size]`.
    pub fn logits(&mut self, step: &Step<'_>) -> device::Result<Vec<f32>> {
        let logits = self.forward(step)?;
        let sampled = step.sequences.iter().filter(|sequence| sequence.sample.is_some()).count();
        let mut values = self.backend.to_host(&logits)?;
        // A backend may have padded the step.
        values.truncate(sampled * self.vocab_size);
        Ok(values)
    }

    fn forward(&mut self, step: &Step<'_>) -> device::Result<B::Logits> {
        let Self { backend, decoder, cache, .. } = self;
        let batch = backend.begin(step, cache)?;
        backend.run(&batch, || match decoder {
            Decoder::Falcon(falcon) => falcon.forward(backend, cache, &batch),
            Decoder::Llama(llama) => llama.forward(backend, cache, &batch),
        })
    }
}
