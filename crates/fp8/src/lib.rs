//! The 8-bit floats, quantization to them, and the products of linear layers: FP8 x FP8, and 16-bit beside it.
//!
//! ```text
//! Quantize      codes[t][f] = e4m3(x[t][f] / scale[t])          scale[t] = max |x[t]| / 448, or given
//! Fp8Product    y[t][n]     = scale_x[t] * scale_w[n] * sum over k of code_x[t][k] * code_w[n][k] + bias[n]
//! DenseProduct  y[t][n]     =                           sum over k of      x[t][k] *      w[n][k] + bias[n]
//!
//!               in_features
//!          x  [ t t t t t t t ]  tokens        w  [ n n n n n n n ]  out_features        y  [ ..... ]  tokens
//!             row-major                           row-major (as checkpoints store it)       out_features
//! ```
//!
//! Every plan checks its shape once and then runs as `reference` on host slices or, with feature `cuda`, as `launch` on
//! a stream.
//!
//! ```
//! use device::{ActivationShape, E4m3, QuantizedActivation};
//! use fp8::{Fp8Product, Quantize};
//!
//! // Two tokens of four features, quantized per token.
//! let x = [1.0, 2.0, 3.0, 4.0, -0.5, 0.0, 0.25, 0.5];
//! let (mut codes, mut scales) = ([E4m3::default(); 8], [0.0; 2]);
//! let shape = ActivationShape { tokens: 2, features: 4, group_size: 0 };
//! let mut quantized =
//!     QuantizedActivation { shape, codes: &mut codes[..], scales: &mut scales[..], group_sums: &mut [][..] };
//! Quantize::per_token(4)?.reference(&x, &mut quantized)?;
//! assert_eq!(scales, [4.0 / 448.0, 0.5 / 448.0]);
//!
//! // One output feature: the sum of the inputs, halved.
//! let weights = [E4m3::from_f32(1.0); 4];
//! let quantized = QuantizedActivation { shape, codes: &codes[..], scales: &scales[..], group_sums: &[][..] };
//! let mut y = [0.0; 2];
//! Fp8Product::new(4, 1)?.reference(&quantized, &weights, &[0.5], None, &mut y)?;
//! assert!((y[0] - 5.0).abs() < 0.1 && (y[1] - 0.125).abs() < 0.01);
//! # Ok::<(), device::Error>(())
//! ```
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

mod product;
mod quantize;
mod reference;
mod synthetic;

#[cfg(feature = "cuda")]
mod launch;

pub use device::{E4m3, E5m2};
pub use product::{DenseProduct, Fp8Product};
pub use quantize::{Quantize, ScaleChoice};
pub use synthetic::SyntheticWeights;
