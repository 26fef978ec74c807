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
    /// The largest probability of the row.
    pub top_weight: f64,
}

/// Whether the row sums of a kernel are those of the rounded probabilities: all but prefill's over bf16 pages are.
pub fn sums_rounded<T: Page>(kernel: AttentionKernel) -> bool {
    kernel == AttentionKernel::Decode || T::NAME != bf16::NAME
}

/// Steps of 32 bytes along the tokens that a kernel sums up in the tensor core before it goes on in f32.
fn summed_steps<T: Page>(kernel: AttentionKernel) -> f64 {
    // 320 tokens of e4m3, or at most 256 bytes.
    if kernel == AttentionKernel::Prefill && T::NAME != bf16::NAME { 10.0 } else { 8.0 }
}

/// In the order of the rows of `output`.
pub fn truth<T: Page>(case: &Case<T>, kernel: AttentionKernel) -> Vec<Truth> {
    let AttentionShape { query_heads, kv_heads, .. } = case.shape;
    let wide = |from: &[T], head: usize| -> Vec<f64> {
        let rows = from.chunks(case.shape.head_dim).skip(head).step_by(kv_heads);
        rows.flatten().map(|x| f64::from(x.to_f32())).collect()
    };
    // Keys and values of each sequence's KV heads, [context][head_dim].
    let heads: Vec<(Vec<f64>, Vec<f64>)> = (0..case.sequences.len() * kv_heads)
        .into_par_iter()
        .map(|i| {
            (wide(&case.keys[i / kv_heads], i % kv_heads), wide(&case.values[i / kv_heads], i % kv_heads))
        })
        .collect();
    let tokens = case
        .sequences
        .iter()
        .enumerate()
        .flat_map(|(index, s)| (0..s.queries).map(move |query| (index, query)));
    let rows: Vec<(usize, usize, usize)> =
        tokens.flat_map(|(index, query)| (0..query_heads).map(move |head| (index, query, head))).collect();
    rows.into_par_iter()
        .enumerate()
        .map(|(row, (index, query, head))| {
            let (keys, values) = &heads[index * kv_heads + head / case.shape.group()];
            row_truth(case, kernel, row, [index, query, head], keys, values)
        })
        .collect()
}

/// Sums over a row of a key: of the products, of their squares, and of the squares of `off` times the key.
fn products(query: &[f64], off: &[f64], key: &[f64]) -> [f64; 3] {
    let mut sums = [[0.0; 4]; 3];
    for ((query, off), key) in query.chunks_exact(4).zip(off.chunks_exact(4)).zip(key.chunks_exact(4)) {
        for lane in 0..4 {
            let product = query[lane] * key[lane];
            let off = off[lane] * key[lane];
            sums[0][lane] += product;
            sums[1][lane] += product * product;
            sums[2][lane] += off * off;
        }
    }
    sums.map(|lanes| lanes.iter().sum())
}

