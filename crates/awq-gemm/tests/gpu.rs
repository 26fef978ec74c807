//! The W4A8 kernel against the reference, outputs poisoned and guarded.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

#[path = "gpu/accuracy.rs"]
mod accuracy;
mod common;
#[path = "gpu/layers.rs"]
mod layers;
#[path = "gpu/pack.rs"]
mod pack;
#[path = "gpu/random.rs"]
mod random;
#[path = "gpu/w4a16.rs"]
mod w4a16;

use awq_gemm::{DeviceInt4Weights, Int4Shape, Int4Weights, PackedWeights, W4A8, W4A8Workspace};
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use device::gpu::{Gpu, Graph, download, upload, zeros};
use device::{ActivationShape, E4m3, Element, QuantizedActivation};
use half::{bf16, f16};
use op_test::{DeviceGuarded, Rng, assert_close_f64, gamma, sanitized};
use std::sync::Arc;

type Stream = Arc<CudaStream>;

/// Every tile of the variant table: tokens around each width, output features below and above what wide tiles ask for.
const TOKENS: [usize; 23] =
    [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193, 257, 256, 2048];

/// One product with all its operands on the host.
#[derive(Clone)]
struct Case {
    shape: Int4Shape,
    tokens: usize,
    codes: Vec<E4m3>,
    scales: Vec<f32>,
    group_sums: Vec<f32>,
    weights: Int4Weights,
    bias: Option<Vec<f32>>,
}

/// What activations are made of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Codes {
    /// -2 to 2: every group's sum is exact in the tensor cores' short accumulator, so a wrong element shows, however small.
    Exact,
    /// Normal with outlier channels, over the whole range of e4m3.
    Real,
}

impl Case {
    fn new(shape: Int4Shape, tokens: usize, codes: Codes, bias: bool, rng: &mut Rng) -> Self {
        let outlier = rng.below(0..shape.in_features());
        let mut code = |i: usize| match codes {
            Codes::Exact => E4m3::from_f32(rng.below(0..5) as f32 - 2.0),
            Codes::Real if i % shape.in_features() == outlier => E4m3::from_f32(rng.normal(200.0)),
            Codes::Real => E4m3::from_f32(rng.normal(20.0)),
        };
        let codes: Vec<E4m3> = (0..tokens * shape.in_features()).map(&mut code).collect();
        let sum = |codes: &[E4m3]| codes.iter().map(|code| f64::from(code.to_f32())).sum::<f64>() as f32;
        let group_sums = codes.chunks(shape.group_size()).map(sum).collect();
        let scales = (0..tokens).map(|_| 0.001 + rng.signed().abs()).collect();
        let bias = bias.then(|| rng.tensor(shape.out_features(), 1.0));
        Self { shape, tokens, codes, scales, group_sums, weights: common::weights(shape, rng.bits()), bias }
    }

    fn activation_shape(&self) -> ActivationShape {
        let (features, group_size) = (self.shape.in_features(), self.shape.group_size());
        ActivationShape { tokens: self.tokens, features, group_size }
    }

    /// The product by its definition, exact but for one rounding to f32.
    fn reference(&self) -> Vec<f64> {
        let (codes, scales, group_sums) = (&self.codes[..], &self.scales[..], &self.group_sums[..]);
        let x = QuantizedActivation { shape: self.activation_shape(), codes, scales, group_sums };
        let mut y = vec![f32::NAN; self.tokens * self.shape.out_features()];
        W4A8::new(self.shape).reference(&x, &self.weights, self.bias.as_deref(), &mut y).unwrap();
        y.into_iter().map(f64::from).collect()
    }

