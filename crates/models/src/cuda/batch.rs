//! A step on the device: one array of 32-bit indices, copied once, and views into it.

use super::graphs::Key;
use crate::backend::Positions;
use crate::batch::Ragged;
use crate::{Batch as HostBatch, Step};
use cudarc::driver::{CudaStream, CudaView, DeviceSlice};
use device::gpu::{Pinned, Pool, Pooled};
use device::{BatchView, Check, Result};
use std::ops::Range;

/// A checked step whose indices are in [`Indices`].
#[derive(Debug)]
pub struct Batch {
    pub(super) tokens: Range<usize>,
    pub(super) sampled: Range<usize>,
    pub(super) sequences: Sections,
    /// For dynamic rotary scaling: runs of one rotation each, and their frequencies, f32.
    pub(super) rotations: Option<(Sections, Range<usize>)>,
    /// The most new tokens of a sequence.
    pub(super) max_queries: usize,
    /// What a graph can be repeated for; `None` where every step is its own.
    pub(super) key: Option<Key>,
}

/// Where a [`BatchView`] lies in the indices.
#[derive(Debug, Clone)]
pub(super) struct Sections {
    block_tables: Range<usize>,
    max_pages: usize,
    context_lens: Range<usize>,
    query_offsets: Range<usize>,
}

/// The indices of the step at hand: every step writes them anew, at the same place, so that graphs find them.
#[derive(Debug)]
pub(super) struct Indices {
    staging: Pinned<u32>,
    device: Pooled<u32>,
}

/// The device copies start each section at a multiple of 16 bytes.
const ALIGNMENT: usize = 4;

impl Indices {
    pub fn new(pool: &Pool, capacity: usize) -> Result<Self> {
        let staging = Pinned::zeros(pool.stream().context(), capacity)?;
        Ok(Self { staging, device: pool.take(capacity, "indices of a step")? })
    }

    pub fn capacity(&self) -> usize {
        self.device.len()
    }

    /// Copies `indices`, at most [`Self::capacity`] of them.
    pub fn write(&mut self, stream: &CudaStream, indices: &[u32]) -> Result<()> {
        let (len, capacity) = (indices.len(), self.capacity());
        let Some(mut device) = self.device.prefix_mut(len) else {
            return Err(Check("step").error("indices", format_args!("at most {capacity}"), len));
        };
        self.staging.as_mut_slice()?[..len].copy_from_slice(indices);
        self.staging.upload(stream, &mut device)
    }

    pub fn view(&self, section: &Range<usize>) -> Result<CudaView<'_, u32>> {
        let view = self.device.slice(section.clone());
        view.ok_or_else(|| {
            Check("step").error("indices", format_args!("below {}", self.capacity()), section.end)
        })
    }

    /// A section of numbers.
    pub fn floats(&self, section: &Range<usize>) -> Result<CudaView<'_, f32>> {
        // SAFETY: a float is as large as an index, and any bits are one.
        let floats = unsafe { self.view(section)?.transmute(section.len()) };
        floats.ok_or_else(|| Check("step").error("indices", "whole floats", section.len()))
    }
}

impl Sections {
    /// The three views, to be borrowed as a [`BatchView`].
    pub fn views<'a>(&self, indices: &'a Indices) -> Result<Views<'a>> {
        Ok(Views {
            block_tables: indices.view(&self.block_tables)?,
            max_pages: self.max_pages,
            context_lens: indices.view(&self.context_lens)?,
            query_offsets: indices.view(&self.query_offsets)?,
        })
    }
}

pub(super) struct Views<'a> {
    block_tables: CudaView<'a, u32>,
    max_pages: usize,
    context_lens: CudaView<'a, u32>,
    query_offsets: CudaView<'a, u32>,
}

impl<'a> Views<'a> {
    pub fn batch(&self) -> BatchView<&CudaView<'a, u32>> {
        BatchView {
            block_tables: &self.block_tables,
            max_pages: self.max_pages,
            context_lens: &self.context_lens,
            query_offsets: &self.query_offsets,
        }
    }
}

