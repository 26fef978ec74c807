//! The reference backend: every op's CPU reference, activations in f32.

mod cache;
mod linear;

pub use cache::Cache;
pub use linear::{Input, Linear};

use crate::backend::{Backend, CacheSpec, NormWeights};
use crate::batch::Batch;
use crate::step::Step;
use crate::weights::LinearWeights;
use device::{Check, Result};
use kv_cache::CopyPage;
use layers::{Activate, Activation};
use std::sync::Arc;

/// How activations meet INT4 weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Int4Activations {
    /// Quantized to e4m3, per token or with the checkpoint's static scale (W4A8).
    #[default]
    Fp8,
    /// As they are (W4A16).
    Full,
}

/// The CPU backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// How activations meet INT4 weights.
    pub int4_activations: Int4Activations,
}

/// f32 `[tokens, features]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    values: Vec<f32>,
    features: usize,
}

impl Tensor {
    /// f32 `[tokens, features]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    fn tokens(&self) -> usize {
        self.values.len() / self.features
    }
}

/// A norm with its weights.
pub struct Norm {
    norm: layers::Norm,
    weights: NormWeights,
}

/// An embedding table, shared with a tied head.
pub struct Embedding {
    rows: Arc<[f32]>,
    features: usize,
}

impl Backend for Cpu {
    type Tensor = Tensor;
    type Input = Input;
    type Logits = Tensor;
    type Linear = Linear;
    type Norm = Norm;
    type Embedding = Embedding;
    type Cache = Cache;
    type Batch = Batch;

    fn load_linear(&self, weights: LinearWeights) -> Result<Linear> {
        Linear::new(weights, self.int4_activations)
    }

    fn load_norm(&self, weights: NormWeights) -> Result<Norm> {
        let norm = layers::Norm::new(weights.kind, weights.weight.len(), weights.epsilon)?;
        Ok(Norm { norm, weights })
    }

    fn load_embedding(&self, rows: Vec<f32>, features: usize) -> Result<Embedding> {
        Check("embedding").multiple("rows", rows.len(), features)?;
        Ok(Embedding { rows: rows.into(), features })
    }

    fn tied_head(&self, embedding: &Embedding) -> Result<Linear> {
        Linear::dense(embedding.rows.clone(), embedding.features)
    }

    fn new_cache(&self, spec: &CacheSpec) -> Result<Cache> {
        Cache::new(spec)
    }

    fn add_host_pages(&self, cache: &mut Cache, pages: usize) -> Result<()> {
        cache.add_host_pages(pages)
    }

    fn copy_pages(&self, cache: &mut Cache, copies: &[CopyPage]) -> Result<()> {
        cache.copy_pages(copies)
    }

    fn begin(&self, step: &Step<'_>, cache: &Cache) -> Result<Batch> {
        Batch::new(step, cache.pages())
    }

    fn run(&self, _: &Batch, mut forward: impl FnMut() -> Result<Tensor>) -> Result<Tensor> {
        forward()
    }

    fn embed(&self, table: &Embedding, batch: &Batch) -> Result<Tensor> {
        let features = table.features;
        let mut values = vec![0.0; batch.tokens.len() * features];
        let embedding = layers::Embedding::new(table.rows.len() / features, features)?;
        embedding.reference(&table.rows, &batch.tokens, &mut values)?;
        Ok(Tensor { values, features })
    }

    fn add_norm(
        &self,
        residual: &mut Tensor,
        deltas: &[Tensor],
        norm: &Norm,
        into: &Linear,
    ) -> Result<Input> {
        let deltas: Vec<&[f32]> = deltas.iter().map(|delta| delta.values.as_slice()).collect();
        let mut output = vec![0.0; residual.values.len()];
        let NormWeights { weight, bias, .. } = &norm.weights;
        norm.norm.reference(weight, bias.as_deref(), &deltas, &mut residual.values, &mut output)?;
        into.input(output)
    }

    fn linear(&self, input: &Input, linear: &Linear) -> Result<Tensor> {
        Ok(Tensor { values: linear.apply(input)?, features: linear.out_features() })
    }

    fn rope_append(&self, qkv: &Tensor, cache: &mut Cache, layer: usize, batch: &Batch) -> Result<Tensor> {
        let features = cache.query_features();
        let values = cache.append(&qkv.values, layer, batch)?;
        Ok(Tensor { values, features })
    }

    fn attend(
        &self,
        queries: &Tensor,
        cache: &Cache,
        layer: usize,
        batch: &Batch,
        into: &Linear,
    ) -> Result<Input> {
        into.input(cache.attend(&queries.values, layer, batch)?)
    }

    fn activate(&self, x: &Tensor, activation: Activation, into: &Linear) -> Result<Input> {
        let features = x.features / activation.fan_in();
        let mut output = vec![0.0; x.tokens() * features];
        Activate::new(activation, features)?.reference(&x.values, None, &mut output)?;
        into.input(output)
    }

    fn sampled_rows(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let rows = batch.sampled.iter().map(|&row| &x.values[row * x.features..][..x.features]);
        Ok(Tensor { values: rows.flatten().copied().collect(), features: x.features })
    }

    fn logits(&self, input: &Input, head: &Linear) -> Result<Tensor> {
        self.linear(input, head)
    }

    fn sample(&self, logits: &Tensor, step: &Step<'_>) -> Result<Vec<sampling::Sampled>> {
        let samples = step.sequences.iter().filter_map(|sequence| sequence.sample);
        let rows = logits.values.chunks_exact(logits.features);
        samples.zip(rows).map(|(sample, row)| sample.choose(row)).collect()
    }

    fn to_host(&self, logits: &Tensor) -> Result<Vec<f32>> {
        Ok(logits.values.clone())
    }
}
