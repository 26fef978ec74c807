//! Each op against an oracle written another way, or an algebraic law. Shapes are ragged around every boundary.
// A failed expectation is the test's failure.
#![allow(clippy::unwrap_used)]

use device::{ActivationShape, E4m3, QuantizedActivation};
use half::{bf16, f16};
use layers::{Activate, Activation, AddResidual, Embedding, Norm, NormKind, Rotate, alibi_slopes};
use op_test::{Rng, assert_close_f64};
use proptest::prelude::*;

/// The rounding of one f32 result, twice, for the f64 arithmetic before it.
const F32: f64 = 1.0 / (1 << 23) as f64;

fn kinds() -> impl Strategy<Value = NormKind> {
    prop_oneof![Just(NormKind::Rms), Just(NormKind::Layer)]
}

fn activations() -> impl Strategy<Value = Activation> {
    prop_oneof![
        Just(Activation::Swiglu),
        Just(Activation::Gelu),
        Just(Activation::Silu),
        Just(Activation::Identity)
    ]
}

/// Sizes on either side of what a kernel may cut by.
fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..10, 30usize..34, 60usize..70, 120usize..136, 250usize..262]
}

/// Owns what a [`QuantizedActivation`] of the host borrows.
struct Quantized {
    shape: ActivationShape,
    codes: Vec<E4m3>,
    scales: Vec<f32>,
    group_sums: Vec<f32>,
}

impl Quantized {
    fn new(tokens: usize, features: usize, group_size: usize) -> Self {
        let shape = ActivationShape { tokens, features, group_size };
        let group_sums = vec![f32::NAN; tokens * shape.groups()];
        Self { shape, codes: vec![E4m3::NAN; tokens * features], scales: vec![f32::NAN; tokens], group_sums }
    }

    fn view(&mut self) -> QuantizedActivation<&mut [E4m3], &mut [f32]> {
        QuantizedActivation {
            shape: self.shape,
            codes: &mut self.codes,
            scales: &mut self.scales,
            group_sums: &mut self.group_sums,
        }
    }

    /// Holds codes, scales and sums against the row they stand for, in f32: each code is the nearest, the largest code
    /// is 448, sums are exact in units of 2^-9.
    fn check_against(&self, plain: &[f32]) {
        let (features, groups) = (self.shape.features, self.shape.groups());
        for (token, row) in plain.chunks_exact(features).enumerate() {
            let (codes, scale) = (&self.codes[token * features..][..features], self.scales[token]);
            let largest = row.iter().map(|x| x.abs()).max_by(f32::total_cmp).unwrap();
            if largest / 448.0 < f32::MIN_POSITIVE {
                assert_eq!(scale, 1.0);
            } else {
                assert!((scale * 448.0 / largest - 1.0).abs() <= 2.0 * f32::EPSILON);
            }
            let unscaled: Vec<f32> = codes.iter().map(|code| code.to_f32()).collect();
            let want: Vec<f64> = row.iter().map(|&x| f64::from(x) / f64::from(scale)).collect();
            // Half a unit of 3 mantissa bits, or of the subnormals' 2^-9, and the rounding of the f32 quotient.
            let half = |want: &f64| (want.abs() / 16.0).max(1.0 / 1024.0) * (1.0 + F32);
            assert_close_f64(&unscaled, &want, &want.iter().map(half).collect::<Vec<_>>());
            for group in 0..groups {
                let codes = &codes[group * features / groups..][..features / groups];
                let units: i64 = codes.iter().map(|code| (code.to_f32() * 512.0) as i64).sum();
                assert_eq!(self.group_sums[token * groups + group], units as f32 / 512.0);
            }
        }
    }
}

