//! compressed-tensors, format pack-quantized, four bits: signed codes -8..=7, stored plus 8 in order along a row.
//!
//! ```text
//! weight_packed     I32 [out_features, ceil(in_features / 8)]    nibble i of word c: input feature 8 c + i
//! weight_scale          [out_features, groups]
//! weight_zero_point I32 [ceil(out_features / 8), groups]         nibble i of word r: output feature 8 r + i
//! weight_shape      I64 [2] = out_features, in_features
//! ```
//!
//! Zero points are absent for symmetric weights; versions before 0.10 store them unpacked, as signed bytes
//! `[out_features, groups]`. Unused nibbles of a last word are ignored and written as 0. Weights whose input
//! features were reordered (`weight_g_idx`) are another format.

use super::{CODES_PER_WORD, SYMMETRIC_ZERO, narrow, nibble, widen, word};
use crate::{Int4Shape, Int4Weights};
use device::{Check, Element, Result};
use rayon::prelude::*;

const CHECK: Check = Check("compressed_tensors");

/// What a checkpoint says about zero points.
#[derive(Debug, Clone, Copy)]
pub enum ZeroPoints<'a> {
    /// No tensor: all zero.
    Symmetric,
    /// I32 `[ceil(out_features / 8), groups]`, packed along the output features.
    Packed(&'a [i32]),
    /// I8 `[out_features, groups]`, each -8 to 7.
    Bytes(&'a [i8]),
}

/// The tensors of one linear layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensors<T> {
    /// I32 `[out_features, ceil(in_features / 8)]`.
    pub weight_packed: Vec<i32>,
    /// `[out_features, groups]`.
    pub weight_scale: Vec<T>,
    /// I32 `[ceil(out_features / 8), groups]`; none where every zero point is 8, the symmetric one.
    pub weight_zero_point: Option<Vec<i32>>,
    /// `out_features`, `in_features`.
    pub weight_shape: [i64; 2],
}

/// The weights in the tensors of one layer. `shape` comes from `weight_shape` and the configuration's group size.
pub fn read<T: Element>(
    shape: Int4Shape,
    weight_packed: &[i32],
    weight_scale: &[T],
    weight_zero_point: ZeroPoints<'_>,
) -> Result<Int4Weights> {
    let (groups, words) = (shape.groups(), shape.in_features().div_ceil(CODES_PER_WORD));
    CHECK.len("weight_packed", weight_packed, shape.out_features() * words)?;
    CHECK.len("weight_scale", weight_scale, shape.out_features() * groups)?;
    let zeros = match weight_zero_point {
        ZeroPoints::Symmetric => vec![SYMMETRIC_ZERO; shape.out_features() * groups],
        ZeroPoints::Packed(packed) => {
            CHECK.len("weight_zero_point", packed, shape.out_features().div_ceil(CODES_PER_WORD) * groups)?;
            let zero =
                |n: usize, g: usize| nibble(packed[n / CODES_PER_WORD * groups + g], n % CODES_PER_WORD);
            (0..shape.out_features()).flat_map(|n| (0..groups).map(move |g| zero(n, g))).collect()
        }
        ZeroPoints::Bytes(bytes) => {
            CHECK.len("weight_zero_point", bytes, shape.out_features() * groups)?;
            bytes.iter().map(|&zero| unsigned(zero)).collect::<Result<_>>()?
        }
    };
    let mut codes = vec![0; shape.out_features() * shape.in_features()];
    codes.par_chunks_mut(shape.in_features()).zip(weight_packed.par_chunks(words)).for_each(
        |(codes, packed)| {
            for (k, code) in codes.iter_mut().enumerate() {
                *code = nibble(packed[k / CODES_PER_WORD], k % CODES_PER_WORD);
            }
        },
    );
    Int4Weights::new(shape, codes, zeros, widen(weight_scale).collect())
}

/// The tensors of `weights`: the inverse of [`read`].
pub fn write<T: Element>(weights: &Int4Weights) -> Result<Tensors<T>> {
    let shape = weights.shape();
    let (groups, words) = (shape.groups(), shape.in_features().div_ceil(CODES_PER_WORD));
    let mut weight_packed = vec![0; shape.out_features() * words];
    let rows = weights.codes().par_chunks(shape.in_features());
    weight_packed.par_chunks_mut(words).zip(rows).for_each(|(packed, codes)| {
        for (packed, codes) in packed.iter_mut().zip(codes.chunks(CODES_PER_WORD)) {
            *packed = word(|index| codes.get(index).copied().unwrap_or(0));
        }
    });
    let symmetric = weights.zeros().iter().all(|&zero| zero == SYMMETRIC_ZERO);
    let zero =
        |n: usize, g: usize| if n < shape.out_features() { weights.zeros()[n * groups + g] } else { 0 };
    let word_rows = 0..shape.out_features().div_ceil(CODES_PER_WORD);
    let packed_zeros = || {
        word_rows.flat_map(|r| (0..groups).map(move |g| word(|index| zero(r * CODES_PER_WORD + index, g))))
    };
    Ok(Tensors {
        weight_packed,
        weight_scale: narrow(CHECK, weights.scales().iter().copied())?,
        weight_zero_point: (!symmetric).then(|| packed_zeros().collect()),
        weight_shape: [shape.out_features() as i64, shape.in_features() as i64],
    })
}

fn unsigned(zero: i8) -> Result<u8> {
    CHECK.that((-8..=7).contains(&zero), "weight_zero_point", "-8 to 7", zero)?;
    Ok((zero + SYMMETRIC_ZERO as i8) as u8)
}
