//! Falcon 7B, 11B, 40B, 180B and RW.
//!
//! ```text
//! parallel      x ─┬─ ln_attn ─ qkv ─ rope+append ─ attend ─ dense ─┬─(+)─ x
//! (7B to 180B)     ├─ ln_mlp ── up ─── gelu ─────── down ───────────┤
//!                  └────────────────────────────────────────────────┘
//! sequential    x ─┬─ input_layernorm ─ qkv ... dense ─(+)─┬─ post_attention_layernorm ─ up ─ gelu ─ down ─(+)─ x
//! (RW)             └───────────────────────────────────────┘└───────────────────────────────────────────────┘
//! ```
//!
//! 7B and 11B share one `input_layernorm` between the two branches; 40B and 180B have `ln_attn` and `ln_mlp`.

use crate::backend::Backend;
use crate::error::Result;
use crate::load::Loader;
use checkpoint::FalconConfig;
use checkpoint::config::{FalconBlock, FusedQkv};
use layers::{Activation, NormKind};

/// A Falcon, held by backend `B`.
pub struct Falcon<B: Backend> {
    parallel: bool,
    embedding: B::Embedding,
    layers: Vec<Layer<B>>,
    norm: B::Norm,
    head: B::Linear,
}

struct Layer<B: Backend> {
    attention_norm: B::Norm,
    qkv: B::Linear,
    dense: B::Linear,
    mlp_norm: B::Norm,
    up: B::Linear,
    down: B::Linear,
}

impl<B: Backend> Falcon<B> {
    /// Loads the weights by their names in Hugging Face's checkpoints.
    pub fn load(config: &FalconConfig, loader: &mut Loader<'_, B>) -> Result<Self> {
        let dims = &config.common;
        let (hidden, ffn, bias) = (dims.hidden_size, dims.ffn_hidden_size, config.bias);
        let (attention_norm, mlp_norm) = norm_names(config.block);
        let qkv_rows = qkv_rows(config);
        let embedding = loader.embedding("transformer.word_embeddings")?;
        let layers = (0..dims.layers)
            .map(|index| {
                let name = |part: &str| format!("transformer.h.{index}.{part}");
                Ok(Layer {
                    attention_norm: loader.norm(&name(attention_norm), NormKind::Layer)?,
                    qkv: loader.permuted(&name("self_attention.query_key_value"), &qkv_rows, hidden, bias)?,
                    dense: loader.linear(&name("self_attention.dense"), hidden, hidden, bias)?,
                    mlp_norm: loader.norm(&name(mlp_norm), NormKind::Layer)?,
                    up: loader.linear(&name("mlp.dense_h_to_4h"), ffn, hidden, bias)?,
                    down: loader.after_scaled_activation(
                        &name("mlp.dense_4h_to_h"),
                        hidden,
                        ffn,
                        bias,
                        &name("mlp.act.scales"),
                    )?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            parallel: config.block != FalconBlock::Sequential,
            norm: loader.norm("transformer.ln_f", NormKind::Layer)?,
            head: loader.head("lm_head", &embedding)?,
            embedding,
            layers,
        })
    }

    /// The logits of the step's sampled rows, `[sampled, vocab_size]`.
    pub fn forward(&self, b: &B, cache: &mut B::Cache, batch: &B::Batch) -> device::Result<B::Logits> {
        let mut x = b.embed(&self.embedding, batch)?;
        let mut deltas = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let input = b.add_norm(&mut x, &deltas, &layer.attention_norm, &layer.qkv)?;
            let qkv = b.linear(&input, &layer.qkv)?;
            let queries = b.rope_append(&qkv, cache, index, batch)?;
            let input = b.attend(&queries, cache, index, batch, &layer.dense)?;
            let attention = b.linear(&input, &layer.dense)?;

            // In parallel both branches read the same x and are added together, by the next norm.
            deltas = vec![attention];
            let before_mlp = if self.parallel { &[] } else { deltas.as_slice() };
            let input = b.add_norm(&mut x, before_mlp, &layer.mlp_norm, &layer.up)?;
            if !self.parallel {
                deltas.clear();
            }
            let up = b.linear(&input, &layer.up)?;
            let input = b.activate(&up, Activation::Gelu, &layer.down)?;
            deltas.push(b.linear(&input, &layer.down)?);
        }
        crate::head::logits(b, batch, &x, &deltas, &self.norm, &self.head)
    }
}

/// The names of the norms before attention and before the MLP.
fn norm_names(block: FalconBlock) -> (&'static str, &'static str) {
    match block {
        FalconBlock::ParallelTwoNorms => ("ln_attn", "ln_mlp"),
        FalconBlock::ParallelSharedNorm => ("input_layernorm", "input_layernorm"),
        FalconBlock::Sequential => ("input_layernorm", "post_attention_layernorm"),
    }
}

/// Where each row of `[q | k | v]` stands in the checkpoint's fused rows: [`FusedQkv`] has the drawing.
///
/// All three are units of some query heads, their key, their value; with one KV head there is one unit, and per-head
/// rows are units of a single query head.
fn qkv_rows(config: &FalconConfig) -> Vec<usize> {
    let dims = &config.common;
    let units = match config.qkv {
        FusedQkv::Grouped => dims.kv_heads,
        FusedQkv::MultiQuery => 1,
        FusedQkv::PerHead => dims.query_heads,
    };
    let group = dims.query_heads / units;
    let places = [0..group, group..group + 1, group + 1..group + 2];
    let mut rows = Vec::new();
    for places in places {
        for unit in 0..units {
            let first = unit * (group + 2);
            rows.extend((first + places.start) * dims.head_dim..(first + places.end) * dims.head_dim);
        }
    }
    rows
}
