//! The formulas on the CPU. Products share output features out by rayon; nothing else is clever.

use crate::ScaleChoice;
use device::{E4m3, Element, QuantizedActivation, quantize_row, scale_of_row};
use rayon::prelude::*;
use std::sync::LazyLock;

pub(crate) fn quantize(
    choice: ScaleChoice,
    x: &[f32],
    output: &mut QuantizedActivation<&mut [E4m3], &mut [f32]>,
) {
    let (features, group_size, groups) =
        (output.shape.features, output.shape.group_size, output.shape.groups());
    let of_tensor = match choice {
        ScaleChoice::PerToken => None,
        ScaleChoice::PerTensor => Some(scale_of_row(x)),
        ScaleChoice::Given(scale) => Some(scale),
    };
    let rows = x.chunks_exact(features).zip(output.codes.chunks_exact_mut(features));
    for (token, ((row, codes), scale)) in rows.zip(output.scales.iter_mut()).enumerate() {
        let group_sums = &mut output.group_sums[token * groups..][..groups];
        *scale = match of_tensor {
            None => quantize_row(row, group_size, codes, group_sums),
            Some(given) => {
                quantize_row_by(row, given, group_size, codes, group_sums);
                given
            }
        };
    }
}

/// [`quantize_row`] with a scale from elsewhere.
fn quantize_row_by(row: &[f32], scale: f32, group_size: usize, codes: &mut [E4m3], group_sums: &mut [f32]) {
    for (code, &x) in codes.iter_mut().zip(row) {
        *code = E4m3::from_f32(x / scale);
    }
    for (group, sum) in group_sums.iter_mut().enumerate() {
        let codes = &codes[group * group_size..][..group_size];
        *sum = codes.iter().map(|code| f64::from(code.to_f32())).sum::<f64>() as f32;
    }
}

pub(crate) fn fp8_product(
    x: &QuantizedActivation<&[E4m3], &[f32]>,
    weights: &[E4m3],
    weight_scales: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    // Decoding a code by arithmetic would cost more than its product.
    static VALUES: LazyLock<[f64; 256]> =
        LazyLock::new(|| std::array::from_fn(|code| f64::from(E4m3(code as u8).to_f32())));
    let values = &*VALUES;
    let value = |code: E4m3| values[usize::from(code.0)];
    let codes: Vec<f64> = x.codes.iter().map(|&code| value(code)).collect();
    product(&codes, x.shape.features, weights, value, y, |token, n, sum| {
        let bias = bias.map_or(0.0, |bias| f64::from(bias[n]));
        (f64::from(x.scales[token]) * f64::from(weight_scales[n]) * sum + bias) as f32
    });
}

pub(crate) fn dense_product<W: Element>(
    x: &[f32],
    in_features: usize,
    weights: &[W],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    product(
        &x,
        in_features,
        weights,
        |w| f64::from(w.to_f32()),
        y,
        |_, n, sum| (sum + bias.map_or(0.0, |bias| f64::from(bias[n]))) as f32,
    );
}

/// `y[t][n] = finish(t, n, sum over k of x[t][k] * value(weights[n][k]))`
fn product<W: Copy + Sync>(
    x: &[f64],
    in_features: usize,
    weights: &[W],
    value: impl Fn(W) -> f64 + Copy + Sync,
    y: &mut [f32],
    finish: impl Fn(usize, usize, f64) -> f32 + Sync,
) {
    let (tokens, out_features) = (x.len() / in_features, weights.len() / in_features);
    // One output feature of all tokens.
    let feature = |(n, out): (usize, &mut [f32])| {
        let row = &weights[n * in_features..][..in_features];
        if let [out] = out {
            *out = finish(0, n, dot(x, row, value));
            return;
        }
        // The row is widened once for all tokens.
        let row: Vec<f64> = row.iter().map(|&w| value(w)).collect();
        for (token, (x, out)) in x.chunks_exact(in_features).zip(out).enumerate() {
            *out = finish(token, n, dot(x, &row, |w| w));
        }
    };
    let features = |y: &mut [f32]| {
        let work = tokens * in_features;
        if out_features * work < SMALL {
            y.chunks_exact_mut(tokens).enumerate().for_each(feature);
        } else {
            let at_least = SMALL.div_ceil(work);
            y.par_chunks_exact_mut(tokens).enumerate().with_min_len(at_least).for_each(feature);
        }
    };
    match tokens {
        0 => {}
        1 => features(y),
        _ => {
            let mut transposed = vec![0.0; y.len()];
            features(&mut transposed);
            for (token, y) in y.chunks_exact_mut(out_features).enumerate() {
                for (n, y) in y.iter_mut().enumerate() {
                    *y = transposed[n * tokens + token];
                }
            }
        }
    }
}

/// Products (about 30 us of work) below which handing them to another thread costs more than it gains.
const SMALL: usize = 1 << 16;

/// In eight partial sums, which the compiler keeps in vector registers.
fn dot<W: Copy>(x: &[f64], row: &[W], value: impl Fn(W) -> f64) -> f64 {
    let mut sums = [0.0; 8];
    let (x, row) = (x.chunks_exact(8), row.chunks_exact(8));
    let rest: f64 = x.remainder().iter().zip(row.remainder()).map(|(x, &w)| x * value(w)).sum();
    for (x, row) in x.zip(row) {
        for (sum, (x, &w)) in sums.iter_mut().zip(x.iter().zip(row)) {
            *sum += x * value(w);
        }
    }
    sums.iter().sum::<f64>() + rest
}
