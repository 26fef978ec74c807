//! Where prompts come from: the command line or a file of JSON lines.

use crate::args::PromptArgs;
use crate::error::{Error, Result};
use checkpoint::{ChatMessage, Checkpoint, Tokenizer};
use serde::Deserialize;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// A prompt as tokens, with what its line asks for itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The text it was given as.
    pub text: Option<String>,
    pub tokens: Vec<u32>,
    pub max_tokens: Option<usize>,
    pub seed: Option<u64>,
}

/// One line of a prompt file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: Option<String>,
    token_ids: Option<Vec<u32>>,
    max_tokens: Option<usize>,
    seed: Option<u64>,
}

/// Reads all prompts. `tokenizer` is asked for only where one is a text.
pub fn read(
    args: &PromptArgs,
    checkpoint: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<Prompt>> {
    let reader = Reader { checkpoint, tokenizer, chat: args.chat };
    let source = &args.source;
    if let Some(path) = &source.prompt_file {
        return reader.file(path);
    }
    let prompt = match &source.prompt {
        Some(text) => {
            Prompt { tokens: reader.encode(text)?, text: Some(text.clone()), max_tokens: None, seed: None }
        }
        None => Prompt { tokens: source.token_ids.clone(), text: None, max_tokens: None, seed: None },
    };
    Ok(vec![prompt])
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    tokenizer: Option<&'a Tokenizer>,
    chat: bool,
}

impl Reader<'_> {
    fn file(&self, path: &Path) -> Result<Vec<Prompt>> {
        let unreadable = |error| Error::File { path: path.to_owned(), error };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut prompts = Vec::new();
        for (index, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(unreadable)?;
            if line.trim().is_empty() {
                continue;
            }
            let wrong = |error: String| Error::PromptLine { path: path.to_owned(), line: index + 1, error };
            let line: Line = serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?;
            let (text, tokens) = match (line.prompt, line.token_ids) {
                (Some(text), None) => {
                    let tokens = self.encode(&text)?;
                    (Some(text), tokens)
                }
                (None, Some(tokens)) => (None, tokens),
                _ => return Err(wrong("expected either `prompt` or `token_ids`".to_owned())),
            };
            prompts.push(Prompt { text, tokens, max_tokens: line.max_tokens, seed: line.seed });
        }
        if prompts.is_empty() {
            let error = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "no prompts in the file");
            return Err(Error::File { path: path.to_owned(), error });
        }
        Ok(prompts)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = match self.tokenizer {
            Some(tokenizer) => tokenizer,
            // Says which file is missing, and that token ids need none.
            None => &self.checkpoint.tokenizer()?,
        };
        if !self.chat {
            return Ok(tokenizer.encode(text, true)?);
        }
        let template = self.checkpoint.chat_template()?;
        let message = ChatMessage { role: "user".to_owned(), content: text.to_owned() };
        // A template writes the tokens that frame a text itself.
        Ok(tokenizer.encode(&template.render(&[message], true)?, false)?)
    }
}
