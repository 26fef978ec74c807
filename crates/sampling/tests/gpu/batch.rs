//! All options on the device against the reference, row by row.

#[path = "../oracle/mod.rs"]
mod oracle;

use cudarc::driver::CudaSlice;
use device::gpu::{Gpu, Graph, download, upload};
use op_test::{DeviceGuarded, Rng, sanitized};
use sampling::{BatchSampler, BatchWorkspace, History, NO_TOKEN, Params, RowParams, Rows, Sampler};
use std::sync::Arc;

type Stream = Arc<cudarc::driver::CudaStream>;

/// A row with its options and lists.
#[derive(Debug, Clone)]
struct Row {
    logits: Vec<f32>,
    params: Params,
    draw: u64,
    history: Vec<u32>,
    prompt_len: usize,
}

/// All rows, as the plan takes them.
struct Batch {
    logits: Vec<f32>,
    params: Vec<RowParams>,
    history: Vec<u32>,
    history_offsets: Vec<u32>,
    prompt_lens: Vec<u32>,
    bias_tokens: Vec<u32>,
    bias_values: Vec<f32>,
    bias_offsets: Vec<u32>,
}

impl Batch {
    fn new(rows: &[Row]) -> Self {
        let offsets = |len: &dyn Fn(&Row) -> usize| {
            let mut end = 0;
            let ends = rows.iter().map(|row| {
                end += len(row) as u32;
                end
            });
            std::iter::once(0).chain(ends).collect::<Vec<u32>>()
        };
        let biases = || rows.iter().flat_map(|row| &row.params.logit_bias);
        Self {
            logits: rows.iter().flat_map(|row| row.logits.clone()).collect(),
            params: rows.iter().map(|row| RowParams::new(&row.params, row.draw).unwrap()).collect(),
            history: rows.iter().flat_map(|row| row.history.clone()).collect(),
            history_offsets: offsets(&|row| row.history.len()),
            prompt_lens: rows.iter().map(|row| row.prompt_len as u32).collect(),
            bias_tokens: biases().map(|bias| bias.0).collect(),
            bias_values: biases().map(|bias| bias.1).collect(),
            bias_offsets: offsets(&|row| row.params.logit_bias.len()),
        }
    }

    fn lists(&self, stream: &Stream) -> Rows<CudaSlice<RowParams>, CudaSlice<u32>, CudaSlice<f32>> {
        let words = |words: &[u32]| upload(stream, words, "words").unwrap();
        Rows {
            params: upload(stream, &self.params, "params").unwrap(),
            history: words(&self.history),
            history_offsets: words(&self.history_offsets),
            prompt_lens: words(&self.prompt_lens),
            bias_tokens: words(&self.bias_tokens),
            bias_values: upload(stream, &self.bias_values, "bias").unwrap(),
            bias_offsets: words(&self.bias_offsets),
        }
    }

    /// Tokens and log-probabilities from the device, outputs poisoned and guarded; the logits are what they were.
    fn run(&self, stream: &Stream, vocab_size: usize) -> (Vec<u32>, Vec<f32>) {
        let rows = self.lists(stream);
        let mut workspace = BatchWorkspace::new(stream, self.history.len() + self.bias_tokens.len()).unwrap();
        let mut logits = DeviceGuarded::filled(stream, &self.logits);
        let mut logprobs = DeviceGuarded::<f32>::filled(stream, &vec![7e7; self.params.len()]);
        let mut tokens = upload(stream, &vec![super::POISON; self.params.len() + 8], "tokens").unwrap();
        let count = self.params.len();
        let plan = BatchSampler::new(vocab_size).unwrap();
        plan.launch(
            stream,
            &mut logits.view(),
            &rows,
            &mut workspace,
            &mut tokens.slice_mut(4..4 + count),
            &mut logprobs.view(),
        )
        .unwrap();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&logits.contents(stream)) == bits(&self.logits), "the logits were changed");
        let tokens = download(stream, &tokens).unwrap();
        let guards = tokens[..4].iter().chain(&tokens[4 + count..]);
        assert!(guards.clone().all(|&token| token == super::POISON), "a guard was written");
        (tokens[4..4 + count].to_vec(), logprobs.contents(stream))
    }
}

