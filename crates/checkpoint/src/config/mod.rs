//! `config.json`: Falcon and Llama in all their spellings.

mod falcon;
mod fields;
mod llama;
mod rope;

pub use falcon::{FalconBlock, FalconConfig, FalconPositions, FusedQkv};
pub use llama::LlamaConfig;
pub use rope::{Rope, RopeScaling};

pub(crate) use fields::Fields;

/// Which model, and its dimensions.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// Falcon 7B, 11B, 40B, 180B and RW.
    Falcon(FalconConfig),
    /// Llama 1, 2, 3, 3.1, 3.3 and what shares their architecture.
    Llama(LlamaConfig),
}

/// What `torch_dtype` (`dtype` in newer files) says the model was trained or exported in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TorchDtype {
    /// 32-bit floats.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

/// What both architectures have.
#[derive(Debug, Clone, PartialEq)]
pub struct Common {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub query_heads: usize,
    /// KV heads; divides `query_heads`.
    pub kv_heads: usize,
    /// Features of one head, even.
    pub head_dim: usize,
    /// Features between the two halves of the MLP.
    pub ffn_hidden_size: usize,
    /// The longest context the model was made for, tokens.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// What the norms add to the variance.
    pub norm_epsilon: f32,
    /// The first token of a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// The padding token.
    pub pad_token_id: Option<u32>,
    /// The dtype named in the file.
    pub dtype: Option<TorchDtype>,
}

impl ModelConfig {
    /// What both architectures have.
    pub fn common(&self) -> &Common {
        match self {
            Self::Falcon(config) => &config.common,
            Self::Llama(config) => &config.common,
        }
    }

    /// `falcon` or `llama`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Falcon(_) => "falcon",
            Self::Llama(_) => "llama",
        }
    }
}
