//! The pages of one sequence.

use crate::prefix::PrefixHash;
use crate::{AllocatorError, BlockAllocator};
use device::PAGE_SIZE;

/// The pages of one sequence, in order: token `t` lies in `pages()[t / 64]` at place `t % 64`.
///
/// A table does not give its pages back by itself: end it with [`Self::release`].
///
/// ```
/// use kv_cache::{BlockAllocator, BlockTable};
///
/// let mut allocator = BlockAllocator::new(8)?;
/// let mut table = BlockTable::new();
/// table.append_tokens(&mut allocator, 65)?;
/// assert_eq!(table.pages().len(), 2);
///
/// // A fork shares both pages; who writes first into the half-full one gets a copy of it.
/// let mut fork = table.fork(&mut allocator)?;
/// fork.append_tokens(&mut allocator, 1)?;
/// let copies = allocator.take_copies();
/// assert_eq!((copies[0].from, copies[0].to), (table.pages()[1], fork.pages()[1]));
/// assert_eq!(allocator.free_pages(), 5);
///
/// fork.release(&mut allocator)?;
/// table.release(&mut allocator)?;
/// assert_eq!(allocator.free_pages(), 8);
/// # Ok::<(), kv_cache::AllocatorError>(())
/// ```
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    pages: Vec<u32>,
    tokens: usize,
    /// Those of `pages`, from the first, that are full and known to be published.
    published: Vec<PrefixHash>,
    salt: u128,
}

impl BlockTable {
    /// A sequence without tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// A sequence that starts with the longest published prefix of `tokens` in whole pages, and without its last
    /// token: a step needs at least one to compute. Take [`Self::tokens`] as the number of tokens already in the
    /// cache. Pages that only the host has are brought back ([`BlockAllocator::take_copies`]), as far as there are free ones.
    ///
    /// Only sequences of the same `salt` share pages. Give tenants salts of their own where the time of an answer must
    /// not tell one what another has asked.
    pub fn with_prefix(allocator: &mut BlockAllocator, salt: u128, tokens: &[u32]) -> Self {
        let (published, pages): (Vec<_>, Vec<_>) = allocator.share_prefixes(salt, tokens).into_iter().unzip();
        Self { tokens: pages.len() * PAGE_SIZE, pages, published, salt }
    }

    /// How many of the pages that [`Self::with_prefix`] would start with are held by others: as many fewer are taken from the
    /// free ones.
    pub fn held_prefix(allocator: &BlockAllocator, salt: u128, tokens: &[u32]) -> usize {
        allocator.held_prefixes(salt, tokens)
    }

    /// The pages, `tokens().div_ceil(64)` of them.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Tokens in the cache.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Pages that [`Self::append_tokens`] would take from the allocator for `count` tokens.
    pub fn pages_to_append(&self, allocator: &BlockAllocator, count: usize) -> usize {
        let grown = self.tokens.saturating_add(count).div_ceil(PAGE_SIZE);
        let copied = usize::from(count > 0 && self.page_to_copy(allocator).is_some());
        grown - self.pages.len() + copied
    }

    /// Makes room for `count` more tokens, or changes nothing. Where the last page is half full and others read it,
    /// the sequence gets a page of its own, into which the content is to be copied ([`BlockAllocator::take_copies`]).
    pub fn append_tokens(
        &mut self,
        allocator: &mut BlockAllocator,
        count: usize,
    ) -> Result<(), AllocatorError> {
        let too_many = AllocatorError::TooManyTokens { tokens: self.tokens, more: count };
        let tokens = self.tokens.checked_add(count).ok_or(too_many)?;
        let from = self.page_to_copy(allocator).filter(|_| count > 0);
        let held = self.pages.len();
        allocator.allocate_many(self.pages_to_append(allocator, count), &mut self.pages)?;
        self.tokens = tokens;
        let Some(from) = from else { return Ok(()) };
        let to = self.pages.swap_remove(held - 1);
        // `swap_remove` put the newest page in the place of the shared one.
        debug_assert_eq!(to, from);
        allocator.copy_on_write(from, self.pages[held - 1]);
        allocator.release(from)
    }

    /// A second sequence over the same tokens, sharing every page.
    pub fn fork(&self, allocator: &mut BlockAllocator) -> Result<Self, AllocatorError> {
        if let Some(&page) = self.pages.iter().find(|&&page| allocator.references(page) == 0) {
            return Err(AllocatorError::NotHeld { page });
        }
        for &page in &self.pages {
            allocator.share(page)?;
        }
        let (pages, published) = (self.pages.clone(), self.published.clone());
        Ok(Self { pages, published, ..*self })
    }

    /// Forgets all but the first `tokens` tokens, and gives back the pages behind them.
    pub fn truncate(&mut self, allocator: &mut BlockAllocator, tokens: usize) -> Result<(), AllocatorError> {
        if tokens > self.tokens {
            return Err(AllocatorError::WrongTokens {
                expected: format!("at most {}", self.tokens),
                got: tokens,
            });
        }
        // From the end: of a cached chain the last page is to be evicted first, as none can be found without those
        // before it.
        while self.pages.len() > tokens.div_ceil(PAGE_SIZE) {
            if let Some(page) = self.pages.pop() {
                allocator.release(page)?;
            }
        }
        self.tokens = tokens;
        self.published.truncate(tokens / PAGE_SIZE);
        Ok(())
    }

    /// Gives all pages back and leaves a sequence without tokens.
    pub fn release(&mut self, allocator: &mut BlockAllocator) -> Result<(), AllocatorError> {
        self.truncate(allocator, 0)
    }

    /// Publishes every page that `tokens` fill, so that later sequences can start with it. `tokens` are the sequence's tokens
    /// from its start, as far as their keys and values are written.
    ///
    /// Where equal content is published already, the sequence takes that page and gives its own back. Fails on a page
    /// that was published with other tokens.
    pub fn publish(&mut self, allocator: &mut BlockAllocator, tokens: &[u32]) -> Result<(), AllocatorError> {
        if tokens.len() > self.tokens {
            let expected = format!("at most {}", self.tokens);
            return Err(AllocatorError::WrongTokens { expected, got: tokens.len() });
        }
        for (page, tokens) in tokens.as_chunks().0.iter().enumerate().skip(self.published.len()) {
            let prefix = self.prefix(allocator, tokens);
            let own = self.pages[page];
            match allocator.share_published(prefix) {
                Some(equal) => {
                    self.pages[page] = equal;
                    allocator.release(own)?;
                }
                None => allocator.publish(own, prefix)?,
            }
            self.published.push(prefix);
        }
        Ok(())
    }

    /// The prefix that ends with `tokens`, the page after the published ones.
    fn prefix(&self, allocator: &BlockAllocator, tokens: &[u32; PAGE_SIZE]) -> PrefixHash {
        let hasher = allocator.hasher();
        let parent = self.published.last().copied().unwrap_or_else(|| hasher.root(self.salt));
        hasher.page(parent, tokens)
    }

    /// The last page, where it is half full and shared.
    fn page_to_copy(&self, allocator: &BlockAllocator) -> Option<u32> {
        let &last = self.pages.last()?;
        (!self.tokens.is_multiple_of(PAGE_SIZE) && allocator.is_shared(last)).then_some(last)
    }
}
