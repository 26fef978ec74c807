//! Requests that end before their time: cancelled at every token, finished by the caller, in a step that fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Fault, alone, drain, engine, params, prompt, until_idle};
use engine::{Config, Engine, Event, FinishReason, Request, RequestId, StepError, StepModel};
use models::Step;
use sampling::Sampled;

const VOCAB: usize = 5000;

fn config() -> Config {
    Config { max_sequences: 3, max_batch_tokens: 24, eos_tokens: vec![] }
}

fn requests() -> Vec<Request> {
    let request = |seed, len, max_tokens| Request {
        prompt: prompt(len, VOCAB, seed),
        max_tokens: Some(max_tokens),
        params: params(seed),
        ..Request::default()
    };
    // Three that run, one of them chunked, and one that waits.
    vec![request(1, 5, 80), request(2, 70, 75), request(3, 9, 70), request(4, 30, 20)]
}

fn text(request: &Request) -> (Vec<u32>, Option<FinishReason>) {
    let (tokens, reason) = alone(request, request.max_tokens.unwrap(), VOCAB, &[]);
    (tokens, Some(reason))
}

/// Each request in turn ended before each step of the whole run: the others do not notice, the pages come back at once.
#[test]
fn ended_at_every_token() {
    for victim in 0..4 {
        for (by_caller, after) in (0..120).map(|after| (after % 2 == 0, after)) {
            let (mut engine, _) = engine(7, 400, VOCAB, &config());
            let ids: Vec<RequestId> =
                requests().into_iter().map(|request| engine.submit(request).unwrap()).collect();
            let mut tokens = vec![Vec::new(); 4];
            let mut reasons = vec![None; 4];
            let mut step = |engine: &mut Engine<_>| {
                for event in engine.step() {
                    match event {
                        Event::Token { id, sampled } => {
                            tokens[ids.iter().position(|&i| i == id).unwrap()].push(sampled.token)
                        }
                        Event::Finished { id, reason } => {
                            let before = reasons[ids.iter().position(|&i| i == id).unwrap()].replace(reason);
                            assert_eq!(before, None);
                        }
                    }
                }
            };
            for _ in 0..after {
                step(&mut engine);
            }
            let free = engine.statistics().free_pages;
            let (ended, reason) = if by_caller {
                (engine.finish(ids[victim]), FinishReason::Finished)
            } else {
                (engine.cancel(ids[victim]), FinishReason::Cancelled)
            };
            assert!(engine.statistics().free_pages >= free);
            assert!(!engine.cancel(ids[victim]), "ended twice");
            until_idle(&mut engine, step);
            assert_eq!(engine.statistics().free_pages, 7);
            for (index, request) in requests().iter().enumerate() {
                let (whole, end) = text(request);
                if ended && index == victim {
                    assert_eq!(reasons[index], Some(reason.clone()));
                    assert!(tokens[index].len() < whole.len() && whole.starts_with(&tokens[index]));
                } else {
                    assert_eq!(
                        (&tokens[index], &reasons[index]),
                        (&whole, &end),
                        "{index} of {victim} after {after}"
                    );
                }
            }
        }
    }
}

/// The k-th step fails, for every k and in every way: who took part ends with the error, the others with their texts,
/// nothing is lost, and the next request is served.
#[test]
fn the_kth_step_fails() {
    for kind in [Fault::Fails, Fault::OneTokenLess, Fault::BadToken] {
        let mut failures = 0;
        for k in 0..1000 {
            let (mut engine, fault) = engine(7, 400, VOCAB, &config());
            let requests = requests();
            let ids: Vec<RequestId> =
                requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
            let mut texts = vec![(Vec::new(), None); 4];
            let mut participants = 0;
            for step in 0..10_000 {
                if step == k {
                    fault.set(kind);
                    let statistics = engine.statistics();
                    participants = (statistics.running + statistics.waiting).min(3);
                }
                for event in engine.step() {
                    match event {
                        Event::Token { id, sampled } => {
                            texts[ids.iter().position(|&i| i == id).unwrap()].0.push(sampled.token)
                        }
                        Event::Finished { id, reason } => {
                            texts[ids.iter().position(|&i| i == id).unwrap()].1 = Some(reason)
                        }
                    }
                }
                if engine.is_idle() {
                    break;
                }
            }
            let mut failed = 0;
            for (request, (tokens, reason)) in requests.iter().zip(&texts) {
                let (whole, end) = text(request);
                match reason.as_ref().unwrap() {
                    FinishReason::Error(StepError::Model(error)) => {
                        assert_eq!((kind, error), (Fault::Fails, &device::Error::BuiltWithoutCuda));
                        failed += 1;
                    }
                    FinishReason::Error(StepError::WrongCount { expected, got }) => {
                        assert_eq!((kind, *expected), (Fault::OneTokenLess, got + 1));
                        failed += 1;
                    }
                    FinishReason::Error(StepError::UnknownToken { token, vocab_size }) => {
                        assert_eq!((kind, *token as usize, *vocab_size), (Fault::BadToken, VOCAB, VOCAB));
                        failed += 1;
                    }
                    _ => assert_eq!((tokens, reason), (&whole, &end)),
                }
                assert!(whole.starts_with(tokens));
            }
            assert_eq!(engine.statistics().free_pages, 7);
            if participants == 0 {
                assert_eq!(failed, 0);
                break;
            }
            // A bad token is one sequence's; the other faults are everybody's who had rows in the step.
            assert!((1..=participants).contains(&failed), "{failed} of {participants} at step {k}");
            assert!(kind != Fault::BadToken || failed == 1);
            failures += 1;
            fault.take();
            let id = engine.submit(requests[0].clone()).unwrap();
            assert_eq!(drain(&mut engine, &[id]), [text(&requests[0])]);
            assert_eq!(engine.statistics().free_pages, 7);
        }
        assert!(failures > 80, "{failures} steps of {kind:?}");
    }
}

/// A step that fails ends all that took part in it, and nobody else.
#[test]
fn who_waits_survives_a_failing_step() {
    let (mut engine, fault) = engine(7, 400, VOCAB, &config());
    let requests = requests();
    let ids: Vec<RequestId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    // 5 rows and 19 of the second prompt: the third has none in the first step.
    fault.set(Fault::Fails);
    let texts = drain(&mut engine, &ids);
    let error = Some(FinishReason::Error(StepError::Model(device::Error::BuiltWithoutCuda)));
    assert_eq!(texts[..2], [(vec![], error.clone()), (vec![], error)]);
    assert_eq!(texts[2..], [text(&requests[2]), text(&requests[3])]);
}

/// A model that gives a token to sequences that were not to be sampled.
struct Generous;

impl StepModel for Generous {
    fn vocab_size(&self) -> usize {
        8
    }
    fn max_context(&self) -> usize {
        64
    }
    fn pages(&self) -> usize {
        1
    }
    fn step(&mut self, step: &Step<'_>) -> device::Result<Vec<Sampled>> {
        Ok(vec![Sampled::default(); step.sequences.len()])
    }
}

#[test]
fn a_token_too_many_is_an_error() {
    let config = Config { max_sequences: 1, max_batch_tokens: 2, eos_tokens: vec![] };
    let mut engine = Engine::new(config, Generous).unwrap();
    let id = engine.submit(Request { prompt: vec![1, 2, 3], ..Request::default() }).unwrap();
    let reason = FinishReason::Error(StepError::WrongCount { expected: 0, got: 1 });
    assert_eq!(engine.step(), [Event::Finished { id, reason }]);
    assert!(engine.is_idle());
    assert_eq!(engine.statistics().free_pages, 1);
}
