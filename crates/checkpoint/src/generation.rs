//! `generation_config.json`: what a request falls back to.

/// Sampling settings; a field the file does not set is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a text, where the file names any.
    pub eos_token_ids: Option<Vec<u32>>,
    /// The first token of a text.
    pub bos_token_id: Option<u32>,
    /// The padding token.
    pub pad_token_id: Option<u32>,
    /// Whether to sample at all; greedy otherwise.
    pub do_sample: Option<bool>,
    /// 0 or more.
    pub temperature: Option<f32>,
    /// 0 turns it off.
    pub top_k: Option<u32>,
    /// Over 0, at most 1.
    pub top_p: Option<f32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// Over 0.
    pub repetition_penalty: Option<f32>,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<usize>,
}
