//! Decode attention over paged caches with random contents.

use super::Bench;
use super::products::random;
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use device::gpu::{upload, zeros};
use device::{BatchView, E4m3, Element, KvLayout, KvPages, PAGE_SIZE, Result, random_bits};
use fp8::SyntheticWeights;
use gqa_attention::{Attention, AttentionOptions, AttentionShape, AttentionWorkspace};
use half::bf16;
use std::sync::Arc;

/// The context lengths of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lengths(pub Vec<usize>);

impl Lengths {
    /// `batch` times `context`.
    pub fn equal(batch: usize, context: usize) -> Self {
        Self(vec![context; batch])
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.0.iter().sum()
    }
}

/// `batch` lengths with a long tail (exponential, up to `longest`), `mean` tokens on average.
pub fn ragged(batch: usize, mean: usize, longest: usize, seed: u64) -> Lengths {
    let uniform = |index: u64| ((random_bits(seed, index) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let length = |index: usize| (-uniform(index as u64).ln() * mean as f64) as usize;
    let mut lengths: Vec<usize> = (0..batch).map(|index| length(index).clamp(1, longest)).collect();
    // What the draw and the cut missed is shared out, so that bytes compare with those of equal lengths.
    let (mut sum, wanted) = (lengths.iter().sum::<usize>(), mean.min(longest) * batch);
    while sum != wanted {
        for length in &mut lengths {
            match sum.cmp(&wanted) {
                std::cmp::Ordering::Less if *length < longest => (*length, sum) = (*length + 1, sum + 1),
                std::cmp::Ordering::Greater if *length > 1 => (*length, sum) = (*length - 1, sum - 1),
                _ => {}
            }
        }
    }
    Lengths(lengths)
}

/// What pages are made of.
pub trait Page: Element + DeviceRepr + ValidAsZeroBits {
    /// Fills a pool with random numbers.
    fn fill(synthetic: &SyntheticWeights, stream: &Arc<CudaStream>, pool: &mut CudaSlice<Self>)
    -> Result<()>;
}

impl Page for bf16 {
    fn fill(
        synthetic: &SyntheticWeights,
        stream: &Arc<CudaStream>,
        pool: &mut CudaSlice<Self>,
    ) -> Result<()> {
        synthetic.launch_bf16(stream, pool)
    }
}

impl Page for E4m3 {
    fn fill(
        synthetic: &SyntheticWeights,
        stream: &Arc<CudaStream>,
        pool: &mut CudaSlice<Self>,
    ) -> Result<()> {
        synthetic.launch_e4m3(stream, pool)
    }
}

/// One layer's decode step.
pub struct Decode<T> {
    stream: Arc<CudaStream>,
    attention: Attention,
    layout: KvLayout,
    queries: CudaSlice<bf16>,
    pools: Vec<CudaSlice<T>>,
    scales: CudaSlice<f32>,
    block_tables: CudaSlice<u32>,
    max_pages: usize,
    context_lens: CudaSlice<u32>,
    query_offsets: CudaSlice<u32>,
    workspace: AttentionWorkspace,
    output: CudaSlice<bf16>,
}

impl<T: Page> Decode<T> {
    /// Bytes of keys and values that a launch reads.
    pub fn bytes(shape: AttentionShape, lengths: &Lengths) -> usize {
        2 * shape.kv_heads * shape.head_dim * size_of::<T>() * lengths.tokens()
    }

    /// Multiplications and additions of a launch.
    pub fn operations(shape: AttentionShape, lengths: &Lengths) -> f64 {
        4.0 * (shape.query_heads * shape.head_dim) as f64 * lengths.tokens() as f64
    }

    /// A batch with `copies` copies of its cache.
    pub fn new(bench: &Bench, shape: AttentionShape, lengths: &Lengths, copies: usize) -> Result<Self> {
        let stream = bench.gpu().stream();
        let layout = KvLayout::new(shape.kv_heads, shape.head_dim)?;
        let attention = Attention::new(shape, AttentionOptions::default())?;
        let sequences = lengths.0.len();
        let needs: Vec<usize> = lengths.0.iter().map(|length| length.div_ceil(PAGE_SIZE)).collect();
        let max_pages = needs.iter().copied().max().unwrap_or(0);
        // Sequences that grow side by side take their pages in turn.
        let mut block_tables = vec![0u32; sequences * max_pages];
        let mut pages = 0u32;
        for index in 0..max_pages {
            for sequence in (0..sequences).filter(|&sequence| index < needs[sequence]) {
                block_tables[sequence * max_pages + index] = pages;
                pages += 1;
            }
        }
        let context_lens: Vec<u32> = lengths.0.iter().map(|&length| length as u32).collect();
        let query_offsets: Vec<u32> = (0..=sequences as u32).collect();
        let batch = BatchView {
            block_tables: &block_tables[..],
            max_pages,
            context_lens: &context_lens[..],
            query_offsets: &query_offsets[..],
        };
        batch.check("decode", pages as usize)?;
        let pool = |seed| {
            let mut pool = zeros(stream, pages as usize * layout.page_elements(), "a page pool")?;
            let synthetic = SyntheticWeights::new(layout.page_elements(), pages as usize, seed as u64)?;
            T::fill(&synthetic, stream, &mut pool)?;
            Ok(pool)
        };
        let row = shape.query_heads * shape.head_dim;
        Ok(Self {
            stream: stream.clone(),
            layout,
            queries: random(bench, sequences * row, row)?,
            pools: (0..copies).map(pool).collect::<Result<_>>()?,
            scales: upload(stream, &vec![1.0; shape.kv_heads], "scales")?,
            block_tables: upload(stream, &block_tables, "block tables")?,
            max_pages,
            context_lens: upload(stream, &context_lens, "context lengths")?,
            query_offsets: upload(stream, &query_offsets, "query offsets")?,
            workspace: attention.workspace(stream)?,
            output: zeros(stream, sequences * row, "output")?,
            attention,
        })
    }

    /// One launch on copy number `copy`.
    pub fn launch(&mut self, copy: usize) -> Result<()> {
        let pages = KvPages {
            layout: self.layout,
            pool: &self.pools[copy],
            key_scales: &self.scales,
            value_scales: &self.scales,
        };
        let batch = BatchView {
            block_tables: &self.block_tables,
            max_pages: self.max_pages,
            context_lens: &self.context_lens,
            query_offsets: &self.query_offsets,
        };
        let (output, workspace) = (&mut self.output, &mut self.workspace);
        let no_log_sum_exp = None::<&mut CudaSlice<f32>>;
        // SAFETY: the batch was checked against the pool's pages before it was uploaded, and its last query offset is the
        // number of sequences, as many as there are rows of queries.
        unsafe {
            self.attention.launch(
                &self.stream,
                &self.queries,
                &pages,
                &batch,
                1,
                workspace,
                output,
                no_log_sum_exp,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_lengths_have_their_mean_and_a_long_tail() {
        let Lengths(lengths) = ragged(192, 1152, 8192, 7);
        assert_eq!(lengths.iter().sum::<usize>(), 192 * 1152);
        assert!(lengths.iter().all(|length| (1..=8192).contains(length)));
        // An exponential has its longest of 192 at about ln(192) = 5.3 times the mean, and 37% above the mean.
        assert!(lengths.iter().any(|&length| length > 3 * 1152));
        let above = lengths.iter().filter(|&&length| length > 1152).count();
        assert!((40..100).contains(&above), "{above}");
        assert_eq!(ragged(192, 1152, 8192, 7).0, lengths);
    }
}
