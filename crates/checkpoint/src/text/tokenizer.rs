//! Text to tokens and back, by Hugging Face `tokenizers`.

use super::StreamDecoder;
use super::guard::guarded;
use crate::{Files, Result, TextError, json, limits};

const NAME: &str = "tokenizer.json";

/// Text to tokens and back.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads tokenizer.json for a model of `vocab_size` tokens.
    pub(crate) fn read(files: &Files, vocab_size: usize) -> Result<Self> {
        let remedy =
            "give prompts as token ids (--token-ids needs no tokenizer), or fetch it from the model's page";
        let bytes = files.read_needed(NAME, limits::TOKENIZER_BYTES, remedy)?;
        Self::from_bytes(&files.path(NAME), &bytes, vocab_size)
    }

    /// Builds a tokenizer from the text of a tokenizer.json, whose path is `file`, for a model of `vocab_size` tokens.
    pub fn from_bytes(file: &str, bytes: &[u8], vocab_size: usize) -> Result<Self> {
        // What is not JSON would panic in the library.
        json::check(file, bytes)?;
        let malformed =
            |message: String| TextError::Tokenizer { file: file.to_owned(), message: one_line(&message) };
        let built = guarded(|| tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string()));
        let mut inner = built.map_err(malformed)?;
        // Limits of a training run's batches, which would cut prompts short or fill them up.
        inner.with_truncation(None).map_err(|error| malformed(error.to_string()))?;
        inner.with_padding(None);
        let vocabulary = inner.get_vocab(true);
        let last = vocabulary.into_iter().max_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        match last {
            None => Err(malformed("no tokens".to_owned()).into()),
            Some((token, id)) if id as usize >= vocab_size => {
                let file = file.to_owned();
                Err(TextError::Vocabulary { file, token, id, vocab_size }.into())
            }
            Some((_, id)) => Ok(Self { inner, vocab_size: id as usize + 1 }),
        }
    }

    /// The tokens of `text`; with `special`, the tokens that frame a text (BOS) are added.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoded = guarded(|| self.inner.encode_fast(text, special).map_err(|error| error.to_string()));
        match encoded {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(message) => Err(TextError::Encode { message: one_line(&message) }.into()),
        }
    }

    /// The text of `tokens`; special tokens are left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let decoded = guarded(|| self.inner.decode(tokens, true).map_err(|error| error.to_string()));
        decoded.map_err(|message| TextError::Decode { message: one_line(&message) }.into())
    }

    /// Decodes token by token.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// The id of a token given in full (`</s>`).
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id in full, special ones included.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Every id is below this number.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
