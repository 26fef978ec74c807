//! Attention over paged caches with random contents: queries, keys and values of a deviation of 1.

use super::products::random;
use super::{Bench, Case, Suite};
use crate::{Batch, Work};
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use device::gpu::{upload, zeros};
use device::{
    BatchView, E4m3, Element, KvLayout, KvPages, NEAR_NORMAL_DEVIATION, NEAR_NORMAL_MAX, PAGE_SIZE, Result,
};
use fp8::SyntheticWeights;
use gqa_attention::{Attention, AttentionOptions, AttentionShape, AttentionWorkspace};
use half::bf16;
use serde_json::json;
use std::sync::Arc;

/// Llama-70B's name and heads.
pub const LLAMA: (&str, AttentionShape) =
    ("Llama-70B", AttentionShape { query_heads: 64, kv_heads: 8, head_dim: 128 });
/// Falcon-180B's.
pub const FALCON: (&str, AttentionShape) =
    ("Falcon-180B", AttentionShape { query_heads: 232, kv_heads: 8, head_dim: 64 });

/// What pages are made of.
pub trait Page: Element + DeviceRepr + ValidAsZeroBits {
    /// What random numbers of a pool are multiplied by to deviate by 1.
    const SCALE: f32;

    /// Work with operations on such pages.
    fn operations(work: Work, operations: f64) -> Work;

    /// Fills a pool with random numbers.
    fn fill(synthetic: &SyntheticWeights, stream: &Arc<CudaStream>, pool: &mut CudaSlice<Self>)
    -> Result<()>;
}

impl Page for bf16 {
    const SCALE: f32 = 1.0;

    fn operations(work: Work, operations: f64) -> Work {
        work.bf16(operations)
    }

    fn fill(
        synthetic: &SyntheticWeights,
        stream: &Arc<CudaStream>,
        pool: &mut CudaSlice<Self>,
    ) -> Result<()> {
        synthetic.launch_bf16(stream, pool)
    }
}

impl Page for E4m3 {
    // The largest number is the largest code.
    const SCALE: f32 = NEAR_NORMAL_MAX / E4m3::MAX / NEAR_NORMAL_DEVIATION;

    fn operations(work: Work, operations: f64) -> Work {
        work.fp8(operations)
    }

    fn fill(
        synthetic: &SyntheticWeights,
        stream: &Arc<CudaStream>,
        pool: &mut CudaSlice<Self>,
    ) -> Result<()> {
        synthetic.launch_e4m3(stream, pool)
    }
}

/// Near-normal pages, `SCALE` times which deviates by 1.
pub(super) fn pool<T: Page>(
    bench: &Bench,
    layout: KvLayout,
    pages: usize,
    seed: u64,
) -> Result<CudaSlice<T>> {
    let stream = bench.gpu().stream();
    let elements = pages * layout.page_elements();
    let mut pool = zeros(stream, elements, "a page pool")?;
    // In rows of one feature, whose deviation is 1.
    T::fill(&SyntheticWeights::new(1, elements, seed)?, stream, &mut pool)?;
    Ok(pool)
}

/// A batch on the device. Sequences that grow side by side take their pages in turn.
pub(super) struct DeviceBatch {
    block_tables: CudaSlice<u32>,
    max_pages: usize,
    context_lens: CudaSlice<u32>,
    query_offsets: CudaSlice<u32>,
    /// Of all sequences.
    pub pages: usize,
}

impl DeviceBatch {
    /// Checked against as many pages as it needs.
    pub fn new(bench: &Bench, batch: &Batch) -> Result<Self> {
        let stream = bench.gpu().stream();
        let sequences = batch.context_lens.len();
        let needs: Vec<usize> = batch.context_lens.iter().map(|length| length.div_ceil(PAGE_SIZE)).collect();
        let max_pages = needs.iter().copied().max().unwrap_or(0);
        let mut block_tables = vec![0u32; sequences * max_pages];
        let mut pages = 0u32;
        for index in 0..max_pages {
            for sequence in (0..sequences).filter(|&sequence| index < needs[sequence]) {
                block_tables[sequence * max_pages + index] = pages;
                pages += 1;
            }
        }
        let context_lens: Vec<u32> = batch.context_lens.iter().map(|&length| length as u32).collect();
        let query_offsets: Vec<u32> =
            (0..=sequences).map(|sequence| (sequence * batch.queries) as u32).collect();
        let view = BatchView {
            block_tables: &block_tables[..],
            max_pages,
            context_lens: &context_lens[..],
            query_offsets: &query_offsets[..],
        };
        view.check("a batch to time", pages as usize)?;
        Ok(Self {
            block_tables: upload(stream, &block_tables, "block tables")?,
            max_pages,
            context_lens: upload(stream, &context_lens, "context lengths")?,
            query_offsets: upload(stream, &query_offsets, "query offsets")?,
            pages: pages as usize,
        })
    }

