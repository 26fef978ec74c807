//! The engine: requests in, events out.

use crate::request::Limits;
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::{
    Config, ConfigError, Event, FinishReason, Request, RequestId, StepError, StepModel, SubmitError,
};
use kv_cache::{AllocatorError, Direction};
use models::Step;
use sampling::Sampled;

/// Runs many requests through one model as one changing batch.
#[derive(Debug)]
pub struct Engine<M> {
    model: M,
    scheduler: Scheduler,
    limits: Limits,
    eos_tokens: Vec<u32>,
    next_id: u64,
    /// Of requests that the caller ended since the last step.
    pending: Vec<Event>,
    steps: u64,
    computed_tokens: u64,
    generated_tokens: u64,
    pages_out: u64,
    pages_in: u64,
}

/// What an engine is doing and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Requests in the queue, preempted ones among them.
    pub waiting: usize,
    /// Requests that hold pages.
    pub running: usize,
    /// Pages of the KV cache that nobody holds.
    pub free_pages: usize,
    /// Pages of the KV cache.
    pub pages: usize,
    /// Steps the model was asked to run.
    pub steps: u64,
    /// Rows of those steps: tokens whose keys and values were computed, some again after a preemption.
    pub computed_tokens: u64,
    /// Tokens that were not computed as their keys and values were found: of an equal beginning, or of the request itself before
    /// a preemption.
    pub reused_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// How often a running request was sent back to the queue.
    pub preemptions: u64,
    /// Pages copied to the host as they were evicted.
    pub pages_out: u64,
    /// Pages copied back.
    pub pages_in: u64,
}

impl<M: StepModel> Engine<M> {
    /// An engine that owns `model` and every page of its KV cache.
    pub fn new(config: Config, model: M) -> Result<Self, ConfigError> {
        config.check()?;
        let limits =
            Limits { vocab_size: model.vocab_size(), max_context: model.max_context(), pages: model.pages() };
        if limits.pages == 0 {
            return Err(ConfigError::NoPages);
        }
        Ok(Self {
            scheduler: Scheduler::new(&config, limits.pages, model.host_pages())?,
            model,
            limits,
            eos_tokens: config.eos_tokens,
            next_id: 0,
            pending: Vec::new(),
            steps: 0,
            computed_tokens: 0,
            generated_tokens: 0,
            pages_out: 0,
            pages_in: 0,
        })
    }

    /// Queues a request. One that could never run is refused.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        let max_tokens = request.check(self.limits)?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let own_prompt_len = self.model.keys_depend_on_prompt_len();
        self.scheduler.enqueue(Sequence::new(id, request, max_tokens, own_prompt_len));
        Ok(id)
    }

    /// Gives a request up: [`FinishReason::Cancelled`] comes with the next [`Self::step`]. Its pages are free at once.
    /// False where it has ended already.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        self.end(id, FinishReason::Cancelled)
    }

    /// Ends a request whose text is complete, as where a stop string came up: [`FinishReason::Finished`] comes with the
    /// next [`Self::step`]. Its pages are free at once. False where it has ended already.
    pub fn finish(&mut self, id: RequestId) -> bool {
        self.end(id, FinishReason::Finished)
    }

    fn end(&mut self, id: RequestId, reason: FinishReason) -> bool {
        let reason = match self.scheduler.remove(id) {
            Ok(false) => return false,
            Ok(true) => reason,
            Err(error) => FinishReason::Error(error.into()),
        };
        self.pending.push(Event::Finished { id, reason });
        true
    }

    /// Whether there is nothing to be done and nothing to be told.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.scheduler.waiting() == 0 && self.scheduler.running().is_empty()
    }

    /// Runs one step of the model, where there is anything to run, and tells what happened: first what the caller ended,
    /// then, by arrival, the tokens of this step and the requests that ended with them.
    pub fn step(&mut self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.pending);
        match self.run() {
            Ok(sampled) => self.advance(sampled, &mut events),
            Err(error) => self.fail(&error, &mut events),
        }
        events
    }

    /// Schedules a step and runs it: one token for each sampled sequence.
    fn run(&mut self) -> Result<Vec<Sampled>, StepError> {
        self.scheduler.schedule()?;
        self.copy_pages()?;
        let step = Step { sequences: self.scheduler.running().iter().map(Sequence::step).collect() };
        if step.sequences.is_empty() {
            return Ok(Vec::new());
        }
        self.steps += 1;
        self.computed_tokens += step.tokens() as u64;
        let expected = step.sequences.iter().filter(|sequence| sequence.sample.is_some()).count();
        let sampled = self.model.step(&step)?;
        let got = sampled.len();
        if got != expected {
            return Err(StepError::WrongCount { expected, got });
        }
        self.scheduler.computed()?;
        Ok(sampled)
    }

    /// Has the model copy what the step needs to be elsewhere.
    fn copy_pages(&mut self) -> Result<(), StepError> {
        let copies = self.scheduler.take_copies();
        if copies.is_empty() {
            return Ok(());
        }
        let count = |direction| copies.iter().filter(|copy| copy.direction == direction).count() as u64;
        self.pages_out += count(Direction::ToHost);
        self.pages_in += count(Direction::ToDevice);
        Ok(self.model.copy_pages(&copies)?)
    }

    /// Appends the tokens of a step that went well.
    fn advance(&mut self, sampled: Vec<Sampled>, events: &mut Vec<Event>) {
        let vocab_size = self.limits.vocab_size;
        let (mut sampled, eos_tokens) = (sampled.into_iter(), &self.eos_tokens);
        let generated_tokens = &mut self.generated_tokens;
        let mut tokens = Vec::with_capacity(sampled.len());
        let ended = self.scheduler.retire(|sequence| {
            let next = if sequence.is_sampled() { sampled.next() } else { None };
            let next = next?;
            let token = next.token;
            if token as usize >= vocab_size {
                return Some(FinishReason::Error(StepError::UnknownToken { token, vocab_size }));
            }
            *generated_tokens += 1;
            tokens.push(Event::Token { id: sequence.id, sampled: next });
            sequence.push(token, eos_tokens)
        });
        events.append(&mut tokens);
        events.extend(ended.into_iter().map(finished));
    }

    /// Ends every sequence of a step that failed. What is in the pages is not known: errors of a device can show late.
    fn fail(&mut self, error: &StepError, events: &mut Vec<Event>) {
        let ended = self.scheduler.retire(|_| Some(FinishReason::Error(error.clone())));
        self.scheduler.forget_published();
        events.extend(ended.into_iter().map(finished));
    }

    /// What the engine is doing and has done.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            waiting: self.scheduler.waiting(),
            running: self.scheduler.running().len(),
            free_pages: self.scheduler.allocator().free_pages(),
            pages: self.limits.pages,
            steps: self.steps,
            computed_tokens: self.computed_tokens,
            generated_tokens: self.generated_tokens,
            reused_tokens: self.scheduler.reused_tokens(),
            preemptions: self.scheduler.preemptions(),
            pages_out: self.pages_out,
            pages_in: self.pages_in,
        }
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }
}

fn finished((id, reason, given): (RequestId, FinishReason, Result<(), AllocatorError>)) -> Event {
    let reason = match given {
        Ok(()) => reason,
        Err(error) => FinishReason::Error(error.into()),
    };
    Event::Finished { id, reason }
}
