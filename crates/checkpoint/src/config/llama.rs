//! Llama's settings.

use super::{Common, Fields, MAX_FEATURES, Rope};
use crate::Result;

/// A Llama model.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Dimensions and tokens.
    pub common: Common,
    /// Rotary embedding of queries and keys, in halves.
    pub rope: Rope,
    /// Whether the projections q, k, v and o have biases.
    pub attention_bias: bool,
    /// Whether the projections gate, up and down have biases.
    pub mlp_bias: bool,
}

impl LlamaConfig {
    pub(super) fn read(config: &Fields<'_>) -> Result<Self> {
        let activation = config.string("hidden_act")?.unwrap_or("silu");
        if !matches!(activation, "silu" | "swish") {
            return Err(config.unsupported("hidden_act", format_args!("{activation:?}"), "silu"));
        }
        let query_heads = config.needed(&["num_attention_heads"], 1..=MAX_FEATURES)?;
        let kv_heads = config.integer("num_key_value_heads", 1..=query_heads)?.unwrap_or(query_heads);
        let hidden_size = config.needed(&["hidden_size"], 1..=MAX_FEATURES)?;
        let head_dim = match config.integer("head_dim", 1..=MAX_FEATURES)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(query_heads) => hidden_size / query_heads,
            None => {
                let expected =
                    format!("a multiple of num_attention_heads {query_heads}, as there is no head_dim");
                return Err(config.out_of_range("hidden_size", expected, hidden_size));
            }
        };
        let common = Common {
            hidden_size,
            query_heads,
            kv_heads,
            head_dim,
            layers: config.needed(&["num_hidden_layers"], 1..=super::MAX_LAYERS)?,
            ffn_hidden_size: config.needed(&["intermediate_size"], 1..=MAX_FEATURES)?,
            max_position_embeddings: config
                .integer("max_position_embeddings", 1..=super::MAX_CONTEXT)?
                .unwrap_or(2048),
            tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(false),
            norm_epsilon: super::norm_epsilon(config, "rms_norm_eps", 1e-6)?,
            ..Common::read(config, Some(1), Some(2))?
        };
        common.check_heads(config, "num_key_value_heads")?;
        Ok(Self {
            rope: Rope::read(config, common.max_position_embeddings)?,
            attention_bias: config.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: config.flag("mlp_bias")?.unwrap_or(false),
            common,
        })
    }
}
