//! What the engine drives.

use device::Check;
use kv_cache::CopyPage;
use models::{Backend, Model, Step};
use sampling::Sampled;

/// A model with a paged KV cache that runs ragged batches.
///
/// What the engine promises for every [`Step`]:
///
/// - every sequence has at least one new token, and all its tokens before them are in its pages, written by earlier
///   steps; the rows of a step are at most [`crate::Config::max_batch_tokens`],
/// - a page that two sequences have is full of tokens that both have, and no step writes it,
/// - what [`Self::copy_pages`] was told has been done before,
/// - a sequence is sampled if and only if its last new token is the last one it has.
pub trait StepModel {
    /// Token ids run below this.
    fn vocab_size(&self) -> usize;
    /// Tokens a sequence can have, prompt included.
    fn max_context(&self) -> usize;
    /// Pages of 64 tokens in the KV pool.
    fn pages(&self) -> usize;
    /// Pages of 64 tokens in host memory, for what is evicted from the KV pool.
    fn host_pages(&self) -> usize {
        0
    }
    /// Whether a token's keys depend on how long its prompt is, not on the tokens up to it alone: then only prompts of one
    /// length share pages.
    fn keys_depend_on_prompt_len(&self) -> bool {
        false
    }
    /// Copies pages, in this order, before the next step. A model without host pages is never asked to.
    fn copy_pages(&mut self, copies: &[CopyPage]) -> device::Result<()> {
        Check("copy_pages").that(copies.is_empty(), "copies", "none without host pages", copies.len())
    }
    /// Runs one step; gives one token for each sequence with `sample`, in order.
    fn step(&mut self, step: &Step<'_>) -> device::Result<Vec<Sampled>>;
}

impl<B: Backend> StepModel for Model<B> {
    fn vocab_size(&self) -> usize {
        Model::vocab_size(self)
    }

    fn max_context(&self) -> usize {
        Model::max_context(self)
    }

    fn pages(&self) -> usize {
        Model::pages(self)
    }

    fn host_pages(&self) -> usize {
        Model::host_pages(self)
    }

    fn keys_depend_on_prompt_len(&self) -> bool {
        Model::keys_depend_on_prompt_len(self)
    }

    fn copy_pages(&mut self, copies: &[CopyPage]) -> device::Result<()> {
        Model::copy_pages(self, copies)
    }

    fn step(&mut self, step: &Step<'_>) -> device::Result<Vec<Sampled>> {
        Model::step(self, step)
    }
}
