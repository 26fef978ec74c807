//! The W4A16 kernel against the reference, outputs poisoned and guarded.

use super::common;
use awq_gemm::{Activation, DeviceInt4Weights, Int4Shape, Int4Weights, PackedWeights, W4A16, W4A16Workspace};
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use device::Element;
use device::gpu::{Gpu, Graph, download, upload, zeros};
use half::{bf16, f16};
use op_test::{DeviceGuarded, Rng, assert_close_f64, gamma, sanitized};
use std::sync::Arc;

type Stream = Arc<CudaStream>;

const NO_BIAS: Option<&CudaSlice<f32>> = None;

/// Around the width of every tile of the variant table.
const TOKENS: [usize; 18] = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300];

/// What activations are made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values {
    /// -2 to 2: every group's sum is a whole number below 2^24, exact in the tensor cores, so a wrong element shows,
    /// however small.
    Exact,
    /// Normal, with an outlier channel.
    Real,
}

/// A dtype of activations.
pub trait Type: Activation + Element + DeviceRepr {}
impl Type for bf16 {}
impl Type for f16 {}

/// One product with all its operands on the host.
#[derive(Clone)]
pub struct Case<X> {
    pub shape: Int4Shape,
    pub tokens: usize,
    pub x: Vec<X>,
    pub weights: Int4Weights,
    pub bias: Option<Vec<f32>>,
}

impl<X: Type> Case<X> {
    pub fn new(shape: Int4Shape, tokens: usize, values: Values, bias: bool, rng: &mut Rng) -> Self {
        let outlier = rng.below(0..shape.in_features());
        let mut value = |i: usize| match values {
            Values::Exact => rng.below(0..5) as f32 - 2.0,
            Values::Real if i % shape.in_features() == outlier => rng.normal(20.0),
            Values::Real => rng.normal(1.0),
        };
        let x = (0..tokens * shape.in_features()).map(|i| X::from_f32(value(i))).collect();
        let bias = bias.then(|| rng.tensor(shape.out_features(), 1.0));
        Self { shape, tokens, x, weights: common::weights(shape, rng.bits()), bias }
    }

    /// The product by its definition, exact but for one rounding to f32.
    pub fn reference(&self) -> Vec<f64> {
        let mut y = vec![f32::NAN; self.tokens * self.shape.out_features()];
        let plan = W4A16::new(self.shape);
        plan.reference(&floats(&self.x), &self.weights, self.bias.as_deref(), &mut y).unwrap();
        y.into_iter().map(f64::from).collect()
    }

    /// How far an element may be off. Weights and products are exact. A step of the tensor cores adds 16 products and the sum
    /// so far, each cut to 23 fraction bits below the largest of them, which the sum of the group's magnitudes bounds
    /// (nothing is cut where activations are `Exact`). Then f32: an addition a group, and one for each block that shares the
    /// tile, which has a unit of K at least. Up to 16 tokens of bf16 codes are multiplied as they are, and the zero point times the
    /// group's sum is taken out after: a chain of at most 24 operations, and magnitudes that do not cancel before. Last the bias and the rounding to `Y`.
    pub fn bounds<Y: Element>(&self, values: Values, want: &[f64]) -> Vec<f64> {
        let (shape, weights) = (self.shape, &self.weights);
        let unit = if Y::NAME == "bf16" { 2f64.powi(-8) } else { 2f64.powi(-11) };
        // Where f16 has no more bits to lose.
        let floor = if Y::NAME == "bf16" { 1e-38 } else { 2f64.powi(-24) };
        let group_size = shape.group_size();
        let magnitude = |x: &[X]| x.iter().map(|x| f64::from(x.to_f32().abs())).sum::<f64>();
        let magnitudes: Vec<f64> = self.x.chunks(group_size).map(magnitude).collect();
        let cut =
            if values == Values::Exact { 0.0 } else { (group_size as f64 / 16.0) * 17.0 * 2f64.powi(-23) };
        let raw = X::NAME == "bf16" && self.tokens <= 16;
        let additions = shape.groups() + shape.in_features().div_ceil(128) + if raw { 25 } else { 1 };
        let relative = cut + gamma(additions, 2f64.powi(-24)) * (1.0 + cut);
        let mut bounds = Vec::with_capacity(want.len());
        for token in 0..self.tokens {
            for n in 0..shape.out_features() {
                let mut magnitude = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[n].abs()));
                for group in 0..shape.groups() {
                    let at = n * shape.groups() + group;
                    let zero = f64::from(weights.zeros()[at]);
                    let scale = f64::from(weights.scales()[at]).abs();
                    let weight = if raw { 15.0 + zero } else { zero.max(15.0 - zero) };
                    magnitude += scale * weight * magnitudes[token * shape.groups() + group];
                }
                let want = want[token * shape.out_features() + n].abs();
                bounds.push(
                    (relative * magnitude + 2f64.powi(-23) * want) * (1.0 + unit) + unit * want + floor,
                );
            }
        }
        bounds
    }
}

