//! The tensors of a checkpoint: one safetensors file, or several under an index.

mod dtype;
mod header;
mod index;

pub use dtype::Dtype;

use crate::files::Source;
use crate::{Files, Result, TensorError, limits};
use bytemuck::Pod;
use device::E4m3;
use half::{bf16, f16};
use header::{Header, Located};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Bytes converted at a time.
const CHUNK: usize = 256 << 10;

#[cfg(target_endian = "big")]
compile_error!("safetensors are little endian and are read as they lie");

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
///
/// Data is read by position into the caller's buffers; any number of threads may read at once.
#[derive(Debug)]
pub struct Tensors {
    shards: Vec<Shard>,
    /// (shard, place in its header) of every tensor, sorted by name.
    order: Vec<[u32; 2]>,
}

#[derive(Debug)]
struct Shard {
    source: Source,
    header: Header,
}

impl Tensors {
    /// Opens `model.safetensors`, or the files that `model.safetensors.index.json` names.
    pub fn open(files: &Files) -> Result<Self> {
        let shards = match files.open(SINGLE)? {
            Some(source) => vec![Shard::open(source)?],
            None => match files.read(INDEX, limits::INDEX_BYTES)? {
                Some(bytes) => index::open(files, &files.path(INDEX), &bytes)?,
                None => return Err(TensorError::NoWeights { place: files.place() }.into()),
            },
        };
        let count = shards.iter().map(|shard| shard.header.len()).sum();
        if count > limits::TENSORS {
            return Err(
                TensorError::TooManyTensors { file: files.path(INDEX), limit: limits::TENSORS }.into()
            );
        }
        let mut order = Vec::with_capacity(count);
        for (shard, opened) in shards.iter().enumerate() {
            order.extend((0..opened.header.len()).map(|place| [shard as u32, place as u32]));
        }
        let mut tensors = Self { shards, order: Vec::new() };
        order.sort_unstable_by_key(|&at| tensors.name(at));
        for pair in order.windows(2) {
            if let [first, second] = *pair
                && tensors.name(first) == tensors.name(second)
            {
                let path = |[shard, _]: [u32; 2]| tensors.shards[shard as usize].source.path.clone();
                let tensor = tensors.name(first).to_owned();
                return Err(
                    TensorError::InTwoShards { tensor, first: path(first), second: path(second) }.into()
                );
            }
        }
        tensors.order = order;
        Ok(tensors)
    }

    fn name(&self, [shard, place]: [u32; 2]) -> &str {
        self.shards.get(shard as usize).map_or("", |shard| shard.header.name(place as usize))
    }

    fn find(&self, name: &str) -> Result<(&Source, Located)> {
        let missing = || TensorError::Missing { tensor: name.to_owned() };
        let index = self.order.binary_search_by_key(&name, |&at| self.name(at)).map_err(|_| missing())?;
        let shard = self.order.get(index).and_then(|&[shard, _]| self.shards.get(shard as usize));
        let shard = shard.ok_or_else(missing)?;
        let located = shard.header.find(&shard.source.path, name)?.ok_or_else(missing)?;
        Ok((&shard.source, located))
    }

