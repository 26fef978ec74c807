//! The device order: inverses both ways, and each code where the kernel's drawing puts it.
#![allow(clippy::unwrap_used)]

mod common;

use awq_gemm::{Int4Shape, PackedWeights};
use common::weights;
use half::f16;
use op_test::Rng;
use proptest::prelude::*;

/// Whole and padded units, windows and stripes; both group sizes.
fn shapes() -> impl Strategy<Value = Int4Shape> {
    (prop_oneof![Just(64usize), Just(128)], 1usize..=10, 1usize..=18).prop_map(
        |(group_size, groups, blocks)| Int4Shape::new(group_size * groups, 64 * blocks, group_size).unwrap(),
    )
}

proptest! {
    #![proptest_config(op_test::cases())]

    #[test]
    fn from_weights_and_back(shape in shapes(), seed: u64) {
        let weights = weights(shape, seed);
        let packed = PackedWeights::pack(&weights).unwrap();
        prop_assert_eq!(packed.bytes().len(), PackedWeights::bytes_of(shape).unwrap());
        prop_assert_eq!(packed.unpack().unwrap(), weights);
    }

    /// Where nothing is padded every bit means something, and none twice.
    #[test]
    fn from_bytes_and_back(narrow: bool, windows in 1usize..3, blocks in 1usize..18, seed: u64) {
        let group_size = if narrow { 64 } else { 128 };
        let shape = Int4Shape::new(8 * group_size * windows, 64 * blocks, group_size).unwrap();
        let mut rng = Rng::new(seed);
        let codes = blocks * shape.in_features() / 128 * 4096;
        let mut bytes: Vec<u8> = (0..codes).map(|_| rng.bits() as u8).collect();
        for _ in 0..windows * blocks {
            bytes.extend((0..512).flat_map(|_| f16::from_f32(common::scale(&mut rng)).to_le_bytes()));
            bytes.extend((0..256).map(|_| rng.bits() as u8));
        }
        let weights = PackedWeights::from_bytes(shape, bytes.clone()).unwrap().unpack().unwrap();
        let packed = PackedWeights::pack(&weights).unwrap();
        prop_assert_eq!(packed.bytes(), bytes);
    }

    /// As the kernel reads them. A thread's 16 bytes are its fragments of two wgmma steps of 32 input features, each of four
    /// registers: rows r and r + 8, then those rows 16 features on; a register holds four neighbouring features.
    #[test]
    fn threads_find_their_fragments(shape in shapes(), seed: u64) {
        let weights = weights(shape, seed);
        let packed = PackedWeights::pack(&weights).unwrap();
        let (units, blocks) = (shape.in_features().div_ceil(128), shape.out_features() / 64);
        let windows = shape.groups().div_ceil(8);
        let mut rng = Rng::new(seed);
        let (block, unit) = (rng.below(0..blocks), rng.below(0..units));
        // Before a chunk: whole stripes, then the same stripe's chunks of earlier units, then earlier blocks of this unit.
        let before = |index: usize, count: usize| {
            let stripe = block / 8;
            stripe * 8 * count + index * (blocks - stripe * 8).min(8) + block % 8
        };
        let bytes = &packed.bytes()[4096 * before(unit, units)..];
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
        // A word of scales and a byte of zero points are those of rows r and r + 8.
        let group = rng.below(0..shape.groups());
        let bytes = &packed.bytes()[4096 * blocks * units + 1280 * before(group / 8, windows)..];
        for (warp, row) in (0..4).flat_map(|warp| (0..8).map(move |row| (warp, row))) {
            let pair = group % 8 * 128 + 4 * (8 * warp + row);
            let zeros = bytes[1024 + group % 8 * 32 + 8 * warp + row];
            for half in 0..2 {
                let at = (block * 64 + warp * 16 + half * 8 + row) * shape.groups() + group;
                let scale = f16::from_le_bytes(bytes[pair + 2 * half..][..2].try_into().unwrap());
                prop_assert_eq!(scale.to_f32(), weights.scales()[at]);
                prop_assert_eq!(zeros >> (4 * half) & 15, weights.zeros()[at]);
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

    /// Every multiple of 64, a whole row among them, becomes groups that can be packed, and no weight changes.
    #[test]
    fn for_kernels_keeps_every_weight(multiple in 1usize..=6, groups in 1usize..=3, seed: u64) {
        let shape = Int4Shape::new(64 * multiple * groups, 64, 64 * multiple).unwrap();
        let weights = weights(shape, seed);
        let split = weights.clone().for_kernels().unwrap();
        prop_assert_eq!(split.shape().group_size(), if multiple % 2 == 0 { 128 } else { 64 });
        prop_assert_eq!(split.dequantize(), weights.dequantize());
        prop_assert!(PackedWeights::pack(&split).is_ok());
    }
}