/// The operands on the device.
pub struct OnDevice<X> {
    plan: W4A16,
    pub tokens: usize,
    pub x: CudaSlice<X>,
    weights: DeviceInt4Weights,
    bias: Option<CudaSlice<f32>>,
}

impl<X: Type> OnDevice<X> {
    fn new(stream: &Stream, case: &Case<X>) -> Self {
        Self::packed(stream, case, &PackedWeights::pack(&case.weights).unwrap())
    }

    /// With the case's weights packed already.
    pub fn packed(stream: &Stream, case: &Case<X>, packed: &PackedWeights) -> Self {
        Self {
            plan: W4A16::new(case.shape),
            tokens: case.tokens,
            x: upload(stream, &case.x, "x").unwrap(),
            weights: DeviceInt4Weights::upload(stream, packed).unwrap(),
            bias: case.bias.as_ref().map(|bias| upload(stream, bias, "bias").unwrap()),
        }
    }

    /// Runs into a poisoned and guarded output.
    pub fn launch<Y: Element + DeviceRepr>(
        &self,
        stream: &Stream,
        workspace: &mut W4A16Workspace,
    ) -> DeviceGuarded<Y> {
        let mut y = DeviceGuarded::<Y>::new(stream, self.tokens * self.plan.shape().out_features());
        let bias = self.bias.as_ref();
        self.plan.launch(stream, &self.x, &self.weights, bias, workspace, &mut y.view()).unwrap();
        y
    }

    pub fn run<Y: Element + DeviceRepr>(&self, stream: &Stream, workspace: &mut W4A16Workspace) -> Vec<Y> {
        self.launch::<Y>(stream, workspace).checked(stream)
    }
}

fn floats<Y: Element>(y: &[Y]) -> Vec<f32> {
    y.iter().map(|y| y.to_f32()).collect()
}

/// Within the bounds, and the same bits in every run, whatever the workspace held before.
fn check<X: Type, Y: Element + DeviceRepr>(
    stream: &Stream,
    workspace: &mut W4A16Workspace,
    case: &Case<X>,
    values: Values,
) {
    let on_device = OnDevice::new(stream, case);
    let first: Vec<Y> = on_device.run(stream, workspace);
    let want = case.reference();
    println!("{} to {} {:?} tokens {} {values:?}", X::NAME, Y::NAME, case.shape, case.tokens);
    assert_close_f64(&floats(&first), &want, &case.bounds::<Y>(values, &want));
    for _ in 0..if sanitized() { 1 } else { 2 } {
        assert!(on_device.run::<Y>(stream, workspace) == first, "another result for the same operands");
    }
}

/// f16 where every output is far from its largest, else bf16.
fn check_either<X: Type>(stream: &Stream, workspace: &mut W4A16Workspace, case: &Case<X>, values: Values) {
    if case.reference().iter().all(|y| y.abs() < 60000.0) {
        check::<X, f16>(stream, workspace, case, values);
    } else {
        check::<X, bf16>(stream, workspace, case, values);
    }
}

