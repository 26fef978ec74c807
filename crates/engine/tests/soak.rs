//! Random events against a model that knows every text beforehand.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Fault, Oracle, alone, drain, engine, over, params, prompt};
use device::PAGE_SIZE;
use engine::{Config, Engine, Event, FinishReason, Request, RequestId, StepError, SubmitError};
use op_test::Rng;
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

/// A request the engine has taken, and what must come of it.
struct Live {
    text: Vec<u32>,
    reason: FinishReason,
    received: usize,
    /// Set once the test has ended it itself.
    ended: Option<FinishReason>,
    /// Tokens it can cost at most: an upper bound on the steps it can keep others waiting.
    cost: usize,
}

#[derive(Debug, Default)]
struct Tally {
    events: usize,
    submitted: usize,
    refused: usize,
    cancelled: usize,
    finished_by_caller: usize,
    failed_steps: usize,
    failed_requests: usize,
    complete: usize,
    preemptions: u64,
    reused_tokens: u64,
    pages_out: u64,
    pages_in: u64,
}

struct Soak {
    engine: Engine<Oracle>,
    fault: Rc<Cell<Fault>>,
    config: Config,
    vocab_size: usize,
    max_context: usize,
    pages: usize,
    rng: Rng,
    /// What prompts begin with, some of them.
    beginnings: [Vec<u32>; 2],
    live: BTreeMap<RequestId, Live>,
    ended: HashSet<RequestId>,
    /// The newest request that has got a token.
    newest_started: Option<RequestId>,
    tally: Tally,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let max_sequences = rng.below(1..13);
        let max_batch_tokens = max_sequences + [0, rng.below(0..20), rng.below(0..400)][rng.below(0..3)];
        let vocab_size = [rng.below(20..100), rng.below(1000..5000)][rng.below(0..4).min(1)];
        let eos_tokens = (0..rng.below(0..3)).map(|_| rng.below(0..vocab_size) as u32).collect();
        let config = Config { max_sequences, max_batch_tokens, eos_tokens };
        let pages = rng.below(1..2 + 3 * max_sequences);
        let max_context = [rng.below(2..200), rng.below(400..2000)][rng.below(0..4).min(1)];
        let host_pages = rng.below(0..3) * rng.below(1..10 + 3 * max_sequences);
        let oracle = Oracle::new(pages, max_context, vocab_size, &config).with_host_pages(host_pages);
        let (engine, fault) = over(oracle.with_own_prompt_len(rng.below(0..4) == 0), &config);
        let beginnings = [PAGE_SIZE, 3 * PAGE_SIZE].map(|len| prompt(len, vocab_size, rng.bits()));
        let (live, ended) = (BTreeMap::new(), HashSet::new());
        let tally = Tally::default();
        Self {
            engine,
            fault,
            config,
            vocab_size,
            max_context,
            pages,
            rng,
            beginnings,
            live,
            ended,
            newest_started: None,
            tally,
        }
    }

    /// `events` random events, then everything to its end.
    fn run(mut self, events: usize) -> Tally {
        let mut eagerness = 10;
        for _ in 0..events {
            self.tally.events += 1;
            if self.rng.below(0..200) == 0 {
                eagerness = self.rng.below(1..100);
            }
            match self.rng.below(0..1000) {
                0..3 => {
                    let faults = [Fault::Fails, Fault::OneTokenLess, Fault::BadToken, Fault::CopyFails];
                    self.fault.set(faults[self.rng.below(0..4)])
                }
                3..13 => self.end(Engine::cancel, FinishReason::Cancelled),
                13..18 => self.end(Engine::finish, FinishReason::Finished),
                other if other < 18 + 5 * eagerness && self.engine.statistics().waiting < 20 => self.submit(),
                _ => self.step(),
            }
        }
        self.fault.take();
        let limit: usize = self.live.values().map(|live| live.cost).sum::<usize>() + 1;
        for _ in 0..limit {
            if self.engine.is_idle() {
                break;
            }
            self.step();
        }
        let statistics = self.engine.statistics();
        assert!(self.engine.is_idle(), "still at work after {limit} steps: {statistics:?}");
        assert_eq!(statistics.free_pages, self.pages, "pages were lost");
        assert_eq!((statistics.waiting, statistics.running), (0, 0));
        let (first, rest) = self.live.iter().next().map_or((None, 0), |(id, _)| (Some(id), self.live.len()));
        assert_eq!(rest, 0, "requests without an end, first {first:?}");
        self.tally.preemptions = statistics.preemptions;
        self.tally.reused_tokens = statistics.reused_tokens;
        self.tally.pages_out = statistics.pages_out;
        self.tally.pages_in = statistics.pages_in;
        self.tally
    }

    fn submit(&mut self) {
        let most = self.max_context + 2;
        let len = match self.rng.below(0..16) {
            0 => self.rng.below(0..most),
            1..4 => (self.rng.below(1..4) * PAGE_SIZE + self.rng.below(0..3)).saturating_sub(1).min(most),
            _ => self.rng.below(1..41).min(most),
        };
        let max_tokens = match self.rng.below(0..8) {
            0 => None,
            1 => Some(self.rng.below(0..most)),
            2 => Some((self.pages * PAGE_SIZE + self.rng.below(0..3)).saturating_sub(len)),
            3..5 => Some(self.rng.below(1..100)),
            _ => Some(self.rng.below(1..500)),
        };
        let mut prompt = prompt(len, self.vocab_size, self.rng.bits());
        if self.rng.below(0..2) == 0 {
            let beginning = &self.beginnings[self.rng.below(0..2)];
            let shared = beginning.len().min(len);
            prompt[..shared].copy_from_slice(&beginning[..shared]);
        }
        let seed = if self.rng.below(0..2) == 0 { 0 } else { self.rng.bits() };
        let stop_tokens =
            (0..self.rng.below(0..2)).map(|_| self.rng.below(0..self.vocab_size) as u32).collect();
        let (ignore_eos, salt) = (self.rng.below(0..3) == 0, self.rng.below(0..2) as u64);
        let request = Request { prompt, max_tokens, params: params(seed), stop_tokens, ignore_eos, salt };
        let longest = self.max_context.min(self.pages * PAGE_SIZE + 1);
        let tokens = max_tokens.unwrap_or(longest.saturating_sub(len));
        let fits = len > 0 && tokens > 0 && len + tokens <= longest;
        match self.engine.submit(request.clone()) {
            Ok(id) => {
                assert!(fits, "{len} and {max_tokens:?} cannot fit");
                let (text, reason) = alone(&request, tokens, self.vocab_size, &self.config.eos_tokens);
                let live = Live { text, reason, received: 0, ended: None, cost: len + tokens };
                assert!(self.live.insert(id, live).is_none(), "an id given twice");
                self.tally.submitted += 1;
            }
            Err(error) => {
                assert!(!fits, "{len} and {max_tokens:?} fit: {error}");
                self.tally.refused += 1;
            }
        }
    }

    /// Ends a random live request, or one that has ended already.
    fn end(&mut self, end: impl Fn(&mut Engine<Oracle>, RequestId) -> bool, reason: FinishReason) {
        if self.live.is_empty() {
            return;
        }
        let at = self.rng.below(0..self.live.len());
        let (&id, live) = self.live.iter_mut().nth(at).unwrap();
        let first_time = live.ended.is_none();
        assert_eq!(end(&mut self.engine, id), first_time);
        if first_time {
            live.ended = Some(reason);
        }
        if let Some(&id) = self.ended.iter().next() {
            assert!(!end(&mut self.engine, id), "ended twice");
        }
    }

    fn step(&mut self) {
        let before = self.engine.statistics();
        let fault = self.fault.get();
        let events = self.engine.step();
        let after = self.engine.statistics();
        // A fault that was armed and is no more has struck in this step.
        let struck = fault != Fault::None && self.fault.get() == Fault::None;
        let at_work = before.waiting + before.running > 0 && !(struck && fault == Fault::CopyFails);
        assert_eq!(
            after.steps - before.steps,
            u64::from(at_work),
            "a step for nothing, or none where one was due"
        );
        assert!(after.running <= self.config.max_sequences);
        assert!(after.free_pages <= self.pages);
        self.tally.failed_steps += usize::from(struck);
        for event in events {
            match event {
                Event::Token { id, sampled } => self.token(id, sampled.token),
                Event::Finished { id, reason } => self.finished(id, reason, struck.then_some(fault)),
            }
        }
    }

    fn token(&mut self, id: RequestId, token: u32) {
        let live = self.live.get_mut(&id).expect("a token after the end");
        assert_eq!(live.ended, None, "a token of request {id} after its end was asked for");
        assert_eq!(Some(&token), live.text.get(live.received), "request {id}, token {}", live.received);
        live.received += 1;
        if live.received == 1 {
            // Nobody overtakes: first tokens come in the order of arrival.
            assert!(self.newest_started < Some(id), "{:?} started before {id}", self.newest_started);
            self.newest_started = Some(id);
        }
    }

    fn finished(&mut self, id: RequestId, reason: FinishReason, fault: Option<Fault>) {
        let live = self.live.remove(&id).expect("a second end");
        self.ended.insert(id);
        match (&live.ended, &reason) {
            (Some(asked), _) => {
                assert_eq!(&reason, asked);
                self.tally.cancelled += usize::from(reason == FinishReason::Cancelled);
                self.tally.finished_by_caller += usize::from(reason == FinishReason::Finished);
            }
            (None, FinishReason::Error(error)) => {
                let fits = match error {
                    StepError::Model(device::Error::BuiltWithoutCuda) => {
                        matches!(fault, Some(Fault::Fails | Fault::CopyFails))
                    }
                    StepError::WrongCount { expected, got } => {
                        fault == Some(Fault::OneTokenLess) && got + 1 == *expected
                    }
                    StepError::UnknownToken { token, vocab_size } => {
                        fault == Some(Fault::BadToken) && *token as usize == *vocab_size
                    }
                    _ => false,
                };
                assert!(fits, "request {id}: {error} under {fault:?}");
                self.tally.failed_requests += 1;
            }
            (None, _) => {
                assert_eq!(reason, live.reason, "request {id}");
                assert_eq!(live.received, live.text.len(), "request {id} was cut short");
                self.tally.complete += 1;
            }
        }
    }
}

