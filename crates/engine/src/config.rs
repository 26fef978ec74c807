//! What an engine is made with.

/// Sizes of a step, and what ends a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Requests that run at once, at least 1.
    pub max_sequences: usize,
    /// Rows of activations in a step (new tokens of all sequences), at least `max_sequences`, so that every running
    /// request can decode in every step.
    pub max_batch_tokens: usize,
    /// The model's end-of-text tokens; a request may ignore them ([`crate::Request::ignore_eos`]).
    pub eos_tokens: Vec<u32>,
}

/// Why an engine could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Nothing could ever run.
    #[error("engine: max_sequences: expected at least 1, got 0")]
    NoSequences,
    /// Running requests could not all decode in one step.
    #[error(
        "engine: max_batch_tokens: expected at least max_sequences ({max_sequences}), got {max_batch_tokens}"
    )]
    FewerTokensThanSequences {
        /// What came.
        max_batch_tokens: usize,
        /// What it must reach.
        max_sequences: usize,
    },
    /// The KV cache has no page.
    #[error("engine: the KV cache has no pages; give it memory for at least one page of 64 tokens")]
    NoPages,
    /// The KV cache has more pages than page numbers.
    #[error(transparent)]
    Allocator(#[from] kv_cache::AllocatorError),
}

impl Config {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let Self { max_sequences, max_batch_tokens, .. } = *self;
        if max_sequences == 0 {
            return Err(ConfigError::NoSequences);
        }
        if max_batch_tokens < max_sequences {
            return Err(ConfigError::FewerTokensThanSequences { max_batch_tokens, max_sequences });
        }
        Ok(())
    }
}
