//! Every bad argument, with its exact error.

// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

use device::{ActivationShape, E4m3, QuantizedActivation};
use fp8::{DenseProduct, Fp8Product, Quantize};

fn message<T: std::fmt::Debug>(result: device::Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn quantize_new() {
    assert_eq!(message(Quantize::per_token(0)), "fp8_quantize: features: expected at least 1, got 0");
    assert_eq!(message(Quantize::per_tensor(0)), "fp8_quantize: features: expected at least 1, got 0");
    for (scale, got) in [
        (0.0, "0"),
        (-1.0, "-1"),
        (f32::INFINITY, "inf"),
        (f32::NAN, "NaN"),
        (1e-40, "0.0000000000000000000000000000000000000001"),
    ] {
        let want = format!("fp8_quantize: scale: expected a positive normal number, got {got}");
        assert_eq!(message(Quantize::with_scale(8, scale)), want);
    }
    let plan = Quantize::per_token(256).unwrap();
    for group_size in [0, 3, 512] {
        let want = format!("fp8_quantize: group_size: expected a divisor of 256, got {group_size}");
        assert_eq!(message(plan.with_group_sums(group_size)), want);
    }
}

#[test]
fn quantize_reference() {
    let plan = Quantize::per_token(8).unwrap().with_group_sums(4).unwrap();
    let run = |x: usize, shape: ActivationShape, codes: usize, scales: usize, group_sums: usize| {
        let (mut c, mut s, mut g) = (vec![E4m3::default(); codes], vec![0.0; scales], vec![0.0; group_sums]);
        let (codes, scales, group_sums) = (&mut c[..], &mut s[..], &mut g[..]);
        let mut output = QuantizedActivation { shape, codes, scales, group_sums };
        plan.reference(&vec![0.0; x], &mut output)
    };
    let good = plan.shape(2);
    assert_eq!(run(16, good, 16, 2, 4), Ok(()));
    assert_eq!(
        message(run(15, good, 16, 2, 4)),
        "fp8_quantize: x: expected whole rows of 8 elements, got 15 elements"
    );
    let text = |tokens, features, group_size| {
        format!("ActivationShape {{ tokens: {tokens}, features: {features}, group_size: {group_size} }}")
    };
    let wrong = [(3, 8, 4), (2, 4, 4), (2, 8, 8), (2, 8, 0)];
    for (tokens, features, group_size) in wrong {
        let got = text(tokens, features, group_size);
        let want = format!("fp8_quantize: output.shape: expected {}, got {got}", text(2, 8, 4));
        assert_eq!(message(run(16, ActivationShape { tokens, features, group_size }, 16, 2, 4)), want);
    }
    assert_eq!(message(run(16, good, 17, 2, 4)), "fp8_quantize: output.codes: expected 16 elements, got 17");
    assert_eq!(message(run(16, good, 16, 1, 4)), "fp8_quantize: output.scales: expected 2 elements, got 1");
    assert_eq!(
        message(run(16, good, 16, 2, 0)),
        "fp8_quantize: output.group_sums: expected 4 elements, got 0"
    );
}

#[test]
fn product_new() {
    assert_eq!(message(Fp8Product::new(0, 4)), "fp8_product: in_features: expected at least 1, got 0");
    assert_eq!(message(Fp8Product::new(4, 0)), "fp8_product: out_features: expected at least 1, got 0");
    assert_eq!(message(DenseProduct::new(0, 4)), "dense_product: in_features: expected at least 1, got 0");
    assert_eq!(message(DenseProduct::new(4, 0)), "dense_product: out_features: expected at least 1, got 0");
    let huge = 1usize << 40;
    let want = "dense_product: out_features: expected a product that fits in memory, got [1099511627776, 1099511627776]";
    assert_eq!(message(DenseProduct::new(huge, huge)), want);
}

#[test]
fn fp8_product_reference() {
    let plan = Fp8Product::new(4, 3).unwrap();
    let run =
        |shape: (usize, usize), codes: usize, scales: usize, w: usize, ws: usize, bias: usize, y: usize| {
            let shape = ActivationShape { tokens: shape.0, features: shape.1, group_size: 0 };
            let (codes, scales) = (vec![E4m3::default(); codes], vec![1.0; scales]);
            let x =
                QuantizedActivation { shape, codes: &codes[..], scales: &scales[..], group_sums: &[][..] };
            let (weights, weight_scales, bias) = (vec![E4m3::default(); w], vec![1.0; ws], vec![0.0; bias]);
            plan.reference(&x, &weights, &weight_scales, Some(&bias), &mut vec![0.0; y])
        };
    assert_eq!(run((2, 4), 8, 2, 12, 3, 3, 6), Ok(()));
    let cases = [
        (run((2, 5), 10, 2, 12, 3, 3, 6), "x.shape.features: expected 4, got 5"),
        (run((2, 4), 7, 2, 12, 3, 3, 6), "x.codes: expected 8 elements, got 7"),
        (run((2, 4), 8, 3, 12, 3, 3, 6), "x.scales: expected 2 elements, got 3"),
        (run((2, 4), 8, 2, 11, 3, 3, 6), "weights: expected 12 elements, got 11"),
        (run((2, 4), 8, 2, 12, 1, 3, 6), "weight_scales: expected 3 elements, got 1"),
        (run((2, 4), 8, 2, 12, 3, 2, 6), "bias: expected 3 elements, got 2"),
        (run((2, 4), 8, 2, 12, 3, 3, 5), "y: expected 6 elements, got 5"),
        (
            run((usize::MAX, 4), 8, 2, 12, 3, 3, 6),
            "x.shape.tokens: expected a product that fits in memory, got [18446744073709551615, 4]",
        ),
    ];
    for (result, want) in cases {
        assert_eq!(message(result), format!("fp8_product: {want}"));
    }
}

#[test]
fn dense_product_reference() {
    let plan = DenseProduct::new(4, 3).unwrap();
    let run = |x: usize, w: usize, bias: usize, y: usize| {
        plan.reference(&vec![0.0; x], &vec![0.0f32; w], Some(&vec![0.0; bias]), &mut vec![0.0; y])
    };
    assert_eq!(run(8, 12, 3, 6), Ok(()));
    let cases = [
        (run(9, 12, 3, 6), "x: expected whole rows of 4 elements, got 9 elements"),
        (run(8, 13, 3, 6), "weights: expected 12 elements, got 13"),
        (run(8, 12, 4, 6), "bias: expected 3 elements, got 4"),
        (run(8, 12, 3, 7), "y: expected 6 elements, got 7"),
    ];
    for (result, want) in cases {
        assert_eq!(message(result), format!("dense_product: {want}"));
    }
}
