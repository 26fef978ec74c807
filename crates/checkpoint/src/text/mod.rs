//! Tokenizer and chat template.

use crate::Result;

/// Text to tokens and back.
#[derive(Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// The tokens of `text`; with `special`, the tokens that frame a text (BOS) are added.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        todo!("{text} {special}")
    }
    /// The text of `tokens`; special tokens are left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        todo!("{tokens:?}")
    }
    /// Decodes token by token.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder { _tokenizer: self }
    }
    /// The id of a token given in full (`</s>`).
    pub fn token_id(&self, token: &str) -> Option<u32> {
        todo!("{token}")
    }
    /// Ids below this number exist.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
}

/// Decodes token by token and holds back incomplete UTF-8.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    _tokenizer: &'a Tokenizer,
}

impl StreamDecoder<'_> {
    /// What `token` adds to the text; empty while a character is incomplete.
    pub fn push(&mut self, token: u32) -> Result<String> {
        todo!("{token}")
    }
    /// What was held back.
    pub fn finish(self) -> Result<String> {
        todo!()
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant begins to speak.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        todo!("{messages:?} {add_generation_prompt}")
    }
}
