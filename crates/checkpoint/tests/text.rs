//! Chat templates against Jinja2, tokenizers against hand-made vocabularies, and what hostile ones come to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use checkpoint::{ChatMessage, ChatTemplate, Error, FileError, JsonError, TextError, Tokenizer, limits};
use common::{Folder, assert_one_line};
use proptest::prelude::*;
use serde_json::{Value, json};

fn messages(pairs: &[(&str, &str)]) -> Vec<ChatMessage> {
    let message =
        |&(role, content): &(&str, &str)| ChatMessage { role: role.to_owned(), content: content.to_owned() };
    pairs.iter().map(message).collect()
}

fn render(template: &str) -> checkpoint::Result<String> {
    ChatTemplate::new("t", template)?.render(&messages(&[("user", "Hi")]), true)
}

#[test]
fn templates_render_as_jinja2_does() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/templates");
    let expected = std::fs::read_to_string(format!("{folder}/expected.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&expected).unwrap();
    assert_eq!(cases.len(), 16);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let checkpoint = Folder::llama()
            .with(
                "tokenizer_config.json",
                r#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}}"#,
            )
            .with("chat_template.jinja", std::fs::read(format!("{folder}/{name}")).unwrap())
            .open()
            .unwrap();
        let pair = |pair: &Value| ChatMessage {
            role: pair[0].as_str().unwrap().to_owned(),
            content: pair[1].as_str().unwrap().to_owned(),
        };
        let messages: Vec<_> = case["messages"].as_array().unwrap().iter().map(pair).collect();
        let generate = case["add_generation_prompt"].as_bool().unwrap();
        let rendered = checkpoint.chat_template().unwrap().render(&messages, generate).unwrap();
        assert_eq!(rendered, case["rendered"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn where_templates_are_found() {
    let plain = |config: Value| Folder::llama().with("tokenizer_config.json", config.to_string());
    let rendered = |folder: Folder| {
        let template = folder.open().unwrap().chat_template()?;
        template.render(&messages(&[("user", "Hi")]), false)
    };
    let named =
        json!({"chat_template": [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]});
    assert_eq!(rendered(plain(json!({"chat_template": "S"}))), Ok("S".to_owned()));
    assert_eq!(rendered(plain(named.clone())), Ok("D".to_owned()));
    assert_eq!(rendered(plain(named).with("chat_template.jinja", "J")), Ok("J".to_owned()));
    assert_eq!(
        rendered(plain(json!({"chat_template": "{{ bos_token is defined }}"}))),
        Ok("False".to_owned())
    );
    let unset = json!({"chat_template": "{{ bos_token is defined }}", "bos_token": null});
    assert_eq!(rendered(plain(unset)), Ok("False".to_owned()));
    let form = |got: &str| {
        Err(TextError::TemplateForm { file: "tokenizer_config.json".to_owned(), got: got.to_owned() }.into())
    };
    assert_eq!(rendered(plain(json!({"chat_template": 1}))), form("a number"));
    assert_eq!(rendered(plain(json!({"chat_template": [{"name": "rag"}]}))), form("a list of 1 without it"));
    let none = || Err(TextError::NoTemplate { place: "embedded model".to_owned() }.into());
    assert_eq!(rendered(plain(json!({}))), none());
    assert_eq!(rendered(Folder::llama()), none());
    let now = render("{{ strftime_now('%Y') }}").unwrap();
    assert!(now.len() == 4 && now.parse::<u32>().unwrap() >= 2024, "{now}");
}

#[test]
fn templates_that_are_refused() {
    let file = || "t".to_owned();
    let template = |message: &str| TextError::Template { file: file(), message: message.to_owned() };
    let failed = |message: &str| TextError::Render { file: file(), message: message.to_owned() };
    let deep = || TextError::TemplateTooDeep { file: file() };
    let fuel = || TextError::Fuel { file: file(), fuel: limits::TEMPLATE_FUEL };
    let nested =
        |open: &str, close: &str, count: usize| format!("{}{}", open.repeat(count), close.repeat(count));
    let limit = limits::TEMPLATE_BYTES as usize;
    let cases = [
        ("{{ raise_exception('No\ntools') }}".to_owned(), TextError::Raised { message: "No tools".to_owned() }),
        ("{% if %}".to_owned(), template("syntax error: unexpected end of block (line 1)")),
        ("\n{% end %}".to_owned(), template("syntax error: unknown statement end (line 2)")),
        ("{{ 'a".to_owned(), template("syntax error: unexpected end of string (line 1)")),
        ("{{ nothing.more }}".to_owned(), failed("undefined value: `nothing` is undefined (line 1)")),
        ("{{ 1 | nofilter }}".to_owned(), failed("unknown filter: filter nofilter is unknown (line 1)")),
        ("{{ 'x'.nomethod() }}".to_owned(), failed("unknown method: string has no method named nomethod (line 1)")),
        (
            "{% include 'config.json' %}".to_owned(),
            failed("template not found: tried to include non-existing template 'config.json' (line 1)"),
        ),
        (
            "{{ strftime_now('%Q') }}".to_owned(),
            failed("invalid operation: strftime_now: unknown conversion in \"%Q\" (line 1)"),
        ),
        (" ".repeat(limit + 1), TextError::TemplateTooLarge { file: file(), bytes: limit + 1, limit }),
        (
            format!("\n{{{{ 1{} }}}}", "+1".repeat(256)),
            TextError::TemplateTagTooLong { file: file(), line: 2, limit: 512 },
        ),
        ("{% raw %}{{{% endraw %}".to_owned(), template("raw blocks are not supported (line 1)")),
        (nested("{% if 1 %}", "{% endif %}", 2900), deep()),
        (nested("{% for a in [1] %}", "{% endfor %}", 2000), deep()),
        (nested("{{ ", " }}", 1).replace("  ", &nested("(", ")", 250)), deep()),
        (nested("{{ ", " }}", 1).replace("  ", &nested("[", "]", 250)), deep()),
        ("{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}".to_owned(), fuel()),
        ("{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}".to_owned(), fuel()),
        ("{{ 'abcdefgh' * 99999999 }}".to_owned(), fuel()),
    ];
    for (template, expected) in cases {
        let start: String = template.chars().take(60).collect();
        let error = render(&template).expect_err(&start);
        assert_eq!(error, Error::from(expected), "{start}");
        assert_one_line(&error);
    }
}

/// Expressions and values that make parsers, compilers, printers and destructors recurse. Any answer will do; what must
/// not come is the end of the process.
#[test]
fn no_template_overflows_the_stack() {
    let limit = limits::TEMPLATE_BYTES as usize;
    let fill = |start: &str, piece: &str, end: &str| {
        format!("{start}{}{end}", piece.repeat((limit - start.len() - end.len()) / piece.len()))
    };
    let nest = "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    let templates = [
        format!("{{{{ 1{} }}}}", "~1".repeat(255)).repeat(limit / 516),
        fill("{{ 1", "+1", " }}"),
        fill("{{ x", ".x", " }}"),
        fill("{{ x", "|e", " }}"),
        fill("{{ x", "[0]", " }}"),
        fill("{{ x", "()", " }}"),
        fill("{{ ", "- ", "1 }}"),
        fill("{{ ", "not ", "1 }}"),
        fill("{{ 1", " if 1 else 1", " }}"),
        fill("{{ 1", " and 1", " }}"),
        fill("{{ 1", "~1", " }}"),
        fill("{{ 1", "**1", " }}"),
        fill("{{ 1", "<1", " }}"),
        fill("{% if 0 %}", "{% elif 0 %}", "{% endif %}"),
        fill("", "{% if 1 %}", ""),
        fill("", "{% macro m() %}", ""),
        fill("{{ ", "[", ""),
        fill("{{ ", "{1:", ""),
        fill("", "{{", ""),
        fill("", "{%", ""),
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}".to_owned(),
        format!("{nest}{{{{ ns.x }}}}"),
        format!("{nest}{{{{ ns.x | tojson }}}}"),
        format!("{nest}{{{{ ns.x == ns.x }}}}"),
        format!("{nest}{{{{ ns.x | string | length }}}}"),
        nest.to_owned(),
        nest.replace("[ns.x]", "{'a': ns.x}"),
        nest.replace("[ns.x]", "ns.x | map('list')"),
        nest.replace("[ns.x]", "ns.x + [1]"),
        nest.replace("[ns.x]", "ns.x | reverse"),
    ];
    for template in templates {
        if let Err(error) = render(&template) {
            assert_one_line(&error);
        }
    }
}

/// What byte-level vocabularies write for each byte: printable ones as they are, others from U+0100 on (GPT-2's table).
fn byte_letters() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    let letter = |byte: u32| {
        if printable(byte) {
            return char::from_u32(byte).unwrap();
        }
        next += 1;
        char::from_u32(next - 1).unwrap()
    };
    (0..256).map(letter).collect()
}

/// A byte-level BPE: 256 bytes, one merge, one special token.
fn byte_level() -> String {
    let mut vocabulary: serde_json::Map<String, Value> =
        byte_letters().iter().enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    vocabulary.insert("th".to_owned(), json!(256));
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null, "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "added_tokens": [{"id": 257, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
            "merges": ["t h"]},
    })
    .to_string()
}

