//! Random weights that act like a trained layer's: full-size models can be run and timed without a checkpoint.

use device::{Check, E4m3, NEAR_NORMAL_DEVIATION, NEAR_NORMAL_MAX, Result, near_normal, random_bits};
use half::bf16;
use rayon::prelude::*;

/// Random weights `[out_features, in_features]`, by counting: each depends on the seed and its place alone.
///
/// ```text
/// i          n in_features + k
/// x[n][k]    near_normal of the low half of random_bits(seed, i / 2) where i is even, of the high half where it is odd
/// bf16       x / (147.8 sqrt(in_features))
/// e4m3       x 448 / 510, and for row n the scale s (192 + random_bits(!seed, n) % 128) / 256
///            with s = 510 / (448 147.8 sqrt(in_features))
/// ```
///
/// A weight deviates by about 1 / sqrt(in_features): inputs of unit variance give outputs of unit variance.
///
/// ```
/// use device::E4m3;
/// let synthetic = fp8::SyntheticWeights::new(64, 2, 7)?;
/// let mut codes = [E4m3::default(); 128];
/// synthetic.reference_e4m3(&mut codes)?;
/// assert!(codes.iter().all(|code| !code.is_nan()));
/// # Ok::<(), device::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyntheticWeights {
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
    pub(crate) seed: u64,
}

impl SyntheticWeights {
    pub(crate) const CHECK: Check = Check("synthetic_weights");
    /// The largest number becomes the largest code.
    pub(crate) const CODE_SCALE: f32 = E4m3::MAX / NEAR_NORMAL_MAX;

    /// Sizes of at least 1.
    pub fn new(in_features: usize, out_features: usize, seed: u64) -> Result<Self> {
        Self::CHECK.positive("in_features", in_features)?;
        Self::CHECK.positive("out_features", out_features)?;
        Self::CHECK.product("out_features", &[out_features, in_features])?;
        Ok(Self { in_features, out_features, seed })
    }

    /// Fills bf16 `[out_features, in_features]`, on the host.
    pub fn reference_bf16(&self, weights: &mut [bf16]) -> Result<()> {
        let scale = self.deviation();
        self.fill("weights", weights, |x| bf16::from_f32(x * scale))
    }

    /// Fills e4m3 `[out_features, in_features]`, on the host; [`Self::row_scales`] belong to it.
    pub fn reference_e4m3(&self, codes: &mut [E4m3]) -> Result<()> {
        self.fill("codes", codes, |x| E4m3::from_f32(x * Self::CODE_SCALE))
    }

    /// The scales of the e4m3 rows, f32 `[out_features]`.
    pub fn row_scales(&self) -> Vec<f32> {
        let unit = self.deviation() / Self::CODE_SCALE / 256.0;
        let scale = |n| unit * (192 + random_bits(!self.seed, n) % 128) as f32;
        (0..self.out_features as u64).map(scale).collect()
    }

    /// What a number is multiplied by to be a weight.
    pub(crate) fn deviation(&self) -> f32 {
        1.0 / (NEAR_NORMAL_DEVIATION * (self.in_features as f32).sqrt())
    }

    fn fill<T: Send>(
        &self,
        argument: &'static str,
        out: &mut [T],
        element: impl Fn(f32) -> T + Sync,
    ) -> Result<()> {
        Self::CHECK.len(argument, out, self.out_features * self.in_features)?;
        out.par_chunks_mut(2).enumerate().with_min_len(1 << 12).for_each(|(index, pair)| {
            let bits = random_bits(self.seed, index as u64);
            for (out, bits) in pair.iter_mut().zip([bits as u32, (bits >> 32) as u32]) {
                *out = element(near_normal(bits) as f32);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_deviate_by_one_over_the_root_of_in_features() {
        for (in_features, out_features) in [(63, 65), (1024, 64), (8192, 16)] {
            let synthetic = SyntheticWeights::new(in_features, out_features, 3).unwrap();
            let mut plain = vec![bf16::ZERO; in_features * out_features];
            let mut codes = vec![E4m3::default(); in_features * out_features];
            synthetic.reference_bf16(&mut plain).unwrap();
            synthetic.reference_e4m3(&mut codes).unwrap();
            let scales = synthetic.row_scales();
            let plain: Vec<f32> = plain.iter().map(|w| w.to_f32()).collect();
            let scaled = codes.iter().enumerate().map(|(i, code)| code.to_f32() * scales[i / in_features]);
            for weights in [plain, scaled.collect()] {
                let sum: f64 = weights.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
                let deviation = (sum / weights.len() as f64 * in_features as f64).sqrt();
                assert!((0.9..1.1).contains(&deviation), "{deviation}");
            }
        }
    }

    #[test]
    fn codes_span_the_range_of_e4m3() {
        let synthetic = SyntheticWeights::new(1 << 10, 1 << 10, 3).unwrap();
        let mut codes = vec![E4m3::default(); 1 << 20];
        synthetic.reference_e4m3(&mut codes).unwrap();
        let largest = codes.iter().map(|code| code.to_f32().abs()).fold(0.0, f32::max);
        assert!((384.0..=448.0).contains(&largest), "{largest}");
    }

    #[test]
    fn lengths_are_checked() {
        let synthetic = SyntheticWeights::new(4, 2, 3).unwrap();
        let error = synthetic.reference_bf16(&mut [bf16::ZERO; 7]).unwrap_err();
        assert_eq!(error.to_string(), "synthetic_weights: weights: expected 8 elements, got 7");
        let error = SyntheticWeights::new(0, 2, 3).unwrap_err();
        assert_eq!(error.to_string(), "synthetic_weights: in_features: expected at least 1, got 0");
    }
}