    /// As ops take it.
    pub fn view(&self) -> BatchView<&CudaSlice<u32>> {
        BatchView {
            block_tables: &self.block_tables,
            max_pages: self.max_pages,
            context_lens: &self.context_lens,
            query_offsets: &self.query_offsets,
        }
    }
}

/// One layer's attention.
pub struct Attending<T> {
    stream: Arc<CudaStream>,
    attention: Attention,
    layout: KvLayout,
    queries: CudaSlice<bf16>,
    pools: Vec<CudaSlice<T>>,
    scales: CudaSlice<f32>,
    batch: DeviceBatch,
    max_queries: usize,
    workspace: AttentionWorkspace,
    output: CudaSlice<bf16>,
}

impl<T: Page + 'static> Attending<T> {
    /// Times a batch. A decode step is held against the bytes of keys and values alone, a prefill against its operations too.
    pub fn measure(suite: &mut Suite, model: &str, shape: AttentionShape, name: &str, batch: &Batch) {
        let AttentionShape { query_heads, kv_heads, head_dim } = shape;
        let work = Work::read(2 * kv_heads * head_dim * size_of::<T>() * batch.tokens());
        let operations = 4.0 * (query_heads * head_dim) as f64 * batch.visible_pairs() as f64;
        let (step, work) = match batch.queries {
            1 => ("decode", work),
            _ => ("prefill", T::operations(work, operations)),
        };
        let sizes = json!({ "query_heads": query_heads, "kv_heads": kv_heads, "head_dim": head_dim });
        let case = Case {
            group: format!("{step} {model}, {} pages", T::NAME),
            name: name.to_owned(),
            shape: json!({ "model": sizes, "pages": T::NAME, "batch": batch.json() }),
            work,
            copies: suite.bench().copies(work.bytes as usize),
        };
        let copies = case.copies;
        suite.measure(case, |bench| {
            let mut attending = Self::new(bench, shape, batch, copies)?;
            Ok(move |copy| attending.launch(copy))
        });
    }

    /// A batch with `copies` copies of its cache.
    fn new(bench: &Bench, shape: AttentionShape, batch: &Batch, copies: usize) -> Result<Self> {
        let stream = bench.gpu().stream();
        let layout = KvLayout::new(shape.kv_heads, shape.head_dim)?;
        // As in a step: what is older than the kernel before may be loaded while that runs.
        let options = AttentionOptions { settled: true, ..AttentionOptions::default() };
        let attention = Attention::new(shape, options)?;
        let tokens = batch.context_lens.len() * batch.queries;
        let on_device = DeviceBatch::new(bench, batch)?;
        let pool = |seed| pool(bench, layout, on_device.pages, seed as u64);
        let row = shape.query_heads * shape.head_dim;
        Ok(Self {
            stream: stream.clone(),
            layout,
            queries: random(bench, tokens * row, 1)?,
            pools: (0..copies).map(pool).collect::<Result<_>>()?,
            scales: upload(stream, &vec![T::SCALE; shape.kv_heads], "scales")?,
            batch: on_device,
            max_queries: batch.queries,
            workspace: attention.workspace(stream)?,
            output: zeros(stream, tokens * row, "output")?,
            attention,
        })
    }

    /// One launch on copy number `copy`.
    fn launch(&mut self, copy: usize) -> Result<()> {
        let pages = KvPages {
            layout: self.layout,
            pool: &self.pools[copy],
            key_scales: &self.scales,
            value_scales: &self.scales,
        };
        let (output, workspace) = (&mut self.output, &mut self.workspace);
        let no_log_sum_exp = None::<&mut CudaSlice<f32>>;
        // SAFETY: the batch was checked against the pool's pages before it was uploaded, and its last query offset is
        // the number of rows of queries.
        unsafe {
            self.attention.launch(
                &self.stream,
                &self.queries,
                &pages,
                &self.batch.view(),
                self.max_queries,
                workspace,
                output,
                no_log_sum_exp,
            )
        }
    }
}
