//! What the engine drives.

use models::{Backend, Model, Step};
use sampling::Sampled;

/// A model with a paged KV cache that runs ragged batches.
///
/// What the engine promises for every [`Step`]:
///
/// - every sequence has at least one new token, and all its tokens before them are in its pages, written by earlier
///   steps; the rows of a step are at most [`crate::Config::max_batch_tokens`],
/// - no page belongs to two sequences,
/// - a sequence is sampled if and only if its last new token is the last one it has.
pub trait StepModel {
    /// Token ids run below this.
    fn vocab_size(&self) -> usize;
    /// Tokens a sequence can have, prompt included.
    fn max_context(&self) -> usize;
    /// Pages of 64 tokens in the KV pool.
    fn pages(&self) -> usize;
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

    fn step(&mut self, step: &Step<'_>) -> device::Result<Vec<Sampled>> {
        Model::step(self, step)
    }
}