#[test]
#[ignore = "needs an H200"]
fn w4a16_every_variant_on_ragged_shapes() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A16Workspace::new(stream).unwrap();
    let mut rng = Rng::new(11);
    // Under a sanitizer one number of tokens for each width of tiles, and whole numbers alone.
    for tokens in TOKENS.into_iter().step_by(if sanitized() { 3 } else { 1 }) {
        for (group_size, round) in [(64, 0), (64, 1), (128, 0), (128, 1)] {
            // From one block of features and one group to several tiles, windows and streamed segments.
            let (blocks, groups) = if round == 0 { (1..14, 1..9) } else { (14..40, 9..28) };
            let in_features = group_size * rng.below(groups);
            let shape = Int4Shape::new(in_features, 64 * rng.below(blocks), group_size).unwrap();
            let exact = Case::<bf16>::new(shape, tokens, Values::Exact, round == 0, &mut rng);
            check::<_, bf16>(stream, &mut workspace, &exact, Values::Exact);
            let exact = Case::<f16>::new(shape, tokens, Values::Exact, round == 1, &mut rng);
            check_either(stream, &mut workspace, &exact, Values::Exact);
            if sanitized() {
                continue;
            }
            let real = Case::<bf16>::new(shape, tokens, Values::Real, round == 1, &mut rng);
            check_either(stream, &mut workspace, &real, Values::Real);
            let real = Case::<f16>::new(shape, tokens, Values::Real, round == 0, &mut rng);
            check::<_, bf16>(stream, &mut workspace, &real, Values::Real);
        }
    }
}

/// Wide tiles are chosen from 12288 or 32768 output features on; short rows keep the reference fast.
#[test]
#[ignore = "needs an H200"]
fn w4a16_every_wide_variant() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A16Workspace::new(stream).unwrap();
    let mut rng = Rng::new(12);
    for tokens in [1, 8, 9, 16, 17, 32, 33, 64] {
        for (out_features, in_features) in [(12288, 1024), (32768, 128), (33024 + 64, 1024)] {
            let shape = Int4Shape::new(in_features, out_features, 128).unwrap();
            let case = Case::<bf16>::new(shape, tokens, Values::Exact, true, &mut rng);
            check::<_, bf16>(stream, &mut workspace, &case, Values::Exact);
            let case = Case::<f16>::new(shape, tokens, Values::Exact, false, &mut rng);
            check::<_, bf16>(stream, &mut workspace, &case, Values::Exact);
        }
    }
}

/// All codes, all zero points, scales of zero, the least and the largest: one group of one row each.
#[test]
#[ignore = "needs an H200"]
fn w4a16_every_code_with_every_zero_point() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A16Workspace::new(stream).unwrap();
    let mut rng = Rng::new(13);
    let extremes = [0.0, f16::MIN_POSITIVE_SUBNORMAL.to_f32(), f16::MAX.to_f32(), -1.0];
    for (group_size, scale) in [64, 128].into_iter().flat_map(|g| extremes.map(|scale| (g, scale))) {
        let shape = Int4Shape::new(16 * group_size, 256, group_size).unwrap();
        let codes: Vec<u8> =
            (0..256 * shape.in_features()).map(|i| ((i / shape.in_features() + i) % 16) as u8).collect();
        let zeros: Vec<u8> = (0..256 * 16).map(|i| (i % 16) as u8).collect();
        let weights = Int4Weights::new(shape, codes, zeros, vec![scale; 256 * 16]).unwrap();
        let mut case = Case::<bf16>::new(shape, 20, Values::Exact, false, &mut rng);
        case.weights = weights.clone();
        check::<_, bf16>(stream, &mut workspace, &case, Values::Exact);
        let mut case = Case::<f16>::new(shape, 20, Values::Exact, false, &mut rng);
        case.weights = weights;
        check::<_, bf16>(stream, &mut workspace, &case, Values::Exact);
    }
}

/// A row depends on no other row of a batch of the same size, not even where the others are NaN.
#[test]
#[ignore = "needs an H200"]
fn w4a16_a_row_does_not_depend_on_the_others() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A16Workspace::new(stream).unwrap();
    let mut rng = Rng::new(14);
    for tokens in [5, 16, 30, 64, 100, 140] {
        let shape = Int4Shape::new(1024, 640, 128).unwrap();
        let case = Case::<bf16>::new(shape, tokens, Values::Real, false, &mut rng);
        let together: Vec<bf16> = OnDevice::new(stream, &case).run(stream, &mut workspace);
        let row = rng.below(0..tokens);
        let mut others = Case::<bf16>::new(shape, tokens, Values::Real, false, &mut rng);
        others.weights = case.weights.clone();
        others.x[row * 1024..][..1024].copy_from_slice(&case.x[row * 1024..][..1024]);
        let other = (row + 1) % tokens;
        others.x[other * 1024] = bf16::NAN;
        let on_device = OnDevice::new(stream, &others);
        let mut y = zeros::<bf16>(stream, tokens * 640, "y").unwrap();
        on_device
            .plan
            .launch(stream, &on_device.x, &on_device.weights, NO_BIAS, &mut workspace, &mut y)
            .unwrap();
        let y = download(stream, &y).unwrap();
        assert!(y[row * 640..][..640] == together[row * 640..][..640], "row {row} of {tokens}");
        assert!(y[other * 640..][..640].iter().all(|y| y.to_f32().is_nan()), "a NaN was lost");
    }
}

