//! Sequences that step together: tokens, pages, and how a step is put before a model.

use super::workload::{Chunk, Workload};
use crate::error::{Error, Result};
use device::random_bits;
use engine::{StepError, StepModel};
use models::{Sample, Step, StepSequence};
use sampling::{Params, Sampled};

/// The sequences of a [`Workload`].
#[derive(Debug, Clone)]
pub struct Sequences {
    /// Prompt and generated tokens.
    tokens: Vec<Vec<u32>>,
    pages: Vec<Vec<u32>>,
    isl: usize,
    vocab_size: usize,
    params: Params,
}

impl Sequences {
    /// Random prompts, greedy.
    pub fn new(workload: &Workload, vocab_size: usize, seed: u64) -> Self {
        let Workload { isl, osl, batch, .. } = *workload;
        // The high half of a product spreads random bits over the vocabulary.
        let token =
            |index: usize| ((u128::from(random_bits(seed, index as u64)) * vocab_size as u128) >> 64) as u32;
        let prompt = |sequence: usize| {
            let mut tokens = Vec::with_capacity(isl + osl);
            tokens.extend((0..isl).map(|position| token(sequence * isl + position)));
            tokens
        };
        let tokens = (0..batch).map(prompt).collect();
        // Sequences that grow side by side take their pages in turn.
        let page = |sequence: usize, index: usize| (index * batch + sequence) as u32;
        let pages_of = |sequence| (0..workload.pages_each()).map(|index| page(sequence, index)).collect();
        let pages = (0..batch).map(pages_of).collect();
        Self { tokens, pages, isl, vocab_size, params: Params::default() }
    }

    /// Runs one step; each sequence whose last token took part gets its next one.
    pub fn step<M: StepModel>(&mut self, model: &mut M, chunks: &[Chunk]) -> Result<()> {
        let sampled = self.run(model, chunks)?;
        let mut sampled = sampled.into_iter();
        for chunk in chunks {
            let tokens = &mut self.tokens[chunk.sequence];
            if chunk.positions.end == tokens.len() {
                tokens.extend(sampled.next().map(|sampled| sampled.token));
            }
        }
        Ok(())
    }

    /// Runs one step and leaves the sequences as they are.
    pub fn run<M: StepModel>(&self, model: &mut M, chunks: &[Chunk]) -> Result<Vec<Sampled>> {
        let sequences: Vec<StepSequence<'_>> = chunks.iter().map(|chunk| self.part(chunk)).collect();
        let expected = sequences.iter().filter(|sequence| sequence.sample.is_some()).count();
        let failed = |error: StepError| Error::Step(error);
        let sampled = model.step(&Step { sequences }).map_err(|error| failed(error.into()))?;
        if sampled.len() != expected {
            return Err(failed(StepError::WrongCount { expected, got: sampled.len() }));
        }
        let vocab_size = self.vocab_size;
        match sampled.iter().find(|sampled| sampled.token as usize >= vocab_size) {
            Some(&Sampled { token, .. }) => Err(failed(StepError::UnknownToken { token, vocab_size })),
            None => Ok(sampled),
        }
    }

    fn part(&self, chunk: &Chunk) -> StepSequence<'_> {
        let tokens = &self.tokens[chunk.sequence];
        let (context_len, prompt_len) = (chunk.positions.end, self.isl);
        let sample = Sample { params: &self.params, history: tokens, prompt_len };
        StepSequence {
            tokens: &tokens[chunk.positions.clone()],
            context_len,
            prompt_len,
            pages: &self.pages[chunk.sequence][..context_len.div_ceil(device::PAGE_SIZE)],
            sample: (context_len == tokens.len()).then_some(sample),
        }
    }

    /// Gives each sequence some first token, as if its prompt had been computed.
    pub fn pretend_prefilled(&mut self) {
        for tokens in &mut self.tokens {
            tokens.push(0);
        }
    }
}
