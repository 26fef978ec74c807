//! A model that notices every mistake of its engine: its next token is a hash of all the tokens before it, read from
//! the pages as the step gives them.
// A model that finds its engine wrong, or a test without its input, has failed.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use device::PAGE_SIZE;
use engine::{Config, Engine, Event, FinishReason, Request, RequestId, StepModel};
use kv_cache::{CopyPage, Direction};
use models::{Sample, Step, StepSequence};
use sampling::{Params, Sampled};
use std::cell::Cell;
use std::rc::Rc;

/// What the next step of the model is to do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// It fails after half of the sequences have been written.
    Fails,
    /// It gives one token less than there are sampled sequences.
    OneTokenLess,
    /// Its first token is outside the vocabulary.
    BadToken,
    /// It fails after half of the pages have been copied.
    CopyFails,
}

/// One token's keys and values: which token, where, and after which others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    position: usize,
    token: u32,
    digest: u64,
}

/// The model. It panics where the engine breaks a promise.
#[derive(Debug)]
pub struct Oracle {
    pub vocab_size: usize,
    pub max_context: usize,
    pub config: Config,
    pub fault: Rc<Cell<Fault>>,
    /// Whether what is in the pages depends on the prompt's length.
    own_prompt_len: bool,
    slots: Vec<Option<Slot>>,
    host_slots: Vec<Option<Slot>>,
    /// The last step in which each page was used, and whether it was written.
    used: Vec<(u64, bool)>,
    steps: u64,
}

pub fn mix(digest: u64, token: u32) -> u64 {
    op_test::Rng::new(digest ^ (u64::from(token) + 1).wrapping_mul(0x2545_f491_4f6c_dd1d)).bits()
}

fn digest(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0, |digest, &token| mix(digest, token))
}

/// What a page's tokens are written as.
fn written(digest: u64, prompt_len: Option<usize>) -> u64 {
    prompt_len.map_or(digest, |len| mix(digest, len as u32))
}

/// The token after those of `digest`, drawn with a request's seed and the number of the token.
fn draw(digest: u64, params: &Params, generated: usize, vocab_size: usize) -> u32 {
    (mix(digest ^ seed(params), generated as u32) % vocab_size as u64) as u32
}

/// Options of a request, told apart by `seed`; 0 is greedy.
pub fn params(seed: u64) -> Params {
    Params { seed, ..Params::default() }
}

fn seed(params: &Params) -> u64 {
    params.seed
}

impl Oracle {
    pub fn new(pages: usize, max_context: usize, vocab_size: usize, config: &Config) -> Self {
        Self {
            vocab_size,
            max_context,
            config: config.clone(),
            fault: Rc::default(),
            own_prompt_len: false,
            slots: vec![None; pages * PAGE_SIZE],
            host_slots: vec![],
            used: vec![(0, false); pages],
            steps: 0,
        }
    }

    pub fn with_host_pages(self, pages: usize) -> Self {
        Self { host_slots: vec![None; pages * PAGE_SIZE], ..self }
    }

    pub fn with_own_prompt_len(self, own_prompt_len: bool) -> Self {
        Self { own_prompt_len, ..self }
    }

    /// The tokens of a sequence up to this step's, after checking that its pages hold just those.
    fn read_and_write(&mut self, sequence: &StepSequence<'_>) -> Vec<u32> {
        let StepSequence { tokens, context_len, pages, .. } = *sequence;
        assert!(!tokens.is_empty(), "a sequence without new tokens");
        assert!(context_len <= self.max_context, "{context_len} tokens in a context of {}", self.max_context);
        assert_eq!(pages.len(), context_len.div_ceil(PAGE_SIZE), "pages for {context_len} tokens");
        let first = context_len.checked_sub(tokens.len()).expect("more new tokens than tokens");
        for (number, &page) in pages.iter().enumerate() {
            let writes = (number + 1) * PAGE_SIZE > first;
            let last = std::mem::replace(&mut self.used[page as usize], (self.steps, writes));
            assert!(
                last.0 != self.steps || !(writes || last.1),
                "page {page} is written and stands twice in one step"
            );
        }
        let prompt_len = self.own_prompt_len.then_some(sequence.prompt_len);
        let place = |position: usize| pages[position / PAGE_SIZE] as usize * PAGE_SIZE + position % PAGE_SIZE;
        let mut all = Vec::with_capacity(context_len);
        let mut digest = 0;
        for position in 0..context_len {
            let slot = &mut self.slots[place(position)];
            if position < first {
                let token = slot.expect("a token that was never written").token;
                digest = mix(digest, token);
                assert_eq!(
                    *slot,
                    Some(Slot { position, token, digest: written(digest, prompt_len) }),
                    "not what was written at {position}"
                );
                all.push(token);
            } else {
                let token = tokens[position - first];
                assert!((token as usize) < self.vocab_size, "token {token}");
                digest = mix(digest, token);
                *slot = Some(Slot { position, token, digest: written(digest, prompt_len) });
                all.push(token);
            }
        }
        all
    }

    fn sample(&self, sample: Sample<'_>, sequence: &StepSequence<'_>, all: &[u32]) -> Sampled {
        assert_eq!(sample.history, all, "the history is not what is in the pages");
        assert_eq!(sample.prompt_len, sequence.prompt_len);
        let generated = all.len().checked_sub(sample.prompt_len).expect("a token drawn inside the prompt");
        let token = draw(digest(all), sample.params, generated, self.vocab_size);
        Sampled { token, ..Sampled::default() }
    }
}

