//! Linear layers of the CUDA backend: their weights on the device, and the form that their inputs come in.

use super::tensor::{Input, Logits, Tensor, quantized};
use super::{Cuda, lock, made};
use crate::cpu::Int4Activations;
use crate::weights::{LinearWeights, Matrix};
use awq_gemm::{DeviceInt4Weights, PackedWeights, W4A8, W4A8Workspace, W4A16, W4A16Workspace};
use bytemuck::Pod;
use cudarc::driver::{CudaSlice, DeviceRepr};
use device::gpu::{download, upload};
use device::{Check, E4m3, Result};
use fp8::{DenseProduct, Fp8Product, Quantize};
use half::bf16;
use layers::{Activate, Activation};
use std::sync::{Arc, Mutex};

/// A linear layer.
pub struct Linear {
    product: Product,
    pub(super) form: Form,
    in_features: usize,
    out_features: usize,
    pub(super) input_multiplier: Option<CudaSlice<f32>>,
}

enum Product {
    Dense {
        plan: DenseProduct,
        weight: Arc<CudaSlice<bf16>>,
        bias: Option<CudaSlice<bf16>>,
    },
    W4A8 {
        plan: W4A8,
        weights: DeviceInt4Weights,
        bias: Option<CudaSlice<f32>>,
    },
    W4A16 {
        plan: W4A16,
        weights: DeviceInt4Weights,
        bias: Option<CudaSlice<f32>>,
    },
    Fp8 {
        plan: Fp8Product,
        codes: CudaSlice<E4m3>,
        row_scales: CudaSlice<f32>,
        bias: Option<CudaSlice<bf16>>,
    },
}

/// A weight matrix on the device.
pub(super) enum DeviceMatrix {
    /// bf16 `[out_features, in_features]`.
    Dense(Arc<CudaSlice<bf16>>),
    /// 4 bits a weight.
    Int4 { weights: DeviceInt4Weights, input_scale: Option<f32> },
    /// e4m3 `[out_features, in_features]`, f32 `[out_features]`.
    Fp8 { codes: CudaSlice<E4m3>, row_scales: Vec<f32>, input_scale: Option<f32> },
}

/// The form that a layer reads its input in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// bf16.
    Plain,
    /// e4m3 with a scale per token.
    PerToken(Quantize),
    /// e4m3 with the checkpoint's one scale.
    Static(Quantize),
}

impl Form {
    fn quantized(in_features: usize, group_size: usize, scale: Option<f32>) -> Result<Self> {
        let plan = match scale {
            Some(scale) => Quantize::with_scale(in_features, scale)?,
            None => Quantize::per_token(in_features)?,
        };
        let plan = if group_size == 0 { plan } else { plan.with_group_sums(group_size)? };
        Ok(if scale.is_some() { Self::Static(plan) } else { Self::PerToken(plan) })
    }
}

impl Linear {
    pub(super) fn new(cuda: &Cuda, weights: LinearWeights) -> Result<Self> {
        let stream = cuda.stream();
        let LinearWeights { in_features, out_features, matrix, bias, input_multiplier } = weights;
        let matrix = match matrix {
            Matrix::Dense(weight) => {
                DeviceMatrix::Dense(Arc::new(upload(stream, &to_bf16(&weight), "bf16 weights")?))
            }
            Matrix::Int4 { weights, input_scale } => {
                let packed = PackedWeights::pack(&weights.for_kernels()?)?;
                DeviceMatrix::Int4 { weights: DeviceInt4Weights::upload(stream, &packed)?, input_scale }
            }
            Matrix::Fp8 { codes, row_scales, input_scale } => {
                let codes = upload(stream, &codes, "FP8 weights")?;
                DeviceMatrix::Fp8 { codes, row_scales, input_scale }
            }
        };
        Self::on_device(cuda, in_features, out_features, matrix, bias, input_multiplier)
    }

