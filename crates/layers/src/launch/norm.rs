//! Norms: which kernel runs, and over what.

use super::{
    THREAD_FEATURES, VECTOR, aligned, aligned_mut, as_u32, check_quantized, optional_aligned, threads,
};
use crate::{Norm, NormKind};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use device::gpu::{Args, Cubin, Kernel, Launch};
use device::{E4m3, QuantizedActivation, Result};
use half::bf16;
use std::sync::Arc;

static CUBIN: Cubin = Cubin::new("norm_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/norm_sm90.cubin")));

/// Plain and quantizing kernels of a norm, by the number of deltas.
struct Kernels {
    plain: [Kernel; 3],
    quantize: [Kernel; 3],
}

impl Kernels {
    const fn new(plain: [&'static str; 3], quantize: [&'static str; 3]) -> Self {
        let [p0, p1, p2] = plain;
        let [q0, q1, q2] = quantize;
        Self {
            plain: [Kernel::new(&CUBIN, p0), Kernel::new(&CUBIN, p1), Kernel::new(&CUBIN, p2)],
            quantize: [Kernel::new(&CUBIN, q0), Kernel::new(&CUBIN, q1), Kernel::new(&CUBIN, q2)],
        }
    }
}

static RMS: Kernels = Kernels::new(
    ["rms_norm_0", "rms_norm_1", "rms_norm_2"],
    ["rms_norm_quantize_0", "rms_norm_quantize_1", "rms_norm_quantize_2"],
);
static LAYER: Kernels = Kernels::new(
    ["layer_norm_0", "layer_norm_1", "layer_norm_2"],
    ["layer_norm_quantize_0", "layer_norm_quantize_1", "layer_norm_quantize_2"],
);

/// Features of the longest row that one block holds.
const MAX_FEATURES: usize = 1024 * THREAD_FEATURES;

impl Norm {
    /// [`Self::reference`] on the device: `deltas`, `residual` and `output` bf16 `[tokens, features]`, `weight` and `bias`
    /// f32 `[features]`. The sum is rounded to bf16, stored, and the norm is that of the rounded sum.
    ///
    /// `features` is a multiple of 8 and at most 32768; every slice starts at a multiple of 16 bytes.
    pub fn launch<W: DevicePtr<f32>>(
        &self,
        stream: &Arc<CudaStream>,
        weight: &W,
        bias: Option<&W>,
        deltas: &[&impl DevicePtr<bf16>],
        residual: &mut impl DevicePtrMut<bf16>,
        output: &mut impl DevicePtrMut<bf16>,
    ) -> Result<()> {
        let check = self.check();
        let launch = self.check_device(stream, weight, bias, deltas, residual)?;
        crate::rows::len(check, "output", output.len(), residual.len())?;
        aligned_mut(check, "output", output, stream)?;
        let kernel = &self.kernels().plain[deltas.len()];
        let args = self.args(stream, weight, bias, deltas, residual)?.output(output);
        // SAFETY: the parameters of the six plain kernels, of which each reads as many deltas as there are. Block t touches
        // row t of deltas, residual and output, whose lengths were checked; rows are whole vectors and start aligned.
        unsafe { kernel.launch(stream, launch, args) }
    }

    /// [`Self::reference_quantized`] on the device, shapes and dtypes as in [`Self::launch`].
    ///
    /// `output.shape.group_size` is 0 or a power of two from 8 to 256; the codes start at a multiple of 16 bytes.
    pub fn launch_quantized<W: DevicePtr<f32>>(
        &self,
        stream: &Arc<CudaStream>,
        weight: &W,
        bias: Option<&W>,
        deltas: &[&impl DevicePtr<bf16>],
        residual: &mut impl DevicePtrMut<bf16>,
        output: &mut QuantizedActivation<impl DevicePtrMut<E4m3>, impl DevicePtrMut<f32>>,
    ) -> Result<()> {
        let launch = self.check_device(stream, weight, bias, deltas, residual)?;
        let tokens = residual.len() / self.features;
        let group_lanes = check_quantized(self.check(), output, tokens, self.features, stream)?;
        let kernel = &self.kernels().quantize[deltas.len()];
        let args = self.args(stream, weight, bias, deltas, residual)?;
        let args = args.output(&mut output.codes).output(&mut output.scales).output(&mut output.group_sums);
        let args = args.value(group_lanes);
        // SAFETY: as in `launch`, with the parameters of the six quantizing kernels. Block t writes row t of the codes,
        // scale t, and row t of the group sums where there are groups.
        unsafe { kernel.launch(stream, launch, args) }
    }

    fn kernels(&self) -> &'static Kernels {
        match self.kind {
            NormKind::Rms => &RMS,
            NormKind::Layer => &LAYER,
        }
    }

    /// All but the output; there are at most two deltas behind this.
    fn check_device<W: DevicePtr<f32>>(
        &self,
        stream: &CudaStream,
        weight: &W,
        bias: Option<&W>,
        deltas: &[&impl DevicePtr<bf16>],
        residual: &mut impl DevicePtrMut<bf16>,
    ) -> Result<Launch> {
        let check = self.check();
        let lens = deltas.iter().map(|delta| delta.len());
        let tokens = self.check_lens(weight.len(), bias.map(|bias| bias.len()), lens, residual.len())?;
        check.multiple("features", self.features, VECTOR)?;
        let expected = format_args!("at most {MAX_FEATURES}");
        check.that(self.features <= MAX_FEATURES, "features", expected, self.features)?;
        aligned(check, "weight", weight, stream)?;
        optional_aligned(check, "bias", bias, stream)?;
        deltas.iter().try_for_each(|&delta| aligned(check, "deltas", delta, stream))?;
        aligned_mut(check, "residual", residual, stream)?;
        let blocks = as_u32(check, "residual", tokens)?;
        Ok(Launch::grid(blocks).block(threads(self.features)).overlapping())
    }

    /// What all twelve kernels begin with.
    fn args<'a, W: DevicePtr<f32>>(
        &self,
        stream: &'a CudaStream,
        weight: &'a W,
        bias: Option<&'a W>,
        deltas: &[&'a impl DevicePtr<bf16>],
        residual: &'a mut impl DevicePtrMut<bf16>,
    ) -> Result<Args<'a>> {
        let args = Args::new(stream).output(residual);
        let args = args.optional_input(deltas.first().copied()).optional_input(deltas.get(1).copied());
        let args = args.input(weight).optional_input(bias);
        Ok(args.value(as_u32(self.check(), "features", self.features)?).value(self.epsilon))
    }
}
