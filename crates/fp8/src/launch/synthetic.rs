//! Random weights, made where they stay.

use super::ALIGNMENT;
use crate::SyntheticWeights;
use cudarc::driver::{CudaStream, DevicePtrMut};
use device::gpu::{Args, Cubin, Kernel, Launch, check_aligned_mut, check_len};
use device::{E4m3, Result};
use half::bf16;
use std::sync::Arc;

static CUBIN: Cubin =
    Cubin::new("synthetic_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/synthetic_sm90.cubin")));
static BF16: Kernel = Kernel::new(&CUBIN, "synthetic_bf16");
static E4M3: Kernel = Kernel::new(&CUBIN, "synthetic_e4m3");

const THREADS: usize = 256;
/// Elements that a thread makes.
const PER_THREAD: usize = 8;

impl SyntheticWeights {
    /// Fills bf16 `[out_features, in_features]`, bit for bit as [`Self::reference_bf16`] does. It starts at a multiple of
    /// 16 bytes.
    pub fn launch_bf16(&self, stream: &Arc<CudaStream>, weights: &mut impl DevicePtrMut<bf16>) -> Result<()> {
        self.launch(stream, &BF16, "weights", weights, self.deviation())
    }

    /// Fills e4m3 `[out_features, in_features]`, bit for bit as [`Self::reference_e4m3`] does. It starts at a multiple of
    /// 16 bytes.
    pub fn launch_e4m3(&self, stream: &Arc<CudaStream>, codes: &mut impl DevicePtrMut<E4m3>) -> Result<()> {
        self.launch(stream, &E4M3, "codes", codes, Self::CODE_SCALE)
    }

    fn launch<T>(
        &self,
        stream: &Arc<CudaStream>,
        kernel: &Kernel,
        argument: &'static str,
        out: &mut impl DevicePtrMut<T>,
        scale: f32,
    ) -> Result<()> {
        let len = self.out_features * self.in_features;
        check_len(Self::CHECK, argument, out, len)?;
        check_aligned_mut(Self::CHECK, argument, out, ALIGNMENT, stream)?;
        let blocks = len.div_ceil(THREADS * PER_THREAD);
        let blocks = u32::try_from(blocks)
            .map_err(|_| Self::CHECK.error("out_features", "at most 2^42 weights", len))?;
        let args = Args::new(stream).output(out).value(len as u64).value(self.seed).value(scale);
        // SAFETY: the kernel's parameters. It writes the first `len` elements, in whole vectors where all of one lies
        // before the end, at an aligned address; the element type is the caller's choice with the kernel.
        unsafe { kernel.launch(stream, Launch::grid(blocks).block(THREADS as u32), args) }
    }
}
