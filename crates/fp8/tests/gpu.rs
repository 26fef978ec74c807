//! The kernels against the reference, outputs poisoned and guarded.
#![cfg(feature = "cuda")]
// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

use cudarc::driver::{CudaSlice, CudaStream};
use device::gpu::{Event, Gpu, Graph, download, upload, zeros};
use device::{ActivationShape, E4m3, Element, QuantizedActivation};
use fp8::{DenseProduct, Fp8Product, Quantize, ScaleChoice, SyntheticWeights};
use half::bf16;
use op_test::{DeviceGuarded, Rng, assert_close_f64, gamma};
use std::sync::Arc;

type Stream = Arc<CudaStream>;

struct Quantized {
    codes: Vec<E4m3>,
    scales: Vec<f32>,
    group_sums: Vec<f32>,
}

fn quantize_on_gpu(stream: &Stream, plan: &Quantize, x: &[bf16], shape: ActivationShape) -> Quantized {
    let x = upload(stream, x, "x").unwrap();
    let mut codes = DeviceGuarded::new(stream, shape.tokens * shape.features);
    let mut scales = DeviceGuarded::new(stream, shape.tokens);
    let mut group_sums = DeviceGuarded::new(stream, shape.tokens * shape.groups());
    let (c, s, g) = (codes.view(), scales.view(), group_sums.view());
    plan.launch(stream, &x, &mut QuantizedActivation { shape, codes: c, scales: s, group_sums: g }).unwrap();
    Quantized {
        codes: codes.contents(stream),
        scales: scales.checked(stream),
        group_sums: group_sums.contents(stream),
    }
}

/// Codes and scales bit for bit, group sums in value; NaN stands for any NaN.
#[track_caller]
fn check_quantize(stream: &Stream, plan: &Quantize, x: &[bf16], features: usize) {
    let shape = plan.shape(x.len() / features);
    let got = quantize_on_gpu(stream, plan, x, shape);
    let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let (mut codes, mut scales) = (vec![E4m3::default(); x.len()], vec![0.0; shape.tokens]);
    let mut group_sums = vec![0.0; shape.tokens * shape.groups()];
    let (c, s, g) = (&mut codes[..], &mut scales[..], &mut group_sums[..]);
    plan.reference(&wide, &mut QuantizedActivation { shape, codes: c, scales: s, group_sums: g }).unwrap();
    assert_eq!(got.scales, scales, "{plan:?}");
    let same = |got: &E4m3, want: &E4m3| got == want || got.is_nan() && want.is_nan();
    let wrong = (0..codes.len()).find(|&i| !same(&got.codes[i], &codes[i]));
    assert_eq!(wrong.map(|i| (i, x[i], got.codes[i], codes[i])), None, "{plan:?}");
    let same = |got: f32, want: f32| got == want || got.is_nan() && want.is_nan();
    let wrong = (0..group_sums.len()).find(|&i| !same(got.group_sums[i], group_sums[i]));
    assert_eq!(wrong.map(|i| (i, got.group_sums[i], group_sums[i])), None, "{plan:?}");
}

/// Rows at very different magnitudes; some are zero, one holds what is not finite.
fn activations(tokens: usize, features: usize, rng: &mut Rng) -> Vec<bf16> {
    let mut x = Vec::with_capacity(tokens * features);
    for token in 0..tokens {
        let deviation = 2f32.powi(rng.below(0..40) as i32 - 20);
        let mut row: Vec<bf16> = rng.tensor(features, deviation).into_iter().map(bf16::from_f32).collect();
        match token % 7 {
            1 => row.fill(bf16::ZERO),
            2 => row[rng.below(0..features)] *= bf16::from_f32(3000.0),
            3 => row.iter_mut().for_each(|x| *x = bf16::from_bits(x.to_bits() & 0x807f)),
            4 => row[rng.below(0..features)] = bf16::NAN,
            5 => row[rng.below(0..features)] = bf16::NEG_INFINITY,
            _ => {}
        }
        x.extend(row);
    }
    x
}

