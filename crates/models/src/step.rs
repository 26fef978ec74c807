//! One step's work, as the engine hands it to a model.

/// A ragged batch: decodes (one new token) and prefill chunks (many) side by side.
#[derive(Debug, Clone, Default)]
pub struct Step<'a> {
    /// The sequences that take part. Each has at least one new token.
    pub sequences: Vec<StepSequence<'a>>,
}

/// What one sequence brings to a step.
#[derive(Debug, Clone, Copy)]
pub struct StepSequence<'a> {
    /// The new token ids; the last of them stands at position `context_len - 1`.
    pub tokens: &'a [u32],
    /// Tokens in the cache after this step, the new ones included.
    pub context_len: usize,
    /// Tokens of the request's prompt. Dynamic rotary scaling depends on it, whatever the chunks.
    pub prompt_len: usize,
    /// The pages of the sequence: token `t` lies in `pages[t / 64]`.
    pub pages: &'a [u32],
    /// How to choose the token that follows the last new one; `None` where the prompt goes on.
    pub sample: Option<Sample<'a>>,
}

/// How one token is to be chosen.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// The request's options.
    pub params: &'a sampling::Params,
    /// Prompt and generated tokens so far, for penalties.
    pub history: &'a [u32],
    /// How many of `history` are the prompt's. The number of generated tokens is also the random counter, so that
    /// a sequence that was preempted repeats its draws.
    pub prompt_len: usize,
}

impl Step<'_> {
    /// Rows of activations: the new tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens.len()).sum()
    }
}

impl Sample<'_> {
    /// Chooses from one row of logits on the host.
    pub fn choose(&self, logits: &[f32]) -> device::Result<sampling::Sampled> {
        let history = sampling::History { tokens: self.history, prompt_len: self.prompt_len };
        sampling::Sampler::new(logits.len(), self.params)?.sample(logits, history, self.draw())
    }

    /// The random counter: the number of generated tokens.
    pub fn draw(&self) -> u64 {
        self.history.len().saturating_sub(self.prompt_len) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sampling::{History, Params, Sampler};

    #[test]
    fn a_draw_is_counted_by_the_generated_tokens() {
        let params = Params { temperature: 1.0, seed: 7, ..Params::default() };
        let history = [3; 9];
        let logits = [0.0; 64];
        for prompt_len in 1..=9 {
            let sample = Sample { params: &params, history: &history, prompt_len };
            let history = History { tokens: &history, prompt_len };
            let draw = (9 - prompt_len) as u64;
            let wanted = Sampler::new(64, &params).unwrap().sample(&logits, history, draw).unwrap();
            assert_eq!(sample.choose(&logits).unwrap(), wanted);
        }
    }
}
