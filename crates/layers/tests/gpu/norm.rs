//! Norms: the residual stream bit for bit, the norm of what is stored within the error of f32.

use crate::support::{BF16, F32, Quantized, Stream, WIDTHS, draw, widen};
use device::gpu::{Gpu, upload};
use half::bf16;
use layers::{Norm, NormKind};
use op_test::{DeviceGuarded, Rng, assert_close_f64, gamma};

struct Case {
    kind: NormKind,
    features: usize,
    epsilon: f32,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    deltas: Vec<Vec<bf16>>,
    residual: Vec<bf16>,
}

impl Case {
    fn new(
        rng: &mut Rng,
        kind: NormKind,
        tokens: usize,
        features: usize,
        biased: bool,
        deltas: usize,
    ) -> Self {
        // A mean away from zero and rows of different size, as residual streams have.
        let mut residual = draw(rng, tokens * features, 2.0);
        for row in residual.chunks_exact_mut(features) {
            let (shift, scale) = (rng.normal(2.0), (rng.below(0..12) as f32 - 6.0).exp2());
            row.iter_mut().for_each(|x| *x = bf16::from_f32((x.to_f32() + shift) * scale));
        }
        Self {
            kind,
            features,
            epsilon: 1e-5,
            weight: rng.tensor(features, 1.0),
            bias: biased.then(|| rng.tensor(features, 1.0)),
            deltas: (0..deltas).map(|_| draw(rng, tokens * features, 1.0)).collect(),
            residual,
        }
    }

    /// The residual stream behind the additions, as f32 sums rounded once.
    fn summed(&self) -> Vec<bf16> {
        let sum = |i: usize| {
            let delta = |delta: &Vec<bf16>| delta[i].to_f32();
            let before = self.residual[i].to_f32();
            match &self.deltas[..] {
                [] => before,
                [first] => before + delta(first),
                [first, second, ..] => before + (delta(first) + delta(second)),
            }
        };
        (0..self.residual.len()).map(|i| bf16::from_f32(sum(i))).collect()
    }

    /// The norm in f64, and how far one in f32 may lie from it before its result is rounded to a storage type.
    fn want(&self, summed: &[bf16]) -> (Vec<f64>, Vec<f64>) {
        let n = self.features as f64;
        // A thread adds 32 features, then come two reductions of five steps.
        let sum_error = gamma(32 + 10 + 2, F32);
        let (mut want, mut bounds) = (Vec::new(), Vec::new());
        for row in summed.chunks_exact(self.features) {
            let row: Vec<f64> = row.iter().map(|x| f64::from(x.to_f32())).collect();
            let centered = self.kind == NormKind::Layer;
            let mean = if centered { row.iter().sum::<f64>() / n } else { 0.0 };
            let mean_error =
                if centered { sum_error * row.iter().map(|x| x.abs()).sum::<f64>() / n } else { 0.0 };
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let shifted = variance + f64::from(self.epsilon);
            // The sum of squares, each of a rounded difference; an error of the mean adds its square. rsqrtf is right to two
            // places, the division and the sum before it to half a place each.
            let relative = (sum_error + 4.0 * F32 + mean_error.powi(2) / shifted) / 2.0 + 6.0 * F32;
            for (feature, x) in row.iter().enumerate() {
                let weight = f64::from(self.weight[feature]);
                let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[feature]));
                let factor = weight.abs() / shifted.sqrt();
                let normal = (x - mean) / shifted.sqrt() * weight;
                want.push(normal + bias);
                let difference_error = mean_error + F32 * (x - mean).abs();
                let product_error = (relative + 2.0 * F32) * (x - mean).abs();
                bounds.push(1.01 * factor * (difference_error + product_error) + F32 * (normal + bias).abs());
            }
        }
        (want, bounds)
    }

    fn check(&self, stream: &Stream, group_sizes: &[usize]) {
        let norm = Norm::new(self.kind, self.features, self.epsilon).unwrap();
        let weight = upload(stream, &self.weight, "weight").unwrap();
        let bias = self.bias.as_ref().map(|bias| upload(stream, bias, "bias").unwrap());
        let deltas: Vec<_> =
            self.deltas.iter().map(|delta| upload(stream, delta, "delta").unwrap()).collect();
        let deltas: Vec<_> = deltas.iter().collect();
        let summed = self.summed();
        let (want, bounds) = self.want(&summed);

        let mut residual = DeviceGuarded::filled(stream, &self.residual);
        let mut output = DeviceGuarded::<bf16>::new(stream, self.residual.len());
        norm.launch(stream, &weight, bias.as_ref(), &deltas, &mut residual.view(), &mut output.view())
            .unwrap();
        assert_eq!(residual.checked(stream), summed);
        let rounded = |i: usize| bounds[i] * (1.0 + BF16) + BF16 * want[i].abs();
        let loose: Vec<f64> = (0..want.len()).map(rounded).collect();
        assert_close_f64(&widen(&output.checked(stream)), &want, &loose);

        for &group_size in group_sizes {
            let mut residual = DeviceGuarded::filled(stream, &self.residual);
            let mut output = Quantized::new(stream, want.len() / self.features, self.features, group_size);
            let (bias, residual_view) = (bias.as_ref(), &mut residual.view());
            norm.launch_quantized(stream, &weight, bias, &deltas, residual_view, &mut output.view()).unwrap();
            assert_eq!(residual.checked(stream), summed);
            output.check(stream, &want, &bounds);
        }
    }
}

#[test]
#[ignore = "needs an H200"]
fn norms_at_every_width() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(1);
    for kind in [NormKind::Rms, NormKind::Layer] {
        for features in WIDTHS.into_iter().chain([32760, 32768]) {
            for deltas in 0..=2 {
                let tokens = [1, 3, 5][rng.below(0..3)];
                let groups = [0, 8, 16, 32, 64, 128, 256].into_iter();
                let groups: Vec<usize> = groups.filter(|&g| g == 0 || features % g == 0).collect();
                let biased = rng.below(0..2) == 1;
                Case::new(&mut rng, kind, tokens, features, biased, deltas).check(gpu.stream(), &groups);
            }
        }
    }
}

#[test]
#[ignore = "needs an H200"]
fn full_size_norms_of_a_batch() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(2);
    // Falcon-180B and Llama-70B decode batches, more rows than multiprocessors hold at a time.
    Case::new(&mut rng, NormKind::Layer, 300, 14848, true, 2).check(gpu.stream(), &[128]);
    Case::new(&mut rng, NormKind::Rms, 1000, 8192, false, 1).check(gpu.stream(), &[0]);
}

#[test]
#[ignore = "needs an H200"]
fn no_rows_at_all() {
    let gpu = Gpu::open(0).unwrap();
    Case::new(&mut Rng::new(4), NormKind::Rms, 0, 8192, false, 1).check(gpu.stream(), &[128]);
}

#[test]
#[ignore = "needs an H200"]
fn a_row_of_zeros_stays_zero() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(3);
    let mut case = Case::new(&mut rng, NormKind::Rms, 2, 1024, false, 0);
    case.residual[..1024].fill(bf16::ZERO);
    case.check(gpu.stream(), &[128]);
}
