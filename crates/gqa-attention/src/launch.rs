//! Attention on the device: the crate's only unsafe code.

use crate::Attention;
use crate::attention::CHECK;
use crate::kernels::{AttentionKernel, DECODE_VARIANTS, DecodeVariant, PrefillVariant};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use device::gpu::{
    Args, Launch, check_aligned, check_aligned_mut, check_len, multiprocessors, upload, zeros,
};
use device::{BatchView, Element, KvPages, Result};
use half::bf16;
use std::sync::Arc;

/// `DecodeArgs` of decode_plan.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DecodeArgs {
    query: u64,
    pages: u64,
    block_table: u64,
    context_lens: u64,
    query_starts: u64,
    key_scales: u64,
    value_scales: u64,
    alibi_slopes: u64,
    output: u64,
    log_sum_exp: u64,
    finished: u64,
    parts: u64,
    first_pieces: u64,
    batch: u32,
    query_len: u32,
    kv_heads: u32,
    group_size: u32,
    max_pages: u32,
    window: u32,
    softmax_scale: f32,
    settled: u32,
}

/// Stands where no part has come: `absent` of decode_join.cuh.
const ABSENT: u32 = u32::MAX;

/// What one plan keeps on a device between launches: room for partial results, counters, the slopes of ALiBi. One serves
/// all layers on its stream. After a launch that failed make a new one.
#[derive(Debug)]
pub struct AttentionWorkspace {
    stream: Arc<CudaStream>,
    /// Zero between launches.
    finished: CudaSlice<u32>,
    /// [`ABSENT`] between launches.
    parts: CudaSlice<u32>,
    first_pieces: CudaSlice<f32>,
    alibi_slopes: Option<CudaSlice<f32>>,
    blocks: usize,
}

impl Attention {
    /// Room for launches of this plan on `stream`: 8 to 16 MB on an H200.
    pub fn workspace(&self, stream: &Arc<CudaStream>) -> Result<AttentionWorkspace> {
        let blocks = multiprocessors(stream)? as usize;
        let largest = |floats: fn(&DecodeVariant) -> usize| {
            let variants = DECODE_VARIANTS.iter().filter(|variant| variant.head_dim == self.shape().head_dim);
            blocks * variants.map(floats).max().unwrap_or(0)
        };
        let absent = vec![ABSENT; largest(DecodeVariant::part_floats)];
        let alibi_slopes = match self.alibi_slopes() {
            Some(slopes) => {
                // As the bias rounds them (`device::alibi_bias`).
                let rounded: Vec<f32> = slopes.iter().map(|&slope| bf16::from_f32(slope).to_f32()).collect();
                Some(upload(stream, &rounded, "the slopes of ALiBi")?)
            }
            None => None,
        };
        Ok(AttentionWorkspace {
            stream: stream.clone(),
            finished: zeros(stream, blocks.max(2), "counters of attention")?,
            parts: upload(stream, &absent, "parts of attention")?,
            first_pieces: zeros(stream, largest(DecodeVariant::first_piece_floats), "pieces of attention")?,
            alibi_slopes,
            blocks,
        })
    }

