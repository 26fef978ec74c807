//! Every bad argument and the exact error it gets.
// A failed expectation is the test's failure.
#![allow(clippy::unwrap_used)]

use device::{ActivationShape, E4m3, QuantizedActivation, Result};
use layers::{Activate, Activation, AddResidual, Embedding, Norm, RopeScaling, Rotary, Rotate};

#[track_caller]
fn rejects<T: std::fmt::Debug>(result: Result<T>, message: &str) {
    assert_eq!(result.unwrap_err().to_string(), message);
}

#[test]
fn norm() {
    rejects(Norm::rms(0, 1e-6), "rms_norm: features: expected at least 1, got 0");
    rejects(Norm::layer(0, 1e-6), "layer_norm: features: expected at least 1, got 0");
    for epsilon in [-1e-6, f32::NAN, f32::INFINITY] {
        let message = format!("rms_norm: epsilon: expected a finite number of at least 0, got {epsilon}");
        rejects(Norm::rms(4, epsilon), &message);
    }
    let norm = Norm::layer(4, 0.0).unwrap();
    let (w, x) = ([1.0; 4], [1.0; 8]);
    let call = |weight: &[f32], bias: Option<&[f32]>, deltas: &[&[f32]], residual: usize, output: usize| {
        norm.reference(weight, bias, deltas, &mut vec![0.0; residual], &mut vec![0.0; output])
    };
    assert_eq!(call(&w, Some(&w), &[&x, &x], 8, 8), Ok(()));
    rejects(call(&w[..3], None, &[], 8, 8), "layer_norm: weight: expected 4 elements, got 3");
    rejects(call(&w, Some(&x), &[], 8, 8), "layer_norm: bias: expected 4 elements, got 8");
    rejects(call(&w, None, &[&w], 8, 8), "layer_norm: deltas: expected 8 elements, got 4");
    rejects(call(&w, None, &[&x[..]; 3], 8, 8), "layer_norm: deltas: expected at most 2, got 3");
    rejects(
        call(&w, None, &[], 7, 8),
        "layer_norm: residual: expected whole rows of 4 elements, got 7 elements",
    );
    rejects(call(&w, None, &[], 8, 4), "layer_norm: output: expected 8 elements, got 4");
}

#[test]
fn a_refused_norm_leaves_the_residual_stream_alone() {
    let (mut residual, mut output) = ([1.0; 4], [0.0; 3]);
    assert!(
        Norm::rms(4, 0.0)
            .unwrap()
            .reference(&[1.0; 4], None, &[&[1.0; 4]], &mut residual, &mut output)
            .is_err()
    );
    assert_eq!(residual, [1.0; 4]);
}

#[test]
fn quantized_output() {
    let call = |tokens, features, group_size, lens: [usize; 3]| {
        let (mut codes, mut scales, mut group_sums) =
            (vec![E4m3(0); lens[0]], vec![0.0; lens[1]], vec![0.0; lens[2]]);
        let shape = ActivationShape { tokens, features, group_size };
        let mut output = QuantizedActivation {
            shape,
            codes: &mut codes[..],
            scales: &mut scales[..],
            group_sums: &mut group_sums[..],
        };
        let norm = Norm::rms(4, 0.0).unwrap();
        let of_norm = norm.reference_quantized(&[1.0; 4], None, &[], &mut [1.0; 8], &mut output);
        let gelu = Activate::new(Activation::Gelu, 4).unwrap();
        let of_gelu = gelu.reference_quantized(&[1.0; 8], None, &mut output);
        (of_norm, of_gelu)
    };
    assert_eq!(call(2, 4, 2, [8, 2, 4]), (Ok(()), Ok(())));
    assert_eq!(call(2, 4, 0, [8, 2, 0]), (Ok(()), Ok(())));
    let both = |(norm, gelu): (Result<()>, Result<()>), message: &str| {
        rejects(norm, &format!("rms_norm: {message}"));
        rejects(gelu, &format!("gelu: {message}"));
    };
    both(call(1, 4, 2, [8, 2, 4]), "output.shape.tokens: expected 2, got 1");
    both(call(2, 8, 2, [8, 2, 4]), "output.shape.features: expected 4, got 8");
    both(call(2, 4, 3, [8, 2, 4]), "output.shape.group_size: expected 0 or a divisor of 4, got 3");
    both(call(2, 4, 2, [9, 2, 4]), "output.codes: expected 8 elements, got 9");
    both(call(2, 4, 2, [8, 1, 4]), "output.scales: expected 2 elements, got 1");
    both(call(2, 4, 2, [8, 2, 3]), "output.group_sums: expected 4 elements, got 3");
    both(call(2, 4, 0, [8, 2, 4]), "output.group_sums: expected 0 elements, got 4");
}

#[test]
fn activate() {
    rejects(Activate::new(Activation::Silu, 0), "silu: features: expected at least 1, got 0");
    let message =
        format!("swiglu: features: expected a product that fits in memory, got [{}, 2]", usize::MAX);
    rejects(Activate::new(Activation::Swiglu, usize::MAX), &message);
    let swiglu = Activate::new(Activation::Swiglu, 2).unwrap();
    let call = |input: usize, multiplier: Option<&[f32]>, output: usize| {
        swiglu.reference(&vec![0.0; input], multiplier, &mut vec![0.0; output])
    };
    assert_eq!(call(8, Some(&[1.0, 2.0]), 4), Ok(()));
    rejects(call(6, None, 4), "swiglu: input: expected whole rows of 4 elements, got 6 elements");
    rejects(call(8, Some(&[1.0]), 4), "swiglu: multiplier: expected 2 elements, got 1");
    rejects(call(8, None, 8), "swiglu: output: expected 4 elements, got 8");
}