#[test]
#[ignore = "needs an H200"]
fn quantization_gives_the_bits_of_the_reference() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(1);
    // Around the ends of a vector, a warp, a block's pass; then real widths (Llama, Falcon).
    let widths = [
        8, 16, 248, 256, 264, 504, 512, 2040, 2048, 2056, 4104, 8192, 14848, 16384, 16392, 28672, 28680,
        59392,
    ];
    for features in widths {
        let group_sizes = [0, 8, 16, 32, 64, 128, 256].into_iter().filter(|&g| g == 0 || features % g == 0);
        for group_size in group_sizes {
            let tokens = [1, 7, 9][rng.below(0..3)];
            let x = activations(tokens, features, &mut rng);
            for scale in [ScaleChoice::PerToken, ScaleChoice::PerTensor, ScaleChoice::Given(0.0371)] {
                let plan = Quantize::new(features, scale).unwrap();
                let plan = if group_size == 0 { plan } else { plan.with_group_sums(group_size).unwrap() };
                check_quantize(gpu.stream(), &plan, &x, features);
            }
        }
    }
    // More tokens than one block of the tensor's maximum has threads.
    let x = activations(3000, 64, &mut rng);
    check_quantize(gpu.stream(), &Quantize::per_tensor(64).unwrap(), &x, 64);
    check_quantize(gpu.stream(), &Quantize::per_token(64).unwrap(), &[], 64);
}

#[test]
#[ignore = "needs an H200"]
fn every_bf16_is_quantized_as_by_the_reference() {
    let gpu = Gpu::open(0).unwrap();
    let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    // 1 shows the conversion alone, the others the division before it.
    for scale in [1.0, 3.0, 1e-3, 1e-22, 1e-30, f32::MIN_POSITIVE, 1e22, 1e30] {
        let plan = Quantize::with_scale(8192, scale).unwrap().with_group_sums(128).unwrap();
        check_quantize(gpu.stream(), &plan, &all, 8192);
    }
}

/// One product: what is on the device, and on the host in f64.
struct Product {
    tokens: usize,
    in_features: usize,
    out_features: usize,
    x: Vec<f32>,
    x_scales: Vec<f32>,
    weights: Vec<f32>,
    weight_scales: Vec<f32>,
    bias: Option<Vec<bf16>>,
}

impl Product {
    /// `draw` gives an element that the operands' type holds.
    fn new(tokens: usize, in_features: usize, out_features: usize, mut draw: impl FnMut() -> f32) -> Self {
        let x = (0..tokens * in_features).map(|_| draw()).collect();
        let weights = (0..out_features * in_features).map(|_| draw()).collect();
        let (x_scales, weight_scales) = (vec![1.0; tokens], vec![1.0; out_features]);
        Self { tokens, in_features, out_features, x, x_scales, weights, weight_scales, bias: None }
    }

    fn with_scales(mut self, rng: &mut Rng, exact: bool) -> Self {
        let mut draw =
            |_| 2f32.powi(rng.below(0..7) as i32 - 3) * if exact { 1.0 } else { 1.5 + rng.signed() / 2.0 };
        self.x_scales = (0..self.tokens).map(&mut draw).collect();
        self.weight_scales = (0..self.out_features).map(&mut draw).collect();
        self
    }

    fn with_bias(mut self, rng: &mut Rng) -> Self {
        self.bias =
            Some((0..self.out_features).map(|_| bf16::from_f32(rng.below(0..64) as f32 - 32.0)).collect());
        self
    }

    /// y without bias, and the sum of the magnitudes of its products.
    fn exact(&self) -> (Vec<f64>, Vec<f64>) {
        let k = self.in_features;
        let (mut sums, mut magnitudes) = (Vec::new(), Vec::new());
        for (x, sx) in self.x.chunks_exact(k).zip(&self.x_scales) {
            for (w, sw) in self.weights.chunks_exact(k).zip(&self.weight_scales) {
                let products = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
                let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                let scale = f64::from(*sx) * f64::from(*sw);
                sums.push(sum * scale);
                magnitudes.push(magnitude * scale);
            }
        }
        (sums, magnitudes)
    }

