//! Who holds which page.

use crate::prefix::{PrefixHash, PrefixHasher};
use std::collections::{BTreeMap, HashMap};

/// Why a page could not be had or given back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocatorError {
    /// The pool is exhausted; nothing was taken.
    #[error("block allocator: {requested} pages requested, {free} free of {pages}")]
    OutOfPages {
        /// Pages asked for.
        requested: usize,
        /// Pages that could have been had.
        free: usize,
        /// Pages in the pool.
        pages: usize,
    },
    /// More pages than page numbers.
    #[error("block allocator: pages: expected at most {}, got {pages}", u32::MAX)]
    TooManyPages {
        /// What came.
        pages: usize,
    },
    /// A page number outside the pool.
    #[error("block allocator: page {page} of a pool of {pages}")]
    UnknownPage {
        /// What came.
        page: u32,
        /// Pages in the pool.
        pages: usize,
    },
    /// A page that nobody holds: a second release, or a stale number.
    #[error("block allocator: page {page} is not held by anybody")]
    NotHeld {
        /// What came.
        page: u32,
    },
    /// A page was published, and the tokens that came now are not those it was published with.
    #[error("block allocator: page {page} is published with other tokens")]
    OtherTokens {
        /// The page.
        page: u32,
    },
    /// More tokens than a sequence can have.
    #[error("block table: {tokens} tokens in the cache and {more} more overflow")]
    TooManyTokens {
        /// Tokens in the table.
        tokens: usize,
        /// Tokens to be appended.
        more: usize,
    },
    /// A sequence cannot be cut to more tokens than it has, nor published with fewer.
    #[error("block table: expected {expected} tokens, got {got}")]
    WrongTokens {
        /// What would have been accepted.
        expected: String,
        /// What came.
        got: usize,
    },
}

/// Hands out the pages of a pool, counted by reference.
///
/// ```text
///            allocate                      share
///   free ───────────────► held (1..n references) ◄──┐
///    ▲ ▲                    │        ▲    └─────────┘
///    │ └── last release ────┤        │ share (a prompt with the same prefix)
///    │     (not published)  │        │
///    │                      ▼        │
///    └─ evicted, oldest ── cached (published, no references)
/// ```
///
/// A full page whose tokens are known can be *published* ([`crate::BlockTable::publish`]): it then stays readable after
/// its last release, until the pool needs it. Every page is in exactly one of the three states.
///
/// Page numbers are those of [`device::BatchView::block_tables`].
#[derive(Debug, Clone)]
pub struct BlockAllocator {
    pages: Vec<Page>,
    /// A stack: the page released last is the one still warm in a cache.
    free: Vec<u32>,
    /// Cached pages by the moment of their last release.
    idle: BTreeMap<u64, u32>,
    /// Published pages by content.
    published: HashMap<PrefixHash, u32>,
    hasher: PrefixHasher,
    /// Counts releases.
    clock: u64,
}

#[derive(Debug, Clone, Default)]
struct Page {
    references: usize,
    published: Option<PrefixHash>,
    /// The key in `idle` while cached.
    idle_since: u64,
}

impl BlockAllocator {
    /// An allocator for `pages` pages, all free. Fails beyond `u32::MAX` pages.
    pub fn new(pages: usize) -> Result<Self, AllocatorError> {
        let count = u32::try_from(pages).map_err(|_| AllocatorError::TooManyPages { pages })?;
        Ok(Self {
            pages: vec![Page::default(); pages],
            free: (0..count).rev().collect(),
            idle: BTreeMap::new(),
            published: HashMap::new(),
            hasher: PrefixHasher::default(),
            clock: 0,
        })
    }

    /// Pages in the pool.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Pages that [`Self::allocate_many`] can hand out now: the free and the cached ones.
    pub fn free_pages(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Those of [`Self::free_pages`] that still hold a published prefix.
    pub fn cached_pages(&self) -> usize {
        self.idle.len()
    }

    /// How many hold `page`; 0 for a free or cached page and for one outside the pool.
    pub fn references(&self, page: u32) -> usize {
        self.pages.get(page as usize).map_or(0, |page| page.references)
    }

    /// One page with one reference.
    pub fn allocate(&mut self) -> Result<u32, AllocatorError> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => self.evict().ok_or_else(|| self.out_of_pages(1))?,
        };
        self.page_mut(page)?.references = 1;
        Ok(page)
    }

    /// Appends `count` pages with one reference each to `pages`, or takes nothing.
    pub fn allocate_many(&mut self, count: usize, pages: &mut Vec<u32>) -> Result<(), AllocatorError> {
        if count > self.free_pages() {
            return Err(self.out_of_pages(count));
        }
        for _ in 0..count {
            pages.push(self.allocate()?);
        }
        Ok(())
    }

    /// One more reference to a held page.
    pub fn share(&mut self, page: u32) -> Result<(), AllocatorError> {
        match self.page_mut(page)? {
            Page { references: 0, .. } => Err(AllocatorError::NotHeld { page }),
            held => {
                held.references += 1;
                Ok(())
            }
        }
    }

    /// One reference less. With the last one the page becomes free, or cached where it was published.
    pub fn release(&mut self, page: u32) -> Result<(), AllocatorError> {
        self.clock += 1;
        let now = self.clock;
        let held = self.page_mut(page)?;
        match held.references {
            0 => return Err(AllocatorError::NotHeld { page }),
            1 => {
                held.references = 0;
                if held.published.is_some() {
                    held.idle_since = now;
                    self.idle.insert(now, page);
                } else {
                    self.free.push(page);
                }
            }
            _ => held.references -= 1,
        }
        Ok(())
    }

    /// Whether writing into `page` would be seen by others: other holders, or prompts to come.
    pub fn is_shared(&self, page: u32) -> bool {
        self.pages.get(page as usize).is_some_and(|page| page.references > 1 || page.published.is_some())
    }

    /// One more reference to the page published as `prefix`, if there is one.
    pub(crate) fn share_published(&mut self, prefix: PrefixHash) -> Option<u32> {
        let &page = self.published.get(&prefix)?;
        let found = self.pages.get_mut(page as usize)?;
        if found.references == 0 {
            self.idle.remove(&found.idle_since);
        }
        found.references += 1;
        Some(page)
    }

    /// Publishes the held `page` as `prefix`; the caller has made sure that none is published as that.
    pub(crate) fn publish(&mut self, page: u32, prefix: PrefixHash) -> Result<(), AllocatorError> {
        match self.page_mut(page)? {
            Page { references: 0, .. } => Err(AllocatorError::NotHeld { page }),
            Page { published: Some(_), .. } => Err(AllocatorError::OtherTokens { page }),
            held => {
                held.published = Some(prefix);
                self.published.insert(prefix, page);
                Ok(())
            }
        }
    }

    pub(crate) fn hasher(&self) -> &PrefixHasher {
        &self.hasher
    }

    /// Takes the cached page that was released first.
    fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.idle.pop_first()?;
        let prefix = self.pages.get_mut(page as usize)?.published.take()?;
        self.published.remove(&prefix);
        Some(page)
    }

    fn out_of_pages(&self, requested: usize) -> AllocatorError {
        AllocatorError::OutOfPages { requested, free: self.free_pages(), pages: self.pages() }
    }

    fn page_mut(&mut self, page: u32) -> Result<&mut Page, AllocatorError> {
        let pages = self.pages.len();
        self.pages.get_mut(page as usize).ok_or(AllocatorError::UnknownPage { page, pages })
    }
}
