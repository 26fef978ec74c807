//! In-flight batching: admission, scheduling, preemption, cancel. Pure host logic: no HTTP, no text, no clock.
//!
//! ```text
//!  submit ──► waiting ──── admitted, pages for all its tokens taken ────► running ──► finished
//!             (FCFS)  ◄─── preempted: pages given back, tokens kept ────  (by arrival)
//!
//!  a step's rows:   | seq 1: 1 | seq 2: 1 | seq 3: 1 | seq 4: 1 | seq 5: a chunk of its prompt     |
//!                   '------- decodes: one token each ------'  '-- as many as max_batch_tokens lets --'
//! ```
//!
//! - **Order is by arrival, everywhere.** Every running request came before every waiting one. A step hands out its
//!   rows from the oldest to the newest, pages are taken from the newest, and nobody overtakes the head of the queue:
//!   the oldest request always gets on, so none starves.
//! - **Prompts go in chunks.** What the decodes leave of [`Config::max_batch_tokens`] is filled with prompt tokens, so
//!   that a long prompt delays nobody's next token by more than one step.
//! - **Pages are taken as they are needed.** A request is admitted when its tokens so far fit and a page stays free for
//!   each running request that will still grow. Where pages run out nevertheless, the newest running request goes back
//!   to the head of the queue and goes on later with the token that it would have had, as random draws depend on the
//!   request's seed and the number of the token alone.
//! - **What was computed is found again.** Full pages are published as steps end. A request starts with the longest beginning
//!   that is still there, another's of the same [`Request::salt`] or its own from before a preemption: in the KV cache, or in
//!   the model's host pages ([`StepModel::host_pages`]), where pages go as they are evicted. The rest is computed. Bringing
//!   a page back is always preferred: 10 MiB over the bus, against 64 tokens through all weights.
//! - **What can never fit is refused at [`Engine::submit`]**, with the size that would fit.
//! - **Every request ends with one [`Event::Finished`]**, whatever ended it: a step that fails ends those that took part
//!   in it and gives their pages back; the others go on.
//!
//! ```
//! use engine::{Config, Engine, Event, FinishReason, Request, StepModel};
//! use models::Step;
//! use sampling::Sampled;
//!
//! /// Says the number after the last one.
//! struct Counting;
//!
//! impl StepModel for Counting {
//!     fn vocab_size(&self) -> usize {
//!         1000
//!     }
//!     fn max_context(&self) -> usize {
//!         128
//!     }
//!     fn pages(&self) -> usize {
//!         4
//!     }
//!     fn step(&mut self, step: &Step<'_>) -> device::Result<Vec<Sampled>> {
//!         let sampled = step.sequences.iter().filter_map(|sequence| sequence.sample);
//!         let next = |history: &[u32]| history.last().map_or(0, |last| last + 1);
//!         Ok(sampled.map(|sample| Sampled { token: next(sample.history), ..Sampled::default() }).collect())
//!     }
//! }
//!
//! let config = Config { max_sequences: 8, max_batch_tokens: 64, eos_tokens: vec![13] };
//! let mut engine = Engine::new(config, Counting)?;
//! let id = engine.submit(Request { prompt: vec![9, 10], ..Request::default() })?;
//! let mut tokens = Vec::new();
//! while !engine.is_idle() {
//!     for event in engine.step() {
//!         match event {
//!             Event::Token { sampled, .. } => tokens.push(sampled.token),
//!             Event::Finished { reason, .. } => assert_eq!(reason, FinishReason::StopToken(13)),
//!         }
//!     }
//! }
//! assert_eq!(tokens, [11, 12, 13]);
//! # let _ = id;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod config;
mod engine;
mod event;
mod model;
mod request;
mod scheduler;
mod sequence;

pub use config::{Config, ConfigError};
pub use engine::{Engine, Statistics};
pub use event::{Event, FinishReason, StepError};
pub use model::StepModel;
pub use request::{Request, RequestId, SubmitError};
