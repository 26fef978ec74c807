//! The paged KV cache.
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

mod allocator;
mod block_table;
mod prefix;

pub use allocator::{AllocatorError, BlockAllocator};
pub use block_table::{BlockTable, CopyPage};