    /// How far an element may be off. Per group: the tensor cores add 32 products and the sum so far in a step, all cut to
    /// 13 fraction bits below the largest of them (nothing is cut where activations are `Exact`). Then f32, cut
    /// rather than rounded (2^-23): one addition a group, and for the zero points of a window of 8 groups two steps of the
    /// tensor cores that add 17 terms each. The second halves of group sums are rounded to bf16, which leaves 2^-16 of
    /// them. Last the rounding to `Y`.
    fn bounds<Y: Element>(&self, codes: Codes, want: &[f64]) -> Vec<f64> {
        let (shape, weights) = (self.shape, &self.weights);
        let unit = if Y::NAME == "bf16" { 2f64.powi(-8) } else { 2f64.powi(-11) };
        // Where f16 has no more bits to lose.
        let floor = if Y::NAME == "bf16" { 1e-38 } else { 2f64.powi(-24) };
        let group_size = shape.group_size();
        let magnitudes: Vec<(f64, f64)> = self
            .codes
            .chunks(group_size)
            .map(|codes| codes.iter().map(|x| f64::from(x.to_f32().abs())))
            .map(|x| (x.clone().sum(), x.fold(0.0, f64::max)))
            .collect();
        let steps = group_size as f64 / 32.0;
        // A tile that several blocks share adds their parts as well.
        let additions = shape.groups() + 34 * shape.groups().div_ceil(8) + 16;
        let mut bounds = Vec::with_capacity(want.len());
        for token in 0..self.tokens {
            for n in 0..shape.out_features() {
                let (mut cut, mut magnitude) = (0.0, 0.0);
                for group in 0..shape.groups() {
                    let at = n * shape.groups() + group;
                    let (sum, largest) = magnitudes[token * shape.groups() + group];
                    let scale = f64::from(weights.scales()[at]).abs();
                    let zero = f64::from(weights.zeros()[at]);
                    if codes == Codes::Real {
                        // The largest of a step: a product, or the sum so far.
                        cut += steps * 33.0 * 2f64.powi(-13) * scale * (15.0 * largest).max(15.0 * sum);
                        cut += 2f64.powi(-16)
                            * scale
                            * zero
                            * f64::from(self.group_sums[token * shape.groups() + group]).abs();
                    }
                    magnitude += scale * (15.0 + zero) * sum;
                }
                let f32_sums = gamma(additions, 2f64.powi(-23)) * magnitude;
                let want = want[token * shape.out_features() + n].abs();
                let scaled = f64::from(self.scales[token]) * (cut + f32_sums);
                bounds.push((scaled + 2f64.powi(-22) * want) * (1.0 + unit) + unit * want + floor);
            }
        }
        bounds
    }
}

/// The operands on the device.
struct OnDevice {
    plan: W4A8,
    x: QuantizedActivation<CudaSlice<E4m3>, CudaSlice<f32>>,
    weights: DeviceInt4Weights,
    bias: Option<CudaSlice<f32>>,
}

impl OnDevice {
    fn new(stream: &Stream, case: &Case) -> Self {
        Self::packed(stream, case, &PackedWeights::pack(&case.weights).unwrap())
    }

    /// With the case's weights packed already.
    fn packed(stream: &Stream, case: &Case, packed: &PackedWeights) -> Self {
        let weights = DeviceInt4Weights::upload(stream, packed).unwrap();
        let bias = case.bias.as_ref().map(|bias| upload(stream, bias, "bias").unwrap());
        Self { plan: W4A8::new(case.shape), x: Self::activation(stream, case), weights, bias }
    }

    fn activation(stream: &Stream, case: &Case) -> QuantizedActivation<CudaSlice<E4m3>, CudaSlice<f32>> {
        QuantizedActivation {
            shape: case.activation_shape(),
            codes: upload(stream, &case.codes, "codes").unwrap(),
            scales: upload(stream, &case.scales, "scales").unwrap(),
            group_sums: upload(stream, &case.group_sums, "group sums").unwrap(),
        }
    }

    /// Runs into a poisoned and guarded output.
    fn launch<Y: Element + DeviceRepr>(
        &self,
        stream: &Stream,
        workspace: &mut W4A8Workspace,
    ) -> DeviceGuarded<Y> {
        let mut y = DeviceGuarded::<Y>::new(stream, self.x.shape.tokens * self.plan.shape().out_features());
        let bias = self.bias.as_ref();
        self.plan.launch(stream, &self.x, &self.weights, bias, workspace, &mut y.view()).unwrap();
        y
    }

    fn run<Y: Element + DeviceRepr>(&self, stream: &Stream, workspace: &mut W4A8Workspace) -> Vec<Y> {
        self.launch::<Y>(stream, workspace).checked(stream)
    }
}

fn floats<Y: Element>(y: &[Y]) -> Vec<f32> {
    y.iter().map(|y| y.to_f32()).collect()
}

