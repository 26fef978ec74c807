//! Tokens chosen on the device, each sequence by its own options.

use super::batch::{Builder, Indices};
use super::{Cuda, Logits, lock};
use crate::step::Sample;
use cudarc::driver::CudaView;
use device::{Check, Result};
use sampling::{BatchSampler, BatchWorkspace, NO_TOKEN, RowParams, Rows, Sampled};
use std::ops::Range;

/// What the options of a step's rows are copied through, and where the kernel keeps logits that penalties change.
pub(super) struct Staging {
    options: Indices,
    workspace: BatchWorkspace,
    /// Tokens of histories and biases that the workspace has room for.
    entries: usize,
}

/// Words of one row's options.
const PARAMS: usize = size_of::<RowParams>() / size_of::<u32>();

/// Whether the device gives all that `sample` asks for: it leaves the most probable alternatives to the host.
pub(super) fn on_device(sample: &Sample<'_>) -> bool {
    sample.params.logprobs.unwrap_or(0) == 0
}

/// A token for each of `samples`, from the first rows of `logits`.
pub(super) fn sample(cuda: &Cuda, logits: &Logits, samples: &[Sample<'_>]) -> Result<Vec<Sampled>> {
    let (stream, rows) = (cuda.stream(), samples.len());
    let laid_out = LaidOut::new(samples)?;
    let mut staging = lock(&cuda.staging);
    let staging = laid_out.fitting(cuda, &mut staging)?;
    staging.options.write(stream, &laid_out.words.indices)?;

    let options = &staging.options;
    let view = |section: &Range<usize>| options.view(section);
    // SAFETY: the section was written from a slice of `RowParams`, whose every bit pattern is one, and starts at a multiple of
    // 16 bytes.
    let params = unsafe { view(&laid_out.params)?.transmute::<RowParams>(rows) };
    let params: CudaView<'_, RowParams> = params.ok_or_else(|| {
        let expected = format_args!("{rows} rows of {PARAMS} words");
        Check("sample").error("options", expected, laid_out.params.len())
    })?;
    let rows_on_device = Rows {
        params,
        history: view(&laid_out.history)?,
        history_offsets: view(&laid_out.history_offsets)?,
        prompt_lens: view(&laid_out.prompt_lens)?,
        bias_tokens: view(&laid_out.bias_tokens)?,
        bias_values: options.floats(&laid_out.bias_values)?,
        bias_offsets: view(&laid_out.bias_offsets)?,
    };
    // One behind the other, to be copied to the host in one piece.
    let words = 2 * rows;
    let mut output = cuda.pool().take::<u32>(words, "sampled tokens and log-probabilities")?;
    let mut values = lock(&logits.values);
    let len = Check("sample").product("rows", &[rows, logits.vocab_size])?;
    let Some(mut values) = values.prefix_mut(len) else {
        return Err(Check("sample").error("logits", format_args!("{len} elements"), "fewer"));
    };
    let mut whole = output.prefix_mut(words);
    let halves = whole.as_mut().and_then(|whole| whole.try_split_at_mut(rows));
    let Some((mut tokens, mut logprobs)) = halves else {
        return Err(Check("sample").error("rows", format_args!("room for {rows}"), "less"));
    };
    // SAFETY: a float is as large as an index, and any bits are one.
    let Some(mut logprobs) = (unsafe { logprobs.transmute_mut::<f32>(rows) }) else {
        return Err(Check("sample").error("rows", format_args!("room for {rows}"), "less"));
    };
    BatchSampler::new(logits.vocab_size)?.launch(
        stream,
        &mut values,
        &rows_on_device,
        &mut staging.workspace,
        &mut tokens,
        &mut logprobs,
    )?;
    let mut landed = cuda.landing(words)?;
    landed.download(stream, &output)?;
    let (tokens, logprobs) = landed.as_slice()?[..words].split_at(rows);
    let chosen = samples.iter().zip(tokens.iter().zip(logprobs));
    chosen
        .map(|(sample, (&token, &logprob))| {
            sampled(token, sample.params.logprobs.map(|_| f32::from_bits(logprob)))
        })
        .collect()
}

/// What the kernels give for a row, or why there is no token.
pub(super) fn sampled(token: u32, logprob: Option<f32>) -> Result<Sampled> {
    match token {
        NO_TOKEN => Err(Check("sample").error("logits", "finite numbers", "NaN or an infinity")),
        token => Ok(Sampled { token, logprob, ..Sampled::default() }),
    }
}

/// The options of all rows as words, and where each part of [`Rows`] stands.
struct LaidOut {
    words: Builder,
    params: Range<usize>,
    history: Range<usize>,
    history_offsets: Range<usize>,
    prompt_lens: Range<usize>,
    bias_tokens: Range<usize>,
    bias_values: Range<usize>,
    bias_offsets: Range<usize>,
}

impl LaidOut {
    fn new(samples: &[Sample<'_>]) -> Result<Self> {
        let params = samples.iter().map(|sample| RowParams::new(sample.params, sample.draw()));
        let params = params.collect::<Result<Vec<_>>>()?;
        // Only penalties look at the text so far.
        let history = |sample: &Sample<'_>| {
            let params = sample.params;
            let plain = params.repetition_penalty == 1.0
                && params.presence_penalty == 0.0
                && params.frequency_penalty == 0.0;
            if plain { 0 } else { sample.history.len() }
        };
        let offsets = |lens: &mut dyn Iterator<Item = usize>| {
            let mut end = 0;
            let ends = lens.map(|len| {
                end += len as u32;
                end
            });
            [0].into_iter().chain(ends).collect::<Vec<u32>>()
        };
        let histories = samples.iter().map(|sample| &sample.history[..history(sample)]);
        let prompt_lens = samples.iter().map(|sample| sample.prompt_len.min(history(sample)) as u32);
        let bias = || samples.iter().flat_map(|sample| &sample.params.logit_bias);
        let mut words = Builder::default();
        Ok(Self {
            params: words.section(bytemuck::cast_slice::<_, [u32; PARAMS]>(&params).concat()),
            history: words.section(histories.flatten().copied()),
            history_offsets: words.section(offsets(&mut samples.iter().map(history))),
            prompt_lens: words.section(prompt_lens),
            bias_tokens: words.section(bias().map(|&(token, _)| token)),
            bias_values: words.section(bias().map(|&(_, value)| value.to_bits())),
            bias_offsets: words
                .section(offsets(&mut samples.iter().map(|sample| sample.params.logit_bias.len()))),
            words,
        })
    }

    /// A staging with room for this.
    fn fitting<'a>(&self, cuda: &Cuda, staging: &'a mut Option<Staging>) -> Result<&'a mut Staging> {
        let (words, entries) = (self.words.indices.len(), self.history.len() + self.bias_tokens.len());
        let fits = |staging: &Staging| staging.options.capacity() >= words && staging.entries >= entries;
        if !staging.as_ref().is_some_and(fits) {
            let (words, entries) = (words.next_power_of_two(), entries.next_power_of_two());
            *staging = Some(Staging {
                options: Indices::new(cuda.pool(), words)?,
                workspace: BatchWorkspace::new(cuda.stream(), entries)?,
                entries,
            });
        }
        staging.as_mut().ok_or_else(|| Check("sample").error("staging", "one", "none"))
    }
}
