//! The products, the quantizer and the canonical form against independent formulas.
// A test that cannot make its input has failed.
#![allow(clippy::unwrap_used)]

mod common;

use awq_gemm::{Int4Shape, Int4Weights, W4A8, W4A16, quantize};
use common::weights;
use device::{ActivationShape, E4m3, QuantizedActivation};
use half::f16;
use op_test::{Guarded, Rng, assert_close_f64, gamma};
use proptest::prelude::*;

/// Unit roundoff of f32 and f64.
const U32: f64 = 1.0 / (1u64 << 24) as f64;
const U64: f64 = 1.0 / (1u64 << 53) as f64;

fn shapes() -> impl Strategy<Value = Int4Shape> {
    // Around the eight partial sums and around the groups of real checkpoints.
    let group_size = prop_oneof![1usize..=20, Just(32), 63usize..=65, 127usize..=129];
    (group_size, 1usize..=4, 1usize..=17)
        .prop_map(|(group_size, groups, n)| Int4Shape::new(group_size * groups, n, group_size).unwrap())
}

struct Activation {
    shape: ActivationShape,
    codes: Vec<E4m3>,
    scales: Vec<f32>,
    group_sums: Vec<f32>,
}

impl Activation {
    fn random(shape: Int4Shape, tokens: usize, rng: &mut Rng) -> Self {
        let codes: Vec<E4m3> = (0..tokens * shape.in_features())
            .map(|_| match E4m3(rng.bits() as u8) {
                code if code.is_nan() => E4m3(0),
                code => code,
            })
            .collect();
        let sum = |codes: &[E4m3]| codes.iter().map(|code| f64::from(code.to_f32())).sum::<f64>();
        let group_sums = codes.chunks(shape.group_size()).map(|codes| sum(codes) as f32).collect();
        let scales = (0..tokens).map(|_| 0.001 + rng.signed().abs()).collect();
        let (features, group_size) = (shape.in_features(), shape.group_size());
        Self { shape: ActivationShape { tokens, features, group_size }, codes, scales, group_sums }
    }

    fn view(&self) -> QuantizedActivation<&[E4m3], &[f32]> {
        let (codes, scales, group_sums) = (&self.codes[..], &self.scales[..], &self.group_sums[..]);
        QuantizedActivation { shape: self.shape, codes, scales, group_sums }
    }
}

/// The product in integers of 2^-9 (every e4m3 value is one), with each product's magnitude summed beside it.
fn exact_group(x: &[E4m3], codes: &[u8], zero: u8) -> (f64, f64) {
    let terms = x.iter().zip(codes).map(|(x, &code)| {
        let units = (x.to_f32() * 512.0) as i64;
        units * (i64::from(code) - i64::from(zero))
    });
    let (sum, magnitude) = terms.fold((0, 0), |(sum, magnitude), term| (sum + term, magnitude + term.abs()));
    (sum as f64 / 512.0, magnitude as f64 / 512.0)
}

