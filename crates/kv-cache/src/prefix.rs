//! What a published page is found by.

use device::PAGE_SIZE;
use std::sync::Arc;

/// The key of a published page: its own 64 tokens and, through the page before it, all the tokens before those.
///
/// ```text
///   Root(salt) ◄── [64 tokens] ◄── [64 tokens] ◄── [64 tokens]
///                  page 9, id 3    page 4, id 5    page 6, id 8
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Prefix {
    pub parent: Parent,
    pub tokens: [u32; PAGE_SIZE],
}

/// What came before a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Parent {
    /// Nothing. Sequences of different salts share no page.
    Root(u64),
    /// The published page of this id. An id is never given to a second page, not even to one of equal content: a
    /// page whose parent was evicted cannot be reached by any other text.
    Page(u64),
}

/// A page's entry among the published.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub key: Arc<Prefix>,
    pub id: u64,
}
