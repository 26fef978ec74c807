//! Llama's settings.

use super::{Common, Rope};

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
