//! Tokens for a batch of rows, each by its own options.

use crate::params::SAMPLE;
use crate::{History, NO_TOKEN, Params, Sampler};
use bytemuck::{Pod, Zeroable};
use device::Result;

/// The options of one row of a batch, in the form in which the kernel reads them. Logit bias stands beside it ([`Rows`]).
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct RowParams {
    seed: u64,
    draw: u64,
    temperature: f32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    top_k: u32,
    logprob: u32,
}

impl RowParams {
    /// Checks the options. `draw` numbers the random numbers of a request: its count of generated tokens. Of
    /// [`Params::logprobs`] only whether it is set matters: the chosen token's log-probability is what a batch gives.
    pub fn new(params: &Params, draw: u64) -> Result<Self> {
        params.validate()?;
        Ok(Self {
            seed: params.seed,
            draw,
            temperature: params.temperature,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            // No vocabulary has as many tokens: all are kept then.
            top_k: u32::try_from(params.top_k).unwrap_or(0),
            logprob: u32::from(params.logprobs.is_some()),
        })
    }

    fn params(&self) -> Params {
        Params {
            temperature: self.temperature,
            top_k: self.top_k as usize,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: Vec::new(),
            seed: self.seed,
            logprobs: (self.logprob != 0).then_some(0),
        }
    }
}

/// What a batch is sampled by, on the host or on the device. The lists of all rows lie one behind the other; row `r` has the
/// entries `offsets[r]..offsets[r + 1]`. Offsets are cut to the lists' lengths, and entries beyond the vocabulary do
/// nothing, so that no content of device memory can do harm.
#[derive(Debug, Clone, Copy)]
pub struct Rows<P, U, F> {
    /// [`RowParams`] `[rows]`.
    pub params: P,
    /// Token ids, u32: of each row the prompt's, then those generated. Empty for rows without penalties.
    pub history: U,
    /// u32 `[rows + 1]`.
    pub history_offsets: U,
    /// How many of its history are a row's prompt, u32 `[rows]`.
    pub prompt_lens: U,
    /// Token ids of the logit bias, u32.
    pub bias_tokens: U,
    /// What is added to their logits, f32, finite.
    pub bias_values: F,
    /// u32 `[rows + 1]`.
    pub bias_offsets: U,
}

/// How many elements the parts of [`Rows`] have.
pub(crate) type Lens = Rows<usize, usize, usize>;

/// [`Sampler`] over a batch of rows, each with its own options, on the host or on the device.
///
/// Rows whose logits are not all finite get [`NO_TOKEN`]; log-probabilities that are not asked for, or of such rows, are NaN.
///
/// ```
/// use sampling::{BatchSampler, Params, RowParams, Rows};
///
/// let greedy = RowParams::new(&Params::default(), 0)?;
/// let penalty = Params { repetition_penalty: 4.0, logprobs: Some(0), ..Params::default() };
/// let rows = Rows {
///     params: &[greedy, RowParams::new(&penalty, 0)?][..],
///     history: &[1][..], // the second row's
///     history_offsets: &[0, 0, 1][..],
///     prompt_lens: &[0, 1][..],
///     bias_tokens: &[][..],
///     bias_values: &[][..],
///     bias_offsets: &[0, 0, 0][..],
/// };
/// let (mut tokens, mut logprobs) = ([0; 2], [0.0; 2]);
/// let logits = [0.0, 3.0, 1.0, 0.0, 3.0, 1.0];
/// BatchSampler::new(3)?.reference(&logits, &rows, &mut tokens, &mut logprobs)?;
/// assert_eq!(tokens, [1, 2]);
/// assert!(logprobs[0].is_nan() && (logprobs[1] + 2.1698).abs() < 1e-3);
/// # device::Result::Ok(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSampler {
    pub(crate) vocab_size: usize,
}

impl BatchSampler {
    /// `vocab_size`: 1 to 2^31.
    pub fn new(vocab_size: usize) -> Result<Self> {
        SAMPLE.positive("vocab_size", vocab_size)?;
        SAMPLE.that(vocab_size <= 1 << 31, "vocab_size", "at most 2^31", vocab_size)?;
        Ok(Self { vocab_size })
    }

    /// `logits`: f32 `[rows, vocab_size]`; `tokens`: u32 `[rows]`; `logprobs`: f32 `[rows]`.
    pub fn reference(
        &self,
        logits: &[f32],
        rows: &Rows<&[RowParams], &[u32], &[f32]>,
        tokens: &mut [u32],
        logprobs: &mut [f32],
    ) -> Result<()> {
        let lens = Rows {
            params: rows.params.len(),
            history: rows.history.len(),
            history_offsets: rows.history_offsets.len(),
            prompt_lens: rows.prompt_lens.len(),
            bias_tokens: rows.bias_tokens.len(),
            bias_values: rows.bias_values.len(),
            bias_offsets: rows.bias_offsets.len(),
        };
        self.check(logits.len(), lens, tokens.len(), logprobs.len())?;
        let outputs = tokens.iter_mut().zip(logprobs);
        for (row, (logits, (token, logprob))) in logits.chunks_exact(self.vocab_size).zip(outputs).enumerate()
        {
            (*token, *logprob) = (NO_TOKEN, f32::NAN);
            if logits.iter().all(|logit| logit.is_finite()) {
                let known = |id: &u32| (*id as usize) < self.vocab_size;
                let mut params = rows.params[row].params();
                let bias = entries(rows.bias_offsets, row, rows.bias_tokens.len());
                let bias = rows.bias_tokens[bias.clone()].iter().zip(&rows.bias_values[bias]);
                params.logit_bias =
                    bias.filter(|(id, _)| known(id)).map(|(&id, &value)| (id, value)).collect();
                let history = &rows.history[entries(rows.history_offsets, row, rows.history.len())];
                let prompt_len = history.len().min(rows.prompt_lens[row] as usize);
                let (prompt, text) = history.split_at(prompt_len);
                let prompt: Vec<u32> = prompt.iter().copied().filter(known).collect();
                let tokens: Vec<u32> =
                    prompt.iter().chain(text.iter().filter(|id| known(id))).copied().collect();
                let history = History { tokens: &tokens, prompt_len: prompt.len() };
                let sampled =
                    Sampler::new(self.vocab_size, &params)?.sample(logits, history, rows.params[row].draw)?;
                (*token, *logprob) = (sampled.token, sampled.logprob.unwrap_or(f32::NAN));
            }
        }
        Ok(())
    }

    pub(crate) fn check(&self, logits: usize, lens: Lens, tokens: usize, logprobs: usize) -> Result<()> {
        let rows = tokens;
        let len = |argument, got, expected: usize| {
            SAMPLE.that(got == expected, argument, format_args!("{expected} elements"), got)
        };
        len("logits", logits, SAMPLE.product("tokens", &[rows, self.vocab_size])?)?;
        len("rows.params", lens.params, rows)?;
        len("rows.history_offsets", lens.history_offsets, rows + 1)?;
        len("rows.prompt_lens", lens.prompt_lens, rows)?;
        len("rows.bias_values", lens.bias_values, lens.bias_tokens)?;
        len("rows.bias_offsets", lens.bias_offsets, rows + 1)?;
        len("logprobs", logprobs, rows)
    }
}

/// The entries of `row` in a list of `len`.
fn entries(offsets: &[u32], row: usize, len: usize) -> std::ops::Range<usize> {
    let end = len.min(offsets[row + 1] as usize);
    end.min(offsets[row] as usize)..end
}
