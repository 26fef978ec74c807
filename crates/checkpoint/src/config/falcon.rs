//! Falcon's settings. Flags that only make sense together become one enum here.

use super::{Common, Fields, MAX_FEATURES, Rope};
use crate::Result;

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

impl FalconConfig {
    pub(super) fn read(config: &Fields<'_>, model_type: &str) -> Result<Self> {
        let activation = config.string("activation")?.unwrap_or("gelu");
        if activation != "gelu" {
            return Err(config.unsupported("activation", format_args!("{activation:?}"), "gelu"));
        }
        if config.flag("apply_residual_connection_post_layernorm")? == Some(true) {
            return Err(config.unsupported("apply_residual_connection_post_layernorm", true, "false"));
        }
        let query_heads = config.needed(&["num_attention_heads", "n_head"], 1..=MAX_FEATURES)?;
        let hidden_size = config.needed(&["hidden_size", "n_embed"], 1..=MAX_FEATURES)?;
        if !hidden_size.is_multiple_of(query_heads) {
            let expected = format!("a multiple of num_attention_heads {query_heads}");
            return Err(config.out_of_range("hidden_size", expected, hidden_size));
        }
        let kv_spelling = config.spelling(&["num_kv_heads", "n_head_kv"])?;
        let kv_key = kv_spelling.unwrap_or("num_kv_heads");
        let kv_heads = config.integer(kv_key, 1..=query_heads)?;

        // The first files had their own code, whose defaults were others: RefinedWeb was the new architecture
        // without saying so, RefinedWebModel had every flag off.
        let first_files = model_type != "falcon";
        let new_architecture = config.flag("new_decoder_architecture")?.unwrap_or(model_type == "RefinedWeb");
        let multi_query = config.flag("multi_query")?.unwrap_or(!first_files);
        let parallel = config.flag("parallel_attn")?.unwrap_or(!first_files || new_architecture);
        let (qkv, kv_heads) = match (new_architecture, multi_query) {
            (true, _) => (FusedQkv::Grouped, kv_heads.unwrap_or(query_heads)),
            // The files of 7B name 71 KV heads all the same.
            (false, true) => (FusedQkv::MultiQuery, 1),
            (false, false) => match kv_heads.filter(|&kv_heads| kv_heads != query_heads) {
                Some(kv_heads) => return Err(config.conflict("multi_query", false, kv_key, kv_heads)),
                None => (FusedQkv::PerHead, query_heads),
            },
        };
        let norms = config.integer("num_ln_in_parallel_attn", 1..=2)?;
        let block = match (new_architecture, parallel, norms) {
            (true, false, _) => {
                return Err(config.conflict("new_decoder_architecture", true, "parallel_attn", false));
            }
            (true, true, None | Some(2)) => FalconBlock::ParallelTwoNorms,
            (true, true, Some(_)) => FalconBlock::ParallelSharedNorm,
            (false, true, Some(2)) => {
                return Err(config.conflict("new_decoder_architecture", false, "num_ln_in_parallel_attn", 2));
            }
            (false, true, _) => FalconBlock::ParallelSharedNorm,
            (false, false, _) => FalconBlock::Sequential,
        };
        let common = Common {
            hidden_size,
            query_heads,
            kv_heads,
            head_dim: hidden_size / query_heads,
            layers: config.needed(&["num_hidden_layers", "n_layer"], 1..=super::MAX_LAYERS)?,
            ffn_hidden_size: config.integer("ffn_hidden_size", 1..=MAX_FEATURES)?.unwrap_or(4 * hidden_size),
            max_position_embeddings: config
                .integer("max_position_embeddings", 1..=super::MAX_CONTEXT)?
                .unwrap_or(2048),
            tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(true),
            norm_epsilon: super::norm_epsilon(config, "layer_norm_epsilon", 1e-5)?,
            ..Common::read(config, Some(11), Some(11))?
        };
        common.check_heads(config, kv_key)?;
        let positions = match config.flag("alibi")? {
            Some(true) => FalconPositions::Alibi,
            _ => FalconPositions::Rotary(Rope::read(config, common.max_position_embeddings)?),
        };
        let bias = config.flag("bias")?.unwrap_or(false);
        Ok(Self { common, qkv, block, positions, bias })
    }
}
