//! What can be wrong with a setting.

/// A setting is missing, out of range or unsupported.
///
/// In every variant `file` is the path and `key` the key with its parents (`rope_scaling.factor`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of a variant says what its fields are")]
pub enum ConfigError {
    /// A key that is needed is not there.
    #[error("{file}: {key} is missing")]
    Missing { file: String, key: String },
    /// A value of another type.
    #[error("{file}: {key}: expected {expected}, got {got}")]
    Type { file: String, key: String, expected: &'static str, got: String },
    /// A number out of range.
    #[error("{file}: {key}: expected {expected}, got {got}")]
    Range { file: String, key: String, expected: String, got: String },
    /// Two keys that contradict each other.
    #[error("{file}: {key} is {value}, but {other} is {other_value}")]
    Conflict { file: String, key: String, value: String, other: String, other_value: String },
    /// A setting that is known to exist but not supported, or not known at all.
    #[error("{file}: {key}: {value} is not supported; supported: {supported}")]
    Unsupported { file: String, key: String, value: String, supported: &'static str },
    /// A pattern of layer names that does not compile.
    #[error("{file}: {key}: pattern {pattern:?}: {message}")]
    Pattern { file: String, key: String, pattern: String, message: String },
}
