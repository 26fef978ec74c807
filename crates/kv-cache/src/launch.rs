//! The append step and the copies of pages on the device: the crate's only unsafe code.

use crate::append::{CHECK, Lengths};
use crate::{CopyPages, Direction, RopeAppend};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaStream, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice};
use device::gpu::{
    Args, Cubin, DriverResult, Kernel, Launch, Pinned, PinnedCopies, check_aligned, check_aligned_mut,
    check_len,
};
use device::{BatchView, Element, KvPages, Result};
use half::bf16;
use std::sync::Arc;

static CUBIN: Cubin =
    Cubin::new("rope_append_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/rope_append_sm90.cubin")));
static BF16: Kernel = Kernel::new(&CUBIN, "rope_append_bf16");
static E4M3: Kernel = Kernel::new(&CUBIN, "rope_append_e4m3");

/// Threads of a block.
const THREADS: u32 = 256;
/// Blocks that fill a card: a token's work is cut up until there are as many.
const BLOCKS: u32 = 512;

/// `kv_cache::Shape` of rope_append.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    sequences: u32,
    max_pages: u32,
    pages: u32,
    query_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    angles: u32,
    frequency_stride: u32,
}

impl RopeAppend {
    /// The append step on `stream`, for `head_dim` a multiple of 16 up to 256, of which all dims turn or none, and pages of
    /// bf16 or e4m3.
    ///
    /// Reads `qkv`, bf16 `[tokens, (query_heads + 2 kv_heads) * head_dim]`, and `inverse_frequencies`, f32 `[rotary_dim / 2]`
    /// or `[sequences, rotary_dim / 2]`. Writes `queries`, bf16 `[tokens, query_heads, head_dim]`, and the places of the
    /// batch's new tokens in `pages`. Queries, pool and `qkv` start at multiples of 16 bytes.
    ///
    /// `tokens` is given by the length of `qkv` and may be more than the batch has: rows behind the last sequence's are left
    /// alone, as are tokens whose table entry is no page of the pool. So one captured graph serves batches that
    /// change within its sizes. It may overlap the kernel before it (programmatic dependent launch).
    pub fn launch<T: Element>(
        &self,
        stream: &Arc<CudaStream>,
        qkv: &impl DevicePtr<bf16>,
        inverse_frequencies: &impl DevicePtr<f32>,
        batch: &BatchView<&impl DevicePtr<u32>>,
        queries: &mut impl DevicePtrMut<bf16>,
        pages: &mut KvPages<&mut impl DevicePtrMut<T>, &impl DevicePtr<f32>>,
    ) -> Result<()> {
        let kernel = match T::NAME {
            "bf16" => &BF16,
            "e4m3" => &E4M3,
            other => return Err(CHECK.error("pool", "elements of bf16 or e4m3", other)),
        };
        let layout = self.layout();
        let head_dim = layout.head_dim();
        CHECK.multiple("head_dim", head_dim, 16)?;
        CHECK.that(head_dim <= 256, "head_dim", "at most 256", head_dim)?;
        let turns = [0, head_dim].contains(&self.rotary_dim());
        CHECK.that(turns, "rotary_dim", format_args!("0 or {head_dim}"), self.rotary_dim())?;
        self.check_layout(pages.layout)?;
        let pool_pages = layout.pages(CHECK.0, pages.pool.len())?;
        let sequences = batch.context_lens.len();
        let tokens = qkv.len() / self.qkv_features();
        let lengths = Lengths {
            qkv: qkv.len(),
            inverse_frequencies: inverse_frequencies.len(),
            queries: queries.len(),
            key_scales: pages.key_scales.len(),
            value_scales: pages.value_scales.len(),
        };
        self.check(tokens, sequences, lengths)?;
        check_len(CHECK, "query_offsets", batch.query_offsets, sequences.saturating_add(1))?;
        let entries = CHECK.product("max_pages", &[sequences, batch.max_pages])?;
        check_len(CHECK, "block_tables", batch.block_tables, entries)?;
        check_aligned(CHECK, "qkv", qkv, 16, stream)?;
        check_aligned_mut(CHECK, "queries", queries, 16, stream)?;
        check_aligned_mut(CHECK, "pool", pages.pool, 16, stream)?;

        let number = |argument, value: usize| {
            u32::try_from(value)
                .map_err(|_| CHECK.error(argument, format_args!("at most {}", u32::MAX), value))
        };
        let shared_frequencies = inverse_frequencies.len() == self.rotary_dim() / 2;
        let shape = Shape {
            sequences: number("context_lens", sequences)?,
            max_pages: number("max_pages", batch.max_pages)?,
            pages: number("pool", pool_pages)?,
            query_heads: number("query_heads", self.query_heads())?,
            kv_heads: number("kv_heads", layout.kv_heads())?,
            head_dim: head_dim as u32,
            angles: self.rotary_dim() as u32 / 2,
            frequency_stride: if shared_frequencies { 0 } else { self.rotary_dim() as u32 / 2 },
        };
        // Offsets within one token's row are 32-bit numbers. A thread has 16 elements of queries and keys or 2 of values.
        number("query_heads", self.qkv_features())?;
        let value_features = shape.kv_heads * shape.head_dim;
        let units = (self.qkv_features() as u32 - value_features) / 16 + value_features / 2;
        let tokens = number("qkv", tokens)?;
        let grid = [tokens, units.div_ceil(THREADS).min(BLOCKS.div_ceil(tokens.max(1)))];
        let args = Args::new(stream)
            .input(qkv)
            .input(inverse_frequencies)
            .input(batch.block_tables)
            .input(batch.context_lens)
            .input(batch.query_offsets)
            .input(pages.key_scales)
            .input(pages.value_scales)
            .output(queries)
            .output(pages.pool)
            .structure(&shape);
        // SAFETY: the parameters are those of rope_append_*; lengths and alignment were checked above. Row t of the grid
        // reads and writes row t of `qkv` and `queries`. Whatever stands in the batch, the kernel stays inside the tables
        // (a sequence below `sequences`, a page number below `max_pages`) and the pool (a page below `pages`).
        unsafe { kernel.launch(stream, Launch::grid(grid).block(THREADS).overlapping(), args) }
    }
}

