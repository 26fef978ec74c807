//! Settings read out of a JSON object, each checked where it is read. A key set to null counts as not set, as in
//! transformers.

use crate::json::{Object, kind};
use crate::{ConfigError, Result};
use serde_json::Value;
use std::fmt::Display;
use std::ops::RangeInclusive;

/// An object of settings and where it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    file: &'a str,
    /// The keys that lead to it, none at the top.
    parent: &'a str,
    object: &'a Object,
}

impl<'a> Fields<'a> {
    /// The settings of a whole file.
    pub fn new(file: &'a str, object: &'a Object) -> Self {
        Self { file, parent: "", object }
    }

    /// The settings under `parent`, a key.
    pub fn under(file: &'a str, parent: &'a str, object: &'a Object) -> Self {
        Self { file, parent, object }
    }

    /// The file, for messages.
    pub fn file(&self) -> &'a str {
        self.file
    }

    /// `key` with its parents.
    pub fn key(&self, key: &str) -> String {
        if self.parent.is_empty() { key.to_owned() } else { format!("{}.{key}", self.parent) }
    }

    /// The value of a key that is set.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether the file has the key, be it set to null.
    pub fn says(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// Which of several spellings of a key the file uses. Two that disagree are an error.
    pub fn spelling(&self, keys: &[&'static str]) -> Result<Option<&'static str>> {
        let mut found: Option<&'static str> = None;
        for &key in keys {
            let (Some(value), first) = (self.get(key), found) else { continue };
            match first {
                None => found = Some(key),
                Some(first) => {
                    if let Some(other) = self.get(first).filter(|&other| other != value) {
                        return Err(self.conflict(first, brief(other), key, brief(value)));
                    }
                }
            }
        }
        Ok(found)
    }

    /// A whole number within `range`.
    pub fn integer(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Number(number) = value else { return Err(self.wrong_type(key, "a whole number", value)) };
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        // Python writes some sizes as floats.
        let whole = number.as_u64().or_else(|| {
            number
                .as_f64()
                .filter(|float| float.fract() == 0.0 && (0.0..9e15).contains(float))
                .map(|float| float as u64)
        });
        match whole.and_then(|whole| usize::try_from(whole).ok()).filter(|whole| range.contains(whole)) {
            Some(whole) => Ok(Some(whole)),
            None => Err(self.out_of_range(key, expected(), number)),
        }
    }

    /// [`Self::integer`] under one of several spellings, where it must be set. The error names the first.
    pub fn needed(&self, keys: &[&'static str], range: RangeInclusive<usize>) -> Result<usize> {
        let found = self.spelling(keys)?.map(|key| self.integer(key, range)).transpose()?.flatten();
        found.ok_or_else(|| self.missing(keys.first().unwrap_or(&"")))
    }

    /// A finite number within `range`.
    pub fn float(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Some(float) = value.as_f64() else { return Err(self.wrong_type(key, "a number", value)) };
        if !range.contains(&float) {
            return Err(self.out_of_range(
                key,
                format!("a number from {:?} to {:?}", range.start(), range.end()),
                float,
            ));
        }
        Ok(Some(float))
    }

    /// true or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(self.wrong_type(key, "true or false", value)),
        }
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(string)) => Ok(Some(string)),
            Some(value) => Err(self.wrong_type(key, "a string", value)),
        }
    }

    /// An object.
    pub fn object(&self, key: &str) -> Result<Option<&'a Object>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(value) => Err(self.wrong_type(key, "an object", value)),
        }
    }

    /// A list of strings; empty where it is not set.
    pub fn strings(&self, key: &str) -> Result<Vec<&'a str>> {
        let expected = "a list of strings";
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(value @ Value::Array(items)) => {
                let strings = items.iter().map(|item| item.as_str()).collect::<Option<_>>();
                strings.ok_or_else(|| self.wrong_type(key, expected, value))
            }
            Some(value) => Err(self.wrong_type(key, expected, value)),
        }
    }

    /// A token id below `vocab_size`; -1, which some files write for "none", counts as not set.
    pub fn token(&self, key: &str, vocab_size: usize) -> Result<Option<u32>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) if value.as_i64() == Some(-1) => Ok(None),
            Some(value) => self.token_of(key, value, vocab_size).map(Some),
        }
    }

    /// A token id or a list of them; `None` where the key is not set.
    pub fn tokens(&self, key: &str, vocab_size: usize) -> Result<Option<Vec<u32>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                items.iter().map(|item| self.token_of(key, item, vocab_size)).collect::<Result<_>>().map(Some)
            }
            Some(_) => Ok(Some(self.token(key, vocab_size)?.into_iter().collect())),
        }
    }

    fn token_of(&self, key: &str, value: &Value, vocab_size: usize) -> Result<u32> {
        if !value.is_number() {
            return Err(self.wrong_type(key, "a token id", value));
        }
        let id =
            value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < vocab_size);
        id.ok_or_else(|| self.out_of_range(key, format!("a token id below vocab_size {vocab_size}"), value))
    }

    /// A key that is needed is not there.
    pub fn missing(&self, key: &str) -> crate::Error {
        ConfigError::Missing { file: self.file.to_owned(), key: self.key(key) }.into()
    }

    /// A value of another type.
    pub fn wrong_type(&self, key: &str, expected: &'static str, got: &Value) -> crate::Error {
        let got = if got.is_array() || got.is_object() { kind(got).to_owned() } else { brief(got) };
        ConfigError::Type { file: self.file.to_owned(), key: self.key(key), expected, got }.into()
    }

    /// A number out of range.
    pub fn out_of_range(&self, key: &str, expected: String, got: impl Display) -> crate::Error {
        ConfigError::Range { file: self.file.to_owned(), key: self.key(key), expected, got: got.to_string() }
            .into()
    }

    /// Two keys that contradict each other.
    pub fn conflict(
        &self,
        key: &str,
        value: impl Display,
        other: &str,
        other_value: impl Display,
    ) -> crate::Error {
        let (value, other_value) = (shorten(value.to_string()), shorten(other_value.to_string()));
        let (key, other) = (self.key(key), self.key(other));
        ConfigError::Conflict { file: self.file.to_owned(), key, value, other, other_value }.into()
    }

    /// A setting that is not supported.
    pub fn unsupported(&self, key: &str, value: impl Display, supported: &'static str) -> crate::Error {
        let value = shorten(value.to_string());
        ConfigError::Unsupported { file: self.file.to_owned(), key: self.key(key), value, supported }.into()
    }
}

/// A value on one short line.
fn brief(value: &Value) -> String {
    shorten(value.to_string())
}

fn shorten(text: String) -> String {
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}
