//! What a model needs: weight bytes by part, KV bytes a token, how many sequences fit.

use crate::backend::KvDtype;
use checkpoint::config::FalconBlock;
use checkpoint::quantization::{Group, LinearFormat, Method};
use checkpoint::{ModelConfig, Quantization};
use device::PAGE_SIZE;

/// The memory of a model on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Bytes by part, embedding first.
    pub parts: Vec<Part>,
    /// KV bytes of one token, all layers.
    pub kv_bytes_per_token: u64,
}

/// One kind of weights, all layers together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// `qkv`, `attention output`, ...
    pub name: &'static str,
    /// How many of the kind.
    pub count: u64,
    /// Input features of a linear layer; columns of an embedding.
    pub in_features: u64,
    /// Output features of a linear layer; rows of an embedding.
    pub out_features: u64,
    /// Bits of one weight, scales not counted.
    pub weight_bits: u32,
    /// All of them together.
    pub bytes: u64,
}

/// How one linear layer's weights are stored on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// 2 bytes a weight.
    Bf16,
    /// 1 byte a weight and an f32 scale for every output row.
    Fp8,
    /// 4 bits a weight; for every group an f16 scale and a 4-bit zero point.
    Int4 { group: Group },
}

impl Storage {
    /// Of a checkpoint's quantized layers.
    fn of(quantization: &Quantization) -> Self {
        let format = match &quantization.method {
            Method::None => LinearFormat::Plain,
            Method::AutoAwq { group, .. } => LinearFormat::AutoAwq { group: *group },
            Method::CompressedTensors { groups, .. } => {
                groups.first().map_or(LinearFormat::Plain, |group| group.format)
            }
            Method::ModelOpt { format, .. } => *format,
        };
        match format {
            LinearFormat::Plain => Self::Bf16,
            LinearFormat::Fp8 { .. } => Self::Fp8,
            LinearFormat::AutoAwq { group } | LinearFormat::PackQuantized { group, .. } => {
                Self::Int4 { group }
            }
            LinearFormat::W4a8Awq { group_size } => Self::Int4 { group: Group::Size(group_size) },
        }
    }

    fn weight_bits(self) -> u32 {
        match self {
            Self::Bf16 => 16,
            Self::Fp8 => 8,
            Self::Int4 { .. } => 4,
        }
    }

    pub(crate) fn bytes(self, in_features: u64, out_features: u64) -> u64 {
        let weights = in_features * out_features;
        match self {
            Self::Bf16 => 2 * weights,
            Self::Fp8 => weights + 4 * out_features,
            Self::Int4 { group } => {
                let group_size = match group {
                    Group::Size(size) => size as u64,
                    Group::Channel => in_features,
                };
                let groups = in_features / group_size * out_features;
                weights / 2 + 2 * groups + groups.div_ceil(2)
            }
        }
    }
}

impl MemoryPlan {
    /// For a model as its checkpoint stores it, and pages that store `kv_dtype`.
    pub fn new(config: &ModelConfig, quantization: &Quantization, kv_dtype: KvDtype) -> Self {
        let dims = config.common();
        let storage = Storage::of(quantization);
        // Vectors of a layer's norms and of the last norm; a layer norm has a weight and a bias.
        let (gated, norms, last_norm) = match config {
            ModelConfig::Llama(_) => (true, 2, 1),
            ModelConfig::Falcon(config) if config.block == FalconBlock::ParallelSharedNorm => (false, 2, 2),
            ModelConfig::Falcon(_) => (false, 4, 2),
        };
        let mut parts = Vec::new();
        let mut part = |name, count: usize, in_features: usize, out_features: usize, storage: Storage| {
            let (count, in_features, out_features) = (count as u64, in_features as u64, out_features as u64);
            let bytes = count * storage.bytes(in_features, out_features);
            let weight_bits = storage.weight_bits();
            parts.push(Part { name, count, in_features, out_features, weight_bits, bytes });
        };
        let (hidden, ffn, layers) = (dims.hidden_size, dims.ffn_hidden_size, dims.layers);
        let (heads, kv) = (dims.query_heads * dims.head_dim, dims.kv_heads * dims.head_dim);
        part("embedding", 1, hidden, dims.vocab_size, Storage::Bf16);
        part("qkv", layers, hidden, heads + 2 * kv, storage);
        part("attention output", layers, heads, hidden, storage);
        match gated {
            true => part("gate and up", layers, hidden, 2 * ffn, storage),
            false => part("up", layers, hidden, ffn, storage),
        }
        part("down", layers, ffn, hidden, storage);
        part("norms", norms * layers + last_norm, 1, hidden, Storage::Bf16);
        if !dims.tie_word_embeddings {
            part("head", 1, hidden, dims.vocab_size, Storage::Bf16);
        }
        Self { parts, kv_bytes_per_token: (2 * layers * kv * kv_dtype.bytes()) as u64 }
    }

    /// All weights.
    pub fn weight_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Tokens of KV cache that fit into `memory` bytes beside the weights and `reserve` bytes, in whole pages.
    pub fn kv_tokens(&self, memory: u64, reserve: u64) -> u64 {
        let left = memory.saturating_sub(self.weight_bytes()).saturating_sub(reserve);
        let page_bytes = self.kv_bytes_per_token * PAGE_SIZE as u64;
        left.checked_div(page_bytes).unwrap_or(0) * PAGE_SIZE as u64
    }

    /// Sequences of `context` tokens that fit into `kv_tokens` tokens of cache. A sequence holds whole pages.
    pub fn sequences(kv_tokens: u64, context: u64) -> u64 {
        let pages = context.div_ceil(PAGE_SIZE as u64).max(1);
        kv_tokens / PAGE_SIZE as u64 / pages
    }
}