fn row_truth<T: Page>(
    case: &Case<T>,
    kernel: AttentionKernel,
    row: usize,
    [index, query, head]: [usize; 3],
    keys: &[f64],
    values: &[f64],
) -> Truth {
    const DEVIATIONS: f64 = 8.0;
    let AttentionShape { head_dim, .. } = case.shape;
    let Sequence { context, queries } = case.sequences[index];
    let position = context - queries + query;
    let first = case.options.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let seen = first * head_dim..(position + 1) * head_dim;
    let kv_head = head / case.shape.group();
    let scale = f64::from(case.options.scale.unwrap_or(1.0 / (head_dim as f32).sqrt()));
    let key_scale = scale * f64::from(case.key_scales[kv_head]);
    let q: Vec<f64> = case.queries[row * head_dim..][..head_dim].iter().map(|&x| f64::from(x)).collect();
    let largest_query = q.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let off: Vec<f64> = q.iter().map(|q| T::QUERY * q.abs() + T::QUERY_FLOOR * largest_query).collect();

    // Scores, the deviation of each, and what all may be off together.
    let (mut scores, mut deviations, mut together) = (vec![], vec![], 0.0f64);
    for (token, key) in (first..).zip(keys[seen.clone()].chunks_exact(head_dim)) {
        let [sum, size, rounding] = products(&q, &off, key);
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
    // Products in the tensor core, then f32 sums over those and over the joined parts.
    let sums = summed_steps::<T>(kernel) * T::STEP + (weights.len() as f64).sqrt() / (1 << 22) as f64;

    let value_scale = f64::from(case.value_scales[kv_head]);
    let values = values[seen].chunks_exact(head_dim);
    let mut output = vec![0.0; head_dim];
    for (w, values) in weights.iter().zip(values.clone()) {
        output.iter_mut().zip(values).for_each(|(o, v)| *o += w * v);
    }
    // Of each element: roundings of P squared and plain, of the scores squared, spread around the output, size.
    let mut parts = vec![[0.0; 5]; head_dim];
    let center = if sums_rounded::<T>(kernel) { 1.0 } else { 0.0 };
    for ((w, values), deviation) in weights.iter().zip(values).zip(&deviations) {
        let rounding = rounding_of(*w);
        for ((part, v), mean) in parts.iter_mut().zip(values).zip(&output) {
            let off = rounding * (v - center * mean).abs();
            let apart = w * (v - mean).abs();
            part[0] += off * off;
            part[1] += off;
            part[2] += (deviation * apart) * (deviation * apart);
            part[3] += apart;
            part[4] += w * v.abs();
        }
    }
    let output_bounds = output.iter().zip(&parts).map(|(mean, &[rounding, all, variance, spread, size])| {
        let bound = bounded(rounding, all)
            + DEVIATIONS * variance.sqrt()
            + 2.0 * together.exp_m1() * spread
            + sums * (size + mean.abs());
        // The output's own rounding.
        value_scale * (bound + (mean.abs() + bound) / 256.0) + 1e-30
    });
    let output_bounds = output_bounds.collect();
    output.iter_mut().for_each(|mean| *mean *= value_scale);
    let (mut rounding, mut all, mut variance) = (0.0, 0.0, 0.0);
    for (w, deviation) in weights.iter().zip(&deviations) {
        rounding += rounding_of(*w).powi(2);
        all += rounding_of(*w);
        variance += (w * deviation).powi(2);
    }
    // What is below the floor may all be rounded down.
    let lost = weights.len() as f64 * floor;
    let log_sum_exp = top + sum.ln();
    let log_sum_exp_bound = if sums_rounded::<T>(kernel) { bounded(rounding, all) + lost } else { 0.0 }
        + DEVIATIONS * variance.sqrt()
        + together
        + sums
        + 8.0 * (log_sum_exp.abs() + top.abs() + 1.0) / (1 << 23) as f64;
    Truth { output, output_bounds, log_sum_exp, log_sum_exp_bound, top_weight: 1.0 / sum }
}

/// Holds what the kernel wrote for `case`; rows behind the batch, and the log-sum-exp where it was not wanted, are poison
/// still.
#[track_caller]
pub fn check<T: Page>(
    case: &Case<T>,
    kernel: AttentionKernel,
    answer: &(Vec<bf16>, Vec<f32>),
    with_log_sum_exp: bool,
) {
    hold(case, &truth(case, kernel), answer, with_log_sum_exp);
}

/// The same, the truth known already; gives the largest error as a share of its bound.
#[track_caller]
pub fn hold<T: Page>(
    case: &Case<T>,
    truth: &[Truth],
    (output, log_sum_exp): &(Vec<bf16>, Vec<f32>),
    with_log_sum_exp: bool,
) -> f64 {
    let head_dim = case.shape.head_dim;
    let mut worst = 0.0f64;
    for (row, truth) in truth.iter().enumerate() {
        for (dim, (want, bound)) in truth.output.iter().zip(&truth.output_bounds).enumerate() {
            let got = f64::from(output[row * head_dim + dim].to_f32());
            assert!(
                (got - want).abs() <= *bound,
                "{} row {row} dim {dim}: {got} against {want} +- {bound}",
                T::NAME
            );
            worst = worst.max((got - want).abs() / bound);
        }
        if with_log_sum_exp {
            let (got, want) = (f64::from(log_sum_exp[row]), truth.log_sum_exp);
            let bound = truth.log_sum_exp_bound;
            assert!(
                (got - want).abs() <= bound,
                "{} log-sum-exp {row}: {got} against {want} +- {bound}",
                T::NAME
            );
            worst = worst.max((got - want).abs() / bound);
        }
    }
    let behind = if with_log_sum_exp { truth.len() } else { 0 };
    assert!(
        output[truth.len() * head_dim..].iter().all(|x| x.is_nan()),
        "a row behind the batch was written"
    );
    assert!(log_sum_exp[behind..].iter().all(|x| x.is_nan()), "a log-sum-exp behind the batch was written");
    worst
}
