//! The steps of a decoder at the granularity of the fused op, and what it takes to hold a model.

use crate::load::{EmbeddingSource, LinearSource};
use crate::step::Step;
use crate::synthetic::SyntheticLinear;
use crate::weights::LinearWeights;
use device::Result;
use kv_cache::CopyPage;
use layers::{Activation, NormKind};

/// What a model is assembled from. `falcon.rs` and `llama.rs` are written once against it.
///
/// A method that feeds a linear layer takes that layer as `into`: the backend then hands the activation over in the
/// form the layer reads (as it is, or quantized to e4m3 with its scales and group sums) without a pass of its own.
pub trait Backend {
    /// An activation `[tokens, features]` at the model's precision.
    type Tensor;
    /// An activation in the form that some linear layer reads.
    type Input;
    /// Scores of every token of the vocabulary, `[rows, vocab_size]`.
    type Logits;
    /// A linear layer, repacked for this backend.
    type Linear;
    /// The weights of a norm.
    type Norm;
    /// An embedding table.
    type Embedding;
    /// The KV pages of all layers.
    type Cache;
    /// A [`Step`] as this backend reads it: token ids, positions, block tables.
    type Batch;

    /// Takes over a linear layer's weights.
    fn load_linear(&self, weights: LinearWeights) -> Result<Self::Linear>;
    /// Takes over a norm's weights.
    fn load_norm(&self, weights: NormWeights) -> Result<Self::Norm>;
    /// Takes over an embedding table, f32 `[vocab_size, features]`.
    fn load_embedding(&self, rows: Vec<f32>, features: usize) -> Result<Self::Embedding>;
    /// Brings a linear layer over from a checkpoint: [`Self::load_linear`], but for backends that have a shorter way.
    fn read_linear(&self, source: &LinearSource<'_>) -> crate::Result<Self::Linear> {
        Ok(self.load_linear(source.weights()?)?)
    }
    /// Brings an embedding table over from a checkpoint, likewise.
    fn read_embedding(&self, source: &EmbeddingSource<'_>) -> crate::Result<Self::Embedding> {
        Ok(self.load_embedding(source.values()?, source.features)?)
    }
    /// Makes a linear layer of random weights: those of [`SyntheticLinear::weights`], wherever they are made.
    fn synthetic_linear(&self, synthetic: &SyntheticLinear) -> Result<Self::Linear> {
        self.load_linear(synthetic.weights()?)
    }
    /// Makes a random embedding table `[rows, features]`: that of [`fp8::SyntheticWeights`].
    fn synthetic_embedding(&self, rows: usize, features: usize, seed: u64) -> Result<Self::Embedding> {
        self.load_embedding(crate::synthetic::dense(features, rows, seed)?, features)
    }
    /// A head that shares the embedding's table.
    fn tied_head(&self, embedding: &Self::Embedding) -> Result<Self::Linear>;
    /// `pages` pages of 64 tokens for every layer.
    fn new_cache(&self, spec: &CacheSpec) -> Result<Self::Cache>;

    /// Gives the cache `pages` pages of host memory, in place of those it had, for what is moved out of the device's.
    fn add_host_pages(&self, cache: &mut Self::Cache, pages: usize) -> Result<()>;
    /// Copies pages of all layers, in this order, before the next step.
    fn copy_pages(&self, cache: &mut Self::Cache, copies: &[CopyPage]) -> Result<()>;

    /// Checks a step against the cache and makes it ready.
    fn begin(&self, step: &Step<'_>, cache: &Self::Cache) -> Result<Self::Batch>;
    /// Runs `forward` on `batch`, or repeats what it did for an earlier batch of the same shape, with this one's contents.
    fn run(&self, batch: &Self::Batch, forward: impl FnMut() -> Result<Self::Logits>)
    -> Result<Self::Logits>;
    /// The rows of `table` that the step's tokens name.
    fn embed(&self, table: &Self::Embedding, batch: &Self::Batch) -> Result<Self::Tensor>;
    /// Adds `deltas` to `residual`, then the norm of it.
    fn add_norm(
        &self,
        residual: &mut Self::Tensor,
        deltas: &[Self::Tensor],
        norm: &Self::Norm,
        into: &Self::Linear,
    ) -> Result<Self::Input>;
    /// `input * W^T + bias`.
    fn linear(&self, input: &Self::Input, linear: &Self::Linear) -> Result<Self::Tensor>;
    /// Rotates queries and keys of a fused `[q | k | v]` activation, appends keys and values to the pages of `layer`,
    /// gives the queries.
    fn rope_append(
        &self,
        qkv: &Self::Tensor,
        cache: &mut Self::Cache,
        layer: usize,
        batch: &Self::Batch,
    ) -> Result<Self::Tensor>;
    /// Attention of the queries over the pages of `layer`.
    fn attend(
        &self,
        queries: &Self::Tensor,
        cache: &Self::Cache,
        layer: usize,
        batch: &Self::Batch,
        into: &Self::Linear,
    ) -> Result<Self::Input>;
    /// The activation function, gated where it is a gated one.
    fn activate(&self, x: &Self::Tensor, activation: Activation, into: &Self::Linear) -> Result<Self::Input>;
    /// The rows that a token is to be chosen from: the last new one of each sampled sequence.
    fn sampled_rows(&self, x: &Self::Tensor, batch: &Self::Batch) -> Result<Self::Tensor>;
    /// `input * W^T` of the head, not rounded to the model's precision.
    fn logits(&self, input: &Self::Input, head: &Self::Linear) -> Result<Self::Logits>;
    /// Chooses a token from each row of `logits`, in the order of the step's sampled sequences.
    fn sample(&self, logits: &Self::Logits, step: &Step<'_>) -> Result<Vec<sampling::Sampled>>;
    /// Copies the logits of the step's sampled sequences to the host; rows of padding may follow.
    fn to_host(&self, logits: &Self::Logits) -> Result<Vec<f32>>;
}

/// A norm as it comes from a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct NormWeights {
    /// Which norm.
    pub kind: NormKind,
    /// f32 `[features]`.
    pub weight: Vec<f32>,
    /// f32 `[features]`; only layer norms have one.
    pub bias: Option<Vec<f32>>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// How a KV cache stores its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// 32 bits, exact on the CPU.
    F32,
    /// 16 bits.
    Bf16,
    /// 8 bits with a scale per layer and head.
    Fp8,
}

impl KvDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Fp8 => 1,
        }
    }
}

/// The attention of every layer of a model, and the pages it reads.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheSpec {
    /// Decoder layers.
    pub layers: usize,
    /// Query heads, KV heads, head_dim.
    pub shape: gqa_attention::AttentionShape,
    /// How positions enter.
    pub positions: Positions,
    /// Pages of 64 tokens.
    pub pages: usize,
    /// How elements are stored.
    pub dtype: KvDtype,
    /// What the keys of each layer are divided by when they are stored, f32 `[layers]`.
    pub key_scales: Vec<f32>,
    /// What the values of each layer are divided by when they are stored, f32 `[layers]`.
    pub value_scales: Vec<f32>,
}

/// How a token's position enters attention.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Rotary embedding of queries and keys.
    Rotary(layers::Rotary),
    /// A bias on the scores, f32 slope per query head.
    Alibi(Vec<f32>),
}
