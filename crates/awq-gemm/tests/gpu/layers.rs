//! Products of real size, and others long enough for every ring of buffers in shared memory to go round: the same 512 output
//! features (a stripe of the packed order) over and over, so that every element of the output can be held against the reference.

use super::w4a16::{self, Type, Values};
use super::{Case, Codes, Stream, common, floats};
use awq_gemm::{
    DeviceInt4Weights, Int4Shape, Int4Weights, PackedWeights, W4A8, W4A8Workspace, W4A16, W4A16Workspace,
};
use cudarc::driver::CudaSlice;
use device::QuantizedActivation;
use device::gpu::{Event, Gpu, download, upload};
use half::{bf16, f16};
use op_test::{Rng, assert_close_f64, sanitized};

const STRIPE: usize = 512;
const NO_BIAS: Option<&CudaSlice<f32>> = None;

/// A layer's weights on the device, and those of one of its stripes.
struct Layer {
    name: &'static str,
    shape: Int4Shape,
    stripe: Int4Weights,
    weights: DeviceInt4Weights,
}

impl Layer {
    fn new(stream: &Stream, name: &'static str, shape: Int4Shape, rng: &mut Rng) -> Self {
        let in_features = shape.in_features();
        let stripe = Int4Shape::new(in_features, STRIPE, shape.group_size()).unwrap();
        let scales = (0..STRIPE * stripe.groups()).map(|_| 0.001 + 0.002 * rng.signed().abs());
        let scales = scales.map(|scale| f16::from_f32(scale).to_f32()).collect();
        let random = common::weights(stripe, rng.bits());
        let stripe =
            Int4Weights::new(stripe, random.codes().to_vec(), random.zeros().to_vec(), scales).unwrap();
        let packed = PackedWeights::pack(&stripe).unwrap();
        let (codes, parameters) = packed.bytes().split_at(STRIPE * in_features / 2);
        let copies = shape.out_features() / STRIPE;
        let bytes = [codes.repeat(copies), parameters.repeat(copies)].concat();
        let packed = PackedWeights::from_bytes(shape, bytes).unwrap();
        let weights = DeviceInt4Weights::upload(stream, &packed).unwrap();
        Self { name, shape, stripe, weights }
    }

    /// Runs `launch` into `runs` poisoned outputs one behind the other: every stripe of the first within the bounds, the others
    /// the same bits.
    fn check(
        &self,
        stream: &Stream,
        tokens: usize,
        runs: usize,
        mut launch: impl FnMut(&mut CudaSlice<bf16>),
        want: &[f64],
        bounds: &[f64],
    ) {
        let out_features = self.shape.out_features();
        let poison = vec![bf16::NAN; tokens * out_features];
        let mut ys: Vec<_> = (0..runs).map(|_| upload(stream, &poison, "y").unwrap()).collect();
        let event = || Event::new(stream.context()).unwrap();
        let (start, end) = (event(), event());
        start.record(stream).unwrap();
        ys.iter_mut().for_each(&mut launch);
        end.record(stream).unwrap();
        let first = download(stream, &ys[0]).unwrap();
        let time = start.elapsed(&end).unwrap().as_secs_f64() * 1e6 / runs as f64;
        println!("{} {tokens} tokens: {time:.1} us a launch, the first included", self.name);
        for (token, row) in first.chunks(out_features).enumerate() {
            let features = token * STRIPE..(token + 1) * STRIPE;
            for part in row.chunks(STRIPE) {
                assert_close_f64(&floats(part), &want[features.clone()], &bounds[features.clone()]);
            }
        }
        for (run, y) in ys.iter().enumerate() {
            assert!(
                download(stream, y).unwrap() == first,
                "{}, {tokens} tokens: run {run} differs",
                self.name
            );
        }
    }

    fn w4a8(
        &self,
        stream: &Stream,
        workspace: &mut W4A8Workspace,
        tokens: usize,
        runs: usize,
        rng: &mut Rng,
    ) {
        let mut case = Case::new(self.stripe.shape(), tokens, Codes::Real, false, rng);
        case.weights = self.stripe.clone();
        let x = QuantizedActivation {
            shape: case.activation_shape(),
            codes: upload(stream, &case.codes, "codes").unwrap(),
            scales: upload(stream, &case.scales, "scales").unwrap(),
            group_sums: upload(stream, &case.group_sums, "group sums").unwrap(),
        };
        let (plan, want) = (W4A8::new(self.shape), case.reference());
        let bounds = case.bounds::<bf16>(Codes::Real, &want);
        let launch = |y: &mut CudaSlice<bf16>| {
            plan.launch(stream, &x, &self.weights, NO_BIAS, workspace, y).unwrap();
        };
        self.check(stream, tokens, runs, launch, &want, &bounds);
    }

