//! Tokenizer and chat template.

mod clock;
mod guard;
mod scan;
mod stream;
mod template;
mod tokenizer;

pub use stream::StreamDecoder;
pub use template::{ChatMessage, ChatTemplate};
pub use tokenizer::Tokenizer;
