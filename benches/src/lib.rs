//! What the benchmarks share: the embedded models and batches of sequences to step them with; what a kernel's time is held
//! against and how it is reported; with feature `cuda` the timing of kernels, the card's ceilings, and operands of real
//! layers.
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]

#[cfg(feature = "cuda")]
pub mod gpu;

mod arguments;
mod batch;
mod report;
mod work;

pub use arguments::Arguments;
pub use batch::Batch;
pub use report::{Report, Row};
pub use work::Work;

use checkpoint::Checkpoint;
use models::{Backend, KvDtype, Model, Result, Sample, Step, StepSequence};
use sampling::Params;
use std::path::Path;

/// An embedded model's checkpoint, by name.
pub fn embedded(name: &str) -> Result<Checkpoint> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/cli/models").join(name);
    Ok(Checkpoint::open(folder)?)
}

/// A model at a fixed context length, stepped by one token a sequence.
pub struct Decode<B: Backend> {
    model: Model<B>,
    params: Params,
    /// Token ids of every sequence, `context_len` of them.
    tokens: Vec<u32>,
    /// The pages of each sequence.
    pages: Vec<Vec<u32>>,
}

impl<B: Backend> Decode<B> {
    /// Loads `checkpoint` and fills the caches of `sequences` sequences up to `context_len - 1` tokens.
    pub fn new(
        checkpoint: &Checkpoint,
        backend: B,
        kv: KvDtype,
        sequences: usize,
        context_len: usize,
    ) -> Result<Self> {
        let pages_each = context_len.div_ceil(64);
        let model = Model::load(checkpoint, backend, sequences * pages_each, kv, &mut |_| ())?;
        // Any tokens will do: the time of a step does not depend on them.
        let tokens = (0..context_len).map(|at| (at * 37 % model.vocab_size()) as u32).collect();
        let pages = (0..sequences).map(|sequence| pages_from(sequence * pages_each, pages_each)).collect();
        let mut decode = Self { model, params: Params::default(), tokens, pages };
        decode.run(0, context_len - 1)?;
        Ok(decode)
    }

    /// One step: a token of every sequence.
    pub fn step(&mut self) -> Result<usize> {
        let last = self.tokens.len() - 1;
        self.run(last, last + 1)
    }

    /// Runs the tokens at positions `start..end` of all sequences.
    fn run(&mut self, start: usize, end: usize) -> Result<usize> {
        let sample = Sample { params: &self.params, history: &self.tokens, prompt_len: self.tokens.len() };
        let sequence = |pages| StepSequence {
            tokens: &self.tokens[start..end],
            context_len: end,
            prompt_len: self.tokens.len(),
            pages,
            sample: Some(sample),
        };
        let sequences = self.pages.iter().map(|pages| sequence(pages)).collect();
        Ok(self.model.step(&Step { sequences })?.len())
    }
}

fn pages_from(first: usize, count: usize) -> Vec<u32> {
    (first..first + count).map(|page| page as u32).collect()
}
