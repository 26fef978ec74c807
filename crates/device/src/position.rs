//! Positions in attention: the rotation of one head and the bias of ALiBi, shared by the ops that apply them.

use half::bf16;

/// Rotates one head in place: rotary embedding in the GPT-NeoX arrangement, in which dim `i` pairs with dim `i + n`.
///
/// ```text
/// angle  = position * inverse_frequencies[i]           i in 0..n, n = inverse_frequencies.len()
/// head'[i]     = head[i]     * cos(angle) - head[i + n] * sin(angle)
/// head'[i + n] = head[i + n] * cos(angle) + head[i]     * sin(angle)
/// ```
///
/// In f32, the angle included. Dims from `2 n` on stay as they are; a head shorter than `2 n` stays whole.
///
/// ```
/// let mut head = [1.0, 2.0, 3.0, 4.0];
/// device::rotate_head(&mut head, 0, &[1.0, 0.1]);
/// assert_eq!(head, [1.0, 2.0, 3.0, 4.0]);
/// ```
pub fn rotate_head(head: &mut [f32], position: u32, inverse_frequencies: &[f32]) {
    let half = inverse_frequencies.len();
    let Some(rotated) = head.get_mut(..2 * half) else { return };
    let (low, high) = rotated.split_at_mut(half);
    for ((low, high), &frequency) in low.iter_mut().zip(high).zip(inverse_frequencies) {
        let (sin, cos) = (position as f32 * frequency).sin_cos();
        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
    }
}

/// What ALiBi adds to the score of a key at `position` (from the sequence's start) under a head's `slope`.
///
/// Falcon was trained with this product in bf16, so it is rounded as there: slope, position and product each to bf16. The
/// scale of attention applies to the sum: `(score + bias) / sqrt(head_dim)`.
pub fn alibi_bias(slope: f32, position: u32) -> f32 {
    let rounded = |x: f32| bf16::from_f32(x).to_f32();
    rounded(rounded(slope) * rounded(position as f32))
}
