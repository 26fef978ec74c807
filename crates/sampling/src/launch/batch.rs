//! All options on the device.

use crate::batch::Lens;
use crate::params::SAMPLE;
use crate::{BatchSampler, RowParams, Rows};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, ValidAsZeroBits};
use device::Result;
use device::gpu::{Args, Cubin, Kernel, Launch, zeros};
use std::sync::Arc;

static CUBIN: Cubin =
    Cubin::new("sample_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/sample_sm90.cubin")));
static SAMPLE_F32: Kernel = Kernel::new(&CUBIN, "sample_f32");

/// Threads of a block, which treats a row.
const THREADS: u32 = 1024;

// SAFETY: plain numbers in the order of `RowParams` of sample.cuh, without padding (it is Pod).
unsafe impl DeviceRepr for RowParams {}
// SAFETY: all zeros are valid numbers.
unsafe impl ValidAsZeroBits for RowParams {}

/// `Batch` of sample.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Batch {
    logits: u64,
    saved: u64,
    params: u64,
    history: u64,
    history_offsets: u64,
    prompt_lens: u64,
    bias_tokens: u64,
    bias_values: u64,
    bias_offsets: u64,
    tokens: u64,
    logprobs: u64,
    vocab_size: u32,
    history_len: u32,
    bias_len: u32,
    scale_bits: u32,
}

/// Where the logits of listed tokens are kept while penalties and bias change them.
#[derive(Debug)]
pub struct BatchWorkspace {
    saved: CudaSlice<f32>,
}

impl BatchWorkspace {
    /// Room for `entries` tokens in the lists of history and bias together.
    pub fn new(stream: &Arc<CudaStream>, entries: usize) -> Result<Self> {
        // One more, so that its address is one even where there are no lists.
        Ok(Self { saved: zeros(stream, entries.saturating_add(1), "saved logits of listed tokens")? })
    }
}

impl BatchSampler {
    /// [`Self::reference`] on the device, without waiting for it: it can be captured into a graph.
    ///
    /// - `logits` f32 `[rows, vocab_size]`: changed while rows with penalties or bias are treated, then put back
    /// - `rows` as [`Rows`] says; its lists need a `workspace` of as many entries
    /// - `tokens` u32 `[rows]`, `logprobs` f32 `[rows]`
    ///
    /// A token is that of the reference, by the same random number. Weights are summed as whole multiples of
    /// `2^-(62 - log2(vocab_size))` (rounded up), so that the same call gives the same tokens; where a random number or a share
    /// falls within `vocab_size` times that of a boundary between two tokens (`2^-30` of the sum at 65,536 tokens), the other
    /// one may be chosen.
    pub fn launch(
        &self,
        stream: &Arc<CudaStream>,
        logits: &mut impl DevicePtrMut<f32>,
        rows: &Rows<impl DevicePtr<RowParams>, impl DevicePtr<u32>, impl DevicePtr<f32>>,
        workspace: &mut BatchWorkspace,
        tokens: &mut impl DevicePtrMut<u32>,
        logprobs: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let lens = Lens {
            params: rows.params.len(),
            history: rows.history.len(),
            history_offsets: rows.history_offsets.len(),
            prompt_lens: rows.prompt_lens.len(),
            bias_tokens: rows.bias_tokens.len(),
            bias_values: rows.bias_values.len(),
            bias_offsets: rows.bias_offsets.len(),
        };
        let count = tokens.len();
        self.check(logits.len(), lens, count, logprobs.len())?;
        let entries = lens.history.saturating_add(lens.bias_tokens);
        let room = workspace.saved.len() - 1;
        SAMPLE.that(entries <= room, "workspace", format_args!("room for {entries} entries"), room)?;
        let number = |argument, value: usize| {
            u32::try_from(value).map_err(|_| SAMPLE.error(argument, "fewer than 2^32", value))
        };
        let launch = Launch::grid(number("tokens", count)?).block(THREADS).overlapping();

        // The guards say when the stream is done with a slice; they live until the launch.
        let (logits, _logits) = logits.device_ptr_mut(stream);
        let (saved, _saved) = workspace.saved.device_ptr_mut(stream);
        let (params, _params) = rows.params.device_ptr(stream);
        let (history, _history) = rows.history.device_ptr(stream);
        let (history_offsets, _history_offsets) = rows.history_offsets.device_ptr(stream);
        let (prompt_lens, _prompt_lens) = rows.prompt_lens.device_ptr(stream);
        let (bias_tokens, _bias_tokens) = rows.bias_tokens.device_ptr(stream);
        let (bias_values, _bias_values) = rows.bias_values.device_ptr(stream);
        let (bias_offsets, _bias_offsets) = rows.bias_offsets.device_ptr(stream);
        let (tokens, _tokens) = tokens.device_ptr_mut(stream);
        let (logprobs, _logprobs) = logprobs.device_ptr_mut(stream);
        let batch = Batch {
            logits,
            saved,
            params,
            history,
            history_offsets,
            prompt_lens,
            bias_tokens,
            bias_values,
            bias_offsets,
            tokens,
            logprobs,
            vocab_size: number("vocab_size", self.vocab_size)?,
            history_len: number("rows.history", lens.history)?,
            bias_len: number("rows.bias_tokens", lens.bias_tokens)?,
            scale_bits: 62 - self.vocab_size.next_power_of_two().ilog2(),
        };
        let args = Args::new(stream).structure(&batch);
        // SAFETY: the kernel's parameter, made of slices of this call whose lengths were checked above. The block of row r
        // reads and writes row r of the logits, entry r of the outputs and the row's entries of the lists and of `saved`,
        // which it cuts to the lists' lengths; ids of tokens are compared with the vocabulary before they are used.
        unsafe { SAMPLE_F32.launch(stream, launch, args) }
    }
}
