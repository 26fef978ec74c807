//! Who holds which page.

use crate::host::HostTier;
use crate::prefix::{PrefixHash, PrefixHasher};
use crate::{CopyPage, Direction};
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
    /// A sequence cannot be cut to more tokens than it has, nor published with more.
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
///   device    allocate                      share
///    free ───────────────► held (1..n references) ◄──┐
///     ▲ ▲                    │        ▲  ▲ └─────────┘
///     │ └── last release ────┤        │  └──────────────────────┐
///     │     (not published)  │        │ share                   │ share: a page is allocated,
///     │                      ▼        │ (an equal beginning)    │ the content copied back
///     └─ evicted, oldest ── cached (published, no references)   │
///               │                                               │
///   ------------│-----------------------------------------------│-------------------------------
///   host        └ copied ─► kept ───────────────────────────────┘
///                            └─ dropped, oldest, for what is evicted later
/// ```
///
/// A full page whose tokens are known can be *published* ([`crate::BlockTable::publish`]): it then stays readable after
/// its last release, until the pool needs it. Every page of the device is in exactly one of the three states. With host pages
/// ([`Self::with_host_pages`]) a content outlives its eviction there.
///
/// The allocator moves no bytes: what has to be copied is told by [`Self::take_copies`].
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
    host: HostTier,
    /// What is to be copied before the next step.
    copies: Vec<CopyPage>,
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
            host: HostTier::default(),
            copies: Vec::new(),
            hasher: PrefixHasher::default(),
            clock: 0,
        })
    }

    /// The same, with `pages` pages of host memory for what is evicted. Fails beyond `u32::MAX` pages.
    pub fn with_host_pages(self, pages: usize) -> Result<Self, AllocatorError> {
        let count = u32::try_from(pages).map_err(|_| AllocatorError::TooManyPages { pages })?;
        Ok(Self { host: HostTier::new(count), ..self })
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

    /// Pages in the host's pool.
    pub fn host_pages(&self) -> usize {
        self.host.pages()
    }

    /// Those of the host's pages that hold a published prefix.
    pub fn host_cached_pages(&self) -> usize {
        self.host.held_pages()
    }

    /// Takes what is to be copied, in every layer, in this order, before the step that follows writes into any page.
    pub fn take_copies(&mut self) -> Vec<CopyPage> {
        std::mem::take(&mut self.copies)
    }

    /// Forgets all that was published, on the device and on the host, and the copies that nobody has taken: for when what is
    /// in the pages is no longer known. Pages that are held stay held.
    pub fn forget_published(&mut self) {
        self.pages.iter_mut().for_each(|page| page.published = None);
        self.published.clear();
        self.free.extend(std::mem::take(&mut self.idle).into_values());
        self.host = HostTier::new(self.host.pages() as u32);
        self.copies.clear();
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
        match self.page_mut(page)? {
            Page { references: 0, .. } => Err(AllocatorError::NotHeld { page }),
            _ => {
                self.drop_reference(page);
                Ok(())
            }
        }
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

    /// One more reference to each page of the longest beginning of `prefixes` that is published, on the device or on the host.
    /// What only the host has gets a page of the device, to be copied into; where there is none left, the beginning ends.
    pub(crate) fn share_prefixes(&mut self, salt: u128, tokens: &[u32]) -> Vec<(PrefixHash, u32)> {
        // First all of it is held fast: room for one page must not be made by dropping the next.
        let mut found = Vec::new();
        for prefix in self.hasher.clone().reusable(salt, tokens) {
            let page = self.share_published(prefix);
            if page.is_none() && !self.host.hold(prefix) {
                break;
            }
            found.push((prefix, page));
        }
        let on_device =
            |&(prefix, page): &(_, Option<u32>)| Some((prefix, page.or_else(|| self.restore(prefix))?));
        let shared: Vec<(PrefixHash, u32)> = found.iter().map_while(on_device).collect();
        // From the end, as a table gives its pages back.
        for (index, (prefix, page)) in found.into_iter().enumerate().rev() {
            match page {
                None => self.host.let_go(prefix),
                Some(page) if index >= shared.len() => self.drop_reference(page),
                Some(_) => {}
            }
        }
        shared
    }

    /// Of that beginning, the pages that somebody holds.
    pub(crate) fn held_prefixes(&self, salt: u128, tokens: &[u32]) -> usize {
        let found = |prefix: PrefixHash| match self.published.get(&prefix) {
            Some(&page) => Some(usize::from(self.references(page) > 0)),
            None => self.host.page(prefix).map(|_| 0),
        };
        self.hasher.reusable(salt, tokens).map_while(found).sum()
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

    /// Has `from` copied over `to`, both on the device.
    pub(crate) fn copy_on_write(&mut self, from: u32, to: u32) {
        self.copies.push(CopyPage { from, to, direction: Direction::OnDevice });
    }

    pub(crate) fn hasher(&self) -> &PrefixHasher {
        &self.hasher
    }

    /// Takes the cached page that was released first; its content goes to the host where there is room.
    fn evict(&mut self) -> Option<u32> {
        let (_, from) = self.idle.pop_first()?;
        let prefix = self.pages.get_mut(from as usize)?.published.take()?;
        self.published.remove(&prefix);
        if let Some(to) = self.host.keep(prefix) {
            self.copies.push(CopyPage { from, to, direction: Direction::ToHost });
        }
        Some(from)
    }

    /// Brings `prefix` back from the host, with one reference.
    fn restore(&mut self, prefix: PrefixHash) -> Option<u32> {
        let from = self.host.page(prefix)?;
        let to = self.allocate().ok()?;
        self.pages.get_mut(to as usize)?.published = Some(prefix);
        self.published.insert(prefix, to);
        self.copies.push(CopyPage { from, to, direction: Direction::ToDevice });
        Some(to)
    }

    /// [`Self::release`] of a page that is held.
    fn drop_reference(&mut self, page: u32) {
        self.clock += 1;
        let Some(held) = self.pages.get_mut(page as usize) else { return };
        held.references -= 1;
        if held.references > 0 {
            return;
        }
        if held.published.is_some() {
            held.idle_since = self.clock;
            self.idle.insert(self.clock, page);
        } else {
            self.free.push(page);
        }
    }

    fn out_of_pages(&self, requested: usize) -> AllocatorError {
        AllocatorError::OutOfPages { requested, free: self.free_pages(), pages: self.pages() }
    }

    fn page_mut(&mut self, page: u32) -> Result<&mut Page, AllocatorError> {
        let pages = self.pages.len();
        self.pages.get_mut(page as usize).ok_or(AllocatorError::UnknownPage { page, pages })
    }
}
