//! What can be wrong with a checkpoint. Each message is one line that names the file and the tensor or key, what was
//! expected, what came, and the remedy where there is one.

mod config;
mod tensor;
mod text;

pub use config::ConfigError;
pub use tensor::TensorError;
pub use text::TextError;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that can be wrong with a checkpoint.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A file is missing, too large or unreadable.
    #[error(transparent)]
    File(#[from] FileError),
    /// A JSON file is malformed.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A safetensors file or its index is malformed, or a tensor is not what was asked for.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A setting is missing, out of range or unsupported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokenizer or the chat template is malformed or failed.
    #[error(transparent)]
    Text(#[from] TextError),
}

/// A file is missing, too large or unreadable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The checkpoint's folder does not exist or is something else.
    #[error("{folder}: not a folder; give the folder that holds config.json and the .safetensors files")]
    NotAFolder {
        /// As given.
        folder: String,
    },
    /// A file that is needed is not there.
    #[error("{file}: not found; {remedy}")]
    Missing {
        /// Its path.
        file: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A folder, pipe or device where a file should be.
    #[error("{file}: not a regular file")]
    NotAFile {
        /// Its path.
        file: String,
    },
    /// A file over its limit.
    #[error("{file}: {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its path.
        file: String,
        /// Its size.
        bytes: u64,
        /// The most accepted.
        limit: u64,
    },
    /// The operating system refused.
    #[error("{file}: {message}")]
    Io {
        /// Its path.
        file: String,
        /// The system's words.
        message: String,
    },
}

/// A JSON file is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, or not of the expected form.
    #[error("{file}: malformed JSON: {message}")]
    Syntax {
        /// Its path.
        file: String,
        /// What and where.
        message: String,
    },
    /// A key stands twice in one object.
    #[error("{file}: key {key:?} stands twice in one object")]
    DuplicateKey {
        /// Its path.
        file: String,
        /// The key.
        key: String,
    },
    /// Arrays and objects nested too deeply.
    #[error("{file}: nested deeper than {limit} levels")]
    TooDeep {
        /// Its path.
        file: String,
        /// The most accepted.
        limit: usize,
    },
    /// The top level is not an object.
    #[error("{file}: expected an object at the top level, got {got}")]
    NotAnObject {
        /// Its path.
        file: String,
        /// What is there.
        got: &'static str,
    },
}
