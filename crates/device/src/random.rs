//! Random numbers by counting: each depends on a seed and an index alone, so that the host and a kernel make the same bits,
//! in any order. `kernels/include/peregrine/random.cuh` has the same two functions.

/// The spread of [`near_normal`]: the square root of 4 (256^2 - 1) / 12.
pub const NEAR_NORMAL_DEVIATION: f32 = 147.801;

/// The largest magnitude of [`near_normal`].
pub const NEAR_NORMAL_MAX: f32 = 510.0;

/// 64 random bits: number `index` of sequence `seed`, as SplitMix64 mixes them (Steele, Lea, Flood, OOPSLA 2014).
pub fn random_bits(seed: u64, index: u64) -> u64 {
    let x = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// A whole number, near normally distributed around 0, from 32 random bits: the sum of the four bytes less its mean, 510.
/// Whole numbers, so that nothing is rounded before the caller scales it.
pub fn near_normal(bits: u32) -> i32 {
    bits.to_le_bytes().into_iter().map(i32::from).sum::<i32>() - 510
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs of the published generator for seed 0.
    #[test]
    fn the_sequence_is_splitmix64() {
        let published = [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
        for (index, bits) in published.into_iter().enumerate() {
            assert_eq!(random_bits(0, index as u64), bits);
        }
    }

    #[test]
    fn spread_and_range_are_as_stated() {
        let numbers: Vec<f64> =
            (0..1 << 16).map(|i| f64::from(near_normal(random_bits(7, i) as u32))).collect();
        let count = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        let variance = numbers.iter().map(|x| x * x).sum::<f64>() / count;
        // Five standard errors: deviation / sqrt(count) of the mean, about 0.7 percent of the variance.
        assert!(mean.abs() < 5.0 * 147.8 / 256.0, "{mean}");
        assert!((variance.sqrt() / f64::from(NEAR_NORMAL_DEVIATION) - 1.0).abs() < 0.02, "{variance}");
        assert_eq!((near_normal(0), near_normal(u32::MAX)), (-510, 510));
    }
}