/// Many launches back to back, as a decode step makes them: each overlaps the one before and shares its workspace.
#[test]
#[ignore = "needs an H200"]
fn w4a16_back_to_back_and_replayed_full_size() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A16Workspace::new(stream).unwrap();
    let mut rng = Rng::new(15);
    let shapes = [(1024, 8192), (8192, 1024), (2048, 640), (128, 64)];
    for tokens in [1, 16, 32, 64, 128, 200] {
        let cases = shapes.map(|(k, n)| {
            Case::<f16>::new(Int4Shape::new(k, n, 128).unwrap(), tokens, Values::Real, false, &mut rng)
        });
        let on_device = cases.each_ref().map(|case| OnDevice::new(stream, case));
        let alone: Vec<Vec<bf16>> = on_device.iter().map(|case| case.run(stream, &mut workspace)).collect();
        let mut ys: Vec<CudaSlice<bf16>> =
            alone.iter().map(|y| zeros(stream, y.len(), "y").unwrap()).collect();
        let mut all = || {
            for (case, y) in on_device.iter().zip(&mut ys) {
                case.plan.launch(stream, &case.x, &case.weights, NO_BIAS, &mut workspace, y)?;
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
fn w4a16_bad_arguments_are_refused() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A16Workspace::new(stream).unwrap();
    let shape = Int4Shape::new(256, 128, 128).unwrap();
    let case = Case::<bf16>::new(shape, 2, Values::Exact, false, &mut Rng::new(17));
    let good = OnDevice::new(stream, &case);
    let mut y = zeros::<bf16>(stream, 256, "y").unwrap();
    let message = |result: device::Result<()>| result.unwrap_err().to_string();

    let ragged = zeros::<bf16>(stream, 300, "x").unwrap();
    let result = good.plan.launch(stream, &ragged, &good.weights, NO_BIAS, &mut workspace, &mut y);
    assert_eq!(message(result), "w4a16: x: expected rows of 256 elements, got 300");
    let result =
        good.plan.launch(stream, &ragged.slice(1..257), &good.weights, NO_BIAS, &mut workspace, &mut y);
    assert_eq!(message(result), "w4a16: y: expected 128 elements, got 256");
    let result = good.plan.launch(
        stream,
        &good.x,
        &good.weights,
        Some(&zeros(stream, 3, "bias").unwrap()),
        &mut workspace,
        &mut y,
    );
    assert_eq!(message(result), "w4a16: bias: expected 128 elements, got 3");
    let mut wide = zeros::<f32>(stream, 256, "y").unwrap();
    let result = good.plan.launch(stream, &good.x, &good.weights, NO_BIAS, &mut workspace, &mut wide);
    assert_eq!(message(result), "w4a16: y: expected elements of bf16 or f16, got f32");
    let mut long = zeros::<bf16>(stream, 257, "y").unwrap();
    let mut shifted = long.slice_mut(1..257);
    let result = good.plan.launch(stream, &good.x, &good.weights, NO_BIAS, &mut workspace, &mut shifted);
    assert!(message(result).starts_with("w4a16: y: expected an address aligned to 16 bytes, got 0x"));
    let other_plan = W4A16::new(Int4Shape::new(256, 64, 128).unwrap());
    let result = other_plan.launch(stream, &good.x, &good.weights, NO_BIAS, &mut workspace, &mut y);
    assert!(message(result).starts_with("w4a16: weights: expected Int4Shape"));
    let other = gpu.context().new_stream().unwrap();
    let mut others = W4A16Workspace::new(&other).unwrap();
    let result = good.plan.launch(stream, &good.x, &good.weights, NO_BIAS, &mut others, &mut y);
    assert_eq!(message(result), "w4a16: workspace: expected one made for this stream, got another stream's");
    // No tokens: nothing to do.
    let (empty, mut nothing) =
        (zeros::<bf16>(stream, 0, "x").unwrap(), zeros::<bf16>(stream, 0, "y").unwrap());
    good.plan.launch(stream, &empty, &good.weights, NO_BIAS, &mut workspace, &mut nothing).unwrap();
}
