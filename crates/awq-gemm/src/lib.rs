//! INT4 AWQ weights: formats, packing and its inverse, the W4A8 and W4A16 products.
//!
//! Weights are kept as 4-bit codes with a scale and a zero point to every group of `group_size` input features of
//! one output feature:
//!
//! ```text
//! w[n][k] = (code[n][k] - zero[n][g]) * scale[n][g]        g = k / group_size,  code and zero in 0..=15
//!
//!             in_features (k) ->
//!           +-----------+-----------+--
//!  out_     | group 0   | group 1   |        codes   u8  [out_features, in_features]
//!  features | of row 0  | of row 0  |        zeros   u8  [out_features, groups]
//!   (n)     +-----------+-----------+--      scales  f32 [out_features, groups]
//!    |      | group 0   | group 1   |
//!    v      | of row 1  | of row 1  |        groups = in_features / group_size
//! ```
//!
//! - [`Int4Weights`] is that, checked once at construction.
//! - [`formats`] reads and writes it as the tensors of AutoAWQ, compressed-tensors and ModelOpt checkpoints.
//! - [`quantize`] makes it from plain weights.
//! - [`PackedWeights`] is the order in which the W4A8 kernel reads it.
//! - [`W4A8`] multiplies it with e4m3 activations, [`W4A16`] with 16-bit ones; neither rounds a weight.
//!
//! ```
//! use awq_gemm::{Int4Shape, W4A16, quantize};
//!
//! // One output feature, two groups of four input features.
//! let shape = Int4Shape::new(8, 1, 4)?;
//! let weights = quantize(shape, &[-7.0, 0.0, 8.0, 3.0, 0.5, 0.25, 0.0, 3.75])?;
//! assert_eq!(weights.codes(), [0, 7, 15, 10, 2, 1, 0, 15]);
//! assert_eq!(weights.zeros(), [7, 0]);
//! assert_eq!(weights.scales(), [1.0, 0.25]);
//!
//! // Two tokens times the transposed weights.
//! let x = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0];
//! let mut y = [0.0; 2];
//! W4A16::new(shape).reference(&x, &weights, None, &mut y)?;
//! assert_eq!(y, [0.5, 11.0]);
//! # Ok::<(), device::Error>(())
//! ```
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

pub mod formats;
#[cfg(feature = "cuda")]
mod launch;
mod pack;
mod product;
mod quantize;
mod reference;
mod synthetic;
mod weights;

#[cfg(feature = "cuda")]
pub use launch::{Activation, DeviceInt4Weights, DeviceTensors, Tiling, W4A8Workspace, W4A16Workspace};
pub use pack::{PackedWeights, f16_scales};
pub use product::{W4A8, W4A16};
pub use quantize::quantize;
pub use synthetic::SyntheticInt4;
pub use weights::{Int4Shape, Int4Weights, MAX_CODE};
