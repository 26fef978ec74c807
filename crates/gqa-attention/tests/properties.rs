//! The reference against a dense oracle in f64, and the laws that attention obeys.

// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Answer, Case, Sequence};
use device::{E4m3, Element};
use gqa_attention::{AttentionOptions, AttentionShape};
use half::bf16;
use op_test::{Rng, assert_close_f64, cases};
use proptest::prelude::*;

/// What f32 rounds off: half a unit in the last place.
const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// Shapes around every boundary: pages, blocks of query tokens, chunks of 16 bytes.
fn shapes() -> impl Strategy<Value = AttentionShape> {
    let groups = prop::sample::select(vec![1, 2, 3, 8, 29, 71]);
    let dims = prop::sample::select(vec![2, 6, 16, 20, 64, 80, 128, 256]);
    (1usize..4, groups, dims).prop_map(|(kv_heads, group, head_dim)| {
        // The widest groups with one small head each, so that a case stays small.
        let (kv_heads, head_dim) = if group > 8 { (1, head_dim.min(64)) } else { (kv_heads, head_dim) };
        AttentionShape { query_heads: kv_heads * group, kv_heads, head_dim }
    })
}

fn sequences() -> impl Strategy<Value = Vec<Sequence>> {
    let context = prop_oneof![1usize..5, 15usize..18, 62usize..67, 126usize..131, 1usize..200];
    let queries = prop_oneof![Just(0usize), Just(1), 1usize..9, 15usize..18, 1usize..70];
    let sequence =
        (context, queries).prop_map(|(context, queries)| Sequence { context, queries: queries.min(context) });
    prop::collection::vec(sequence, 0..4)
}

/// Scale, window and whether there is ALiBi.
fn options() -> impl Strategy<Value = (Option<f32>, Option<usize>, bool)> {
    let window = prop_oneof![1usize..4, 62usize..67, 1usize..200];
    (prop::option::of(-0.5f32..0.5), prop::option::of(window), any::<bool>())
}

fn build<T: Element>(
    rng: &mut Rng,
    shape: AttentionShape,
    (scale, window, alibi): (Option<f32>, Option<usize>, bool),
    sequences: Vec<Sequence>,
) -> Case<T> {
    let slopes = |_| (0..shape.query_heads).map(|_| rng.signed().abs()).collect();
    let alibi_slopes = alibi.then_some(()).map(slopes);
    Case::random(rng, shape, AttentionOptions { scale, window, alibi_slopes, settled: false }, sequences)
}

/// The textbook: `softmax(scale * (Q K^T + bias) + mask) V`, a whole matrix at a time, in f64, from dense keys and values.
/// Beside each result the bound of its error.
struct Oracle {
    output: Vec<f64>,
    output_bounds: Vec<f64>,
    log_sum_exp: Vec<f64>,
    log_sum_exp_bounds: Vec<f64>,
}

fn oracle<T: Element>(case: &Case<T>) -> Oracle {
    let AttentionShape { query_heads, kv_heads, head_dim } = case.shape;
    let mut answer =
        Oracle { output: vec![], output_bounds: vec![], log_sum_exp: vec![], log_sum_exp_bounds: vec![] };
    let scale = case.options.scale.map_or(1.0 / f64::from((head_dim as f32).sqrt()), f64::from);
    let mut first_row = 0;
    for (index, sequence) in case.sequences.iter().enumerate() {
        for query in 0..sequence.queries {
            let position = sequence.context - sequence.queries + query;
            for head in 0..query_heads {
                let kv_head = head * kv_heads / query_heads;
                let q = &case.queries[((first_row + query) * query_heads + head) * head_dim..][..head_dim];
                let stored = |from: &[T], token: usize, dim: usize| {
                    f64::from(from[(token * kv_heads + kv_head) * head_dim + dim].to_f32())
                };
                let (mut scores, mut magnitude) = (vec![f64::NEG_INFINITY; sequence.context], 0.0f64);
                for (token, score) in scores.iter_mut().enumerate() {
                    let hidden =
                        token > position || case.options.window.is_some_and(|w| position - token >= w);
                    if hidden {
                        continue;
                    }
                    let term = |d: usize| f64::from(q[d]) * stored(&case.keys[index], token, d);
                    let key_scale = f64::from(case.key_scales[kv_head]);
                    let bias = case.options.alibi_slopes.as_ref().map_or(0.0, |slopes| {
                        let round = |x: f32| bf16::from_f32(x).to_f32();
                        f64::from(round(round(slopes[head]) * round(token as f32)))
                    });
                    *score = scale * (key_scale * (0..head_dim).map(term).sum::<f64>() + bias);
                    let sizes = key_scale * (0..head_dim).map(|d| term(d).abs()).sum::<f64>() + bias.abs();
                    magnitude = magnitude.max(scale.abs() * sizes);
                }
                // The reference rounds `element * scale` to f32, and the default scale once more: each score is off by
                // at most `delta`, so each weight by a factor within exp(+-2 delta).
                let delta = 2.0 * UNIT * magnitude;
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for dim in 0..head_dim {
                    let value_scale = f64::from(case.value_scales[kv_head]);
                    let (mut total, mut sizes) = (0.0, 0.0);
                    for (token, weight) in weights.iter().enumerate() {
                        let term = weight / sum * value_scale * stored(&case.values[index], token, dim);
                        total += term;
                        sizes += term.abs();
                    }
                    answer.output.push(total);
                    answer.output_bounds.push((2.0 * (2.0 * delta).exp_m1() + 2.0 * UNIT) * sizes + 1e-30);
                }
                let lse = max + sum.ln();
                answer.log_sum_exp.push(lse);
                answer.log_sum_exp_bounds.push(delta + UNIT * lse.abs() + 1e-12);
            }
        }
        first_row += sequence.queries;
    }
    answer
}