/// Lays sections of words out one behind the other.
#[derive(Default)]
pub(super) struct Builder {
    pub indices: Vec<u32>,
}

impl Builder {
    pub fn section(&mut self, values: impl IntoIterator<Item = u32>) -> Range<usize> {
        let start = self.indices.len().next_multiple_of(ALIGNMENT);
        self.indices.resize(start, 0);
        self.indices.extend(values);
        start..self.indices.len()
    }

    /// `rows` sequences, those behind the last of one token without a context.
    fn sequences(&mut self, ragged: &Ragged, rows: usize, max_pages: usize) -> Sections {
        let padding = rows - ragged.context_lens.len();
        let last = ragged.query_offsets.last().copied().unwrap_or(0);
        let pages = ragged.block_tables.chunks_exact(ragged.max_pages.max(1));
        let block_tables = pages
            .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, max_pages - ragged.max_pages)));
        Sections {
            block_tables: self.section(block_tables.chain(std::iter::repeat_n(0, padding * max_pages))),
            max_pages,
            context_lens: self
                .section(ragged.context_lens.iter().copied().chain(std::iter::repeat_n(0, padding))),
            query_offsets: self.section(
                ragged.query_offsets.iter().copied().chain((1..=padding as u32).map(|row| last + row)),
            ),
        }
    }
}

/// Sequences of a graph: a step of fewer is padded.
fn padded(sequences: usize) -> usize {
    match sequences {
        0..=8 => sequences.next_power_of_two(),
        9..=64 => sequences.next_multiple_of(8),
        65..=256 => sequences.next_multiple_of(16),
        _ => sequences.next_multiple_of(32),
    }
}

/// Checks `step`, lays it out and gives its indices beside it.
pub(super) fn lay_out(
    step: &Step<'_>,
    pages: usize,
    positions: &Positions,
    cache: u64,
) -> Result<(Batch, Vec<u32>)> {
    let host = HostBatch::new(step, pages)?;
    let sequences = step.sequences.len();
    let dynamic = match positions {
        Positions::Rotary(rotary) if rotary.is_dynamic() => Some(rotary),
        _ => None,
    };
    // A step of decodes is repeated with other contents; one with a prompt in it hardly ever comes again.
    let decodes = sequences > 0 && host.tokens.len() == sequences && host.sampled.len() == sequences;
    let key = (decodes && dynamic.is_none()).then(|| Key {
        cache,
        sequences: padded(sequences),
        max_pages: host.sequences.max_pages.next_power_of_two(),
    });
    let (rows, max_pages) = match &key {
        Some(key) => (key.sequences, key.max_pages),
        None => (sequences, host.sequences.max_pages),
    };
    let padding = rows - sequences;
    let mut builder = Builder::default();
    let tokens = builder.section(host.tokens.iter().copied().chain(std::iter::repeat_n(0, padding)));
    let padding_rows = (0..padding).map(|row| host.tokens.len() + row);
    let sampled = builder.section(host.sampled.iter().copied().chain(padding_rows).map(|row| row as u32));
    let ragged = builder.sequences(&host.sequences, rows, max_pages);
    let rotations = match dynamic {
        None => None,
        Some(rotary) => {
            let (runs, context_lens) = host.rotary_runs();
            let sections = builder.sequences(&runs, runs.context_lens.len(), runs.max_pages);
            let frequencies = context_lens.iter().flat_map(|&len| rotary.inverse_frequencies(len));
            Some((sections, builder.section(frequencies.map(f32::to_bits))))
        }
    };
    let max_queries = step.sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0);
    Ok((Batch { tokens, sampled, sequences: ragged, rotations, max_queries, key }, builder.indices))
}

#[cfg(test)]
mod tests {
    use super::padded;

    #[test]
    fn padding_costs_less_than_a_quarter_beyond_eight() {
        for sequences in 1..3000 {
            let rows = padded(sequences);
            assert!(rows >= sequences && padded(rows) == rows);
            assert!(sequences <= 8 || rows - sequences < 8.max(sequences / 4), "{sequences}: {rows}");
        }
    }
}
