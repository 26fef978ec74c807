//! Activations: which kernel runs, and over how many blocks a row.

use super::{
    THREAD_FEATURES, VECTOR, aligned, aligned_mut, as_u32, check_quantized, optional_aligned, threads,
};
use crate::{Activate, Activation};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use device::gpu::{Args, Cubin, Kernel, Launch, multiprocessors};
use device::{E4m3, QuantizedActivation, Result};
use half::bf16;
use std::sync::Arc;

static CUBIN: Cubin =
    Cubin::new("activation_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/activation_sm90.cubin")));
static SWIGLU: Kernel = Kernel::new(&CUBIN, "swiglu");
static GELU: Kernel = Kernel::new(&CUBIN, "gelu");
static SILU: Kernel = Kernel::new(&CUBIN, "silu");
static IDENTITY: Kernel = Kernel::new(&CUBIN, "identity");
static SWIGLU_QUANTIZE: Kernel = Kernel::new(&CUBIN, "swiglu_quantize");
static GELU_QUANTIZE: Kernel = Kernel::new(&CUBIN, "gelu_quantize");
static SILU_QUANTIZE: Kernel = Kernel::new(&CUBIN, "silu_quantize");
static IDENTITY_QUANTIZE: Kernel = Kernel::new(&CUBIN, "identity_quantize");

/// Features that a block holds: 512 threads, so that registers allow two blocks to a multiprocessor.
const BLOCK_FEATURES: usize = 512 * THREAD_FEATURES;
/// Blocks of a cluster, which is as far as a maximum travels without memory.
const MAX_CLUSTER: usize = 8;

impl Activate {
    /// [`Self::reference`] on the device: `input` and `output` bf16, `multiplier` f32 `[features]`.
    ///
    /// `features` is a multiple of 8; every slice starts at a multiple of 16 bytes.
    pub fn launch(
        &self,
        stream: &Arc<CudaStream>,
        input: &impl DevicePtr<bf16>,
        multiplier: Option<&impl DevicePtr<f32>>,
        output: &mut impl DevicePtrMut<bf16>,
    ) -> Result<()> {
        let check = self.check();
        let tokens = self.check_device(stream, input, multiplier)?;
        crate::rows::len(check, "output", output.len(), tokens * self.features)?;
        aligned_mut(check, "output", output, stream)?;
        let slices = self.features.div_ceil(BLOCK_FEATURES).max(self.slices(stream, tokens)?);
        let args = self.args(stream, input, multiplier, slices)?.output(output);
        let launch = self.grid(tokens, slices)?.overlapping();
        // SAFETY: the parameters of the plain kernels. The blocks of row t touch row t of input and output, whose
        // lengths were checked; rows are whole vectors and start aligned.
        unsafe { self.plain_kernel().launch(stream, launch, args) }
    }

    /// [`Self::reference_quantized`] on the device, shapes and dtypes as in [`Self::launch`].
    ///
    /// `features` is at most 131072; `output.shape.group_size` is 0 or a power of two from 8 to 256; the codes start at a
    /// multiple of 16 bytes.
    pub fn launch_quantized(
        &self,
        stream: &Arc<CudaStream>,
        input: &impl DevicePtr<bf16>,
        multiplier: Option<&impl DevicePtr<f32>>,
        output: &mut QuantizedActivation<impl DevicePtrMut<E4m3>, impl DevicePtrMut<f32>>,
    ) -> Result<()> {
        let check = self.check();
        let tokens = self.check_device(stream, input, multiplier)?;
        let group_lanes = check_quantized(check, output, tokens, self.features, stream)?;
        let most = MAX_CLUSTER * BLOCK_FEATURES;
        check.that(self.features <= most, "features", format_args!("at most {most}"), self.features)?;
        let slices = self.slices(stream, tokens)?;
        let args = self.args(stream, input, multiplier, slices)?;
        let args = args.output(&mut output.codes).output(&mut output.scales).output(&mut output.group_sums);
        let launch = self.grid(tokens, slices)?.cluster(slices as u32).overlapping();
        // SAFETY: as in `launch`, with the parameters of the quantizing kernels and clusters of one row's blocks,
        // which write row t of the codes, scale t, and row t of the group sums where there are groups.
        unsafe { self.quantizing_kernel().launch(stream, launch, args.value(group_lanes)) }
    }

    fn plain_kernel(&self) -> &'static Kernel {
        match self.activation {
            Activation::Swiglu => &SWIGLU,
            Activation::Gelu => &GELU,
            Activation::Silu => &SILU,
            Activation::Identity => &IDENTITY,
        }
    }

    fn quantizing_kernel(&self) -> &'static Kernel {
        match self.activation {
            Activation::Swiglu => &SWIGLU_QUANTIZE,
            Activation::Gelu => &GELU_QUANTIZE,
            Activation::Silu => &SILU_QUANTIZE,
            Activation::Identity => &IDENTITY_QUANTIZE,
        }
    }

    /// The number of tokens, once input and multiplier fit.
    fn check_device(
        &self,
        stream: &CudaStream,
        input: &impl DevicePtr<bf16>,
        multiplier: Option<&impl DevicePtr<f32>>,
    ) -> Result<usize> {
        let check = self.check();
        let tokens = self.check_lens(input.len(), multiplier.map(|multiplier| multiplier.len()))?;
        check.multiple("features", self.features, VECTOR)?;
        aligned(check, "input", input, stream)?;
        optional_aligned(check, "multiplier", multiplier, stream)?;
        Ok(tokens)
    }

    /// Blocks to a row, a power of two up to a cluster: as few as hold it, or more while there are multiprocessors to spare
    /// and each block still has a warp's worth of features.
    fn slices(&self, stream: &CudaStream, tokens: usize) -> Result<usize> {
        let multiprocessors = multiprocessors(stream)? as usize;
        let mut slices = self.features.div_ceil(BLOCK_FEATURES).next_power_of_two().min(MAX_CLUSTER);
        let fine = |slices: usize| {
            tokens * slices <= multiprocessors && self.features >= slices * 32 * THREAD_FEATURES
        };
        while slices < MAX_CLUSTER && fine(2 * slices) {
            slices *= 2;
        }
        Ok(slices)
    }

    fn grid(&self, tokens: usize, slices: usize) -> Result<Launch> {
        let blocks = as_u32(self.check(), "input", tokens.saturating_mul(slices))?;
        Ok(Launch::grid(blocks).block(threads(self.features.div_ceil(slices))))
    }

    /// What all kernels begin with.
    fn args<'a>(
        &self,
        stream: &'a CudaStream,
        input: &'a impl DevicePtr<bf16>,
        multiplier: Option<&'a impl DevicePtr<f32>>,
        slices: usize,
    ) -> Result<Args<'a>> {
        let args = Args::new(stream).input(input).optional_input(multiplier);
        let features = as_u32(self.check(), "features", self.features)?;
        Ok(args.value(features).value(as_u32(self.check(), "features", slices)?))
    }
}
