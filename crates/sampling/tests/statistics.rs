//! Frequencies of many draws against the oracle's probabilities. Seeds are fixed, so a pass stays a pass.
// A failed expectation is the test's failure.
#![allow(clippy::unwrap_used)]

mod oracle;

use op_test::Rng;
use sampling::{History, Params, Sampler, uniform};

const DRAWS: u64 = 40_000;

/// Pearson's statistic against the 1 - 10^-6 quantile of its distribution (Wilson and Hilferty's approximation).
/// Cells too small for the approximation are pooled.
#[track_caller]
fn assert_drawn_from(counts: &[u64], probabilities: &[f64]) {
    let total: u64 = counts.iter().sum();
    let (mut statistic, mut cells, mut small) = (0.0, 0.0, (0.0, 0.0));
    let mut cell = |count: f64, expected: f64| {
        statistic += (count - expected).powi(2) / expected;
        cells += 1.0;
    };
    for (&count, &probability) in counts.iter().zip(probabilities) {
        assert!(count == 0 || probability > 0.0, "an impossible token was drawn {count} times");
        let (count, expected) = (count as f64, probability * total as f64);
        if expected >= 10.0 {
            cell(count, expected);
        } else {
            small = (small.0 + count, small.1 + expected);
        }
    }
    if small.1 >= 10.0 {
        cell(small.0, small.1);
    }
    let freedom: f64 = cells - 1.0;
    assert!(freedom >= 1.0, "nothing to compare");
    let spread = 2.0 / (9.0 * freedom);
    let limit = freedom * (1.0 - spread + 4.753 * spread.sqrt()).powi(3);
    assert!(statistic <= limit, "chi-square {statistic} of {freedom} degrees exceeds {limit}");
}

#[track_caller]
fn check(vocab_size: usize, params: Params) {
    let mut rng = Rng::new(vocab_size as u64);
    let logits = rng.tensor(vocab_size, 2.0);
    let tokens: Vec<u32> = (0..10).map(|_| rng.below(0..vocab_size) as u32).collect();
    let history = History { tokens: &tokens, prompt_len: 4 };
    let sampler = Sampler::new(vocab_size, &params).unwrap();
    let mut counts = vec![0; vocab_size];
    for draw in 0..DRAWS {
        counts[sampler.sample(&logits, history, draw).unwrap().token as usize] += 1;
    }
    assert_drawn_from(&counts, &oracle::probabilities(&logits, history, &params));
}

fn warm() -> Params {
    Params { temperature: 1.0, seed: 2024, ..Params::default() }
}

#[test]
fn plain() {
    check(50, warm());
    check(2, warm());
}

#[test]
fn temperature() {
    check(50, Params { temperature: 0.4, ..warm() });
    check(50, Params { temperature: 3.0, ..warm() });
}

#[test]
fn filters() {
    check(50, Params { top_k: 5, ..warm() });
    check(200, Params { top_p: 0.8, ..warm() });
    check(50, Params { min_p: 0.1, ..warm() });
    check(200, Params { temperature: 1.3, top_k: 40, top_p: 0.9, min_p: 0.02, ..warm() });
}

#[test]
fn penalties() {
    let params = Params { repetition_penalty: 1.5, presence_penalty: 0.5, frequency_penalty: 0.25, ..warm() };
    check(12, Params { logit_bias: vec![(3, 2.0), (5, -4.0)], ..params });
}

/// One draw of each of many seeds is as good as many draws of one seed.
#[test]
fn seeds_are_independent() {
    let logits = Rng::new(1).tensor(20, 1.0);
    let mut counts = vec![0; 20];
    for seed in 0..DRAWS {
        let params = Params { seed, ..warm() };
        let sampled = Sampler::new(20, &params).unwrap().sample(&logits, History::default(), 0).unwrap();
        counts[sampled.token as usize] += 1;
    }
    assert_drawn_from(&counts, &oracle::probabilities(&logits, History::default(), &warm()));
}

/// Pairs of neighbouring draws fill the unit square evenly.
#[test]
fn draws_are_uniform_and_independent() {
    let mut counts = vec![0; 256];
    for draw in 0..DRAWS {
        let cell = |draw| (uniform(99, draw) * 16.0) as usize;
        counts[16 * cell(2 * draw) + cell(2 * draw + 1)] += 1;
    }
    assert_drawn_from(&counts, &[1.0 / 256.0; 256]);
}

/// The check itself can fail: a token taken for its neighbour is seen.
#[test]
#[should_panic(expected = "chi-square")]
fn a_wrong_distribution_is_seen() {
    let probabilities = oracle::probabilities(&[0.0, 0.1, 0.3], History::default(), &warm());
    let swapped = [probabilities[1], probabilities[0], probabilities[2]];
    let counts: Vec<u64> = swapped.iter().map(|p| (p * DRAWS as f64) as u64).collect();
    assert_drawn_from(&counts, &probabilities);
}
