//! A model with its weights and its KV cache, ready to step.

use crate::backend::{Backend, CacheSpec, KvDtype};
use crate::error::Result;
use crate::load::{Loader, Progress, cache_spec, cache_spec_of};
use crate::step::Step;
use crate::{Falcon, Llama};
use checkpoint::{Checkpoint, ModelConfig, Quantization};
use sampling::Sampled;

/// A Falcon or a Llama, held by backend `B`.
pub struct Model<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    cache: B::Cache,
    pages: usize,
    vocab_size: usize,
    max_context: usize,
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
        let (pages, max_context) = (spec.pages, dims.max_position_embeddings);
        Ok(Self { backend, decoder, cache, pages, vocab_size: dims.vocab_size, max_context })
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