/// How near a random number may lie to a boundary for the token beyond it to be as good: vocab_size times the grain of weights.
fn margin(vocab_size: usize) -> f64 {
    2.0 * vocab_size as f64 * 2f64.powi(vocab_size.next_power_of_two().ilog2() as i32 - 62)
}

/// Holds a batch against the host's sampler. Returns how many rows took the other token at a boundary.
#[track_caller]
fn check(stream: &Stream, rows: &[Row]) -> usize {
    let vocab_size = rows[0].logits.len();
    let batch = Batch::new(rows);
    let (tokens, logprobs) = batch.run(stream, vocab_size);
    assert!(
        (tokens.clone(), bits(&logprobs)) == {
            let (tokens, logprobs) = batch.run(stream, vocab_size);
            (tokens, bits(&logprobs))
        }
    );
    let mut at_boundary = 0;
    for (row, (&token, &logprob)) in rows.iter().zip(tokens.iter().zip(&logprobs)) {
        let params = Params { logprobs: Some(0), ..row.params.clone() };
        let history = History { tokens: &row.history, prompt_len: row.prompt_len };
        let sampler = Sampler::new(vocab_size, &params).unwrap();
        let Ok(want) = sampler.sample(&row.logits, history, row.draw) else {
            assert!(token == NO_TOKEN && logprob.is_nan(), "{token} of a row that is not finite");
            continue;
        };
        let mut want_logprob = want.logprob.unwrap();
        if token != want.token {
            // The draw must lie within the margin of the stretch of the token that was taken instead.
            let shares = oracle::probabilities(&row.logits, history, &params);
            let before: f64 = shares[..token as usize].iter().sum();
            let (uniform, margin) = (sampling::uniform(params.seed, row.draw), margin(vocab_size));
            let near = before - margin <= uniform && uniform <= before + shares[token as usize] + margin;
            assert!(near && shares[token as usize] > 0.0, "{token} for {}: {:?}", want.token, row.params);
            at_boundary += 1;
            let at = (row.logits[token as usize] - row.logits[want.token as usize]) as f64;
            want_logprob += at as f32;
        }
        if row.params.logprobs.is_none() {
            assert!(logprob.is_nan());
            continue;
        }
        // One rounding to f32 on either side, and the grain of the sum's logarithm.
        let bound = f64::from(want_logprob.abs()) * 2f64.powi(-22) + 1e-7;
        let off = (f64::from(logprob) - f64::from(want_logprob)).abs();
        assert!(off <= bound, "log-probability {logprob}, expected {want_logprob}: {:?}", row.params);
    }
    at_boundary
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// One of the usual values of an option, or any.
fn options(rng: &mut Rng, vocab_size: usize) -> Params {
    let share = |rng: &mut Rng| rng.signed().abs().clamp(1e-6, 1.0);
    let mut params = Params { seed: rng.bits(), ..Params::default() };
    params.temperature = [0.0, 1e-3, 0.3, 0.7, 1.0, 1.0, 1.5, 20.0][rng.below(0..8)];
    params.top_k = [0, 0, 1, 2, 40, rng.below(0..vocab_size + 3)][rng.below(0..6)];
    params.top_p = [1.0, 1.0, 0.9, 0.5, 1e-4, share(rng)][rng.below(0..6)];
    params.min_p = [0.0, 0.0, 0.05, 1.0, share(rng)][rng.below(0..5)];
    params.repetition_penalty = [1.0, 1.0, 1.2, 0.5, 3e38][rng.below(0..5)];
    params.presence_penalty = [0.0, 0.0, 0.6, -1.5, 1e38][rng.below(0..5)];
    params.frequency_penalty = [0.0, 0.0, 0.3, -0.2, 3e38][rng.below(0..5)];
    if rng.below(0..3) == 0 {
        let bias = |rng: &mut Rng| (rng.below(0..vocab_size) as u32, rng.normal(5.0));
        params.logit_bias = (0..rng.below(1..9)).map(|_| bias(rng)).collect();
    }
    params.logprobs = (rng.below(0..2) == 0).then_some(0);
    params
}

fn row(rng: &mut Rng, vocab_size: usize) -> Row {
    let params = options(rng, vocab_size);
    let history: Vec<u32> = (0..[0, 1, 30, 400][rng.below(0..4)])
        // Few different ones, so that they repeat.
        .map(|_| rng.below(0..vocab_size.min(60)) as u32 * (vocab_size / vocab_size.min(60)) as u32)
        .collect();
    let prompt_len = rng.below(0..history.len() + 1);
    Row {
        logits: super::draw(rng, vocab_size),
        params,
        draw: rng.bits() >> rng.below(0..64),
        history,
        prompt_len,
    }
}

#[test]
#[ignore = "needs an H200"]
fn every_mix_of_options() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(21);
    let (mut rows_checked, mut at_boundary) = (0, 0);
    // Around a warp, its square, a block, a bucket of the histograms; then anything.
    let widths = [1, 2, 31, 32, 33, 1000, 1023, 1024, 1025, 2047, 2049, 8191, 8193];
    let random: Vec<usize> = (0..40).map(|_| rng.below(1..6000)).collect();
    let (every, rows_each) = if sanitized() { (8, 10) } else { (1, 80) };
    for vocab_size in widths.into_iter().chain(random).step_by(every) {
        let rows: Vec<Row> = (0..rows_each).map(|_| row(&mut rng, vocab_size)).collect();
        at_boundary += check(gpu.stream(), &rows);
        rows_checked += rows.len();
    }
    println!("{rows_checked} rows, {at_boundary} at a boundary");
    assert!(at_boundary * 1000 <= rows_checked);
}

