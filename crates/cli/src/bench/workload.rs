//! A fixed amount of work: sequences of one length that start together.

use super::limits::{StepShape, Work};
use crate::error::{Error, Result};
use device::{Card, PAGE_SIZE};
use std::ops::Range;

/// How many sequences, and how long they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of each prompt.
    pub isl: usize,
    /// Tokens generated for each prompt.
    pub osl: usize,
    /// Sequences.
    pub batch: usize,
    /// New tokens in one step of the prefill at most.
    pub max_batch_tokens: usize,
}

/// New tokens of one sequence in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Which sequence.
    pub sequence: usize,
    /// Their positions.
    pub positions: Range<usize>,
}

/// Seconds at a card's limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    pub prefill: f64,
    pub decode: f64,
}

impl Limit {
    pub fn total(self) -> f64 {
        self.prefill + self.decode
    }
}

impl Workload {
    /// Checks the sizes against a model whose sequences hold up to `max_context` tokens.
    pub fn check(&self, max_context: usize) -> Result<()> {
        let sizes = [
            ("isl", self.isl),
            ("osl", self.osl),
            ("batch", self.batch),
            ("max-batch-tokens", self.max_batch_tokens),
        ];
        for (option, size) in sizes {
            at_least_1(option, size)?;
        }
        let (isl, osl) = (self.isl, self.osl);
        let tokens = isl.saturating_add(osl);
        if tokens > max_context {
            let what = format!("--isl {isl} and --osl {osl} make sequences");
            return Err(Error::BeyondContext { what, tokens, max_context });
        }
        Ok(())
    }

    /// Tokens of a sequence that come into the cache: the last one is never fed back.
    pub fn cached_tokens(&self) -> usize {
        self.isl + self.osl - 1
    }

    /// Pages of each sequence.
    pub fn pages_each(&self) -> usize {
        self.cached_tokens().div_ceil(PAGE_SIZE)
    }

    /// The prompts in steps: each filled with the next prompts' tokens, the last of them cut where the step is full.
    pub fn prefill(&self) -> Vec<Vec<Chunk>> {
        let mut steps: Vec<Vec<Chunk>> = Vec::new();
        let mut left = 0;
        for sequence in 0..self.batch {
            let mut start = 0;
            while start < self.isl {
                if left == 0 {
                    steps.push(Vec::new());
                    left = self.max_batch_tokens;
                }
                let end = self.isl.min(start + left);
                if let Some(step) = steps.last_mut() {
                    step.push(Chunk { sequence, positions: start..end });
                }
                left -= end - start;
                start = end;
            }
        }
        steps
    }

    /// A step that decodes the token at `position` of every sequence.
    pub fn decode(&self, position: usize) -> Vec<Chunk> {
        let chunk = |sequence| Chunk { sequence, positions: position..position + 1 };
        (0..self.batch).map(chunk).collect()
    }

    /// Where the decoded tokens stand: the prefill gives the first generated one, each decode step the next.
    pub fn decode_positions(&self) -> Range<usize> {
        self.isl..self.isl + self.osl - 1
    }

    /// What a step's time depends on.
    pub fn shape(&self, step: &[Chunk]) -> StepShape {
        StepShape {
            tokens: step.iter().map(|chunk| chunk.positions.len()).sum(),
            sampled: step.iter().filter(|chunk| chunk.positions.end >= self.isl).count(),
            kv_tokens: step.iter().map(|chunk| chunk.positions.end).sum(),
        }
    }

    /// The sum over all steps at the limit of `card`.
    pub fn limit(&self, work: &Work, card: &Card) -> Limit {
        let prefill = self.prefill().iter().map(|step| work.step_seconds(card, self.shape(step))).sum();
        let decode = |position: usize| {
            let kv_tokens = self.batch * (position + 1);
            work.step_seconds(card, StepShape { tokens: self.batch, sampled: self.batch, kv_tokens })
        };
        Limit { prefill, decode: self.decode_positions().map(decode).sum() }
    }
}

/// Refuses an option of 0.
pub fn at_least_1(option: &'static str, size: usize) -> Result<()> {
    let expected = "at least 1".to_owned();
    if size > 0 { Ok(()) } else { Err(Error::Option { option, expected, got: "0".to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(isl: usize, osl: usize, batch: usize, max_batch_tokens: usize) -> Workload {
        Workload { isl, osl, batch, max_batch_tokens }
    }

    #[test]
    fn the_prefill_has_every_prompt_token_once_in_full_steps() {
        for workload in [
            workload(128, 1, 6, 256),
            workload(128, 1, 5, 256),
            workload(100, 1, 3, 64),
            workload(1, 1, 7, 1),
            workload(300, 1, 1, 64),
            workload(3, 1, 4, 100),
        ] {
            let steps = workload.prefill();
            let tokens: Vec<usize> = steps.iter().map(|step| workload.shape(step).tokens).collect();
            let (last, full) = tokens.split_last().unwrap();
            assert!(full.iter().all(|&tokens| tokens == workload.max_batch_tokens), "{tokens:?}");
            assert!((1..=workload.max_batch_tokens).contains(last), "{tokens:?}");
            let mut computed = vec![0; workload.batch];
            for chunk in steps.iter().flatten() {
                assert_eq!(chunk.positions.start, computed[chunk.sequence]);
                computed[chunk.sequence] = chunk.positions.end;
            }
            assert!(computed.iter().all(|&computed| computed == workload.isl));
            let sampled: usize = steps.iter().map(|step| workload.shape(step).sampled).sum();
            assert_eq!(sampled, workload.batch);
        }
    }

    #[test]
    fn a_prompt_that_is_cut_reads_its_cache_again() {
        let workload = workload(100, 1, 1, 64);
        let shapes: Vec<StepShape> = workload.prefill().iter().map(|step| workload.shape(step)).collect();
        let wanted = [
            StepShape { tokens: 64, sampled: 0, kv_tokens: 64 },
            StepShape { tokens: 36, sampled: 1, kv_tokens: 100 },
        ];
        assert_eq!(shapes, wanted);
    }

    #[test]
    fn the_last_token_takes_no_room() {
        assert_eq!(workload(64, 1, 1, 64).pages_each(), 1);
        assert_eq!(workload(64, 2, 1, 64).pages_each(), 2);
        assert_eq!(workload(64, 1, 1, 64).decode_positions().len(), 0);
        assert_eq!(workload(64, 3, 1, 64).decode_positions(), 64..66);
    }
}
