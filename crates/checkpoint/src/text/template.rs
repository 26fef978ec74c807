//! Chat templates: Jinja as Hugging Face runs it, under limits.
//!
//! A template is untrusted code. It reaches nothing but the messages; what it may do is bounded: its size, its fuel
//! (which pays for every instruction and for the bytes it builds), the length of its tags, and its depth. Parsers, compilers and values of
//! template engines recurse, so a template of a few thousand operators, or a list nested by a loop, overflows an
//! ordinary stack and takes the process with it. Compiling and rendering therefore run on a stack that is large enough
//! for the deepest template and the deepest value that size and fuel allow.

use super::{clock, scan};
use crate::config::Fields;
use crate::{Error, Files, Result, TextError, json, limits};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, State, UndefinedBehavior, context};
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::ser::{Formatter, PrettyFormatter};
use std::io;

const JINJA_FILE: &str = "chat_template.jinja";
const CONFIG_FILE: &str = "tokenizer_config.json";
/// Marks an error as the template's own words.
const RAISED: &str = "raised by the chat template: ";
/// 128 MiB of addresses; what is not touched costs nothing.
const STACK_BYTES: usize = 128 << 20;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Where it came from, for messages.
    file: String,
    special: SpecialTokens,
}

/// Special tokens that templates write by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SpecialTokens {
    bos: Option<String>,
    eos: Option<String>,
    pad: Option<String>,
    unk: Option<String>,
}

impl ChatTemplate {
    /// Reads chat_template.jinja, else `chat_template` in tokenizer_config.json.
    pub(crate) fn read(files: &Files) -> Result<Self> {
        let config_file = files.path(CONFIG_FILE);
        let config = match files.read(CONFIG_FILE, limits::CONFIG_BYTES)? {
            Some(bytes) => json::parse(&config_file, &bytes)?,
            None => json::Object::new(),
        };
        let config = Fields::new(&config_file, &config);
        let special = SpecialTokens::read(&config)?;
        if let Some(bytes) = files.read(JINJA_FILE, limits::TEMPLATE_BYTES)? {
            let file = files.path(JINJA_FILE);
            let source = String::from_utf8(bytes).map_err(|error| {
                let message = error.utf8_error().to_string();
                Error::from(TextError::Template { file: file.clone(), message })
            })?;
            return Self::compile(file, source, special);
        }
        let form = |got: String| TextError::TemplateForm { file: config_file.clone(), got };
        let source = match config.get("chat_template") {
            None => return Err(TextError::NoTemplate { place: files.place() }.into()),
            Some(Json::String(source)) => source,
            Some(Json::Array(named)) => {
                let default = named.iter().find(|template| template["name"] == "default");
                let source = default.and_then(|template| template["template"].as_str());
                source.ok_or_else(|| form(format!("a list of {} without it", named.len())))?
            }
            Some(other) => return Err(form(json::kind(other).to_owned()).into()),
        };
        Self::compile(config_file.clone(), source.to_owned(), special)
    }

    /// Compiles a template without special tokens; `file` is where it came from.
    pub fn new(file: &str, source: &str) -> Result<Self> {
        Self::compile(file.to_owned(), source.to_owned(), SpecialTokens::default())
    }

    fn compile(file: String, source: String, special: SpecialTokens) -> Result<Self> {
        let (bytes, limit) = (source.len(), limits::TEMPLATE_BYTES as usize);
        if bytes > limit {
            return Err(TextError::TemplateTooLarge { file, bytes, limit }.into());
        }
        scan::check(&file, &source)?;
        let compiled = on_large_stack(&file, || {
            let mut environment = environment()?;
            environment.add_template_owned("chat_template", source)?;
            Ok::<_, minijinja::Error>(environment)
        })?;
        match compiled {
            Ok(environment) => Ok(Self { environment, file, special }),
            Err(error) if error.to_string().contains("recursion limit") => {
                Err(TextError::TemplateTooDeep { file }.into())
            }
            Err(error) => Err(TextError::Template { file, message: describe(&error) }.into()),
        }
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant begins to speak.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let SpecialTokens { bos, eos, pad, unk } = &self.special;
        // A token that the checkpoint does not name stays undefined, which templates test for.
        let named = [("bos_token", bos), ("eos_token", eos), ("pad_token", pad), ("unk_token", unk)];
        let named =
            named.into_iter().filter_map(|(name, token)| Some((name, Value::from(token.as_deref()?))));
        let context = context! { messages, add_generation_prompt, ..Value::from_pairs(named) };
        let rendered =
            on_large_stack(&self.file, || self.environment.get_template("chat_template")?.render(context))?;
        rendered.map_err(|error| {
            let file = self.file.clone();
            let text = error.detail().unwrap_or("");
            match (text.strip_prefix(RAISED), error.kind()) {
                (Some(message), _) => TextError::Raised { message: one_line(message) }.into(),
                (None, ErrorKind::OutOfFuel) => TextError::Fuel { file, fuel: limits::TEMPLATE_FUEL }.into(),
                (None, _) => TextError::Render { file, message: describe(&error) }.into(),
            }
        })
    }
}

impl SpecialTokens {
    /// A token is a string or an object with its `content`.
    fn read(config: &Fields<'_>) -> Result<Self> {
        let token = |key| match config.get(key) {
            None => Ok(None),
            Some(Json::String(token)) => Ok(Some(token.clone())),
            Some(other) => match other.get("content").and_then(Json::as_str) {
                Some(token) => Ok(Some(token.to_owned())),
                None => Err(config.wrong_type(key, "a token or an object with its content", other)),
            },
        };
        Ok(Self {
            bos: token("bos_token")?,
            eos: token("eos_token")?,
            pad: token("pad_token")?,
            unk: token("unk_token")?,
        })
    }
}

/// Jinja with the settings and functions that transformers gives it.
fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    environment.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(limits::TEMPLATE_FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| {
        Err::<Value, _>(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    environment.add_function("strftime_now", |format: String| {
        clock::now(&format).ok_or_else(|| {
            let message = format!("strftime_now: unknown conversion in {format:?}");
            minijinja::Error::new(ErrorKind::InvalidOperation, message)
        })
    });
    environment.add_filter("tojson", to_json);
    Ok(environment)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`; Jinja's own would escape for HTML.
fn to_json(state: &State<'_, '_>, value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) => {
            let spaces = vec![b' '; indent.min(16)];
            let pretty = PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    let failed = |message: String| minijinja::Error::new(ErrorKind::BadSerialization, message);
    written.map_err(|error| failed(error.to_string()))?;
    state.consume_fuel(out.len() as u64 / 64)?;
    Ok(Value::from(String::from_utf8(out).map_err(|error| failed(error.to_string()))?))
}

/// A space after every comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }
    fn begin_object_key<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }
    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// Runs `work` on a stack of its own.
fn on_large_stack<T: Send>(file: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let failed = |message: String| Error::from(TextError::Render { file: file.to_owned(), message });
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
        let thread = builder.spawn_scoped(scope, work).map_err(|error| failed(error.to_string()))?;
        thread.join().map_err(|_| failed("the template engine panicked".to_owned()))
    })
}

/// The error on one line, with the template's line.
fn describe(error: &minijinja::Error) -> String {
    let detail = one_line(error.detail().unwrap_or(""));
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    if detail.is_empty() {
        format!("{}{line}", error.kind())
    } else {
        format!("{}: {detail}{line}", error.kind())
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
