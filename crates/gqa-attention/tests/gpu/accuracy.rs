//! What a model would notice: long contexts, and what FP8 pages cost.

use crate::common::{Case, Sequence};
use crate::on_device::{self, rounded};
use crate::truth::{Page, sums_rounded, truth};
use device::{E4m3, Element};
use gqa_attention::{Attention, AttentionKernel, AttentionOptions, AttentionShape};
use half::bf16;
use op_test::Rng;
use rayon::prelude::*;
use std::ops::Range;

/// New tokens, and how many the launch is told of: what makes either kernel run.
const LAUNCHES: [(AttentionKernel, usize, usize); 2] =
    [(AttentionKernel::Decode, 4, 4), (AttentionKernel::Prefill, 5, 512)];

const LLAMA: AttentionShape = AttentionShape { query_heads: 8, kv_heads: 1, head_dim: 128 };

fn random<T: Element>(rng: &mut Rng, shape: AttentionShape, context: usize, queries: usize) -> Case<T> {
    let sequence = vec![Sequence { context, queries }];
    rounded(Case::random(rng, shape, AttentionOptions::default(), sequence))
}

/// The output, held against its bounds.
fn run<T: Page>(rng: &mut Rng, case: &Case<T>, kernel: AttentionKernel, told: usize) -> Vec<f64> {
    let plan = Attention::new(case.shape, case.options.clone()).unwrap();
    assert_eq!(on_device::kernel(&plan, case.sequences.len(), told), kernel);
    let (output, _) = on_device::run(rng, case, told, 0, true);
    output.into_iter().map(|x| f64::from(x.to_f32())).collect()
}

/// A token with a dominant score is found in 131,072, a different one for each head of each query: at both ends, around the
/// ends of pages, anywhere between.
#[test]
#[ignore = "needs an H200"]
fn needles_are_found_at_128k_full_size() {
    fn find<T: Page>(rng: &mut Rng, (kernel, queries, told): (AttentionKernel, usize, usize)) {
        const CONTEXT: usize = 131_072;
        let mut case = random::<T>(rng, LLAMA, CONTEXT, queries);
        let rows = queries * LLAMA.query_heads;
        let width = LLAMA.head_dim;
        let ends = [0, 1, 63, 64, 511, 512, CONTEXT / 2 - 1, CONTEXT / 2, CONTEXT - 129, CONTEXT - 65];
        let places: Vec<usize> =
            (0..rows).map(|row| ends.get(row).copied().unwrap_or(rng.below(0..CONTEXT - 64))).collect();
        for (row, place) in places.iter().enumerate() {
            // Along the query, and long enough to outweigh all others.
            for dim in 0..width {
                case.keys[0][place * width + dim] = T::from_f32(4.0 * case.queries[row * width + dim]);
            }
        }
        let output = run(rng, &case, kernel, told);
        for (row, place) in places.iter().enumerate() {
            let value = case.values[0][place * width..][..width].iter().map(|v| f64::from(v.to_f32()));
            let found = output[row * width..][..width].iter().zip(value.clone()).map(|(o, v)| o * v);
            let share =
                found.sum::<f64>() / (value.map(|v| v * v).sum::<f64>() * f64::from(case.value_scales[0]));
            assert!((share - 1.0).abs() < 0.1, "{} {kernel}: {share} of the token at {place}", T::NAME);
        }
        assert!(truth(&case, kernel).iter().all(|truth| truth.top_weight > 0.9), "the needles outweigh");
    }
    let mut rng = Rng::new(41);
    for launch in LAUNCHES {
        find::<E4m3>(&mut rng, launch);
        find::<bf16>(&mut rng, launch);
    }
}

fn root_of_squares(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.map(|x| x * x).sum::<f64>().sqrt()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    root_of_squares(a.iter().zip(b).map(|(a, b)| a - b))
}

/// The error, relative to the output, does not grow from 1k to 128k tokens beyond what rounding probabilities and outputs to
/// their formats explains: that part follows how many keys weigh in, which here grows with the context. Neither where values
/// are spread around zero nor where they add up, which is where short accumulations would lose most.
#[test]
#[ignore = "needs an H200"]
fn errors_do_not_grow_with_the_context_full_size() {
    fn grow<T: Page>(rng: &mut Rng, mean: f32, (kernel, queries, told): (AttentionKernel, usize, usize)) {
        let mut long = random::<T>(rng, LLAMA, 131_072, queries);
        long.values[0].iter_mut().for_each(|v| *v = T::from_f32(v.to_f32() + mean));
        let mut shares = Vec::new();
        for context in [1024, 8192, 32_768, 131_072] {
            let mut case = long.clone();
            case.sequences[0].context = context;
            case.keys[0].truncate(context * LLAMA.head_dim);
            case.values[0].truncate(context * LLAMA.head_dim);
            let got = run(rng, &case, kernel, told);
            let want: Vec<f64> = truth(&case, kernel).into_iter().flat_map(|row| row.output).collect();
            let rounded = explained(&case, kernel).into_iter().map(|o| bf16::from_f64(o).to_f64());
            let alone = distance(&rounded.collect::<Vec<_>>(), &want);
            let size = root_of_squares(want.iter().copied());
            shares.push((distance(&got, &want) / size, distance(&got, &want) / alone));
        }
        println!(
            "{} {kernel}, values around {mean}, relative errors, of what is explained: {shares:.5?}",
            T::NAME
        );
        let grows = |&(error, share): &(f64, f64)| error > 1.1 * shares[0].0 && share > 1.1;
        assert!(!shares.iter().any(grows), "the error grows");
    }
    let mut rng = Rng::new(42);
    for launch in LAUNCHES {
        for mean in [0.0, 1.0] {
            grow::<E4m3>(&mut rng, mean, launch);
            grow::<bf16>(&mut rng, mean, launch);
        }
    }
}

