//! Every bad argument, with its exact error.
// A test that cannot make its input has failed.
#![allow(clippy::unwrap_used)]

use awq_gemm::formats::compressed_tensors::ZeroPoints;
use awq_gemm::formats::{auto_awq, compressed_tensors, model_opt};
use awq_gemm::{Int4Shape, Int4Weights, PackedWeights, W4A8, W4A16, quantize};
use device::{ActivationShape, E4m3, QuantizedActivation, Result};
use half::f16;

fn shape() -> Int4Shape {
    Int4Shape::new(16, 8, 8).unwrap()
}

fn weights(zero: u8) -> Int4Weights {
    Int4Weights::new(shape(), vec![3; 128], vec![zero; 16], vec![0.5; 16]).unwrap()
}

#[track_caller]
fn rejects<T: std::fmt::Debug>(result: Result<T>, text: &str) {
    assert_eq!(result.unwrap_err().to_string(), text);
}

#[test]
fn shapes() {
    rejects(Int4Shape::new(0, 8, 8), "int4_weights: in_features: expected at least 1, got 0");
    rejects(Int4Shape::new(16, 0, 8), "int4_weights: out_features: expected at least 1, got 0");
    let text = "int4_weights: group_size: expected a divisor of in_features 16, got 0";
    rejects(Int4Shape::new(16, 8, 0), text);
    let text = "int4_weights: group_size: expected a divisor of in_features 16, got 12";
    rejects(Int4Shape::new(16, 8, 12), text);
    let text = "int4_weights: group_size: expected a divisor of in_features 16, got 32";
    rejects(Int4Shape::new(16, 8, 32), text);
    let text = format!(
        "int4_weights: out_features: expected a product that fits in memory, got [16, {}]",
        usize::MAX
    );
    rejects(Int4Shape::new(16, usize::MAX, 8), &text);
}

#[test]
fn canonical_weights() {
    let new = |codes, zeros, scales| Int4Weights::new(shape(), codes, zeros, scales);
    let text = "int4_weights: codes: expected 128 elements, got 127";
    rejects(new(vec![0; 127], vec![0; 16], vec![0.0; 16]), text);
    let text = "int4_weights: zeros: expected 16 elements, got 17";
    rejects(new(vec![0; 128], vec![0; 17], vec![0.0; 16]), text);
    let text = "int4_weights: scales: expected 16 elements, got 0";
    rejects(new(vec![0; 128], vec![0; 16], vec![]), text);
    let mut codes = vec![15; 128];
    codes[127] = 16;
    let text = "int4_weights: codes: expected 0 to 15, got 16 at [127]";
    rejects(new(codes, vec![0; 16], vec![0.0; 16]), text);
    let mut zeros = vec![15; 16];
    zeros[0] = 255;
    let text = "int4_weights: zeros: expected 0 to 15, got 255 at [0]";
    rejects(new(vec![0; 128], zeros, vec![0.0; 16]), text);
    let cases = [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
        (f32::MAX / 14.0, "24305882000000000000000000000000000000"),
    ];
    for (scale, printed) in cases {
        let mut scales = vec![1.0; 16];
        scales[5] = scale;
        let text = format!(
            "int4_weights: scales: expected finite numbers, 15 times each of them finite too, got {printed} at [5]"
        );
        rejects(new(vec![0; 128], vec![0; 16], scales), &text);
    }
    rejects(weights(8).select_rows(&[0, 8]), "int4_weights: rows: expected rows below 8, got 8");
    rejects(weights(8).select_rows(&[]), "int4_weights: out_features: expected at least 1, got 0");
    rejects(Int4Weights::concat(&[]), "int4_weights: parts: expected at least 1, got 0");
    let other =
        Int4Weights::new(Int4Shape::new(16, 1, 16).unwrap(), vec![0; 16], vec![0], vec![0.0]).unwrap();
    let text =
        "int4_weights: parts: expected 16 in_features in groups of 8, got 16 in_features in groups of 16";
    rejects(Int4Weights::concat(&[weights(8), other]), text);
}

