//! The device order: inverses both ways, and each code where the kernel's drawing puts it.
#![allow(clippy::unwrap_used)]

mod common;

use awq_gemm::{Int4Shape, PackedWeights};
use common::weights;
use half::f16;
use op_test::Rng;
use proptest::prelude::*;

/// Whole and padded units, both group sizes.
fn shapes() -> impl Strategy<Value = Int4Shape> {
    (prop_oneof![Just(64usize), Just(128)], 1usize..=5, 1usize..=3).prop_map(
        |(group_size, groups, blocks)| Int4Shape::new(group_size * groups, 64 * blocks, group_size).unwrap(),
    )
}

proptest! {
    #![proptest_config(op_test::cases())]

    #[test]
    fn from_weights_and_back(shape in shapes(), seed: u64) {
        let weights = weights(shape, seed);
        let packed = PackedWeights::pack(&weights).unwrap();
        prop_assert_eq!(packed.unpack().unwrap(), weights);
    }

    /// Every bit of a unit without padding means something, and none twice.
    #[test]
    fn from_bytes_and_back(narrow: bool, units in 1usize..4, blocks in 1usize..3, seed: u64) {
        let group_size = if narrow { 64 } else { 128 };
        let shape = Int4Shape::new(128 * units, 64 * blocks, group_size).unwrap();
        let groups = 128 / group_size;
        let mut rng = Rng::new(seed);
        let mut bytes = Vec::new();
        for _ in 0..units * blocks {
            bytes.extend((0..4096).map(|_| rng.bits() as u8));
            bytes.extend((0..64 * groups).flat_map(|_| f16::from_f32(common::scale(&mut rng)).to_le_bytes()));
            bytes.extend((0..32 * groups).map(|_| rng.bits() as u8));
        }
        prop_assert_eq!(bytes.len(), PackedWeights::bytes_of(shape).unwrap());
        let weights = PackedWeights::from_bytes(shape, bytes.clone()).unwrap().unpack().unwrap();
        let packed = PackedWeights::pack(&weights).unwrap();
        prop_assert_eq!(packed.bytes(), bytes);
    }

    /// As a thread of the kernel reads it: 16 bytes are its fragments of two wgmma steps of 32 input features, each of
    /// four registers: rows r and r + 8, then those rows 16 features on; a register holds four neighbouring features.
    #[test]
    fn a_threads_sixteen_bytes_are_its_fragments(shape in shapes(), seed: u64) {
        let weights = weights(shape, seed);
        let packed = PackedWeights::pack(&weights).unwrap();
        let units = shape.in_features().div_ceil(128);
        let unit_bytes = packed.bytes().len() / units / (shape.out_features() / 64);
        let mut rng = Rng::new(seed);
        let (block, unit) = (rng.below(0..shape.out_features() / 64), rng.below(0..units));
        let bytes = &packed.bytes()[(block * units + unit) * unit_bytes..];
        for (half, thread) in (0..2).flat_map(|half| (0..128).map(move |thread| (half, thread))) {
            let (warp, lane) = (thread / 32, thread % 32);
            let (row, column) = (lane / 4, lane % 4 * 4);
            for step in 0..2 {
                for register in 0..4 {
                    let n = block * 64 + warp * 16 + row + register % 2 * 8;
                    let k = unit * 128 + half * 64 + step * 32 + column + register / 2 * 16;
                    let at = half * 2048 + thread * 16 + step * 8 + register / 2 * 4;
                    let word = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                    let register_bytes = (word >> (register % 2 * 4) & 0x0f0f_0f0f).to_le_bytes();
                    if k < shape.in_features() {
                        prop_assert_eq!(register_bytes, &weights.codes()[n * shape.in_features() + k..][..4]);
                    } else {
                        prop_assert_eq!(register_bytes, [0; 4]);
                    }
                }
            }
        }
    }

    #[test]
    fn split_groups_keeps_every_weight(group_size in 1usize..=9, copies in 1usize..=4, n in 1usize..=5, seed: u64) {
        let shape = Int4Shape::new(2 * group_size * copies, n, group_size * copies).unwrap();
        let weights = weights(shape, seed);
        let split = weights.clone().split_groups(group_size).unwrap();
        prop_assert_eq!(split.shape().group_size(), group_size);
        prop_assert_eq!(split.dequantize(), weights.dequantize());
    }
}
