//! Inverse frequencies and ALiBi biases against what Hugging Face transformers computes (goldens.py writes goldens.txt).
// A failed expectation is the test's failure.
#![allow(clippy::unwrap_used, clippy::panic)]

use layers::{RopeScaling, Rotary, alibi_slopes};

const GOLDENS: &str = include_str!("goldens.txt");

fn golden(name: &str) -> Vec<f32> {
    let line = GOLDENS.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let words = line.unwrap_or_else(|| panic!("no golden {name}")).split(' ');
    words.map(|word| f32::from_bits(u32::from_str_radix(word, 16).unwrap())).collect()
}

fn llama3(factor: f64, low_freq_factor: f64, original_max_position_embeddings: usize) -> RopeScaling {
    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor: 4.0, original_max_position_embeddings }
}

#[test]
fn inverse_frequencies() {
    let dynamic = |factor, max_position_embeddings| RopeScaling::Dynamic { factor, max_position_embeddings };
    let cases = [
        ("default_64", 64, 10000.0, RopeScaling::None, 1),
        ("default_128", 128, 500000.0, RopeScaling::None, 1),
        ("default_256", 256, 1000042.0, RopeScaling::None, 1),
        ("linear_80", 80, 10000.0, RopeScaling::Linear { factor: 2.5 }, 1),
        ("dynamic_64_within", 64, 10000.0, dynamic(1.7, 2048), 2048),
        ("dynamic_64_beyond", 64, 10000.0, dynamic(1.7, 2048), 2049),
        ("dynamic_128_far", 128, 500000.0, dynamic(4.0, 4096), 30001),
        ("llama3_128", 128, 500000.0, llama3(8.0, 1.0, 8192), 1),
        ("llama3_64", 64, 500000.0, llama3(32.0, 1.0, 8192), 1),
        ("llama3_odd", 64, 10000.0, llama3(3.3, 0.7, 5000), 1),
    ];
    let (mut elements, mut inexact) = (0, 0);
    for (name, rotary_dim, theta, scaling, context_len) in cases {
        let want = golden(name);
        let got = Rotary::new(rotary_dim, theta, scaling).unwrap().inverse_frequencies(context_len);
        assert_eq!(got.len(), want.len(), "{name}");
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            // Their power is right to one place, and so may be the reciprocal of it.
            let places = got.to_bits().abs_diff(want.to_bits());
            assert!(places <= 2, "{name}[{i}]: {got} is {places} places from {want}");
            inexact += usize::from(places > 0);
        }
        elements += want.len();
    }
    assert!(inexact * 50 <= elements, "{inexact} of {elements} frequencies differ");
}

#[test]
fn alibi_biases_are_exact() {
    let positions = [0, 1, 2, 3, 100, 255, 256, 257, 1023, 2047];
    for heads in [1, 2, 3, 8, 12, 71] {
        let bias = |slope: f32| positions.map(|position| device::alibi_bias(slope, position));
        let got: Vec<f32> = alibi_slopes(heads).into_iter().flat_map(bias).collect();
        assert_eq!(got, golden(&format!("alibi_{heads}")), "{heads} heads");
    }
    assert!(alibi_slopes(0).is_empty());
}