    /// Attention on `stream` over pages of bf16 or e4m3, for `head_dim` 64, 128 or 256 and a scale above 0.
    ///
    /// Reads `queries`, bf16 `[tokens, query_heads, head_dim]`; writes `output`, bf16 of the same shape, and, where wanted,
    /// `log_sum_exp`, f32 `[tokens, query_heads]`. Queries, output and pool start at multiples of 16 bytes. `max_queries`
    /// is the largest number of new tokens that a sequence of the batch is expected to have: it chooses the kernel
    /// ([`Attention::kernel`]), and more than that are served too.
    ///
    /// `tokens` is given by the length of `queries` and may be more than the batch has; rows behind the last sequence's are
    /// left alone. Batch lengths are read as the kernel runs, so a captured graph follows them from replay to replay.
    /// It may overlap the kernel before it (programmatic dependent launch), and load pages while that runs where the plan is
    /// [`AttentionOptions::settled`](crate::AttentionOptions::settled).
    ///
    /// # Safety
    /// The contents of `batch` are on the device and cannot be checked here: [`BatchView::check`] must hold for them,
    /// with the pages of the pool, when the kernel runs, and their last query offset must be at most `tokens`. Where the plan
    /// says that batches are settled, they must be.
    ///
    /// One thing more than it allows may be there: a sequence with a context length of 0 and one query is padding of a captured
    /// step. Its row of the block tables is not read, its query may hold anything, its rows of `output` become zeros and
    /// its log-sum-exp minus infinity.
    pub unsafe fn launch<T: Element>(
        &self,
        stream: &Arc<CudaStream>,
        queries: &impl DevicePtr<bf16>,
        pages: &KvPages<&impl DevicePtr<T>, &impl DevicePtr<f32>>,
        batch: &BatchView<&impl DevicePtr<u32>>,
        max_queries: usize,
        workspace: &mut AttentionWorkspace,
        output: &mut impl DevicePtrMut<bf16>,
        log_sum_exp: Option<&mut impl DevicePtrMut<f32>>,
    ) -> Result<()> {
        let shape = self.shape();
        CHECK.that(matches!(T::NAME, "bf16" | "e4m3"), "pool", "elements of bf16 or e4m3", T::NAME)?;
        let columns = max_queries.saturating_mul(shape.group());
        let decode = DecodeVariant::choose(T::NAME, shape.head_dim, columns)
            .ok_or_else(|| CHECK.error("head_dim", "64, 128 or 256", shape.head_dim))?;
        CHECK.that(self.scale() > 0.0, "scale", "a number above 0", self.scale())?;
        self.check_layout(pages.layout)?;
        pages.layout.pages(CHECK.0, pages.pool.len())?;
        check_len(CHECK, "key_scales", pages.key_scales, shape.kv_heads)?;
        check_len(CHECK, "value_scales", pages.value_scales, shape.kv_heads)?;
        let sequences = batch.context_lens.len();
        check_len(CHECK, "query_offsets", batch.query_offsets, sequences.saturating_add(1))?;
        let entries = CHECK.product("max_pages", &[sequences, batch.max_pages])?;
        check_len(CHECK, "block_tables", batch.block_tables, entries)?;
        let row = shape.query_heads * shape.head_dim;
        let whole = queries.len().is_multiple_of(row);
        CHECK.that(whole, "queries", format_args!("a multiple of {row} elements"), queries.len())?;
        check_len(CHECK, "output", output, queries.len())?;
        if let Some(log_sum_exp) = &log_sum_exp {
            check_len(CHECK, "log_sum_exp", *log_sum_exp, queries.len() / shape.head_dim)?;
        }
        check_aligned(CHECK, "queries", queries, 16, stream)?;
        check_aligned(CHECK, "pool", pages.pool, 16, stream)?;
        check_aligned_mut(CHECK, "output", output, 16, stream)?;
        let own = workspace.stream.cu_stream() == stream.cu_stream();
        CHECK.that(own, "workspace", "one made for this stream", "another stream's")?;
        let room = workspace.parts.len() >= workspace.blocks * decode.part_floats()
            && workspace.alibi_slopes.is_some() == self.alibi_slopes().is_some();
        CHECK.that(room, "workspace", "one made for this plan", "another plan's")?;
        if sequences == 0 || queries.len() == 0 {
            return Ok(());
        }

        let number = |argument, value: usize| {
            u32::try_from(value)
                .map_err(|_| CHECK.error(argument, format_args!("at most {}", u32::MAX), value))
        };
        // The guards say when the stream is done with a slice; they live until the launch.
        let (query, _query) = queries.device_ptr(stream);
        let (pool, _pool) = pages.pool.device_ptr(stream);
        let (block_table, _block_table) = batch.block_tables.device_ptr(stream);
        let (context_lens, _context_lens) = batch.context_lens.device_ptr(stream);
        let (query_starts, _query_starts) = batch.query_offsets.device_ptr(stream);
        let (key_scales, _key_scales) = pages.key_scales.device_ptr(stream);
        let (value_scales, _value_scales) = pages.value_scales.device_ptr(stream);
        let (output, _output) = output.device_ptr_mut(stream);
        let (finished, _finished) = workspace.finished.device_ptr_mut(stream);
        let (parts, _parts) = workspace.parts.device_ptr_mut(stream);
        let (first_pieces, _first_pieces) = workspace.first_pieces.device_ptr_mut(stream);
        let slopes = workspace.alibi_slopes.as_ref().map(|slopes| slopes.device_ptr(stream));
        let log_sum_exp = log_sum_exp.map(|log_sum_exp| log_sum_exp.device_ptr_mut(stream));
        let args = DecodeArgs {
            query,
            pages: pool,
            block_table,
            context_lens,
            query_starts,
            key_scales,
            value_scales,
            alibi_slopes: slopes.as_ref().map_or(0, |slopes| slopes.0),
            output,
            log_sum_exp: log_sum_exp.as_ref().map_or(0, |log_sum_exp| log_sum_exp.0),
            finished,
            parts,
            first_pieces,
            batch: number("context_lens", sequences)?,
            query_len: 0,
            kv_heads: number("kv_heads", shape.kv_heads)?,
            group_size: number("query_heads", shape.group())?,
            max_pages: number("max_pages", batch.max_pages)?,
            // 0 is none, as is a window beyond any context.
            window: self.window().and_then(|window| i32::try_from(window).ok()).unwrap_or(0) as u32,
            softmax_scale: self.scale(),
            settled: u32::from(self.is_settled()),
        };
        let prefill = match self.kernel(sequences, max_queries, workspace.blocks) {
            AttentionKernel::Prefill => PrefillVariant::choose(T::NAME, shape.head_dim),
            AttentionKernel::Decode => None,
        };
        let (kernel, launch) = match prefill {
            Some(prefill) => {
                // Numbers for all tiles of the batch, see first_slot in prefill_tile.cuh; blocks share them out.
                let rows = number("queries", queries.len() / shape.head_dim / shape.kv_heads)?;
                let tiles = number("queries", (rows as usize / prefill.rows() + sequences) * shape.kv_heads)?;
                let blocks = tiles.min(number("workspace", workspace.blocks)?);
                let launch = Launch::grid(blocks).block(prefill.threads());
                (&prefill.kernel, launch.shared(prefill.shared_bytes))
            }
            None => {
                let launch = Launch::grid(number("workspace", workspace.blocks)?).block(decode.threads());
                (&decode.kernel, launch.shared(decode.shared_bytes))
            }
        };
        // SAFETY: the parameter is the kernel's `DecodeArgs`, its addresses are those of slices of this call, whose lengths
        // and alignment were checked above; the workspace has room for a block's partial results on every
        // multiprocessor, and between the launches of its one stream its counters are zero, its parts `ABSENT`. That the batch leads to
        // no other row and no other page is the caller's contract.
        unsafe { kernel.launch(stream, launch.overlapping(), Args::new(stream).structure(&args)) }
    }
}
