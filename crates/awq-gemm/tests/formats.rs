//! Formats: inverses both ways, each element where the format's documentation puts it, and words that the public
//! packers of each format made from one formula.
// A test that cannot make its input has failed.
#![allow(clippy::unwrap_used)]

mod common;

use awq_gemm::formats::{auto_awq, compressed_tensors, model_opt};
use awq_gemm::{Int4Shape, Int4Weights};
use common::weights;
use compressed_tensors::ZeroPoints;
use half::{bf16, f16};
use op_test::Rng;
use proptest::prelude::*;

/// Shapes with `out_features` a multiple of `unit`, group sizes that are not powers of two among them.
fn shapes(unit: usize) -> impl Strategy<Value = Int4Shape> {
    (1usize..=40, 1usize..=4, 1usize..=9).prop_map(move |(group_size, groups, n)| {
        Int4Shape::new(group_size * groups, n * unit, group_size).unwrap()
    })
}

fn words(rng: &mut Rng, len: usize) -> Vec<i32> {
    (0..len).map(|_| rng.bits() as i32).collect()
}

fn f16_scales(rng: &mut Rng, len: usize) -> Vec<f16> {
    (0..len).map(|_| f16::from_f32(common::scale(rng))).collect()
}

/// Random weights with every zero point 8.
fn symmetric(shape: Int4Shape, seed: u64) -> Int4Weights {
    let weights = weights(shape, seed);
    let zeros = vec![8; weights.zeros().len()];
    Int4Weights::new(shape, weights.codes().to_vec(), zeros, weights.scales().to_vec()).unwrap()
}

