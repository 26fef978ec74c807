//! The header of one safetensors file.
//!
//! ```text
//! [ u64 LE: bytes of header | header: JSON | data ]
//! header = { "__metadata__": { string: string }, name: { "dtype", "shape", "data_offsets": [begin, end] }, ... }
//! ```
//!
//! The data must be covered exactly: no overlap, no hole, nothing after the last tensor, so that a file that was cut,
//! extended or stitched together never passes. (The `safetensors` crate accepts equal names and, in release builds,
//! shapes whose product overflows.)
//!
//! What is kept is the text itself and where in it each name and entry lies, 16 bytes a tensor: a hostile header
//! cannot make its reader use more than twice its own size.

use super::{Dtype, TensorInfo};
use crate::files::Source;
use crate::{Result, TensorError, json, limits};
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Bytes of the length that opens a file.
const PREFIX: u64 = 8;
/// Characters of a message that are the header's own.
const WORDS: usize = 160;
/// The file's object, a tensor's object, its arrays.
const DEPTH: usize = 3;

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    text: String,
    /// Sorted by name.
    places: Vec<Place>,
    /// Where in the file the data begins.
    data_start: u64,
}

/// Where in the header's text a tensor's name and entry lie.
#[derive(Debug, Clone, Copy)]
struct Place {
    name: [u32; 2],
    entry: [u32; 2],
}

/// A tensor and where in the file its bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    pub info: TensorInfo,
    pub start: u64,
}

impl Header {
    /// Reads and checks the header of `source`.
    pub fn read(source: &Source) -> Result<Self> {
        let file = || source.path.clone();
        if source.len < PREFIX + 2 {
            return Err(TensorError::TooShort { file: file(), bytes: source.len }.into());
        }
        let mut prefix = [0; PREFIX as usize];
        source.read_at(0, &mut prefix)?;
        let (header, rest) = (u64::from_le_bytes(prefix), source.len - PREFIX);
        if header > limits::HEADER_BYTES {
            return Err(
                TensorError::HeaderTooLarge { file: file(), header, limit: limits::HEADER_BYTES }.into()
            );
        }
        if header > rest {
            return Err(TensorError::HeaderPastEnd { file: file(), header, rest }.into());
        }
        let mut text = vec![0; header as usize];
        source.read_at(PREFIX, &mut text)?;
        Ok(Self::parse(&source.path, text, rest - header)?)
    }

