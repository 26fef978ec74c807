//! What ends the command: one line that names the thing and the remedy.

use std::path::PathBuf;

/// Shorthand for results of the command.
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    #[error(transparent)]
    Model(#[from] models::Error),
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error(transparent)]
    Engine(#[from] engine::ConfigError),
    #[error("a step failed: {0}")]
    Step(engine::StepError),
    #[error(transparent)]
    Submit(#[from] engine::SubmitError),
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: std::io::Error },
    #[error("{}, line {line}: {error}", path.display())]
    PromptLine { path: PathBuf, line: usize, error: String },
    #[error("{model}: no such folder; give a checkpoint's folder or an embedded model ({embedded})")]
    NoModel { model: String, embedded: String },
    #[error("--{option}: expected {expected}, got {got}")]
    Option { option: &'static str, expected: String, got: String },
    #[error(
        "{what} of {tokens} tokens, beyond the model's context of {max_context}; take fewer, or give --max-context {tokens}"
    )]
    BeyondContext { what: String, tokens: usize, max_context: usize },
    #[error("a batch of {batch} sequences of {tokens} tokens needs {needed}; {given}: {remedy}")]
    KvCache { batch: usize, tokens: usize, needed: String, given: String, remedy: &'static str },
    #[error("writing to standard output: {0}")]
    Output(std::io::Error),
}
