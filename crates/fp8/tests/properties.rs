//! Quantization and products against laws and independent oracles.

// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

use device::{ActivationShape, E4m3, Element, QuantizedActivation};
use fp8::{DenseProduct, Fp8Product, Quantize, ScaleChoice};
use half::{bf16, f16};
use op_test::{Rng, assert_close_f64, gamma};
use proptest::prelude::*;

/// A quantized activation that owns its parts.
type Owned = QuantizedActivation<Vec<E4m3>, Vec<f32>>;

fn quantize(plan: &Quantize, x: &[f32], features: usize) -> Owned {
    let shape = plan.shape(x.len() / features);
    let (mut codes, mut scales) = (vec![E4m3::NAN; x.len()], vec![f32::NAN; shape.tokens]);
    let mut group_sums = vec![f32::NAN; shape.tokens * shape.groups()];
    let (c, s, g) = (&mut codes[..], &mut scales[..], &mut group_sums[..]);
    plan.reference(x, &mut QuantizedActivation { shape, codes: c, scales: s, group_sums: g }).unwrap();
    Owned { shape, codes, scales, group_sums }
}

fn borrowed(x: &Owned) -> QuantizedActivation<&[E4m3], &[f32]> {
    QuantizedActivation { shape: x.shape, codes: &x.codes, scales: &x.scales, group_sums: &x.group_sums }
}

/// Tokens, groups, group_size, deviation, seed.
fn activation() -> impl Strategy<Value = (usize, usize, usize, f32, u64)> {
    let group_size = prop_oneof![1usize..10, Just(64), Just(127), Just(128), Just(129)];
    let deviation = (-90i32..90).prop_map(|exponent| 2f32.powi(exponent));
    (0usize..5, 1usize..4, group_size, deviation, any::<u64>())
}

/// Rows of any size; some are zero, some elements stand far out.
fn rows(tokens: usize, features: usize, deviation: f32, rng: &mut Rng) -> Vec<f32> {
    let mut x = rng.tensor(tokens * features, deviation);
    for row in x.chunks_exact_mut(features) {
        match rng.below(0..4) {
            0 => row.fill(0.0),
            1 => row[rng.below(0..features)] *= 1000.0,
            _ => {}
        }
    }
    x
}

/// The code's value in units of 2^-9.
fn units(code: E4m3) -> i64 {
    (f64::from(code.to_f32()) * 512.0) as i64
}

proptest! {
    #![proptest_config(op_test::cases())]

    #[test]
    fn a_token_keeps_its_values_to_half_a_step((tokens, groups, group_size, deviation, seed) in activation()) {
        let features = groups * group_size;
        let x = rows(tokens, features, deviation, &mut Rng::new(seed));
        let plan = Quantize::per_token(features).unwrap().with_group_sums(group_size).unwrap();
        let q = quantize(&plan, &x, features);
        for (token, row) in x.chunks_exact(features).enumerate() {
            let absmax = row.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            let scale = f64::from(q.scales[token]);
            if absmax == 0.0 {
                prop_assert_eq!(scale, 1.0);
            } else {
                prop_assert!((scale * 448.0 - f64::from(absmax)).abs() <= f64::from(absmax) * 2f64.powi(-24));
            }
            let codes = &q.codes[token * features..][..features];
            for (&x, &code) in row.iter().zip(codes) {
                // Half a step: 2^-4 of a normal value, 2^-10 of the scale below; the quotient's rounding on top.
                let step = (f64::from(x).abs() * 2f64.powi(-4)).max(scale * 2f64.powi(-10));
                let error = (f64::from(x) - f64::from(code.to_f32()) * scale).abs();
                prop_assert!(error <= step * (1.0 + 2f64.powi(-18)), "{x} as {code:?} at {scale}");
                if x.abs() == absmax && absmax > 0.0 {
                    prop_assert_eq!(code.to_f32().abs(), 448.0);
                }
            }
            for (group, codes) in codes.chunks_exact(group_size).enumerate() {
                let sum: i64 = codes.iter().map(|&code| units(code)).sum();
                prop_assert_eq!(q.group_sums[token * groups + group], sum as f32 / 512.0);
            }
        }
    }

    #[test]
    fn powers_of_two_go_into_the_scale(
        (tokens, groups, group_size, _, seed) in activation(),
        exponent in -60i32..60,
    ) {
        let features = groups * group_size;
        let x = rows(tokens, features, 1.0, &mut Rng::new(seed));
        let factor = 2f32.powi(exponent);
        let scaled: Vec<f32> = x.iter().map(|x| x * factor).collect();
        for plan in [Quantize::per_token(features).unwrap(), Quantize::per_tensor(features).unwrap()] {
            let (one, two) = (quantize(&plan, &x, features), quantize(&plan, &scaled, features));
            prop_assert_eq!(&one.codes, &two.codes);
            let zeros = |scale: f32| scale == 1.0;
            for (one, two) in one.scales.iter().zip(&two.scales) {
                prop_assert!(one * factor == *two || zeros(*one) && zeros(*two));
            }
        }
    }

    #[test]
    fn one_scale_for_the_tensor_is_that_of_one_long_token(
        (tokens, groups, group_size, deviation, seed) in activation(),
    ) {
        let features = groups * group_size;
        let x = rows(tokens.max(1), features, deviation, &mut Rng::new(seed));
        let plan = Quantize::per_tensor(features).unwrap().with_group_sums(group_size).unwrap();
        let as_one = Quantize::per_token(x.len()).unwrap().with_group_sums(group_size).unwrap();
        let (tensor, token) = (quantize(&plan, &x, features), quantize(&as_one, &x, x.len()));
        prop_assert_eq!(tensor.codes, token.codes);
        prop_assert_eq!(tensor.group_sums, token.group_sums);
        prop_assert!(tensor.scales.iter().all(|&scale| scale == token.scales[0]));
    }

    #[test]
    fn a_given_scale_is_kept_and_no_other_code_is_nearer(
        (tokens, groups, group_size, deviation, seed) in activation(),
        exponent in -20i32..20,
    ) {
        let features = groups * group_size;
        let mut rng = Rng::new(seed);
        let x = rows(tokens, features, deviation, &mut rng);
        let scale = deviation * 2f32.powi(exponent) * (1.5 + rng.signed() / 2.0);
        let plan = Quantize::new(features, ScaleChoice::Given(scale)).unwrap();
        let q = quantize(&plan, &x, features);
        prop_assert!(q.scales.iter().all(|&got| got == scale));
        let finite: Vec<E4m3> = (0..=255).map(E4m3).filter(|code| !code.is_nan()).collect();
        for (&x, &code) in x.iter().zip(&q.codes) {
            let distance = |code: E4m3| (f64::from(x) - f64::from(code.to_f32()) * f64::from(scale)).abs();
            let nearest = finite.iter().map(|&code| distance(code)).fold(f64::INFINITY, f64::min);
            // The quotient is rounded before the code is.
            let slack = f64::from(x).abs() * 2f64.powi(-23);
            prop_assert!(distance(code) <= nearest + slack, "{x} as {code:?} at {scale}");
        }
    }
}

