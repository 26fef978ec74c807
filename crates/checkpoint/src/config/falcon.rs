//! Falcon's settings. Flags that only make sense together become one enum here.

use super::{Common, Rope};

/// A Falcon model.
#[derive(Debug, Clone, PartialEq)]
pub struct FalconConfig {
    /// Dimensions and tokens.
    pub common: Common,
    /// How the rows of `self_attention.query_key_value` are interleaved.
    pub qkv: FusedQkv,
    /// Norms and residual of a layer.
    pub block: FalconBlock,
    /// How positions enter attention.
    pub positions: FalconPositions,
    /// Whether linear layers (the head excepted) have a bias.
    pub bias: bool,
}

/// How the rows of the fused projection lie; each unit is `head_dim` rows.
///
/// ```text
/// Grouped     for each KV head: [ q x (query_heads / kv_heads) | k | v ]
/// MultiQuery  [ q x query_heads | k | v ]
/// PerHead     for each head: [ q | k | v ]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FusedQkv {
    /// The new decoder architecture (40B, 180B, 11B).
    Grouped,
    /// One KV head (7B).
    MultiQuery,
    /// As many KV heads as query heads (RW).
    PerHead,
}

/// Norms and residual of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FalconBlock {
    /// `x + attention(ln_attn(x)) + mlp(ln_mlp(x))` (40B, 180B).
    ParallelTwoNorms,
    /// `x + attention(n) + mlp(n)` with `n = input_layernorm(x)` (7B, 11B).
    ParallelSharedNorm,
    /// `y = x + attention(input_layernorm(x))`, then `y + mlp(post_attention_layernorm(y))` (RW).
    Sequential,
}

/// How positions enter attention.
#[derive(Debug, Clone, PartialEq)]
pub enum FalconPositions {
    /// Rotary embedding of queries and keys, in halves.
    Rotary(Rope),
    /// A bias on the scores: `(scores + alibi) / sqrt(head_dim)`.
    Alibi,
}