#[test]
fn auto_awq_tensors() {
    let half = f16::ONE;
    let text = "auto_awq: qweight: expected 16 elements, got 15";
    rejects(auto_awq::read(shape(), &[0; 15], &[0; 2], &[half; 16]), text);
    let text = "auto_awq: qzeros: expected 2 elements, got 16";
    rejects(auto_awq::read(shape(), &[0; 16], &[0; 16], &[half; 16]), text);
    let text = "auto_awq: scales: expected 16 elements, got 8";
    rejects(auto_awq::read(shape(), &[0; 16], &[0; 2], &[half; 8]), text);
    let text =
        "int4_weights: scales: expected finite numbers, 15 times each of them finite too, got inf at [0]";
    rejects(auto_awq::read(shape(), &[0; 16], &[0; 2], &[f16::INFINITY; 16]), text);
    let odd = Int4Shape::new(16, 12, 8).unwrap();
    let text = "auto_awq: out_features: expected a positive multiple of 8, got 12";
    rejects(auto_awq::read(odd, &[0; 24], &[0; 3], &[half; 24]), text);
    let odd = Int4Weights::new(odd, vec![0; 192], vec![0; 24], vec![0.0; 24]).unwrap();
    rejects(auto_awq::write::<f16>(&odd), text);
    let fine = Int4Weights::new(shape(), vec![0; 128], vec![0; 16], vec![0.1; 16]).unwrap();
    let text = "auto_awq: scales: expected numbers that f16 holds exactly, got 0.1";
    rejects(auto_awq::write::<f16>(&fine), text);
}

#[test]
fn compressed_tensors_tensors() {
    use compressed_tensors::{read, write};
    let text = "compressed_tensors: weight_packed: expected 16 elements, got 17";
    rejects(read(shape(), &[0; 17], &[0.5f32; 16], ZeroPoints::Symmetric), text);
    let text = "compressed_tensors: weight_scale: expected 16 elements, got 15";
    rejects(read(shape(), &[0; 16], &[0.5f32; 15], ZeroPoints::Symmetric), text);
    let text = "compressed_tensors: weight_zero_point: expected 2 elements, got 16";
    rejects(read(shape(), &[0; 16], &[0.5f32; 16], ZeroPoints::Packed(&[0; 16])), text);
    let text = "compressed_tensors: weight_zero_point: expected 16 elements, got 2";
    rejects(read(shape(), &[0; 16], &[0.5f32; 16], ZeroPoints::Bytes(&[0; 2])), text);
    for (zero, printed) in [(8, "8"), (-9, "-9"), (-128, "-128"), (127, "127")] {
        let text = format!("compressed_tensors: weight_zero_point: expected -8 to 7, got {printed}");
        rejects(read(shape(), &[0; 16], &[0.5f32; 16], ZeroPoints::Bytes(&[zero; 16])), &text);
    }
    let fine = Int4Weights::new(shape(), vec![0; 128], vec![0; 16], vec![0.1; 16]).unwrap();
    let text = "compressed_tensors: scales: expected numbers that bf16 holds exactly, got 0.1";
    rejects(write::<half::bf16>(&fine), text);
}

#[test]
fn model_opt_tensors() {
    let text = "model_opt: weight: expected 64 elements, got 128";
    rejects(model_opt::read(shape(), &[0; 128], &[0.5f32; 16]), text);
    let text = "model_opt: weight_scale: expected 16 elements, got 4";
    rejects(model_opt::read(shape(), &[0; 64], &[0.5f32; 4]), text);
    let odd = Int4Shape::new(16, 7, 8).unwrap();
    let text = "model_opt: out_features: expected a positive multiple of 2, got 7";
    rejects(model_opt::read(odd, &[0; 56], &[0.5f32; 14]), text);
    let text = "model_opt: zeros: expected 8 everywhere (the format is symmetric), got 7";
    rejects(model_opt::write::<f32>(&weights(7)), text);
}

#[test]
fn packing() {
    let zeros = |k: usize, n: usize, group_size: usize| {
        let shape = Int4Shape::new(k, n, group_size).unwrap();
        let groups = n * shape.groups();
        Int4Weights::new(shape, vec![0; k * n], vec![0; groups], vec![0.1; groups]).unwrap()
    };
    for group_size in [32, 192, 384] {
        let text = format!(
            "pack: group_size: expected 64 or 128 (Int4Weights::split_groups makes them of wider ones), got {group_size}"
        );
        rejects(PackedWeights::pack(&zeros(384, 64, group_size)), &text);
    }
    for out_features in [1, 63, 65, 96] {
        let text = format!(
            "pack: out_features: expected a multiple of 64 (append rows whose codes, zeros and scales are 0), got \
             {out_features}"
        );
        rejects(PackedWeights::pack(&zeros(128, out_features, 128)), &text);
    }
    let text = "pack: scales: expected numbers that f16 holds exactly, got 0.1";
    rejects(PackedWeights::pack(&zeros(128, 64, 128)), text);
    let shape = Int4Shape::new(128, 64, 64).unwrap();
    let text = "pack: bytes: expected 5376 elements, got 5375";
    rejects(PackedWeights::from_bytes(shape, vec![0; 5375]), text);
    let text = "int4_weights: group_size: expected a divisor of the present 128, got 96";
    rejects(zeros(128, 64, 128).split_groups(96), text);
    let text = "int4_weights: group_size: expected a divisor of the present 128, got 0";
    rejects(zeros(128, 64, 128).split_groups(0), text);
    let text =
        "int4_weights: group_size: expected a multiple of 64 (the kernels have groups of 64 and 128), got 32";
    rejects(zeros(128, 64, 32).for_kernels(), text);
}

