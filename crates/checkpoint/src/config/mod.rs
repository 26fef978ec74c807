//! `config.json`: Falcon and Llama in all their spellings.

mod falcon;
mod fields;
mod llama;
mod rope;

pub use falcon::{FalconBlock, FalconConfig, FalconPositions, FusedQkv};
pub use llama::LlamaConfig;
pub use rope::{Rope, RopeScaling};

pub(crate) use fields::Fields;

use crate::Result;
use crate::json::Object;

/// The most features a vector of any kind may have.
const MAX_FEATURES: usize = 1 << 20;
/// The most decoder layers.
const MAX_LAYERS: usize = 4096;
/// The longest context, tokens.
const MAX_CONTEXT: usize = 1 << 28;
/// The largest vocabulary.
const MAX_VOCABULARY: usize = 1 << 24;

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
    /// Reads config.json.
    pub(crate) fn read(file: &str, object: &Object) -> Result<Self> {
        let config = Fields::new(file, object);
        let model_type = config.string("model_type")?.ok_or_else(|| config.missing("model_type"))?;
        let (falcon, classes) = match model_type {
            "falcon" | "RefinedWeb" | "RefinedWebModel" => (true, ["FalconForCausalLM", "RWForCausalLM"]),
            "llama" => (false, ["LlamaForCausalLM", "LlamaForCausalLM"]),
            other => {
                let supported = "falcon, RefinedWeb, RefinedWebModel, llama";
                return Err(config.unsupported("model_type", format_args!("{other:?}"), supported));
            }
        };
        let architectures = config.strings("architectures")?;
        if let Some(other) = architectures.iter().find(|class| !classes.contains(class)) {
            let supported = if falcon { "FalconForCausalLM, RWForCausalLM" } else { "LlamaForCausalLM" };
            return Err(config.unsupported("architectures", format_args!("{other:?}"), supported));
        }
        if falcon {
            FalconConfig::read(&config, model_type).map(Self::Falcon)
        } else {
            LlamaConfig::read(&config).map(Self::Llama)
        }
    }

    /// What both architectures have.
    pub fn common(&self) -> &Common {
        match self {
            Self::Falcon(config) => &config.common,
            Self::Llama(config) => &config.common,
        }
    }

    /// Tokens a text can have: `max_position_embeddings`, or, where rotary scaling is dynamic, as many as it stretches to if that is
    /// more, `factor` times what was trained.
    pub fn max_context(&self) -> usize {
        let trained = self.common().max_position_embeddings;
        let rope = match self {
            Self::Falcon(FalconConfig { positions: FalconPositions::Rotary(rope), .. }) => Some(rope),
            Self::Falcon(_) => None,
            Self::Llama(config) => Some(&config.rope),
        };
        match rope.map(|rope| rope.scaling) {
            Some(RopeScaling::Dynamic { factor, original_max_position_embeddings }) => {
                trained.max((original_max_position_embeddings as f64 * factor) as usize).min(MAX_CONTEXT)
            }
            _ => trained,
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

impl Common {
    /// What both architectures spell alike; the dimensions are left for the caller. `bos` and `eos` are the
    /// architecture's own, which count where the file names none.
    fn read(config: &Fields<'_>, bos: Option<u32>, eos: Option<u32>) -> Result<Self> {
        let vocab_size = config.needed(&["vocab_size"], 1..=MAX_VOCABULARY)?;
        let own = |key, token: Option<u32>| {
            let said = config.says(key);
            token.filter(|&token| !said && (token as usize) < vocab_size)
        };
        let dtype = match config.spelling(&["torch_dtype", "dtype"])? {
            None => None,
            Some(key) => match config.string(key)?.unwrap_or("") {
                "float32" => Some(TorchDtype::F32),
                "float16" => Some(TorchDtype::F16),
                "bfloat16" => Some(TorchDtype::Bf16),
                other => {
                    let supported = "float32, float16, bfloat16";
                    return Err(config.unsupported(key, format_args!("{other:?}"), supported));
                }
            },
        };
        Ok(Self {
            vocab_size,
            hidden_size: 0,
            layers: 0,
            query_heads: 0,
            kv_heads: 0,
            head_dim: 0,
            ffn_hidden_size: 0,
            max_position_embeddings: 0,
            tie_word_embeddings: false,
            norm_epsilon: 0.0,
            bos_token_id: config.token("bos_token_id", vocab_size)?.or(own("bos_token_id", bos)),
            eos_token_ids: match config.tokens("eos_token_id", vocab_size)? {
                Some(tokens) => tokens,
                None => own("eos_token_id", eos).into_iter().collect(),
            },
            pad_token_id: config.token("pad_token_id", vocab_size)?,
            dtype,
        })
    }

    /// What holds between the numbers of heads.
    fn check_heads(&self, config: &Fields<'_>, kv_key: &str) -> Result<()> {
        if !self.query_heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of num_attention_heads {}", self.query_heads);
            return Err(config.out_of_range(kv_key, expected, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(config.out_of_range("head_dim", "an even number".to_owned(), self.head_dim));
        }
        let features =
            self.query_heads.checked_mul(self.head_dim).filter(|&features| features <= MAX_FEATURES);
        if features.is_none() {
            let expected = format!("at most {MAX_FEATURES} features in {} heads", self.query_heads);
            return Err(config.out_of_range("head_dim", expected, self.head_dim));
        }
        Ok(())
    }
}

/// What a norm adds to the variance.
fn norm_epsilon(config: &Fields<'_>, key: &str, default: f64) -> Result<f32> {
    Ok(config.float(key, 1e-30..=1.0)?.unwrap_or(default) as f32)
}