    /// A layer whose weights are on the device already.
    pub(super) fn on_device(
        cuda: &Cuda,
        in_features: usize,
        out_features: usize,
        matrix: DeviceMatrix,
        bias: Option<Vec<f32>>,
        input_multiplier: Option<Vec<f32>>,
    ) -> Result<Self> {
        let stream = cuda.stream();
        let wide_bias = |bias: Option<Vec<f32>>| bias.map(|bias| upload(stream, &bias, "a bias")).transpose();
        let narrow_bias =
            |bias: Option<Vec<f32>>| bias.map(|bias| upload(stream, &to_bf16(&bias), "a bias")).transpose();
        let (product, form) = match matrix {
            DeviceMatrix::Dense(weight) => {
                let plan = DenseProduct::new(in_features, out_features)?;
                (Product::Dense { plan, weight, bias: narrow_bias(bias)? }, Form::Plain)
            }
            DeviceMatrix::Int4 { weights, input_scale } => match cuda.int4_activations {
                Int4Activations::Fp8 => {
                    let plan = W4A8::new(weights.shape());
                    made(&mut lock(&cuda.w4a8), || W4A8Workspace::new(stream))?;
                    let form = Form::quantized(in_features, weights.shape().group_size(), input_scale)?;
                    (Product::W4A8 { plan, weights, bias: wide_bias(bias)? }, form)
                }
                Int4Activations::Full => {
                    let plan = W4A16::new(weights.shape());
                    made(&mut lock(&cuda.w4a16), || W4A16Workspace::new(stream))?;
                    (Product::W4A16 { plan, weights, bias: wide_bias(bias)? }, Form::Plain)
                }
            },
            DeviceMatrix::Fp8 { codes, row_scales, input_scale } => {
                let plan = Fp8Product::new(in_features, out_features)?;
                let row_scales = upload(stream, &row_scales, "scales of FP8 weights")?;
                let form = Form::quantized(in_features, 0, input_scale)?;
                (Product::Fp8 { plan, codes, row_scales, bias: narrow_bias(bias)? }, form)
            }
        };
        let input_multiplier = wide_bias(input_multiplier)?;
        Ok(Self { product, form, in_features, out_features, input_multiplier })
    }

    /// Copies everything that the layer keeps on the device to the host: weights in the kernel's order, their scales, the
    /// bias, the multiplier, byte for byte.
    pub fn to_host(&self) -> Result<Vec<u8>> {
        fn bytes<T: DeviceRepr + Pod>(slice: Option<&CudaSlice<T>>) -> Result<Vec<u8>> {
            let Some(slice) = slice else { return Ok(Vec::new()) };
            let host = download(slice.stream(), slice)?;
            Ok(bytemuck::cast_slice(&host).to_vec())
        }
        let mut all = match &self.product {
            Product::Dense { weight, bias, .. } => vec![bytes(Some(weight.as_ref()))?, bytes(bias.as_ref())?],
            Product::W4A8 { weights, bias, .. } | Product::W4A16 { weights, bias, .. } => {
                vec![bytes(Some(weights.bytes()))?, bytes(bias.as_ref())?]
            }
            Product::Fp8 { codes, row_scales, bias, .. } => {
                vec![bytes(Some(codes))?, bytes(Some(row_scales))?, bytes(bias.as_ref())?]
            }
        };
        all.push(bytes(self.input_multiplier.as_ref())?);
        Ok(all.concat())
    }

    /// A plain layer without bias whose weight is shared.
    pub(super) fn shared(weight: Arc<CudaSlice<bf16>>, in_features: usize) -> Result<Self> {
        Check("linear").multiple("weight", weight.len(), in_features)?;
        let out_features = weight.len() / in_features;
        let product =
            Product::Dense { plan: DenseProduct::new(in_features, out_features)?, weight, bias: None };
        Ok(Self { product, form: Form::Plain, in_features, out_features, input_multiplier: None })
    }

    /// Brings `x` into the form that this layer reads.
    pub(super) fn input(&self, cuda: &Cuda, x: Tensor) -> Result<Input> {
        let stream = cuda.stream();
        Check("linear").that(x.features == self.in_features, "x", self.in_features, x.features)?;
        let (identity, multiplier) = (Activation::Identity, self.input_multiplier.as_ref());
        if multiplier.is_some() {
            return self.activate(cuda, &x, identity);
        }
        match self.form {
            Form::Plain => Ok(Input::Plain(x)),
            Form::PerToken(plan) | Form::Static(plan) => {
                let mut output = quantized(cuda.pool(), plan.shape(x.tokens))?;
                plan.launch(stream, &x.values, &mut output)?;
                Ok(Input::Quantized(output))
            }
        }
    }

