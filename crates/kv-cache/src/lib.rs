//! The paged KV cache: who holds which page, and what is written into it.
//!
//! ```text
//!   host    BlockAllocator ── pages ──► BlockTable: one sequence     [ 7 | 2 | 9 ]
//!                                                                     │   │   └ tokens 128..
//!   device  pool of one layer, [page][kv_head] blocks                 │   └──── tokens 64..128
//!           │ page 0 │ page 1 │ page 2 │ ...  ◄───────────────────────┴──────── tokens 0..64
//! ```
//!
//! - [`BlockAllocator`] and [`BlockTable`] are plain host logic: pages of 64 tokens counted by reference, prompts that
//!   share the pages of equal prefixes, forks that copy on write, eviction of what was used least recently, into host
//!   memory where there are pages for it.
//! - [`CopyPages`] makes the copies that the allocator asks for, among the device's pages and between them and the host's.
//! - [`RopeAppend`] is the step that fills pages: it splits fused QKV rows, rotates queries and keys, and stores keys and
//!   values in the layout ([`device::KvLayout`]) that the attention kernels read. One allocator serves all
//!   layers: a page number means the same place in each layer's pool.
//!
//! ```
//! use device::{BatchView, KvLayout, KvPages};
//! use kv_cache::{BlockAllocator, BlockTable, RopeAppend};
//!
//! // One sequence of three tokens in a cache of two pages, 2 query heads and 1 KV head of 4 dims.
//! let mut allocator = BlockAllocator::new(2)?;
//! let mut table = BlockTable::new();
//! table.append_tokens(&mut allocator, 3)?;
//!
//! let layout = KvLayout::new(1, 4)?;
//! let mut pool = vec![0f32; 2 * layout.page_elements()];
//! let mut pages = KvPages { layout, pool: &mut pool[..], key_scales: &[1.0][..], value_scales: &[1.0][..] };
//! let batch = BatchView {
//!     block_tables: table.pages(),
//!     max_pages: 1,
//!     context_lens: &[3][..],
//!     query_offsets: &[0, 3][..],
//! };
//! // Each row: two heads of q, one of k, one of v.
//! let qkv = [[1.0; 4], [2.0; 4], [3.0; 4], [4.0; 4]].concat().repeat(3);
//! let mut queries = [0.0; 3 * 2 * 4];
//! let append = RopeAppend::new(2, layout, 4)?;
//! append.reference(&qkv, &[1.0, 0.01], &batch, &mut queries, &mut pages)?;
//!
//! let (page, slot) = batch.place(0, 2);
//! assert_eq!(pool[layout.value::<f32>(page, 0, slot, 3)], 4.0);
//! // A rotation keeps lengths: 3^2 + 3^2.
//! let [low, high] = [0, 2].map(|dim| pool[layout.key::<f32>(page, 0, slot, dim)]);
//! assert!((low * low + high * high - 18.0).abs() < 1e-4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

mod allocator;
mod append;
mod block_table;
mod copy;
mod host;
#[cfg(feature = "cuda")]
mod launch;
mod prefix;
mod reference;

pub use allocator::{AllocatorError, BlockAllocator};
pub use append::RopeAppend;
pub use block_table::BlockTable;
pub use copy::{CopyPage, CopyPages, Direction};
