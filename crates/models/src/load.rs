//! From a checkpoint to a model: what names mean is in `falcon.rs` and `llama.rs`, how tensors become weights is here.

use crate::backend::{Backend, CacheSpec, KvDtype, NormWeights, Positions};
use crate::error::{Error, Result};
use crate::memory::MemoryPlan;
use crate::synthetic::Synthetic;
use crate::weights::LinearWeights;
use checkpoint::config::FalconPositions;
use checkpoint::{Checkpoint, ModelConfig, Quantization, Rope, RopeScaling};
use gqa_attention::AttentionShape;
use layers::{NormKind, Rotary};

/// Brings weights into a backend, from a checkpoint or random ones, telling how far it is.
pub struct Loader<'a, B> {
    config: &'a ModelConfig,
    source: Source<'a>,
    backend: &'a B,
    progress: &'a mut dyn FnMut(Progress),
    loaded: u64,
    total: u64,
}

/// Where weights come from.
enum Source<'a> {
    Checkpoint(&'a Checkpoint),
    Synthetic(Synthetic<'a>),
}

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights taken over so far.
    pub loaded: u64,
    /// Bytes of all weights.
    pub total: u64,
}

/// A linear layer by its names: some of a checkpoint's layers, computed as one.
#[derive(Debug, Clone)]
pub struct LinearLayer<'a> {
    /// Names and out_features, one below the other. All read the same input.
    pub parts: Vec<(&'a str, usize)>,
    /// Columns.
    pub in_features: usize,
    /// Whether the parts have biases.
    pub bias: bool,
    /// Row `i` of the layer is row `rows[i]` of the parts.
    pub rows: Option<&'a [usize]>,
    /// A tensor f32 `[in_features]` that the input is divided by, where the checkpoint has it.
    pub divisors: Option<&'a str>,
}

impl LinearLayer<'_> {
    /// The first part's name.
    pub fn name(&self) -> &str {
        self.parts.first().map_or("", |&(name, _)| name)
    }

    /// Rows of all parts.
    pub fn out_features(&self) -> usize {
        self.parts.iter().map(|&(_, out_features)| out_features).sum()
    }
}

