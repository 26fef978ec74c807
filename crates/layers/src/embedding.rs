//! Token ids to rows of a table.

use device::{Check, Element, Result};

/// `output[t] = table[tokens[t]]`: a table `[vocab_size, features]` in any storage type.
///
/// ```
/// let embedding = layers::Embedding::new(3, 2)?;
/// let mut output = [0.0; 4];
/// embedding.reference(&[0.0f32, 0.1, 1.0, 1.1, 2.0, 2.1], &[2, 0], &mut output)?;
/// assert_eq!(output, [2.0, 2.1, 0.0, 0.1]);
/// # device::Result::Ok(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedding {
    pub(crate) vocab_size: usize,
    pub(crate) features: usize,
}

/// The op's name in errors.
pub(crate) const EMBEDDING: Check = Check("embedding");

impl Embedding {
    /// Both at least 1; ids are 32 bits wide, so `vocab_size` is at most 2^32.
    pub fn new(vocab_size: usize, features: usize) -> Result<Self> {
        EMBEDDING.positive("vocab_size", vocab_size)?;
        EMBEDDING.that(vocab_size as u64 <= 1 << 32, "vocab_size", "at most 2^32", vocab_size)?;
        EMBEDDING.positive("features", features)?;
        EMBEDDING.product("vocab_size", &[vocab_size, features])?;
        Ok(Self { vocab_size, features })
    }

    /// Writes f32 `[tokens, features]`, the table's values widened.
    pub fn reference<T: Element>(&self, table: &[T], tokens: &[u32], output: &mut [f32]) -> Result<()> {
        self.check_lens(table.len(), tokens.len(), output.len())?;
        let known = |&token: &u32| (token as usize) < self.vocab_size;
        if let Some(token) = tokens.iter().find(|token| !known(token)) {
            return Err(EMBEDDING.error(
                "tokens",
                format_args!("token ids below {}", self.vocab_size),
                token,
            ));
        }
        for (&token, output) in tokens.iter().zip(output.chunks_exact_mut(self.features)) {
            let row = &table[token as usize * self.features..][..self.features];
            for (out, x) in output.iter_mut().zip(row) {
                *out = x.to_f32();
            }
        }
        Ok(())
    }

    pub(crate) fn check_lens(&self, table: usize, tokens: usize, output: usize) -> Result<()> {
        crate::rows::len(EMBEDDING, "table", table, self.vocab_size * self.features)?;
        let elements = EMBEDDING.product("tokens", &[tokens, self.features])?;
        crate::rows::len(EMBEDDING, "output", output, elements)
    }
}
