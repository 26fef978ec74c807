//! What a caller asks for, and why it may be refused.

use device::PAGE_SIZE;

/// A request's name: given by [`crate::Engine::submit`], in the order of arrival, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

/// A text to be continued.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Tokens to be generated at most. `Some(n)` is taken at its word: where `n` tokens could not be held, the request
    /// is refused rather than cut short. `None`: as many as the model's context and the KV cache hold.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen, and which log-probabilities come with them.
    pub params: sampling::Params,
    /// Tokens that end the text, besides the model's own ([`crate::Config::eos_tokens`]).
    pub stop_tokens: Vec<u32>,
    /// Goes on after the model's end-of-text tokens. `stop_tokens` still end the text.
    pub ignore_eos: bool,
    /// Only requests of the same salt share the pages of equal beginnings: give tenants salts of their own where the time of an
    /// answer must not tell one what another has asked.
    pub salt: u64,
}

/// Why a request was refused. It has left no trace in the engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// There is nothing to continue.
    #[error("prompt: expected at least 1 token, got none")]
    EmptyPrompt,
    /// A token the model does not know.
    #[error("prompt: expected token ids below the vocabulary size {vocab_size}, got {token} at [{position}]")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Where in the prompt.
        position: usize,
        /// The model's vocabulary.
        vocab_size: usize,
    },
    /// Options of sampling out of range.
    #[error(transparent)]
    Params(#[from] device::Error),
    /// Nothing to be generated.
    #[error("max_tokens: expected at least 1, got 0")]
    NoTokens,
    /// The model's context is too short.
    #[error("{prompt_tokens} prompt tokens and {max_tokens} to be generated exceed the model's context of \
             {max_context} tokens; {}", remedy(*.prompt_tokens, *.longest))]
    ExceedsContext {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens to be generated.
        max_tokens: usize,
        /// Tokens a sequence can have.
        max_context: usize,
        /// Tokens of the longest text that both the context and the KV cache hold.
        longest: usize,
    },
    /// The KV cache is too small, even for this request alone.
    #[error("{prompt_tokens} prompt tokens and {max_tokens} to be generated exceed the KV cache of {pages} pages of \
             {PAGE_SIZE} tokens; give it more memory, or {}", remedy(*.prompt_tokens, *.longest))]
    ExceedsCache {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens to be generated.
        max_tokens: usize,
        /// Pages in the KV cache.
        pages: usize,
        /// Tokens of the longest text that both the context and the KV cache hold.
        longest: usize,
    },
}

fn remedy(prompt_tokens: usize, longest: usize) -> String {
    match longest.saturating_sub(prompt_tokens) {
        0 => format!("shorten the prompt to at most {} tokens", longest.saturating_sub(1)),
        most => format!("set max_tokens to at most {most}"),
    }
}

/// What a request is measured against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub vocab_size: usize,
    pub max_context: usize,
    pub pages: usize,
}

impl Request {
    /// How many tokens are to be generated at most, where the request can be served at all.
    ///
    /// The last token of a text is never fed back, so the cache needs room for one token less than the text has.
    pub(crate) fn check(&self, limits: Limits) -> Result<usize, SubmitError> {
        let Limits { vocab_size, max_context, pages } = limits;
        let prompt_tokens = self.prompt.len();
        if prompt_tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if let Some(position) = self.prompt.iter().position(|&token| token as usize >= vocab_size) {
            return Err(SubmitError::UnknownToken { token: self.prompt[position], position, vocab_size });
        }
        sampling::Sampler::new(vocab_size, &self.params)?;
        let cached = (pages * PAGE_SIZE).saturating_add(1);
        let longest = max_context.min(cached);
        let max_tokens = self.max_tokens.unwrap_or(longest.saturating_sub(prompt_tokens).max(1));
        if max_tokens == 0 {
            return Err(SubmitError::NoTokens);
        }
        let total = prompt_tokens.saturating_add(max_tokens);
        if total > max_context {
            return Err(SubmitError::ExceedsContext { prompt_tokens, max_tokens, max_context, longest });
        }
        if total > cached {
            return Err(SubmitError::ExceedsCache { prompt_tokens, max_tokens, pages, longest });
        }
        Ok(max_tokens)
    }
}