impl<'a, B: Backend> Loader<'a, B> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        backend: &'a B,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        let (config, source) = (&checkpoint.config, Source::Checkpoint(checkpoint));
        Self { config, source, backend, progress, loaded: 0, total: checkpoint.tensors.total_bytes() }
    }

    /// Random weights.
    pub(crate) fn synthetic(
        config: &'a ModelConfig,
        quantization: &'a Quantization,
        seed: u64,
        backend: &'a B,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        let source = Source::Synthetic(Synthetic { quantization, seed });
        let total = MemoryPlan::new(config, quantization, KvDtype::Bf16).weight_bytes();
        Self { config, source, backend, progress, loaded: 0, total }
    }

    /// A linear layer `[out_features, in_features]`.
    pub(crate) fn linear(
        &mut self,
        name: &str,
        out_features: usize,
        in_features: usize,
        bias: bool,
    ) -> Result<B::Linear> {
        self.fused(&[(name, out_features)], in_features, bias)
    }

    /// Linear layers of one input, as one: `parts` are names and out_features.
    pub(crate) fn fused(
        &mut self,
        parts: &[(&str, usize)],
        in_features: usize,
        bias: bool,
    ) -> Result<B::Linear> {
        self.take(&LinearLayer { parts: parts.to_vec(), in_features, bias, rows: None, divisors: None })
    }

    /// A linear layer whose row `i` is row `rows[i]` of the checkpoint's.
    pub(crate) fn permuted(
        &mut self,
        name: &str,
        rows: &[usize],
        in_features: usize,
        bias: bool,
    ) -> Result<B::Linear> {
        let parts = vec![(name, rows.len())];
        self.take(&LinearLayer { parts, in_features, bias, rows: Some(rows), divisors: None })
    }

    /// A linear layer behind an activation that is divided by the tensor `scales`, f32 `[in_features]`, where the
    /// checkpoint has one (AutoAWQ's `act.scales`).
    pub(crate) fn after_scaled_activation(
        &mut self,
        name: &str,
        out_features: usize,
        in_features: usize,
        bias: bool,
        scales: &str,
    ) -> Result<B::Linear> {
        let parts = vec![(name, out_features)];
        self.take(&LinearLayer { parts, in_features, bias, rows: None, divisors: Some(scales) })
    }

    /// A norm of the residual stream.
    pub(crate) fn norm(&mut self, name: &str, kind: NormKind) -> Result<B::Norm> {
        let dims = self.config.common();
        let (features, weight, bias) = (dims.hidden_size, format!("{name}.weight"), format!("{name}.bias"));
        let biased = kind == NormKind::Layer;
        let (weight, bias) = match &self.source {
            Source::Checkpoint(checkpoint) => (
                vector(checkpoint, &weight, features)?,
                if biased { Some(vector(checkpoint, &bias, features)?) } else { None },
            ),
            Source::Synthetic(synthetic) => {
                (synthetic.norm_weight(&weight, features), biased.then(|| synthetic.bias(&bias, features)))
            }
        };
        let norm = self.backend.load_norm(NormWeights { kind, weight, bias, epsilon: dims.norm_epsilon })?;
        self.told(&[name], 2 * features as u64 * if biased { 2 } else { 1 })?;
        Ok(norm)
    }

    /// The embedding.
    pub(crate) fn embedding(&mut self, name: &str) -> Result<B::Embedding> {
        let dims = self.config.common();
        let (rows, features) = (dims.vocab_size, dims.hidden_size);
        let embedding = match &self.source {
            Source::Checkpoint(checkpoint) => {
                self.backend.read_embedding(&EmbeddingSource { checkpoint, name, rows, features })?
            }
            Source::Synthetic(synthetic) => {
                self.backend.synthetic_embedding(rows, features, synthetic.seed_of(name))?
            }
        };
        self.told(&[name], 2 * (rows * features) as u64)?;
        Ok(embedding)
    }

    /// The head: the embedding again where the two are tied.
    pub(crate) fn head(&mut self, name: &str, embedding: &B::Embedding) -> Result<B::Linear> {
        let dims = self.config.common();
        if dims.tie_word_embeddings {
            return Ok(self.backend.tied_head(embedding)?);
        }
        self.linear(name, dims.vocab_size, dims.hidden_size, false)
    }

    fn take(&mut self, layer: &LinearLayer<'_>) -> Result<B::Linear> {
        let (linear, synthetic_bytes) = match &self.source {
            Source::Checkpoint(checkpoint) => {
                (self.backend.read_linear(&LinearSource { checkpoint, layer })?, 0)
            }
            Source::Synthetic(synthetic) => {
                let spec = synthetic.linear(layer);
                (self.backend.synthetic_linear(&spec)?, spec.bytes())
            }
        };
        let names: Vec<&str> = layer.parts.iter().map(|&(name, _)| name).chain(layer.divisors).collect();
        self.told(&names, synthetic_bytes)?;
        Ok(linear)
    }

    /// Tells that the tensors of `modules` are taken over, or `synthetic_bytes` of random weights.
    fn told(&mut self, modules: &[&str], synthetic_bytes: u64) -> Result<()> {
        self.loaded += match &self.source {
            Source::Synthetic(_) => synthetic_bytes,
            Source::Checkpoint(checkpoint) => {
                let of = |name: &&str| {
                    let rest = |module: &&str| name.strip_prefix(*module);
                    modules.iter().filter_map(rest).any(|rest| rest.is_empty() || rest.starts_with('.'))
                };
                let tensors = checkpoint.tensors.names().filter(of);
                tensors.map(|name| Ok(checkpoint.tensors.get(name)?.bytes)).sum::<Result<u64>>()?
            }
        };
        (self.progress)(Progress { loaded: self.loaded.min(self.total), total: self.total });
        Ok(())
    }
}

/// A linear layer of a checkpoint, not read yet.
#[derive(Debug, Clone, Copy)]
pub struct LinearSource<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// Which of its tensors.
    pub layer: &'a LinearLayer<'a>,
}

