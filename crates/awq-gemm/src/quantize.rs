//! Plain quantization: the nearest code in an asymmetric range per group.

use crate::{Int4Shape, Int4Weights, MAX_CODE};
use device::{Check, Result};
use half::f16;
use rayon::prelude::*;

const CHECK: Check = Check("quantize");

/// Quantizes `weights` f32 `[out_features, in_features]` to the nearest of the 16 codes of their group's range.
///
/// ```text
/// low  = min(group, 0)        scale = f16((high - low) / 15)
/// high = max(group, 0)        zero  = round(-low / scale)
///                             code  = clamp(round(w / scale) + zero, 0, 15)
/// ```
///
/// The range includes 0, so that 0 is always exact. The scale is rounded to f16 before anything is divided by it,
/// since that is what checkpoints store; a group whose scale would be 0 becomes all 0. Weights that are not finite,
/// or whose scale is beyond f16, are refused.
pub fn quantize(shape: Int4Shape, weights: &[f32]) -> Result<Int4Weights> {
    CHECK.len("weights", weights, shape.out_features() * shape.in_features())?;
    if let Some(at) = weights.iter().position(|weight| !weight.is_finite()) {
        return Err(CHECK.error("weights", "finite numbers", format_args!("{} at [{at}]", weights[at])));
    }
    let groups = shape.out_features() * shape.groups();
    let (mut codes, mut zeros, mut scales) = (vec![0; weights.len()], vec![0; groups], vec![0.0; groups]);
    codes
        .par_chunks_mut(shape.group_size())
        .zip(weights.par_chunks(shape.group_size()))
        .zip(zeros.par_iter_mut().zip(&mut scales))
        .for_each(|((codes, weights), (zero, scale))| (*zero, *scale) = quantize_group(weights, codes));
    if let Some(at) = scales.iter().position(|scale| !scale.is_finite()) {
        let (expected, group_size) = ("groups whose range over 15 is within f16", shape.group_size());
        return Err(CHECK.error("weights", expected, format_args!("[{}..] beyond it", at * group_size)));
    }
    Int4Weights::new(shape, codes, zeros, scales)
}

/// Writes the group's codes; returns its zero point and its scale.
fn quantize_group(weights: &[f32], codes: &mut [u8]) -> (u8, f32) {
    let (low, high) = weights.iter().fold((0.0f32, 0.0f32), |(low, high), &w| (low.min(w), high.max(w)));
    let largest = f32::from(MAX_CODE);
    let scale = f16::from_f32(high / largest - low / largest).to_f32();
    if scale == 0.0 || scale.is_infinite() {
        return (0, scale);
    }
    let zero = (-low / scale).round_ties_even().min(largest);
    for (code, weight) in codes.iter_mut().zip(weights) {
        *code = ((weight / scale).round_ties_even() + zero).clamp(0.0, largest) as u8;
    }
    (zero as u8, scale)
}