    /// How far y may be off where the tensor cores add e4m3 products: a step adds 32 products and the sum so far, all cut
    /// to 13 fraction bits below the largest of them; up to 192 tokens the sum is promoted to f32 every 128 products.
    fn fp8_bounds(&self) -> Vec<f64> {
        const STEP: usize = 32;
        let k = self.in_features;
        let promoted = if self.tokens <= 192 { 128 } else { k };
        let mut bounds = Vec::new();
        for (x, sx) in self.x.chunks_exact(k).zip(&self.x_scales) {
            for (w, sw) in self.weights.chunks_exact(k).zip(&self.weight_scales) {
                let (mut bound, mut total, mut magnitude) = (0.0, 0.0f64, 0.0);
                for (x, w) in x.chunks(promoted).zip(w.chunks(promoted)) {
                    let mut sum = 0.0f64;
                    for (x, w) in x.chunks(STEP).zip(w.chunks(STEP)) {
                        let mut largest = sum.abs();
                        for (&x, &w) in x.iter().zip(w) {
                            let product = f64::from(x) * f64::from(w);
                            largest = largest.max(product.abs());
                            sum += product;
                        }
                        // 33 terms, and the result itself.
                        bound += 34.0 * 2f64.powi(-13) * largest.max(sum.abs());
                    }
                    total += sum;
                    magnitude += sum.abs();
                }
                // The promoted sums, added in f32, and the two scales' products.
                bound += gamma(k / promoted + 4, 2f64.powi(-23)) * (magnitude + total.abs());
                bounds.push(bound * f64::from(*sx) * f64::from(*sw));
            }
        }
        bounds
    }

    fn fp8<Y: Element + cudarc::driver::DeviceRepr>(&self, stream: &Stream) -> Vec<f32> {
        let codes = |values: &[f32]| values.iter().map(|&v| E4m3::from_f32(v)).collect::<Vec<_>>();
        let x = QuantizedActivation {
            shape: ActivationShape { tokens: self.tokens, features: self.in_features, group_size: 0 },
            codes: upload(stream, &codes(&self.x), "x").unwrap(),
            scales: upload(stream, &self.x_scales, "x scales").unwrap(),
            group_sums: zeros::<f32>(stream, 0, "none").unwrap(),
        };
        let weights = upload(stream, &codes(&self.weights), "weights").unwrap();
        let weight_scales = upload(stream, &self.weight_scales, "weight scales").unwrap();
        let bias = self.bias.as_ref().map(|bias| upload(stream, bias, "bias").unwrap());
        let plan = Fp8Product::new(self.in_features, self.out_features).unwrap();
        let len = self.tokens * self.out_features;
        if Y::NAME == "f32" {
            let mut y = DeviceGuarded::<f32>::new(stream, len);
            plan.launch_f32(stream, &x, &weights, &weight_scales, &mut y.view()).unwrap();
            y.checked(stream)
        } else {
            let mut y = DeviceGuarded::<bf16>::new(stream, len);
            plan.launch(stream, &x, &weights, &weight_scales, bias.as_ref(), &mut y.view()).unwrap();
            y.checked(stream).into_iter().map(bf16::to_f32).collect()
        }
    }

    fn dense<Y: Element + cudarc::driver::DeviceRepr>(&self, stream: &Stream) -> Vec<f32> {
        let narrow = |values: &[f32]| values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
        let x = upload(stream, &narrow(&self.x), "x").unwrap();
        let weights = upload(stream, &narrow(&self.weights), "weights").unwrap();
        let bias = self.bias.as_ref().map(|bias| upload(stream, bias, "bias").unwrap());
        let plan = DenseProduct::new(self.in_features, self.out_features).unwrap();
        let len = self.tokens * self.out_features;
        if Y::NAME == "f32" {
            let mut y = DeviceGuarded::<f32>::new(stream, len);
            plan.launch_f32(stream, &x, &weights, &mut y.view()).unwrap();
            y.checked(stream)
        } else {
            let mut y = DeviceGuarded::<bf16>::new(stream, len);
            plan.launch(stream, &x, &weights, bias.as_ref(), &mut y.view()).unwrap();
            y.checked(stream).into_iter().map(bf16::to_f32).collect()
        }
    }
}

/// Tokens, in_features, out_features: around tile edges, and as wide as real layers are.
const SHAPES: [(usize, usize, usize); 10] = [
    (1, 16, 16),
    (1, 128, 256),
    (3, 4096, 48),
    (15, 272, 1008),
    (16, 1024, 1024),
    (17, 2064, 80),
    (65, 384, 1040),
    (127, 512, 144),
    (192, 144, 512),
    (193, 1040, 272),
];
const FULL_SIZES: [(usize, usize, usize); 6] = [
    (64, 8192, 256),
    (65, 384, 4096),
    (1, 8192, 8192),
    (33, 14848, 128),
    (194, 8192, 272),
    (257, 2064, 1024),
];

