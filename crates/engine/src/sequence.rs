//! A request on its way.

use crate::{FinishReason, Request, RequestId};
use device::PAGE_SIZE;
use kv_cache::{AllocatorError, BlockAllocator, BlockTable};
use models::{Sample, StepSequence};

/// A request with its tokens and its pages.
///
/// ```text
///   tokens   [ prompt .............. | generated .... ]
///            [ computed ....... | chunk | to be computed ]
///   table    [ pages for all of them while running, none while waiting ]
/// ```
#[derive(Debug)]
pub(crate) struct Sequence {
    pub id: RequestId,
    pub request: Request,
    prompt_len: usize,
    /// Tokens that may be generated.
    max_tokens: usize,
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    /// How many of `tokens` have their keys and values in the pages.
    computed: usize,
    /// How many of the tokens after those take part in the step at hand.
    chunk: usize,
    table: BlockTable,
}

impl Sequence {
    pub fn new(id: RequestId, mut request: Request, max_tokens: usize) -> Self {
        let tokens = std::mem::take(&mut request.prompt);
        let (prompt_len, table) = (tokens.len(), BlockTable::new());
        Self { id, request, prompt_len, max_tokens, tokens, computed: 0, chunk: 0, table }
    }

    /// Pages for all the tokens it has.
    pub fn pages(&self) -> usize {
        self.tokens.len().div_ceil(PAGE_SIZE)
    }

    /// Whether it may come to need more pages than it has tokens for now. The last token is never fed back.
    pub fn grows(&self) -> bool {
        (self.prompt_len + self.max_tokens - 1).div_ceil(PAGE_SIZE) > self.pages()
    }

    /// Pages that [`Self::take_pages`] would take.
    pub fn pages_wanted(&self) -> usize {
        self.pages() - self.table.pages().len()
    }

    /// Takes pages for all the tokens it has, or none.
    pub fn take_pages(&mut self, allocator: &mut BlockAllocator) -> Result<(), AllocatorError> {
        // A sequence shares no page, so there is none to be copied.
        let copy = self.table.append_tokens(allocator, self.tokens.len() - self.table.tokens())?;
        debug_assert_eq!(copy, None);
        Ok(())
    }

    /// Gives all pages back; the tokens are to be computed again.
    pub fn give_pages(&mut self, allocator: &mut BlockAllocator) -> Result<(), AllocatorError> {
        (self.computed, self.chunk) = (0, 0);
        self.table.release(allocator)
    }

    /// Takes part in the step at hand with at most `budget` tokens; returns how many.
    pub fn schedule(&mut self, budget: usize) -> usize {
        self.chunk = budget.min(self.tokens.len() - self.computed);
        self.chunk
    }

    /// Whether the step at hand chooses its next token.
    pub fn is_sampled(&self) -> bool {
        self.computed + self.chunk == self.tokens.len()
    }

    /// What it brings to the step at hand.
    pub fn step(&self) -> StepSequence<'_> {
        let context_len = self.computed + self.chunk;
        let prompt_len = self.prompt_len;
        let sample = Sample { params: &self.request.params, history: &self.tokens, prompt_len };
        StepSequence {
            tokens: &self.tokens[self.computed..context_len],
            context_len,
            prompt_len,
            pages: &self.table.pages()[..context_len.div_ceil(PAGE_SIZE)],
            sample: self.is_sampled().then_some(sample),
        }
    }

    /// The step at hand is done.
    pub fn computed(&mut self) {
        self.computed += self.chunk;
        self.chunk = 0;
    }

    /// Appends a generated token; the reason to end, if there is one now.
    pub fn push(&mut self, token: u32, eos_tokens: &[u32]) -> Option<FinishReason> {
        self.tokens.push(token);
        let ends = !self.request.ignore_eos && eos_tokens.contains(&token);
        if ends || self.request.stop_tokens.contains(&token) {
            return Some(FinishReason::StopToken(token));
        }
        (self.tokens.len() - self.prompt_len >= self.max_tokens).then_some(FinishReason::Length)
    }
}
