//! Guarded device buffers, and what the tests of both quantizing ops share.

use cudarc::driver::{CudaStream, CudaViewMut};
use device::{ActivationShape, E4m3, Element, QuantizedActivation};
use half::bf16;
use op_test::{DeviceGuarded, Rng, assert_close_f64, gamma};
use std::sync::Arc;

pub type Stream = Arc<CudaStream>;

/// Unit roundoffs.
pub const F32: f64 = 1.0 / (1 << 24) as f64;
pub const BF16: f64 = 1.0 / 256.0;

/// Around the ends of a vector, a warp's piece and a block; then real widths: Llama, Falcon, and the widest.
pub const WIDTHS: [usize; 15] =
    [8, 16, 248, 256, 264, 1016, 1024, 1032, 2040, 2056, 4096, 8192, 14848, 16384, 16392];

pub fn widen<T: Element>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// Random bf16 rows at the scale of a residual stream.
pub fn draw(rng: &mut Rng, len: usize, deviation: f32) -> Vec<bf16> {
    rng.tensor(len, deviation).into_iter().map(bf16::from_f32).collect()
}

/// A quantized activation on the device, poisoned and guarded.
pub struct Quantized {
    pub shape: ActivationShape,
    codes: DeviceGuarded<E4m3>,
    scales: DeviceGuarded<f32>,
    group_sums: DeviceGuarded<f32>,
}

impl Quantized {
    pub fn new(stream: &Stream, tokens: usize, features: usize, group_size: usize) -> Self {
        let shape = ActivationShape { tokens, features, group_size };
        Self {
            shape,
            codes: DeviceGuarded::new(stream, tokens * features),
            scales: DeviceGuarded::new(stream, tokens),
            group_sums: DeviceGuarded::new(stream, tokens * shape.groups()),
        }
    }

    pub fn view(&mut self) -> QuantizedActivation<CudaViewMut<'_, E4m3>, CudaViewMut<'_, f32>> {
        QuantizedActivation {
            shape: self.shape,
            codes: self.codes.view(),
            scales: self.scales.view(),
            group_sums: self.group_sums.view(),
        }
    }

    /// Holds scales, codes and group sums against the row that was to be quantized, known to within `bounds`.
    #[track_caller]
    pub fn check(&mut self, stream: &Stream, want: &[f64], bounds: &[f64]) {
        let ActivationShape { features, group_size, .. } = self.shape;
        let (codes, scales) = (self.codes.checked(stream), self.scales.checked(stream));
        let codes = widen(&codes);
        for (token, &scale) in scales.iter().enumerate() {
            let row = token * features..(token + 1) * features;
            let (want, bounds, codes) = (&want[row.clone()], &bounds[row.clone()], &codes[row]);

            let largest = want.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
            let slack = bounds.iter().fold(0.0, |slack: f64, bound| slack.max(*bound));
            let scale = f64::from(scale);
            let exact = (scale * 448.0 - largest).abs() <= slack + 2.0 * F32 * largest;
            // What is zero, or within its bound of zero, or too small for a normal scale, may have been taken for zero.
            let nothing = largest <= slack.max(448.0 * f64::from(f32::MIN_POSITIVE));
            assert!(exact && largest > 0.0 || nothing && scale == 1.0, "{scale} for {largest}");
            // Half a unit of 3 mantissa bits or of the subnormals' 2^-9, of a value that is off by its bound, by the rounding
            // of the scale's reciprocal and by that of the product; beyond 448 it saturates.
            let bound = |i: usize| {
                let exact = want[i].abs() / scale;
                let off = bounds[i] / scale + 4.0 * F32 * exact;
                let value = exact + off;
                off + (value / 16.0).max(1.0 / 1024.0) + (value - 448.0).max(0.0)
            };
            let want: Vec<f64> = want.iter().map(|x| x / scale).collect();
            let bounds: Vec<f64> = (0..features).map(bound).collect();
            assert_close_f64(codes, &want, &bounds);
        }
        let sums = self.group_sums.checked(stream);
        if group_size > 0 {
            let groups = codes.chunks_exact(group_size);
            let sum = |f: fn(f64) -> f64| -> Vec<f64> {
                groups.clone().map(|group| group.iter().map(|&code| f(f64::from(code))).sum()).collect()
            };
            let bounds: Vec<f64> = sum(f64::abs).iter().map(|sum| gamma(group_size, F32) * sum).collect();
            assert_close_f64(&sums, &sum(|code| code), &bounds);
        }
    }
}
