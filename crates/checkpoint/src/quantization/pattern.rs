//! How quantization configs name layers.

use crate::config::Fields;
use crate::{ConfigError, Result};
use regex::{Regex, RegexBuilder};

/// Bytes a compiled pattern may take.
const REGEX_BYTES: usize = 256 << 10;
/// Patterns in one list.
const PATTERNS: usize = 4096;

/// Matches names of linear layers (`model.layers.0.mlp.up_proj`).
#[derive(Debug, Clone)]
pub enum Pattern {
    /// This layer.
    Name(String),
    /// Every linear layer: the class `Linear`.
    Linear,
    /// `re:`: a regular expression that matches from the start of the name on, not necessarily to its end.
    Regex(Regex),
    /// `*` for any characters, `?` for one; matches the whole name.
    Glob(String),
}

impl Pattern {
    /// Reads a list of layer names, `re:` patterns and class names, compressed-tensors' way.
    pub(super) fn names_or_regexes(fields: &Fields<'_>, key: &str) -> Result<Vec<Self>> {
        let compile = |pattern: &str| {
            // Python's re.match is anchored at the start only.
            let anchored = format!("^(?:{pattern})");
            RegexBuilder::new(&anchored).size_limit(REGEX_BYTES).build().map(Self::Regex).map_err(|error| {
                let message = error.to_string().lines().last().unwrap_or("").trim().to_owned();
                let (file, key) = (fields.file().to_owned(), fields.key(key));
                ConfigError::Pattern { file, key, pattern: pattern.to_owned(), message }.into()
            })
        };
        Self::list(fields, key, |text| match text.strip_prefix("re:") {
            Some(pattern) => compile(pattern),
            None if text == "Linear" => Ok(Self::Linear),
            None => Ok(Self::Name(text.to_owned())),
        })
    }

    /// Reads a list of layer names with `*`, ModelOpt's way.
    pub(super) fn globs(fields: &Fields<'_>, key: &str) -> Result<Vec<Self>> {
        Self::list(fields, key, |text| {
            let wild = text.contains(['*', '?']);
            Ok(if wild { Self::Glob(text.to_owned()) } else { Self::Name(text.to_owned()) })
        })
    }

    fn list(fields: &Fields<'_>, key: &str, read: impl Fn(&str) -> Result<Self>) -> Result<Vec<Self>> {
        let texts = fields.strings(key)?;
        if texts.len() > PATTERNS {
            return Err(fields.out_of_range(key, format!("at most {PATTERNS} patterns"), texts.len()));
        }
        texts.into_iter().map(read).collect()
    }

    /// Whether this names the linear layer `name`.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Linear => true,
            Self::Regex(regex) => regex.is_match(name),
            Self::Glob(glob) => glob_matches(glob.as_bytes(), name.as_bytes()),
        }
    }

    /// How much a match says: a name more than a pattern, a pattern more than the class.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Name(_) => 2,
            Self::Regex(_) | Self::Glob(_) => 1,
            Self::Linear => 0,
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(a), Self::Name(b)) | (Self::Glob(a), Self::Glob(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            (Self::Linear, Self::Linear) => true,
            _ => false,
        }
    }
}

/// Goes back to the last `*` only, so that it takes `glob.len() * name.len()` steps at most.
fn glob_matches(glob: &[u8], name: &[u8]) -> bool {
    let (mut g, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = name.get(n) {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, n));
                g += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == byte => (g, n) = (g + 1, n + 1),
            _ => match star {
                // Let the star take one byte more.
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (g, n) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The textbook definition, exponential and obviously right.
    fn naive(glob: &[u8], name: &[u8]) -> bool {
        match (glob.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                naive(rest, name) || name.split_first().is_some_and(|(_, n)| naive(glob, n))
            }
            (Some((&g, glob)), Some((&n, name))) => (g == b'?' || g == n) && naive(glob, name),
            _ => false,
        }
    }

    #[test]
    fn globs_match_as_defined() {
        // Every glob and every name of up to 5 letters over a small alphabet.
        let words = |alphabet: &[u8]| {
            let mut words = vec![Vec::new()];
            let mut start = 0;
            for _ in 0..5 {
                let end = words.len();
                for index in start..end {
                    for &letter in alphabet {
                        let mut word = words[index].clone();
                        word.push(letter);
                        words.push(word);
                    }
                }
                start = end;
            }
            words
        };
        for glob in words(b"a*?") {
            for name in words(b"ab") {
                assert_eq!(glob_matches(&glob, &name), naive(&glob, &name), "{glob:?} {name:?}");
            }
        }
    }
}
