//! The plans of the two products.

use crate::{Int4Shape, Int4Weights, reference};
use device::{Check, E4m3, QuantizedActivation, Result};

/// The product of e4m3 activations with INT4 weights (FP8 compute):
///
/// ```text
/// y[t][n] = activation_scale[t] * sum over k of code_x[t][k] * (code_w[n][k] - zero[n][g]) * scale[n][g] + bias[n]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct W4A8 {
    shape: Int4Shape,
}

/// The product of 16-bit activations with INT4 weights:
///
/// ```text
/// y[t][n] = sum over k of x[t][k] * (code_w[n][k] - zero[n][g]) * scale[n][g] + bias[n]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct W4A16 {
    shape: Int4Shape,
}

impl W4A8 {
    pub(crate) const CHECK: Check = Check("w4a8");

    /// The product with weights of `shape`.
    pub fn new(shape: Int4Shape) -> Self {
        Self { shape }
    }

    /// The definition, on the CPU, summed in f64.
    ///
    /// - `x` e4m3 `[tokens, in_features]`; its group sums are not used
    /// - `weights` of the plan's shape
    /// - `bias` f32 `[out_features]`
    /// - `y` f32 `[tokens, out_features]`
    pub fn reference(
        &self,
        x: &QuantizedActivation<&[E4m3], &[f32]>,
        weights: &Int4Weights,
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) -> Result<()> {
        self.check(x, weights, bias, y)?;
        reference::w4a8(x, weights, bias, y);
        Ok(())
    }

    /// The same with zero points taken out of the inner sum, as the kernel does it:
    ///
    /// ```text
    /// y[t][n] = activation_scale[t] * sum over g of scale[n][g] * (sum over k in g of code_x[t][k] * code_w[n][k]
    ///                                                              - zero[n][g] * group_sum[t][g]) + bias[n]
    /// ```
    ///
    /// Arguments as in [`Self::reference`], and `x` has group sums for the weights' `group_size`.
    pub fn reference_by_group_sums(
        &self,
        x: &QuantizedActivation<&[E4m3], &[f32]>,
        weights: &Int4Weights,
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) -> Result<()> {
        self.check(x, weights, bias, y)?;
        let group_size = self.shape.group_size();
        Self::CHECK.that(
            x.shape.group_size == group_size,
            "x.shape.group_size",
            group_size,
            x.shape.group_size,
        )?;
        Self::CHECK.len("x.group_sums", x.group_sums, x.shape.tokens * self.shape.groups())?;
        reference::w4a8_by_group_sums(x, weights, bias, y);
        Ok(())
    }

    /// The shape of its weights.
    pub fn shape(&self) -> Int4Shape {
        self.shape
    }

    fn check(
        &self,
        x: &QuantizedActivation<&[E4m3], &[f32]>,
        weights: &Int4Weights,
        bias: Option<&[f32]>,
        y: &[f32],
    ) -> Result<()> {
        let features = self.shape.in_features();
        self.check_shapes(x.shape.features, weights.shape())?;
        let codes = Self::CHECK.product("x.shape.tokens", &[x.shape.tokens, features])?;
        Self::CHECK.len("x.codes", x.codes, codes)?;
        Self::CHECK.len("x.scales", x.scales, x.shape.tokens)?;
        check_rest(Self::CHECK, self.shape, x.shape.tokens, bias, y)
    }

    pub(crate) fn check_shapes(&self, features: usize, weights: Int4Shape) -> Result<()> {
        let expected = self.shape.in_features();
        Self::CHECK.that(features == expected, "x.shape.features", expected, features)?;
        check_weights(Self::CHECK, self.shape, weights)
    }
}

impl W4A16 {
    pub(crate) const CHECK: Check = Check("w4a16");

    /// The product with weights of `shape`.
    pub fn new(shape: Int4Shape) -> Self {
        Self { shape }
    }

    /// The definition, on the CPU, summed in f64.
    ///
    /// - `x` f32 `[tokens, in_features]`, standing for 16-bit activations
    /// - `weights` of the plan's shape
    /// - `bias` f32 `[out_features]`
    /// - `y` f32 `[tokens, out_features]`
    pub fn reference(
        &self,
        x: &[f32],
        weights: &Int4Weights,
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) -> Result<()> {
        let tokens = self.tokens(x.len())?;
        self.check_weights(weights.shape())?;
        check_rest(Self::CHECK, self.shape, tokens, bias, y)?;
        reference::w4a16(x, weights, bias, y);
        Ok(())
    }

    /// The shape of its weights.
    pub fn shape(&self) -> Int4Shape {
        self.shape
    }

    /// How many tokens so many activations are.
    pub(crate) fn tokens(&self, activations: usize) -> Result<usize> {
        let features = self.shape.in_features();
        let whole = activations.is_multiple_of(features);
        Self::CHECK.that(whole, "x", format_args!("rows of {features} elements"), activations)?;
        Ok(activations / features)
    }

    pub(crate) fn check_weights(&self, weights: Int4Shape) -> Result<()> {
        check_weights(Self::CHECK, self.shape, weights)
    }
}

fn check_weights(check: Check, expected: Int4Shape, got: Int4Shape) -> Result<()> {
    check.that(got == expected, "weights", format_args!("{expected:?}"), format_args!("{got:?}"))
}

fn check_rest(check: Check, shape: Int4Shape, tokens: usize, bias: Option<&[f32]>, y: &[f32]) -> Result<()> {
    if let Some(bias) = bias {
        check.len("bias", bias, shape.out_features())?;
    }
    check.len("y", y, check.product("y", &[tokens, shape.out_features()])?)
}
