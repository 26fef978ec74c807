//! Tokens to text as they come: incomplete characters and possible stop strings are held back.

use crate::error::Result;
use checkpoint::{StreamDecoder, Tokenizer};

/// The text of one sequence.
pub struct TextStream<'a> {
    has_text: bool,
    decoder: Option<StreamDecoder<'a>>,
    stop: &'a [String],
    text: String,
    /// Bytes of `text` that were handed out.
    shown: usize,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    /// The text that follows `prompt`. Without a tokenizer there is no text.
    pub fn new(tokenizer: Option<&'a Tokenizer>, prompt: &[u32], stop: &'a [String]) -> Self {
        let decoder = tokenizer.map(|tokenizer| tokenizer.stream().with_prompt(prompt));
        Self { has_text: decoder.is_some(), decoder, stop, text: String::new(), shown: 0, stopped: false }
    }

    /// Takes a token; gives the text that is certain by now.
    pub fn push(&mut self, token: u32) -> Result<&str> {
        if let Some(decoder) = &mut self.decoder {
            let piece = decoder.push(token)?;
            self.add(&piece);
        }
        Ok(self.certain())
    }

    /// No more tokens: gives what was held back.
    pub fn finish(&mut self) -> Result<&str> {
        if let Some(decoder) = self.decoder.take() {
            let piece = decoder.finish()?;
            self.add(&piece);
        }
        let rest = self.shown..self.text.len();
        self.shown = self.text.len();
        Ok(&self.text[rest])
    }

    /// Whether a stop string has come. The text ends before it.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// All of it; `None` without a tokenizer.
    pub fn into_text(self) -> Option<String> {
        self.has_text.then_some(self.text)
    }

    fn add(&mut self, piece: &str) {
        if self.stopped {
            return;
        }
        self.text.push_str(piece);
        // A stop string may have begun in what came before, but not in what was shown: that was certain.
        let found = self.stop.iter().filter_map(|stop| self.text[self.shown..].find(stop)).min();
        if let Some(at) = found {
            self.text.truncate(self.shown + at);
            self.stopped = true;
        }
    }

    fn certain(&mut self) -> &str {
        let held = if self.stopped { 0 } else { held_back(&self.text[self.shown..], self.stop) };
        let certain = self.shown..self.text.len() - held;
        self.shown = certain.end;
        &self.text[certain]
    }
}

/// Bytes at the end of `text` that may be the beginning of a stop string.
fn held_back(text: &str, stop: &[String]) -> usize {
    let begins = |stop: &String| {
        let prefixes = stop.char_indices().map(|(end, _)| end).filter(|&end| text.ends_with(&stop[..end]));
        prefixes.max().unwrap_or(0)
    };
    stop.iter().map(begins).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes pieces of text and gives what was shown after each, and whether it stopped.
    fn shown(pieces: &[&str], stop: &[&str]) -> (Vec<String>, bool) {
        let stop: Vec<String> = stop.iter().map(|&stop| stop.to_owned()).collect();
        let mut stream = TextStream::new(None, &[], &stop);
        let mut shown: Vec<String> = pieces
            .iter()
            .map(|piece| {
                stream.add(piece);
                stream.certain().to_owned()
            })
            .collect();
        shown.push(stream.finish().unwrap().to_owned());
        (shown, stream.stopped())
    }

    #[test]
    fn a_stop_string_is_never_shown() {
        let owned = |pieces: &[&str]| pieces.iter().map(|&piece| piece.to_owned()).collect::<Vec<_>>();
        assert_eq!(shown(&["ab", "cd"], &[]), (owned(&["ab", "cd", ""]), false));
        assert_eq!(shown(&["a#", "#b"], &["##"]), (owned(&["a", "", ""]), true));
        assert_eq!(shown(&["a#", "b"], &["##"]), (owned(&["a", "#b", ""]), false));
        assert_eq!(shown(&["a#"], &["##"]), (owned(&["a", "#"]), false));
        assert_eq!(shown(&["xENDy"], &["END", "xEND"]), (owned(&["", ""]), true));
        assert_eq!(shown(&["é", "è"], &["éa"]), (owned(&["", "éè", ""]), false));
    }
}