    fn w4a16<X: Type>(
        &self,
        stream: &Stream,
        workspace: &mut W4A16Workspace,
        tokens: usize,
        runs: usize,
        rng: &mut Rng,
    ) {
        let mut case = w4a16::Case::<X>::new(self.stripe.shape(), tokens, Values::Real, false, rng);
        case.weights = self.stripe.clone();
        let x = upload(stream, &case.x, "x").unwrap();
        let (plan, want) = (W4A16::new(self.shape), case.reference());
        let bounds = case.bounds::<bf16>(Values::Real, &want);
        let launch = |y: &mut CudaSlice<bf16>| {
            plan.launch(stream, &x, &self.weights, NO_BIAS, workspace, y).unwrap();
        };
        self.check(stream, tokens, runs, launch, &want, &bounds);
    }
}

/// Falcon-180B's and Llama-70B's layers, and the same bits in 20 overlapping runs.
#[test]
#[ignore = "needs an H200"]
fn real_layers_full_size() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A8Workspace::new(stream).unwrap();
    let mut rng = Rng::new(6);
    for (name, in_features, out_features) in
        [("Falcon-180B up", 14848, 59392), ("Falcon-180B down", 59392, 14848), ("Llama-70B o", 8192, 8192)]
    {
        let shape = Int4Shape::new(in_features, out_features, 128).unwrap();
        let layer = Layer::new(stream, name, shape, &mut rng);
        for (tokens, runs) in
            [(1, 20), (16, 20), (32, 20), (64, 20), (128, 20), (192, 20), (256, 20), (2048, 4)]
        {
            layer.w4a8(stream, &mut workspace, tokens, runs, &mut rng);
        }
    }
}

#[test]
#[ignore = "needs an H200"]
fn w4a16_real_layers_full_size() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A16Workspace::new(stream).unwrap();
    let mut rng = Rng::new(16);
    for (name, in_features, out_features) in [
        ("W4A16 Falcon-180B up", 14848, 59392),
        ("W4A16 Falcon-180B down", 59392, 14848),
        ("W4A16 Llama-70B o", 8192, 8192),
        ("W4A16 Llama-70B down", 28672, 8192),
    ] {
        let shape = Int4Shape::new(in_features, out_features, 128).unwrap();
        let layer = Layer::new(stream, name, shape, &mut rng);
        for tokens in [1, 16, 64, 129] {
            layer.w4a16::<bf16>(stream, &mut workspace, tokens, 10, &mut rng);
        }
    }
}

/// Shapes, with their groups, that give each of an H200's 132 blocks more units of 128 input features than a ring has stages (12
/// at most), and windows of 8 groups than there are buffers (2): tiles of up to 256 features, and those chosen for many.
const LONG: [(&str, usize, usize, usize); 3] =
    [("long", 5120, 11776, 128), ("long, groups of 64", 5120, 11776, 64), ("wide", 256, 237568, 128)];

/// Those numbers of tokens that have a tile of their own in such a shape.
fn widths(shape: Int4Shape) -> impl Iterator<Item = usize> {
    let widest = if shape.out_features() > 200_000 { 64 } else { 128 << (shape.group_size() / 128) };
    [8, 16, 32, 64, 128, 192, 256].into_iter().filter(move |&tokens| tokens <= widest)
}

#[test]
#[ignore = "needs an H200"]
fn every_ring_goes_round() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A8Workspace::new(stream).unwrap();
    let mut rng = Rng::new(7);
    for (name, in_features, out_features, group_size) in LONG {
        let shape = Int4Shape::new(in_features, out_features, group_size).unwrap();
        let layer = Layer::new(stream, name, shape, &mut rng);
        for tokens in widths(shape) {
            layer.w4a8(stream, &mut workspace, tokens, if sanitized() { 1 } else { 3 }, &mut rng);
        }
    }
}

#[test]
#[ignore = "needs an H200"]
fn w4a16_every_ring_goes_round() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut workspace = W4A16Workspace::new(stream).unwrap();
    let mut rng = Rng::new(17);
    for (name, in_features, out_features, group_size) in LONG {
        let shape = Int4Shape::new(in_features, out_features, group_size).unwrap();
        let layer = Layer::new(stream, name, shape, &mut rng);
        for tokens in widths(shape).filter(|&tokens| tokens <= 128) {
            layer.w4a16::<bf16>(stream, &mut workspace, tokens, 2, &mut rng);
            // The same machine code but for the type.
            if !sanitized() {
                layer.w4a16::<f16>(stream, &mut workspace, tokens, 2, &mut rng);
            }
        }
    }
}