/// Within the bounds, and the same bits in every run, whatever the workspace held before.
fn check<Y: Element + DeviceRepr>(stream: &Stream, workspace: &mut W4A8Workspace, case: &Case, codes: Codes) {
    let on_device = OnDevice::new(stream, case);
    let first: Vec<Y> = on_device.run(stream, workspace);
    let want = case.reference();
    println!("{} {:?} tokens {} {codes:?}", Y::NAME, case.shape, case.tokens);
    assert_close_f64(&floats(&first), &want, &case.bounds::<Y>(codes, &want));
    for _ in 0..if sanitized() { 1 } else { 3 } {
        assert!(on_device.run::<Y>(stream, workspace) == first, "another result for the same operands");
    }
}

#[test]
#[ignore = "needs an H200"]
fn every_variant_on_ragged_shapes() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A8Workspace::new(stream).unwrap();
    let mut rng = Rng::new(1);
    // Under a sanitizer one number of tokens for each width of tiles, and whole numbers alone.
    for tokens in TOKENS.into_iter().step_by(if sanitized() { 3 } else { 1 }) {
        for (group_size, round) in [(64, 0), (64, 1), (128, 0), (128, 1)] {
            // From one block of features and one group to several tiles, windows and streamed segments.
            let (blocks, groups) = if round == 0 { (1..14, 1..9) } else { (14..40, 9..28) };
            let in_features = group_size * rng.below(groups);
            let shape = Int4Shape::new(in_features, 64 * rng.below(blocks), group_size).unwrap();
            let exact = Case::new(shape, tokens, Codes::Exact, round == 0, &mut rng);
            check::<bf16>(stream, &mut workspace, &exact, Codes::Exact);
            if sanitized() {
                continue;
            }
            let real = Case::new(shape, tokens, Codes::Real, round == 1, &mut rng);
            if tame(&real) {
                check::<f16>(stream, &mut workspace, &real, Codes::Real);
            } else {
                check::<bf16>(stream, &mut workspace, &real, Codes::Real);
            }
        }
    }
}

/// Weights of large batches, widened in one step and in several, the last of them narrower; from a part of a ring of stages to many
/// rounds of it.
#[test]
#[ignore = "needs an H200"]
fn widened_weights_in_steps() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut rng = Rng::new(11);
    // A step of 256 features of 1024 input features.
    let bytes = 2 * 8 * 2 * (64 * 128 + 64 * 4);
    for (in_features, out_features, tokens) in
        [(128, 64, 2048), (384, 704, 2049), (1024, 576, 2300), (1024, 1344, 2100), (1024, 256, 2305)]
    {
        for steps in [bytes, 2 * bytes, 1 << 24] {
            let mut workspace = W4A8Workspace::with_widened_bytes(stream, steps).unwrap();
            let shape = Int4Shape::new(in_features, out_features, 128).unwrap();
            let exact = Case::new(shape, tokens, Codes::Exact, true, &mut rng);
            check::<bf16>(stream, &mut workspace, &exact, Codes::Exact);
            if !sanitized() {
                let real = Case::new(shape, tokens, Codes::Real, false, &mut rng);
                check::<bf16>(stream, &mut workspace, &real, Codes::Real);
            }
        }
    }
    let mut workspace = W4A8Workspace::with_widened_bytes(stream, bytes - 1).unwrap();
    let case = OnDevice::new(
        stream,
        &Case::new(Int4Shape::new(1024, 64, 128).unwrap(), 2048, Codes::Exact, false, &mut rng),
    );
    let mut y = zeros::<bf16>(stream, 2048 * 64, "y").unwrap();
    let bias = None::<&CudaSlice<f32>>;
    let error = case.plan.launch(stream, &case.x, &case.weights, bias, &mut workspace, &mut y).unwrap_err();
    assert!(error.to_string().contains("room for 270336 bytes of widened weights"), "{error}");
}

/// Whether every output is far from f16's largest.
fn tame(case: &Case) -> bool {
    case.reference().iter().all(|y| y.abs() < 60000.0)
}

/// Wide tiles are chosen from 32768 output features on; short rows keep the reference fast.
#[test]
#[ignore = "needs an H200"]
fn every_wide_variant() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A8Workspace::new(stream).unwrap();
    let mut rng = Rng::new(2);
    for tokens in [1, 16, 17, 32, 33, 64] {
        for (out_features, in_features) in [(32768, 128), (33024 + 64, 1024)] {
            let shape = Int4Shape::new(in_features, out_features, 128).unwrap();
            let case = Case::new(shape, tokens, Codes::Exact, true, &mut rng);
            check::<bf16>(stream, &mut workspace, &case, Codes::Exact);
        }
    }
}

