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
///            [ published, in whole pages ]
/// ```
///
/// Pages that were published can be found again when it has to give them back, by itself or by another sequence.
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
    /// Of the pages that it may share.
    salt: u128,
}

impl Sequence {
    /// `own_prompt_len`: whether it may only share pages with prompts of its prompt's length.
    pub fn new(id: RequestId, mut request: Request, max_tokens: usize, own_prompt_len: bool) -> Self {
        let tokens = std::mem::take(&mut request.prompt);
        let (prompt_len, table) = (tokens.len(), BlockTable::new());
        let salt = u128::from(request.salt) << 64 | if own_prompt_len { prompt_len as u128 } else { 0 };
        Self { id, request, prompt_len, max_tokens, tokens, computed: 0, chunk: 0, table, salt }
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

    /// Of the pages that [`Self::start`] would take, those that others hold already.
    pub fn pages_held(&self, allocator: &BlockAllocator) -> usize {
        BlockTable::held_prefix(allocator, self.salt, &self.tokens)
    }

    /// Takes pages for all the tokens it has: those that are found with their keys and values, and new ones.
    pub fn start(&mut self, allocator: &mut BlockAllocator) -> Result<(), AllocatorError> {
        self.table = BlockTable::with_prefix(allocator, self.salt, &self.tokens);
        self.computed = self.table.tokens();
        self.take_pages(allocator)
    }

    /// Takes pages for all the tokens it has, or none.
    pub fn take_pages(&mut self, allocator: &mut BlockAllocator) -> Result<(), AllocatorError> {
        // What it shares are full pages: none is copied.
        self.table.append_tokens(allocator, self.tokens.len() - self.table.tokens())
    }

    /// Gives all pages back. Its tokens are to be computed again, but for those of pages that are found again.
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

    /// The step at hand is done: pages that are full now can be found.
    pub fn computed(&mut self, allocator: &mut BlockAllocator) -> Result<(), AllocatorError> {
        self.computed += self.chunk;
        self.chunk = 0;
        self.table.publish(allocator, &self.tokens[..self.computed])
    }

    /// Tokens whose keys and values are in its pages.
    pub fn computed_tokens(&self) -> usize {
        self.computed
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
