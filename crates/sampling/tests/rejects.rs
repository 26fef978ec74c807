//! Every bad argument and the exact error it gets.
// A failed expectation is the test's failure.
#![allow(clippy::unwrap_used)]

use sampling::{Argmax, BatchSampler, History, Params, RowParams, Rows, Sampler};

#[track_caller]
fn rejects<T: std::fmt::Debug>(result: device::Result<T>, message: &str) {
    assert_eq!(result.unwrap_err().to_string(), message);
}

/// The options are refused by themselves and by the sampler alike.
#[track_caller]
fn refused(params: Params, message: &str) {
    rejects(params.validate(), message);
    rejects(Sampler::new(10, &params), message);
}

#[test]
fn options() {
    let none = Params::default;
    for temperature in [-0.5, f32::NAN, f32::INFINITY] {
        let message =
            format!("sample: temperature: expected a finite number of at least 0, got {temperature}");
        refused(Params { temperature, ..none() }, &message);
    }
    for top_p in [0.0, -0.1, 1.5, f32::NAN] {
        let message = format!("sample: top_p: expected a number above 0 and up to 1, got {top_p}");
        refused(Params { top_p, ..none() }, &message);
    }
    for min_p in [-0.1, 1.5, f32::NAN] {
        let message = format!("sample: min_p: expected a number from 0 to 1, got {min_p}");
        refused(Params { min_p, ..none() }, &message);
    }
    for repetition_penalty in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let message =
            format!("sample: repetition_penalty: expected a finite number above 0, got {repetition_penalty}");
        refused(Params { repetition_penalty, ..none() }, &message);
    }
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let message = |argument| format!("sample: {argument}: expected a finite number, got {value}");
        refused(Params { presence_penalty: value, ..none() }, &message("presence_penalty"));
        refused(Params { frequency_penalty: value, ..none() }, &message("frequency_penalty"));
        refused(Params { logit_bias: vec![(0, 0.0), (1, value)], ..none() }, &message("logit_bias"));
    }
}

#[test]
fn vocabulary() {
    let params = Params { logit_bias: vec![(9, 0.0), (10, 0.0)], ..Params::default() };
    assert_eq!(params.validate(), Ok(()));
    assert!(Sampler::new(11, &params).is_ok());
    rejects(Sampler::new(10, &params), "sample: logit_bias: expected token ids below 10, got 10");
    rejects(Sampler::new(0, &params), "sample: vocab_size: expected at least 1, got 0");
    let message = "sample: vocab_size: expected at most 2^32, got 4294967297";
    rejects(Sampler::new((1 << 32) + 1, &params), message);
}

#[test]
fn rows() {
    let params = Params::default();
    let sample = |logits: &[f32], tokens: &[u32], prompt_len: usize| {
        Sampler::new(3, &params).unwrap().sample(logits, History { tokens, prompt_len }, 0)
    };
    let fine = [0.0, 1.0, 2.0];
    assert_eq!(sample(&fine, &[0, 2], 2).unwrap().token, 2);
    rejects(sample(&fine[..2], &[], 0), "sample: logits: expected 3 elements, got 2");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let message = format!("sample: logits: expected finite numbers, got {bad} for token 1");
        rejects(sample(&[0.0, bad, bad], &[], 0), &message);
    }
    rejects(sample(&fine, &[0, 3], 0), "sample: history.tokens: expected token ids below 3, got 3");
    let message = "sample: history.prompt_len: expected at most the 2 tokens of the history, got 3";
    rejects(sample(&fine, &[0, 1], 3), message);
}

#[test]
fn argmax() {
    rejects(Argmax::new(0), "argmax: vocab_size: expected at least 1, got 0");
    rejects(Argmax::new((1 << 31) + 1), "argmax: vocab_size: expected at most 2^31, got 2147483649");
    let argmax = Argmax::new(3).unwrap();
    assert_eq!(argmax.reference(&[], &mut []), Ok(()));
    rejects(argmax.reference(&[0.0; 6], &mut [0]), "argmax: logits: expected 3 elements, got 6");
}

#[test]
fn batches() {
    rejects(BatchSampler::new(0), "sample: vocab_size: expected at least 1, got 0");
    rejects(BatchSampler::new((1 << 31) + 1), "sample: vocab_size: expected at most 2^31, got 2147483649");
    let cold = Params { temperature: -1.0, ..Params::default() };
    rejects(RowParams::new(&cold, 0), "sample: temperature: expected a finite number of at least 0, got -1");

    let params = [RowParams::new(&Params::default(), 0).unwrap(); 2];
    let good = Rows {
        params: &params[..],
        history: &[][..],
        history_offsets: &[0, 0, 0][..],
        prompt_lens: &[0, 0][..],
        bias_tokens: &[][..],
        bias_values: &[][..],
        bias_offsets: &[0, 0, 0][..],
    };
    let plan = BatchSampler::new(3).unwrap();
    let run = |logits: &[f32], rows: &Rows<&[RowParams], &[u32], &[f32]>, logprobs: &mut [f32]| {
        plan.reference(logits, rows, &mut [0; 2], logprobs)
    };
    assert_eq!(run(&[0.0; 6], &good, &mut [0.0; 2]), Ok(()));
    let refused = |rows: Rows<&[RowParams], &[u32], &[f32]>, message: &str| {
        rejects(run(&[0.0; 6], &rows, &mut [0.0; 2]), message);
    };
    rejects(run(&[0.0; 5], &good, &mut [0.0; 2]), "sample: logits: expected 6 elements, got 5");
    rejects(run(&[0.0; 6], &good, &mut [0.0; 3]), "sample: logprobs: expected 2 elements, got 3");
    refused(Rows { params: &params[..1], ..good }, "sample: rows.params: expected 2 elements, got 1");
    let message = "sample: rows.history_offsets: expected 3 elements, got 2";
    refused(Rows { history_offsets: &[0; 2], ..good }, message);
    refused(Rows { prompt_lens: &[0; 3], ..good }, "sample: rows.prompt_lens: expected 2 elements, got 3");
    refused(Rows { bias_tokens: &[0; 1], ..good }, "sample: rows.bias_values: expected 1 elements, got 0");
    refused(Rows { bias_offsets: &[0; 4], ..good }, "sample: rows.bias_offsets: expected 3 elements, got 4");
}
