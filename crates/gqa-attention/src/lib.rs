//! Attention.
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

mod attention;
mod reference;

pub use attention::{Attention, AttentionOptions, AttentionShape};
