//! Greedy choice over a batch of rows.

use device::{Check, Result};

/// What a row that holds a logit that is not finite gets instead of a token.
pub const NO_TOKEN: u32 = u32::MAX;

/// The op's name in errors.
pub(crate) const ARGMAX: Check = Check("argmax");

/// The largest logit's token of each row `[rows, vocab_size]`; the lowest id among equals; [`NO_TOKEN`] where a row holds
/// NaN or an infinity.
///
/// What [`crate::Sampler`] does at temperature 0 without penalties and bias, for a whole batch, on the host or on the
/// device.
///
/// ```
/// use sampling::{Argmax, NO_TOKEN};
///
/// let mut tokens = [0; 3];
/// let logits = [1.0, 3.0, 3.0, -1.0, -2.0, -1.0, 0.0, f32::NAN, 0.0];
/// Argmax::new(3)?.reference(&logits, &mut tokens)?;
/// assert_eq!(tokens, [1, 0, NO_TOKEN]);
/// # device::Result::Ok(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argmax {
    pub(crate) vocab_size: usize,
}

impl Argmax {
    /// `vocab_size`: 1 to 2^31.
    pub fn new(vocab_size: usize) -> Result<Self> {
        ARGMAX.positive("vocab_size", vocab_size)?;
        ARGMAX.that(vocab_size <= 1 << 31, "vocab_size", "at most 2^31", vocab_size)?;
        Ok(Self { vocab_size })
    }

    /// `logits`: f32 `[rows, vocab_size]`; `tokens`: u32 `[rows]`.
    pub fn reference(&self, logits: &[f32], tokens: &mut [u32]) -> Result<()> {
        self.check_lens(logits.len(), tokens.len())?;
        for (row, token) in logits.chunks_exact(self.vocab_size).zip(tokens) {
            *token = if row.iter().all(|x| x.is_finite()) { argmax(row) } else { NO_TOKEN };
        }
        Ok(())
    }

    pub(crate) fn check_lens(&self, logits: usize, tokens: usize) -> Result<()> {
        let expected = ARGMAX.product("tokens", &[tokens, self.vocab_size])?;
        ARGMAX.that(logits == expected, "logits", format_args!("{expected} elements"), logits)
    }
}

/// The largest logit's token; the lowest among equals.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let larger = |best: usize, token: usize| if logits[token] > logits[best] { token } else { best };
    (1..logits.len()).fold(0, larger) as u32
}
