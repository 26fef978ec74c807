//! Rows of a checkpoint's tensors in the order a layer wants them, read piece by piece, on any thread.

use crate::error::{Error, Result};
use checkpoint::{Dtype, TensorError, Tensors};
use half::{bf16, f16};

/// How a tensor's numbers are stored. Those of 16 and 32 bits arrive as bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    Bf16,
    F16,
    F32,
    E4m3,
}

/// Rows of tensors.
pub(super) struct Rows<'a> {
    tensors: &'a Tensors,
    /// Elements of a row.
    columns: usize,
    /// Bytes of an element as it arrives.
    bytes: usize,
    /// By `first`.
    runs: Vec<Run>,
    rows: usize,
}

/// Rows that lie together in a tensor.
#[derive(Debug, Clone)]
struct Run {
    /// The row it starts at.
    first: usize,
    /// The row of the tensor that it starts at.
    source: usize,
    tensor: String,
    /// What is said to be damaged where a number is not finite.
    blamed: String,
    element: Element,
}

impl Element {
    pub fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
            Dtype::F8E4m3 => Self::E4m3,
            _ => Self::F32,
        }
    }
}

impl<'a> Rows<'a> {
    /// All rows of one tensor `shape`, in order.
    pub fn whole(tensors: &'a Tensors, tensor: &str, shape: [usize; 2], element: Element) -> Self {
        let ([rows, columns], blamed) = (shape, tensor.to_owned());
        let tensor = blamed.clone();
        let runs = vec![Run { first: 0, source: 0, tensor, blamed, element }];
        Self { tensors, columns, bytes: 2, runs, rows }
    }

    /// Row i is row `order[i]` of all parts (who is blamed, tensor, element), of which part p starts at row `firsts[p]`.
    pub fn ordered(
        tensors: &'a Tensors,
        columns: usize,
        parts: Vec<(String, String, Element)>,
        firsts: &[usize],
        order: &[usize],
    ) -> Self {
        let bytes = if parts.iter().any(|(.., element)| *element == Element::E4m3) { 1 } else { 2 };
        let mut runs: Vec<Run> = Vec::new();
        let mut next = None;
        for (first, &row) in order.iter().enumerate() {
            let starts_part = firsts.contains(&row);
            if next != Some(row) || starts_part {
                let part = firsts.partition_point(|&first| first <= row).saturating_sub(1);
                if let (Some((blamed, tensor, element)), Some(start)) = (parts.get(part), firsts.get(part)) {
                    let (blamed, tensor, element) = (blamed.clone(), tensor.clone(), *element);
                    runs.push(Run { first, source: row - start, tensor, blamed, element });
                }
            }
            next = Some(row + 1);
        }
        Self { tensors, columns, bytes, runs, rows: order.len() }
    }

    /// Elements of all rows.
    pub fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// Fills `buffer` from byte `offset` of all rows on; both are whole elements.
    pub fn read(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        let row_bytes = (self.columns * self.bytes) as u64;
        while !buffer.is_empty() {
            let row = (offset / row_bytes) as usize;
            let after = self.runs.partition_point(|run| run.first <= row);
            let Some(run) = after.checked_sub(1).and_then(|at| self.runs.get(at)) else { break };
            let end = self.runs.get(after).map_or(self.rows, |run| run.first) as u64 * row_bytes;
            let here = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.len());
            let (piece, rest) = buffer.split_at_mut(here);
            self.read_run(run, offset - run.first as u64 * row_bytes, piece)?;
            offset += here as u64;
            buffer = rest;
        }
        Ok(())
    }

    /// Fills `piece` from byte `offset` of a run on.
    fn read_run(&self, run: &Run, offset: u64, piece: &mut [u8]) -> Result<()> {
        let first = run.source as u64 * self.columns as u64 + offset / self.bytes as u64;
        let finite = match run.element {
            Element::E4m3 => {
                self.tensors.read_into(&run.tensor, first, piece)?;
                return match piece.iter().position(|code| code & 0x7f == 0x7f) {
                    Some(at) => {
                        let (tensor, index) = (run.tensor.clone(), first as usize + at);
                        Err(checkpoint::Error::from(TensorError::Nan { tensor, index }).into())
                    }
                    None => Ok(()),
                };
            }
            Element::Bf16 => {
                self.tensors.read_into(&run.tensor, 2 * first, piece)?;
                halves(piece).fold(true, |finite, (_, bits)| finite & (bits & 0x7f80 != 0x7f80))
            }
            Element::F16 => {
                self.tensors.read_into(&run.tensor, 2 * first, piece)?;
                halves(piece).fold(true, |finite, (bytes, bits)| {
                    bytes.copy_from_slice(&bf16::from_f32(f16::from_bits(bits).to_f32()).to_le_bytes());
                    finite & (bits & 0x7c00 != 0x7c00)
                })
            }
            Element::F32 => {
                let mut wide = vec![0; 2 * piece.len()];
                self.tensors.read_into(&run.tensor, 4 * first, &mut wide)?;
                let wide = wide.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                halves(piece).zip(wide).fold(true, |finite, ((bytes, _), value)| {
                    bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes());
                    finite & value.is_finite()
                })
            }
        };
        if finite { Ok(()) } else { Err(Error::NotFinite { name: run.blamed.clone() }) }
    }
}

/// The 16-bit words of `piece`.
fn halves(piece: &mut [u8]) -> impl Iterator<Item = (&mut [u8; 2], u16)> {
    piece.as_chunks_mut::<2>().0.iter_mut().map(|bytes| {
        let bits = u16::from_le_bytes(*bytes);
        (bytes, bits)
    })
}
