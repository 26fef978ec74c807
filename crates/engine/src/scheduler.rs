//! Who takes part in the next step, and with which pages.

use crate::sequence::Sequence;
use crate::{Config, RequestId};
use kv_cache::{AllocatorError, BlockAllocator, CopyPage};
use std::collections::VecDeque;

/// The queue, the running sequences and the pages.
///
/// Every running sequence came before every waiting one, and both are in the order of arrival.
#[derive(Debug)]
pub(crate) struct Scheduler {
    allocator: BlockAllocator,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    max_sequences: usize,
    max_batch_tokens: usize,
    preemptions: u64,
    reused_tokens: u64,
}

impl Scheduler {
    pub fn new(config: &Config, pages: usize, host_pages: usize) -> Result<Self, AllocatorError> {
        Ok(Self {
            allocator: BlockAllocator::new(pages)?.with_host_pages(host_pages)?,
            waiting: VecDeque::new(),
            running: Vec::new(),
            max_sequences: config.max_sequences,
            max_batch_tokens: config.max_batch_tokens,
            preemptions: 0,
            reused_tokens: 0,
        })
    }

    pub fn allocator(&self) -> &BlockAllocator {
        &self.allocator
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// How often a running sequence was sent back to the queue.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Tokens whose keys and values were found when their sequence started.
    pub fn reused_tokens(&self) -> u64 {
        self.reused_tokens
    }

    /// What has to be copied before the step at hand.
    pub fn take_copies(&mut self) -> Vec<CopyPage> {
        self.allocator.take_copies()
    }

    pub fn enqueue(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Chooses the next step: every running sequence, from the oldest, as far as the budget goes, then new ones.
    ///
    /// All of them take part with at least one token: only the one admitted last can have more than one to be computed, as
    /// the budget is spent where a chunk is cut, and `max_batch_tokens` is at least `max_sequences`.
    pub fn schedule(&mut self) -> Result<(), AllocatorError> {
        let mut budget = self.max_batch_tokens;
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].pages_wanted() > self.allocator.free_pages() {
                // The newest may be this very sequence: then the step is full.
                self.preempt_newest()?;
                continue;
            }
            self.running[index].take_pages(&mut self.allocator)?;
            budget -= self.running[index].schedule(budget);
            index += 1;
        }
        // Who was sent back just now stands first in the queue and does not fit: its pages went to an older one.
        while budget > 0 && self.admits_next() {
            let Some(next) = self.waiting.pop_front() else { break };
            self.running.push(next);
            let Some(sequence) = self.running.last_mut() else { break };
            sequence.start(&mut self.allocator)?;
            self.reused_tokens += sequence.computed_tokens() as u64;
            budget -= sequence.schedule(budget);
        }
        Ok(())
    }

    /// Whether the head of the queue can run: its tokens fit, and a page stays free for each sequence that will grow,
    /// itself included. Where nothing runs this always holds, since its whole text fits the cache.
    fn admits_next(&self) -> bool {
        let Some(next) = self.waiting.front() else { return false };
        let growing = self.running.iter().chain([next]).filter(|sequence| sequence.grows()).count();
        let free = self.allocator.free_pages();
        let fits = || {
            free >= next.pages() + growing
                || free + next.pages_held(&self.allocator) >= next.pages() + growing
        };
        self.running.len() < self.max_sequences && fits()
    }

    /// Sends the newest running sequence back to the head of the queue, without its pages.
    fn preempt_newest(&mut self) -> Result<(), AllocatorError> {
        let Some(mut sequence) = self.running.pop() else { return Ok(()) };
        self.preemptions += 1;
        let given = sequence.give_pages(&mut self.allocator);
        self.waiting.push_front(sequence);
        given
    }

    /// The step at hand went well.
    pub fn computed(&mut self) -> Result<(), AllocatorError> {
        self.running.iter_mut().try_for_each(|sequence| sequence.computed(&mut self.allocator))
    }

    /// Forgets what can be found in the pages: it is not known what they hold.
    pub fn forget_published(&mut self) {
        self.allocator.forget_published();
    }

    /// Ends the running sequences that `ends` gives a reason for; their pages are given back. The order stays.
    pub fn retire<R>(
        &mut self,
        mut ends: impl FnMut(&mut Sequence) -> Option<R>,
    ) -> Vec<(RequestId, R, Result<(), AllocatorError>)> {
        let mut ended = Vec::new();
        for mut sequence in std::mem::take(&mut self.running) {
            match ends(&mut sequence) {
                None => self.running.push(sequence),
                Some(reason) => {
                    let given = sequence.give_pages(&mut self.allocator);
                    ended.push((sequence.id, reason, given));
                }
            }
        }
        ended
    }

    /// Takes a request out, wherever it is; whether it was there.
    pub fn remove(&mut self, id: RequestId) -> Result<bool, AllocatorError> {
        // Both are sorted by id, as ids are given in the order of arrival.
        if let Ok(index) = self.waiting.binary_search_by_key(&id, |sequence| sequence.id) {
            self.waiting.remove(index);
            return Ok(true);
        }
        let Ok(index) = self.running.binary_search_by_key(&id, |sequence| sequence.id) else {
            return Ok(false);
        };
        self.running.remove(index).give_pages(&mut self.allocator)?;
        Ok(true)
    }
}