/// Tokens, in_features, out_features, seed: small ones, and some beyond what is shared out to threads.
fn product_shape() -> impl Strategy<Value = (usize, usize, usize, u64)> {
    let small = (0usize..4, 1usize..40, 1usize..40);
    let large = (1usize..4, 120usize..400, 150usize..400);
    let shape = prop_oneof![3 => small, 1 => large];
    (shape, any::<u64>()).prop_map(|((tokens, k, n), seed)| (tokens, k, n, seed))
}

/// A finite code, any of them.
fn any_code(rng: &mut Rng) -> E4m3 {
    let magnitude = rng.below(0..0x7f) as u8;
    E4m3(magnitude | (rng.bits() as u8 & 0x80))
}

fn any_scales(len: usize, rng: &mut Rng) -> Vec<f32> {
    (0..len).map(|_| 2f32.powi(rng.below(0..20) as i32 - 10) * (1.5 + rng.signed() / 2.0)).collect()
}

struct Fp8Case {
    x: Owned,
    weights: Vec<E4m3>,
    weight_scales: Vec<f32>,
    bias: Vec<f32>,
}

fn fp8_case(tokens: usize, in_features: usize, out_features: usize, rng: &mut Rng) -> Fp8Case {
    let codes = (0..tokens * in_features).map(|_| any_code(rng)).collect();
    let shape = ActivationShape { tokens, features: in_features, group_size: 0 };
    let x = Owned { shape, codes, scales: any_scales(tokens, rng), group_sums: Vec::new() };
    let weights = (0..out_features * in_features).map(|_| any_code(rng)).collect();
    Fp8Case {
        x,
        weights,
        weight_scales: any_scales(out_features, rng),
        bias: rng.tensor(out_features, 100.0),
    }
}

fn fp8_product(case: &Fp8Case, x: &QuantizedActivation<&[E4m3], &[f32]>, bias: Option<&[f32]>) -> Vec<f32> {
    let out_features = case.weight_scales.len();
    let plan = Fp8Product::new(x.shape.features, out_features).unwrap();
    let mut y = vec![f32::NAN; x.shape.tokens * out_features];
    plan.reference(x, &case.weights, &case.weight_scales, bias, &mut y).unwrap();
    y
}

