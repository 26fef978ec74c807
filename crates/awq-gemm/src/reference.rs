//! The products by their definitions, in f64. Rows of weights are shared out by rayon; nothing else is clever.

use crate::Int4Weights;
use device::{E4m3, QuantizedActivation};
use rayon::prelude::*;

pub(crate) fn w4a8(
    x: &QuantizedActivation<&[E4m3], &[f32]>,
    weights: &Int4Weights,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let codes: Vec<f64> = x.codes.iter().map(|code| f64::from(code.to_f32())).collect();
    product(&codes, weights, bias, y, |token| f64::from(x.scales[token]));
}

pub(crate) fn w4a16(x: &[f32], weights: &Int4Weights, bias: Option<&[f32]>, y: &mut [f32]) {
    let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    product(&x, weights, bias, y, |_| 1.0);
}

fn product(
    x: &[f64],
    weights: &Int4Weights,
    bias: Option<&[f32]>,
    y: &mut [f32],
    activation_scale: impl Fn(usize) -> f64 + Sync,
) {
    let in_features = weights.shape().in_features();
    columns(weights, bias, y, |n, row, out| {
        weights.row(n, row);
        for ((token, x), out) in x.chunks_exact(in_features).enumerate().zip(out) {
            *out = activation_scale(token) * dot(x, row);
        }
    });
}

pub(crate) fn w4a8_by_group_sums(
    x: &QuantizedActivation<&[E4m3], &[f32]>,
    weights: &Int4Weights,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let shape = weights.shape();
    let (group_size, groups) = (shape.group_size(), shape.groups());
    let codes: Vec<f64> = x.codes.iter().map(|code| f64::from(code.to_f32())).collect();
    columns(weights, bias, y, |n, row, out| {
        let codes_of_n = &weights.codes()[n * shape.in_features()..][..shape.in_features()];
        row.iter_mut().zip(codes_of_n).for_each(|(row, &code)| *row = f64::from(code));
        for (token, out) in out.iter_mut().enumerate() {
            let x_row = &codes[token * shape.in_features()..][..shape.in_features()];
            let group = |g: usize| {
                let range = g * group_size..(g + 1) * group_size;
                let zero = f64::from(weights.zeros()[n * groups + g]);
                let group_sum = f64::from(x.group_sums[token * groups + g]);
                f64::from(weights.scales()[n * groups + g])
                    * (dot(&x_row[range.clone()], &row[range]) - zero * group_sum)
            };
            *out = f64::from(x.scales[token]) * (0..groups).map(group).sum::<f64>();
        }
    });
}

/// Fills `y` `[tokens, out_features]`: `fill(n, row, out)` gives output feature `n` of all tokens, with `row`
/// `[in_features]` to work in; the bias is added and the sum rounded to f32 once.
fn columns(
    weights: &Int4Weights,
    bias: Option<&[f32]>,
    y: &mut [f32],
    fill: impl Fn(usize, &mut [f64], &mut [f64]) + Sync,
) {
    let out_features = weights.shape().out_features();
    let tokens = y.len() / out_features;
    if tokens == 0 {
        return;
    }
    let mut transposed = vec![0.0; y.len()];
    transposed.par_chunks_mut(tokens).enumerate().for_each_init(
        || vec![0.0; weights.shape().in_features()],
        |row, (n, out)| {
            fill(n, row, out);
            out.iter_mut().for_each(|out| *out += bias.map_or(0.0, |bias| f64::from(bias[n])));
        },
    );
    for (token, y) in y.chunks_exact_mut(out_features).enumerate() {
        for (n, y) in y.iter_mut().enumerate() {
            *y = transposed[n * tokens + token] as f32;
        }
    }
}

/// Eight partial sums, so that the compiler can use vector registers.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f64>() + rest
}