#[test]
fn quantizer() {
    rejects(quantize(shape(), &[0.0; 127]), "quantize: weights: expected 128 elements, got 127");
    let mut dense = [1.0; 128];
    dense[9] = f32::NAN;
    rejects(quantize(shape(), &dense), "quantize: weights: expected finite numbers, got NaN at [9]");
    dense[9] = 15.0 * 65536.0;
    let text = "quantize: weights: expected groups whose range over 15 is within f16, got [8..] beyond it";
    rejects(quantize(shape(), &dense), text);
    dense[9] = f32::MAX;
    dense[10] = f32::MIN;
    rejects(quantize(shape(), &dense), text);
}

#[test]
fn products() {
    let x = |tokens: usize, features, codes, scales, group_size, group_sums| QuantizedActivation {
        shape: ActivationShape { tokens, features, group_size },
        codes,
        scales,
        group_sums,
    };
    let (codes, floats) = ([E4m3(0); 64], [0.0f32; 64]);
    let plan = W4A8::new(shape());
    let run = |x: QuantizedActivation<&[E4m3], &[f32]>, bias: Option<&[f32]>, len: usize| {
        plan.reference(&x, &weights(8), bias, &mut vec![0.0; len])
    };
    let good = x(2, 16, &codes[..32], &floats[..2], 8, &floats[..4]);
    run(good.clone(), Some(&[0.0; 8]), 16).unwrap();
    let text = "w4a8: x.shape.features: expected 16, got 8";
    rejects(run(x(2, 8, &codes[..16], &floats[..2], 0, &[]), None, 16), text);
    let text = "w4a8: x.codes: expected 32 elements, got 31";
    rejects(run(x(2, 16, &codes[..31], &floats[..2], 0, &[]), None, 16), text);
    let text = "w4a8: x.scales: expected 2 elements, got 1";
    rejects(run(x(2, 16, &codes[..32], &floats[..1], 0, &[]), None, 16), text);
    rejects(run(good.clone(), Some(&[0.0; 7]), 16), "w4a8: bias: expected 8 elements, got 7");
    rejects(run(good.clone(), None, 15), "w4a8: y: expected 16 elements, got 15");
    let text =
        format!("w4a8: x.shape.tokens: expected a product that fits in memory, got [{}, 16]", usize::MAX);
    rejects(run(x(usize::MAX, 16, &codes, &floats, 0, &[]), None, 16), &text);
    let other =
        Int4Weights::new(Int4Shape::new(16, 8, 16).unwrap(), vec![0; 128], vec![0; 8], vec![0.0; 8]).unwrap();
    let text = "w4a8: weights: expected Int4Shape { in_features: 16, out_features: 8, group_size: 8 }, got \
                Int4Shape { in_features: 16, out_features: 8, group_size: 16 }";
    rejects(plan.reference(&good, &other, None, &mut [0.0; 16]), text);
    let sums = |x: QuantizedActivation<&[E4m3], &[f32]>| {
        plan.reference_by_group_sums(&x, &weights(8), None, &mut [0.0; 16])
    };
    sums(good).unwrap();
    let text = "w4a8: x.shape.group_size: expected 8, got 0";
    rejects(sums(x(2, 16, &codes[..32], &floats[..2], 0, &[])), text);
    let text = "w4a8: x.group_sums: expected 4 elements, got 3";
    rejects(sums(x(2, 16, &codes[..32], &floats[..2], 8, &floats[..3])), text);

    let plan = W4A16::new(shape());
    let text = "w4a16: x: expected rows of 16 elements, got 17";
    rejects(plan.reference(&[0.0; 17], &weights(8), None, &mut [0.0; 8]), text);
    let text = "w4a16: y: expected 8 elements, got 16";
    rejects(plan.reference(&[0.0; 16], &weights(8), None, &mut [0.0; 16]), text);
    let text = "w4a16: bias: expected 8 elements, got 9";
    rejects(plan.reference(&[0.0; 16], &weights(8), Some(&[0.0; 9]), &mut [0.0; 8]), text);
    let text = "w4a16: weights: expected Int4Shape { in_features: 16, out_features: 8, group_size: 8 }, got \
                Int4Shape { in_features: 16, out_features: 8, group_size: 16 }";
    rejects(plan.reference(&[0.0; 16], &other, None, &mut [0.0; 8]), text);
}