impl LinearSource<'_> {
    /// Reads the layer into canonical form, on the host.
    pub fn weights(&self) -> Result<LinearWeights> {
        let LinearLayer { parts, in_features, bias, rows, divisors } = self.layer;
        let part = |&(name, out_features): &(&str, usize)| {
            let tensors = self.checkpoint.linear(name, *in_features, out_features)?;
            check_bias(name, tensors.bias.is_some(), *bias)?;
            LinearWeights::from_tensors(name, tensors)
        };
        let mut parts = parts.iter().map(part).collect::<Result<Vec<_>>>()?;
        let mut weights = match parts.pop() {
            Some(only) if parts.is_empty() => only,
            last => LinearWeights::fuse(self.layer.name(), parts.into_iter().chain(last).collect())?,
        };
        if let Some(rows) = rows {
            weights = weights.permuted(rows)?;
        }
        if let (Some(name), Some(values)) = (divisors, self.divisors()?) {
            weights.divide_input(name, &values)?;
        }
        Ok(weights)
    }

    /// What the input is divided by, where there is such a tensor.
    pub(crate) fn divisors(&self) -> Result<Option<Vec<f32>>> {
        match self.layer.divisors.filter(|name| self.checkpoint.tensors.contains(name)) {
            Some(name) => vector(self.checkpoint, name, self.layer.in_features).map(Some),
            None => Ok(None),
        }
    }
}

/// An embedding of a checkpoint, not read yet.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingSource<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// Its module; the tensor is its `weight`.
    pub name: &'a str,
    /// vocab_size.
    pub rows: usize,
    /// hidden_size.
    pub features: usize,
}

impl EmbeddingSource<'_> {
    /// Reads f32 `[rows, features]`.
    pub fn values(&self) -> Result<Vec<f32>> {
        tensor(self.checkpoint, &format!("{}.weight", self.name), &[self.rows, self.features])
    }
}

pub(crate) fn check_bias(name: &str, has: bool, expected: bool) -> Result<()> {
    if has == expected { Ok(()) } else { Err(Error::Bias { name: name.to_owned(), expected }) }
}

fn vector(checkpoint: &Checkpoint, name: &str, features: usize) -> Result<Vec<f32>> {
    tensor(checkpoint, name, &[features])
}

fn tensor(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let values = checkpoint.tensors.f32s(name, shape)?;
    let finite = values.iter().all(|x| x.is_finite());
    if finite { Ok(values) } else { Err(Error::NotFinite { name: name.to_owned() }) }
}

/// What the KV cache of a model has to be, with `pages` pages. Scales are 1.
pub(crate) fn cache_spec(config: &ModelConfig, pages: usize, dtype: KvDtype) -> Result<CacheSpec> {
    let dims = config.common();
    let shape =
        AttentionShape { query_heads: dims.query_heads, kv_heads: dims.kv_heads, head_dim: dims.head_dim };
    let positions = match config {
        ModelConfig::Llama(config) => rotary(config.rope, dims.head_dim)?,
        ModelConfig::Falcon(config) => match config.positions {
            FalconPositions::Rotary(rope) => rotary(rope, dims.head_dim)?,
            FalconPositions::Alibi => Positions::Alibi(layers::alibi_slopes(dims.query_heads)),
        },
    };
    let scales = || vec![1.0; dims.layers];
    let (layers, key_scales, value_scales) = (dims.layers, scales(), scales());
    Ok(CacheSpec { layers, shape, positions, pages, dtype, key_scales, value_scales })
}

/// The same with the checkpoint's scales, which are for e4m3 pages; wider ones hold keys and values as they are.
pub(crate) fn cache_spec_of(checkpoint: &Checkpoint, pages: usize, dtype: KvDtype) -> Result<CacheSpec> {
    let mut spec = cache_spec(&checkpoint.config, pages, dtype)?;
    let attention = |layer: usize| match checkpoint.config {
        ModelConfig::Llama(_) => format!("model.layers.{layer}.self_attn"),
        ModelConfig::Falcon(_) => format!("transformer.h.{layer}.self_attention"),
    };
    for layer in (0..spec.layers).filter(|_| dtype == KvDtype::Fp8) {
        if let Some(scales) = checkpoint.kv_scales(&attention(layer))? {
            spec.key_scales[layer] = scales.key;
            spec.value_scales[layer] = scales.value;
        }
    }
    Ok(spec)
}

fn rotary(rope: Rope, head_dim: usize) -> Result<Positions> {
    let scaling = match rope.scaling {
        RopeScaling::None => layers::RopeScaling::None,
        RopeScaling::Linear { factor } => layers::RopeScaling::Linear { factor },
        RopeScaling::Dynamic { factor, original_max_position_embeddings } => {
            layers::RopeScaling::Dynamic { factor, max_position_embeddings: original_max_position_embeddings }
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => layers::RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        },
    };
    Ok(Positions::Rotary(Rotary::new(head_dim, rope.theta, scaling)?))
}
