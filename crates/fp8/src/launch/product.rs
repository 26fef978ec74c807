//! The products: both go through cuBLASLt.

use super::ALIGNMENT;
use super::cublaslt::{self, Inputs, Operands, Output, Problem, Scales};
use crate::product::Shape;
use crate::{DenseProduct, Fp8Product};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use device::gpu::check_len;
use device::{Check, E4m3, QuantizedActivation, Result};
use half::bf16;
use std::sync::Arc;

impl Fp8Product {
    /// The product through cuBLASLt, summed in f32.
    ///
    /// - `x` e4m3 `[tokens, in_features]` with its scales; group sums are not used
    /// - `weights` e4m3 `[out_features, in_features]`
    /// - `weight_scales` f32 `[out_features]`
    /// - `bias` bf16 `[out_features]`
    /// - `y` bf16 `[tokens, out_features]`
    ///
    /// Both sizes are multiples of 16, and everything starts at multiples of 16 bytes. The first run with a number of
    /// tokens plans it, which cannot be captured into a graph.
    pub fn launch(
        &self,
        stream: &Arc<CudaStream>,
        x: &QuantizedActivation<impl DevicePtr<E4m3>, impl DevicePtr<f32>>,
        weights: &impl DevicePtr<E4m3>,
        weight_scales: &impl DevicePtr<f32>,
        bias: Option<&impl DevicePtr<bf16>>,
        y: &mut impl DevicePtrMut<bf16>,
    ) -> Result<()> {
        self.run(stream, x, weights, weight_scales, bias, y, Output::Bf16)
    }

    /// As [`Self::launch`], with `y` in f32 and no bias: for logits.
    pub fn launch_f32(
        &self,
        stream: &Arc<CudaStream>,
        x: &QuantizedActivation<impl DevicePtr<E4m3>, impl DevicePtr<f32>>,
        weights: &impl DevicePtr<E4m3>,
        weight_scales: &impl DevicePtr<f32>,
        y: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        self.run(stream, x, weights, weight_scales, None::<&CudaSlice<bf16>>, y, Output::F32)
    }

    fn run<Y>(
        &self,
        stream: &Arc<CudaStream>,
        x: &QuantizedActivation<impl DevicePtr<E4m3>, impl DevicePtr<f32>>,
        weights: &impl DevicePtr<E4m3>,
        weight_scales: &impl DevicePtr<f32>,
        bias: Option<&impl DevicePtr<bf16>>,
        y: &mut impl DevicePtrMut<Y>,
        output: Output,
    ) -> Result<()> {
        self.check_activation(x.shape, x.codes.len(), x.scales.len())?;
        check_len(Self::CHECK, "weight_scales", weight_scales, self.shape.out_features)?;
        let (scale_x, _x) = x.scales.device_ptr(stream);
        let (scale_weights, _weights) = weight_scales.device_ptr(stream);
        aligned(Self::CHECK, "x.scales", scale_x)?;
        aligned(Self::CHECK, "weight_scales", scale_weights)?;
        let scales = Some(Scales { x: scale_x, weights: scale_weights });
        let operands = (&x.codes, weights, bias, y);
        product(Self::CHECK, self.shape, x.shape.tokens, stream, operands, scales, (Inputs::E4m3, output))
    }
}

impl DenseProduct {
    /// The product through cuBLASLt, summed in f32.
    ///
    /// - `x` bf16 `[tokens, in_features]`
    /// - `weights` bf16 `[out_features, in_features]`
    /// - `bias` bf16 `[out_features]`
    /// - `y` bf16 `[tokens, out_features]`
    ///
    /// Both sizes are multiples of 8, and everything starts at multiples of 16 bytes. The first run with a number of tokens
    /// plans it, which cannot be captured into a graph.
    pub fn launch(
        &self,
        stream: &Arc<CudaStream>,
        x: &impl DevicePtr<bf16>,
        weights: &impl DevicePtr<bf16>,
        bias: Option<&impl DevicePtr<bf16>>,
        y: &mut impl DevicePtrMut<bf16>,
    ) -> Result<()> {
        let operands = (x, weights, bias, y);
        product(
            Self::CHECK,
            self.shape,
            self.tokens(x.len())?,
            stream,
            operands,
            None,
            (Inputs::Bf16, Output::Bf16),
        )
    }

    /// As [`Self::launch`], with `y` in f32 and no bias: for logits.
    pub fn launch_f32(
        &self,
        stream: &Arc<CudaStream>,
        x: &impl DevicePtr<bf16>,
        weights: &impl DevicePtr<bf16>,
        y: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let operands = (x, weights, None::<&CudaSlice<bf16>>, y);
        product(
            Self::CHECK,
            self.shape,
            self.tokens(x.len())?,
            stream,
            operands,
            None,
            (Inputs::Bf16, Output::F32),
        )
    }
}

/// Checks what both products share, then multiplies. `operands` are x, weights, bias and y.
fn product<T, Y>(
    check: Check,
    shape: Shape,
    tokens: usize,
    stream: &Arc<CudaStream>,
    operands: (
        &impl DevicePtr<T>,
        &impl DevicePtr<T>,
        Option<&impl DevicePtr<bf16>>,
        &mut impl DevicePtrMut<Y>,
    ),
    scales: Option<Scales>,
    (inputs, output): (Inputs, Output),
) -> Result<()> {
    let (x, weights, bias, y) = operands;
    shape.check(check, tokens, weights.len(), bias.map(|bias| bias.len()), y.len())?;
    let unit = ALIGNMENT as usize / size_of::<T>();
    check.multiple("in_features", shape.in_features, unit)?;
    check.multiple("out_features", shape.out_features, unit)?;
    if tokens == 0 {
        return Ok(());
    }
    let Shape { in_features, out_features } = shape;
    // The guards tell cudarc, when they are dropped behind the product, that the stream uses the slices.
    let (x, _x) = x.device_ptr(stream);
    let (weights, _weights) = weights.device_ptr(stream);
    let (bias, _bias) = bias.map(|bias| bias.device_ptr(stream)).unzip();
    let (y, _y) = y.device_ptr_mut(stream);
    aligned(check, "x", x)?;
    aligned(check, "weights", weights)?;
    bias.map_or(Ok(()), |bias| aligned(check, "bias", bias))?;
    aligned(check, "y", y)?;
    let problem = Problem { inputs, output, tokens, in_features, out_features, bias: bias.is_some() };
    // SAFETY: all operands have the lengths that `problem` says and are aligned, as checked here and by the callers; the
    // slices are borrowed until the product is in the stream, behind which they are freed.
    unsafe { cublaslt::matmul(stream, problem, Operands { x, weights, scales, bias, y }) }
}

fn aligned(check: Check, argument: &'static str, address: u64) -> Result<()> {
    let ok = address.is_multiple_of(ALIGNMENT);
    check.that(
        ok,
        argument,
        format_args!("an address aligned to {ALIGNMENT} bytes"),
        format_args!("{address:#x}"),
    )
}