/// P(normal <= x) for x >= 0 by its power series, P(normal <= -x) by the continued fraction of Mills' ratio.
fn normal_tails(x: f64) -> (f64, f64) {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    if x < 2.0 {
        let (mut term, mut sum) = (x, x);
        for k in 1..60 {
            term *= x * x / f64::from(2 * k + 1);
            sum += term;
        }
        return (0.5 + density * sum, 0.5 - density * sum);
    }
    let mills = (1..400).rev().fold(x, |tail, k| x + f64::from(k) / tail);
    (1.0 - density / mills, density / mills)
}

fn activation_oracle(activation: Activation, x: f64, up: f64) -> f64 {
    let sigmoid = |x: f64| if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) };
    match activation {
        Activation::Swiglu => x * sigmoid(x) * up,
        Activation::Silu => x * sigmoid(x),
        Activation::Identity => x,
        Activation::Gelu if x < 0.0 => x * normal_tails(-x).1,
        Activation::Gelu => x * normal_tails(x).0,
    }
}

proptest! {
    #![proptest_config(op_test::cases())]

    #[test]
    fn norm_matches_its_moments(
        kind in kinds(), tokens in 0usize..4, features in sizes(), biased: bool, deltas in 0usize..=2, seed: u64
    ) {
        let mut rng = Rng::new(seed);
        let (weight, bias) = (rng.tensor(features, 1.0), rng.tensor(features, 1.0));
        let shift = rng.normal(4.0);
        let before: Vec<f32> = rng.tensor(tokens * features, 1.0).iter().map(|x| x + shift).collect();
        let deltas: Vec<Vec<f32>> = (0..deltas).map(|_| rng.tensor(tokens * features, 1.0)).collect();
        let deltas: Vec<&[f32]> = deltas.iter().map(Vec::as_slice).collect();
        let bias = biased.then_some(bias.as_slice());
        let epsilon = 1e-5;
        let norm = Norm::new(kind, features, epsilon).unwrap();
        let (mut residual, mut output) = (before.clone(), vec![f32::NAN; before.len()]);
        norm.reference(&weight, bias, &deltas, &mut residual, &mut output).unwrap();

        let summed: Vec<f32> = (0..before.len())
            .map(|i| match deltas[..] {
                [] => before[i],
                [first] => before[i] + first[i],
                [first, second, ..] => before[i] + (first[i] + second[i]),
            })
            .collect();
        prop_assert_eq!(&residual, &summed);

        // The variance from raw moments, E x^2 - (E x)^2, instead of from the deviations.
        let (mut want, mut bounds) = (Vec::new(), Vec::new());
        for row in summed.chunks_exact(features) {
            let moment = |power: i32| row.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / features as f64;
            let mean = if kind == NormKind::Rms { 0.0 } else { moment(1) };
            let variance = moment(2) - mean * mean;
            let deviation = (variance + f64::from(epsilon)).sqrt();
            // What cancellation leaves of f64 in the variance and in the differences.
            let lost = op_test::gamma(features + 3, f64::EPSILON) * moment(2);
            for (feature, &x) in row.iter().enumerate() {
                let weight = f64::from(weight[feature]);
                let bias = bias.map_or(0.0, |bias| f64::from(bias[feature]));
                let normal = (f64::from(x) - mean) / deviation * weight;
                want.push(normal + bias);
                let of_variance = lost / (2.0 * deviation * deviation) * normal.abs();
                let of_mean = op_test::gamma(features + 3, f64::EPSILON) * moment(2).sqrt() / deviation * weight.abs();
                bounds.push(F32 * (normal + bias).abs() + of_variance + of_mean);
            }
        }
        assert_close_f64(&output, &want, &bounds);

        for group_size in [0, 1, features] {
            let mut quantized = Quantized::new(tokens, features, group_size);
            let mut again = before.clone();
            norm.reference_quantized(&weight, bias, &deltas, &mut again, &mut quantized.view()).unwrap();
            prop_assert_eq!(&again, &residual);
            quantized.check_against(&output);
        }
    }

    #[test]
    fn norm_ignores_scale_and_layer_norm_shift(kind in kinds(), features in sizes(), log_scale in -20i32..20, seed: u64) {
        let mut rng = Rng::new(seed);
        let scale = (log_scale as f32).exp2();
        let weight = rng.tensor(features, 1.0);
        // Multiples of 2^-10, so that the shift by 1 is exact.
        let row: Vec<f32> = (0..features).map(|_| rng.below(0..4096) as f32 / 1024.0 - 2.0).collect();
        let apply = |epsilon: f32, row: &mut [f32]| {
            let mut output = vec![f32::NAN; features];
            Norm::new(kind, features, epsilon).unwrap().reference(&weight, None, &[], row, &mut output).unwrap();
            output
        };
        let plain = apply(1.0 / 1024.0, &mut row.clone());
        let scaled = apply(scale * scale / 1024.0, &mut row.iter().map(|x| x * scale).collect::<Vec<_>>());
        prop_assert_eq!(&plain, &scaled, "a power of two leaves every rounding as it is");
        if kind == NormKind::Layer {
            let shifted = apply(1.0 / 1024.0, &mut row.iter().map(|x| x + 1.0).collect::<Vec<_>>());
            let want: Vec<f64> = plain.iter().map(|&x| f64::from(x)).collect();
            // The mean's rounding in f64, through a deviation of at least 2^-5.
            let bounds: Vec<f64> = want.iter().map(|x| F32 * x.abs() + 1e-11).collect();
            assert_close_f64(&shifted, &want, &bounds);
        }
    }

    #[test]
    fn activation_matches_its_series(
        activation in activations(), tokens in 0usize..4, features in sizes(), scaled: bool,
        deviation in prop_oneof![Just(0.1f32), Just(3.0), Just(12.0)], seed: u64
    ) {
        let mut rng = Rng::new(seed);
        let columns = features * activation.fan_in();
        let input = rng.tensor(tokens * columns, deviation);
        let multiplier = rng.tensor(features, 1.0);
        let multiplier = scaled.then_some(multiplier.as_slice());
        let activate = Activate::new(activation, features).unwrap();
        let mut output = vec![f32::NAN; tokens * features];
        activate.reference(&input, multiplier, &mut output).unwrap();

        let mut want = Vec::new();
        for row in input.chunks_exact(columns) {
            for feature in 0..features {
                let up = row[columns - features + feature];
                let factor = multiplier.map_or(1.0, |multiplier| f64::from(multiplier[feature]));
                want.push(activation_oracle(activation, f64::from(row[feature]), f64::from(up)) * factor);
            }
        }
        let bounds: Vec<f64> = want.iter().map(|want| F32 * want.abs() + f64::from(f32::MIN_POSITIVE) * F32).collect();
        assert_close_f64(&output, &want, &bounds);

        for group_size in [0, 1, features] {
            let mut quantized = Quantized::new(tokens, features, group_size);
            activate.reference_quantized(&input, multiplier, &mut quantized.view()).unwrap();
            quantized.check_against(&output);
        }
    }

    #[test]
    fn add_residual_is_exact(tokens in 0usize..4, features in sizes(), seed: u64) {
        let mut rng = Rng::new(seed);
        let len = tokens * features;
        // Multiples of 2^-10 below 8: every sum is exact, in any order.
        let mut tensor = || (0..len).map(|_| rng.below(0..16384) as f32 / 1024.0 - 8.0).collect::<Vec<f32>>();
        let (before, attention, mlp) = (tensor(), tensor(), tensor());
        let add = AddResidual::new(features).unwrap();
        let (mut at_once, mut in_turn) = (before.clone(), before.clone());
        add.reference(&[&attention, &mlp], &mut at_once).unwrap();
        add.reference(&[&mlp], &mut in_turn).unwrap();
        add.reference(&[&attention], &mut in_turn).unwrap();
        prop_assert_eq!(&at_once, &in_turn);
        add.reference(&[], &mut at_once).unwrap();
        prop_assert_eq!(&at_once, &in_turn);
        for i in 0..len {
            prop_assert_eq!(in_turn[i] - attention[i] - mlp[i], before[i]);
        }
    }

    #[test]
    fn embedding_gathers_bits(vocab_size in 1usize..40, tokens in 0usize..9, features in sizes(), seed: u64) {
        fn check<T: device::Element>(table: Vec<T>, tokens: &[u32], vocab_size: usize, features: usize) {
            let mut output = vec![f32::NAN; tokens.len() * features];
            Embedding::new(vocab_size, features).unwrap().reference(&table, tokens, &mut output).unwrap();
            for (i, out) in output.iter().enumerate() {
                assert_eq!(T::from_f32(*out), table[tokens[i / features] as usize * features + i % features]);
            }
        }
        let mut rng = Rng::new(seed);
        let table = rng.tensor(vocab_size * features, 1.0);
        let tokens: Vec<u32> = (0..tokens).map(|_| rng.below(0..vocab_size) as u32).collect();
        check(table.iter().map(|&x| bf16::from_f32(x)).collect(), &tokens, vocab_size, features);
        check(table.iter().map(|&x| f16::from_f32(x)).collect(), &tokens, vocab_size, features);
        check(table.iter().map(|&x| E4m3::from_f32(x)).collect(), &tokens, vocab_size, features);
        check(table, &tokens, vocab_size, features);
    }

    #[test]
    fn rotation_is_a_complex_product(
        tokens in 0usize..4, heads in 1usize..5, half in 1usize..40, still in 0usize..4, seed: u64
    ) {
        let mut rng = Rng::new(seed);
        let head_dim = 2 * (half + still);
        let rotated_heads = rng.below(0..heads + 1);
        let positions: Vec<u32> = (0..tokens).map(|_| rng.below(0..100_000) as u32).collect();
        let frequencies: Vec<f32> = (0..half).map(|_| rng.signed().abs()).collect();
        let before = rng.tensor(tokens * heads * head_dim, 1.0);
        let mut after = before.clone();
        Rotate::new(heads, rotated_heads, head_dim).unwrap().reference(&positions, &frequencies, &mut after).unwrap();

        let (mut want, mut bounds) = (Vec::new(), Vec::new());
        for (index, &x) in before.iter().enumerate() {
            let (dim, head) = (index % head_dim, index / head_dim % heads);
            if head >= rotated_heads || dim >= 2 * half {
                want.push(f64::from(x));
                bounds.push(0.0);
                continue;
            }
            // (a + b i) e^(i angle), the angle rounded to f32 as everywhere.
            let position = positions[index / head_dim / heads];
            let angle = f64::from(position as f32 * frequencies[dim % half]);
            let (a, b) = (f64::from(before[index - dim + dim % half]), f64::from(before[index - dim + dim % half + half]));
            let (length, phase) = (a.hypot(b), b.atan2(a) + angle);
            want.push(length * if dim < half { phase.cos() } else { phase.sin() });
            // Two products of a rounded sine or cosine, and their sum; f64 loses less than 2^-30 of the phase.
            bounds.push(3.0 * F32 * (a.abs() + b.abs()));
        }
        assert_close_f64(&after, &want, &bounds);
    }

    #[test]
    fn alibi_slopes_interleave(heads in 1usize..300) {
        let slopes = alibi_slopes(heads);
        let power = 1 << heads.ilog2();
        let finer = alibi_slopes(2 * power);
        for (i, &slope) in slopes.iter().enumerate() {
            let at = if i < power { 2 * i + 1 } else { 2 * (i - power) };
            prop_assert_eq!(slope, finer[at]);
        }
        // Of a power of two, neighbours have one ratio and the last slope is 2^-8; bf16 keeps 8 bits.
        prop_assert_eq!(finer[2 * power - 1], 1.0 / 256.0);
        let ratio = (-8.0 / (2 * power) as f64).exp2();
        for pair in finer.windows(2) {
            prop_assert!((f64::from(pair[1] / pair[0]) / ratio - 1.0).abs() <= 1.01 / 128.0);
        }
    }
}
