//! Checkpoint formats of INT4 weights: from their tensors to [`Int4Weights`](crate::Int4Weights) and back, exactly.
//!
//! Every module has `read`, which checks lengths before it allocates, `write`, its inverse, and `Tensors`, what
//! `write` returns. Tensors are row-major slices in the shapes that checkpoints give them; scales are of the type
//! the checkpoint stores ([`Element`]: f16, bf16 or f32). Reading never rounds; writing refuses a scale that the
//! asked-for type cannot hold.

use device::{Check, Element, Result};

pub mod auto_awq;
pub mod compressed_tensors;
pub mod model_opt;

/// Codes to a 32-bit word.
const CODES_PER_WORD: usize = 8;

/// The zero point of symmetric weights: signed codes -8..=7 are stored as 0..=15.
const SYMMETRIC_ZERO: u8 = 8;

/// The four bits at place `index` (0 is lowest) of `word`.
fn nibble(word: i32, index: usize) -> u8 {
    ((word as u32) >> (4 * index)) as u8 & 0xf
}

/// The word whose nibble at place `i` is `code(i)`.
fn word(code: impl Fn(usize) -> u8) -> i32 {
    (0..CODES_PER_WORD).fold(0, |word, index| word | u32::from(code(index)) << (4 * index)) as i32
}

fn widen<T: Element>(scales: &[T]) -> impl Iterator<Item = f32> {
    scales.iter().map(|scale| scale.to_f32())
}

/// The scales in the format's type; an error where that would round.
fn narrow<T: Element>(check: Check, scales: impl Iterator<Item = f32>) -> Result<Vec<T>> {
    let exact = |scale: f32| {
        let narrowed = T::from_f32(scale);
        let expected = format_args!("numbers that {} holds exactly", T::NAME);
        check.that(narrowed.to_f32() == scale, "scales", expected, scale)?;
        Ok(narrowed)
    };
    scales.map(exact).collect()
}

/// `out[c][r] = matrix[r][c]` for a row-major `matrix` of `columns` columns.
fn transpose<T: Copy>(matrix: &[T], columns: usize) -> Vec<T> {
    let rows = matrix.len() / columns;
    (0..columns).flat_map(|c| (0..rows).map(move |r| matrix[r * columns + c])).collect()
}
