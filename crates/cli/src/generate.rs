//! `peregrine generate`: prompts in, text out, as one changing batch.

use crate::args::{self, BackendChoice, KvChoice, SamplingArgs};
use crate::embedded;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::output::{Finished, Output};
use crate::progress::progress_bar;
use crate::prompts::{self, Prompt};
use crate::text::TextStream;
use checkpoint::quantization::KvCacheScheme;
use checkpoint::{Checkpoint, GenerationConfig, Tokenizer};
use engine::{Config, Engine, Event, FinishReason, Request, RequestId, StepModel};
use indicatif::ProgressBar;
use models::{Backend, Cpu, KvDtype, Model, Progress};
use sampling::Params;
use std::collections::HashMap;
use std::time::Instant;

/// New tokens of a step at most: enough to fill a product's tiles, few enough that a long prompt delays nobody much.
const MAX_BATCH_TOKENS: usize = 2048;

pub fn run(args: &args::Generate) -> Result<()> {
    let checkpoint = embedded::open(&args.model.model)?;
    // Without a tokenizer token ids go in and token ids come out.
    let tokenizer =
        if checkpoint.files.contains("tokenizer.json") { Some(checkpoint.tokenizer()?) } else { None };
    let prompts = prompts::read(&args.prompts, &checkpoint, tokenizer.as_ref())?;
    let params = params(&args.sampling, &checkpoint.generation)?;
    let requests: Vec<Request> =
        prompts.iter().map(|prompt| request(prompt, args, &params, &checkpoint)).collect();
    let pages = pages(args, &requests);
    let kv = |exact| kv_dtype(args.model.kv, checkpoint.quantization.kv_cache, exact);
    match Machine::open(args.model.backend, BackendChoice::Auto)? {
        Machine::Cpu => {
            let model = load(&checkpoint, Cpu::default(), pages, kv(KvDtype::F32), args)?;
            serve(model, &checkpoint, tokenizer.as_ref(), args, prompts, requests)
        }
        #[cfg(feature = "cuda")]
        Machine::Gpu(gpu) => {
            let model = load(&checkpoint, models::Cuda::new(gpu)?, pages, kv(KvDtype::Bf16), args)?;
            serve(model, &checkpoint, tokenizer.as_ref(), args, prompts, requests)
        }
    }
}

/// What was asked for, else what the checkpoint's producer wants, else pages as `exact` as the backend has them.
fn kv_dtype(choice: KvChoice, checkpoint: KvCacheScheme, exact: KvDtype) -> KvDtype {
    match (choice, checkpoint) {
        (KvChoice::Auto, KvCacheScheme::None) => exact,
        (KvChoice::F32, _) => KvDtype::F32,
        (KvChoice::Bf16, _) => KvDtype::Bf16,
        (KvChoice::Fp8, _) | (KvChoice::Auto, KvCacheScheme::Fp8) => KvDtype::Fp8,
    }
}

/// The request's own options, else the model's, else greedy.
fn params(args: &SamplingArgs, model: &GenerationConfig) -> Result<Params> {
    // As in transformers, a model's settings count only where it says that it wants to be sampled.
    let sampled = model.do_sample == Some(true);
    let model_temperature = if sampled { model.temperature.unwrap_or(1.0) } else { 0.0 };
    let from_model = |value: Option<f32>| value.filter(|_| sampled);
    let defaults = Params::default();
    let params = Params {
        temperature: args.temperature.unwrap_or(model_temperature),
        top_k: args.top_k.or(model.top_k.filter(|_| sampled).map(|k| k as usize)).unwrap_or(defaults.top_k),
        top_p: args.top_p.or(from_model(model.top_p)).unwrap_or(defaults.top_p),
        min_p: args.min_p.or(from_model(model.min_p)).unwrap_or(defaults.min_p),
        repetition_penalty: args
            .repetition_penalty
            .or(model.repetition_penalty)
            .unwrap_or(defaults.repetition_penalty),
        seed: args.seed,
        logprobs: args.logprobs.then_some(0),
        ..defaults
    };
    params.validate()?;
    Ok(params)
}

fn request(prompt: &Prompt, args: &args::Generate, params: &Params, checkpoint: &Checkpoint) -> Request {
    let max_context = checkpoint.config.max_context();
    // What nobody asked for is cut to what fits; what was asked for is refused where it does not.
    let room = max_context.saturating_sub(prompt.tokens.len()).max(1);
    let max_tokens = prompt.max_tokens.or(args.max_tokens).unwrap_or(DEFAULT_MAX_TOKENS.min(room));
    Request {
        prompt: prompt.tokens.clone(),
        max_tokens: Some(max_tokens),
        params: Params { seed: prompt.seed.unwrap_or(params.seed), ..params.clone() },
        ignore_eos: args.ignore_eos,
        ..Request::default()
    }
}

