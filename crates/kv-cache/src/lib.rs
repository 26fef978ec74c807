//! The paged KV cache.
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

mod allocator;
mod append;
mod block_table;
mod prefix;
mod reference;

pub use allocator::{AllocatorError, BlockAllocator};
pub use append::RopeAppend;
pub use block_table::{BlockTable, CopyPage};
