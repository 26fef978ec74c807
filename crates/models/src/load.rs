//! From a checkpoint to a model: what names mean is in `falcon.rs` and `llama.rs`, how tensors become weights is here.

use crate::backend::{Backend, CacheSpec, KvDtype, NormWeights, Positions};
use crate::error::{Error, Result};
use crate::weights::LinearWeights;
use checkpoint::config::FalconPositions;
use checkpoint::{Checkpoint, ModelConfig, Rope, RopeScaling};
use gqa_attention::AttentionShape;
use layers::{NormKind, Rotary};

/// Reads a checkpoint's weights into a backend, telling how far it is.
pub struct Loader<'a, B> {
    checkpoint: &'a Checkpoint,
    backend: &'a B,
    progress: &'a mut dyn FnMut(Progress),
    loaded: u64,
}

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the checkpoint taken over so far.
    pub loaded: u64,
    /// Bytes of the checkpoint.
    pub total: u64,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        backend: &'a B,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        Self { checkpoint, backend, progress, loaded: 0 }
    }

    /// A linear layer `[out_features, in_features]`.
    pub(crate) fn linear(
        &mut self,
        name: &str,
        out_features: usize,
        in_features: usize,
        bias: bool,
    ) -> Result<B::Linear> {
        let weights = self.weights(name, out_features, in_features, bias)?;
        self.take_over(weights)
    }

    /// Linear layers of one input, as one: `parts` are names and out_features.
    pub(crate) fn fused(
        &mut self,
        parts: &[(&str, usize)],
        in_features: usize,
        bias: bool,
    ) -> Result<B::Linear> {
        let weights = parts
            .iter()
            .map(|&(name, out_features)| self.weights(name, out_features, in_features, bias))
            .collect::<Result<Vec<_>>>()?;
        let name = parts.first().map_or("", |&(name, _)| name);
        self.take_over(LinearWeights::fuse(name, weights)?)
    }

    /// A linear layer whose row `i` is row `rows[i]` of the checkpoint's.
    pub(crate) fn permuted(
        &mut self,
        name: &str,
        rows: &[usize],
        in_features: usize,
        bias: bool,
    ) -> Result<B::Linear> {
        let weights = self.weights(name, rows.len(), in_features, bias)?;
        self.take_over(weights.permuted(rows)?)
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
        let mut weights = self.weights(name, out_features, in_features, bias)?;
        if self.checkpoint.tensors.contains(scales) {
            let divisors = self.vector(scales, &[in_features])?;
            weights.divide_input(scales, &divisors)?;
        }
        self.take_over(weights)
    }

    /// A norm of the residual stream.
    pub(crate) fn norm(&mut self, name: &str, kind: NormKind) -> Result<B::Norm> {
        let dims = self.checkpoint.config.common();
        let shape = [dims.hidden_size];
        let weight = self.vector(&format!("{name}.weight"), &shape)?;
        let bias = match kind {
            NormKind::Rms => None,
            NormKind::Layer => Some(self.vector(&format!("{name}.bias"), &shape)?),
        };
        let weights = NormWeights { kind, weight, bias, epsilon: dims.norm_epsilon };
        Ok(self.backend.load_norm(weights)?)
    }

    /// The embedding.
    pub(crate) fn embedding(&mut self, name: &str) -> Result<B::Embedding> {
        let dims = self.checkpoint.config.common();
        let rows = self.vector(&format!("{name}.weight"), &[dims.vocab_size, dims.hidden_size])?;
        Ok(self.backend.load_embedding(rows, dims.hidden_size)?)
    }

    /// The head: the embedding again where the two are tied.
    pub(crate) fn head(&mut self, name: &str, embedding: &B::Embedding) -> Result<B::Linear> {
        let dims = self.checkpoint.config.common();
        if dims.tie_word_embeddings {
            return Ok(self.backend.tied_head(embedding)?);
        }
        self.linear(name, dims.vocab_size, dims.hidden_size, false)
    }

    fn weights(
        &mut self,
        name: &str,
        out_features: usize,
        in_features: usize,
        bias: bool,
    ) -> Result<LinearWeights> {
        let tensors = self.checkpoint.linear(name, in_features, out_features)?;
        if tensors.bias.is_some() != bias {
            return Err(Error::Bias { name: name.to_owned(), expected: bias });
        }
        for part in self.checkpoint.tensors.names().filter(|part| part.starts_with(name)) {
            self.loaded += self.checkpoint.tensors.get(part)?.bytes;
        }
        self.tell();
        LinearWeights::from_tensors(name, tensors)
    }

    fn take_over(&mut self, weights: LinearWeights) -> Result<B::Linear> {
        Ok(self.backend.load_linear(weights)?)
    }

    fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let values = self.checkpoint.tensors.f32s(name, shape)?;
        if !values.iter().all(|x| x.is_finite()) {
            return Err(Error::NotFinite { name: name.to_owned() });
        }
        self.loaded += self.checkpoint.tensors.get(name)?.bytes;
        self.tell();
        Ok(values)
    }

    fn tell(&mut self) {
        (self.progress)(Progress { loaded: self.loaded, total: self.checkpoint.tensors.total_bytes() });
    }
}

/// What the KV cache of a checkpoint's model has to be, with `pages` pages.
pub(crate) fn cache_spec(checkpoint: &Checkpoint, pages: usize, dtype: KvDtype) -> Result<CacheSpec> {
    let dims = checkpoint.config.common();
    let shape =
        AttentionShape { query_heads: dims.query_heads, kv_heads: dims.kv_heads, head_dim: dims.head_dim };
    let positions = match &checkpoint.config {
        ModelConfig::Llama(config) => rotary(config.rope, dims.head_dim)?,
        ModelConfig::Falcon(config) => match config.positions {
            FalconPositions::Rotary(rope) => rotary(rope, dims.head_dim)?,
            FalconPositions::Alibi => Positions::Alibi(layers::alibi_slopes(dims.query_heads)),
        },
    };
    let attention = |layer: usize| match checkpoint.config {
        ModelConfig::Llama(_) => format!("model.layers.{layer}.self_attn"),
        ModelConfig::Falcon(_) => format!("transformer.h.{layer}.self_attention"),
    };
    let mut spec = CacheSpec {
        layers: dims.layers,
        shape,
        positions,
        pages,
        dtype,
        key_scales: vec![1.0; dims.layers],
        value_scales: vec![1.0; dims.layers],
    };
    // Scales are for e4m3 pages; wider ones hold keys and values as they are.
    if dtype == KvDtype::Fp8 {
        for layer in 0..dims.layers {
            if let Some(scales) = checkpoint.kv_scales(&attention(layer))? {
                spec.key_scales[layer] = scales.key;
                spec.value_scales[layer] = scales.value;
            }
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
