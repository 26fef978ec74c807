//! What every op stands on.
//!
//! Always there: the 8-bit float types ([`E4m3`], [`E5m2`]), the element trait ([`Element`]), the plain views that
//! ops exchange ([`KvLayout`], [`KvPages`], [`BatchView`], [`QuantizedActivation`]) and the one error type
//! ([`Error`]). With feature `cuda`: the GPU side in [`gpu`].
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

mod card;
mod check;
mod element;
mod error;
mod float8;
pub mod gpu;
mod position;
mod quantize;
mod random;
mod views;

pub use card::Card;
pub use check::Check;
pub use element::Element;
pub use error::{ArgumentError, Error, Result};
pub use float8::{E4m3, E5m2};
pub use position::{alibi_bias, rotate_head};
pub use quantize::{quantize_row, scale_of_row};
pub use random::{NEAR_NORMAL_DEVIATION, NEAR_NORMAL_MAX, near_normal, random_bits};
pub use views::{ActivationShape, BatchView, KvLayout, KvPages, PAGE_SIZE, QuantizedActivation};
