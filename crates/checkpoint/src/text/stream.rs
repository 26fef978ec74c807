//! Decoding token by token.

use super::Tokenizer;
use crate::Result;

/// Tokens held back at most. A character has 4 bytes at most, so that this many tokens which do not end in a whole
/// character never will.
const HELD: usize = 16;

/// Decodes token by token and holds back incomplete UTF-8.
///
/// What a token adds depends on those before it (a leading space is dropped at the start of a text only), so the last
/// whole piece is decoded again with every new token and what it gives is taken off:
///
/// ```text
/// tokens   [ ... emitted | context | held back ]
///                        ^ start   ^ whole
/// new text = decode(context + held back) - decode(context)
/// ```
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// From `start` on.
    tokens: Vec<u32>,
    /// How many of `tokens` are context.
    whole: usize,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new(), whole: 0 }
    }

    /// Starts after `prompt`: the first new token is decoded as a continuation of it.
    pub fn with_prompt(mut self, prompt: &[u32]) -> Self {
        self.tokens = prompt[prompt.len().saturating_sub(HELD)..].to_vec();
        self.whole = self.tokens.len();
        self
    }

    /// What `token` adds to the text; empty while a character is incomplete.
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.tokens.push(token);
        let new = self.new_text()?;
        if new.is_empty()
            || (new.ends_with(char::REPLACEMENT_CHARACTER) && self.tokens.len() - self.whole < HELD)
        {
            return Ok(String::new());
        }
        self.tokens.drain(..self.whole);
        self.whole = self.tokens.len();
        Ok(new)
    }

    /// What was held back; incomplete characters come out as U+FFFD.
    pub fn finish(self) -> Result<String> {
        self.new_text()
    }

    fn new_text(&self) -> Result<String> {
        let (context, held) = self.tokens.split_at(self.whole);
        let before = self.tokenizer.decode(context)?;
        let all = self.tokenizer.decode(&self.tokens)?;
        match all.strip_prefix(&before) {
            Some(new) => Ok(new.to_owned()),
            // Bytes that are no text can change what came out before them; that was emitted and stands.
            None => self.tokenizer.decode(held),
        }
    }
}
