//! A model with its weights and its KV cache, ready to step.

use crate::backend::{Backend, KvDtype};
use crate::error::Result;
use crate::load::{Loader, Progress, cache_spec};
use crate::step::Step;
use crate::{Falcon, Llama};
use checkpoint::{Checkpoint, ModelConfig};
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

impl<B: Backend> Model<B> {
    /// Loads all weights of `checkpoint` and makes a KV cache of `pages` pages of 64 tokens.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: B,
        pages: usize,
        kv: KvDtype,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let spec = cache_spec(checkpoint, pages, kv)?;
        let mut loader = Loader::new(checkpoint, &backend, progress);
        let decoder = match &checkpoint.config {
            ModelConfig::Falcon(config) => Decoder::Falcon(Falcon::load(config, &mut loader)?),
            ModelConfig::Llama(config) => Decoder::Llama(Llama::load(config, &mut loader)?),
        };
        let cache = backend.new_cache(&spec)?;
        let dims = checkpoint.config.common();
        let max_context = dims.max_position_embeddings;
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
        self.backend.to_host(&logits)
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