impl StepModel for Oracle {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_context(&self) -> usize {
        self.max_context
    }

    fn pages(&self) -> usize {
        self.used.len()
    }

    fn host_pages(&self) -> usize {
        self.host_slots.len() / PAGE_SIZE
    }

    fn keys_depend_on_prompt_len(&self) -> bool {
        self.own_prompt_len
    }

    fn copy_pages(&mut self, copies: &[CopyPage]) -> device::Result<()> {
        assert!(!copies.is_empty(), "a call for nothing");
        let fails = self.fault.get() == Fault::CopyFails;
        if fails {
            self.fault.take();
        }
        for (index, &CopyPage { from, to, direction }) in copies.iter().enumerate() {
            if fails && index == copies.len() / 2 {
                return Err(device::Error::BuiltWithoutCuda);
            }
            let slots = |page: u32| page as usize * PAGE_SIZE..(page as usize + 1) * PAGE_SIZE;
            match direction {
                Direction::OnDevice => self.slots.copy_within(slots(from), slots(to).start),
                Direction::ToHost => self.host_slots[slots(to)].copy_from_slice(&self.slots[slots(from)]),
                Direction::ToDevice => self.slots[slots(to)].copy_from_slice(&self.host_slots[slots(from)]),
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step<'_>) -> device::Result<Vec<Sampled>> {
        self.steps += 1;
        assert!(!step.sequences.is_empty(), "a step without sequences");
        assert!(step.sequences.len() <= self.config.max_sequences, "{} sequences", step.sequences.len());
        assert!(step.tokens() <= self.config.max_batch_tokens, "{} tokens", step.tokens());
        let fault = self.fault.take();
        if fault == Fault::CopyFails {
            // It waits for pages to be copied.
            self.fault.set(fault);
        }
        let mut sampled = Vec::new();
        for (index, sequence) in step.sequences.iter().enumerate() {
            if fault == Fault::Fails && index == step.sequences.len() / 2 {
                return Err(device::Error::BuiltWithoutCuda);
            }
            let all = self.read_and_write(sequence);
            sampled.extend(sequence.sample.map(|sample| self.sample(sample, sequence, &all)));
        }
        match (fault, sampled.first_mut()) {
            (Fault::OneTokenLess, Some(_)) => drop(sampled.pop()),
            (Fault::BadToken, Some(first)) => first.token = self.vocab_size as u32,
            // Nothing to be sampled, so nothing could go wrong: the fault waits for a step that samples.
            (Fault::OneTokenLess | Fault::BadToken, None) => self.fault.set(fault),
            _ => {}
        }
        Ok(sampled)
    }
}

/// An engine over an oracle, and the handle to its faults.
pub fn engine(
    pages: usize,
    max_context: usize,
    vocab_size: usize,
    config: &Config,
) -> (Engine<Oracle>, Rc<Cell<Fault>>) {
    over(Oracle::new(pages, max_context, vocab_size, config), config)
}

/// The same over an oracle that is there.
pub fn over(model: Oracle, config: &Config) -> (Engine<Oracle>, Rc<Cell<Fault>>) {
    let fault = model.fault.clone();
    (Engine::new(config.clone(), model).unwrap(), fault)
}

/// What a request's text is when nothing else runs, from the definition: no engine, no pages.
pub fn alone(
    request: &Request,
    max_tokens: usize,
    vocab_size: usize,
    eos: &[u32],
) -> (Vec<u32>, FinishReason) {
    let mut all = request.prompt.clone();
    let mut generated = Vec::new();
    loop {
        let token = draw(digest(&all), &request.params, generated.len(), vocab_size);
        all.push(token);
        generated.push(token);
        if request.stop_tokens.contains(&token) || (eos.contains(&token) && !request.ignore_eos) {
            return (generated, FinishReason::StopToken(token));
        }
        if generated.len() == max_tokens {
            return (generated, FinishReason::Length);
        }
    }
}

/// Steps until idle; a stall fails.
pub fn until_idle(engine: &mut Engine<Oracle>, mut step: impl FnMut(&mut Engine<Oracle>)) {
    for _ in 0..100_000 {
        if engine.is_idle() {
            return;
        }
        step(engine);
    }
    panic!("the engine never became idle: {:?}", engine.statistics());
}

/// Runs until idle; the tokens and the end of each of `ids`.
pub fn drain(engine: &mut Engine<Oracle>, ids: &[RequestId]) -> Vec<(Vec<u32>, Option<FinishReason>)> {
    let mut texts = vec![(Vec::new(), None); ids.len()];
    let index = |id: RequestId| ids.iter().position(|&other| other == id).expect("a request of this test");
    until_idle(engine, |engine| {
        for event in engine.step() {
            match event {
                Event::Token { id, sampled } => texts[index(id)].0.push(sampled.token),
                Event::Finished { id, reason } => {
                    let before = texts[index(id)].1.replace(reason);
                    assert_eq!(before, None, "request {id} ended twice");
                }
            }
        }
    });
    texts
}

/// A prompt of `len` tokens that no other seed has.
pub fn prompt(len: usize, vocab_size: usize, seed: u64) -> Vec<u32> {
    let mut rng = op_test::Rng::new(seed);
    (0..len).map(|_| rng.below(0..vocab_size) as u32).collect()
}