    /// The activation of `x` times this layer's multiplier, in the form that it reads.
    pub(super) fn activate(&self, cuda: &Cuda, x: &Tensor, activation: Activation) -> Result<Input> {
        let (stream, pool) = (cuda.stream(), cuda.pool());
        let multiplier = self.input_multiplier.as_ref();
        let plan = Activate::new(activation, self.in_features)?;
        if let Form::PerToken(quantize) = self.form {
            let mut output = quantized(pool, quantize.shape(x.tokens))?;
            plan.launch_quantized(stream, &x.values, multiplier, &mut output)?;
            return Ok(Input::Quantized(output));
        }
        let mut output = Tensor::new(pool, x.tokens, self.in_features)?;
        plan.launch(stream, &x.values, multiplier, &mut output.values)?;
        let Form::Static(quantize) = self.form else { return Ok(Input::Plain(output)) };
        let mut codes = quantized(pool, quantize.shape(x.tokens))?;
        quantize.launch(stream, &output.values, &mut codes)?;
        Ok(Input::Quantized(codes))
    }

    /// `input * W^T + bias`.
    pub(super) fn apply(&self, cuda: &Cuda, input: &Input) -> Result<Tensor> {
        let stream = cuda.stream();
        let mut y = Tensor::new(cuda.pool(), input.tokens(), self.out_features)?;
        match (&self.product, input) {
            (Product::Dense { plan, weight, bias }, Input::Plain(x)) => {
                plan.launch(stream, &x.values, weight.as_ref(), bias.as_ref(), &mut y.values)?;
            }
            (Product::W4A8 { plan, weights, bias }, Input::Quantized(x)) => {
                let mut workspace = lock(&cuda.w4a8);
                let workspace = made(&mut workspace, || W4A8Workspace::new(stream))?;
                plan.launch(stream, x, weights, bias.as_ref(), workspace, &mut y.values)?;
            }
            (Product::W4A16 { plan, weights, bias }, Input::Plain(x)) => {
                let mut workspace = lock(&cuda.w4a16);
                let workspace = made(&mut workspace, || W4A16Workspace::new(stream))?;
                plan.launch(stream, &x.values, weights, bias.as_ref(), workspace, &mut y.values)?;
            }
            (Product::Fp8 { plan, codes, row_scales, bias }, Input::Quantized(x)) => {
                plan.launch(stream, x, codes, row_scales, bias.as_ref(), &mut y.values)?;
            }
            (_, input) => return Err(wrong_form(input)),
        }
        Ok(y)
    }

    /// `input * W^T` in f32, with each row's largest.
    pub(super) fn logits(&self, cuda: &Cuda, input: &Input) -> Result<Logits> {
        let (stream, pool) = (cuda.stream(), cuda.pool());
        let (rows, vocab_size) = (input.tokens(), self.out_features);
        let len = Check("logits").product("rows", &[rows, vocab_size])?;
        let mut values = pool.take(len, "logits")?;
        let unbiased = |bias: bool| Check("logits").that(!bias, "bias", "none", "one");
        match (&self.product, input) {
            (Product::Dense { plan, weight, bias }, Input::Plain(x)) => {
                unbiased(bias.is_some())?;
                plan.launch_f32(stream, &x.values, weight.as_ref(), &mut values)?;
            }
            (Product::Fp8 { plan, codes, row_scales, bias }, Input::Quantized(x)) => {
                unbiased(bias.is_some())?;
                plan.launch_f32(stream, x, codes, row_scales, &mut values)?;
            }
            (Product::W4A8 { .. }, Input::Quantized(_)) | (Product::W4A16 { .. }, Input::Plain(_)) => {
                return Err(Check("logits").error("head", "bf16 or FP8 weights", "INT4 weights"));
            }
            (_, input) => return Err(wrong_form(input)),
        }
        let mut tokens = pool.take(rows, "sampled tokens")?;
        sampling::Argmax::new(vocab_size)?.launch(stream, &values, &mut tokens)?;
        Ok(Logits { values: Mutex::new(values), tokens, vocab_size })
    }
}

impl Input {
    fn tokens(&self) -> usize {
        match self {
            Self::Plain(x) => x.tokens,
            Self::Quantized(x) => x.shape.tokens,
        }
    }
}

fn wrong_form(input: &Input) -> device::Error {
    let (expected, got) = match input {
        Input::Plain(_) => ("a quantized one", "a plain one"),
        Input::Quantized(_) => ("a plain one", "a quantized one"),
    };
    Check("linear").error("input", expected, got)
}

/// Rounded to nearest, ties to even.
pub(super) fn to_bf16(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&x| bf16::from_f32(x)).collect()
}
