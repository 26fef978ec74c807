//! Random INT4 weights that act like a trained layer's: full-size models can be run and timed without a checkpoint.

use crate::{Int4Shape, Int4Weights};
use device::{Result, random_bits};
use half::f16;
use rayon::prelude::*;

/// Codes to a random number.
const CODES: usize = 16;

/// Random weights of one layer, by counting: each depends on the seed and its place alone.
///
/// ```text
/// code[n][k]   nibble k % 16 of random_bits(seed, n ceil(in_features / 16) + k / 16); of symmetric weights 8 for 0
/// p            random_bits(!seed, n groups + g)
/// scale[n][g]  f16 whose bits are those of 0.9 / (4.64 sqrt(in_features)) plus p % 256: up to a quarter above it
/// zero[n][g]   7 + p / 256 % 2, or 8 where weights are symmetric
/// ```
///
/// Codes are uniform: less their zero point they deviate by 4.64 (4.3 where symmetric) around 0, so a weight deviates by
/// about 1 / sqrt(in_features), and inputs of unit variance give outputs of unit variance.
///
/// ```
/// use awq_gemm::{Int4Shape, SyntheticInt4};
/// let synthetic = SyntheticInt4::new(Int4Shape::new(256, 64, 128)?, 7);
/// assert_eq!(synthetic.reference()?, synthetic.reference()?);
/// # Ok::<(), device::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyntheticInt4 {
    shape: Int4Shape,
    seed: u64,
    symmetric: bool,
}

impl SyntheticInt4 {
    /// Weights with zero points near 8.
    pub fn new(shape: Int4Shape, seed: u64) -> Self {
        Self { shape, seed, symmetric: false }
    }

    /// The same with all zero points 8.
    pub fn symmetric(self) -> Self {
        Self { symmetric: true, ..self }
    }

    /// The shape.
    pub fn shape(&self) -> Int4Shape {
        self.shape
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn is_symmetric(&self) -> bool {
        self.symmetric
    }

    /// The weights, on the host.
    pub fn reference(&self) -> Result<Int4Weights> {
        let shape = self.shape;
        let words = shape.in_features().div_ceil(CODES);
        let mut codes = vec![0; shape.out_features() * shape.in_features()];
        codes.par_chunks_mut(shape.in_features()).enumerate().for_each(|(n, row)| {
            for (word, codes) in row.chunks_mut(CODES).enumerate() {
                let bits = random_bits(self.seed, (n * words + word) as u64);
                for (i, code) in codes.iter_mut().enumerate() {
                    *code = match (bits >> (4 * i)) as u8 & 0xf {
                        // Signed codes would have a mean of -1/2, which adds up over rows of inputs of one sign.
                        0 if self.symmetric => 8,
                        code => code,
                    };
                }
            }
        });
        let groups = 0..(shape.out_features() * shape.groups()) as u64;
        let (zeros, scales) = groups.map(|group| self.parameters(group)).unzip();
        Int4Weights::new(shape, codes, zeros, scales)
    }

    /// Zero point and scale of a group.
    fn parameters(&self, group: u64) -> (u8, f32) {
        let bits = random_bits(!self.seed, group);
        let zero = if self.symmetric { 8 } else { 7 + (bits >> 8 & 1) as u8 };
        (zero, f16::from_bits(self.least_scale() + (bits & 0xff) as u16).to_f32())
    }

    /// The bits of the smallest scale, an f16.
    pub(crate) fn least_scale(&self) -> u16 {
        f16::from_f32(0.9 / (4.64 * (self.shape.in_features() as f32).sqrt())).to_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_deviate_by_one_over_the_root_of_in_features() {
        for (in_features, group_size) in [(96, 8), (1024, 128), (8192, 64)] {
            let shape = Int4Shape::new(in_features, 64, group_size).unwrap();
            for synthetic in [SyntheticInt4::new(shape, 3), SyntheticInt4::new(shape, 3).symmetric()] {
                let weights = synthetic.reference().unwrap().dequantize();
                let sum: f64 = weights.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
                let deviation = (sum / weights.len() as f64 * in_features as f64).sqrt();
                assert!((0.85..1.1).contains(&deviation), "{deviation}");
            }
        }
    }

    #[test]
    fn seeds_and_places_give_other_weights() {
        let shape = Int4Shape::new(128, 64, 64).unwrap();
        let weights = |seed| SyntheticInt4::new(shape, seed).reference().unwrap();
        assert_ne!(weights(1), weights(2));
        let weights = weights(1);
        let rows: std::collections::HashSet<&[u8]> = weights.codes().chunks(128).collect();
        assert_eq!(rows.len(), 64);
        // All sixteen codes and both zero points come up.
        assert_eq!(weights.codes().iter().collect::<std::collections::HashSet<_>>().len(), 16);
        assert_eq!(
            weights.zeros().iter().collect::<std::collections::BTreeSet<_>>(),
            [7, 8].iter().collect()
        );
    }
}