    /// Checks a header's text against the bytes of data that follow it.
    fn parse(file: &str, text: Vec<u8>, data: u64) -> Result<Self, TensorError> {
        let malformed = |message: String| TensorError::Header { file: file.to_owned(), message };
        if json::depth(&text) > DEPTH {
            return Err(TensorError::HeaderTooDeep { file: file.to_owned(), limit: DEPTH });
        }
        let data_start = PREFIX + text.len() as u64;
        let text = String::from_utf8(text).map_err(|error| malformed(error.utf8_error().to_string()))?;
        let mut problem = None;
        let places = Places { file, text: &text, problem: &mut problem }.collect();
        let mut places = places.map_err(|error| problem.unwrap_or_else(|| malformed(error.to_string())))?;
        places.sort_unstable_by_key(|place| slice(&text, place.name));
        let header = Self { text, places, data_start };
        header.check_names(file)?;
        header.check_data(file, data)?;
        Ok(header)
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// The name of tensor `index` in order of names; empty past the end.
    pub fn name(&self, index: usize) -> &str {
        self.places.get(index).map_or("", |place| slice(&self.text, place.name))
    }

    /// The tensor of that name.
    pub fn find(&self, file: &str, name: &str) -> Result<Option<Located>, TensorError> {
        let place = self.places.binary_search_by_key(&name, |place| slice(&self.text, place.name));
        let Ok(index) = place else { return Ok(None) };
        let entry = self.entry(file, index)?;
        let start = self.data_start + entry.begin;
        let shape = entry.shape.as_slice().iter().map(|&size| size as usize).collect();
        Ok(Some(Located {
            info: TensorInfo { dtype: entry.dtype, shape, bytes: entry.end - entry.begin },
            start,
        }))
    }

    fn check_names(&self, file: &str) -> Result<(), TensorError> {
        match (1..self.len()).find(|&index| self.name(index - 1) == self.name(index)) {
            Some(index) => {
                Err(TensorError::Duplicate { file: file.to_owned(), tensor: self.name(index).to_owned() })
            }
            None => Ok(()),
        }
    }

    /// Every entry on its own, then that together they cover the data.
    fn check_data(&self, file: &str, data: u64) -> Result<(), TensorError> {
        let mut pieces = Vec::with_capacity(self.len());
        for index in 0..self.len() {
            let entry = self.entry(file, index)?;
            if entry.end > data {
                let (file, tensor) = (file.to_owned(), self.name(index).to_owned());
                return Err(TensorError::PastEnd { file, tensor, end: entry.end, data });
            }
            pieces.push((entry.begin, entry.end, index as u32));
        }
        pieces.sort_unstable();
        let (mut covered, mut last) = (0, 0);
        for (begin, end, index) in pieces {
            let tensor = || self.name(index as usize).to_owned();
            if begin < covered {
                let other = self.name(last as usize).to_owned();
                return Err(TensorError::Overlap { file: file.to_owned(), tensor: tensor(), other });
            }
            if begin > covered {
                return Err(TensorError::Hole {
                    file: file.to_owned(),
                    tensor: tensor(),
                    bytes: begin - covered,
                });
            }
            (covered, last) = (end, index);
        }
        if covered < data {
            return Err(TensorError::Trailing { file: file.to_owned(), bytes: data - covered });
        }
        Ok(())
    }

    fn entry(&self, file: &str, index: usize) -> Result<Entry, TensorError> {
        let text = self.places.get(index).map_or("", |place| slice(&self.text, place.entry));
        Entry::parse(file, self.name(index), text)
    }
}

impl Entry {
    /// Parses and checks the entry of one tensor.
    fn parse(file: &str, tensor: &str, text: &str) -> Result<Self, TensorError> {
        let (file, tensor) = (|| file.to_owned(), || tensor.to_owned());
        let raw: RawEntry<'_> = serde_json::from_str(text).map_err(|error| TensorError::Entry {
            file: file(),
            tensor: tensor(),
            message: error.to_string().chars().take(WORDS).collect(),
        })?;
        let Some(dtype) = Dtype::from_name(&raw.dtype) else {
            let dtype = raw.dtype.chars().take(WORDS).collect();
            return Err(TensorError::UnknownDtype { file: file(), tensor: tensor(), dtype });
        };
        let [begin, end] = raw.data_offsets;
        let Some(got) = end.checked_sub(begin) else {
            return Err(TensorError::OffsetsBackwards { file: file(), tensor: tensor(), begin, end });
        };
        let shape = raw.shape.as_slice();
        let Some(expected) = bytes(dtype, shape) else {
            return Err(TensorError::ShapeOverflow { file: file(), tensor: tensor(), shape: shape.to_vec() });
        };
        if expected != got {
            let shape = shape.to_vec();
            return Err(TensorError::Size { file: file(), tensor: tensor(), dtype, shape, expected, got });
        }
        Ok(Self { dtype, shape: raw.shape, begin, end })
    }
}

/// Bytes of a tensor; `None` where they overflow. A zero does not excuse an overflow beside it.
fn bytes(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let others = shape.iter().filter(|&&size| size > 0);
    let bytes = others.clone().try_fold(dtype.bytes(), |product, &size| product.checked_mul(size))?;
    usize::try_from(bytes).ok()?;
    Some(if others.count() < shape.len() { 0 } else { bytes })
}

fn is_name(name: &str) -> bool {
    (1..=limits::NAME_BYTES).contains(&name.len()) && !name.contains(char::is_control)
}

