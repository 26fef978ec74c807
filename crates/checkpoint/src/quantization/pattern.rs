//! How a quantization config names layers.

/// Matches names of linear layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern {}