/// Thousands of weights that are each a hundred-thousandth of the largest: a third of what they sum to lies in the carries
/// between the halves of a bucket. The random numbers are those that choose among the ones before the largest.
#[test]
#[ignore = "needs an H200"]
fn small_weights_add_up() {
    let gpu = Gpu::open(0).unwrap();
    let vocab_size = 5000;
    let mut logits = vec![-11.5; vocab_size];
    logits[2500] = 0.0;
    let draws = (0..).filter(|&draw| sampling::uniform(9, draw) < 0.015);
    let row = |draw| Row {
        logits: logits.clone(),
        params: Params { seed: 9, temperature: 1.0, top_p: 0.97, logprobs: Some(0), ..Params::default() },
        draw,
        history: Vec::new(),
        prompt_len: 0,
    };
    let rows: Vec<Row> = draws.take(20).map(row).collect();
    assert_eq!(check(gpu.stream(), &rows), 0);
}

#[test]
#[ignore = "needs an H200"]
fn full_size_vocabularies() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(22);
    let mut at_boundary = 0;
    for vocab_size in [32000, 65024, 128256, 256000, 262144] {
        let rows: Vec<Row> = (0..24).map(|_| row(&mut rng, vocab_size)).collect();
        at_boundary += check(gpu.stream(), &rows);
    }
    assert!(at_boundary <= 1, "{at_boundary} rows at a boundary");
}

#[test]
#[ignore = "needs an H200"]
fn batch_rows_that_are_not_finite_get_no_token() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(23);
    for vocab_size in [1, 33, 5000] {
        let mut rows: Vec<Row> = (0..40).map(|_| row(&mut rng, vocab_size)).collect();
        for (i, row) in rows.iter_mut().enumerate().filter(|(i, _)| i % 3 > 0) {
            row.logits[rng.below(0..vocab_size)] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3];
        }
        check(gpu.stream(), &rows);
    }
}

