//! Attention over a paged KV cache: prefill, decode and anything between, for any number of query heads to a KV head.
//!
//! ```text
//! score[j]  = scale * (q · k[j] + bias[j])            bias: ALiBi's, or none
//! weight[j] = exp(score[j]) / sum over visible i of exp(score[i])
//! output    = sum over visible j of weight[j] * v[j]
//!
//! A query at position p sees the keys at max(0, p + 1 - window) ..= p:
//!
//!   position       0  1  2  3  4  5  6  7          window = 3
//!   query at 6                 x  x  x
//! ```
//!
//! Keys and values lie in pages of 64 tokens ([`device::KvLayout`]), each a stored element times its head's scale. A batch is
//! ragged ([`device::BatchView`]): every sequence brings its own number of new tokens (1 in a decode step, a chunk or all of
//! a prompt in prefill) on top of what it has in the cache, and one call serves them all.
//!
//! ```
//! use device::{BatchView, KvLayout, KvPages};
//! use gqa_attention::{Attention, AttentionOptions, AttentionShape};
//!
//! // 2 query heads on 1 KV head of 2 dims; a sequence of 2 tokens in page 0, the second of them new.
//! let layout = KvLayout::new(1, 2)?;
//! let mut pool = vec![f32::NAN; layout.page_elements()];
//! for (token, (key, value)) in [([0.0, 0.0], [1.0, 10.0]), ([1.0, 0.0], [3.0, 30.0])].into_iter().enumerate() {
//!     for dim in 0..2 {
//!         pool[layout.key::<f32>(0, 0, token, dim)] = key[dim];
//!         pool[layout.value::<f32>(0, 0, token, dim)] = value[dim];
//!     }
//! }
//! let pages = KvPages { layout, pool: &pool[..], key_scales: &[1.0][..], value_scales: &[1.0][..] };
//! let batch = BatchView {
//!     block_tables: &[0][..],
//!     max_pages: 1,
//!     context_lens: &[2][..],
//!     query_offsets: &[0, 1][..],
//! };
//!
//! let shape = AttentionShape { query_heads: 2, kv_heads: 1, head_dim: 2 };
//! let attention = Attention::new(shape, AttentionOptions { scale: Some(1.0), ..Default::default() })?;
//! // The first head scores both keys alike; the second prefers the second key by ln 3.
//! let queries = [0.0, 0.0, 3f32.ln(), 0.0];
//! let mut output = [0.0; 4];
//! attention.reference(&queries, &pages, &batch, &mut output, None)?;
//! assert!(output.iter().zip([2.0, 20.0, 2.5, 25.0]).all(|(got, want)| (got - want).abs() < 1e-5));
//! # device::Result::Ok(())
//! ```
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

mod attention;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(feature = "cuda")]
mod launch;
mod reference;

pub use attention::{Attention, AttentionOptions, AttentionShape};
#[cfg(feature = "cuda")]
pub use kernels::AttentionKernel;
#[cfg(feature = "cuda")]
pub use launch::AttentionWorkspace;
