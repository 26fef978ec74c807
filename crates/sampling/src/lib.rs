//! Logits to tokens: greedy, temperature, top-k, top-p, min-p, penalties, log-probabilities.
//!
//! ```text
//! logits ─┬─► repetition penalty ─► presence, frequency ─► bias ─► / temperature ─► top-k ─► top-p ─► min-p ─► draw ─► token
//!         │                                                  └──── temperature 0: the largest, lowest id on ties ────►
//!         └─► log-softmax ─► log-probabilities (of the model's own distribution, before all of the above)
//! ```
//!
//! [`Sampler`] treats one row with all options; [`BatchSampler`] a batch of rows with options of their own, and [`Argmax`]
//! greedily, both on the device too.
//!
//! Repeatable: the random number of a draw depends on the seed and the number of the draw alone ([`uniform`]), ties go to
//! the lowest token id, and the draw walks the kept tokens in the order of their ids. So a request that is computed again
//! goes on as it would have, whatever it is batched with.
//!
//! ```
//! use sampling::{History, Params, Sampler};
//!
//! let params = Params { temperature: 0.7, top_k: 2, seed: 7, logprobs: Some(1), ..Params::default() };
//! let sampler = Sampler::new(4, &params)?;
//! let history = History { tokens: &[3, 1], prompt_len: 2 };
//! let sampled = sampler.sample(&[0.5, 2.0, -1.0, 1.5], history, 0)?;
//! assert!(sampled.token == 1 || sampled.token == 3);
//! assert_eq!(sampled.top_logprobs[0].token, 1);
//! # device::Result::Ok(())
//! ```
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

mod argmax;
mod batch;
mod candidates;
#[cfg(feature = "cuda")]
mod launch;
mod params;
mod philox;
mod sampler;

pub use argmax::{Argmax, NO_TOKEN};
pub use batch::{BatchSampler, RowParams, Rows};
#[cfg(feature = "cuda")]
pub use launch::{BatchWorkspace, Logit};
pub use params::Params;
pub use philox::{philox4x32, uniform};
pub use sampler::{History, Sampled, Sampler, TokenLogprob};