proptest! {
    #![proptest_config(op_test::cases())]

    #[test]
    fn auto_awq_from_weights_and_back(shape in shapes(8), seed: u64) {
        let weights = weights(shape, seed);
        let tensors = auto_awq::write::<f16>(&weights).unwrap();
        prop_assert_eq!(&auto_awq::read(shape, &tensors.qweight, &tensors.qzeros, &tensors.scales).unwrap(), &weights);
        // Where the format puts output feature n: among its eight, the even ones first.
        let (k, n) = (shape.in_features() - 1, shape.out_features() - 1 - (seed % 8) as usize);
        let place = (n % 8) / 2 + if n % 2 == 0 { 0 } else { 4 };
        let word = tensors.qweight[k * shape.out_features() / 8 + n / 8] as u32;
        prop_assert_eq!((word >> (4 * place) & 15) as u8, weights.codes()[n * shape.in_features() + k]);
        let group = shape.groups() - 1;
        let word = tensors.qzeros[group * shape.out_features() / 8 + n / 8] as u32;
        prop_assert_eq!((word >> (4 * place) & 15) as u8, weights.zeros()[n * shape.groups() + group]);
        let scale = tensors.scales[group * shape.out_features() + n].to_f32();
        prop_assert_eq!(scale, weights.scales()[n * shape.groups() + group]);
    }

    #[test]
    fn auto_awq_from_tensors_and_back(shape in shapes(8), seed: u64) {
        let mut rng = Rng::new(seed);
        let tensors = auto_awq::Tensors {
            qweight: words(&mut rng, shape.in_features() * shape.out_features() / 8),
            qzeros: words(&mut rng, shape.groups() * shape.out_features() / 8),
            scales: f16_scales(&mut rng, shape.groups() * shape.out_features()),
        };
        let weights = auto_awq::read(shape, &tensors.qweight, &tensors.qzeros, &tensors.scales).unwrap();
        prop_assert_eq!(auto_awq::write::<f16>(&weights).unwrap(), tensors);
    }

    #[test]
    fn compressed_tensors_from_weights_and_back(shape in shapes(1), seed: u64, bytes: bool) {
        let weights = weights(shape, seed);
        let tensors = compressed_tensors::write::<f16>(&weights).unwrap();
        prop_assert_eq!(tensors.weight_shape, [shape.out_features() as i64, shape.in_features() as i64]);
        let signed: Vec<i8> = weights.zeros().iter().map(|&zero| zero as i8 - 8).collect();
        let zeros = match &tensors.weight_zero_point {
            _ if bytes => ZeroPoints::Bytes(&signed),
            Some(packed) => ZeroPoints::Packed(packed),
            None => ZeroPoints::Symmetric,
        };
        let read = compressed_tensors::read(shape, &tensors.weight_packed, &tensors.weight_scale, zeros).unwrap();
        prop_assert_eq!(&read, &weights);
        // The word at [n, k / 8] holds input feature k at nibble k % 8.
        let (n, k) = (seed as usize % shape.out_features(), seed as usize / 64 % shape.in_features());
        let word = tensors.weight_packed[n * shape.in_features().div_ceil(8) + k / 8] as u32;
        prop_assert_eq!((word >> (k % 8 * 4) & 15) as u8, weights.codes()[n * shape.in_features() + k]);
        if let Some(packed) = &tensors.weight_zero_point {
            let word = packed[n / 8 * shape.groups() + k / shape.group_size()] as u32;
            let zero = weights.zeros()[n * shape.groups() + k / shape.group_size()];
            prop_assert_eq!((word >> (n % 8 * 4) & 15) as u8, zero);
        }
    }

    /// Unused nibbles come back as 0, whatever they held.
    #[test]
    fn compressed_tensors_from_tensors_and_back(shape in shapes(1), seed: u64) {
        let mut rng = Rng::new(seed);
        let (row_words, groups) = (shape.in_features().div_ceil(8), shape.groups());
        let packed = words(&mut rng, shape.out_features() * row_words);
        let scales = f16_scales(&mut rng, shape.out_features() * groups);
        let zeros = words(&mut rng, shape.out_features().div_ceil(8) * groups);
        let weights = compressed_tensors::read(shape, &packed, &scales, ZeroPoints::Packed(&zeros)).unwrap();
        let written = compressed_tensors::write::<f16>(&weights).unwrap();
        let masked = |words: &[i32], kept: &dyn Fn(usize) -> usize| -> Vec<i32> {
            let mask = |nibbles: usize| if nibbles >= 8 { -1 } else { (1 << (4 * nibbles)) - 1 };
            words.iter().enumerate().map(|(i, word)| word & mask(kept(i))).collect()
        };
        let in_row = |i: usize| shape.in_features() - i % row_words * 8;
        prop_assert_eq!(written.weight_packed, masked(&packed, &in_row));
        prop_assert_eq!(written.weight_scale, scales);
        let in_column = |i: usize| shape.out_features() - i / groups * 8;
        if weights.zeros().iter().any(|&zero| zero != 8) {
            prop_assert_eq!(written.weight_zero_point, Some(masked(&zeros, &in_column)));
        } else {
            prop_assert_eq!(written.weight_zero_point, None);
        }
    }

    #[test]
    fn compressed_tensors_symmetric(shape in shapes(1), seed: u64) {
        let weights = symmetric(shape, seed);
        let tensors = compressed_tensors::write::<f16>(&weights).unwrap();
        prop_assert_eq!(&tensors.weight_zero_point, &None);
        let zeros = ZeroPoints::Symmetric;
        let read = compressed_tensors::read(shape, &tensors.weight_packed, &tensors.weight_scale, zeros).unwrap();
        prop_assert_eq!(read, weights);
    }

    #[test]
    fn model_opt_both_ways(shape in shapes(2), seed: u64) {
        let weights = symmetric(shape, seed);
        let tensors = model_opt::write::<f32>(&weights).unwrap();
        prop_assert_eq!(&model_opt::read(shape, &tensors.weight, &tensors.weight_scale).unwrap(), &weights);
        // A signed nibble: shift it to the top of a byte and back, arithmetically.
        let (n, k) = (seed as usize % shape.out_features(), seed as usize / 64 % shape.in_features());
        let byte = tensors.weight[n / 2 * shape.in_features() + k] as i8;
        let signed = if n % 2 == 0 { byte << 4 >> 4 } else { byte >> 4 };
        prop_assert_eq!(signed, weights.codes()[n * shape.in_features() + k] as i8 - 8);
        let mut rng = Rng::new(seed);
        let bytes: Vec<u8> = (0..tensors.weight.len()).map(|_| rng.bits() as u8).collect();
        let read = model_opt::read(shape, &bytes, &tensors.weight_scale).unwrap();
        prop_assert_eq!(model_opt::write::<f32>(&read).unwrap().weight, bytes);
    }

    /// One layer in every format is one layer.
    #[test]
    fn formats_agree(shape in shapes(8), seed: u64) {
        let weights = symmetric(shape, seed);
        let awq = auto_awq::write::<f32>(&weights).unwrap();
        let packed = compressed_tensors::write::<f32>(&weights).unwrap();
        let model_opt = model_opt::write::<f32>(&weights).unwrap();
        let read = [
            auto_awq::read(shape, &awq.qweight, &awq.qzeros, &awq.scales).unwrap(),
            compressed_tensors::read(shape, &packed.weight_packed, &packed.weight_scale, ZeroPoints::Symmetric).unwrap(),
            model_opt::read(shape, &model_opt.weight, &model_opt.weight_scale).unwrap(),
        ];
        for read in read {
            prop_assert_eq!(read.dequantize(), weights.dequantize());
        }
    }
}