    /// Every name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.order.iter().map(|&at| self.name(at))
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.order.binary_search_by_key(&name, |&at| self.name(at)).is_ok()
    }

    /// dtype, shape and size.
    pub fn get(&self, name: &str) -> Result<TensorInfo> {
        Ok(self.find(name)?.1.info)
    }

    /// Bytes of all files, headers included.
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.source.len).sum()
    }

    /// The bytes as stored, little endian, row-major.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let (source, at) = self.find(name)?;
        let mut bytes = vec![0; at.info.bytes as usize];
        source.read_at(at.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads `buffer.len()` bytes of a tensor from byte `offset` of it on: loading streams through its own buffers.
    pub fn read_into(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (source, at) = self.find(name)?;
        let (bytes, has) = (buffer.len() as u64, at.info.bytes);
        if offset.checked_add(bytes).is_none_or(|end| end > has) {
            return Err(TensorError::ReadPastEnd { tensor: name.to_owned(), offset, bytes, has }.into());
        }
        source.read_at(at.start + offset, buffer)
    }

    /// A tensor of `shape` from F32, F16 or BF16, widened exactly.
    pub fn f32s(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match self.expect_floats(name, shape)? {
            Dtype::F16 => self.widened(name, f16::to_f32),
            Dtype::Bf16 => self.widened(name, bf16::to_f32),
            _ => self.pods(name, shape, "F32", Dtype::F32),
        }
    }

    /// A tensor of `shape` from F32, F16 or BF16: which of them.
    pub fn expect_floats(&self, name: &str, shape: &[usize]) -> Result<Dtype> {
        self.expect_shape(name, shape)?;
        match self.get(name)?.dtype {
            dtype @ (Dtype::F32 | Dtype::F16 | Dtype::Bf16) => Ok(dtype),
            got => {
                Err(TensorError::Dtype { tensor: name.to_owned(), expected: "F32, F16 or BF16", got }.into())
            }
        }
    }

    /// One number from F32, F16 or BF16, of shape `[]`, `[1]` or `[1, 1]`.
    pub fn scalar(&self, name: &str) -> Result<f32> {
        let shape = self.get(name)?.shape;
        if shape.len() > 2 || shape.iter().any(|&size| size != 1) {
            let (tensor, expected) = (name.to_owned(), "[] or [1]".to_owned());
            return Err(TensorError::Shape { tensor, expected, got: shape }.into());
        }
        Ok(self.f32s(name, &shape)?.iter().sum())
    }

    /// An F16 tensor of `shape`.
    pub fn f16s(&self, name: &str, shape: &[usize]) -> Result<Vec<f16>> {
        self.pods(name, shape, "F16", Dtype::F16)
    }

    /// An I32 tensor of `shape`.
    pub fn i32s(&self, name: &str, shape: &[usize]) -> Result<Vec<i32>> {
        self.pods(name, shape, "I32", Dtype::I32)
    }

    /// An I64 tensor of `shape`.
    pub fn i64s(&self, name: &str, shape: &[usize]) -> Result<Vec<i64>> {
        self.pods(name, shape, "I64", Dtype::I64)
    }

    /// An I8 tensor of `shape`.
    pub fn i8s(&self, name: &str, shape: &[usize]) -> Result<Vec<i8>> {
        self.pods(name, shape, "I8", Dtype::I8)
    }

    /// A U8 tensor of `shape`.
    pub fn u8s(&self, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
        self.pods(name, shape, "U8", Dtype::U8)
    }

    /// An F8_E4M3 tensor of `shape`.
    pub fn e4m3s(&self, name: &str, shape: &[usize]) -> Result<Vec<E4m3>> {
        self.pods(name, shape, "F8_E4M3", Dtype::F8E4m3)
    }

    fn expect_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        let got = self.get(name)?.shape;
        if got != shape {
            let (tensor, expected) = (name.to_owned(), format!("{shape:?}"));
            return Err(TensorError::Shape { tensor, expected, got }.into());
        }
        Ok(())
    }

    /// A tensor of `shape` and of the dtype that is called `expected`.
    pub(crate) fn expect(
        &self,
        name: &str,
        shape: &[usize],
        expected: &'static str,
        dtype: Dtype,
    ) -> Result<()> {
        let got = self.get(name)?.dtype;
        if got != dtype {
            return Err(TensorError::Dtype { tensor: name.to_owned(), expected, got }.into());
        }
        self.expect_shape(name, shape)
    }

    /// Elements as they lie in the file.
    fn pods<T: Pod>(
        &self,
        name: &str,
        shape: &[usize],
        expected: &'static str,
        dtype: Dtype,
    ) -> Result<Vec<T>> {
        self.expect(name, shape, expected, dtype)?;
        let (source, at) = self.find(name)?;
        let mut elements = vec![T::zeroed(); at.info.bytes as usize / size_of::<T>()];
        source.read_at(at.start, bytemuck::cast_slice_mut(&mut elements))?;
        Ok(elements)
    }

    /// Two-byte elements, widened piece by piece.
    fn widened<T: Pod>(&self, name: &str, widen: impl Fn(T) -> f32) -> Result<Vec<f32>> {
        let (source, at) = self.find(name)?;
        let count = at.info.bytes as usize / size_of::<T>();
        let mut elements = Vec::with_capacity(count);
        let mut chunk = vec![T::zeroed(); count.min(CHUNK / size_of::<T>())];
        while elements.len() < count {
            let length = chunk.len().min(count - elements.len());
            let piece = &mut chunk[..length];
            source.read_at(
                at.start + (elements.len() * size_of::<T>()) as u64,
                bytemuck::cast_slice_mut(piece),
            )?;
            elements.extend(piece.iter().map(|&element| widen(element)));
        }
        Ok(elements)
    }
}

impl Shard {
    fn open(source: Source) -> Result<Self> {
        let header = Header::read(&source)?;
        Ok(Self { source, header })
    }
}