/// All codes, all zero points, scales of zero, the least and the largest: one group of one row each.
#[test]
#[ignore = "needs an H200"]
fn every_code_with_every_zero_point() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A8Workspace::new(stream).unwrap();
    let mut rng = Rng::new(3);
    let extremes = [0.0, f16::MIN_POSITIVE_SUBNORMAL.to_f32(), f16::MAX.to_f32(), -1.0];
    for (group_size, scale) in [64, 128].into_iter().flat_map(|g| extremes.map(|scale| (g, scale))) {
        let shape = Int4Shape::new(16 * group_size, 256, group_size).unwrap();
        let mut case = Case::new(shape, 20, Codes::Exact, false, &mut rng);
        let codes =
            (0..256 * shape.in_features()).map(|i| ((i / shape.in_features() + i) % 16) as u8).collect();
        let zeros = (0..256 * 16).map(|i| (i % 16) as u8).collect();
        case.weights = Int4Weights::new(shape, codes, zeros, vec![scale; 256 * 16]).unwrap();
        check::<bf16>(stream, &mut workspace, &case, Codes::Exact);
    }
}

/// A row depends on no other row of a batch of the same size, not even where the others are NaN.
#[test]
#[ignore = "needs an H200"]
fn a_row_does_not_depend_on_the_others() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A8Workspace::new(stream).unwrap();
    let mut rng = Rng::new(4);
    for tokens in [5, 16, 30, 64, 100, 140, 256, 300, 2060] {
        let shape = Int4Shape::new(1024, 640, 128).unwrap();
        let case = Case::new(shape, tokens, Codes::Real, false, &mut rng);
        let together: Vec<bf16> = OnDevice::new(stream, &case).run(stream, &mut workspace);
        let row = rng.below(0..tokens);
        let mut others = Case::new(shape, tokens, Codes::Real, false, &mut rng);
        others.weights = case.weights.clone();
        let (features, groups) = (row * 1024..(row + 1) * 1024, row * 8..(row + 1) * 8);
        others.codes[features.clone()].copy_from_slice(&case.codes[features]);
        others.group_sums[groups.clone()].copy_from_slice(&case.group_sums[groups]);
        others.scales[row] = case.scales[row];
        let other = (row + 1) % tokens;
        others.codes[other * 1024] = E4m3::NAN;
        let on_device = OnDevice::new(stream, &others);
        let mut y = zeros::<bf16>(stream, tokens * 640, "y").unwrap();
        let bias = None::<&CudaSlice<f32>>;
        on_device
            .plan
            .launch(stream, &on_device.x, &on_device.weights, bias, &mut workspace, &mut y)
            .unwrap();
        let y = download(stream, &y).unwrap();
        assert!(y[row * 640..][..640] == together[row * 640..][..640], "row {row} of {tokens}");
        assert!(y[other * 640..][..640].iter().all(|y| y.to_f32().is_nan()), "a NaN was lost");
    }
}

/// Many launches back to back, as a decode step makes them: each overlaps the one before and shares its workspace.
#[test]
#[ignore = "needs an H200"]
fn back_to_back_and_replayed_full_size() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A8Workspace::new(stream).unwrap();
    let mut rng = Rng::new(5);
    let shapes = [(1024, 8192), (8192, 1024), (2048, 640), (128, 64)];
    for tokens in [1, 16, 32, 64, 128, 192, 200, 300, 2048] {
        let cases = shapes.map(|(k, n)| {
            Case::new(Int4Shape::new(k, n, 128).unwrap(), tokens, Codes::Real, false, &mut rng)
        });
        let on_device = cases.each_ref().map(|case| OnDevice::new(stream, case));
        let alone: Vec<Vec<bf16>> = on_device.iter().map(|case| case.run(stream, &mut workspace)).collect();
        let mut ys: Vec<CudaSlice<bf16>> =
            alone.iter().map(|y| zeros(stream, y.len(), "y").unwrap()).collect();
        let mut all = || {
            for (case, y) in on_device.iter().zip(&mut ys) {
                let bias = None::<&CudaSlice<f32>>;
                case.plan.launch(stream, &case.x, &case.weights, bias, &mut workspace, y)?;
            }
            Ok(())
        };
        for _ in 0..20 {
            all().unwrap();
        }
        // SAFETY: operands, outputs and workspace outlive the graph.
        let graph = unsafe { Graph::capture(stream, &mut all) }.unwrap();
        for _ in 0..20 {
            graph.replay().unwrap();
        }
        for (y, alone) in ys.iter().zip(&alone) {
            assert!(&download(stream, y).unwrap() == alone, "{tokens} tokens");
        }
    }
}