/// 100,000 random events over 50 engines of random sizes.
#[test]
fn a_hundred_thousand_events() {
    let mut total = Tally::default();
    for seed in 0..50 {
        let Tally {
            events,
            submitted,
            refused,
            cancelled,
            finished_by_caller,
            failed_steps,
            failed_requests,
            complete,
            preemptions,
            reused_tokens,
            pages_out,
            pages_in,
        } = Soak::new(seed).run(2000);
        total.events += events;
        total.submitted += submitted;
        total.refused += refused;
        total.cancelled += cancelled;
        total.finished_by_caller += finished_by_caller;
        total.failed_steps += failed_steps;
        total.failed_requests += failed_requests;
        total.complete += complete;
        total.preemptions += preemptions;
        total.reused_tokens += reused_tokens;
        total.pages_out += pages_out;
        total.pages_in += pages_in;
    }
    println!("{total:?}");
    assert_eq!(total.events, 100_000);
    let ended = total.complete + total.cancelled + total.finished_by_caller + total.failed_requests;
    assert_eq!(ended, total.submitted);
    // The soak is worth its name only if all of this happened often.
    let seldom =
        [total.refused, total.cancelled, total.finished_by_caller, total.failed_steps, total.complete];
    assert!(seldom.iter().all(|&count| count > 100), "{total:?}");
    let moved = [total.preemptions, total.reused_tokens / 64, total.pages_out, total.pages_in];
    assert!(moved.into_iter().all(|count| count > 200), "{total:?}");
}

