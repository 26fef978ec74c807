//! Fused elementwise steps of a decoder: what lies between its matrix products.
//!
//! | plan | formula, row by row |
//! |---|---|
//! | [`Norm`] | `residual += deltas`, then RMSNorm or LayerNorm of it |
//! | [`Activate`] | SwiGLU of `[gate \| up]`, exact GELU or SiLU, times a factor per feature |
//! | [`Embedding`] | the rows of a table that token ids name |
//! | [`AddResidual`] | `residual += deltas` |
//! | [`Rotate`] | rotary embedding of the first heads of a row, in place |
//!
//! [`Norm`] and [`Activate`] can quantize what they write: the next matrix product then finds its e4m3 codes, one scale a
//! token and group sums ready, and no 16-bit activation visits memory in between.
//!
//! ```text
//!            bf16 [tokens, features]                 e4m3 [tokens, features], f32 scales, f32 group sums
//! residual ──┬──► + deltas ──► norm ──► absmax ──► codes ──► group sums ──►  next product
//!            ◄──┘ (written back)        one row stays in registers throughout
//! ```
//!
//! [`Rotary`] gives the inverse frequencies of a model's rotary embedding and [`alibi_slopes`] its ALiBi slopes, both as
//! Hugging Face transformers computes them.
//!
//! Every plan has `reference` on host slices (f32 rows) and, with feature `cuda`, `launch` on device slices (bf16 rows).
//!
//! ```
//! use layers::Norm;
//!
//! let norm = Norm::rms(4, 0.0)?;
//! let (mut residual, delta) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, -1.0, -2.0]);
//! let mut output = [0.0; 4];
//! norm.reference(&[1.0; 4], None, &[&delta], &mut residual, &mut output)?;
//! assert_eq!(residual, [2.0; 4]);
//! assert_eq!(output, [1.0; 4]);
//! # device::Result::Ok(())
//! ```
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

mod activation;
mod embedding;
#[cfg(feature = "cuda")]
mod launch;
mod norm;
mod reference;
mod residual;
mod rotary;
mod rows;

pub use activation::{Activate, Activation};
pub use embedding::Embedding;
pub use norm::{Norm, NormKind};
pub use residual::AddResidual;
pub use rotary::{RopeScaling, Rotary, Rotate, alibi_slopes};
