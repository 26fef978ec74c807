//! A naive model of the allocator, its host pages and its tables, and random operations on both.

use device::PAGE_SIZE;
use kv_cache::{AllocatorError, BlockAllocator, BlockTable, CopyPage, Direction};
use op_test::Rng;
use std::collections::HashMap;

/// What the simulated cache holds for the next token: it depends on every token up to that one, as a real key does.
fn next_key(key: u64, token: u32) -> u64 {
    (key ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

fn keys(tokens: &[u32]) -> Vec<u64> {
    let next = |key: &mut u64, &token: &u32| {
        *key = next_key(*key, token);
        Some(*key)
    };
    tokens.iter().scan(17, next).collect()
}

/// How often the rare things happened, so that the test cannot pass by missing them.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    copied: usize,
    refused: usize,
    found: usize,
    evicted: usize,
    replaced: usize,
    /// Prefixes copied to the host, dropped there, copied back, and cut where no page was free for them.
    kept: usize,
    dropped: usize,
    restored: usize,
    cut: usize,
    forgotten: usize,
}

impl Seen {
    pub fn counts(&self) -> [usize; 10] {
        let Seen { copied, refused, found, evicted, replaced, kept, dropped, restored, cut, forgotten } =
            *self;
        [copied, refused, found, evicted, replaced, kept, dropped, restored, cut, forgotten]
    }
}

/// A sequence as the model knows it.
struct Sequence {
    table: BlockTable,
    tokens: Vec<u32>,
    salt: u128,
}

/// What is published: the salt and all tokens up to the page's end.
type Prefix = (u128, Vec<u32>);

/// The naive model: every rule as one plain loop over lists.
struct Model {
    allocator: BlockAllocator,
    /// The simulated keys: what was written into each slot.
    memory: Vec<[u64; PAGE_SIZE]>,
    /// The same in the host's pool.
    host: Vec<[u64; PAGE_SIZE]>,
    /// Copies that were told and not yet made.
    copies: Vec<CopyPage>,
    sequences: Vec<Sequence>,
    /// Pages held outside any table, once for every reference.
    loose: Vec<u32>,
    published: HashMap<u32, Prefix>,
    /// Published pages that nobody holds, the one released first in front.
    idle: Vec<u32>,
    /// What the host keeps, the one evicted first in front.
    kept: Vec<Prefix>,
    /// Prefixes that came to be kept: each is copied once.
    newly_kept: usize,
    seen: Seen,
}

impl Model {
    fn new(pages: usize, host_pages: usize) -> Self {
        let allocator = BlockAllocator::new(pages).unwrap().with_host_pages(host_pages).unwrap();
        assert_eq!((allocator.pages(), allocator.host_pages()), (pages, host_pages));
        Self {
            allocator,
            memory: vec![[0; PAGE_SIZE]; pages],
            host: vec![[0; PAGE_SIZE]; host_pages],
            copies: vec![],
            sequences: vec![],
            loose: vec![],
            published: HashMap::new(),
            idle: vec![],
            kept: vec![],
            newly_kept: 0,
            seen: Seen::default(),
        }
    }

    /// How many hold `page`.
    fn holders(&self, page: u32) -> usize {
        let in_tables = self.sequences.iter().flat_map(|s| s.table.pages()).filter(|&&p| p == page).count();
        in_tables + self.loose.iter().filter(|&&p| p == page).count()
    }

    /// What `count` allocations do to the cache: the oldest idle pages go once no free page is left. The host keeps them, and
    /// drops the oldest of what it keeps for it, but for what is being restored.
    fn expect_allocation(&mut self, count: usize, restoring: &[Prefix]) {
        let held = (0..self.memory.len() as u32).filter(|&page| self.holders(page) > 0).count();
        let free = self.memory.len() - held - self.idle.len();
        for page in self.idle.drain(..count.saturating_sub(free)) {
            let prefix = self.published.remove(&page).unwrap();
            self.seen.evicted += 1;
            if let Some(at) = self.kept.iter().position(|kept| *kept == prefix) {
                self.kept.remove(at);
                self.kept.push(prefix);
                continue;
            }
            if self.kept.len() == self.host.len() {
                let Some(at) = self.kept.iter().position(|kept| !restoring.contains(kept)) else { continue };
                self.kept.remove(at);
                self.seen.dropped += 1;
            }
            self.newly_kept += 1;
            self.kept.push(prefix);
        }
    }

    /// Makes the copies told so far; the pages copied on write.
    fn copy(&mut self) -> Vec<(u32, u32)> {
        let mut on_device = vec![];
        self.copies.extend(self.allocator.take_copies());
        assert_eq!(self.allocator.take_copies(), []);
        for CopyPage { from, to, direction } in self.copies.drain(..) {
            let (from_page, to_page) = (from as usize, to as usize);
            match direction {
                Direction::OnDevice => {
                    self.memory[to_page] = self.memory[from_page];
                    on_device.push((from, to));
                }
                Direction::ToHost => {
                    self.host[to_page] = self.memory[from_page];
                    self.seen.kept += 1;
                }
                Direction::ToDevice => {
                    self.memory[to_page] = self.host[from_page];
                    self.seen.restored += 1;
                }
            }
        }
        on_device
    }

    /// What happened to `before`, a list of pages given back in this order.
    fn expect_release(&mut self, before: impl IntoIterator<Item = u32>) {
        for page in before {
            if self.holders(page) == 0 && self.published.contains_key(&page) {
                self.idle.push(page);
            }
        }
    }

    fn page_of(&self, prefix: &Prefix) -> Option<u32> {
        self.published.iter().find(|(_, content)| *content == prefix).map(|(&page, _)| page)
    }

    /// Conservation, reference counts, and that a table reads back what its tokens say. Copies may be made at any time
    /// before somebody reads or writes.
    fn check(&mut self, rng: &mut Rng) {
        let pages = self.memory.len();
        let mut held = 0;
        for page in 0..pages as u32 {
            let holders = self.holders(page);
            assert_eq!(self.allocator.references(page), holders, "references of page {page}");
            held += usize::from(holders > 0);
        }
        assert_eq!(self.allocator.free_pages(), pages - held);
        assert_eq!(self.allocator.cached_pages(), self.idle.len());
        assert_eq!(self.allocator.host_cached_pages(), self.kept.len());
        if self.sequences.is_empty() || rng.below(0..2) == 0 {
            return;
        }
        self.copy();
        assert_eq!(self.seen.kept, self.newly_kept, "copies to the host");
        let sequence = &self.sequences[rng.below(0..self.sequences.len())];
        assert_eq!(sequence.table.tokens(), sequence.tokens.len());
        assert_eq!(sequence.table.pages().len(), sequence.tokens.len().div_ceil(PAGE_SIZE));
        for (position, key) in keys(&sequence.tokens).into_iter().enumerate() {
            let page = sequence.table.pages()[position / PAGE_SIZE] as usize;
            assert_eq!(self.memory[page][position % PAGE_SIZE], key, "position {position} in page {page}");
        }
    }

    /// Tokens in one of two kinds a page, so that prompts often share whole pages.
    fn more_tokens(rng: &mut Rng, tokens: &mut Vec<u32>, count: usize) {
        for _ in 0..count {
            let kind = match tokens.len() % PAGE_SIZE {
                0 => rng.below(0..2) as u32,
                _ => tokens[tokens.len() - 1] % 2,
            };
            tokens.push(tokens.len() as u32 * 2 + kind);
        }
    }

    fn start(&mut self, rng: &mut Rng) {
        let (mut tokens, salt, len) = (vec![], rng.below(0..2) as u128, rng.below(0..5 * PAGE_SIZE));
        Self::more_tokens(rng, &mut tokens, len);
        let mut found: Vec<(Prefix, Option<u32>)> = vec![];
        while (found.len() + 1) * PAGE_SIZE < tokens.len() {
            let prefix = (salt, tokens[..(found.len() + 1) * PAGE_SIZE].to_vec());
            let page = self.page_of(&prefix);
            if page.is_none() && !self.kept.contains(&prefix) {
                break;
            }
            found.push((prefix, page));
        }
        let on_device: Vec<u32> = found.iter().filter_map(|found| found.1).collect();
        let held = on_device.iter().filter(|&&page| self.holders(page) > 0).count();
        assert_eq!(BlockTable::held_prefix(&self.allocator, salt, &tokens), held);

        let table = BlockTable::with_prefix(&mut self.allocator, salt, &tokens);
        // All that is on the device is taken first, then what the host keeps is brought back from the front.
        let before = self.loose.len();
        self.loose.extend(&on_device);
        self.idle.retain(|page| !on_device.contains(page));
        let restoring: Vec<Prefix> =
            found.iter().filter(|found| found.1.is_none()).map(|found| found.0.clone()).collect();
        let mut taken = 0;
        for (index, (prefix, page)) in found.iter().enumerate() {
            if page.is_none() {
                let held = (0..self.memory.len() as u32).filter(|&page| self.holders(page) > 0).count();
                if held == self.memory.len() {
                    self.seen.cut += 1;
                    break;
                }
                self.expect_allocation(1, &restoring);
                let to = table.pages()[index];
                assert_eq!(self.holders(to), 0, "page {to} is somebody's");
                self.loose.push(to);
                assert_eq!(self.published.insert(to, prefix.clone()), None);
            }
            assert!(page.is_none_or(|page| table.pages()[index] == page));
            taken = index + 1;
        }
        assert_eq!(table.pages().len(), taken);
        assert_eq!(table.tokens(), taken * PAGE_SIZE);
        self.loose.truncate(before);
        tokens.truncate(table.tokens());
        self.seen.found += usize::from(taken > 0);
        self.sequences.push(Sequence { table, tokens, salt });
        self.expect_release(found[taken..].iter().rev().filter_map(|found| found.1).collect::<Vec<_>>());
    }

    fn append(&mut self, rng: &mut Rng, index: usize) {
        let count = rng.below(0..3 * PAGE_SIZE);
        let held = self.sequences[index].tokens.len();
        let last = self.sequences[index].table.pages().last().copied();
        let shared = last.is_some_and(|last| self.holders(last) > 1 || self.published.contains_key(&last));
        let copied = count > 0 && !held.is_multiple_of(PAGE_SIZE) && shared;
        let needed = (held + count).div_ceil(PAGE_SIZE) - held.div_ceil(PAGE_SIZE) + usize::from(copied);
        let sequence = &mut self.sequences[index];
        assert_eq!(sequence.table.pages_to_append(&self.allocator, count), needed);
        let free = self.allocator.free_pages();
        let before = sequence.table.pages().to_vec();
        self.copy();
        let sequence = &mut self.sequences[index];
        match sequence.table.append_tokens(&mut self.allocator, count) {
            Err(error) => {
                let pages = self.memory.len();
                assert_eq!(error, AllocatorError::OutOfPages { requested: needed, free, pages });
                assert!(needed > free);
                assert_eq!(sequence.table.pages(), before);
                self.seen.refused += 1;
                return;
            }
            Ok(()) => {
                let to = sequence.table.pages().get(before.len().saturating_sub(1)).copied();
                let want: Vec<(u32, u32)> =
                    copied.then(|| (last.unwrap(), to.unwrap())).into_iter().collect();
                assert_eq!(self.copy(), want);
            }
        }
        let sequence = &mut self.sequences[index];
        // Everything at once, so that the model counts what is free as it was before.
        let after = std::mem::replace(&mut sequence.table, BlockTable::new());
        self.loose.extend(&before);
        self.expect_allocation(needed, &[]);
        self.loose.truncate(self.loose.len() - before.len());
        let sequence = &mut self.sequences[index];
        sequence.table = after;
        if copied {
            self.expect_release(last);
            self.seen.copied += 1;
        }
        let sequence = &mut self.sequences[index];
        Self::more_tokens(rng, &mut sequence.tokens, count);
        for (position, key) in keys(&sequence.tokens).into_iter().enumerate().skip(held) {
            let page = sequence.table.pages()[position / PAGE_SIZE] as usize;
            self.memory[page][position % PAGE_SIZE] = key;
        }
    }

    fn fork(&mut self, index: usize) {
        let parent = &self.sequences[index];
        let table = parent.table.fork(&mut self.allocator).unwrap();
        assert_eq!(table.pages(), parent.table.pages());
        let (tokens, salt) = (parent.tokens.clone(), parent.salt);
        self.sequences.push(Sequence { table, tokens, salt });
    }

    fn truncate(&mut self, rng: &mut Rng, index: usize) {
        let sequence = &mut self.sequences[index];
        let held = sequence.tokens.len();
        let error = sequence.table.truncate(&mut self.allocator, held + 1).unwrap_err();
        assert_eq!(error, AllocatorError::WrongTokens { expected: format!("at most {held}"), got: held + 1 });
        let left = rng.below(0..held + 1);
        let dropped = sequence.table.pages()[left.div_ceil(PAGE_SIZE)..].to_vec();
        sequence.table.truncate(&mut self.allocator, left).unwrap();
        sequence.tokens.truncate(left);
        self.expect_release(dropped.into_iter().rev());
    }

    fn finish(&mut self, index: usize) {
        let mut sequence = self.sequences.swap_remove(index);
        let pages = sequence.table.pages().to_vec();
        sequence.table.release(&mut self.allocator).unwrap();
        assert_eq!(sequence.table.tokens(), 0);
        self.expect_release(pages.into_iter().rev());
    }

    fn publish(&mut self, rng: &mut Rng, index: usize) {
        let Sequence { table, tokens, salt } = &mut self.sequences[index];
        let before = table.pages().to_vec();
        let held = tokens.len();
        tokens.push(0);
        let error = table.publish(&mut self.allocator, tokens).unwrap_err();
        assert_eq!(error, AllocatorError::WrongTokens { expected: format!("at most {held}"), got: held + 1 });
        tokens.pop();
        // Not all of what there is room for need be written.
        let written = [held, rng.below(0..held + 1)][rng.below(0..4) / 3];
        table.publish(&mut self.allocator, &tokens[..written]).unwrap();
        let (after, salt) = (table.pages().to_vec(), *salt);
        for (number, (&before, &after)) in before.iter().zip(&after).enumerate() {
            let end = (number + 1) * PAGE_SIZE;
            let tokens = &self.sequences[index].tokens;
            if end > written {
                assert_eq!(before, after);
                continue;
            }
            let prefix = (salt, tokens[..end].to_vec());
            match self.page_of(&prefix) {
                Some(equal) => {
                    assert_eq!(after, equal, "page {number} is shared");
                    self.seen.replaced += usize::from(before != equal);
                }
                None => {
                    assert_eq!(before, after, "page {number} is the first of its content");
                    self.published.insert(after, prefix);
                }
            }
            self.idle.retain(|&page| page != after);
        }
        self.expect_release(
            before.into_iter().zip(after).filter(|(before, after)| before != after).map(|p| p.0),
        );
    }

    /// Nothing is found any more. Copies under way are somebody's only while he holds pages.
    fn forget(&mut self) {
        self.copy();
        self.allocator.forget_published();
        assert_eq!(self.allocator.take_copies(), []);
        self.published.clear();
        self.idle.clear();
        self.kept.clear();
        self.seen.forgotten += 1;
    }

    /// Pages without a table, and every misuse of them.
    fn loose_pages(&mut self, rng: &mut Rng) {
        let pages = self.memory.len();
        let page = rng.below(0..pages + 2) as u32;
        let unknown = AllocatorError::UnknownPage { page, pages };
        let refused = if page as usize >= pages { unknown } else { AllocatorError::NotHeld { page } };
        match rng.below(0..3) {
            0 => {
                let free = self.allocator.free_pages();
                self.expect_allocation(usize::from(free > 0), &[]);
                match self.allocator.allocate() {
                    Ok(page) => self.loose.push(page),
                    Err(error) => assert_eq!(
                        (error, free),
                        (AllocatorError::OutOfPages { requested: 1, free, pages }, 0)
                    ),
                }
            }
            1 if self.holders(page) > 0 => {
                self.allocator.share(page).unwrap();
                self.loose.push(page);
            }
            1 => assert_eq!(self.allocator.share(page), Err(refused)),
            _ => match self.loose.iter().position(|&held| held == page) {
                Some(at) => {
                    self.loose.swap_remove(at);
                    self.allocator.release(page).unwrap();
                    self.expect_release([page]);
                }
                None if self.holders(page) == 0 => assert_eq!(self.allocator.release(page), Err(refused)),
                None => {}
            },
        }
    }
}

/// Random operations from a seed, all pages given back at the end.
pub fn random_operations(seed: u64, operations: usize) -> Seen {
    let mut rng = Rng::new(seed);
    let (pages, host_pages) = (rng.below(1..40), rng.below(0..3) * rng.below(1..20));
    let mut model = Model::new(pages, host_pages);
    for _ in 0..operations {
        let open = model.sequences.len();
        match rng.below(0..16) {
            0..3 if open < 6 => model.start(&mut rng),
            3..8 if open > 0 => {
                let index = rng.below(0..open);
                model.append(&mut rng, index);
            }
            8 if open > 0 && open < 6 => model.fork(rng.below(0..open)),
            9 if open > 0 => {
                let index = rng.below(0..open);
                model.truncate(&mut rng, index);
            }
            10..12 if open > 0 => model.finish(rng.below(0..open)),
            12..15 if open > 0 => {
                let index = rng.below(0..open);
                model.publish(&mut rng, index);
            }
            12..15 => model.forget(),
            15 => model.loose_pages(&mut rng),
            _ => {}
        }
        model.check(&mut rng);
    }
    while let Some(page) = model.loose.pop() {
        model.allocator.release(page).unwrap();
    }
    while !model.sequences.is_empty() {
        model.finish(0);
    }
    assert_eq!(model.allocator.free_pages(), model.memory.len(), "a page is lost");
    model.seen
}