/// codes[n][k] = (7 n + 3 k + n k) mod 16 and zeros[n][g] = (5 n + 3 g + 1) mod 16, 16 input features, groups of 8.
fn formula(out_features: usize, symmetric: bool) -> Int4Weights {
    let shape = Int4Shape::new(16, out_features, 8).unwrap();
    let codes =
        (0..16 * out_features).map(|i| (i / 16, i % 16)).map(|(n, k)| ((7 * n + 3 * k + n * k) % 16) as u8);
    let zeros = (0..2 * out_features).map(|i| (i / 2, i % 2)).map(|(n, g)| ((5 * n + 3 * g + 1) % 16) as u8);
    let zeros = if symmetric { vec![8; 2 * out_features] } else { zeros.collect() };
    Int4Weights::new(shape, codes.collect(), zeros, vec![0.5; 2 * out_features]).unwrap()
}

fn hex(words: &[i32]) -> Vec<u32> {
    words.iter().map(|&word| word as u32).collect()
}

/// Made by `WQLinear_GEMM.from_linear` of autoawq 0.2.9.
#[test]
fn auto_awq_words_are_those_of_autoawq() {
    let tensors = auto_awq::write::<f16>(&formula(32, false)).unwrap();
    let row = [0x1357_ace0, 0x9bdf_2468];
    assert_eq!(hex(&tensors.qweight)[..6], [row[0], row[1], row[0], row[1], 0xbbbb_3333, 0xbbbb_3333]);
    assert_eq!(hex(&tensors.qweight)[63], 0x7bf3_159d);
    let (first, second) = ([0x4a06_f5b1, 0xc28e_7d39], [0x7d39_28e4, 0xf5b1_a06c]);
    assert_eq!(hex(&tensors.qzeros), [first, first, second, second].concat());
}

/// Made by `pack_to_int32` of compressed-tensors 0.10.2.
#[test]
fn packed_words_are_those_of_compressed_tensors() {
    let tensors = compressed_tensors::write::<bf16>(&formula(16, false)).unwrap();
    let first = [0x52fc_9630, 0xda74_1eb8, 0x3fb7_3fb7, 0x3fb7_3fb7, 0x1c72_d83e, 0x94fa_50b6];
    assert_eq!(hex(&tensors.weight_packed)[..6], first);
    assert_eq!(hex(&tensors.weight_packed)[31], 0x7531_fdb9);
    let zeros = tensors.weight_zero_point.unwrap();
    assert_eq!(hex(&zeros), [0x4fa5_0b61, 0x72d8_3e94, 0xc72d_83e9, 0xfa50_b61c]);
}

/// Made by `pack_int4_in_uint8` of nvidia-modelopt 0.47.0.
#[test]
fn packed_bytes_are_those_of_modelopt() {
    let tensors = model_opt::write::<f32>(&formula(16, true)).unwrap();
    let first = [0xf8, 0x3b, 0x7e, 0xb1, 0xf4, 0x37, 0x7a, 0xbd, 0xf0, 0x33];
    assert_eq!(tensors.weight[..10], first);
    assert_eq!(tensors.weight[16..20], [0xd6, 0x3b, 0x90, 0xf5]);
    assert_eq!(tensors.weight[127], 0xf9);
}
