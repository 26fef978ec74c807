//! The tensors of a checkpoint: one safetensors file, or several under an index.

use crate::{Files, Result};
use device::E4m3;
use half::f16;

/// How elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are safetensors' own")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4m3,
    F8E5m2,
    F8E8m0,
    I16,
    U16,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    I64,
    U64,
    F64,
}

/// What a header says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// How elements are stored.
    pub dtype: Dtype,
    /// Outermost dimension first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Bytes of all elements.
    pub bytes: u64,
}

/// The tensors of a checkpoint. Opening parses and checks every header and reads no data.
#[derive(Debug)]
pub struct Tensors {}

impl Tensors {
    /// Opens `model.safetensors`, or the files that `model.safetensors.index.json` names.
    pub fn open(files: &Files) -> Result<Self> {
        todo!("{files:?}")
    }
    /// Every name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [].into_iter()
    }
    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        todo!("{name}")
    }
    /// dtype, shape and size.
    pub fn get(&self, name: &str) -> Result<TensorInfo> {
        todo!("{name}")
    }
    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        todo!()
    }
    /// The bytes as stored, little endian, row-major.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        todo!("{name}")
    }
    /// Reads `buffer.len()` bytes of a tensor from byte `offset` of it on: loading streams through buffers of its own.
    pub fn read_into(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        todo!("{name} {offset} {buffer:?}")
    }
    /// A tensor of `shape` from f32, f16 or bf16, widened exactly.
    pub fn f32s(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        todo!("{name} {shape:?}")
    }
    /// An F16 tensor of `shape`.
    pub fn f16s(&self, name: &str, shape: &[usize]) -> Result<Vec<f16>> {
        todo!("{name} {shape:?}")
    }
    /// An I32 tensor of `shape`.
    pub fn i32s(&self, name: &str, shape: &[usize]) -> Result<Vec<i32>> {
        todo!("{name} {shape:?}")
    }
    /// A U8 tensor of `shape`.
    pub fn u8s(&self, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
        todo!("{name} {shape:?}")
    }
    /// An F8_E4M3 tensor of `shape`.
    pub fn e4m3s(&self, name: &str, shape: &[usize]) -> Result<Vec<E4m3>> {
        todo!("{name} {shape:?}")
    }
}
