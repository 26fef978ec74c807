//! Every draw against a brute-force oracle, and the laws of log-probabilities.
// A failed expectation is the test's failure.
#![allow(clippy::unwrap_used)]

mod oracle;

use op_test::Rng;
use proptest::prelude::*;
use sampling::{
    Argmax, BatchSampler, History, NO_TOKEN, Params, RowParams, Rows, Sampled, Sampler, philox4x32, uniform,
};

/// Sizes on either side of the chunks that top-p sorts (64, then 256 more, then 1024 more).
fn vocab_sizes() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..8, 62usize..67, 318usize..323, 1342usize..1347, 100usize..1500]
}

fn params() -> impl Strategy<Value = Params> {
    (
        (prop_oneof![Just(0.0f32), 0.05f32..3.0], prop_oneof![Just(0usize), 1usize..20, 300usize..340]),
        (prop_oneof![Just(1.0f32), 0.01f32..1.0], prop_oneof![Just(0.0f32), 0.0f32..1.0, Just(1.0)]),
        (prop_oneof![Just(1.0f32), 0.5f32..2.0], prop_oneof![Just(0.0f32), -2.0f32..2.0]),
        (prop_oneof![Just(0.0f32), -2.0f32..2.0], any::<u64>(), prop::option::of(0usize..10)),
    )
        .prop_map(
            |((temperature, top_k), (top_p, min_p), (repetition, presence), (frequency, seed, logprobs))| {
                Params {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    repetition_penalty: repetition,
                    presence_penalty: presence,
                    frequency_penalty: frequency,
                    logit_bias: Vec::new(),
                    seed,
                    logprobs,
                }
            },
        )
}

/// A row of logits, many of them equal where `coarse`, with a history and biases.
fn row(rng: &mut Rng, vocab_size: usize, coarse: bool, params: &mut Params) -> (Vec<f32>, Vec<u32>) {
    let deviation = if coarse { 1.0 } else { 3.0 };
    let mut logits = rng.tensor(vocab_size, deviation);
    if coarse {
        logits.iter_mut().for_each(|logit| *logit = (*logit * 2.0).round() / 2.0);
    }
    let token = |rng: &mut Rng| rng.below(0..vocab_size) as u32;
    let len = rng.below(0..30);
    params.logit_bias = (0..rng.below(0..4)).map(|_| (token(rng), rng.normal(3.0))).collect();
    let tokens = (0..len).map(|_| token(rng)).collect();
    (logits, tokens)
}

fn sample(params: &Params, logits: &[f32], history: History<'_>, draw: u64) -> Sampled {
    Sampler::new(logits.len(), params).unwrap().sample(logits, history, draw).unwrap()
}

