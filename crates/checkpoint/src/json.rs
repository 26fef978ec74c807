//! JSON under limits. `serde_json` keeps the last of two equal keys; here that is an error.

use crate::{JsonError, Result, limits};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// An object's members.
pub(crate) type Object = Map<String, Value>;

/// Parses the file's one object.
pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Object> {
    if depth(bytes) > limits::JSON_DEPTH {
        return Err(JsonError::TooDeep { file: file.to_owned(), limit: limits::JSON_DEPTH }.into());
    }
    let mut duplicate = None;
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { duplicate: &mut duplicate }
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value))
        .map_err(|error| match duplicate {
            Some(key) => JsonError::DuplicateKey { file: file.to_owned(), key },
            None => JsonError::Syntax { file: file.to_owned(), message: error.to_string() },
        })?;
    match value {
        Value::Object(object) => Ok(object),
        other => Err(JsonError::NotAnObject { file: file.to_owned(), got: kind(&other) }.into()),
    }
}

/// Whether the text is JSON at all, whatever it holds.
pub(crate) fn check(file: &str, bytes: &[u8]) -> Result<()> {
    if depth(bytes) > limits::JSON_DEPTH {
        return Err(JsonError::TooDeep { file: file.to_owned(), limit: limits::JSON_DEPTH }.into());
    }
    match serde_json::from_slice::<IgnoredAny>(bytes) {
        Ok(_) => Ok(()),
        Err(error) => Err(JsonError::Syntax { file: file.to_owned(), message: error.to_string() }.into()),
    }
}

/// What a value is, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The deepest nesting of arrays and objects. On text that is not JSON any number may come, no smaller than what a
/// parser reaches before it finds out.
pub(crate) fn depth(bytes: &[u8]) -> usize {
    let (mut level, mut deepest) = (0usize, 0);
    let mut bytes = bytes.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                level += 1;
                deepest = deepest.max(level);
            }
            b']' | b'}' => level = level.saturating_sub(1),
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => _ = bytes.next(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

/// Builds a `Value` and refuses objects with equal keys.
struct Strict<'a> {
    /// The key that stood twice: serde's errors carry text only.
    duplicate: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict { duplicate: self.duplicate })? {
            values.push(value);
        }
        Ok(values.into())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Object::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                *self.duplicate = Some(key);
                return Err(A::Error::custom("duplicate key"));
            }
            let value = map.next_value_seed(Strict { duplicate: self.duplicate })?;
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_ignores_strings() {
        assert_eq!(depth(br#"{"a":[1,[2]],"b":"[[[[\"[["}"#), 3);
        assert_eq!(depth(b""), 0);
        assert_eq!(depth(b"]]]{"), 1);
    }

    #[test]
    fn parses_what_serde_json_parses() {
        let text =
            r#"{"a": [1, -2, 3.5, null, true, "x\n\u00e9"], "b": {"c": {}}, "18": 18446744073709551615}"#;
        let expected: Value = serde_json::from_str(text).unwrap();
        assert_eq!(Value::Object(parse("f", text.as_bytes()).unwrap()), expected);
    }
}