fn name_error(file: &str, name: &str) -> TensorError {
    let tensor = name.chars().take(WORDS).collect();
    TensorError::Name { file: file.to_owned(), tensor, limit: limits::NAME_BYTES }
}

fn slice(text: &str, [start, end]: [u32; 2]) -> &str {
    text.get(start as usize..end as usize).unwrap_or("")
}

struct Entry {
    dtype: Dtype,
    shape: Shape,
    begin: u64,
    end: u64,
}

/// serde's derive refuses fields that stand twice, are missing or unknown.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object of dtype, shape and data_offsets")]
struct RawEntry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// A shape without an allocation.
#[derive(Clone, Copy)]
struct Shape {
    sizes: [u64; limits::RANK],
    rank: usize,
}

impl Shape {
    fn as_slice(&self) -> &[u64] {
        self.sizes.get(..self.rank).unwrap_or(&self.sizes)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "a shape of at most {} sizes", limits::RANK)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Shape { sizes: [0; limits::RANK], rank: 0 };
                while let Some(size) = seq.next_element()? {
                    let Some(slot) = shape.sizes.get_mut(shape.rank) else {
                        return Err(A::Error::invalid_length(shape.rank + 1, &self));
                    };
                    *slot = size;
                    shape.rank += 1;
                }
                Ok(shape)
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

/// Finds names and entries in a header's text.
struct Places<'a> {
    file: &'a str,
    text: &'a str,
    /// What was wrong, where it was not the JSON: serde's errors carry text only.
    problem: &'a mut Option<TensorError>,
}

/// The shortest entry there can be, `"":{"dtype":"U8","shape":[],"data_offsets":[0,1]},`.
const SHORTEST_ENTRY: usize = 50;

impl Places<'_> {
    fn collect(self) -> Result<Vec<Place>, serde_json::Error> {
        let mut json = serde_json::Deserializer::from_str(self.text);
        let places = json.deserialize_map(self)?;
        json.end()?;
        Ok(places)
    }

    /// Where in the text `part`, a piece of it, lies.
    fn range(&self, part: &str) -> [u32; 2] {
        let start = part.as_ptr() as usize - self.text.as_ptr() as usize;
        [start as u32, (start + part.len()) as u32]
    }
}

impl<'de> Visitor<'de> for Places<'_> {
    type Value = Vec<Place>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Place>, A::Error> {
        // Entries are checked before they are kept, so that this is room for all that can come.
        let mut places = Vec::with_capacity(self.text.len() / SHORTEST_ENTRY);
        let mut metadata = false;
        while let Some(Name(name)) = map.next_key()? {
            let file = || self.file.to_owned();
            let problem = match name {
                Cow::Borrowed("__metadata__") => {
                    if std::mem::replace(&mut metadata, true) {
                        return Err(A::Error::custom("__metadata__ stands twice"));
                    }
                    map.next_value::<Metadata>()?;
                    continue;
                }
                // Not a piece of the text: there was an escape in it.
                Cow::Owned(name) => name_error(self.file, &name),
                Cow::Borrowed(name) if !is_name(name) => name_error(self.file, name),
                Cow::Borrowed(_) if places.len() == limits::TENSORS => {
                    TensorError::TooManyTensors { file: file(), limit: limits::TENSORS }
                }
                Cow::Borrowed(name) => {
                    let entry = map.next_value::<&'de RawValue>()?.get();
                    match Entry::parse(self.file, name, entry) {
                        Ok(_) => {
                            places.push(Place { name: self.range(name), entry: self.range(entry) });
                            continue;
                        }
                        Err(problem) => problem,
                    }
                }
            };
            *self.problem = Some(problem);
            return Err(A::Error::custom("refused"));
        }
        Ok(places)
    }
}

/// A name, borrowed from the text unless it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Strings by name; nothing in them is used.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Metadata;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("__metadata__: an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                while map.next_entry::<Name<'de>, Name<'de>>()?.is_some() {}
                Ok(Metadata)
            }
        }
        deserializer.deserialize_map(Strings)
    }
}
