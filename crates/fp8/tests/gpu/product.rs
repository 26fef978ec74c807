//! Products against f64, element by element.

use crate::Stream;
use device::gpu::{Gpu, upload, zeros};
use device::{ActivationShape, E4m3, Element, QuantizedActivation};
use fp8::{DenseProduct, Fp8Product};
use half::bf16;
use op_test::{DeviceGuarded, Rng, assert_close_f64, gamma};

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