proptest! {
    #![proptest_config(op_test::cases())]

    #[test]
    fn a_draw_inverts_the_cumulative_distribution(
        vocab_size in vocab_sizes(), mut params in params(), coarse: bool, seed: u64
    ) {
        let mut rng = Rng::new(seed);
        let (logits, tokens) = row(&mut rng, vocab_size, coarse, &mut params);
        let history = History { tokens: &tokens, prompt_len: rng.below(0..tokens.len() + 1) };
        let probabilities = oracle::probabilities(&logits, history, &params);
        for draw in 0..8 {
            let token = sample(&params, &logits, history, draw).token as usize;
            prop_assert!(probabilities[token] > 0.0, "token {} was filtered out", token);
            let below: f64 = probabilities[..token].iter().sum();
            let at = if params.temperature == 0.0 { 0.5 } else { uniform(params.seed, draw) };
            // The oracle's own f64 sums: 1e-12 is far above their rounding and far below any probability that matters.
            prop_assert!(below - 1e-12 <= at && at <= below + probabilities[token] + 1e-12);
        }
    }

    /// Each row gets what it gets alone, and lists are cut to what is there.
    #[test]
    fn a_batch_is_its_rows(vocab_size in vocab_sizes(), all in prop::collection::vec(params(), 1..5), seed: u64) {
        let mut rng = Rng::new(seed);
        let (mut logits, mut history, mut want, mut want_logprobs) = (vec![], vec![], vec![], vec![]);
        let (mut history_offsets, mut bias_offsets) = (vec![0], vec![0]);
        let (mut prompt_lens, mut bias_tokens, mut bias_values, mut row_params) = (vec![], vec![], vec![], vec![]);
        for mut params in all {
            let (row, tokens) = row(&mut rng, vocab_size, true, &mut params);
            let (prompt_len, draw) = (rng.below(0..tokens.len() + 1), rng.bits());
            let sampled = sample(&params, &row, History { tokens: &tokens, prompt_len }, draw);
            want.push(sampled.token);
            want_logprobs.push(sampled.logprob);
            logits.extend(row);
            history.extend(tokens);
            // Not a token: does nothing.
            history.push(vocab_size as u32);
            history_offsets.push(history.len() as u32);
            prompt_lens.push(prompt_len as u32);
            bias_tokens.extend(params.logit_bias.iter().map(|bias| bias.0));
            bias_values.extend(params.logit_bias.iter().map(|bias| bias.1));
            bias_offsets.push(bias_tokens.len() as u32);
            row_params.push(RowParams::new(&params, draw).unwrap());
        }
        // Beyond the lists.
        history_offsets.pop();
        history_offsets.push(u32::MAX);
        let rows = Rows {
            params: &row_params[..],
            history: &history[..],
            history_offsets: &history_offsets[..],
            prompt_lens: &prompt_lens[..],
            bias_tokens: &bias_tokens[..],
            bias_values: &bias_values[..],
            bias_offsets: &bias_offsets[..],
        };
        let (mut tokens, mut logprobs) = (vec![0; want.len()], vec![0.0; want.len()]);
        BatchSampler::new(vocab_size).unwrap().reference(&logits, &rows, &mut tokens, &mut logprobs).unwrap();
        prop_assert_eq!(tokens, want);
        for (logprob, want) in logprobs.into_iter().zip(want_logprobs) {
            prop_assert!(want.map_or(logprob.is_nan(), |want| want == logprob));
        }
    }

    #[test]
    fn a_draw_depends_on_seed_and_number_alone(vocab_size in vocab_sizes(), mut params in params(), seed: u64) {
        let mut rng = Rng::new(seed);
        let (logits, tokens) = row(&mut rng, vocab_size, false, &mut params);
        let draw = rng.bits();
        let first = sample(&params, &logits, History { tokens: &tokens, prompt_len: 0 }, draw);
        // Penalties look at sets and counts, not at order.
        let mut turned = tokens.clone();
        turned.reverse();
        prop_assert_eq!(&first, &sample(&params, &logits, History { tokens: &turned, prompt_len: 0 }, draw));
    }

    #[test]
    fn logprobs_are_the_models_own(vocab_size in vocab_sizes(), mut params in params(), coarse: bool, seed: u64) {
        let mut rng = Rng::new(seed);
        let (logits, tokens) = row(&mut rng, vocab_size, coarse, &mut params);
        let history = History { tokens: &tokens, prompt_len: 0 };
        params.logprobs = Some(vocab_size + 1);
        let sampled = sample(&params, &logits, history, 0);
        let top = &sampled.top_logprobs;
        prop_assert_eq!(top.len(), vocab_size);
        let total: f64 = top.iter().map(|entry| f64::from(entry.logprob).exp()).sum();
        // Each was rounded to f32: to 2^-24 of its magnitude, which its probability turns absolute.
        prop_assert!((total - 1.0).abs() <= 1e-5, "probabilities sum to {}", total);
        for pair in top.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let (first, second) = (logits[a.token as usize], logits[b.token as usize]);
            prop_assert!(first > second || first == second && a.token < b.token);
            let gap = f64::from(first) - f64::from(second);
            let bound = f64::from(f32::EPSILON) * f64::from(a.logprob.abs() + b.logprob.abs());
            prop_assert!((f64::from(a.logprob) - f64::from(b.logprob) - gap).abs() <= bound);
        }
        let chosen = top.iter().find(|entry| entry.token == sampled.token).unwrap();
        prop_assert_eq!(sampled.logprob, Some(chosen.logprob));

        params.logprobs = Some(3);
        let few = sample(&params, &logits, history, 0);
        prop_assert_eq!(&few.top_logprobs[..], &top[..vocab_size.min(3)]);
        params.logprobs = None;
        let none = sample(&params, &logits, history, 0);
        prop_assert_eq!(none, Sampled { token: sampled.token, ..Sampled::default() });
    }

    #[test]
    fn argmax_is_greedy_sampling(vocab_size in vocab_sizes(), rows in 0usize..4, broken in 0usize..5, seed: u64) {
        let mut rng = Rng::new(seed);
        let mut logits: Vec<f32> = (0..rows * vocab_size).map(|_| (rng.normal(2.0) * 4.0).round() / 4.0).collect();
        if broken < rows {
            let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][rng.below(0..3)];
            logits[broken * vocab_size + rng.below(0..vocab_size)] = bad;
        }
        let mut tokens = vec![7; rows];
        Argmax::new(vocab_size).unwrap().reference(&logits, &mut tokens).unwrap();
        for (row, (logits, token)) in logits.chunks_exact(vocab_size).zip(tokens).enumerate() {
            if row == broken {
                prop_assert_eq!(token, NO_TOKEN);
            } else {
                prop_assert_eq!(token, sample(&Params::default(), logits, History::default(), 0).token);
            }
        }
    }

    #[test]
    fn absurd_options_still_choose_a_token(
        vocab_size in 1usize..40,
        temperature in prop_oneof![Just(1e-45f32), Just(1e-30), Just(f32::MAX)],
        penalty in prop_oneof![Just(1e-38f32), Just(f32::MAX)],
        huge in prop_oneof![Just(f32::MAX), Just(f32::MIN), Just(0.0)],
        seed: u64
    ) {
        let mut rng = Rng::new(seed);
        let logits: Vec<f32> = (0..vocab_size).map(|_| rng.signed() * f32::MAX).collect();
        let tokens: Vec<u32> = (0..vocab_size as u32).chain([0]).collect();
        let params = Params {
            temperature,
            top_p: 0.5,
            min_p: 0.5,
            repetition_penalty: penalty,
            presence_penalty: huge,
            frequency_penalty: -huge,
            logit_bias: vec![(0, huge), (0, huge), (0, -huge)],
            logprobs: Some(2),
            ..Params::default()
        };
        let sampled = sample(&params, &logits, History { tokens: &tokens, prompt_len: 0 }, seed);
        prop_assert!((sampled.token as usize) < vocab_size);
        prop_assert!(sampled.logprob.unwrap() <= 0.0);
    }
}

#[test]
fn ties_go_to_the_lowest_id() {
    let mut params = Params::default();
    let choose = |params: &Params, logits: &[f32]| sample(params, logits, History::default(), 0).token;
    assert_eq!(choose(&params, &[-1.0, 2.0, 2.0, 2.0]), 1);
    assert_eq!(choose(&params, &[-0.0, 0.0]), 0);
    params.temperature = 1.0;
    params.top_k = 1;
    for seed in 0..32 {
        params.seed = seed;
        assert_eq!(choose(&params, &[-1.0, 2.0, 2.0, 2.0]), 1);
        assert_eq!(choose(&params, &[-0.0, 0.0]), 0);
    }
}

/// The known answers that come with Random123 1.14 (kat_vectors, philox4x32 with 10 rounds).
#[test]
fn philox_gives_the_published_answers() {
    let pi = ([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
    assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(
        philox4x32([u32::MAX; 4], [u32::MAX; 2]),
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
    );
    assert_eq!(philox4x32(pi.0, pi.1), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    // The first answer's leading 53 bits.
    assert_eq!(uniform(0, 0), (0x6627_e8d5_e169_c58du64 >> 11) as f64 / 2f64.powi(53));
}