/// Sums of these are whole numbers that stay below 2^11, which every accumulator holds exactly in any order, down to the
/// tensor cores' 13 fraction bits: a tile, a block of K or a scale in the wrong place shows, however small.
fn grid(rng: &Rng, in_features: usize) -> impl FnMut() -> f32 + use<> {
    // Few nonzero products where K is long: their sum is a random walk, and its magnitudes are bounded.
    let one_in = 1 + in_features / 512;
    let mut rng = rng.clone();
    move || if rng.below(0..one_in) == 0 { [-1.0, 1.0, 2.0][rng.below(0..3)] } else { 0.0 }
}

fn check_exact(product: &Product, got: &[f32], rounded: bool) {
    let (sums, _) = product.exact();
    for (i, (&got, sum)) in got.iter().zip(sums).enumerate() {
        let bias = product.bias.as_ref().map_or(0.0, |bias| bias[i % product.out_features].to_f64());
        let want = if rounded { bf16::from_f64(sum + bias).to_f32() } else { (sum + bias) as f32 };
        assert_eq!(
            got, want,
            "[{i}] of {} x {} x {}",
            product.tokens, product.in_features, product.out_features
        );
    }
}

#[test]
#[ignore = "needs an H200"]
fn products_of_small_integers_are_exact() {
    small_integers(&SHAPES);
}

#[test]
#[ignore = "needs an H200"]
fn products_of_small_integers_are_exact_full_size() {
    small_integers(&FULL_SIZES);
}

fn small_integers(shapes: &[(usize, usize, usize)]) {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut rng = Rng::new(2);
    for &(tokens, in_features, out_features) in shapes {
        let draw = grid(&rng, in_features);
        rng.bits();
        let plain = Product::new(tokens, in_features, out_features, draw);
        check_exact(&plain, &plain.dense::<bf16>(stream), true);
        check_exact(&plain, &plain.dense::<f32>(stream), false);
        let biased = plain.with_bias(&mut rng);
        check_exact(&biased, &biased.dense::<bf16>(stream), true);
        check_exact(&biased, &biased.fp8::<bf16>(stream), true);
        let scaled = Product { bias: None, ..biased }.with_scales(&mut rng, true);
        check_exact(&scaled, &scaled.fp8::<bf16>(stream), true);
        check_exact(&scaled, &scaled.fp8::<f32>(stream), false);
    }
}

#[test]
#[ignore = "needs an H200"]
fn products_of_random_numbers_stay_within_their_bounds() {
    random_numbers(&SHAPES);
}

#[test]
#[ignore = "needs an H200"]
fn products_of_random_numbers_stay_within_their_bounds_full_size() {
    random_numbers(&FULL_SIZES);
}

fn random_numbers(shapes: &[(usize, usize, usize)]) {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut rng = Rng::new(3);
    for &(tokens, in_features, out_features) in shapes {
        let mut draw = rng.clone();
        rng.bits();
        let dense =
            Product::new(tokens, in_features, out_features, || bf16::from_f32(draw.normal(1.0)).to_f32());
        let (want, magnitudes) = dense.exact();
        // f32 accumulation with truncation (2^-23 a step), then rounding to bf16.
        let bound = |unit: f64| {
            let sums = magnitudes.iter().map(move |m| gamma(in_features, 2f64.powi(-23)) * m);
            sums.zip(&want).map(|(sum, want)| sum + unit * want.abs()).collect::<Vec<_>>()
        };
        assert_close_f64(&dense.dense::<bf16>(stream), &want, &bound(2f64.powi(-8)));
        assert_close_f64(&dense.dense::<f32>(stream), &want, &bound(0.0));

        let fp8 =
            Product::new(tokens, in_features, out_features, || E4m3::from_f32(draw.normal(64.0)).to_f32());
        let fp8 = fp8.with_scales(&mut rng, false);
        let (want, _) = fp8.exact();
        let bounds = fp8.fp8_bounds();
        let got = fp8.fp8::<f32>(stream);
        let of_bound = (0..want.len()).map(|i| (f64::from(got[i]) - want[i]).abs() / bounds[i]);
        println!(
            "fp8 {tokens} x {in_features} x {out_features}: {:.3} of the bound",
            of_bound.fold(0.0, f64::max)
        );
        assert_close_f64(&got, &want, &bounds);
    }
}