/// SentencePiece's way: spaces are written as U+2581, unknown characters as bytes.
fn byte_fallback() -> String {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.push("\u{2581}".to_owned());
    tokens.extend(('a'..='z').map(String::from));
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocabulary, "merges": []},
    })
    .to_string()
}

fn tokenizer(text: &str) -> Tokenizer {
    Tokenizer::from_bytes("tokenizer.json", text.as_bytes(), 300).unwrap()
}

#[test]
fn tokenizers_encode_and_decode() {
    let tokenizer = tokenizer(&byte_level());
    // 7 tokens: the file's truncation to 4 was a training run's, not the model's.
    let tokens = tokenizer.encode("the é<|end|>", true).unwrap();
    assert_eq!(tokens, [256, 101, 32, 195, 169, 257]);
    assert_eq!(tokenizer.decode(&tokens).unwrap(), "the é");
    assert_eq!((tokenizer.token_id("<|end|>"), tokenizer.token_id("nothing")), (Some(257), None));
    assert_eq!((tokenizer.token(257).as_deref(), tokenizer.token(258)), (Some("<|end|>"), None));
    assert_eq!(tokenizer.vocab_size(), 258);
    // Ids beyond the vocabulary decode to nothing, as in transformers.
    assert_eq!(tokenizer.decode(&[104, 999, 105]).unwrap(), "hi");
    let tokenizer = self::tokenizer(&byte_fallback());
    let tokens = tokenizer.encode("a é", true).unwrap();
    assert_eq!(tokens, [1, 259, 260, 259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(tokenizer.encode("a é", false).unwrap(), tokens[1..]);
    assert_eq!(tokenizer.decode(&tokens).unwrap(), "a é");
}

#[test]
fn tokenizers_that_are_refused() {
    let file = || "tokenizer.json".to_owned();
    let open = |text: &str| Folder::llama().with("tokenizer.json", text).open().unwrap().tokenizer();
    let syntax = |message: &str| Error::from(JsonError::Syntax { file: file(), message: message.to_owned() });
    let malformed =
        |message: &str| Error::from(TextError::Tokenizer { file: file(), message: message.to_owned() });
    let cases = [
        (
            byte_level(),
            TextError::Vocabulary { file: file(), token: "<|end|>".to_owned(), id: 257, vocab_size: 32 }
                .into(),
        ),
        (String::new(), syntax("EOF while parsing a value at line 1 column 0")),
        ("{}".to_owned(), malformed("Model missing. at line 1 column 2")),
        (
            r#"{"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}}"#.to_owned(),
            malformed("no tokens"),
        ),
        (
            format!("{{\"model\": {}", "[".repeat(1 << 20)),
            JsonError::TooDeep { file: file(), limit: limits::JSON_DEPTH }.into(),
        ),
    ];
    for (text, expected) in cases {
        let error = open(&text).expect_err("read");
        assert_eq!(error, expected);
        assert_one_line(&error);
    }
    let remedy =
        "give prompts as token ids (--token-ids needs no tokenizer), or fetch it from the model's page";
    let missing = Folder::llama().open().unwrap().tokenizer().expect_err("read");
    assert_eq!(missing, FileError::Missing { file: file(), remedy }.into());
}

/// A tokenizer.json with a piece of it broken: an error or a tokenizer that works, never a panic.
#[test]
fn broken_tokenizers_do_not_panic() {
    for text in [byte_level(), byte_fallback()] {
        let mut read = 0;
        let letters: Vec<char> = text.chars().collect();
        for at in (0..letters.len()).step_by(17) {
            let (before, after) = (&letters[..at], &letters[at + 1..]);
            for put in [&[][..], &['0'], &['"'], &['x', ',']] {
                let broken: String = [before, put, after].concat().iter().collect();
                if let Ok(tokenizer) = Tokenizer::from_bytes("t", broken.as_bytes(), 1 << 20) {
                    read += 1;
                    let tokens = tokenizer.encode("the quick é", true).unwrap_or_default();
                    let _ = tokenizer.decode(&tokens);
                }
            }
        }
        println!("{read} still read");
    }
}

proptest! {
    #![proptest_config(op_test::cases())]

    /// However a text falls into tokens, its pieces are the text, and none ends within a character.
    #[test]
    fn streamed_pieces_are_the_text(text in "\\PC{0,24}", start in "[a-z ]{0,12}") {
        for source in [byte_level(), byte_fallback()] {
            let tokenizer = tokenizer(&source);
            let tokens = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(&tokenizer.decode(&tokens).unwrap(), &text);
            let mut stream = tokenizer.stream();
            let mut pieces = Vec::new();
            for &token in &tokens {
                let piece = stream.push(token).unwrap();
                prop_assert!(text.contains(char::REPLACEMENT_CHARACTER) || !piece.contains(char::REPLACEMENT_CHARACTER));
                pieces.push(piece);
            }
            pieces.push(stream.finish().unwrap());
            prop_assert_eq!(pieces.concat(), text.clone());

            // After a prompt the first piece keeps its leading space.
            let whole = format!("{start} {text}");
            let (prompt, all) = (tokenizer.encode(&start, false).unwrap(), tokenizer.encode(&whole, false).unwrap());
            if all.starts_with(&prompt) && !prompt.is_empty() {
                let mut stream = tokenizer.stream().with_prompt(&prompt);
                let mut streamed = start.clone();
                for &token in &all[prompt.len()..] {
                    streamed += &stream.push(token).unwrap();
                }
                streamed += &stream.finish().unwrap();
                prop_assert_eq!(streamed, whole);
            }
        }
    }

    /// Tokens that are no text at all come out as U+FFFD, in the end, and are not held back for long.
    #[test]
    fn streamed_garbage_does_not_pile_up(bytes in proptest::collection::vec(0u32..256, 0..200)) {
        for (source, first) in [(byte_level(), None), (byte_fallback(), Some(3))] {
            let tokenizer = tokenizer(&source);
            let letters = byte_letters();
            let id = |byte: u32| match first {
                Some(first) => first + byte,
                None => tokenizer.token_id(&letters[byte as usize].to_string()).unwrap(),
            };
            let mut stream = tokenizer.stream();
            let mut silent = 0;
            for &byte in &bytes {
                silent = if stream.push(id(byte)).unwrap().is_empty() { silent + 1 } else { 0 };
                prop_assert!(silent < 16);
            }
            stream.finish().unwrap();
        }
    }
}
