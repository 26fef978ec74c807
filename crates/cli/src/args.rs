//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Falcon and Llama on one GPU: INT4 AWQ weights with FP8 compute, FP8 weights, paged FP8 KV cache.
#[derive(Debug, Parser)]
#[command(name = "peregrine", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate text from a prompt, or from a file of prompts as one changing batch
    Generate(Box<Generate>),
    /// Say what a model needs: bytes by part, KV bytes a token, how many sequences fit
    Plan(Plan),
    /// Say what this binary and this machine can do, with hints
    Doctor(Doctor),
}

#[derive(Debug, Args)]
pub struct Generate {
    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub prompts: PromptArgs,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// Most tokens to generate for a prompt [default: 128, or as many as the model's context leaves]
    #[arg(long)]
    pub max_tokens: Option<usize>,

    /// End at this text; may be given more than once
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// Go on past the end-of-text token
    #[arg(long)]
    pub ignore_eos: bool,

    /// Print one JSON object a prompt
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A checkpoint's folder, or an embedded model: tiny-llama, tiny-falcon
    #[arg(short, long, value_name = "MODEL_DIR", default_value = "tiny-llama")]
    pub model: String,

    /// Where to run: auto takes the best there is (models run on the CPU in this version)
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,

    /// How the KV cache is stored: auto takes what the checkpoint asks for
    #[arg(long, value_enum, default_value_t = KvChoice::Auto)]
    pub kv: KvChoice,

    /// Most sequences in one step
    #[arg(long, default_value_t = 64)]
    pub max_batch: usize,

    /// Tokens of KV cache; by default as many as the longest sequences of one batch need
    #[arg(long, value_name = "TOKENS")]
    pub kv_tokens: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    Auto,
    Cpu,
    Cuda,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvChoice {
    Auto,
    F32,
    Bf16,
    Fp8,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct PromptSource {
    /// The text to go on from
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// A file with one JSON object a line: {"prompt": "..."} or {"token_ids": [...]}, and optionally max_tokens, seed
    #[arg(long, value_name = "JSONL")]
    pub prompt_file: Option<PathBuf>,

    /// Token ids to go on from, separated by commas; needs no tokenizer
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub token_ids: Vec<u32>,
}

#[derive(Debug, Args)]
pub struct PromptArgs {
    #[command(flatten)]
    pub source: PromptSource,

    /// Put each prompt through the model's chat template, as the user's message
    #[arg(long)]
    pub chat: bool,
}

// Numbers out of range are for the sampler to refuse, by name, not to be taken for options.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct SamplingArgs {
    /// 0 always takes the likeliest token [default: the model's own, else 0]
    #[arg(long)]
    pub temperature: Option<f32>,

    /// Choose among this many of the likeliest tokens
    #[arg(long)]
    pub top_k: Option<usize>,

    /// Choose among the likeliest tokens that together have this probability
    #[arg(long)]
    pub top_p: Option<f32>,

    /// Choose among tokens at least this likely, relative to the likeliest
    #[arg(long)]
    pub min_p: Option<f32>,

    /// Divide the logits of tokens already seen by this
    #[arg(long)]
    pub repetition_penalty: Option<f32>,

    /// The same seed gives the same text
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Report the log-probability of each chosen token
    #[arg(long)]
    pub logprobs: bool,
}

#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    pub what: PlanSource,

    /// Memory of the card in GiB
    #[arg(long, default_value_t = 139.0, value_name = "GIB")]
    pub memory: f64,

    /// Tokens of one sequence, prompt and generated
    #[arg(long, default_value_t = 2048)]
    pub context: usize,

    /// How the KV cache is stored
    #[arg(long, value_enum, default_value_t = KvChoice::Fp8)]
    pub kv: KvChoice,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct PlanSource {
    /// A checkpoint's folder, or an embedded model
    #[arg(short, long, value_name = "MODEL_DIR")]
    pub model: Option<String>,

    /// A model by name, without its checkpoint
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    #[value(name = "falcon-180b")]
    Falcon180b,
    #[value(name = "llama-2-70b")]
    Llama2_70b,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