#[test]
#[ignore = "needs an H200"]
fn a_captured_layer_replays() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let (tokens, in_features, out_features) = (16, 1024, 2048);
    let mut rng = Rng::new(4);
    let plan = Quantize::per_token(in_features).unwrap().with_group_sums(128).unwrap();
    let product = Fp8Product::new(in_features, out_features).unwrap();
    let draw = |rng: &mut Rng| -> Vec<bf16> {
        rng.tensor(tokens * in_features, 1.0).into_iter().map(bf16::from_f32).collect()
    };
    let codes: Vec<E4m3> =
        (0..out_features * in_features).map(|_| E4m3::from_f32(rng.normal(60.0))).collect();
    let weights = upload(stream, &codes, "weights").unwrap();
    let weight_scales = upload(stream, &vec![0.01f32; out_features], "scales").unwrap();
    let mut x = upload(stream, &draw(&mut rng), "x").unwrap();
    let shape = plan.shape(tokens);
    let mut quantized = QuantizedActivation {
        shape,
        codes: zeros::<E4m3>(stream, tokens * in_features, "codes").unwrap(),
        scales: zeros::<f32>(stream, tokens, "scales").unwrap(),
        group_sums: zeros::<f32>(stream, tokens * shape.groups(), "group sums").unwrap(),
    };
    let mut y = zeros::<bf16>(stream, tokens * out_features, "y").unwrap();
    let no_bias = None::<&CudaSlice<bf16>>;
    let mut layer = |x: &CudaSlice<bf16>| {
        plan.launch(stream, x, &mut quantized)?;
        product.launch(stream, &quantized, &weights, &weight_scales, no_bias, &mut y)
    };
    // The first run loads and plans; captured before, it is a typed error.
    layer(&x).unwrap();
    // SAFETY: all buffers outlive the graph, and the stream orders every use of them.
    let graph = unsafe { Graph::capture(stream, || layer(&x)) }.unwrap();
    stream.memcpy_htod(&draw(&mut rng), &mut x).unwrap();
    graph.replay().unwrap();
    let replayed = download(stream, &y).unwrap();
    let mut again = zeros::<bf16>(stream, tokens * out_features, "y").unwrap();
    plan.launch(stream, &x, &mut quantized).unwrap();
    product.launch(stream, &quantized, &weights, &weight_scales, no_bias, &mut again).unwrap();
    assert_eq!(replayed, download(stream, &again).unwrap());

    let unplanned = Fp8Product::new(in_features, 16).unwrap();
    let (few, few_scales) = (weights.slice(..16 * in_features), weight_scales.slice(..16));
    let mut narrow = zeros::<bf16>(stream, tokens * 16, "y").unwrap();
    // SAFETY: as above.
    let captured = unsafe {
        Graph::capture(stream, || {
            unplanned.launch(stream, &quantized, &few, &few_scales, no_bias, &mut narrow)
        })
    };
    assert_eq!(
        captured.unwrap_err().to_string(),
        "cublasLtMatmul failed: the plan of a product is made at the first run, which cannot be captured: run it once \
         before"
    );
    // The stream is usable behind the refused capture.
    unplanned.launch(stream, &quantized, &few, &few_scales, no_bias, &mut narrow).unwrap();
    gpu.synchronize().unwrap();
}

#[test]
#[ignore = "needs an H200"]
fn device_arguments_are_checked() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let x = zeros::<bf16>(stream, 4096, "x").unwrap();
    let run = |features: usize, group_size: usize, offset: usize| {
        let plan = Quantize::per_token(features).unwrap();
        let plan = if group_size == 0 { plan } else { plan.with_group_sums(group_size).unwrap() };
        let shape = plan.shape(2);
        let codes = zeros::<E4m3>(stream, 2 * features, "codes").unwrap();
        let scales = zeros::<f32>(stream, 2, "scales").unwrap();
        let group_sums = zeros::<f32>(stream, 2 * shape.groups(), "sums").unwrap();
        let x = x.slice(offset..offset + 2 * features);
        plan.launch(stream, &x, &mut QuantizedActivation { shape, codes, scales, group_sums })
    };
    let message = |features, group_size, offset| run(features, group_size, offset).unwrap_err().to_string();
    assert_eq!(message(12, 0, 0), "fp8_quantize: features: expected a positive multiple of 8, got 12");
    assert_eq!(
        message(1536, 512, 0),
        "fp8_quantize: group_size: expected 0 or a power of two from 8 to 256, got 512"
    );
    let got = message(64, 0, 1);
    assert!(got.starts_with("fp8_quantize: x: expected an address aligned to 16 bytes, got 0x"), "{got}");

    let product = DenseProduct::new(64, 12).unwrap();
    let mut y = zeros::<bf16>(stream, 24, "y").unwrap();
    let (x, w) = (x.slice(..128), x.slice(..64 * 12));
    let got = product.launch(stream, &x, &w, None::<&CudaSlice<bf16>>, &mut y).unwrap_err().to_string();
    assert_eq!(got, "dense_product: out_features: expected a positive multiple of 8, got 12");
    gpu.synchronize().unwrap();
}