/// Offsets and ids that lie beyond their lists and the vocabulary do nothing, as in the reference.
#[test]
#[ignore = "needs an H200"]
fn lists_are_cut() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(24);
    let rows: Vec<Row> = (0..3)
        .map(|_| Row {
            params: Params {
                temperature: 0.5,
                repetition_penalty: 1.7,
                logit_bias: vec![(1, 4.0)],
                ..Params::default()
            },
            history: vec![4, 5, 6, 7],
            prompt_len: 2,
            ..row(&mut rng, 100)
        })
        .collect();
    let mut batch = Batch::new(&rows);
    batch.history_offsets = vec![8, 4, 1000, 2000];
    batch.prompt_lens = vec![u32::MAX, 0, 3];
    batch.history[5] = 100;
    batch.history[6] = u32::MAX;
    batch.bias_offsets = vec![u32::MAX, 1, 0, 7];
    batch.bias_tokens[2] = 1 << 31;
    let (tokens, _) = batch.run(gpu.stream(), 100);
    let lists = Rows {
        params: &batch.params[..],
        history: &batch.history[..],
        history_offsets: &batch.history_offsets[..],
        prompt_lens: &batch.prompt_lens[..],
        bias_tokens: &batch.bias_tokens[..],
        bias_values: &batch.bias_values[..],
        bias_offsets: &batch.bias_offsets[..],
    };
    let (mut want, mut logprobs) = ([0; 3], [0.0; 3]);
    BatchSampler::new(100).unwrap().reference(&batch.logits, &lists, &mut want, &mut logprobs).unwrap();
    assert_eq!(tokens, want);
}

/// A captured launch gives the tokens of a plain one, with every way to choose.
#[test]
#[ignore = "needs an H200"]
fn captured_launches_replay() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut rng = Rng::new(25);
    let (count, vocab_size) = (40, 5000);
    let rows: Vec<Row> = (0..count).map(|_| row(&mut rng, vocab_size)).collect();
    let batch = Batch::new(&rows);
    let (want, _) = batch.run(stream, vocab_size);
    let lists = batch.lists(stream);
    let mut workspace = BatchWorkspace::new(stream, batch.history.len() + batch.bias_tokens.len()).unwrap();
    let mut tokens = upload(stream, &vec![super::POISON; count], "tokens").unwrap();
    let mut logprobs = upload(stream, &vec![0f32; count], "logprobs").unwrap();
    let plan = BatchSampler::new(vocab_size).unwrap();
    let mut logits = upload(stream, &batch.logits, "logits").unwrap();
    let once = || plan.launch(stream, &mut logits, &lists, &mut workspace, &mut tokens, &mut logprobs);
    // SAFETY: all buffers outlive the graph, and the stream orders every use of them.
    let graph = unsafe { Graph::capture(stream, once) }.unwrap();
    for _ in 0..3 {
        graph.replay().unwrap();
    }
    assert_eq!(download(stream, &tokens).unwrap(), want);
}

#[test]
#[ignore = "needs an H200"]
fn batch_lengths_are_checked() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let words = |len: usize| upload(stream, &vec![0u32; len], "words").unwrap();
    let floats = |len: usize| upload(stream, &vec![0f32; len], "floats").unwrap();
    let params = vec![RowParams::new(&Params::default(), 0).unwrap(); 2];
    let rows = |history: usize| Rows {
        params: upload(stream, &params, "params").unwrap(),
        history: words(history),
        history_offsets: words(3),
        prompt_lens: words(2),
        bias_tokens: words(0),
        bias_values: floats(0),
        bias_offsets: words(3),
    };
    let plan = BatchSampler::new(10).unwrap();
    let mut workspace = BatchWorkspace::new(stream, 4).unwrap();
    let mut launch = |logits: usize, history: usize| {
        let (mut tokens, mut logprobs) = (words(2), floats(2));
        let (mut logits, rows) = (floats(logits), rows(history));
        plan.launch(stream, &mut logits, &rows, &mut workspace, &mut tokens, &mut logprobs)
            .map_err(|error| error.to_string())
    };
    assert_eq!(launch(19, 0).unwrap_err(), "sample: logits: expected 20 elements, got 19");
    assert_eq!(launch(20, 5).unwrap_err(), "sample: workspace: expected room for 5 entries, got 4");
    launch(20, 4).unwrap();
}
