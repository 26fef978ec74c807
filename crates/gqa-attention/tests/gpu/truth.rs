//! What is right, and how far off the formats' rounding lets a kernel be.
//!
//! Rounding of the probabilities and of the queries is taken as independent from key to key (Higham and Mary 2019): eight
//! standard deviations bound a sum of such errors with probability 1 - 3e-14. Errors that may all point one way (sums in
//! the tensor core, the exponential) are bounded by their sum.
//!
//! Probabilities p rounded to p (1 + e), values v, output o: where the row's sum is taken over the rounded ones, the output
//! is off by the sum of p e (v - o) over that of p (1 + e); where it is taken before they are rounded, by that of p e v. An
//! |e| is at most the unit roundoff (2^-8 for bf16, 2^-4 for e4m3), so either is bounded by the sum of its terms, too,
//! which is the smaller bound where one key outweighs the others.

use crate::common::{Case, Sequence};
use cudarc::driver::DeviceRepr;
use device::{E4m3, Element};
use gqa_attention::{AttentionKernel, AttentionShape};
use half::bf16;
use rayon::prelude::*;

/// What the kernel for pages of this element rounds.
pub trait Page: Element + DeviceRepr {
    /// Probabilities, relative: half of the distance of neighbours at most.
    const WEIGHT: f64;
    /// Probabilities, relative to the largest of their row: half of the smallest step.
    const WEIGHT_FLOOR: f64;
    /// Queries, relative, and relative to the largest element of their row.
    const QUERY: f64;
    const QUERY_FLOOR: f64;
    /// A sum in the tensor core: each step of 32 bytes along the sum, relative to the largest number in it.
    const STEP: f64;
}

impl Page for bf16 {
    const WEIGHT: f64 = 1.0 / 256.0;
    const WEIGHT_FLOOR: f64 = 0.0;
    const QUERY: f64 = 0.0;
    const QUERY_FLOOR: f64 = 0.0;
    const STEP: f64 = 1.0 / (1 << 22) as f64;
}

impl Page for E4m3 {
    const WEIGHT: f64 = 1.0 / 16.0;
    /// The largest is scaled to 2^8, the smallest step is 2^-9.
    const WEIGHT_FLOOR: f64 = 1.0 / (1 << 18) as f64;
    /// Two terms, each rounded to four bits.
    const QUERY: f64 = 1.0 / 256.0;
    /// The largest is scaled to 448.
    const QUERY_FLOOR: f64 = 1.0 / (1 << 18) as f64;
    const STEP: f64 = 1.0 / (1 << 13) as f64;
}

/// One query head of one new token: what is right, and by how much each element may be off.
pub struct Truth {
    pub output: Vec<f64>,
    pub output_bounds: Vec<f64>,
    pub log_sum_exp: f64,
    pub log_sum_exp_bound: f64,
}

/// Whether the row sums of a kernel are those of the rounded probabilities: all but prefill's over bf16 pages are.
fn sums_rounded<T: Page>(kernel: AttentionKernel) -> bool {
    kernel == AttentionKernel::Decode || T::NAME != bf16::NAME
}

/// In the order of the rows of `output`.
pub fn truth<T: Page>(case: &Case<T>, kernel: AttentionKernel) -> Vec<Truth> {
    let heads = case.shape.query_heads;
    let tokens = case
        .sequences
        .iter()
        .enumerate()
        .flat_map(|(index, s)| (0..s.queries).map(move |query| (index, query)));
    let rows: Vec<(usize, usize, usize)> =
        tokens.flat_map(|(index, query)| (0..heads).map(move |head| (index, query, head))).collect();
    rows.into_par_iter()
        .enumerate()
        .map(|(row, (index, query, head))| {
            row_truth(case, sums_rounded::<T>(kernel), row, [index, query, head])
        })
        .collect()
}

