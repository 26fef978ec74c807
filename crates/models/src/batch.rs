//! A step as ops read it: flat arrays of token ids, block tables, lengths.

use crate::step::Step;
use device::{BatchView, Check, Result};

/// A checked step on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The new token ids of all sequences, `[tokens]`.
    pub tokens: Vec<u32>,
    /// The rows that a token is to be chosen from.
    pub sampled: Vec<usize>,
    /// Pages and lengths of the sequences.
    pub sequences: Ragged,
    /// Tokens of each sequence's prompt.
    prompt_lens: Vec<usize>,
}

/// The owner of a [`BatchView`].
#[derive(Debug, Clone, PartialEq)]
pub struct Ragged {
    /// u32 `[sequences * max_pages]`.
    pub block_tables: Vec<u32>,
    /// Pages to a row of `block_tables`.
    pub max_pages: usize,
    /// u32 `[sequences]`.
    pub context_lens: Vec<u32>,
    /// u32 `[sequences + 1]`.
    pub query_offsets: Vec<u32>,
}

impl Ragged {
    fn new(max_pages: usize) -> Self {
        Self { block_tables: Vec::new(), max_pages, context_lens: Vec::new(), query_offsets: vec![0] }
    }

    /// A sequence with new tokens up to row `end`.
    fn push(&mut self, pages: &[u32], context_len: u32, end: usize) {
        self.context_lens.push(context_len);
        self.query_offsets.push(end as u32);
        self.block_tables.extend(pages);
        // Entries past the last page are never read.
        self.block_tables.resize(self.context_lens.len() * self.max_pages, 0);
    }

    /// What attention and append read.
    pub fn view(&self) -> BatchView<&[u32]> {
        BatchView {
            block_tables: &self.block_tables,
            max_pages: self.max_pages,
            context_lens: &self.context_lens,
            query_offsets: &self.query_offsets,
        }
    }
}

impl Batch {
    /// Flattens `step` and checks it against a cache of `pages` pages.
    pub fn new(step: &Step<'_>, pages: usize) -> Result<Self> {
        let check = Check("step");
        let max_pages = step.sequences.iter().map(|sequence| sequence.pages.len()).max().unwrap_or(0);
        let mut tokens = Vec::with_capacity(step.tokens());
        let mut sampled = Vec::new();
        let mut sequences = Ragged::new(max_pages);
        for sequence in &step.sequences {
            check.positive("tokens", sequence.tokens.len())?;
            let too_long = |_| check.error("context_len", "at most 2^32 - 1", sequence.context_len);
            let context_len = u32::try_from(sequence.context_len).map_err(too_long)?;
            let capacity = sequence.pages.len().saturating_mul(device::PAGE_SIZE);
            let fits = sequence.context_len <= capacity;
            check.that(fits, "pages", format_args!("pages for {context_len} tokens"), capacity)?;
            tokens.extend(sequence.tokens);
            sequences.push(sequence.pages, context_len, tokens.len());
            if sequence.sample.is_some() {
                sampled.push(tokens.len() - 1);
            }
        }
        sequences.view().check("step", pages)?;
        let prompt_lens = step.sequences.iter().map(|sequence| sequence.prompt_len).collect();
        Ok(Self { tokens, sampled, sequences, prompt_lens })
    }

    /// For dynamic rotary scaling: the same rows as sequences that share a rotation, and the context length that the
    /// rotation of each depends on.
    ///
    /// Tokens of a prompt are rotated as in a context of the whole prompt, generated ones each as in the context that it
    /// ends. So the rotation does not depend on how a prompt was chunked, or whether the sequence was computed again.
    pub fn rotary_runs(&self) -> (Ragged, Vec<usize>) {
        let view = self.sequences.view();
        let mut runs = Ragged::new(view.max_pages);
        let mut context_lens = Vec::new();
        for (index, &prompt_len) in self.prompt_lens.iter().enumerate() {
            let (rows, first) = (view.rows(index), view.first_position(index));
            let pages = &view.block_tables[index * view.max_pages..][..view.max_pages];
            let end = first + rows.len();
            let mut position = first;
            while position < end {
                let next = if position < prompt_len { prompt_len.min(end) } else { position + 1 };
                runs.push(pages, next as u32, rows.start + next - first);
                context_lens.push(prompt_len.max(next));
                position = next;
            }
        }
        (runs, context_lens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StepSequence;

    #[test]
    fn runs_split_where_the_prompt_ends() {
        let tokens = [1, 2, 3, 4, 5];
        let sequence = |tokens, context_len, prompt_len, pages| StepSequence {
            tokens,
            context_len,
            prompt_len,
            pages,
            sample: None,
        };
        // Positions 3..8 of a prompt of 6, and a token far behind its prompt.
        let first = sequence(&tokens, 8, 6, &[4, 5]);
        let second = sequence(&tokens[..1], 70, 2, &[6, 7]);
        let batch = Batch::new(&Step { sequences: vec![first, second] }, 8).unwrap();
        let (runs, context_lens) = batch.rotary_runs();
        assert_eq!(context_lens, [6, 7, 8, 70]);
        assert_eq!(runs.context_lens, [6, 7, 8, 70]);
        assert_eq!(runs.query_offsets, [0, 3, 4, 5, 6]);
        assert_eq!(runs.block_tables, [4, 5, 4, 5, 4, 5, 6, 7]);
        assert!(runs.view().check("test", 8).is_ok());
    }

    #[test]
    fn a_step_that_does_not_fit_its_pages_is_refused() {
        let refused = |tokens: &[u32], context_len, pages: &[u32]| {
            let sequence = StepSequence { tokens, context_len, prompt_len: 1, pages, sample: None };
            Batch::new(&Step { sequences: vec![sequence] }, 2).unwrap_err().to_string()
        };
        assert_eq!(refused(&[], 1, &[0]), "step: tokens: expected at least 1, got 0");
        assert_eq!(refused(&[1], 65, &[0]), "step: pages: expected pages for 65 tokens, got 64");
        assert_eq!(refused(&[1], 1, &[2]), "step: block_tables: expected pages below 2, got 2");
        assert_eq!(
            refused(&[1, 2], 1, &[0]),
            "step: context_lens: expected at least the 2 new tokens, got 1"
        );
    }
}
