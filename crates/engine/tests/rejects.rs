//! Every refusal, with its exact text.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Oracle;
use engine::{Config, Engine, Request};

fn config(max_sequences: usize, max_batch_tokens: usize) -> Config {
    Config { max_sequences, max_batch_tokens, eos_tokens: vec![] }
}

#[track_caller]
fn config_error(config: Config, pages: usize, text: &str) {
    let model = Oracle::new(pages, 100, 10, &config);
    assert_eq!(Engine::new(config, model).unwrap_err().to_string(), text);
}

#[test]
fn configurations() {
    config_error(config(0, 8), 4, "engine: max_sequences: expected at least 1, got 0");
    let text = "engine: max_batch_tokens: expected at least max_sequences (8), got 7";
    config_error(config(8, 7), 4, text);
    let text = "engine: the KV cache has no pages; give it memory for at least one page of 64 tokens";
    config_error(config(8, 8), 0, text);
}

#[track_caller]
fn refused_params(params: sampling::Params, text: &str) {
    let config = config(4, 64);
    let mut engine = Engine::new(config.clone(), Oracle::new(4, 100, 10, &config)).unwrap();
    let request = Request { prompt: vec![1], params, ..Request::default() };
    assert_eq!(engine.submit(request).unwrap_err().to_string(), text);
}

#[track_caller]
fn refused(pages: usize, prompt: Vec<u32>, max_tokens: Option<usize>, text: &str) {
    let config = config(4, 64);
    let mut engine = Engine::new(config.clone(), Oracle::new(pages, 100, 10, &config)).unwrap();
    let request = Request { prompt, max_tokens, ..Request::default() };
    assert_eq!(engine.submit(request).unwrap_err().to_string(), text);
    assert!(engine.is_idle());
}

#[test]
fn requests() {
    refused(4, vec![], None, "prompt: expected at least 1 token, got none");
    let text = "prompt: expected token ids below the vocabulary size 10, got 10 at [2]";
    refused(4, vec![0, 9, 10, 11], None, text);
    refused(4, vec![1], Some(0), "max_tokens: expected at least 1, got 0");

    let mut params = sampling::Params { temperature: -1.0, ..Default::default() };
    let text = "sample: temperature: expected a finite number of at least 0, got -1";
    refused_params(params.clone(), text);
    params = sampling::Params { logit_bias: vec![(10, 1.0)], ..Default::default() };
    refused_params(params, "sample: logit_bias: expected token ids below 10, got 10");

    let text = "40 prompt tokens and 61 to be generated exceed the model's context of 100 tokens; set max_tokens to \
                at most 60";
    refused(4, vec![1; 40], Some(61), text);
    let text = "100 prompt tokens and 1 to be generated exceed the model's context of 100 tokens; shorten the prompt \
                to at most 99 tokens";
    refused(4, vec![1; 100], None, text);
    refused(4, vec![1; 100], Some(1), text);
    let text = format!(
        "99 prompt tokens and {} to be generated exceed the model's context of 100 tokens; set max_tokens to at most 1",
        usize::MAX
    );
    refused(4, vec![1; 99], Some(usize::MAX), &text);

    let text = "40 prompt tokens and 26 to be generated exceed the KV cache of 1 pages of 64 tokens; give it more \
                memory, or set max_tokens to at most 25";
    refused(1, vec![1; 40], Some(26), text);
    let text = "65 prompt tokens and 1 to be generated exceed the KV cache of 1 pages of 64 tokens; give it more \
                memory, or shorten the prompt to at most 64 tokens";
    refused(1, vec![1; 65], None, text);
    // Beyond both: the remedy fits both.
    let text = "40 prompt tokens and 80 to be generated exceed the model's context of 100 tokens; set max_tokens to \
                at most 25";
    refused(1, vec![1; 40], Some(80), text);
}
