//! The device side: the crate's only unsafe code.

mod batch;

pub use batch::BatchWorkspace;

use crate::Argmax;
use crate::argmax::ARGMAX;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use device::Result;
use device::gpu::{Args, Cubin, Kernel, Launch, multiprocessors};
use half::bf16;
use std::sync::Arc;

static CUBIN: Cubin =
    Cubin::new("argmax_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/argmax_sm90.cubin")));
static ARGMAX_BF16: Kernel = Kernel::new(&CUBIN, "argmax_bf16");
static ARGMAX_F32: Kernel = Kernel::new(&CUBIN, "argmax_f32");

/// Threads of a block.
const THREADS: u32 = 512;
/// Blocks of a cluster, over which a row is spread at most.
const MAX_CLUSTER: usize = 8;

/// A dtype of logits on the device: bf16 or f32.
pub trait Logit: sealed::Logit {}

impl Logit for bf16 {}
impl Logit for f32 {}

mod sealed {
    pub trait Logit {
        fn kernel() -> &'static device::gpu::Kernel;
    }
}

impl sealed::Logit for bf16 {
    fn kernel() -> &'static Kernel {
        &ARGMAX_BF16
    }
}

impl sealed::Logit for f32 {
    fn kernel() -> &'static Kernel {
        &ARGMAX_F32
    }
}

impl Argmax {
    /// [`Self::reference`] on the device: `logits` bf16 or f32 `[rows, vocab_size]`, `tokens` u32 `[rows]`. Rows whose
    /// length is a multiple of 16 bytes are read fastest.
    pub fn launch<T: Logit>(
        &self,
        stream: &Arc<CudaStream>,
        logits: &impl DevicePtr<T>,
        tokens: &mut impl DevicePtrMut<u32>,
    ) -> Result<()> {
        let rows = tokens.len();
        self.check_lens(logits.len(), rows)?;
        let slices = self.slices(multiprocessors(stream)? as usize, rows);
        let blocks = rows.saturating_mul(slices);
        let blocks =
            u32::try_from(blocks).map_err(|_| ARGMAX.error("tokens", "fewer than 2^29 rows", rows))?;
        let launch = Launch::grid(blocks).block(THREADS).cluster(slices as u32).overlapping();
        let args = Args::new(stream).input(logits);
        let args = args.value(self.vocab_size as u32).value(slices as u32).output(tokens);
        // SAFETY: the parameters of both kernels, chosen by the dtype of `logits`. The cluster of row r reads row r, its
        // unaligned ends element by element, and writes token r; the lengths were checked.
        unsafe { T::kernel().launch(stream, launch, args) }
    }

    /// Blocks to a row, a power of two: more while there are multiprocessors to spare and eight vectors for each thread.
    fn slices(&self, multiprocessors: usize, rows: usize) -> usize {
        let fine = |slices: usize| {
            rows * slices <= multiprocessors && self.vocab_size >= slices * THREADS as usize * 8
        };
        [2, 4, MAX_CLUSTER].into_iter().take_while(|&slices| fine(slices)).last().unwrap_or(1)
    }
}