fn check<T: Element>(case: &Case<T>, answer: &Answer) {
    let want = oracle(case);
    assert_close_f64(&answer.output, &want.output, &want.output_bounds);
    assert_close_f64(&answer.log_sum_exp, &want.log_sum_exp, &want.log_sum_exp_bounds);
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn equals_the_dense_oracle_f32(shape in shapes(), options in options(), sequences in sequences(), seed: u64) {
        let mut rng = Rng::new(seed);
        let case = build::<f32>(&mut rng, shape, options, sequences);
        check(&case, &case.run(&mut rng, 0));
    }

    #[test]
    fn equals_the_dense_oracle_bf16(shape in shapes(), options in options(), sequences in sequences(), seed: u64) {
        let mut rng = Rng::new(seed);
        let case = build::<bf16>(&mut rng, shape, options, sequences);
        check(&case, &case.run(&mut rng, 1));
    }

    #[test]
    fn equals_the_dense_oracle_e4m3(shape in shapes(), options in options(), sequences in sequences(), seed: u64) {
        let mut rng = Rng::new(seed);
        let case = build::<E4m3>(&mut rng, shape, options, sequences);
        check(&case, &case.run(&mut rng, 2));
    }

    /// Which pages hold a sequence, and how long the rows of the tables are, changes no bit.
    #[test]
    fn pages_do_not_matter(shape in shapes(), options in options(), sequences in sequences(), seed: u64) {
        let mut rng = Rng::new(seed);
        let case = build::<bf16>(&mut rng, shape, options, sequences);
        prop_assert_eq!(case.run(&mut rng, 0), case.run(&mut rng, 3));
    }

    /// A sequence gives the same bits alone and in any batch, in one chunk or token by token.
    #[test]
    fn batch_and_chunks_do_not_matter(shape in shapes(), options in options(), sequences in sequences(), seed: u64) {
        let mut rng = Rng::new(seed);
        let case = build::<E4m3>(&mut rng, shape, options, sequences);
        let whole = case.run(&mut rng, 0);
        let mut alone = Answer { output: vec![], log_sum_exp: vec![] };
        for (index, sequence) in case.sequences.iter().enumerate() {
            let mut rest = case.alone(index, sequence.queries);
            while rest.sequences[0].queries > 0 {
                // The next chunk: the cache ends with its last token.
                let left = rest.sequences[0].queries;
                let chunk = rng.below(1..left + 1);
                let mut first = rest.clone();
                let context = rest.sequences[0].context - (left - chunk);
                let (kv, width) = (shape.kv_heads * shape.head_dim, shape.query_heads * shape.head_dim);
                first.sequences = vec![Sequence { context, queries: chunk }];
                first.keys[0].truncate(context * kv);
                first.values[0].truncate(context * kv);
                first.queries.truncate(chunk * width);
                let answer = first.run(&mut rng, 0);
                alone.output.extend(answer.output);
                alone.log_sum_exp.extend(answer.log_sum_exp);
                rest = rest.alone(0, left - chunk);
            }
        }
        prop_assert_eq!(whole, alone);
    }

    /// A group of query heads is as many heads of plain multi-head attention over repeated keys and values.
    #[test]
    fn a_group_equals_repeated_heads(shape in shapes(), sequences in sequences(), seed: u64) {
        let mut rng = Rng::new(seed);
        let case = build::<f32>(&mut rng, shape, (None, None, false), sequences);
        let group = shape.group();
        let repeat = |from: &[f32], width: usize| -> Vec<f32> {
            from.chunks(width).flat_map(|head| head.repeat(group)).collect()
        };
        let plain = Case {
            shape: AttentionShape { kv_heads: shape.query_heads, ..shape },
            keys: case.keys.iter().map(|keys| repeat(keys, shape.head_dim)).collect(),
            values: case.values.iter().map(|values| repeat(values, shape.head_dim)).collect(),
            key_scales: repeat(&case.key_scales, 1),
            value_scales: repeat(&case.value_scales, 1),
            ..case.clone()
        };
        prop_assert_eq!(case.run(&mut rng, 0), plain.run(&mut rng, 0));
    }

    /// A window that reaches back to the start is no window.
    #[test]
    fn a_wide_window_is_none(shape in shapes(), sequences in sequences(), more in 0usize..3, seed: u64) {
        let mut rng = Rng::new(seed);
        let longest = sequences.iter().map(|s| s.context).max().unwrap_or(1);
        let mut case = build::<bf16>(&mut rng, shape, (None, Some(longest + more), true), sequences);
        let windowed = case.run(&mut rng, 0);
        case.options.window = None;
        prop_assert_eq!(windowed, case.run(&mut rng, 0));
    }

    /// What is outside the window, or not there yet, has no influence: it may as well be NaN.
    #[test]
    fn the_unseen_has_no_influence(
        shape in shapes(), context in 2usize..200, queries in 1usize..20, window in 1usize..100, seed: u64,
    ) {
        let mut rng = Rng::new(seed);
        let sequence = Sequence { context, queries: queries.min(context) };
        let case = build::<f32>(&mut rng, shape, (None, Some(window), false), vec![sequence]);
        let mut poisoned = case.clone();
        let unseen = (context - sequence.queries + 1).saturating_sub(window) * shape.kv_heads * shape.head_dim;
        poisoned.keys[0][..unseen].fill(f32::NAN);
        poisoned.values[0][..unseen].fill(f32::INFINITY);
        prop_assert_eq!(case.run(&mut rng, 0), poisoned.run(&mut rng, 0));

        // The first chunk of a sequence sees nothing of the tokens that will follow.
        let mut causal = build::<f32>(&mut rng, shape, (None, None, false), vec![Sequence { context, queries: context }]);
        let before = causal.run(&mut rng, 0);
        let seen = rng.below(1..context);
        causal.keys[0][seen * shape.kv_heads * shape.head_dim..].fill(7.0);
        causal.values[0][seen * shape.kv_heads * shape.head_dim..].fill(-9.0);
        let after = causal.run(&mut rng, 0);
        let rows = seen * shape.query_heads;
        prop_assert_eq!(&before.output[..rows * shape.head_dim], &after.output[..rows * shape.head_dim]);
        prop_assert_eq!(&before.log_sum_exp[..rows], &after.log_sum_exp[..rows]);
    }

    /// The weights sum to one: equal values come out as they are.
    #[test]
    fn equal_values_come_out(shape in shapes(), options in options(), sequences in sequences(), seed: u64) {
        let mut rng = Rng::new(seed);
        let mut case = build::<f32>(&mut rng, shape, options, sequences);
        let value: Vec<f32> = rng.tensor(shape.kv_heads * shape.head_dim, 1.0);
        for (values, sequence) in case.values.iter_mut().zip(&case.sequences) {
            *values = value.repeat(sequence.context);
        }
        let answer = case.run(&mut rng, 0);
        for (row, got) in answer.output.chunks(shape.head_dim).enumerate() {
            let kv_head = row % shape.query_heads / shape.group();
            let value = &value[kv_head * shape.head_dim..][..shape.head_dim];
            for (&got, &value) in got.iter().zip(value) {
                let want = f64::from(value) * f64::from(case.value_scales[kv_head]);
                prop_assert!((f64::from(got) - want).abs() <= 2.0 * UNIT * want.abs(), "{got} against {want}");
            }
        }
    }

    /// Two halves of the keys, attended to on their own, combine by their log-sum-exp into the whole.
    #[test]
    fn log_sum_exp_combines_parts(shape in shapes(), context in 2usize..200, seed: u64) {
        let mut rng = Rng::new(seed);
        let sequence = Sequence { context, queries: 1 };
        let case = build::<f32>(&mut rng, shape, (None, None, false), vec![sequence]);
        let whole = case.run(&mut rng, 0);
        let cut = rng.below(1..context);
        let part = |range: std::ops::Range<usize>| {
            let kv = shape.kv_heads * shape.head_dim;
            let elements = range.start * kv..range.end * kv;
            Case {
                sequences: vec![Sequence { context: range.len(), queries: 1 }],
                keys: vec![case.keys[0][elements.clone()].to_vec()],
                values: vec![case.values[0][elements].to_vec()],
                ..case.clone()
            }
        };
        let (left, right) = (part(0..cut).run(&mut rng, 0), part(cut..context).run(&mut rng, 0));
        let largest = case.values[0].iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs()))) * 1.5;
        for head in 0..shape.query_heads {
            let [l, r, w] = [&left, &right, &whole].map(|answer| f64::from(answer.log_sum_exp[head]));
            let share = 1.0 / (1.0 + (r - l).exp());
            // Each log-sum-exp is rounded to f32 once.
            let slack = 2.0 * UNIT * (l.abs() + r.abs() + w.abs() + 1.0);
            prop_assert!((w - (l.max(r) + (-(l - r).abs()).exp().ln_1p())).abs() <= slack);
            for dim in 0..shape.head_dim {
                let [l, r, w] = [&left, &right, &whole].map(|a| f64::from(a.output[head * shape.head_dim + dim]));
                prop_assert!((w - (share * l + (1.0 - share) * r)).abs() <= (slack + 4.0 * UNIT) * largest);
            }
        }
    }
}
