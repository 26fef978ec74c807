//! Llama 1, 2, 3, 3.1, 3.3 (and Falcon3, which is this architecture).
//!
//! ```text
//! x ─┬─ norm ─ qkv ─ rope+append ─ attend ─ o ─(+)─┬─ norm ─ gate+up ─ swiglu ─ down ─(+)─ x
//!    └─────────────────────────────────────────────┘└──────────────────────────────────┘
//! ```

use crate::backend::Backend;
use crate::error::Result;
use crate::load::Loader;
use checkpoint::LlamaConfig;
use layers::{Activation, NormKind};

/// A Llama, held by backend `B`.
pub struct Llama<B: Backend> {
    embedding: B::Embedding,
    layers: Vec<Layer<B>>,
    norm: B::Norm,
    head: B::Linear,
}

struct Layer<B: Backend> {
    attention_norm: B::Norm,
    qkv: B::Linear,
    output: B::Linear,
    mlp_norm: B::Norm,
    gate_up: B::Linear,
    down: B::Linear,
}

impl<B: Backend> Llama<B> {
    /// Loads the weights by their names in Hugging Face's checkpoints.
    pub fn load(config: &LlamaConfig, loader: &mut Loader<'_, B>) -> Result<Self> {
        let dims = &config.common;
        let (hidden, ffn) = (dims.hidden_size, dims.ffn_hidden_size);
        let (heads, kv) = (dims.query_heads * dims.head_dim, dims.kv_heads * dims.head_dim);
        let (attention_bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
        let embedding = loader.embedding("model.embed_tokens")?;
        let layers = (0..dims.layers)
            .map(|index| {
                let name = |part: &str| format!("model.layers.{index}.{part}");
                let (q, k, v) =
                    (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
                let (gate, up) = (name("mlp.gate_proj"), name("mlp.up_proj"));
                Ok(Layer {
                    attention_norm: loader.norm(&name("input_layernorm"), NormKind::Rms)?,
                    qkv: loader.fused(&[(&q, heads), (&k, kv), (&v, kv)], hidden, attention_bias)?,
                    output: loader.linear(&name("self_attn.o_proj"), hidden, heads, attention_bias)?,
                    mlp_norm: loader.norm(&name("post_attention_layernorm"), NormKind::Rms)?,
                    gate_up: loader.fused(&[(&gate, ffn), (&up, ffn)], hidden, mlp_bias)?,
                    down: loader.linear(&name("mlp.down_proj"), hidden, ffn, mlp_bias)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            norm: loader.norm("model.norm", NormKind::Rms)?,
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
            let input = b.attend(&queries, cache, index, batch, &layer.output)?;
            let attention = b.linear(&input, &layer.output)?;

            let input = b.add_norm(&mut x, &[attention], &layer.mlp_norm, &layer.gate_up)?;
            let gate_up = b.linear(&input, &layer.gate_up)?;
            let input = b.activate(&gate_up, Activation::Swiglu, &layer.down)?;
            deltas = vec![b.linear(&input, &layer.down)?];
        }
        crate::head::logits(b, batch, &x, &deltas, &self.norm, &self.head)
    }
}
