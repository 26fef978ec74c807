//! What can be wrong with a tokenizer or a chat template.

/// The tokenizer or the chat template is malformed or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of a variant says what its fields are")]
pub enum TextError {
    /// A tokenizer that cannot be built.
    #[error("{file}: malformed tokenizer: {message}")]
    Tokenizer { file: String, message: String },
    /// A tokenizer of another model.
    #[error(
        "{file}: token {token:?} has id {id}, but the model has {vocab_size} tokens (vocab_size in config.json); this \
         is another model's tokenizer"
    )]
    Vocabulary { file: String, token: String, id: u32, vocab_size: usize },
    /// A text that could not be encoded.
    #[error("could not encode the text: {message}")]
    Encode { message: String },
    /// Tokens that could not be decoded.
    #[error("could not decode the tokens: {message}")]
    Decode { message: String },
    /// No chat template.
    #[error(
        "{place}: no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); give a plain prompt"
    )]
    NoTemplate { place: String },
    /// Several templates and none called default.
    #[error(
        "{file}: chat_template: expected a string or a list with a template named \"default\", got {got}"
    )]
    TemplateForm { file: String, got: String },
    /// A template over the limit.
    #[error("{file}: chat template of {bytes} bytes, the limit is {limit}")]
    TemplateTooLarge { file: String, bytes: usize, limit: usize },
    /// Blocks nested too deeply.
    #[error("{file}: chat template: blocks or brackets nested too deeply")]
    TemplateTooDeep { file: String },
    /// A tag with too long an expression.
    #[error("{file}: chat template: line {line}: more than {limit} names and signs in one tag")]
    TemplateTagTooLong { file: String, line: usize, limit: usize },
    /// A template that does not compile.
    #[error("{file}: malformed chat template: {message}")]
    Template { file: String, message: String },
    /// The template called raise_exception: it refuses these messages.
    #[error("the chat template refuses these messages: {message}")]
    Raised { message: String },
    /// The template ran longer, or wrote more, than it may.
    #[error("{file}: chat template: not done after {fuel} units of fuel")]
    Fuel { file: String, fuel: u64 },
    /// The template failed.
    #[error("{file}: chat template failed: {message}")]
    Render { file: String, message: String },
}
