//! What had to leave the device and can come back.

use crate::prefix::PrefixHash;
use std::collections::{BTreeMap, HashMap};

/// The pages of the host's pool and what they hold: contents that were evicted from the device, until newer ones need the
/// place.
///
/// A content that came back keeps its place here as well. Where it is evicted again nothing has to be copied, as published
/// pages are never written.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostTier {
    pages: usize,
    /// A stack.
    free: Vec<u32>,
    held: HashMap<PrefixHash, Held>,
    /// What may go, by the moment it last left the device.
    oldest: BTreeMap<u64, PrefixHash>,
    /// Counts evictions from the device.
    clock: u64,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    page: u32,
    /// The key in `oldest`, unless held fast.
    since: u64,
}

impl HostTier {
    pub fn new(pages: u32) -> Self {
        // The highest is taken first: a chain leaves from its end, so its pages come to lie in the order of its tokens and
        // are copied in one piece.
        Self { pages: pages as usize, free: (0..pages).collect(), ..Self::default() }
    }

    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Pages that hold something.
    pub fn held_pages(&self) -> usize {
        self.held.len()
    }

    /// Where `prefix` lies.
    pub fn page(&self, prefix: PrefixHash) -> Option<u32> {
        self.held.get(&prefix).map(|held| held.page)
    }

    /// Keeps what leaves the device as `prefix`; the page it is to be copied to, where it is not here already and there is room.
    pub fn keep(&mut self, prefix: PrefixHash) -> Option<u32> {
        self.clock += 1;
        let since = self.clock;
        if let Some(held) = self.held.get_mut(&prefix) {
            self.oldest.remove(&held.since);
            held.since = since;
            self.oldest.insert(since, prefix);
            return None;
        }
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, dropped) = self.oldest.pop_first()?;
                self.held.remove(&dropped)?.page
            }
        };
        self.held.insert(prefix, Held { page, since });
        self.oldest.insert(since, prefix);
        Some(page)
    }

    /// Holds `prefix` fast; false where it is not here.
    pub fn hold(&mut self, prefix: PrefixHash) -> bool {
        let held = self.held.get(&prefix);
        if let Some(held) = held {
            self.oldest.remove(&held.since);
        }
        held.is_some()
    }

    /// Lets go of what was held fast, in its old order.
    pub fn let_go(&mut self, prefix: PrefixHash) {
        if let Some(held) = self.held.get(&prefix) {
            self.oldest.insert(held.since, prefix);
        }
    }
}
