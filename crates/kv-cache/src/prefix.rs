//! What a published page is found by.

use device::PAGE_SIZE;
use std::hash::{BuildHasher, RandomState};

/// Stands for all tokens of a sequence up to the end of a page, and for its salt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PrefixHash([u64; 2]);

/// Chains the hashes of pages:
///
/// ```text
///   salt ──► hash ◄── 64 tokens of page 0
///             └─────► hash ◄── 64 tokens of page 1
///                      └─────► ..
/// ```
///
/// 128 bits of SipHash (Aumasson and Bernstein 2012) under two keys drawn at random with the allocator and shown to nobody. A
/// page of another text would only be taken for this one if both halves agreed: among n pages by chance with
/// a probability below n^2 / 2^129, and nobody can look for such texts without the keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct PrefixHasher([RandomState; 2]);

impl PrefixHasher {
    /// The hash of no tokens.
    pub fn root(&self, salt: u128) -> PrefixHash {
        PrefixHash(self.0.each_ref().map(|key| key.hash_one(salt)))
    }

    /// The hash of what `parent` stands for and one more page.
    pub fn page(&self, parent: PrefixHash, tokens: &[u32; PAGE_SIZE]) -> PrefixHash {
        PrefixHash(self.0.each_ref().map(|key| key.hash_one((parent, tokens))))
    }

    /// The hashes of the whole pages of `tokens`, but for the last token: a step needs at least one to compute.
    pub fn reusable(&self, salt: u128, tokens: &[u32]) -> impl Iterator<Item = PrefixHash> {
        let whole = tokens[..tokens.len().saturating_sub(1)].as_chunks().0;
        whole.iter().scan(self.root(salt), |parent, page| {
            *parent = self.page(*parent, page);
            Some(*parent)
        })
    }
}
