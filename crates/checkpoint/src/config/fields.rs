//! Reading settings out of a JSON object.
pub(crate) struct Fields;
