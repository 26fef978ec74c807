//! Activations: which kernel runs, and over how many blocks a row.

use super::{THREAD_FEATURES, VECTOR, aligned, aligned_mut, as_u32, check_quantized, optional_aligned};
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
static GELU_ROWS_QUANTIZE: Kernel = Kernel::new(&CUBIN, "gelu_rows_quantize");

/// Blocks of a cluster, which is as far as a maximum travels without memory.
const MAX_CLUSTER: usize = 8;
/// Threads of a block at the most: registers allow two of them to a multiprocessor.
const MAX_THREADS: usize = 512;
/// Features that a thread of `gelu_rows_quantize` holds.
const ROWS_THREAD_FEATURES: usize = 2 * THREAD_FEATURES;
/// From so many numbers on, in rows of so many features, the table of `gelu_rows_quantize` is worth its making.
const ROWS_NUMBERS: usize = 3 << 18;
const ROWS_FEATURES: usize = 1 << 14;

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
        let cut = Cut { threads: MAX_THREADS, thread_features: THREAD_FEATURES };
        let slices = self.features.div_ceil(cut.features()).max(self.slices(stream, tokens, cut)?);
        let args = self.args(stream, input, multiplier, slices)?.output(output);
        let launch = self.grid(tokens, slices, cut)?.overlapping();
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
        let most = MAX_CLUSTER * MAX_THREADS * THREAD_FEATURES;
        check.that(self.features <= most, "features", format_args!("at most {most}"), self.features)?;
        let many = tokens.saturating_mul(self.features) >= ROWS_NUMBERS && self.features >= ROWS_FEATURES;
        if self.activation == Activation::Gelu && multiplier.is_none() && many {
            return self.launch_rows(stream, input, tokens, output, group_lanes);
        }
        // Several small blocks to a multiprocessor, as long as four hold a row: large clusters find places late.
        let small = Cut { threads: 256, thread_features: THREAD_FEATURES };
        let cut =
            if self.features <= 4 * small.features() { small } else { Cut { threads: MAX_THREADS, ..small } };
        let slices = self.slices(stream, tokens, cut)?;
        let args = self.args(stream, input, multiplier, slices)?;
        let args = args.output(&mut output.codes).output(&mut output.scales).output(&mut output.group_sums);
        let launch = self.grid(tokens, slices, cut)?.cluster(slices as u32).overlapping();
        // SAFETY: as in `launch`, with the parameters of the quantizing kernels and clusters of one row's blocks,
        // which write row t of the codes, scale t, and row t of the group sums where there are groups.
        unsafe { self.quantizing_kernel().launch(stream, launch, args.value(group_lanes)) }
    }

    /// GELU of `tokens` rows without a multiplier, by as many blocks as there is room for, which go from row to row.
    fn launch_rows(
        &self,
        stream: &Arc<CudaStream>,
        input: &impl DevicePtr<bf16>,
        tokens: usize,
        output: &mut QuantizedActivation<impl DevicePtrMut<E4m3>, impl DevicePtrMut<f32>>,
        group_lanes: u32,
    ) -> Result<()> {
        let cut = Cut { threads: MAX_THREADS, thread_features: ROWS_THREAD_FEATURES };
        let slices = self.slices(stream, tokens, cut)?;
        let room = (2 * multiprocessors(stream)? as usize / slices).max(1);
        let launch = self.grid(tokens.min(room), slices, cut)?.cluster(slices as u32).overlapping();
        let number = |size| as_u32(self.check(), "input", size);
        let args = Args::new(stream).input(input).value(number(self.features)?).value(number(slices)?);
        let args = args.value(number(tokens)?);
        let args = args.output(&mut output.codes).output(&mut output.scales).output(&mut output.group_sums);
        // SAFETY: the kernel's parameters, in clusters of one row's blocks. They touch rows below `tokens` of the input and of
        // the output, whose lengths `launch_quantized` has checked, and group sums where there are groups.
        unsafe { GELU_ROWS_QUANTIZE.launch(stream, launch, args.value(group_lanes)) }
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
    fn slices(&self, stream: &CudaStream, tokens: usize, cut: Cut) -> Result<usize> {
        let multiprocessors = multiprocessors(stream)? as usize;
        let mut slices = self.features.div_ceil(cut.features()).next_power_of_two().min(MAX_CLUSTER);
        let fine = |slices: usize| {
            tokens * slices <= multiprocessors && self.features >= slices * 32 * cut.thread_features
        };
        while slices < MAX_CLUSTER && fine(2 * slices) {
            slices *= 2;
        }
        Ok(slices)
    }

    fn grid(&self, rows: usize, slices: usize, cut: Cut) -> Result<Launch> {
        let blocks = as_u32(self.check(), "input", rows.saturating_mul(slices))?;
        let warps = self.features.div_ceil(slices).div_ceil(32 * cut.thread_features);
        Ok(Launch::grid(blocks).block(32 * warps as u32))
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

/// How rows are cut into slices.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// Of a block, at the most.
    threads: usize,
    thread_features: usize,
}

impl Cut {
    /// Of a block, at the most.
    fn features(self) -> usize {
        self.threads * self.thread_features
    }
}
