//! What can be wrong with a safetensors file, its index, or a tensor in it.

use crate::Dtype;

/// A safetensors file or its index is malformed, or a tensor is not what was asked for.
///
/// In every variant `file` is the path, `tensor` the full name (`model.norm.weight`), counts are bytes where they are
/// not said to be something else.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of a variant says what its fields are")]
pub enum TensorError {
    /// No weights at all.
    #[error(
        "{place}: neither model.safetensors nor model.safetensors.index.json; pickled weights (.bin, .pt) are not \
         read, convert them to safetensors"
    )]
    NoWeights { place: String },

    // A file's header.
    /// Shorter than the length that opens every file.
    #[error("{file}: {bytes} bytes, a safetensors file has at least 10; fetch it again")]
    TooShort { file: String, bytes: u64 },
    /// A header over the limit.
    #[error("{file}: header of {header} bytes, the limit is {limit}; not a safetensors file?")]
    HeaderTooLarge { file: String, header: u64, limit: u64 },
    /// A header that does not fit in the file.
    #[error(
        "{file}: header of {header} bytes, but {rest} bytes follow; the file is truncated, fetch it again"
    )]
    HeaderPastEnd { file: String, header: u64, rest: u64 },
    /// A header that is not JSON of the format's form.
    #[error("{file}: malformed header: {message}")]
    Header { file: String, message: String },
    /// Arrays or objects nested deeper than the format has any.
    #[error("{file}: header nested deeper than {limit} levels")]
    HeaderTooDeep { file: String, limit: usize },
    /// More tensors than accepted.
    #[error("{file}: more than {limit} tensors")]
    TooManyTensors { file: String, limit: usize },
    /// A name twice in one header.
    #[error("{file}: tensor {tensor:?} stands twice in the header")]
    Duplicate { file: String, tensor: String },
    /// A name that no checkpoint has.
    #[error("{file}: tensor name {tensor:?}: expected 1 to {limit} bytes, no escapes, no control characters")]
    Name { file: String, tensor: String, limit: usize },
    /// Not an object of dtype, shape and data_offsets.
    #[error("{file}: tensor {tensor:?}: malformed entry: {message}")]
    Entry { file: String, tensor: String, message: String },
    /// A dtype that is not known.
    #[error("{file}: tensor {tensor:?}: unknown dtype {dtype:?}; known: {}", Dtype::names())]
    UnknownDtype { file: String, tensor: String, dtype: String },
    /// A shape whose size overflows.
    #[error("{file}: tensor {tensor:?}: shape {shape:?} overflows")]
    ShapeOverflow { file: String, tensor: String, shape: Vec<u64> },
    /// An end before its begin.
    #[error("{file}: tensor {tensor:?}: data_offsets [{begin}, {end}] run backwards")]
    OffsetsBackwards { file: String, tensor: String, begin: u64, end: u64 },
    /// Offsets that do not agree with shape and dtype.
    #[error(
        "{file}: tensor {tensor:?}: {dtype} of shape {shape:?} takes {expected} bytes, data_offsets give {got}"
    )]
    Size { file: String, tensor: String, dtype: Dtype, shape: Vec<u64>, expected: u64, got: u64 },
    /// Data beyond the end of the file.
    #[error(
        "{file}: tensor {tensor:?} ends at byte {end} of {data} bytes of data; truncated, fetch it again"
    )]
    PastEnd { file: String, tensor: String, end: u64, data: u64 },
    /// Two tensors over the same bytes.
    #[error("{file}: tensors {tensor:?} and {other:?} overlap")]
    Overlap { file: String, tensor: String, other: String },
    /// Bytes between tensors.
    #[error("{file}: {bytes} bytes before tensor {tensor:?} belong to no tensor")]
    Hole { file: String, tensor: String, bytes: u64 },
    /// Bytes after the tensors.
    #[error("{file}: {bytes} bytes after the last tensor belong to no tensor")]
    Trailing { file: String, bytes: u64 },

    // The index over several files.
    /// An index without its map.
    #[error("{file}: weight_map: expected an object of tensor names and file names, got {got}")]
    WeightMap { file: String, got: &'static str },
    /// A value of the map that is no string.
    #[error("{file}: weight_map: tensor {tensor:?}: expected a file name, got {got}")]
    ShardType { file: String, tensor: String, got: &'static str },
    /// A file name that leads out of the folder, or none at all.
    #[error("{file}: weight_map: tensor {tensor:?}: {shard:?} is not a plain .safetensors file name")]
    ShardName { file: String, tensor: String, shard: String },
    /// More files than accepted.
    #[error("{file}: {count} shards, the limit is {limit}")]
    TooManyShards { file: String, count: usize, limit: usize },
    /// A file that the index names is not there.
    #[error("{file}: not found, though model.safetensors.index.json names it; fetch the missing shard")]
    MissingShard { file: String },
    /// A tensor that is not where the index says.
    #[error("{file}: no tensor {tensor:?}, though model.safetensors.index.json places it here")]
    NotInShard { file: String, tensor: String },
    /// A tensor in two files.
    #[error("tensor {tensor:?} stands in {first} and in {second}")]
    InTwoShards { tensor: String, first: String, second: String },

    // A tensor that was asked for.
    /// No tensor of that name.
    #[error("no tensor {tensor:?} in the checkpoint")]
    Missing { tensor: String },
    /// Another dtype.
    #[error("tensor {tensor:?}: expected dtype {expected}, got {got}")]
    Dtype { tensor: String, expected: &'static str, got: Dtype },
    /// Another shape.
    #[error("tensor {tensor:?}: expected shape {expected}, got {got:?}")]
    Shape { tensor: String, expected: String, got: Vec<usize> },
    /// A read beyond a tensor's end.
    #[error("tensor {tensor:?}: {bytes} bytes from byte {offset} on, but it has {has}")]
    ReadPastEnd { tensor: String, offset: u64, bytes: u64, has: u64 },
    /// A scale that is zero, negative, infinite or NaN.
    #[error("tensor {tensor:?}: element {index}: expected a finite scale over 0, got {value}")]
    Scale { tensor: String, index: usize, value: f32 },
    /// A NaN in an FP8 weight.
    #[error("tensor {tensor:?}: element {index} is NaN")]
    Nan { tensor: String, index: usize },
    /// A zero point that does not fit in 4 bits.
    #[error("tensor {tensor:?}: element {index}: expected a zero point from -8 to 7, got {value}")]
    ZeroPoint { tensor: String, index: usize, value: i8 },
    /// weight_shape disagrees with the layer.
    #[error("tensor {tensor:?}: expected the values {expected:?}, got {got:?}")]
    WeightShape { tensor: String, expected: [u64; 2], got: [i64; 2] },
    /// A layer whose features a format cannot hold.
    #[error("linear layer {layer:?}: {format}: expected {argument} a positive multiple of {unit}, got {got}")]
    Features { layer: String, format: &'static str, argument: &'static str, unit: usize, got: usize },
    /// A tensor that says the layer is stored in a way that is not supported.
    #[error("tensor {tensor:?}: {what} is not supported; supported: {supported}")]
    Unsupported { tensor: String, what: &'static str, supported: &'static str },
}