proptest! {
    #![proptest_config(op_test::cases())]

    #[test]
    fn w4a8_by_definition_and_by_group_sums(shape in shapes(), tokens in 0usize..=5, bias: bool, seed: u64) {
        let mut rng = Rng::new(seed);
        let weights = weights(shape, seed ^ 1);
        let x = Activation::random(shape, tokens, &mut rng);
        let bias = bias.then(|| rng.tensor(shape.out_features(), 1.0));
        let (mut want, mut bounds) = (Vec::new(), Vec::new());
        for token in 0..tokens {
            for n in 0..shape.out_features() {
                let (mut sum, mut magnitude) = (0.0, 0.0);
                for group in 0..shape.groups() {
                    let features = group * shape.group_size()..(group + 1) * shape.group_size();
                    let x = &x.codes[token * shape.in_features()..][features.clone()];
                    let codes = &weights.codes()[n * shape.in_features()..][features];
                    let at = n * shape.groups() + group;
                    let exact = exact_group(x, codes, weights.zeros()[at]);
                    let scale = f64::from(weights.scales()[at]);
                    sum += exact.0 * scale;
                    // The second form sums codes and zero points apart: each at most 15 times the activations.
                    let apart: f64 = x.iter().map(|x| 30.0 * f64::from(x.to_f32().abs())).sum();
                    magnitude += (exact.1 + apart) * scale.abs();
                }
                let scale = f64::from(x.scales[token]);
                let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[n]));
                want.push(sum * scale + bias);
                let terms = 2 * shape.in_features() + 4 * shape.groups() + 4;
                let rounding = gamma(terms, U64) * (magnitude * scale + bias.abs());
                bounds.push(rounding + U32 * (sum * scale + bias).abs() + f64::from(f32::MIN_POSITIVE));
            }
        }
        let plan = W4A8::new(shape);
        let mut y = Guarded::<f32>::new(want.len());
        plan.reference(&x.view(), &weights, bias.as_deref(), y.payload_mut()).unwrap();
        assert_close_f64(&y.checked(), &want, &bounds);
        // A group sum is rounded to f32; the zero point, the scale and the activation's scale multiply that.
        for (i, bound) in bounds.iter_mut().enumerate() {
            let (token, n) = (i / shape.out_features(), i % shape.out_features());
            for group in 0..shape.groups() {
                let at = n * shape.groups() + group;
                let sum = f64::from(x.group_sums[token * shape.groups() + group] * x.scales[token]);
                *bound += 2.0 * U32 * (sum * f64::from(weights.zeros()[at]) * f64::from(weights.scales()[at])).abs();
            }
        }
        let mut y = Guarded::<f32>::new(want.len());
        plan.reference_by_group_sums(&x.view(), &weights, bias.as_deref(), y.payload_mut()).unwrap();
        assert_close_f64(&y.checked(), &want, &bounds);
    }

    #[test]
    fn w4a16_by_the_dequantized_weights(shape in shapes(), tokens in 0usize..=5, bias: bool, seed: u64) {
        let mut rng = Rng::new(seed);
        let weights = weights(shape, seed ^ 1);
        let x = rng.tensor(tokens * shape.in_features(), 3.0);
        let bias = bias.then(|| rng.tensor(shape.out_features(), 1.0));
        let dense = weights.dequantize();
        let (mut want, mut bounds) = (Vec::new(), Vec::new());
        for x in x.chunks(shape.in_features()) {
            for n in 0..shape.out_features() {
                let row = &dense[n * shape.in_features()..][..shape.in_features()];
                // From the back, so that the order of the sum is another one.
                let terms = || x.iter().zip(row).rev().map(|(x, w)| f64::from(*x) * f64::from(*w));
                let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[n]));
                let (sum, magnitude): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                want.push(sum + bias);
                let rounding = 2.0 * gamma(shape.in_features() + 2, U64) * (magnitude + bias.abs());
                bounds.push(rounding + U32 * (sum + bias).abs() + f64::from(f32::MIN_POSITIVE));
            }
        }
        let mut y = Guarded::<f32>::new(want.len());
        W4A16::new(shape).reference(&x, &weights, bias.as_deref(), y.payload_mut()).unwrap();
        assert_close_f64(&y.checked(), &want, &bounds);
    }

    /// Every weight, bit for bit, in f32 arithmetic: a product of 4 and 11 bits does not round.
    #[test]
    fn dequantize_is_exact(shape in shapes(), seed: u64) {
        let weights = weights(shape, seed);
        for (i, weight) in weights.dequantize().into_iter().enumerate() {
            let group = i / shape.group_size();
            let code = i32::from(weights.codes()[i]) - i32::from(weights.zeros()[group]);
            prop_assert_eq!(weight, code as f32 * weights.scales()[group]);
        }
    }

    /// No other code would have been nearer; 0 is kept; a scale is the range over 15.
    #[test]
    fn quantize_takes_the_nearest_code(shape in shapes(), exponent in -30i32..=15, seed: u64) {
        let mut rng = Rng::new(seed);
        let mut dense = rng.tensor(shape.out_features() * shape.in_features(), 2.0f32.powi(exponent));
        match seed % 4 {
            0 => dense.iter_mut().for_each(|w| *w = w.abs()),
            1 => dense.iter_mut().for_each(|w| *w = -w.abs()),
            2 => dense.iter_mut().step_by(3).for_each(|w| *w = 0.0),
            _ => {}
        }
        let weights = quantize(shape, &dense).unwrap();
        for (i, (&want, got)) in dense.iter().zip(weights.dequantize()).enumerate() {
            let group = i / shape.group_size();
            let (zero, scale) = (weights.zeros()[group], weights.scales()[group]);
            let error = |code: u8| (f64::from(code) - f64::from(zero)) * f64::from(scale) - f64::from(want);
            let best = (0..16).map(|code| error(code).abs()).fold(f64::INFINITY, f64::min);
            // Dividing in f32 can turn a tie; then both codes are as near to within that rounding.
            let ulps = 32.0 * U32 * f64::from(scale);
            prop_assert!(error(weights.codes()[i]).abs() <= best + ulps, "[{i}]: {want} became {got}");
            if want == 0.0 {
                prop_assert_eq!(got, 0.0);
            }
        }
        for (group, dense) in dense.chunks(shape.group_size()).enumerate() {
            let low = dense.iter().fold(0.0f64, |low, &w| low.min(f64::from(w)));
            let high = dense.iter().fold(0.0f64, |high, &w| high.max(f64::from(w)));
            let scale = f64::from(weights.scales()[group]);
            // f16 rounds by half a unit in the last place, or by half its smallest subnormal.
            let rounding = (high - low) / 15.0 * (1.0 / 2048.0 + 8.0 * U32) + 2.0f64.powi(-25);
            prop_assert!((scale - (high - low) / 15.0).abs() <= rounding);
        }
    }

    /// Weights on the grid come back as they were, where a group's range uses all 16 codes.
    #[test]
    fn quantize_is_exact_on_the_grid(group_size in 2usize..=130, groups in 1usize..=40, seed: u64) {
        let mut rng = Rng::new(seed);
        let shape = Int4Shape::new(group_size, groups, group_size).unwrap();
        let zeros: Vec<u8> = (0..groups).map(|_| rng.below(0..16) as u8).collect();
        let scales: Vec<f32> =
            (0..groups).map(|_| f16::from_f32(0.001 + 0.1 * rng.signed().abs()).to_f32()).collect();
        let mut codes: Vec<u8> = (0..groups * group_size).map(|_| rng.below(0..16) as u8).collect();
        for codes in codes.chunks_mut(group_size) {
            (codes[0], codes[group_size - 1]) = (15, 0);
        }
        let weights = Int4Weights::new(shape, codes, zeros, scales).unwrap();
        prop_assert_eq!(quantize(shape, &weights.dequantize()).unwrap(), weights);
    }

    #[test]
    fn rows_select_and_concat(shape in shapes(), seed: u64) {
        let mut rng = Rng::new(seed);
        let weights = weights(shape, seed ^ 1);
        let dense = weights.dequantize();
        let rows: Vec<usize> = (0..rng.below(1..20)).map(|_| rng.below(0..shape.out_features())).collect();
        let selected = weights.select_rows(&rows).unwrap();
        let want: Vec<f32> =
            rows.iter().flat_map(|row| &dense[row * shape.in_features()..][..shape.in_features()]).copied().collect();
        prop_assert_eq!(selected.dequantize(), want);
        let parts: Vec<Int4Weights> = rows.iter().map(|&row| weights.select_rows(&[row]).unwrap()).collect();
        prop_assert_eq!(Int4Weights::concat(&parts).unwrap(), selected);
    }
}

