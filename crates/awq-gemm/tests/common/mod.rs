//! Random INT4 weights for the tests of this crate.

use awq_gemm::{Int4Shape, Int4Weights};
use half::{bf16, f16};
use op_test::Rng;

/// Scales as checkpoints have them, adversarial ones among them.
pub fn scale(rng: &mut Rng) -> f32 {
    match rng.below(0..12) {
        0 => 0.0,
        1 => f16::MIN_POSITIVE_SUBNORMAL.to_f32(),
        2 => f16::MAX.to_f32(),
        3 => -f16::from_f32(rng.signed()).to_f32(),
        4 => bf16::from_f32(rng.normal(0.01)).to_f32(),
        _ => f16::from_f32(0.001 + 0.01 * rng.signed().abs()).to_f32(),
    }
}

/// Random codes, zero points and f16 scales.
pub fn weights(shape: Int4Shape, seed: u64) -> Int4Weights {
    let mut rng = Rng::new(seed);
    let groups = shape.out_features() * shape.groups();
    let mut nibbles = |len| (0..len).map(|_| rng.below(0..16) as u8).collect::<Vec<_>>();
    let (codes, zeros) = (nibbles(shape.out_features() * shape.in_features()), nibbles(groups));
    let scales = (0..groups).map(|_| f16::from_f32(scale(&mut rng)).to_f32()).collect();
    Int4Weights::new(shape, codes, zeros, scales).unwrap()
}