proptest! {
    #![proptest_config(op_test::cases())]

    #[test]
    fn random_events(seed: u64, events in 1usize..300) {
        Soak::new(seed).run(events);
    }

    /// The same requests together, and each in an engine of its own.
    #[test]
    fn together_as_alone(seed: u64, max_sequences in 1usize..9, spare in 0usize..150, pages in 3usize..12) {
        let config = Config { max_sequences, max_batch_tokens: max_sequences + spare, eos_tokens: vec![3] };
        let requests: Vec<Request> = (0..12u64).map(|i| {
            let mut rng = Rng::new(seed ^ i);
            let prompt = prompt(rng.below(1..100), 64, rng.bits());
            let max_tokens = Some(rng.below(1..90));
            Request { prompt, max_tokens, params: params(i % 3), ..Request::default() }
        }).collect();
        let (mut together, _) = engine(pages, 400, 64, &config);
        let ids: Vec<RequestId> = requests.iter().map(|r| together.submit(r.clone()).unwrap()).collect();
        let texts = drain(&mut together, &ids);
        for (request, text) in requests.into_iter().zip(texts) {
            let (mut engine, _) = engine(pages, 400, 64, &config);
            let id = engine.submit(request).unwrap();
            prop_assert_eq!(drain(&mut engine, &[id]), [text]);
            prop_assert_eq!(engine.statistics().preemptions, 0);
        }
        prop_assert_eq!(together.statistics().free_pages, pages);
    }
}

/// A tenth of 100,000 requests cancelled: no page stays behind.
#[test]
fn a_tenth_of_a_hundred_thousand_cancelled() {
    let config = Config { max_sequences: 32, max_batch_tokens: 128, eos_tokens: vec![0] };
    let (mut engine, _) = engine(48, 256, 40, &config);
    let mut rng = Rng::new(10);
    let (mut queued, mut submitted, mut ended, mut cancelled) = (Vec::new(), 0, 0, 0);
    for _ in 0..1_000_000 {
        if submitted == 100_000 && engine.is_idle() {
            break;
        }
        while submitted < 100_000 && engine.statistics().waiting < 16 {
            let prompt = prompt(rng.below(1..60), 40, rng.bits());
            let request = Request { prompt, max_tokens: Some(rng.below(1..30)), ..Request::default() };
            queued.push(engine.submit(request).unwrap());
            submitted += 1;
        }
        queued.retain(|&id| {
            let strikes = rng.below(0..160) == 0 && engine.cancel(id);
            cancelled += usize::from(strikes);
            !strikes
        });
        for event in engine.step() {
            if let Event::Finished { id, .. } = event {
                ended += 1;
                queued.retain(|&other| other != id);
            }
        }
    }
    println!("{cancelled} cancelled, {:?}", engine.statistics());
    assert_eq!(ended, 100_000);
    assert!((9_000..11_000).contains(&cancelled), "{cancelled}");
    assert_eq!(engine.statistics().free_pages, 48);
}

#[test]
fn refusals_leave_no_trace() {
    let config = Config { max_sequences: 2, max_batch_tokens: 2, eos_tokens: vec![] };
    let (mut engine, _) = engine(1, 32, 10, &config);
    let before = engine.statistics();
    assert_eq!(engine.submit(Request::default()), Err(SubmitError::EmptyPrompt));
    assert_eq!(engine.statistics(), before);
    assert!(engine.is_idle());
    assert!(engine.step().is_empty());
    assert_eq!(engine.statistics(), before);
}
