//! Linear layers of the CPU backend, in the formats of checkpoints.

use super::Int4Activations;
use crate::weights::{LinearWeights, Matrix};
use awq_gemm::{W4A8, W4A16};
use device::{Check, E4m3, QuantizedActivation, Result};
use fp8::{DenseProduct, Fp8Product, Quantize};
use std::sync::Arc;

/// A linear layer.
pub struct Linear {
    product: Product,
    /// How the input is quantized, where it is.
    quantize: Option<Quantize>,
    in_features: usize,
    out_features: usize,
    bias: Option<Vec<f32>>,
    input_multiplier: Option<Vec<f32>>,
}

enum Product {
    Dense { plan: DenseProduct, weight: Arc<[f32]> },
    W4A8 { plan: W4A8, weights: awq_gemm::Int4Weights },
    W4A16 { plan: W4A16, weights: awq_gemm::Int4Weights },
    Fp8 { plan: Fp8Product, codes: Vec<E4m3>, row_scales: Vec<f32> },
}

/// An activation in the form that a linear layer reads.
pub enum Input {
    /// f32 `[tokens, in_features]`.
    Plain(Vec<f32>),
    /// e4m3 with its scales.
    Quantized(QuantizedActivation<Vec<E4m3>, Vec<f32>>),
}

impl Linear {
    pub(super) fn new(weights: LinearWeights, int4_activations: Int4Activations) -> Result<Self> {
        let LinearWeights { in_features, out_features, matrix, bias, input_multiplier } = weights;
        let fp8_input = |scale: Option<f32>| match scale {
            Some(scale) => Quantize::with_scale(in_features, scale),
            None => Quantize::per_token(in_features),
        };
        let mut quantize = None;
        let product = match matrix {
            Matrix::Dense(weight) => {
                Product::Dense { plan: DenseProduct::new(in_features, out_features)?, weight: weight.into() }
            }
            Matrix::Int4 { weights, input_scale } => match int4_activations {
                Int4Activations::Fp8 => {
                    quantize = Some(fp8_input(input_scale)?);
                    Product::W4A8 { plan: W4A8::new(weights.shape()), weights }
                }
                Int4Activations::Full => Product::W4A16 { plan: W4A16::new(weights.shape()), weights },
            },
            Matrix::Fp8 { codes, row_scales, input_scale } => {
                quantize = Some(fp8_input(input_scale)?);
                Product::Fp8 { plan: Fp8Product::new(in_features, out_features)?, codes, row_scales }
            }
        };
        Ok(Self { product, quantize, in_features, out_features, bias, input_multiplier })
    }

    /// A plain layer without bias whose weight is shared.
    pub(super) fn dense(weight: Arc<[f32]>, in_features: usize) -> Result<Self> {
        Check("linear").multiple("weight", weight.len(), in_features)?;
        let out_features = weight.len() / in_features;
        let plan = DenseProduct::new(in_features, out_features)?;
        let product = Product::Dense { plan, weight };
        Ok(Self { product, quantize: None, in_features, out_features, bias: None, input_multiplier: None })
    }

    pub(super) fn out_features(&self) -> usize {
        self.out_features
    }

    /// Brings `x`, f32 `[tokens, in_features]`, into the form that this layer reads.
    pub(super) fn input(&self, mut x: Vec<f32>) -> Result<Input> {
        Check("linear").that(
            x.len().is_multiple_of(self.in_features),
            "x",
            format_args!("rows of {}", self.in_features),
            x.len(),
        )?;
        if let Some(multiplier) = &self.input_multiplier {
            for (x, factor) in x.iter_mut().zip(multiplier.iter().cycle()) {
                *x *= factor;
            }
        }
        let Some(quantize) = &self.quantize else { return Ok(Input::Plain(x)) };
        let tokens = x.len() / self.in_features;
        let shape = quantize.shape(tokens);
        let (mut codes, mut scales) = (vec![E4m3::default(); x.len()], vec![0.0; tokens]);
        let mut output = QuantizedActivation {
            shape,
            codes: codes.as_mut_slice(),
            scales: scales.as_mut_slice(),
            group_sums: [].as_mut_slice(),
        };
        quantize.reference(&x, &mut output)?;
        Ok(Input::Quantized(QuantizedActivation { shape, codes, scales, group_sums: Vec::new() }))
    }

    /// `input * W^T + bias`, f32 `[tokens, out_features]`.
    pub(super) fn apply(&self, input: &Input) -> Result<Vec<f32>> {
        let bias = self.bias.as_deref();
        let tokens = match input {
            Input::Plain(x) => x.len() / self.in_features,
            Input::Quantized(x) => x.shape.tokens,
        };
        let mut y = vec![0.0; tokens * self.out_features];
        match (&self.product, input) {
            (Product::Dense { plan, weight }, Input::Plain(x)) => plan.reference(x, weight, bias, &mut y)?,
            (Product::W4A16 { plan, weights }, Input::Plain(x)) => {
                plan.reference(x, weights, bias, &mut y)?
            }
            (Product::W4A8 { plan, weights }, Input::Quantized(x)) => {
                plan.reference(&view(x), weights, bias, &mut y)?;
            }
            (Product::Fp8 { plan, codes, row_scales }, Input::Quantized(x)) => {
                plan.reference(&view(x), codes, row_scales, bias, &mut y)?;
            }
            (_, Input::Plain(_)) => {
                return Err(Check("linear").error("input", "a quantized one", "a plain one"));
            }
            (_, Input::Quantized(_)) => {
                return Err(Check("linear").error("input", "a plain one", "a quantized one"));
            }
        }
        Ok(y)
    }
}

fn view(x: &QuantizedActivation<Vec<E4m3>, Vec<f32>>) -> QuantizedActivation<&[E4m3], &[f32]> {
    QuantizedActivation { shape: x.shape, codes: &x.codes, scales: &x.scales, group_sums: &x.group_sums }
}
