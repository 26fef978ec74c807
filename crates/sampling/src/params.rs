//! How a request wants its tokens chosen.

use device::{Check, Result};

/// The op's name in errors.
pub(crate) const SAMPLE: Check = Check("sample");

/// How a request wants its tokens chosen. The default is greedy, without penalties and log-probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// What logits are divided by; 0 chooses the largest.
    pub temperature: f32,
    /// Keeps the `top_k` largest; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest largest whose probabilities reach `top_p` of what top-k kept. In (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keeps those at least `min_p` times as probable as the most probable. In [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits of tokens of prompt and text, multiplies negative ones (arXiv:1909.05858). More than 0;
    /// 1 is none.
    pub repetition_penalty: f32,
    /// Taken off the logit of every token of the text generated so far.
    pub presence_penalty: f32,
    /// Taken off the logit of a token for each time that it stands in the text generated so far.
    pub frequency_penalty: f32,
    /// Token ids and what is added to their logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// The key of the random numbers.
    pub seed: u64,
    /// `Some(n)`: the log-probabilities of the chosen token and of the `n` most probable ones.
    pub logprobs: Option<usize>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl Params {
    /// Whether they choose the largest logit as it is and report nothing else: [`crate::Argmax`] does that for a batch.
    pub fn is_argmax(&self) -> bool {
        let Self { temperature, repetition_penalty, presence_penalty, frequency_penalty, .. } = *self;
        let penalties = [repetition_penalty - 1.0, presence_penalty, frequency_penalty];
        let plain = penalties == [0.0; 3] && self.logit_bias.is_empty();
        temperature == 0.0 && plain && self.logprobs.is_none()
    }

    /// Checks every option but the token ids of `logit_bias`, which need a vocabulary ([`crate::Sampler::new`]).
    pub fn validate(&self) -> Result<()> {
        let at_least_0 = self.temperature.is_finite() && self.temperature >= 0.0;
        SAMPLE.that(at_least_0, "temperature", "a finite number of at least 0", self.temperature)?;
        let share = self.top_p > 0.0 && self.top_p <= 1.0;
        SAMPLE.that(share, "top_p", "a number above 0 and up to 1", self.top_p)?;
        SAMPLE.that((0.0..=1.0).contains(&self.min_p), "min_p", "a number from 0 to 1", self.min_p)?;
        let above_0 = self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0;
        SAMPLE.that(above_0, "repetition_penalty", "a finite number above 0", self.repetition_penalty)?;
        SAMPLE.finite("presence_penalty", self.presence_penalty)?;
        SAMPLE.finite("frequency_penalty", self.frequency_penalty)?;
        self.logit_bias.iter().try_for_each(|&(_, bias)| SAMPLE.finite("logit_bias", bias))
    }
}
