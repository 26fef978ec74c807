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
pub const TEMPLATE_BYTES: u64 = 64 << 10;
/// What rendering a chat template may cost: an instruction or 64 bytes of text are one.
pub const TEMPLATE_FUEL: u64 = 1_000_000;
/// Levels of arrays and objects in any JSON file.
pub const JSON_DEPTH: usize = 64;
