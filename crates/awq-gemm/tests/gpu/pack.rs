//! Packing on the device gives the bytes of packing on the host.

use super::common;
use awq_gemm::formats::{auto_awq, compressed_tensors};
use awq_gemm::{DeviceInt4Weights, DeviceTensors, Int4Shape, Int4Weights, PackedWeights, SyntheticInt4};
use cudarc::driver::CudaStream;
use device::gpu::{Gpu, download, upload};
use half::f16;
use op_test::{Rng, sanitized};
use std::sync::Arc;

#[derive(Debug, Clone, Copy)]
enum Format {
    AutoAwq,
    PackQuantized,
}

/// Adds `part` to `weights` by way of a checkpoint's tensors.
fn add(
    stream: &Arc<CudaStream>,
    weights: &mut DeviceInt4Weights,
    part: &Int4Weights,
    format: Format,
    rows: Option<&[i32]>,
) {
    let words = |words: &[i32]| upload(stream, words, "words").unwrap();
    let halves = |halves: &[f16]| upload(stream, halves, "scales").unwrap();
    let rows = rows.map(words);
    match format {
        Format::AutoAwq => {
            let tensors = auto_awq::write::<f16>(part).unwrap();
            let (qweight, qzeros) = (words(&tensors.qweight), words(&tensors.qzeros));
            let scales = halves(&tensors.scales);
            let (qweight, qzeros, scales) = (&qweight, &qzeros, &scales);
            let tensors = DeviceTensors::AutoAwq { qweight, qzeros, scales };
            weights.add(stream, part.shape(), tensors, rows.as_ref()).unwrap();
        }
        Format::PackQuantized => {
            let tensors = compressed_tensors::write::<f16>(part).unwrap();
            let (packed, scales) = (words(&tensors.weight_packed), halves(&tensors.weight_scale));
            let zero_points = tensors.weight_zero_point.as_deref().map(words);
            let zero_points = zero_points.as_ref();
            let tensors = DeviceTensors::PackQuantized { packed: &packed, scales: &scales, zero_points };
            weights.add(stream, part.shape(), tensors, rows.as_ref()).unwrap();
        }
    }
}

#[track_caller]
fn same(stream: &Arc<CudaStream>, got: &DeviceInt4Weights, want: &PackedWeights, what: &str) {
    assert_eq!(got.shape(), want.shape());
    let got = download(stream, got.bytes()).unwrap();
    let wrong = got.iter().zip(want.bytes()).position(|(got, want)| got != want);
    let at = |at: usize| format!("byte {at}: {:#x}, not {:#x}", got[at], want.bytes()[at]);
    assert_eq!((got.len(), wrong.map(at)), (want.bytes().len(), None), "{what}");
}

fn shuffled(count: usize, rng: &mut Rng) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        rows.swap(i, rng.below(0..i + 1));
    }
    rows
}

#[test]
#[ignore = "needs an H200"]
fn parts_are_packed_as_on_the_host_whatever_their_rows() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(11);
    for case in 0..if sanitized() { 30 } else { 256 } {
        let format = if case % 2 == 0 { Format::AutoAwq } else { Format::PackQuantized };
        let group_size = [64, 128][rng.below(0..2)];
        // Wider groups in the checkpoint are split.
        let wider = [1, 1, 2, 3][rng.below(0..4)];
        let in_features = group_size * wider * rng.below(1..7);
        // One to three parts of whole words, whose rows make whole blocks only together.
        let blocks = rng.below(1..19);
        let mut sizes = Vec::new();
        let mut left = 64 * blocks;
        for _ in 0..rng.below(0..3) {
            let size = 8 * rng.below(0..left / 8);
            if size > 0 {
                sizes.push(size);
                left -= size;
            }
        }
        sizes.push(left);
        let parts: Vec<Int4Weights> = sizes
            .iter()
            .map(|&size| {
                let shape = Int4Shape::new(in_features, size, group_size * wider).unwrap();
                let weights = common::weights(shape, rng.bits());
                if case % 5 != 1 {
                    return weights;
                }
                // Symmetric: compressed-tensors has no zero points then.
                let (codes, scales) = (weights.codes().to_vec(), weights.scales().to_vec());
                Int4Weights::new(shape, codes, vec![8; scales.len()], scales).unwrap()
            })
            .collect();
        let rows = shuffled(64 * blocks, &mut rng);
        let alone = sizes.len() == 1 && case % 3 == 0;
        let whole = Int4Weights::concat(&parts).unwrap().split_groups(group_size).unwrap();
        let whole = if alone { whole } else { whole.select_rows(&rows).unwrap() };
        let want = PackedWeights::pack(&whole).unwrap();

        let mut got = DeviceInt4Weights::zeros(gpu.stream(), want.shape()).unwrap();
        let mut first = 0;
        for part in &parts {
            let inside = first..first + part.shape().out_features();
            let of = |row: &usize| if inside.contains(row) { (row - first) as i32 } else { -1 };
            let map: Vec<i32> = rows.iter().map(of).collect();
            add(gpu.stream(), &mut got, part, format, (!alone).then_some(&map));
            first += part.shape().out_features();
        }
        let what = format!("case {case}: {format:?}, {:?}, parts of {sizes:?} rows", parts[0].shape());
        same(gpu.stream(), &got, &want, &what);
    }
}

