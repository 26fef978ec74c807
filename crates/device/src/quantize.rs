//! Per-token quantization of one row: the formula that every quantizing step shares, on the host.

use crate::E4m3;

/// Quantizes one token's row to e4m3 and returns its scale.
///
/// ```text
/// scale         = max |row| / 448, or 1 where that is not a normal f32 (the row is zero, or as good as zero)
/// codes[f]      = e4m3(row[f] / scale)                      nearest, ties to even, saturating
/// group_sums[g] = sum of codes[f] over f in g * group_size .. (g + 1) * group_size
/// ```
///
/// All in f32, the sums rounded once. `codes` is as long as `row`; `group_sums` has `row.len() / group_size` elements, or
/// none where `group_size` is 0. What is longer than that stays untouched. A NaN in the row becomes a NaN code and leaves
/// the scale to the others.
///
/// ```
/// use device::{E4m3, quantize_row};
/// let (mut codes, mut sums) = ([E4m3(0); 4], [0.0; 2]);
/// let scale = quantize_row(&[1.0, -0.5, 0.25, 0.0], 2, &mut codes, &mut sums);
/// assert_eq!(scale, 1.0 / 448.0);
/// assert_eq!(codes.map(E4m3::to_f32), [448.0, -224.0, 112.0, 0.0]);
/// assert_eq!(sums, [224.0, 112.0]);
/// ```
pub fn quantize_row(row: &[f32], group_size: usize, codes: &mut [E4m3], group_sums: &mut [f32]) -> f32 {
    let scale = scale_of_row(row);
    for (code, &x) in codes.iter_mut().zip(row) {
        *code = E4m3::from_f32(x / scale);
    }
    if group_size > 0 {
        let codes = &codes[..codes.len().min(row.len())];
        for (sum, group) in group_sums.iter_mut().zip(codes.chunks_exact(group_size)) {
            // At most 2^27 multiples of 2^-9: exact in f64.
            *sum = group.iter().map(|code| f64::from(code.to_f32())).sum::<f64>() as f32;
        }
    }
    scale
}

/// The scale that [`quantize_row`] gives a row.
pub fn scale_of_row(row: &[f32]) -> f32 {
    let absmax = row.iter().fold(0.0f32, |absmax, x| absmax.max(x.abs()));
    let scale = absmax / E4m3::MAX;
    if scale < f32::MIN_POSITIVE { 1.0 } else { scale }
}
