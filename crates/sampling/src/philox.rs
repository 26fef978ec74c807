//! Philox4x32-10, a counter-based random number generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011): a keyed bijection of a 128-bit counter. No state, so that any thread can draw any number at any time.

/// Ten rounds.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let halves = |product: u64| ((product >> 32) as u32, product as u32);
    let ([mut x0, mut x1, mut x2, mut x3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (high0, low0) = halves(u64::from(MULTIPLIERS[0]) * u64::from(x0));
        let (high1, low1) = halves(u64::from(MULTIPLIERS[1]) * u64::from(x2));
        (x0, x1, x2, x3) = (high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0);
        (k0, k1) = (k0.wrapping_add(WEYL[0]), k1.wrapping_add(WEYL[1]));
    }
    [x0, x1, x2, x3]
}

/// Number `draw` of the stream of `seed`: uniform in `0.0..1.0`, a multiple of 2^-53.
///
/// ```text
/// words = philox4x32([low(draw), high(draw), 0, 0], [low(seed), high(seed)])
/// value = (words[0] * 2^32 + words[1]) >> 11, times 2^-53
/// ```
pub fn uniform(seed: u64, draw: u64) -> f64 {
    let [high, low, ..] =
        philox4x32([draw as u32, (draw >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(high) << 32 | u64::from(low);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