/// Not a benchmark: shows at a glance what a step's quantization costs.
#[test]
#[ignore = "needs an H200"]
fn a_graph_of_quantizations_gives_the_same_full_size() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut rng = Rng::new(5);
    let some: Vec<bf16> = rng.tensor(1 << 20, 1.0).into_iter().map(bf16::from_f32).collect();
    for (tokens, features) in [(1, 8192), (16, 14848), (256, 14848), (960, 28672), (8192, 8192)] {
        let plan = Quantize::per_token(features).unwrap().with_group_sums(128).unwrap();
        let shape = plan.shape(tokens);
        let x: Vec<bf16> = some.iter().cycle().copied().take(tokens * features).collect();
        let x = upload(stream, &x, "x").unwrap();
        let mut output = QuantizedActivation {
            shape,
            codes: zeros::<E4m3>(stream, tokens * features, "codes").unwrap(),
            scales: zeros::<f32>(stream, tokens, "scales").unwrap(),
            group_sums: zeros::<f32>(stream, tokens * shape.groups(), "sums").unwrap(),
        };
        let repeats = 20;
        plan.launch(stream, &x, &mut output).unwrap();
        let codes = download(stream, &output.codes).unwrap();
        let work = || (0..repeats).try_for_each(|_| plan.launch(stream, &x, &mut output));
        // SAFETY: the buffers outlive the graph, and only this stream uses them.
        let graph = unsafe { Graph::capture(stream, work) }.unwrap();
        let (start, end) = (Event::new(gpu.context()).unwrap(), Event::new(gpu.context()).unwrap());
        stream.memset_zeros(&mut output.codes).unwrap();
        graph.replay().unwrap();
        start.record(stream).unwrap();
        graph.replay().unwrap();
        end.record(stream).unwrap();
        let time = start.elapsed(&end).unwrap() / repeats;
        let bytes = (tokens * features * 3) as f64;
        println!("quantize {tokens} x {features}: {time:?}, {:.0} GB/s", bytes / time.as_secs_f64() / 1e9);
        assert_eq!(download(stream, &output.codes).unwrap(), codes);
    }
}

/// Bit for bit, whole vectors and a tail of any length.
#[test]
#[ignore = "needs an H200"]
fn random_weights_are_those_of_the_host() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    for (in_features, out_features) in
        [(1, 1), (1, 7), (8, 1), (9, 1), (63, 65), (64, 2048), (129, 1031), (8192, 300)]
    {
        let synthetic = SyntheticWeights::new(in_features, out_features, 0x0123_4567_89ab_cdef).unwrap();
        let len = in_features * out_features;
        let mut want = vec![bf16::ZERO; len];
        synthetic.reference_bf16(&mut want).unwrap();
        let mut got = DeviceGuarded::<bf16>::new(stream, len);
        synthetic.launch_bf16(stream, &mut got.view()).unwrap();
        assert_eq!(got.checked(stream), want, "{synthetic:?}");
        let mut want = vec![E4m3::default(); len];
        synthetic.reference_e4m3(&mut want).unwrap();
        let mut got = DeviceGuarded::<E4m3>::new(stream, len);
        synthetic.launch_e4m3(stream, &mut got.view()).unwrap();
        assert_eq!(got.checked(stream), want, "{synthetic:?}");
    }
    let synthetic = SyntheticWeights::new(4, 2, 1).unwrap();
    let mut short = zeros::<bf16>(stream, 7, "weights").unwrap();
    let error = synthetic.launch_bf16(stream, &mut short).unwrap_err();
    assert_eq!(error.to_string(), "synthetic_weights: weights: expected 8 elements, got 7");
}