#[test]
fn add_residual() {
    rejects(AddResidual::new(0), "add_residual: features: expected at least 1, got 0");
    let add = AddResidual::new(4).unwrap();
    let x = [0.0; 4];
    let message = "add_residual: residual: expected whole rows of 4 elements, got 5 elements";
    rejects(add.reference(&[], &mut [0.0; 5]), message);
    let message = "add_residual: deltas: expected 8 elements, got 4";
    rejects(add.reference(&[&x], &mut [0.0; 8]), message);
    rejects(add.reference(&[&x[..]; 3], &mut [0.0; 4]), "add_residual: deltas: expected at most 2, got 3");
}

#[test]
fn embedding() {
    rejects(Embedding::new(0, 4), "embedding: vocab_size: expected at least 1, got 0");
    rejects(Embedding::new(1 << 33, 4), "embedding: vocab_size: expected at most 2^32, got 8589934592");
    rejects(Embedding::new(4, 0), "embedding: features: expected at least 1, got 0");
    let message =
        format!("embedding: vocab_size: expected a product that fits in memory, got [2, {}]", usize::MAX);
    rejects(Embedding::new(2, usize::MAX), &message);
    let embedding = Embedding::new(3, 2).unwrap();
    let call = |table: usize, tokens: &[u32], output: usize| {
        embedding.reference(&vec![0.0f32; table], tokens, &mut vec![0.0; output])
    };
    assert_eq!(call(6, &[2, 0], 4), Ok(()));
    rejects(call(5, &[2, 0], 4), "embedding: table: expected 6 elements, got 5");
    rejects(call(6, &[2, 0], 2), "embedding: output: expected 4 elements, got 2");
    rejects(call(6, &[2, 3], 4), "embedding: tokens: expected token ids below 3, got 3");
    rejects(call(6, &[u32::MAX, 0], 4), "embedding: tokens: expected token ids below 3, got 4294967295");
}

#[test]
fn rotary() {
    for rotary_dim in [0, 5] {
        let message = format!("rotary: rotary_dim: expected a positive multiple of 2, got {rotary_dim}");
        rejects(Rotary::new(rotary_dim, 1e4, RopeScaling::None), &message);
    }
    for theta in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 1e-300] {
        let message = format!("rotary: theta: expected an f32 above 0, got {theta}");
        rejects(Rotary::new(4, theta, RopeScaling::None), &message);
    }
    let linear = RopeScaling::Linear { factor: 0.0 };
    rejects(Rotary::new(4, 1e4, linear), "rotary: factor: expected an f32 above 0, got 0");
    let dynamic = RopeScaling::Dynamic { factor: f64::NAN, max_position_embeddings: 1 };
    rejects(Rotary::new(4, 1e4, dynamic), "rotary: factor: expected an f32 above 0, got NaN");
    let dynamic = RopeScaling::Dynamic { factor: 1.0, max_position_embeddings: 0 };
    rejects(Rotary::new(4, 1e4, dynamic), "rotary: max_position_embeddings: expected at least 1, got 0");
    let llama3 = |factor, low_freq_factor, high_freq_factor, original_max_position_embeddings| {
        let scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        };
        Rotary::new(4, 1e4, scaling)
    };
    rejects(llama3(-8.0, 1.0, 4.0, 8192), "rotary: factor: expected an f32 above 0, got -8");
    rejects(llama3(8.0, 0.0, 4.0, 8192), "rotary: low_freq_factor: expected an f32 above 0, got 0");
    for high in [1.0, f64::INFINITY, f64::NAN] {
        let message =
            format!("rotary: high_freq_factor: expected a finite number above low_freq_factor 1, got {high}");
        rejects(llama3(8.0, 1.0, high, 8192), &message);
    }
    let message = "rotary: original_max_position_embeddings: expected at least 1, got 0";
    rejects(llama3(8.0, 1.0, 4.0, 0), message);
}

#[test]
fn rotate() {
    rejects(Rotate::new(0, 0, 4), "rotate: row_heads: expected at least 1, got 0");
    rejects(Rotate::new(3, 4, 4), "rotate: rotated_heads: expected at most row_heads 3, got 4");
    rejects(Rotate::new(3, 3, 3), "rotate: head_dim: expected a positive multiple of 2, got 3");
    let rotate = Rotate::new(3, 2, 4).unwrap();
    let call = |positions: usize, frequencies: usize, rows: usize| {
        rotate.reference(&vec![0; positions], &vec![0.0; frequencies], &mut vec![0.0; rows])
    };
    assert_eq!(call(2, 1, 24), Ok(()));
    rejects(call(2, 0, 24), "rotate: inverse_frequencies: expected 1 to 2 elements, got 0");
    rejects(call(2, 3, 24), "rotate: inverse_frequencies: expected 1 to 2 elements, got 3");
    rejects(call(2, 2, 12), "rotate: rows: expected 24 elements, got 12");
}
