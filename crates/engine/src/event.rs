//! What a step brings about.

use crate::RequestId;
use sampling::Sampled;

/// Something that happened to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The next token of its text. The token that ends a text is told as well.
    Token {
        /// The request.
        id: RequestId,
        /// The token, with the log-probabilities asked for.
        sampled: Sampled,
    },
    /// Its last event.
    Finished {
        /// The request.
        id: RequestId,
        /// Why.
        reason: FinishReason,
    },
}

/// Why a request ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FinishReason {
    /// It generated one of its stop tokens, or an end-of-text token of the model.
    StopToken(u32),
    /// It generated as many tokens as it may.
    Length,
    /// The caller found its text complete ([`crate::Engine::finish`]), as where a stop string came up.
    Finished,
    /// The caller gave it up ([`crate::Engine::cancel`]).
    Cancelled,
    /// A step that it took part in failed.
    Error(StepError),
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The model could not run it.
    #[error(transparent)]
    Model(#[from] device::Error),
    /// The model did not give a token for each sampled sequence.
    #[error("the model gave {got} tokens for {expected} sampled sequences")]
    WrongCount {
        /// Sampled sequences.
        expected: usize,
        /// Tokens.
        got: usize,
    },
    /// The model gave a token outside its vocabulary.
    #[error("the model gave token {token}, beyond its vocabulary of {vocab_size}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// The model's vocabulary.
        vocab_size: usize,
    },
    /// The page accounting is broken: a defect of this program.
    #[error(transparent)]
    Allocator(#[from] kv_cache::AllocatorError),
}
