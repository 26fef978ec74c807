//! The products: both go through cuBLASLt.

use super::ALIGNMENT;
use super::cublaslt::{self, Inputs, Operands, Output, Problem, Scales};
use crate::product::Shape;
use crate::{DenseProduct, Fp8Product};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use device::gpu::{Args, Cubin, Kernel, Launch, check_len};
use device::{Check, E4m3, QuantizedActivation, Result};
use half::bf16;
use std::sync::Arc;

static CUBIN: Cubin =
    Cubin::new("product_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/product_sm90.cubin")));
static SCALE_TO_BF16: Kernel = Kernel::new(&CUBIN, "scale_to_bf16");
static SCALE_TO_F32: Kernel = Kernel::new(&CUBIN, "scale_to_f32");

/// Up to so many tokens cuBLASLt is faster without scales (8192 x 28672 on an H200: 65 us against 108 at 16 tokens, 82 against
/// 117 at 192, but 93 against 85 at 224), by more than a kernel that applies them behind it takes. Beyond, the sums' way
/// through memory costs more.
const SCALED_BEHIND: usize = 192;
/// Tokens whose sums are held at a time where scales are applied behind.
const CHUNK: usize = 256;

impl Fp8Product {
    /// The product through cuBLASLt.
    ///
    /// - `x` e4m3 `[tokens, in_features]` with its scales; group sums are not used
    /// - `weights` e4m3 `[out_features, in_features]`
    /// - `weight_scales` f32 `[out_features]`
    /// - `bias` bf16 `[out_features]`
    /// - `y` bf16 `[tokens, out_features]`
    ///
    /// Both sizes are multiples of 16, and everything starts at multiples of 16 bytes. Up to 192 tokens, and with a bias,
    /// sums are promoted to f32 every 128 products; beyond, they stay in the tensor cores' accumulators, of 13 fraction
    /// bits. The first run with a number of tokens plans it, which cannot be captured into a graph.
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
        let scales = Scales { x: scale_x, weights: scale_weights };
        let tokens = x.shape.tokens;
        product(Self::CHECK, self.shape, tokens, stream, (&x.codes, weights, bias, y), |operands| {
            if bias.is_some() || tokens <= SCALED_BEHIND {
                return self.scaled_behind(stream, tokens, operands, scales, output);
            }
            let problem = Problem::new(self.shape, tokens, Inputs::E4m3, output);
            let operands = Operands { scales: Some(scales), ..operands };
            // SAFETY: `product` checked lengths and alignment, and holds the slices meanwhile.
            unsafe { cublaslt::matmul(stream, problem, operands) }
        })
    }

    /// The sums by cuBLASLt, in f32; scales and bias by a kernel behind them.
    fn scaled_behind(
        &self,
        stream: &Arc<CudaStream>,
        tokens: usize,
        operands: Operands,
        scales: Scales,
        output: Output,
    ) -> Result<()> {
        let Shape { in_features, out_features } = self.shape;
        let (kernel, width) = match output {
            Output::Bf16 => (&SCALE_TO_BF16, 2),
            Output::F32 => (&SCALE_TO_F32, 4),
        };
        for first in (0..tokens).step_by(CHUNK) {
            let tokens = CHUNK.min(tokens - first);
            let y = operands.y + (first * out_features * width) as u64;
            // An f32 result holds its own sums.
            let sums = match output {
                Output::Bf16 => cublaslt::scratch(stream, tokens * out_features)?,
                Output::F32 => y,
            };
            let problem = Problem::new(self.shape, tokens, Inputs::E4m3, Output::F32);
            let x = operands.x + (first * in_features) as u64;
            // SAFETY: as in `run`; the scratch has `tokens * out_features` elements.
            unsafe { cublaslt::matmul(stream, problem, Operands { x, y: sums, bias: None, ..operands })? };
            let blocks = [out_features.div_ceil(4 * 256) as u32, tokens as u32];
            let args =
                Args::new(stream).value(sums).value(scales.x + (first * 4) as u64).value(scales.weights);
            let args = args.value(operands.bias.unwrap_or(0)).value(y).value(out_features as u32);
            // SAFETY: the parameters of both kernels. They touch the rows of these tokens, in whole vectors.
            unsafe { kernel.launch(stream, Launch::grid(blocks).block(256).overlapping(), args)? };
        }
        Ok(())
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
        self.run(stream, x, weights, bias, y, Output::Bf16)
    }

    /// As [`Self::launch`], with `y` in f32 and no bias: for logits.
    pub fn launch_f32(
        &self,
        stream: &Arc<CudaStream>,
        x: &impl DevicePtr<bf16>,
        weights: &impl DevicePtr<bf16>,
        y: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        self.run(stream, x, weights, None::<&CudaSlice<bf16>>, y, Output::F32)
    }

    fn run<Y>(
        &self,
        stream: &Arc<CudaStream>,
        x: &impl DevicePtr<bf16>,
        weights: &impl DevicePtr<bf16>,
        bias: Option<&impl DevicePtr<bf16>>,
        y: &mut impl DevicePtrMut<Y>,
        output: Output,
    ) -> Result<()> {
        let tokens = self.tokens(x.len())?;
        product(Self::CHECK, self.shape, tokens, stream, (x, weights, bias, y), |operands| {
            let problem = Problem::new(self.shape, tokens, Inputs::Bf16, output);
            // SAFETY: `product` checked lengths and alignment, and holds the slices meanwhile.
            unsafe { cublaslt::matmul(stream, problem, operands) }
        })
    }
}

/// Checks what both products share, then has `multiply` put the product into the stream. `slices` are x, weights, bias, y.
fn product<T, Y>(
    check: Check,
    shape: Shape,
    tokens: usize,
    stream: &Arc<CudaStream>,
    slices: (
        &impl DevicePtr<T>,
        &impl DevicePtr<T>,
        Option<&impl DevicePtr<bf16>>,
        &mut impl DevicePtrMut<Y>,
    ),
    multiply: impl FnOnce(Operands) -> Result<()>,
) -> Result<()> {
    let (x, weights, bias, y) = slices;
    shape.check(check, tokens, weights.len(), bias.map(|bias| bias.len()), y.len())?;
    let unit = ALIGNMENT as usize / size_of::<T>();
    check.multiple("in_features", shape.in_features, unit)?;
    check.multiple("out_features", shape.out_features, unit)?;
    if tokens == 0 {
        return Ok(());
    }
    // The guards tell cudarc, when they are dropped behind the product, that the stream uses the slices.
    let (x, _x) = x.device_ptr(stream);
    let (weights, _weights) = weights.device_ptr(stream);
    let (bias, _bias) = bias.map(|bias| bias.device_ptr(stream)).unzip();
    let (y, _y) = y.device_ptr_mut(stream);
    aligned(check, "x", x)?;
    aligned(check, "weights", weights)?;
    bias.map_or(Ok(()), |bias| aligned(check, "bias", bias))?;
    aligned(check, "y", y)?;
    multiply(Operands { x, weights, scales: None, bias, y })
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
