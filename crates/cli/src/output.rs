//! What `generate` prints: streamed text or JSON lines on standard output, timings on standard error.

use crate::error::{Error, Result};
use crate::prompts::Prompt;
use serde::Serialize;
use std::fmt::Display;
use std::io::Write;
use std::time::Instant;

/// A request that has ended.
pub struct Finished {
    pub index: usize,
    pub token_ids: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub text: Option<String>,
    pub finish_reason: &'static str,
    /// From submission to the first token.
    pub prefill_seconds: f64,
    /// From the first token to the last.
    pub decode_seconds: f64,
}

#[derive(Serialize)]
struct Object<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    token_ids: &'a [u32],
    text: Option<&'a str>,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<&'a [f32]>,
    timings: Timings,
}

#[derive(Serialize)]
struct Timings {
    prompt_tokens: usize,
    generated_tokens: usize,
    prefill_seconds: f64,
    decode_seconds: f64,
    /// Tokens after the first, over the time they took.
    decode_tokens_per_second: Option<f64>,
}

/// Prints results in the order of the prompts, whatever the order they end in.
pub struct Output {
    json: bool,
    logprobs: bool,
    prompts: Vec<Prompt>,
    waiting: Vec<Option<Finished>>,
    printed: usize,
    start: Instant,
    generated: usize,
    decode_seconds: f64,
}

impl Output {
    pub fn new(json: bool, logprobs: bool, prompts: Vec<Prompt>, start: Instant) -> Self {
        let waiting = prompts.iter().map(|_| None).collect();
        Self { json, logprobs, prompts, waiting, printed: 0, start, generated: 0, decode_seconds: 0.0 }
    }

    /// Whether text is printed as it comes: for a person, and for one prompt only.
    pub fn streams(&self) -> bool {
        !self.json && self.prompts.len() == 1
    }

    pub fn stream(&self, text: &str) -> Result<()> {
        if self.streams() && !text.is_empty() { print(text) } else { Ok(()) }
    }

    pub fn finish(&mut self, finished: Finished) -> Result<()> {
        self.generated += finished.token_ids.len();
        self.decode_seconds = self.decode_seconds.max(finished.decode_seconds);
        let index = finished.index;
        self.waiting[index] = Some(finished);
        while let Some(finished) = self.waiting.get_mut(self.printed).and_then(Option::take) {
            self.print(&finished)?;
            self.printed += 1;
        }
        Ok(())
    }

    /// The line of timings.
    pub fn close(self) -> Result<()> {
        if self.json {
            return Ok(());
        }
        let prompt_tokens: usize = self.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = self.generated as f64 / seconds;
        eprintln!(
            "{} prompt tokens, {} generated in {seconds:.2} s: {rate:.0} tokens/s",
            prompt_tokens, self.generated
        );
        Ok(())
    }

    fn print(&self, finished: &Finished) -> Result<()> {
        let prompt = &self.prompts[finished.index];
        if self.json {
            let after_first = finished.token_ids.len().saturating_sub(1) as f64;
            let object = Object {
                index: finished.index,
                prompt: prompt.text.as_deref(),
                token_ids: &finished.token_ids,
                text: finished.text.as_deref(),
                finish_reason: finished.finish_reason,
                logprobs: self.logprobs.then_some(finished.logprobs.as_slice()),
                timings: Timings {
                    prompt_tokens: prompt.tokens.len(),
                    generated_tokens: finished.token_ids.len(),
                    prefill_seconds: finished.prefill_seconds,
                    decode_seconds: finished.decode_seconds,
                    decode_tokens_per_second: (after_first > 0.0)
                        .then(|| after_first / finished.decode_seconds),
                },
            };
            return print_json(&object);
        }
        let text = match &finished.text {
            Some(_) if self.streams() => "\n".to_owned(),
            Some(text) => format!("[{}] {text}\n", finished.index + 1),
            None => format!("{}\n", list(&finished.token_ids)),
        };
        print(&text)?;
        if self.logprobs {
            let logprobs: Vec<String> =
                finished.logprobs.iter().map(|logprob| format!("{logprob:.4}")).collect();
            print(&format!("logprobs: {}\n", logprobs.join(" ")))?;
        }
        Ok(())
    }
}

fn list(tokens: &[u32]) -> String {
    tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// One object, one line, keys in the order of its fields.
pub fn print_json(object: &impl Serialize) -> Result<()> {
    print_line(serde_json::to_string(object).map_err(|error| Error::Output(error.into()))?)
}

/// Text and the end of its line. (`println!` panics where nobody reads any more.)
pub fn print_line(text: impl Display) -> Result<()> {
    print(&format!("{text}\n"))
}

fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Output)
}
