//! What the W4A8 product costs a model beside its weights: the rounding of the activations, and nothing else.

use super::{Case, OnDevice, floats};
use awq_gemm::{Int4Shape, W4A8Workspace, W4A16, quantize};
use device::gpu::Gpu;
use device::{E4m3, quantize_row};
use half::bf16;
use op_test::Rng;

/// Activations as models have them, a few channels 30 to 100 times as large as the rest: bf16 `[tokens, features]`.
fn with_outliers(rng: &mut Rng, tokens: usize, features: usize) -> Vec<f32> {
    let mut sizes = vec![1.0; features];
    for _ in 0..6 {
        sizes[rng.below(0..features)] = 30.0 + 70.0 * rng.signed().abs();
    }
    let mut x = Vec::with_capacity(tokens * features);
    for _ in 0..tokens {
        x.extend(sizes.iter().map(|size| bf16::from_f32(rng.normal(*size)).to_f32()));
    }
    x
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

/// Root of the sum of squares of the kernel's error, against the exact product of the dequantized weights with the activations
/// before they were quantized, over that of the exact product with the quantized ones: 1 within 2%.
#[test]
#[ignore = "needs an H200"]
fn outlier_channels_cost_their_quantization_alone_full_size() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A8Workspace::new(stream).unwrap();
    let mut rng = Rng::new(31);
    for (group_size, in_features, tokens, static_scale) in [
        (128, 8192, 1, false),
        (128, 8192, 16, false),
        (128, 14848, 64, false),
        (128, 8192, 192, true),
        (128, 8192, 256, false),
        (64, 4096, 40, false),
        (64, 4096, 130, true),
    ] {
        let out_features = 384;
        let shape = Int4Shape::new(in_features, out_features, group_size).unwrap();
        let deviation = 1.0 / (in_features as f32).sqrt();
        let weights = quantize(shape, &rng.tensor(out_features * in_features, deviation)).unwrap();
        let x = with_outliers(&mut rng, tokens, in_features);
        let mut codes = vec![E4m3::default(); x.len()];
        let mut group_sums = vec![0.0; tokens * shape.groups()];
        // One scale for all tokens is that of the tensor taken as one row.
        let row = if static_scale { x.len() } else { in_features };
        let rows = x.chunks(row).zip(codes.chunks_mut(row)).zip(group_sums.chunks_mut(row / group_size));
        let scales: Vec<f32> = rows.map(|((x, c), sums)| quantize_row(x, group_size, c, sums)).collect();
        let scales: Vec<f32> = (0..tokens).map(|token| scales[token * in_features / row]).collect();
        let quantized: Vec<f32> = (0..x.len()).map(|i| codes[i].to_f32() * scales[i / in_features]).collect();

        let plan = W4A16::new(shape);
        let exact = |x: &[f32]| {
            let mut y = vec![f32::NAN; tokens * out_features];
            plan.reference(x, &weights, None, &mut y).unwrap();
            y
        };
        let (want, alone) = (exact(&x), exact(&quantized));
        let case = Case { shape, tokens, codes, scales, group_sums, weights: weights.clone(), bias: None };
        let got: Vec<bf16> = OnDevice::new(stream, &case).run(stream, &mut workspace);
        let size = distance(&want, &vec![0.0; want.len()]);
        let ratio = distance(&floats(&got), &want) / distance(&alone, &want);
        println!(
            "{tokens} x {in_features}, groups of {group_size}: activations alone {:.4} of the output, W4A8 {ratio:.4} of that",
            distance(&alone, &want) / size
        );
        assert!((ratio - 1.0).abs() <= 0.02, "{ratio}");
    }
}