fn row_truth<T: Page>(
    case: &Case<T>,
    sums_rounded: bool,
    row: usize,
    [index, query, head]: [usize; 3],
) -> Truth {
    const DEVIATIONS: f64 = 8.0;
    let AttentionShape { kv_heads, head_dim, .. } = case.shape;
    let Sequence { context, queries } = case.sequences[index];
    let position = context - queries + query;
    let first = case.options.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let kv_head = head / case.shape.group();
    let scale = f64::from(case.options.scale.unwrap_or(1.0 / (head_dim as f32).sqrt()));
    let key_scale = scale * f64::from(case.key_scales[kv_head]);
    let q: Vec<f64> = case.queries[row * head_dim..][..head_dim].iter().map(|&x| f64::from(x)).collect();
    let largest_query = q.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let stored = |from: &[T], token: usize, dim: usize| {
        f64::from(from[(token * kv_heads + kv_head) * head_dim + dim].to_f32())
    };

    // Scores, the deviation of each, and what all may be off together.
    let (mut scores, mut deviations, mut together) = (vec![], vec![], 0.0f64);
    for token in first..=position {
        let (mut sum, mut rounding, mut size) = (0.0, 0.0, 0.0);
        for (dim, &q) in q.iter().enumerate() {
            let key = stored(&case.keys[index], token, dim);
            sum += q * key;
            size += (q * key) * (q * key);
            rounding += ((T::QUERY * q.abs() + T::QUERY_FLOOR * largest_query) * key).powi(2);
        }
        let slope = case.options.alibi_slopes.as_ref().map(|slopes| slopes[head]);
        let bias = slope.map_or(0.0, |slope| f64::from(device::alibi_bias(slope, token as u32)));
        let own = slope.map_or(0.0, |slope| f64::from(device::alibi_bias(slope, position as u32)));
        scores.push(key_scale * sum + scale * bias);
        deviations.push(key_scale * rounding.sqrt());
        // Two terms of the query; partial sums reach a few times the root of the sum of squares.
        let steps = (2 * head_dim * size_of::<T>()).div_ceil(32) as f64;
        let sums = steps * T::STEP * 4.0 * key_scale.abs() * size.sqrt();
        let f32_rounding = (key_scale * sum).abs() + (scale * (bias - own)).abs();
        together = together.max(sums + 8.0 * f32_rounding / (1 << 24) as f64);
    }
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp() / sum).collect();
    let floor = T::WEIGHT_FLOOR / sum;
    let rounding_of = |weight: f64| weight * T::WEIGHT + floor;
    // Of the sum of some errors: by chance, and at the worst.
    let bounded = |variance: f64, all: f64| (DEVIATIONS * variance.sqrt()).min(all / (1.0 - T::WEIGHT));
    // Products of up to 256 tokens, 8 steps of 32 bytes for e4m3, in the tensor core, then f32 sums over those and over the
    // joined parts.
    let sums = 8.0 * T::STEP + (weights.len() as f64).sqrt() / (1 << 22) as f64;

    let value_scale = f64::from(case.value_scales[kv_head]);
    let (mut output, mut output_bounds) = (vec![], vec![]);
    for dim in 0..head_dim {
        let values: Vec<f64> =
            (first..=position).map(|token| value_scale * stored(&case.values[index], token, dim)).collect();
        let mean: f64 = weights.iter().zip(&values).map(|(w, v)| w * v).sum();
        let center = if sums_rounded { mean } else { 0.0 };
        let (mut rounding, mut all, mut variance, mut spread, mut size) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for ((w, v), deviation) in weights.iter().zip(&values).zip(&deviations) {
            let off = rounding_of(*w) * (v - center).abs();
            rounding += off * off;
            all += off;
            variance += (w * deviation * (v - mean)).powi(2);
            spread += w * (v - mean).abs();
            size += w * v.abs();
        }
        let bound = bounded(rounding, all)
            + DEVIATIONS * variance.sqrt()
            + 2.0 * together.exp_m1() * spread
            + sums * (size + mean.abs());
        output.push(mean);
        // The output's own rounding.
        output_bounds.push(bound + (mean.abs() + bound) / 256.0 + 1e-30);
    }
    let (mut rounding, mut all, mut variance) = (0.0, 0.0, 0.0);
    for (w, deviation) in weights.iter().zip(&deviations) {
        rounding += rounding_of(*w).powi(2);
        all += rounding_of(*w);
        variance += (w * deviation).powi(2);
    }
    // What is below the floor may all be rounded down.
    let lost = weights.len() as f64 * floor;
    let log_sum_exp = top + sum.ln();
    let log_sum_exp_bound = if sums_rounded { bounded(rounding, all) + lost } else { 0.0 }
        + DEVIATIONS * variance.sqrt()
        + together
        + sums
        + 8.0 * (log_sum_exp.abs() + top.abs() + 1.0) / (1 << 23) as f64;
    Truth { output, output_bounds, log_sum_exp, log_sum_exp_bound }
}

/// Holds what the kernel wrote for `case`; rows behind the batch, and the log-sum-exp where it was not wanted, are poison
/// still.
#[track_caller]
pub fn check<T: Page>(
    case: &Case<T>,
    kernel: AttentionKernel,
    (output, log_sum_exp): &(Vec<bf16>, Vec<f32>),
    with_log_sum_exp: bool,
) {
    let head_dim = case.shape.head_dim;
    let truth = truth(case, kernel);
    for (row, truth) in truth.iter().enumerate() {
        for (dim, (want, bound)) in truth.output.iter().zip(&truth.output_bounds).enumerate() {
            let got = f64::from(output[row * head_dim + dim].to_f32());
            assert!(
                (got - want).abs() <= *bound,
                "{} row {row} dim {dim}: {got} against {want} +- {bound}",
                T::NAME
            );
        }
        if with_log_sum_exp {
            let (got, want) = (f64::from(log_sum_exp[row]), truth.log_sum_exp);
            let bound = truth.log_sum_exp_bound;
            assert!(
                (got - want).abs() <= bound,
                "{} log-sum-exp {row}: {got} against {want} +- {bound}",
                T::NAME
            );
        }
    }
    let behind = if with_log_sum_exp { truth.len() } else { 0 };
    assert!(
        output[truth.len() * head_dim..].iter().all(|x| x.is_nan()),
        "a row behind the batch was written"
    );
    assert!(log_sum_exp[behind..].iter().all(|x| x.is_nan()), "a log-sum-exp behind the batch was written");
}