/// Tokens generated for a prompt where nothing else was asked for.
const DEFAULT_MAX_TOKENS: usize = 128;

/// Pages for the longest requests of one batch, or as many as were asked for.
fn pages(args: &args::Generate, requests: &[Request]) -> usize {
    let pages = |tokens: usize| tokens.div_ceil(device::PAGE_SIZE);
    if let Some(tokens) = args.model.kv_tokens {
        return pages(tokens);
    }
    let mut needs: Vec<usize> = requests
        .iter()
        .map(|request| pages(request.prompt.len().saturating_add(request.max_tokens.unwrap_or(0))))
        .collect();
    needs.sort_unstable_by(|a, b| b.cmp(a));
    needs.iter().take(args.model.max_batch).fold(0, |sum, need| sum.saturating_add(*need))
}

fn load<B: Backend>(
    checkpoint: &Checkpoint,
    backend: B,
    pages: usize,
    kv: KvDtype,
    args: &args::Generate,
) -> Result<Model<B>> {
    let bar =
        progress_bar(checkpoint.tensors.total_bytes(), "loading", "{bytes}/{total_bytes} {bytes_per_sec}");
    let mut progress = |progress: Progress| bar.set_position(progress.loaded);
    let model = Model::load(checkpoint, backend, pages, kv, &mut progress)?;
    bar.finish_and_clear();
    Ok(model.with_host_pages(args.model.kv_host_tokens.div_ceil(device::PAGE_SIZE))?)
}

/// A request under way.
struct Running<'a> {
    index: usize,
    submitted: Instant,
    first_token: Option<Instant>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    text: TextStream<'a>,
}

fn serve<M: StepModel>(
    model: M,
    checkpoint: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
    args: &args::Generate,
    prompts: Vec<Prompt>,
    requests: Vec<Request>,
) -> Result<()> {
    let config = Config {
        max_sequences: args.model.max_batch,
        max_batch_tokens: MAX_BATCH_TOKENS.max(args.model.max_batch),
        eos_tokens: checkpoint.eos_token_ids().to_vec(),
    };
    let mut engine = Engine::new(config, model)?;
    let start = Instant::now();
    let mut running: HashMap<RequestId, Running> = HashMap::new();
    for (index, request) in requests.into_iter().enumerate() {
        let text = TextStream::new(tokenizer, &request.prompt, &args.stop);
        let id = engine.submit(request)?;
        let (tokens, logprobs) = (Vec::new(), Vec::new());
        running.insert(id, Running { index, submitted: start, first_token: None, tokens, logprobs, text });
    }
    let mut output = Output::new(args.json, args.sampling.logprobs, prompts, start);
    let bar = match output.streams() {
        true => ProgressBar::hidden(),
        false => progress_bar(running.len() as u64, "generating", "{pos}/{len} prompts"),
    };
    while !engine.is_idle() {
        for event in engine.step() {
            match event {
                Event::Token { id, sampled } => {
                    let Some(request) = running.get_mut(&id) else { continue };
                    request.first_token.get_or_insert_with(Instant::now);
                    request.tokens.push(sampled.token);
                    request.logprobs.extend(sampled.logprob);
                    output.stream(request.text.push(sampled.token)?)?;
                    if request.text.stopped() {
                        engine.finish(id);
                    }
                }
                Event::Finished { id, reason } => {
                    let Some(mut request) = running.remove(&id) else { continue };
                    output.stream(request.text.finish()?)?;
                    output.finish(finished(request, reason)?)?;
                    bar.inc(1);
                }
            }
        }
    }
    bar.finish_and_clear();
    output.close()
}

fn finished(request: Running<'_>, reason: FinishReason) -> Result<Finished> {
    let finish_reason = match reason {
        FinishReason::StopToken(_) | FinishReason::Finished => "stop",
        FinishReason::Length => "length",
        FinishReason::Error(error) => return Err(Error::Step(error)),
        _ => "cancelled",
    };
    let now = Instant::now();
    let first_token = request.first_token.unwrap_or(now);
    Ok(Finished {
        index: request.index,
        token_ids: request.tokens,
        logprobs: request.logprobs,
        text: request.text.into_text(),
        finish_reason,
        prefill_seconds: (first_token - request.submitted).as_secs_f64(),
        decode_seconds: (now - first_token).as_secs_f64(),
    })
}
