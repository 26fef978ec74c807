//! A linear layer's tensors as the checkpoint stores them: shapes, dtypes and scales checked, nothing converted.

use device::E4m3;
use half::f16;

/// One linear layer: weight `[out_features, in_features]`, in whatever form, and its bias.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearTensors {
    /// Columns of the weight, K.
    pub in_features: usize,
    /// Rows of the weight, N.
    pub out_features: usize,
    /// The weight.
    pub weight: LinearWeight,
    /// f32 `[N]`.
    pub bias: Option<Vec<f32>>,
}

/// A weight `[N, K]` as stored. Every scale is finite and positive.
#[derive(Debug, Clone, PartialEq)]
pub enum LinearWeight {
    /// bf16, f16 or f32, widened.
    Plain {
        /// f32 `[N, K]`.
        weight: Vec<f32>,
    },
    /// AutoAWQ, version gemm. `w[n][k] = (q - zero) * scale`, all three transposed in storage: rows are K.
    ///
    /// ```text
    /// word c of a row holds columns 8c .. 8c + 8; nibble i (bits 4i .. 4i + 4) is column 8c + [0 2 4 6 1 3 5 7][i]
    /// ```
    AutoAwq {
        /// i32 `[K, N / 8]`.
        qweight: Vec<i32>,
        /// i32 `[K / group_size, N / 8]`, nibbles in the same order.
        qzeros: Vec<i32>,
        /// f16 `[K / group_size, N]`.
        scales: Vec<f16>,
        /// Input features that share a scale; divides K.
        group_size: usize,
    },
    /// compressed-tensors pack-quantized. `w = (q - zero) * scale` with q and zero in -8..=7, stored as q + 8.
    ///
    /// ```text
    /// nibble i of word c of a row of `packed` is column 8c + i
    /// nibble i of word r of a column of `zero_points` is row 8r + i
    /// ```
    PackQuantized {
        /// i32 `[N, K / 8]`.
        packed: Vec<i32>,
        /// f32 (widened) `[N, K / group_size]`.
        scales: Vec<f32>,
        /// i32 `[N / 8, K / group_size]`; without them zero is 0.
        zero_points: Option<Vec<i32>>,
        /// Input features that share a scale; divides K. K itself where there is one scale to a row.
        group_size: usize,
    },
    /// ModelOpt W4A8_AWQ. `w = q * scale`: `weight_scale` is the whole scale of a weight.
    ///
    /// `weight_scale_2` is no factor of the weight: it only says at which scale the FP8 kernel holds the dequantized
    /// weight (`q * (scale / weight_scale_2)` is what fits e4m3).
    ///
    /// ```text
    /// byte [r][k]: low nibble row 2r, high nibble row 2r + 1, both two's complement (-8..=7)
    /// ```
    W4a8Awq {
        /// u8 `[N / 2, K]`.
        packed: Vec<u8>,
        /// f32 (widened) `[N, K / group_size]`.
        scales: Vec<f32>,
        /// The scale at which dequantized weights are held in FP8.
        weight_scale_2: f32,
        /// The static scale of the FP8 input: `x = code * input_scale`.
        input_scale: f32,
        /// f32 `[K]`: the input is multiplied by it before it is quantized.
        pre_quant_scale: Option<Vec<f32>>,
        /// Input features that share a scale; divides K.
        group_size: usize,
    },
    /// FP8 (compressed-tensors float-quantized, ModelOpt FP8). `w = code * scale`; no code is a NaN.
    Fp8 {
        /// e4m3 `[N, K]`.
        codes: Vec<E4m3>,
        /// One for all or one to a row.
        weight_scale: Fp8Scale,
        /// The static scale of the input (`x = code * input_scale`); without it the input is quantized per token.
        input_scale: Option<f32>,
    },
}

/// The scales of an FP8 weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Fp8Scale {
    /// One.
    Tensor(f32),
    /// f32 `[N]`.
    Rows(Vec<f32>),
}
