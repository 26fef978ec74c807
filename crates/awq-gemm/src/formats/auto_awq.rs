//! AutoAWQ (`quant_method` awq, version gemm): columns are output features, eight to a word in an order that suits
//! the 16-bit unpacking of its kernels.
//!
//! ```text
//! qweight I32 [in_features, out_features / 8]
//! qzeros  I32 [groups,      out_features / 8]
//! scales      [groups,      out_features]
//!
//! nibble of a word (lowest first)       0  1  2  3  4  5  6  7
//! output feature 8 * column + ...       0  2  4  6  1  3  5  7
//! ```

use super::{CODES_PER_WORD, narrow, nibble, transpose, widen, word};
use crate::{Int4Shape, Int4Weights};
use device::{Check, Element, Result};
use rayon::prelude::*;

const CHECK: Check = Check("auto_awq");

/// Which of its eight output features a nibble holds.
const ORDER: [usize; CODES_PER_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The inverse of [`ORDER`]: where in its word an output feature's nibble lies.
const PLACE: [usize; CODES_PER_WORD] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The tensors of one linear layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensors<T> {
    /// I32 `[in_features, out_features / 8]`.
    pub qweight: Vec<i32>,
    /// I32 `[groups, out_features / 8]`.
    pub qzeros: Vec<i32>,
    /// `[groups, out_features]`; AutoAWQ stores f16.
    pub scales: Vec<T>,
}

/// The weights in the tensors of one layer; `out_features` is a multiple of 8.
pub fn read<T: Element>(
    shape: Int4Shape,
    qweight: &[i32],
    qzeros: &[i32],
    scales: &[T],
) -> Result<Int4Weights> {
    let words = words_per_row(shape)?;
    CHECK.len("qweight", qweight, shape.in_features() * words)?;
    CHECK.len("qzeros", qzeros, shape.groups() * words)?;
    CHECK.len("scales", scales, shape.groups() * shape.out_features())?;
    let scales: Vec<f32> = widen(scales).collect();
    Int4Weights::new(
        shape,
        unpack(qweight, words, shape.out_features()),
        unpack(qzeros, words, shape.out_features()),
        transpose(&scales, shape.out_features()),
    )
}

/// The tensors of `weights`: the inverse of [`read`].
pub fn write<T: Element>(weights: &Int4Weights) -> Result<Tensors<T>> {
    let shape = weights.shape();
    let words = words_per_row(shape)?;
    let scales = transpose(weights.scales(), shape.groups());
    Ok(Tensors {
        qweight: pack(weights.codes(), words, shape.in_features()),
        qzeros: pack(weights.zeros(), words, shape.groups()),
        scales: narrow(CHECK, scales.into_iter())?,
    })
}

fn words_per_row(shape: Int4Shape) -> Result<usize> {
    CHECK.multiple("out_features", shape.out_features(), CODES_PER_WORD)?;
    Ok(shape.out_features() / CODES_PER_WORD)
}

/// Words `[rows, words]` to codes `[out_features, rows]`.
fn unpack(packed: &[i32], words: usize, out_features: usize) -> Vec<u8> {
    let rows = packed.len() / words;
    let mut codes = vec![0; out_features * rows];
    codes.par_chunks_mut(rows).enumerate().for_each(|(n, codes)| {
        let (column, place) = (n / CODES_PER_WORD, PLACE[n % CODES_PER_WORD]);
        for (row, code) in codes.iter_mut().enumerate() {
            *code = nibble(packed[row * words + column], place);
        }
    });
    codes
}

/// Codes `[out_features, rows]` to words `[rows, words]`.
fn pack(codes: &[u8], words: usize, rows: usize) -> Vec<i32> {
    let mut packed = vec![0; rows * words];
    packed.par_chunks_mut(words).enumerate().for_each(|(row, packed)| {
        for (column, packed) in packed.iter_mut().enumerate() {
            *packed = word(|index| codes[(column * CODES_PER_WORD + ORDER[index]) * rows + row]);
        }
    });
    packed
}
