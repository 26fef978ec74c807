//! What is accepted at most. Each is far above what real checkpoints need.

/// Bytes of a safetensors header.
pub const HEADER_BYTES: u64 = 100 << 20;
/// Tensors in a checkpoint.
pub const TENSORS: usize = 100_000;
/// Bytes of a tensor's name.
pub const NAME_BYTES: usize = 512;
/// Dimensions of a tensor.
pub const RANK: usize = 8;
/// Files that an index spreads the tensors over.
pub const SHARDS: usize = 512;
/// Bytes of `model.safetensors.index.json`.
pub const INDEX_BYTES: u64 = 32 << 20;
/// Bytes of config.json and its like.
pub const CONFIG_BYTES: u64 = 4 << 20;
/// Bytes of tokenizer.json.
pub const TOKENIZER_BYTES: u64 = 64 << 20;
/// Bytes of a chat template.
pub const TEMPLATE_BYTES: u64 = 256 << 10;
/// Levels of arrays and objects in any JSON file.
pub const JSON_DEPTH: usize = 64;
/// Nested blocks, brackets and operators in a chat template.
pub const TEMPLATE_DEPTH: usize = 100;
/// Instructions that rendering a chat template may take.
pub const TEMPLATE_FUEL: u64 = 50_000_000;
