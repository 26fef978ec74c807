//! Batches of sequences for attention.

use device::random_bits;
use serde_json::{Value, json};

/// Sequences of a batch: how long each is, its new tokens included, and how many of them are new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Of each sequence.
    pub context_lens: Vec<usize>,
    /// Of every sequence; 1 in a decode step.
    pub queries: usize,
}

impl Batch {
    /// `sequences` times `context_len`, `queries` of them new.
    pub fn equal(sequences: usize, context_len: usize, queries: usize) -> Self {
        Self { context_lens: vec![context_len; sequences], queries }
    }

    /// `sequences` lengths with a long tail (exponential, up to `longest`), `mean` tokens on average; a decode step.
    pub fn ragged(sequences: usize, mean: usize, longest: usize, seed: u64) -> Self {
        let uniform = |index: u64| ((random_bits(seed, index) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let length = |index: usize| (-uniform(index as u64).ln() * mean as f64) as usize;
        let mut lengths: Vec<usize> = (0..sequences).map(|index| length(index).clamp(1, longest)).collect();
        // What the draw and the cut missed is shared out, so that bytes compare with those of equal lengths.
        let (mut sum, wanted) = (lengths.iter().sum::<usize>(), mean.min(longest) * sequences);
        while sum != wanted {
            for length in &mut lengths {
                match sum.cmp(&wanted) {
                    std::cmp::Ordering::Less if *length < longest => (*length, sum) = (*length + 1, sum + 1),
                    std::cmp::Ordering::Greater if *length > 1 => (*length, sum) = (*length - 1, sum - 1),
                    _ => {}
                }
            }
        }
        Self { context_lens: lengths, queries: 1 }
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.context_lens.iter().sum()
    }

    /// Pairs of a new token and one that it sees: itself and all before it.
    pub fn visible_pairs(&self) -> usize {
        let pairs =
            |length: usize| self.queries * (length - self.queries) + self.queries * (self.queries + 1) / 2;
        self.context_lens.iter().map(|&length| pairs(length)).sum()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({ "context_lens": self.context_lens, "queries": self.queries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_lengths_have_their_mean_and_a_long_tail() {
        let Batch { context_lens: lengths, .. } = Batch::ragged(192, 1152, 8192, 7);
        assert_eq!(lengths.iter().sum::<usize>(), 192 * 1152);
        assert!(lengths.iter().all(|length| (1..=8192).contains(length)));
        // An exponential has its longest of 192 at about ln(192) = 5.3 times the mean, and 37% above the mean.
        assert!(lengths.iter().any(|&length| length > 3 * 1152));
        let above = lengths.iter().filter(|&&length| length > 1152).count();
        assert!((40..100).contains(&above), "{above}");
        assert_eq!(Batch::ragged(192, 1152, 8192, 7).context_lens, lengths);
    }

    #[test]
    fn pairs_are_those_below_the_diagonal() {
        for (context_len, queries) in [(1, 1), (7, 7), (9, 4), (64, 1)] {
            let seen = |query: usize| context_len - queries + query + 1;
            let counted: usize = (0..queries).map(seen).sum();
            assert_eq!(Batch::equal(3, context_len, queries).visible_pairs(), 3 * counted);
        }
    }
}