/// A case of FP8 pages from one of bf16 pages: elements over a scale for each head.
fn quantized(case: &Case<bf16>) -> Case<E4m3> {
    let AttentionShape { kv_heads, head_dim, .. } = case.shape;
    let narrow = |stored: &[Vec<bf16>], scales: &[f32]| -> (Vec<Vec<E4m3>>, Vec<f32>) {
        let head_of = |i: usize| i / head_dim % kv_heads;
        let mut largest = vec![0.0f32; kv_heads];
        for (i, x) in stored.iter().flat_map(|stored| stored.iter().enumerate()) {
            largest[head_of(i)] = largest[head_of(i)].max(x.to_f32().abs());
        }
        let code = |i: usize, x: &bf16| E4m3::from_f32(x.to_f32() * (E4m3::MAX / largest[head_of(i)]));
        let codes = stored.iter().map(|s| s.iter().enumerate().map(|(i, x)| code(i, x)).collect()).collect();
        (codes, (0..kv_heads).map(|head| scales[head] * largest[head] / E4m3::MAX).collect())
    };
    let (keys, key_scales) = narrow(&case.keys, &case.key_scales);
    let (values, value_scales) = narrow(&case.values, &case.value_scales);
    let (shape, options) = (case.shape, case.options.clone());
    let (sequences, queries) = (case.sequences.clone(), case.queries.clone());
    Case { shape, options, sequences, keys, values, key_scales, value_scales, queries }
}

/// Attention in f64 with probabilities as the kernel rounds them: e4m3 where the largest of a row is 2^8, or bf16, the row's sum
/// taken before or after. One sequence, no mask but the causal one, no bias.
fn explained<T: Page>(case: &Case<T>, kernel: AttentionKernel) -> Vec<f64> {
    let AttentionShape { query_heads, kv_heads, head_dim } = case.shape;
    let Sequence { context, queries } = case.sequences[0];
    let wide = |from: &[T]| -> Vec<f64> { from.par_iter().map(|x| f64::from(x.to_f32())).collect() };
    let (keys, values) = (wide(&case.keys[0]), wide(&case.values[0]));
    let rows = (0..queries * query_heads).into_par_iter().map(|row| {
        let (head, end) = (row % query_heads / case.shape.group(), context - queries + row / query_heads + 1);
        let tokens = |of: &[f64]| -> Vec<Range<usize>> {
            let heads = (head..of.len() / head_dim).step_by(kv_heads);
            heads.map(|at| at * head_dim..(at + 1) * head_dim).take(end).collect()
        };
        let scale = f64::from(case.key_scales[head]) / (head_dim as f64).sqrt();
        let query: Vec<f64> = case.queries[row * head_dim..][..head_dim].iter().map(|&q| q.into()).collect();
        let score = |key: &[f64]| scale * query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
        let scores: Vec<f64> = tokens(&keys).into_iter().map(|key| score(&keys[key])).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exact = scores.iter().map(|s| 256.0 * (s - top).exp());
        let weights: Vec<f64> = exact.clone().map(|w| f64::from(T::from_f32(w as f32).to_f32())).collect();
        let sum: f64 = if sums_rounded::<T>(kernel) { weights.iter().sum() } else { exact.sum() };
        let factor = f64::from(case.value_scales[head]) / sum;
        let mut output = vec![0.0; head_dim];
        for (weight, value) in weights.iter().zip(tokens(&values)) {
            output.iter_mut().zip(&values[value]).for_each(|(o, v)| *o += factor * weight * v);
        }
        output
    });
    rows.collect::<Vec<_>>().concat()
}

/// Against attention over the keys and values before they were quantized, FP8 pages cost what quantizing keys, values and
/// probabilities explains, within 2%.
#[test]
#[ignore = "needs an H200"]
fn fp8_costs_the_quantization_of_keys_values_and_probabilities() {
    let mut rng = Rng::new(43);
    let falcon = AttentionShape { query_heads: 232, kv_heads: 8, head_dim: 64 };
    let llama = AttentionShape { query_heads: 64, kv_heads: 8, head_dim: 128 };
    for (shape, context) in [(llama, 512), (llama, 4096), (falcon, 2048)] {
        for (kernel, queries, told) in [(AttentionKernel::Decode, 4, 1), (AttentionKernel::Prefill, 5, 512)] {
            let plain = random::<bf16>(&mut rng, shape, context, queries);
            let want: Vec<f64> = truth(&plain, kernel).into_iter().flat_map(|row| row.output).collect();
            let case = quantized(&plain);
            let got = run(&mut rng, &case, kernel, told);
            let (error, alone) = (distance(&got, &want), distance(&explained(&case, kernel), &want));
            println!(
                "{kernel} {shape:?} {context} tokens: {:.4} of the output, {:.4} of what quantization explains",
                error / root_of_squares(want.iter().copied()),
                error / alone
            );
            assert!(error <= 1.02 * alone, "{error} against {alone}");
        }
    }
}