#[test]
#[ignore = "needs an H200"]
fn bad_arguments_are_refused() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A8Workspace::new(stream).unwrap();
    let shape = Int4Shape::new(256, 128, 128).unwrap();
    let case = Case::new(shape, 2, Codes::Exact, false, &mut Rng::new(7));
    let good = OnDevice::new(stream, &case);
    let bias = None::<&CudaSlice<f32>>;
    let mut y = zeros::<bf16>(stream, 256, "y").unwrap();
    let mut refused = |x: &QuantizedActivation<CudaSlice<E4m3>, CudaSlice<f32>>, text: &str| {
        let result = good.plan.launch(stream, x, &good.weights, bias, &mut workspace, &mut y);
        assert_eq!(result.unwrap_err().to_string(), text);
    };
    let shaped = |tokens, features, group_size| QuantizedActivation {
        shape: ActivationShape { tokens, features, group_size },
        ..good.x.clone()
    };
    refused(&shaped(2, 128, 128), "w4a8: x.shape.features: expected 256, got 128");
    refused(&shaped(2, 256, 64), "w4a8: x.shape.group_size: expected 128, got 64");
    refused(&shaped(3, 256, 128), "w4a8: x.codes: expected 768 elements, got 512");
    let floats = || zeros::<f32>(stream, 3, "floats").unwrap();
    let x = QuantizedActivation { scales: floats(), ..good.x.clone() };
    refused(&x, "w4a8: x.scales: expected 2 elements, got 3");
    let x = QuantizedActivation { group_sums: floats(), ..good.x.clone() };
    refused(&x, "w4a8: x.group_sums: expected 4 elements, got 3");

    let message = |result: device::Result<()>| result.unwrap_err().to_string();
    let bias = floats();
    let result = good.plan.launch(stream, &good.x, &good.weights, Some(&bias), &mut workspace, &mut y);
    assert_eq!(message(result), "w4a8: bias: expected 128 elements, got 3");
    let bias = None::<&CudaSlice<f32>>;
    let mut short = zeros::<bf16>(stream, 255, "y").unwrap();
    let result = good.plan.launch(stream, &good.x, &good.weights, bias, &mut workspace, &mut short);
    assert_eq!(message(result), "w4a8: y: expected 256 elements, got 255");
    let mut wide = zeros::<f32>(stream, 256, "y").unwrap();
    let result = good.plan.launch(stream, &good.x, &good.weights, bias, &mut workspace, &mut wide);
    assert_eq!(message(result), "w4a8: y: expected elements of bf16 or f16, got f32");
    let other = gpu.context().new_stream().unwrap();
    let mut others = W4A8Workspace::new(&other).unwrap();
    let result = good.plan.launch(stream, &good.x, &good.weights, bias, &mut others, &mut y);
    assert_eq!(message(result), "w4a8: workspace: expected one made for this stream, got another stream's");
    let bytes = zeros::<u8>(stream, 100, "bytes").unwrap();
    let error = DeviceInt4Weights::from_bytes(shape, bytes).unwrap_err();
    assert_eq!(error.to_string(), "w4a8: weights: expected 18944 elements, got 100");
    // No tokens: nothing to do.
    let empty = QuantizedActivation {
        shape: ActivationShape { tokens: 0, ..good.x.shape },
        codes: zeros(stream, 0, "codes").unwrap(),
        scales: zeros(stream, 0, "scales").unwrap(),
        group_sums: zeros(stream, 0, "group sums").unwrap(),
    };
    let mut nothing = zeros::<bf16>(stream, 0, "y").unwrap();
    good.plan.launch(stream, &empty, &good.weights, bias, &mut workspace, &mut nothing).unwrap();
}
