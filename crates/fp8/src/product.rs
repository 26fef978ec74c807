//! The plans of the two products.

use crate::reference;
use device::{Check, E4m3, Element, QuantizedActivation, Result};

/// The product of e4m3 activations with e4m3 weights:
///
/// ```text
/// y[t][n] = scale_x[t] * scale_w[n] * sum over k of code_x[t][k] * code_w[n][k] + bias[n]
/// ```
///
/// Fused layers whose parts carry scales of their own stay exact: weights have a scale per output feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fp8Product {
    pub(crate) shape: Shape,
}

/// The product of activations with weights that are not quantized:
///
/// ```text
/// y[t][n] = sum over k of x[t][k] * w[n][k] + bias[n]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DenseProduct {
    pub(crate) shape: Shape,
}

impl Fp8Product {
    pub(crate) const CHECK: Check = Check("fp8_product");

    /// Sizes of at least 1.
    pub fn new(in_features: usize, out_features: usize) -> Result<Self> {
        Ok(Self { shape: Shape::new(Self::CHECK, in_features, out_features)? })
    }

    /// The definition, on the CPU. Products of e4m3 are exact and so is their f64 sum; the result is rounded once.
    ///
    /// - `x` e4m3 `[tokens, in_features]`; its group sums are not used
    /// - `weights` e4m3 `[out_features, in_features]`
    /// - `weight_scales` f32 `[out_features]`
    /// - `bias` f32 `[out_features]`
    /// - `y` f32 `[tokens, out_features]`
    pub fn reference(
        &self,
        x: &QuantizedActivation<&[E4m3], &[f32]>,
        weights: &[E4m3],
        weight_scales: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) -> Result<()> {
        self.check_activation(x.shape, x.codes.len(), x.scales.len())?;
        Self::CHECK.len("weight_scales", weight_scales, self.shape.out_features)?;
        let bias_len = bias.map(<[f32]>::len);
        self.shape.check(Self::CHECK, x.shape.tokens, weights.len(), bias_len, y.len())?;
        reference::fp8_product(x, weights, weight_scales, bias, y);
        Ok(())
    }

    pub(crate) fn check_activation(
        &self,
        x: device::ActivationShape,
        codes: usize,
        scales: usize,
    ) -> Result<()> {
        let (check, features) = (Self::CHECK, self.shape.in_features);
        check.that(x.features == features, "x.shape.features", features, x.features)?;
        let expected = check.product("x.shape.tokens", &[x.tokens, features])?;
        check.that(codes == expected, "x.codes", format_args!("{expected} elements"), codes)?;
        check.that(scales == x.tokens, "x.scales", format_args!("{} elements", x.tokens), scales)
    }
}

impl DenseProduct {
    pub(crate) const CHECK: Check = Check("dense_product");

    /// Sizes of at least 1.
    pub fn new(in_features: usize, out_features: usize) -> Result<Self> {
        Ok(Self { shape: Shape::new(Self::CHECK, in_features, out_features)? })
    }

    /// The definition, on the CPU, summed in f64 and rounded once.
    ///
    /// - `x` f32 `[tokens, in_features]`
    /// - `weights` f32, bf16 or f16 `[out_features, in_features]`
    /// - `bias` f32 `[out_features]`
    /// - `y` f32 `[tokens, out_features]`
    pub fn reference<W: Element>(
        &self,
        x: &[f32],
        weights: &[W],
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) -> Result<()> {
        let tokens = self.tokens(x.len())?;
        self.shape.check(Self::CHECK, tokens, weights.len(), bias.map(<[f32]>::len), y.len())?;
        reference::dense_product(x, self.shape.in_features, weights, bias, y);
        Ok(())
    }

    /// The rows in an `x` of `len` elements.
    pub(crate) fn tokens(&self, len: usize) -> Result<usize> {
        let features = self.shape.in_features;
        let rows = format_args!("whole rows of {features} elements");
        Self::CHECK.that(len.is_multiple_of(features), "x", rows, format_args!("{len} elements"))?;
        Ok(len / features)
    }
}

/// The sizes of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub in_features: usize,
    pub out_features: usize,
}

impl Shape {
    fn new(check: Check, in_features: usize, out_features: usize) -> Result<Self> {
        check.positive("in_features", in_features)?;
        check.positive("out_features", out_features)?;
        check.product("out_features", &[out_features, in_features])?;
        Ok(Self { in_features, out_features })
    }

    /// The lengths of everything but the activations.
    pub fn check(
        self,
        check: Check,
        tokens: usize,
        weights: usize,
        bias: Option<usize>,
        y: usize,
    ) -> Result<()> {
        let len =
            |argument, got, want| check.that(got == want, argument, format_args!("{want} elements"), got);
        len("weights", weights, self.out_features * self.in_features)?;
        bias.map_or(Ok(()), |bias| len("bias", bias, self.out_features))?;
        len("y", y, check.product("y", &[tokens, self.out_features])?)
    }
}