/// Rows that no part has stay zero, and a row beyond the part is none of it.
#[test]
#[ignore = "needs an H200"]
fn rows_beyond_a_part_stay_zero() {
    let gpu = Gpu::open(0).unwrap();
    let part = common::weights(Int4Shape::new(128, 40, 128).unwrap(), 3);
    let shape = Int4Shape::new(128, 64, 128).unwrap();
    let mut codes = part.codes().to_vec();
    codes.resize(128 * 64, 0);
    let (mut zeros, mut scales) = (part.zeros().to_vec(), part.scales().to_vec());
    zeros.resize(64, 0);
    scales.resize(64, 0.0);
    let want = PackedWeights::pack(&Int4Weights::new(shape, codes, zeros, scales).unwrap()).unwrap();
    let beyond: Vec<i32> = (0..40).chain([40, 41, i32::MAX, i32::MIN]).chain([-1; 20]).collect();
    for (format, rows) in
        [(Format::AutoAwq, None), (Format::PackQuantized, None), (Format::AutoAwq, Some(&beyond[..]))]
    {
        let mut got = DeviceInt4Weights::zeros(gpu.stream(), shape).unwrap();
        add(gpu.stream(), &mut got, &part, format, rows);
        same(gpu.stream(), &got, &want, &format!("{format:?}"));
    }
}

#[test]
#[ignore = "needs an H200"]
fn random_weights_are_those_of_the_host() {
    let gpu = Gpu::open(0).unwrap();
    for (in_features, out_features, group_size) in [
        (64, 64, 64),
        (192, 640, 64),
        (1152, 1088, 128),
        (1024, 512, 256),
        (768, 128, 768),
        (14848, 256, 128),
    ] {
        let shape = Int4Shape::new(in_features, out_features, group_size).unwrap();
        let plain = SyntheticInt4::new(shape, 0x1234_5678_9abc_def0);
        for synthetic in [plain, plain.symmetric()] {
            let weights = synthetic.reference().unwrap().for_kernels().unwrap();
            let got = DeviceInt4Weights::synthetic(gpu.stream(), &synthetic).unwrap();
            same(gpu.stream(), &got, &PackedWeights::pack(&weights).unwrap(), &format!("{synthetic:?}"));
        }
    }
}

#[test]
#[ignore = "needs an H200"]
fn bad_parts_are_refused() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let shape = Int4Shape::new(256, 64, 64).unwrap();
    let mut weights = DeviceInt4Weights::zeros(stream, shape).unwrap();
    let ints = |len| device::gpu::zeros::<i32>(stream, len, "ints").unwrap();
    let halves = |len| device::gpu::zeros::<f16>(stream, len, "halves").unwrap();
    let (qweight, qzeros, scales, rows) = (ints(256 * 8), ints(4 * 8), halves(4 * 64), ints(63));
    let good = DeviceTensors::AutoAwq { qweight: &qweight, qzeros: &qzeros, scales: &scales };
    let mut refused = |part: Int4Shape, tensors, rows: Option<&_>, text: &str| {
        assert_eq!(weights.add(stream, part, tensors, rows).unwrap_err().to_string(), text);
    };
    refused(shape, good, Some(&rows), "pack: rows: expected 64 elements, got 63");
    let part = Int4Shape::new(256, 72, 64).unwrap();
    refused(part, good, None, "pack: qweight: expected 2304 elements, got 2048");
    let part = Int4Shape::new(256, 60, 64).unwrap();
    refused(part, good, None, "pack: out_features: expected a positive multiple of 8, got 60");
    let part = Int4Shape::new(256, 64, 32).unwrap();
    let (more_zeros, more_scales) = (ints(8 * 8), halves(8 * 64));
    let tensors = DeviceTensors::AutoAwq { qweight: &qweight, qzeros: &more_zeros, scales: &more_scales };
    refused(part, tensors, None, "pack: part.group_size: expected a multiple of 64, got 32");
    let tensors = DeviceTensors::AutoAwq { qweight: &qweight, qzeros: &more_zeros, scales: &scales };
    refused(shape, tensors, None, "pack: qzeros: expected 32 elements, got 64");
    let tensors = DeviceTensors::AutoAwq { qweight: &qweight, qzeros: &qzeros, scales: &more_scales };
    refused(shape, tensors, None, "pack: scales: expected 256 elements, got 512");
    let zero_points = Some(&qweight);
    let tensors = DeviceTensors::PackQuantized { packed: &qweight, scales: &scales, zero_points };
    refused(shape, tensors, None, "pack: zero_points: expected 32 elements, got 2048");
    let part = Int4Shape::new(128, 64, 64).unwrap();
    let (words, scales) = (ints(128 * 8), halves(2 * 64));
    let tensors = DeviceTensors::PackQuantized { packed: &words, scales: &scales, zero_points: None };
    refused(part, tensors, None, "pack: part.in_features: expected 256, got 128");
    let narrow = SyntheticInt4::new(Int4Shape::new(256, 64, 32).unwrap(), 1);
    let error = DeviceInt4Weights::synthetic(stream, &narrow).unwrap_err();
    let text =
        "int4_weights: group_size: expected a multiple of 64 (the kernels have groups of 64 and 128), got 32";
    assert_eq!(error.to_string(), text);
}
