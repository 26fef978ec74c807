//! The formulas on one row or one number, in f64 and rounded once.

use crate::{Activation, NormKind};

/// `(row - mean) / sqrt(variance + epsilon) * weight + bias`; for RMSNorm the mean is taken as 0.
pub fn norm(
    kind: NormKind,
    epsilon: f32,
    row: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    output: &mut [f32],
) {
    let features = row.len() as f64;
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => row.iter().map(|&x| f64::from(x)).sum::<f64>() / features,
    };
    let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / features;
    let deviation = (variance + f64::from(epsilon)).sqrt();
    for (feature, out) in output.iter_mut().enumerate() {
        let bias = bias.map_or(0.0, |bias| f64::from(bias[feature]));
        *out = ((f64::from(row[feature]) - mean) / deviation * f64::from(weight[feature]) + bias) as f32;
    }
}

/// The activation of one row; SwiGLU's is `[gate | up]`.
pub fn activate(activation: Activation, row: &[f32], multiplier: Option<&[f32]>, output: &mut [f32]) {
    let features = output.len();
    for (feature, out) in output.iter_mut().enumerate() {
        let x = f64::from(row[feature]);
        let y = match activation {
            Activation::Swiglu => silu(x) * f64::from(row[features + feature]),
            Activation::Gelu => gelu(x),
            Activation::Silu => silu(x),
            Activation::Identity => x,
        };
        *out = (y * multiplier.map_or(1.0, |multiplier| f64::from(multiplier[feature]))) as f32;
    }
}

/// `x * sigmoid(x)`.
fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `x * P(normal <= x)`. `erfc` instead of `1 + erf`, which cancels for negative `x`.
fn gelu(x: f64) -> f64 {
    0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}
