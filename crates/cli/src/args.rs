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
    /// Measure a model: tokens a second, latency, or what each op of a step takes
    #[command(subcommand)]
    Bench(Bench),
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

    /// Where to run: auto takes the GPU where there is one
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

    /// Tokens of KV cache in host memory besides: what is evicted goes there and comes back where it is needed again
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub kv_host_tokens: usize,
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

#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Output tokens a second of a full batch: every sequence starts at once, prompts and outputs have fixed lengths
    Throughput(BenchThroughput),
    /// Time to the first token and time of each further one
    Latency(BenchLatency),
    /// What each op takes in one decode step, beside the least that the card would need for it
    Ops(BenchOps),
}

#[derive(Debug, Args)]
pub struct BenchThroughput {
    #[command(flatten)]
    pub model: BenchModel,

    #[command(flatten)]
    pub lengths: BenchLengths,

    /// Sequences
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
}

#[derive(Debug, Args)]
pub struct BenchLatency {
    #[command(flatten)]
    pub model: BenchModel,

    #[command(flatten)]
    pub lengths: BenchLengths,

    /// Sequences
    #[arg(long, default_value_t = 1)]
    pub batch: usize,

    /// How often it is all done again: percentiles are over all runs
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
}

#[derive(Debug, Args)]
pub struct BenchOps {
    #[command(flatten)]
    pub model: BenchModel,

    /// Sequences
    #[arg(long, default_value_t = 1)]
    pub batch: usize,

    /// Tokens of every sequence in the KV cache
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub context: usize,

    /// Steps to take the mean of
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
}

#[derive(Debug, Args)]
pub struct BenchLengths {
    /// Tokens of each prompt (input sequence length)
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub isl: usize,

    /// Tokens generated for each prompt (output sequence length); the end-of-text token is ignored
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub osl: usize,
}

#[derive(Debug, Args)]
pub struct BenchModel {
    #[command(flatten)]
    pub what: PlanSource,

    /// Random weights in place of the checkpoint's: only its config.json is read. A preset always has them
    #[arg(long)]
    pub synthetic: bool,

    /// Where to run: auto takes the GPU where there is one
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,

    /// How the KV cache is stored: auto takes fp8 for a preset, else what the checkpoint asks for
    #[arg(long, value_enum, default_value_t = KvChoice::Auto)]
    pub kv: KvChoice,

    /// Tokens of KV cache; by default what the sequences need
    #[arg(long, value_name = "TOKENS")]
    pub kv_tokens: Option<usize>,

    /// Run the model with this context in place of its own: texts beyond a model's own mean little, but cost the same
    #[arg(long, value_name = "TOKENS")]
    pub max_context: Option<usize>,

    /// Most new tokens in one step of the prefill
    #[arg(long, value_name = "TOKENS", default_value_t = 8192)]
    pub max_batch_tokens: usize,

    /// Of the prompts' tokens and of synthetic weights
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
