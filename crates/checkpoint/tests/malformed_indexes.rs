//! Malformed indexes and unreadable files: each case with its exact error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use checkpoint::{Error, FileError, JsonError, TensorError, limits};
use common::{Folder, Piece, assert_one_line, llama_pieces, safetensors};

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[test]
fn indexes() {
    let index = |map: &str| format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{map}}}"#);
    let shard = |name: &str| safetensors(&[Piece::ones(name, &[2])]);
    let two = |map: &str| {
        let folder = Folder::default().with("a.safetensors", shard("a")).with("b.safetensors", shard("b"));
        folder.with(INDEX, index(map))
    };
    let path = || INDEX.to_owned();
    let unplain = |shard: &str| TensorError::ShardName {
        file: path(),
        tensor: "a".to_owned(),
        shard: shard.to_owned(),
    };
    let escape =
        |shard: &str| (two(&serde_json::json!({ "a": shard }).to_string()), Error::from(unplain(shard)));
    let many =
        (0..=limits::SHARDS).map(|i| format!(r#""t{i}":"{i}.safetensors""#)).collect::<Vec<_>>().join(",");
    let json = |error: JsonError| Error::from(error);
    let mut truncated = shard("a");
    truncated.pop();
    let cases: Vec<(&str, (Folder, Error))> = vec![
        (
            "no weights",
            (Folder::default(), TensorError::NoWeights { place: "embedded model".to_owned() }.into()),
        ),
        (
            "not JSON",
            (
                Folder::default().with(INDEX, "weights"),
                json(JsonError::Syntax {
                    file: path(),
                    message: "expected value at line 1 column 1".to_owned(),
                }),
            ),
        ),
        (
            "an array",
            (
                Folder::default().with(INDEX, "[]"),
                json(JsonError::NotAnObject { file: path(), got: "an array" }),
            ),
        ),
        (
            "a tensor twice",
            (
                two(r#"{"a":"a.safetensors","a":"b.safetensors"}"#),
                json(JsonError::DuplicateKey { file: path(), key: "a".to_owned() }),
            ),
        ),
        (
            "nested deeply",
            (
                Folder::default().with(INDEX, format!("{}1{}", "{\"a\":".repeat(65), "}".repeat(65))),
                json(JsonError::TooDeep { file: path(), limit: limits::JSON_DEPTH }),
            ),
        ),
        (
            "no map",
            (
                Folder::default().with(INDEX, "{}"),
                TensorError::WeightMap { file: path(), got: "nothing" }.into(),
            ),
        ),
        (
            "a map that is a list",
            (two("[]"), TensorError::WeightMap { file: path(), got: "an array" }.into()),
        ),
        (
            "a number for a shard",
            (
                two(r#"{"a":1}"#),
                TensorError::ShardType { file: path(), tensor: "a".to_owned(), got: "a number" }.into(),
            ),
        ),
        ("a parent folder", escape("../a.safetensors")),
        ("an absolute path", escape("/etc/a.safetensors")),
        ("a folder below", escape("x/a.safetensors")),
        ("a backslash", escape("..\\a.safetensors")),
        ("a hidden file", escape(".safetensors")),
        ("a pickle", escape("a.bin")),
        ("no name", escape("")),
        ("a long name", escape(&format!("{}.safetensors", "a".repeat(250)))),
        ("a zero byte", escape("a\0.safetensors")),
        (
            "too many shards",
            (
                Folder::default().with(INDEX, index(&format!("{{{many}}}"))),
                TensorError::TooManyShards { file: path(), count: limits::SHARDS + 1, limit: limits::SHARDS }
                    .into(),
            ),
        ),
        (
            "a missing shard",
            (
                two(r#"{"a":"a.safetensors","c":"c.safetensors"}"#),
                TensorError::MissingShard { file: "c.safetensors".to_owned() }.into(),
            ),
        ),
        (
            "a tensor that is not in its shard",
            (
                two(r#"{"a":"a.safetensors","c":"b.safetensors"}"#),
                TensorError::NotInShard { file: "b.safetensors".to_owned(), tensor: "c".to_owned() }.into(),
            ),
        ),
        (
            "a tensor in two shards",
            (
                two(r#"{"a":"a.safetensors","b":"b.safetensors"}"#).with("b.safetensors", {
                    safetensors(&[Piece::ones("a", &[2]), Piece::ones("b", &[2])])
                }),
                TensorError::InTwoShards {
                    tensor: "a".to_owned(),
                    first: "a.safetensors".to_owned(),
                    second: "b.safetensors".to_owned(),
                }
                .into(),
            ),
        ),
        (
            "a truncated shard",
            (
                two(r#"{"a":"a.safetensors"}"#).with("a.safetensors", truncated),
                TensorError::PastEnd {
                    file: "a.safetensors".to_owned(),
                    tensor: "a".to_owned(),
                    end: 8,
                    data: 7,
                }
                .into(),
            ),
        ),
    ];
    for (case, (folder, expected)) in cases {
        let error = folder.tensors().expect_err(case);
        assert_eq!(error, expected, "{case}");
        assert_one_line(&error);
    }
    // What the cases are variations of is well-formed.
    let tensors = two(r#"{"a":"a.safetensors","b":"b.safetensors"}"#).tensors().unwrap();
    assert_eq!(tensors.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(tensors.f32s("b", &[2]).unwrap(), [1.0, 1.0]);
}

#[test]
fn files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let open = || checkpoint::Checkpoint::open(folder.path()).expect_err("opened");
    let missing = path("nowhere");
    assert_eq!(
        checkpoint::Checkpoint::open(&missing).expect_err("opened"),
        FileError::NotAFolder { folder: missing }.into()
    );
    let remedy = "give the folder of a Hugging Face checkpoint";
    assert_eq!(open(), FileError::Missing { file: path("config.json"), remedy }.into());
    std::fs::create_dir(path("config.json")).unwrap();
    assert_eq!(open(), FileError::NotAFile { file: path("config.json") }.into());
    std::fs::remove_dir(path("config.json")).unwrap();
    let large = std::fs::File::create(path("config.json")).unwrap();
    large.set_len(limits::CONFIG_BYTES + 1).unwrap();
    let (bytes, limit) = (limits::CONFIG_BYTES + 1, limits::CONFIG_BYTES);
    assert_eq!(open(), FileError::TooLarge { file: path("config.json"), bytes, limit }.into());
    Folder::llama().write(folder.path());
    // A link is followed, as the cache of Hugging Face is made of them.
    std::fs::rename(path(FILE), path("blob")).unwrap();
    std::os::unix::fs::symlink(path("blob"), path(FILE)).unwrap();
    let checkpoint = checkpoint::Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors.names().count(), llama_pieces().len());
    // A file that shrinks while it is open.
    std::fs::File::options().write(true).open(path("blob")).unwrap().set_len(100).unwrap();
    assert_eq!(
        checkpoint.tensors.read("model.norm.weight").expect_err("read"),
        FileError::Io { file: path(FILE), message: "failed to fill whole buffer".to_owned() }.into()
    );
}
