//! `peregrine plan`: what a model needs, before anything is loaded.

use crate::args::{self, KvChoice, Preset};
use crate::embedded;
use crate::error::{Error, Result};
use crate::output::{print_json, print_line};
use crate::table::{bytes, grouped, table};
use checkpoint::{Checkpoint, Files, ModelConfig, Quantization};
use models::{KvDtype, MemoryPlan};
use serde::Serialize;

/// Kept free for activations, workspaces and the CUDA context: Falcon-180B in steps of 8192 tokens takes 5.1 GiB beside its weights and
/// KV cache (benches/records, 2026-11-23).
const RESERVE: u64 = 5 << 30;

#[derive(Serialize)]
struct Report {
    model: String,
    memory_bytes: u64,
    reserved_bytes: u64,
    weight_bytes: u64,
    parts: Vec<Part>,
    kv_dtype: &'static str,
    kv_bytes_per_token: u64,
    kv_tokens: u64,
    context: u64,
    sequences: u64,
}

#[derive(Serialize)]
struct Part {
    name: &'static str,
    count: u64,
    in_features: u64,
    out_features: u64,
    bytes: u64,
}

pub fn run(args: &args::Plan) -> Result<()> {
    let report = report(args)?;
    if args.json {
        return print_json(&report);
    }
    let rows = report.parts.iter().map(|part| {
        let shape =
            format!("{} x {} x {}", part.count, grouped(part.out_features), grouped(part.in_features));
        [part.name.to_owned(), shape, bytes(part.bytes)]
    });
    print_line(table([&report.model, "count x rows x columns", "size"], rows))?;
    print_line("")?;
    let fits = report.weight_bytes + report.reserved_bytes <= report.memory_bytes;
    let rows = [
        ["weights".to_owned(), bytes(report.weight_bytes)],
        ["reserved for activations, workspaces".to_owned(), bytes(report.reserved_bytes)],
        [format!("KV cache a token ({})", report.kv_dtype), bytes(report.kv_bytes_per_token)],
        [format!("tokens of KV cache in {}", bytes(report.memory_bytes)), grouped(report.kv_tokens)],
        [format!("sequences of {} tokens", grouped(report.context)), grouped(report.sequences)],
    ];
    print_line(table(["", ""], rows))?;
    if !fits {
        print_line("\nThe weights do not fit: give more --memory, or take a checkpoint with fewer bits.")?;
    }
    Ok(())
}

fn report(args: &args::Plan) -> Result<Report> {
    let memory_bytes = args.memory * (1u64 << 30) as f64;
    if !(memory_bytes.is_finite() && memory_bytes > 0.0) {
        let (expected, got) = ("more than 0 GiB".to_owned(), args.memory.to_string());
        return Err(Error::Option { option: "memory", expected, got });
    }
    let memory_bytes = memory_bytes as u64;
    let (model, config, quantization) = match (&args.what.model, args.what.preset) {
        (Some(model), _) => {
            let Checkpoint { config, quantization, .. } = embedded::open(model)?;
            (model.clone(), config, quantization)
        }
        (None, choice) => preset(choice)?,
    };
    let (kv, kv_dtype) = match args.kv {
        KvChoice::F32 => (KvDtype::F32, "f32"),
        KvChoice::Bf16 => (KvDtype::Bf16, "bf16"),
        KvChoice::Auto | KvChoice::Fp8 => (KvDtype::Fp8, "fp8"),
    };
    let plan = MemoryPlan::new(&config, &quantization, kv);
    let kv_tokens = plan.kv_tokens(memory_bytes, RESERVE);
    let context = args.context as u64;
    Ok(Report {
        model,
        memory_bytes,
        reserved_bytes: RESERVE,
        weight_bytes: plan.weight_bytes(),
        kv_dtype,
        kv_bytes_per_token: plan.kv_bytes_per_token,
        kv_tokens,
        context,
        sequences: MemoryPlan::sequences(kv_tokens, context),
        parts: plan
            .parts
            .into_iter()
            .map(|models::Part { name, count, in_features, out_features, bytes, .. }| Part {
                name,
                count,
                in_features,
                out_features,
                bytes,
            })
            .collect(),
    })
}

/// A model by name: its name, its settings. clap sees to it that one is chosen.
pub fn preset(choice: Option<Preset>) -> Result<(String, ModelConfig, Quantization)> {
    let (name, config) = match choice {
        Some(Preset::Llama2_70b) => ("llama-2-70b", models::LLAMA_2_70B),
        Some(Preset::Falcon180b) | None => ("falcon-180b", models::FALCON_180B),
    };
    let files = Files::memory([("config.json", config.as_bytes())]);
    let (config, quantization) = checkpoint::settings(&files)?;
    Ok((name.to_owned(), config, quantization))
}
