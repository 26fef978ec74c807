//! ModelOpt (TensorRT-LLM) W4A8_AWQ and W4A16_AWQ: symmetric, two output features to a byte, two's complement.
//!
//! ```text
//! weight         U8 [out_features / 2, in_features]   byte [j][k]: low nibble row 2 j, high nibble row 2 j + 1
//! weight_scale      [out_features, groups]            w = signed code * weight_scale
//! weight_scale_2    scalar, input_scale scalar, pre_quant_scale [in_features]
//! ```
//!
//! `weight_scale` is the whole scale of a weight. `weight_scale_2` is not a factor of it: kernels that turn
//! weights into e4m3 divide by it first and multiply the output with it, rounding each weight; these products do
//! not round weights, so they need none of it. `input_scale` is the static scale of the activations and
//! `pre_quant_scale` multiplies their features before they are quantized: both belong to the step before the product.

use super::{SYMMETRIC_ZERO, narrow, widen};
use crate::{Int4Shape, Int4Weights};
use device::{Check, Element, Result};
use rayon::prelude::*;

const CHECK: Check = Check("model_opt");

/// The tensors of one linear layer's weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensors<T> {
    /// U8 `[out_features / 2, in_features]`.
    pub weight: Vec<u8>,
    /// `[out_features, groups]`.
    pub weight_scale: Vec<T>,
}

/// The weights in the tensors of one layer; `out_features` is even.
pub fn read<T: Element>(shape: Int4Shape, weight: &[u8], weight_scale: &[T]) -> Result<Int4Weights> {
    CHECK.multiple("out_features", shape.out_features(), 2)?;
    CHECK.len("weight", weight, shape.out_features() / 2 * shape.in_features())?;
    CHECK.len("weight_scale", weight_scale, shape.out_features() * shape.groups())?;
    let in_features = shape.in_features();
    let mut codes = vec![0; shape.out_features() * in_features];
    codes.par_chunks_mut(in_features).enumerate().for_each(|(n, codes)| {
        for (code, byte) in codes.iter_mut().zip(&weight[n / 2 * in_features..]) {
            // Flipping the sign bit of a two's complement nibble adds 8.
            *code = ((byte >> (4 * (n % 2))) & 0xf) ^ SYMMETRIC_ZERO;
        }
    });
    let zeros = vec![SYMMETRIC_ZERO; shape.out_features() * shape.groups()];
    Int4Weights::new(shape, codes, zeros, widen(weight_scale).collect())
}

/// The tensors of `weights`, all of whose zero points are 8: the inverse of [`read`].
pub fn write<T: Element>(weights: &Int4Weights) -> Result<Tensors<T>> {
    let shape = weights.shape();
    CHECK.multiple("out_features", shape.out_features(), 2)?;
    if let Some(zero) = weights.zeros().iter().find(|&&zero| zero != SYMMETRIC_ZERO) {
        return Err(CHECK.error("zeros", "8 everywhere (the format is symmetric)", zero));
    }
    let pair = |rows: &[u8]| -> Vec<u8> {
        let (low, high) = rows.split_at(shape.in_features());
        low.iter()
            .zip(high)
            .map(|(low, high)| (low ^ SYMMETRIC_ZERO) | (high ^ SYMMETRIC_ZERO) << 4)
            .collect()
    };
    Ok(Tensors {
        weight: weights.codes().par_chunks(2 * shape.in_features()).flat_map_iter(pair).collect(),
        weight_scale: narrow(CHECK, weights.scales().iter().copied())?,
    })
}