impl CopyPages {
    /// Copies pages of all layers on `stream`, without waiting: `pools` a pool for each, `[pages]` of
    /// [`device::KvLayout::page_elements`] elements, `host` `[layers][host pages]` of as many. It cannot be captured into a graph.
    ///
    /// On the stream of the steps the copies are ordered as they must be: behind the step that wrote what goes out, before the one
    /// that reads what comes in or overwrites what went out.
    pub fn launch<T: Element + DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        pools: &mut [CudaViewMut<'_, T>],
        host: &mut Pinned<T>,
    ) -> Result<()> {
        let on_host = self.check_layers(pools.iter().map(DeviceSlice::len), host.len())?;
        host.copies(stream, |copies| {
            let mut layers = pools.iter_mut().enumerate();
            layers.try_for_each(|(layer, pool)| self.copy_layer(stream, pool, copies, layer * on_host))
        })
    }

    /// One layer's, whose pages on the host start at element `on_host`.
    fn copy_layer<T: Element + DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        pool: &mut CudaViewMut<'_, T>,
        copies: &mut PinnedCopies<'_, T>,
        on_host: usize,
    ) -> Result<()> {
        let page = self.layout.page_elements();
        for run in &self.runs {
            let (from, to, len) = (run.from * page, run.to * page, run.pages * page);
            match run.direction {
                Direction::OnDevice if from == to => {}
                Direction::OnDevice => {
                    // Two different pages: one ends before the other starts.
                    let (mut low, mut high) = pool.split_at_mut(from.max(to));
                    let copied = match from < to {
                        true => stream.memcpy_dtod(&low.slice(from..from + len), &mut high.slice_mut(..len)),
                        false => stream.memcpy_dtod(&high.slice(..len), &mut low.slice_mut(to..to + len)),
                    };
                    copied.named("cuMemcpyDtoDAsync")?;
                }
                Direction::ToHost => copies.download(on_host + to, &pool.slice(from..from + len))?,
                Direction::ToDevice => copies.upload(on_host + from, &mut pool.slice_mut(to..to + len))?,
            }
        }
        Ok(())
    }
}
