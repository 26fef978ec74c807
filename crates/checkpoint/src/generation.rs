//! `generation_config.json`: what a request falls back to.

use crate::config::Fields;
use crate::{Files, Result, json, limits};

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

impl GenerationConfig {
    /// Reads the file, where there is one.
    pub(crate) fn read(files: &Files, vocab_size: usize) -> Result<Self> {
        const NAME: &str = "generation_config.json";
        let Some(bytes) = files.read(NAME, limits::CONFIG_BYTES)? else { return Ok(Self::default()) };
        let file = files.path(NAME);
        let object = json::parse(&file, &bytes)?;
        let fields = Fields::new(&file, &object);
        let float = |key, range| Ok::<_, crate::Error>(fields.float(key, range)?.map(|value| value as f32));
        Ok(Self {
            eos_token_ids: fields.tokens("eos_token_id", vocab_size)?.filter(|tokens| !tokens.is_empty()),
            bos_token_id: fields.token("bos_token_id", vocab_size)?,
            pad_token_id: fields.token("pad_token_id", vocab_size)?,
            do_sample: fields.flag("do_sample")?,
            temperature: float("temperature", 0.0..=1e6)?,
            top_k: fields.integer("top_k", 0..=u32::MAX as usize)?.map(|value| value as u32),
            top_p: float("top_p", 1e-9..=1.0)?,
            min_p: float("min_p", 0.0..=1.0)?,
            repetition_penalty: float("repetition_penalty", 1e-6..=1e6)?,
            max_new_tokens: fields.integer("max_new_tokens", 0..=1 << 28)?,
        })
    }
}