proptest! {
    #![proptest_config(op_test::cases())]

    #[test]
    fn fp8_products_are_their_integer_sums_scaled(
        (tokens, in_features, out_features, seed) in product_shape(),
        with_bias in any::<bool>(),
    ) {
        let case = fp8_case(tokens, in_features, out_features, &mut Rng::new(seed));
        let got = fp8_product(&case, &borrowed(&case.x), with_bias.then_some(&case.bias));
        let (mut want, mut bounds) = (Vec::new(), Vec::new());
        for token in 0..tokens {
            for n in 0..out_features {
                let pairs = (0..in_features).map(|k| {
                    units(case.x.codes[token * in_features + k]) * units(case.weights[n * in_features + k])
                });
                let scale = f64::from(case.x.scales[token]) * f64::from(case.weight_scales[n]);
                let product = pairs.sum::<i64>() as f64 * 2f64.powi(-18) * scale;
                let bias = if with_bias { f64::from(case.bias[n]) } else { 0.0 };
                want.push(product + bias);
                // One rounding to f32, of a sum whose terms were rounded to f64.
                let terms = product.abs() + bias.abs();
                bounds.push((product + bias).abs() * 2f64.powi(-24) + terms * 2f64.powi(-50) + 1e-45);
            }
        }
        assert_close_f64(&got, &want, &bounds);
    }

    #[test]
    fn a_token_of_an_fp8_product_is_the_same_alone(
        (tokens, in_features, out_features, seed) in product_shape(),
    ) {
        let case = fp8_case(tokens, in_features, out_features, &mut Rng::new(seed));
        let together = fp8_product(&case, &borrowed(&case.x), Some(&case.bias));
        for token in 0..tokens {
            let alone = QuantizedActivation {
                shape: ActivationShape { tokens: 1, ..case.x.shape },
                codes: &case.x.codes[token * in_features..][..in_features],
                scales: &case.x.scales[token..=token],
                group_sums: &[][..],
            };
            let alone = fp8_product(&case, &alone, Some(&case.bias));
            prop_assert_eq!(&alone[..], &together[token * out_features..][..out_features]);
        }
    }

    #[test]
    fn dense_products_are_their_sums(
        (tokens, in_features, out_features, seed) in product_shape(),
        with_bias in any::<bool>(),
    ) {
        let mut rng = Rng::new(seed);
        let (x, weights) = (rng.tensor(tokens * in_features, 1.0), rng.tensor(out_features * in_features, 0.1));
        let bias = rng.tensor(out_features, 10.0);
        let bias = with_bias.then_some(&bias[..]);
        let got = dense(&x, &weights, bias, in_features, out_features);
        let (mut want, mut bounds) = (Vec::new(), Vec::new());
        for token in 0..tokens {
            for n in 0..out_features {
                // From the last product to the first, the bias before them all.
                let mut sum = bias.map_or(0.0, |bias| f64::from(bias[n]));
                let mut magnitude = sum.abs();
                for k in (0..in_features).rev() {
                    let product = f64::from(x[token * in_features + k]) * f64::from(weights[n * in_features + k]);
                    sum += product;
                    magnitude += product.abs();
                }
                want.push(sum);
                // Both sums are off by gamma at most; then one rounding to f32.
                let sums = 2.0 * gamma(in_features + 1, 2f64.powi(-53)) * magnitude;
                bounds.push(sum.abs() * 2f64.powi(-24) + sums + 1e-45);
            }
        }
        assert_close_f64(&got, &want, &bounds);
    }

    #[test]
    fn narrow_weights_stand_for_their_values(
        (tokens, in_features, out_features, seed) in product_shape(),
    ) {
        let mut rng = Rng::new(seed);
        let (x, weights) = (rng.tensor(tokens * in_features, 1.0), rng.tensor(out_features * in_features, 0.1));
        fn check<W: Element>(x: &[f32], weights: &[f32], in_features: usize, out_features: usize) {
            let narrow: Vec<W> = weights.iter().map(|&w| W::from_f32(w)).collect();
            let widened: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
            let got = dense(x, &narrow, None, in_features, out_features);
            assert_eq!(got, dense(x, &widened, None, in_features, out_features), "{}", W::NAME);
        }
        check::<bf16>(&x, &weights, in_features, out_features);
        check::<f16>(&x, &weights, in_features, out_features);
        check::<E4m3>(&x, &weights, in_features, out_features);
    }

    #[test]
    fn a_token_of_a_dense_product_is_the_same_alone(
        (tokens, in_features, out_features, seed) in product_shape(),
    ) {
        let mut rng = Rng::new(seed);
        let (x, weights) = (rng.tensor(tokens * in_features, 1.0), rng.tensor(out_features * in_features, 0.1));
        let together = dense(&x, &weights, None, in_features, out_features);
        for (x, together) in x.chunks_exact(in_features).zip(together.chunks_exact(out_features)) {
            prop_assert_eq!(dense(x, &weights, None, in_features, out_features), together);
        }
    }
}

fn dense<W: Element>(
    x: &[f32],
    weights: &[W],
    bias: Option<&[f32]>,
    in_features: usize,
    out_features: usize,
) -> Vec<f32> {
    let plan = DenseProduct::new(in_features, out_features).unwrap();
    let mut y = vec![f32::NAN; x.len() / in_features * out_features];
    plan.reference(x, weights, bias, &mut y).unwrap();
    y
}

#[test]
fn not_a_number_spoils_its_own_element_and_group_only() {
    let plan = Quantize::per_token(4).unwrap().with_group_sums(2).unwrap();
    let q = quantize(&plan, &[1.0, f32::NAN, -2.0, 0.5], 4);
    assert_eq!(q.scales, [2.0 / 448.0]);
    assert_eq!([q.codes[0], q.codes[2], q.codes[3]].map(E4m3::to_f32), [224.0, -448.0, 112.0]);
    assert!(q.codes[1].is_nan() && q.group_sums[0].is_nan());
    assert_eq!(q.group_sums[1], -336.0);
}