/// Real shapes: Falcon-180B's and Llama-70B's rows, a few of them, one token.
#[test]
fn real_rows() {
    for in_features in [14848, 59392, 8192, 28672] {
        let shape = Int4Shape::new(in_features, 24, 128).unwrap();
        let weights = weights(shape, in_features as u64);
        let mut rng = Rng::new(7);
        let x = Activation::random(shape, 1, &mut rng);
        let (mut by_definition, mut by_sums) = (vec![f32::NAN; 24], vec![f32::NAN; 24]);
        let plan = W4A8::new(shape);
        plan.reference(&x.view(), &weights, None, &mut by_definition).unwrap();
        plan.reference_by_group_sums(&x.view(), &weights, None, &mut by_sums).unwrap();
        let widened: Vec<f32> = x.codes.iter().map(|code| code.to_f32() * x.scales[0]).collect();
        let mut by_w4a16 = vec![f32::NAN; 24];
        W4A16::new(shape).reference(&widened, &weights, None, &mut by_w4a16).unwrap();
        let dense = weights.dequantize();
        let magnitude = |n: usize| -> f64 {
            let row = &dense[n * in_features..][..in_features];
            row.iter().zip(&widened).map(|(w, x)| f64::from((w * x).abs())).sum()
        };
        // One rounding of each scaled activation and of each group sum, zero points up to 15 of at most 30 parts.
        let bounds: Vec<f64> = (0..24).map(|n| 32.0 * U32 * magnitude(n)).collect();
        let want: Vec<f64> = by_definition.iter().map(|&y| f64::from(y)).collect();
        assert_close_f64(&by_sums, &want, &bounds);
        assert_close_f64(&by_w4a16, &want, &bounds);
    }
}
