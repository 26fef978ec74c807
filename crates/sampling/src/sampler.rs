//! One row of logits to one token.

use crate::argmax::argmax;
use crate::candidates;
use crate::params::{Params, SAMPLE};
use device::Result;
use std::borrow::Cow;

/// The tokens of a sequence so far, for penalties: the prompt's, then those generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct History<'a> {
    /// Prompt and generated tokens.
    pub tokens: &'a [u32],
    /// How many of them are the prompt's.
    pub prompt_len: usize,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Its log-probability, where [`Params::logprobs`] asks for it.
    pub logprob: Option<f32>,
    /// The most probable tokens, the most probable first, as many as [`Params::logprobs`] says.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// A token with its log-probability (natural logarithm) under the model's own distribution: the softmax of the logits
/// before penalties, bias and temperature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// The token's id.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
}

/// Checked options over a vocabulary.
#[derive(Debug, Clone, Copy)]
pub struct Sampler<'a> {
    vocab_size: usize,
    params: &'a Params,
}

impl<'a> Sampler<'a> {
    /// Checks the options; token ids of `logit_bias` must lie below `vocab_size`, which is 1 to 2^32.
    pub fn new(vocab_size: usize, params: &'a Params) -> Result<Self> {
        SAMPLE.positive("vocab_size", vocab_size)?;
        SAMPLE.that(vocab_size as u64 <= 1 << 32, "vocab_size", "at most 2^32", vocab_size)?;
        params.validate()?;
        let sampler = Self { vocab_size, params };
        sampler.check_ids("logit_bias", params.logit_bias.iter().map(|&(token, _)| token))?;
        Ok(sampler)
    }

    /// Chooses a token from `logits`, f32 `[vocab_size]`. `draw` numbers the random numbers of a request: its count of
    /// generated tokens.
    ///
    /// # Errors
    /// A logit that is NaN or infinite, a token id in `history` beyond the vocabulary, wrong lengths.
    pub fn sample(&self, logits: &[f32], history: History<'_>, draw: u64) -> Result<Sampled> {
        SAMPLE.len("logits", logits, self.vocab_size)?;
        if let Some(token) = logits.iter().position(|logit| !logit.is_finite()) {
            let got = format_args!("{} for token {token}", logits[token]);
            return Err(SAMPLE.error("logits", "finite numbers", got));
        }
        let adjusted = self.adjust(logits, history)?;
        let token =
            if self.params.temperature == 0.0 { argmax(&adjusted) } else { self.draw(&adjusted, draw) };
        Ok(self.with_logprobs(token, logits))
    }

    /// Penalties and bias.
    fn adjust<'l>(&self, logits: &'l [f32], history: History<'_>) -> Result<Cow<'l, [f32]>> {
        let Params { repetition_penalty, presence_penalty, frequency_penalty, logit_bias, .. } = self.params;
        let expected = format_args!("at most the {} tokens of the history", history.tokens.len());
        let split = history.tokens.split_at_checked(history.prompt_len);
        let (_, generated) =
            split.ok_or_else(|| SAMPLE.error("history.prompt_len", expected, history.prompt_len))?;
        self.check_ids("history.tokens", history.tokens.iter().copied())?;

        let mut adjusted = Cow::Borrowed(logits);
        if *repetition_penalty != 1.0 {
            let adjusted = adjusted.to_mut();
            for token in occurring(history.tokens, self.vocab_size).map(|(token, _)| token) {
                let logit = &mut adjusted[token];
                *logit = bounded(if *logit < 0.0 {
                    *logit * repetition_penalty
                } else {
                    *logit / repetition_penalty
                });
            }
        }
        if *presence_penalty != 0.0 || *frequency_penalty != 0.0 {
            let adjusted = adjusted.to_mut();
            for (token, count) in occurring(generated, self.vocab_size) {
                let logit = &mut adjusted[token];
                *logit = bounded(*logit - (presence_penalty + count as f32 * frequency_penalty));
            }
        }
        for &(token, bias) in logit_bias {
            let logit = &mut adjusted.to_mut()[token as usize];
            *logit = bounded(*logit + bias);
        }
        Ok(adjusted)
    }

    /// Temperature, the three filters, the draw.
    fn draw(&self, logits: &[f32], draw: u64) -> u32 {
        let Params { temperature, top_k, top_p, min_p, seed, .. } = *self.params;
        // Relative to the most probable token, whose weight is 1: nothing overflows, however low the temperature.
        let largest = f64::from(logits[argmax(logits) as usize]);
        let weight = |logit: f32| ((f64::from(logit) - largest) / f64::from(temperature)).exp();
        let mut kept = candidates::all(logits);
        if top_k > 0 {
            candidates::keep_top(&mut kept, top_k);
        }
        if top_p < 1.0 {
            candidates::keep_share(&mut kept, f64::from(top_p), weight);
        }
        if min_p > 0.0 {
            kept.retain(|candidate| weight(candidate.logit) >= f64::from(min_p));
        }
        candidates::draw(&mut kept, crate::uniform(seed, draw), weight)
    }

    fn with_logprobs(&self, token: u32, logits: &[f32]) -> Sampled {
        let Some(count) = self.params.logprobs else { return Sampled { token, ..Sampled::default() } };
        let largest = f64::from(logits[argmax(logits) as usize]);
        let total: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
        let logprob = |logit: f32| (f64::from(logit) - largest - total.ln()) as f32;
        let top = candidates::ranked(logits, count).into_iter();
        Sampled {
            token,
            logprob: Some(logprob(logits[token as usize])),
            top_logprobs: top.map(|c| TokenLogprob { token: c.token, logprob: logprob(c.logit) }).collect(),
        }
    }

    fn check_ids(&self, argument: &'static str, mut ids: impl Iterator<Item = u32>) -> Result<()> {
        let beyond = ids.find(|&token| token as usize >= self.vocab_size);
        let expected = format_args!("token ids below {}", self.vocab_size);
        beyond.map_or(Ok(()), |token| Err(SAMPLE.error(argument, expected, token)))
    }
}

/// Huge options must not make what was finite infinite: opposite ones would meet as NaN.
fn bounded(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX)
}

/// Each token that occurs, with how often.
fn occurring(tokens: &[u32], vocab_size: usize) -> impl Iterator<Item = (usize, u32)> {
    let mut counts = vec![0u32; vocab_size];
    for &token in tokens {
        counts[token as usize] += 1;
    }
    counts.into_iter().enumerate().filter(|&(_, count)| count > 0)
}
