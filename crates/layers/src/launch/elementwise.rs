//! The steps without a reduction.

use super::{VECTOR, aligned, aligned_mut, as_u32};
use crate::embedding::EMBEDDING;
use crate::residual::ADD_RESIDUAL;
use crate::rotary::ROTATE;
use crate::{AddResidual, Embedding, Rotate};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use device::Result;
use device::gpu::{Args, Cubin, Kernel, Launch};
use half::bf16;
use std::sync::Arc;

static CUBIN: Cubin =
    Cubin::new("elementwise_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/elementwise_sm90.cubin")));
static EMBED: Kernel = Kernel::new(&CUBIN, "embedding");
static ADD: Kernel = Kernel::new(&CUBIN, "add_residual");
static TURN: Kernel = Kernel::new(&CUBIN, "rotate");

/// Threads of a block.
const THREADS: u32 = 256;

impl Embedding {
    /// [`Self::reference`] on the device: `table` and `output` bf16, `tokens` u32. Ids cannot be checked here: one beyond
    /// the vocabulary gives a row of NaN.
    ///
    /// `features` is a multiple of 8; `table` and `output` start at multiples of 16 bytes.
    pub fn launch(
        &self,
        stream: &Arc<CudaStream>,
        table: &impl DevicePtr<bf16>,
        tokens: &impl DevicePtr<u32>,
        output: &mut impl DevicePtrMut<bf16>,
    ) -> Result<()> {
        self.check_lens(table.len(), tokens.len(), output.len())?;
        EMBEDDING.multiple("features", self.features, VECTOR)?;
        aligned(EMBEDDING, "table", table, stream)?;
        aligned_mut(EMBEDDING, "output", output, stream)?;
        let launch = Launch::grid(as_u32(EMBEDDING, "tokens", tokens.len())?).block(THREADS).overlapping();
        // The kernel's ids and comparison have 32 bits: of 2^32 tokens it refuses the last.
        let vocab_size = u32::try_from(self.vocab_size).unwrap_or(u32::MAX);
        let features = as_u32(EMBEDDING, "features", self.features)?;
        let args =
            Args::new(stream).input(table).input(tokens).value(vocab_size).value(features).output(output);
        // SAFETY: the kernel's parameters. Block t reads id t and, where the table has it, its row, and writes row t of the
        // output; lengths were checked, rows are whole vectors and start aligned.
        unsafe { EMBED.launch(stream, launch, args) }
    }
}

impl AddResidual {
    /// [`Self::reference`] on the device, bf16: the sum is rounded once. Nothing runs where there are no deltas.
    ///
    /// `features` is a multiple of 8; every slice starts at a multiple of 16 bytes.
    pub fn launch(
        &self,
        stream: &Arc<CudaStream>,
        deltas: &[&impl DevicePtr<bf16>],
        residual: &mut impl DevicePtrMut<bf16>,
    ) -> Result<()> {
        self.check_lens(deltas.iter().map(|delta| delta.len()), residual.len())?;
        ADD_RESIDUAL.multiple("features", self.features, VECTOR)?;
        deltas.iter().try_for_each(|&delta| aligned(ADD_RESIDUAL, "deltas", delta, stream))?;
        aligned_mut(ADD_RESIDUAL, "residual", residual, stream)?;
        let Some(&first) = deltas.first() else { return Ok(()) };
        let vectors = residual.len() / VECTOR;
        let blocks = as_u32(ADD_RESIDUAL, "residual", vectors.div_ceil(THREADS as usize))?;
        let args = Args::new(stream).input(first).optional_input(deltas.get(1).copied());
        let args = args.value(vectors as u64).output(residual);
        // SAFETY: the kernel's parameters. Each thread touches its vector of deltas and residual, all of which have
        // `vectors` whole aligned ones.
        unsafe { ADD.launch(stream, Launch::grid(blocks).block(THREADS).overlapping(), args) }
    }
}

impl Rotate {
    /// [`Self::reference`] on the device: `rows` bf16 `[tokens, row_heads, head_dim]`, `positions` u32,
    /// `inverse_frequencies` f32.
    ///
    /// `head_dim` and the number of frequencies are multiples of 8, the latter at most 4096; `rows` starts at a multiple of
    /// 16 bytes.
    pub fn launch(
        &self,
        stream: &Arc<CudaStream>,
        positions: &impl DevicePtr<u32>,
        inverse_frequencies: &impl DevicePtr<f32>,
        rows: &mut impl DevicePtrMut<bf16>,
    ) -> Result<()> {
        let half = inverse_frequencies.len();
        self.check_lens(positions.len(), half, rows.len())?;
        ROTATE.multiple("head_dim", self.head_dim, VECTOR)?;
        ROTATE.multiple("inverse_frequencies", half, VECTOR)?;
        // A cosine and a sine of each in 48 KB of shared memory, with room to spare.
        ROTATE.that(half <= 4096, "inverse_frequencies", "at most 4096 elements", half)?;
        aligned_mut(ROTATE, "rows", rows, stream)?;
        let blocks = as_u32(ROTATE, "positions", positions.len())?;
        let launch = Launch::grid(blocks).block(THREADS).shared(half as u32 * 8).overlapping();
        let args = Args::new(stream).input(positions).input(inverse_frequencies);
        let args = args.value(as_u32(ROTATE, "row_heads", self.row_heads)?);
        let args = args.value(as_u32(ROTATE, "rotated_heads", self.rotated_heads)?);
        let args = args.value(as_u32(ROTATE, "head_dim", self.head_dim)?).value(half as u32).output(rows);
        // SAFETY: the kernel's parameters. Block t reads position t and turns the first heads of row t; lengths were
        // checked, heads and their halves are whole vectors and start aligned.
        unsafe { TURN.launch(stream, launch, args) }
    }
}
