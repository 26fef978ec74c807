//! Malformed safetensors headers: each case with its exact error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use checkpoint::{Dtype, Error, TensorError, limits};
use common::{Folder, Piece, assert_one_line, raw, safetensors};

const FILE: &str = "model.safetensors";

fn file() -> String {
    FILE.to_owned()
}

#[test]
fn headers() {
    let entry = |entry: &str| raw(&format!(r#"{{"a":{entry}}}"#), &[0; 8]);
    let good = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let named = |tensor: &str| (file(), tensor.to_owned());
    let (file_a, a) = named("a");
    let bad = |message: &str| TensorError::Entry {
        file: file_a.clone(),
        tensor: a.clone(),
        message: message.to_owned(),
    };
    let malformed = |message: &str| TensorError::Header { file: file(), message: message.to_owned() };
    let long = "n".repeat(limits::NAME_BYTES + 1);
    let cases: Vec<(&str, Vec<u8>, TensorError)> = vec![
        ("empty file", vec![], TensorError::TooShort { file: file(), bytes: 0 }),
        ("nine bytes", vec![0; 9], TensorError::TooShort { file: file(), bytes: 9 }),
        (
            "a header longer than the file",
            [&3u64.to_le_bytes()[..], b"{ "].concat(),
            TensorError::HeaderPastEnd { file: file(), header: 3, rest: 2 },
        ),
        (
            "a header of exabytes",
            vec![0xff; 64],
            TensorError::HeaderTooLarge { file: file(), header: u64::MAX, limit: limits::HEADER_BYTES },
        ),
        (
            "a header one over the limit",
            (limits::HEADER_BYTES + 1).to_le_bytes().into_iter().chain([0; 8]).collect(),
            TensorError::HeaderTooLarge {
                file: file(),
                header: limits::HEADER_BYTES + 1,
                limit: limits::HEADER_BYTES,
            },
        ),
        ("no JSON", raw("PK\u{3}\u{4} zip", &[]), malformed("expected value at line 1 column 1")),
        (
            "not UTF-8",
            {
                let mut file = raw("{\"a\"}", &[]);
                file[10] = 0xff;
                file
            },
            malformed("invalid utf-8 sequence of 1 bytes from index 2"),
        ),
        (
            "an array",
            raw("[1]", &[]),
            malformed("invalid type: sequence, expected an object of tensors at line 1 column 0"),
        ),
        ("unfinished", raw(r#"{"a":"#, &[]), malformed("EOF while parsing a value at line 1 column 5")),
        ("something after it", raw("{}{}", &[]), malformed("trailing characters at line 1 column 3")),
        (
            "nested deeply",
            raw(&format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000)), &[]),
            TensorError::HeaderTooDeep { file: file(), limit: 3 },
        ),
        (
            "metadata that is no object",
            raw(r#"{"__metadata__":[]}"#, &[]),
            malformed(
                "invalid type: sequence, expected __metadata__: an object of strings at line 1 column 16",
            ),
        ),
        (
            "metadata of numbers",
            raw(r#"{"__metadata__":{"a":1}}"#, &[]),
            malformed("invalid type: integer `1`, expected a string at line 1 column 22"),
        ),
        (
            "metadata twice",
            raw(r#"{"__metadata__":{},"__metadata__":{}}"#, &[]),
            malformed("__metadata__ stands twice at line 1 column 33"),
        ),
        (
            "a tensor twice",
            raw(&format!(r#"{{"a":{good},"b":{good},"a":{good}}}"#), &[0; 8]),
            TensorError::Duplicate { file: file(), tensor: "a".to_owned() },
        ),
        (
            "an empty name",
            raw(&format!(r#"{{"":{good}}}"#), &[0; 8]),
            TensorError::Name { file: file(), tensor: String::new(), limit: limits::NAME_BYTES },
        ),
        (
            "a name with an escape",
            raw(&format!(r#"{{"a\u0062":{good}}}"#), &[0; 8]),
            TensorError::Name { file: file(), tensor: "ab".to_owned(), limit: limits::NAME_BYTES },
        ),
        (
            "a name with a control character",
            raw(&format!("{{\"a\u{7f}\":{good}}}"), &[0; 8]),
            TensorError::Name { file: file(), tensor: "a\u{7f}".to_owned(), limit: limits::NAME_BYTES },
        ),
        (
            "a long name",
            raw(&format!(r#"{{"{long}":{good}}}"#), &[0; 8]),
            TensorError::Name { file: file(), tensor: "n".repeat(160), limit: limits::NAME_BYTES },
        ),
        (
            "no dtype",
            entry(r#"{"shape":[2],"data_offsets":[0,8]}"#),
            bad("missing field `dtype` at line 1 column 34"),
        ),
        (
            "no shape",
            entry(r#"{"dtype":"F32","data_offsets":[0,8]}"#),
            bad("missing field `shape` at line 1 column 36"),
        ),
        (
            "no offsets",
            entry(r#"{"dtype":"F32","shape":[2]}"#),
            bad("missing field `data_offsets` at line 1 column 27"),
        ),
        (
            "a field twice",
            entry(r#"{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}"#),
            bad("duplicate field `dtype` at line 1 column 22"),
        ),
        (
            "a field too many",
            entry(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}"#),
            bad("unknown field `x`, expected one of `dtype`, `shape`, `data_offsets` at line 1 column 51"),
        ),
        (
            "an entry that is no object",
            entry("7"),
            bad(
                "invalid type: integer `7`, expected an object of dtype, shape and data_offsets at line 1 column 1",
            ),
        ),
        (
            "a negative size",
            entry(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#),
            bad("invalid value: integer `-2`, expected u64 at line 1 column 26"),
        ),
        (
            "a fractional size",
            entry(r#"{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}"#),
            bad("invalid type: floating point `2.0`, expected u64 at line 1 column 27"),
        ),
        (
            "a size over 64 bits",
            entry(r#"{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8]}"#),
            bad("invalid type: floating point `1.8446744073709552e+19`, expected u64 at line 1 column 44"),
        ),
        (
            "nine dimensions",
            entry(r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,8]}"#),
            bad("invalid length 9, expected a shape of at most 8 sizes at line 1 column 42"),
        ),
        (
            "one offset",
            entry(r#"{"dtype":"F32","shape":[2],"data_offsets":[8]}"#),
            bad("invalid length 1, expected an array of length 2 at line 1 column 45"),
        ),
        (
            "a dtype nobody knows",
            entry(r#"{"dtype":"F12","shape":[2],"data_offsets":[0,8]}"#),
            TensorError::UnknownDtype { file: file(), tensor: "a".to_owned(), dtype: "F12".to_owned() },
        ),
        (
            "a shape that overflows",
            entry(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#),
            TensorError::ShapeOverflow {
                file: file(),
                tensor: "a".to_owned(),
                shape: vec![1 << 32, 1 << 32],
            },
        ),
        (
            "a shape that overflows in bytes only",
            entry(r#"{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}"#),
            TensorError::ShapeOverflow { file: file(), tensor: "a".to_owned(), shape: vec![1 << 62] },
        ),
        (
            "a zero that hides an overflow",
            entry(r#"{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}"#),
            TensorError::ShapeOverflow {
                file: file(),
                tensor: "a".to_owned(),
                shape: vec![0, 1 << 32, 1 << 32],
            },
        ),
        (
            "offsets that run backwards",
            entry(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#),
            TensorError::OffsetsBackwards { file: file(), tensor: "a".to_owned(), begin: 8, end: 0 },
        ),
        (
            "offsets that disagree with the shape",
            entry(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#),
            TensorError::Size {
                file: file(),
                tensor: "a".to_owned(),
                dtype: Dtype::F32,
                shape: vec![3],
                expected: 12,
                got: 8,
            },
        ),
        (
            "data past the end",
            raw(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}"#, &[0; 8]),
            TensorError::PastEnd { file: file(), tensor: "a".to_owned(), end: 12, data: 8 },
        ),
        (
            "an overlap",
            raw(
                r#"{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
                &[0; 8],
            ),
            TensorError::Overlap { file: file(), tensor: "b".to_owned(), other: "a".to_owned() },
        ),
        (
            "two tensors over the same bytes",
            raw(&format!(r#"{{"b":{good},"a":{good}}}"#), &[0; 8]),
            TensorError::Overlap { file: file(), tensor: "b".to_owned(), other: "a".to_owned() },
        ),
        (
            "an empty tensor within another",
            raw(
                r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}}"#,
                &[0; 8],
            ),
            TensorError::Overlap { file: file(), tensor: "b".to_owned(), other: "a".to_owned() },
        ),
        (
            "a hole at the start",
            raw(r#"{"a":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}}"#, &[0; 8]),
            TensorError::Hole { file: file(), tensor: "a".to_owned(), bytes: 3 },
        ),
        (
            "a hole between",
            raw(
                r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
                &[0; 8],
            ),
            TensorError::Hole { file: file(), tensor: "b".to_owned(), bytes: 1 },
        ),
        (
            "bytes after the last tensor",
            raw(r#"{"a":{"dtype":"U8","shape":[7],"data_offsets":[0,7]}}"#, &[0; 8]),
            TensorError::Trailing { file: file(), bytes: 1 },
        ),
        ("bytes and no tensor", raw("{}", &[0; 8]), TensorError::Trailing { file: file(), bytes: 8 }),
        (
            "too many tensors",
            {
                let pieces: Vec<_> = (0..=limits::TENSORS)
                    .map(|index| Piece::zeros(&format!("t{index}"), "U8", 1, &[0]))
                    .collect();
                safetensors(&pieces)
            },
            TensorError::TooManyTensors { file: file(), limit: limits::TENSORS },
        ),
    ];
    for (case, bytes, expected) in cases {
        let error = Folder::default().with(FILE, bytes).tensors().expect_err(case);
        assert_eq!(error, Error::from(expected), "{case}");
        assert_one_line(&error);
    }
}
