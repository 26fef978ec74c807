//! What a benchmark of a whole workload prints.

use super::limits::Work;
use super::measure::{Percentiles, Run};
use super::target::Target;
use super::workload::Workload;
use crate::error::Result;
use crate::machine::{Machine, Memory};
use crate::output::{print_json, print_line};
use crate::table::{bytes, grouped, table};
use device::{Card, PAGE_SIZE};
use models::{KvDtype, MemoryPlan};
use serde::Serialize;

/// What was measured, and where.
#[derive(Serialize)]
pub struct Setting {
    bench: &'static str,
    model: String,
    synthetic: bool,
    backend: &'static str,
    device: String,
    kv_dtype: &'static str,
}

impl Setting {
    pub fn new(bench: &'static str, target: &Target, machine: &Machine, kv: KvDtype) -> Self {
        Self {
            bench,
            model: target.name.clone(),
            synthetic: target.synthetic(),
            backend: machine.backend(),
            device: machine.name().to_owned(),
            kv_dtype: match kv {
                KvDtype::F32 => "f32",
                KvDtype::Bf16 => "bf16",
                KvDtype::Fp8 => "fp8",
            },
        }
    }

    /// `llama-2-70b, random weights, fp8 KV cache, on NVIDIA H200`.
    pub fn line(&self) -> String {
        let weights = if self.synthetic { ", random weights" } else { "" };
        format!("{}{weights}, {} KV cache, on {}", self.model, self.kv_dtype, self.device)
    }
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    setting: Setting,
    isl: usize,
    osl: usize,
    batch: usize,
    max_batch_tokens: usize,
    seed: u64,
    runs: usize,
    /// Means over the runs.
    prefill_seconds: f64,
    decode_seconds: f64,
    total_seconds: f64,
    output_tokens_per_second: f64,
    /// Until every sequence has its first token.
    time_to_first_token_seconds: Option<Percentiles>,
    decode_step_seconds: Option<Percentiles>,
    limit: Option<Limit>,
    memory: MemoryReport,
}

/// The same workload at the card's limit.
#[derive(Serialize)]
struct Limit {
    prefill_seconds: f64,
    decode_seconds: f64,
    total_seconds: f64,
    output_tokens_per_second: f64,
    /// What was measured over the limit.
    ratio: f64,
}

#[derive(Serialize)]
struct MemoryReport {
    weights: Vec<Part>,
    weight_bytes: u64,
    kv_tokens: usize,
    kv_bytes: u64,
    measured: Option<Measured>,
}

#[derive(Serialize)]
struct Part {
    name: &'static str,
    bytes: u64,
}

/// Of the card, by its driver.
#[derive(Serialize)]
struct Measured {
    total_bytes: u64,
    /// Taken before anything was loaded: the driver's context, other processes.
    taken_before_bytes: u64,
    /// Taken by loading: weights and KV cache.
    loaded_bytes: u64,
    /// Taken since then: activations, workspaces, captured graphs, kernels.
    activation_bytes: u64,
    free_bytes: u64,
}

/// Free memory at the three points that tell its parts apart. Of the host's nothing is told: others use it too.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    pub before: Option<Memory>,
    pub loaded: Option<Memory>,
    pub after: Option<Memory>,
}

/// What a report is made from.
pub struct Results<'a> {
    pub target: &'a Target,
    pub machine: &'a Machine,
    pub setting: Setting,
    pub workload: &'a Workload,
    pub kv: KvDtype,
    pub pages: usize,
    pub seed: u64,
    pub runs: &'a [Run],
    pub watch: Watch,
}

impl Results<'_> {
    pub fn print(self, json: bool) -> Result<()> {
        let report = self.report();
        if json {
            return print_json(&report);
        }
        report.print()
    }

    fn report(self) -> Report {
        let Workload { isl, osl, batch, max_batch_tokens } = *self.workload;
        let mean = |seconds: fn(&Run) -> f64| {
            self.runs.iter().map(seconds).sum::<f64>() / self.runs.len().max(1) as f64
        };
        let (prefill_seconds, decode_seconds) = (mean(Run::prefill_seconds), mean(Run::decode_seconds));
        let total_seconds = prefill_seconds + decode_seconds;
        let tokens = (osl * batch) as f64;
        let output_tokens_per_second = tokens / total_seconds;
        let (config, quantization) = (&self.target.config, &self.target.quantization);
        let limit = Card::named(self.machine.name()).map(|card| {
            let limit = self.workload.limit(&Work::new(config, quantization, self.kv), card);
            let rate = tokens / limit.total();
            Limit {
                prefill_seconds: limit.prefill,
                decode_seconds: limit.decode,
                total_seconds: limit.total(),
                output_tokens_per_second: rate,
                ratio: output_tokens_per_second / rate,
            }
        });
        let steps = self.runs.iter().flat_map(|run| run.decode.iter().copied());
        let first_tokens = self.runs.iter().map(Run::prefill_seconds);
        Report {
            isl,
            osl,
            batch,
            max_batch_tokens,
            seed: self.seed,
            runs: self.runs.len(),
            prefill_seconds,
            decode_seconds,
            total_seconds,
            output_tokens_per_second,
            time_to_first_token_seconds: Percentiles::of(first_tokens.collect()),
            decode_step_seconds: Percentiles::of(steps.collect()),
            limit,
            memory: memory(&MemoryPlan::new(config, quantization, self.kv), self.pages, self.watch),
            setting: self.setting,
        }
    }
}

fn memory(plan: &MemoryPlan, pages: usize, watch: Watch) -> MemoryReport {
    let kv_tokens = pages * PAGE_SIZE;
    let measured = match (watch.before, watch.loaded, watch.after) {
        (Some(before), Some(loaded), Some(after)) => Some(Measured {
            total_bytes: after.total,
            taken_before_bytes: before.total.saturating_sub(before.free),
            loaded_bytes: before.free.saturating_sub(loaded.free),
            activation_bytes: loaded.free.saturating_sub(after.free),
            free_bytes: after.free,
        }),
        _ => None,
    };
    MemoryReport {
        weights: plan.parts.iter().map(|part| Part { name: part.name, bytes: part.bytes }).collect(),
        weight_bytes: plan.weight_bytes(),
        kv_tokens,
        kv_bytes: plan.kv_bytes_per_token * kv_tokens as u64,
        measured,
    }
}

impl Report {
    fn print(&self) -> Result<()> {
        print_line(self.setting.line())?;
        print_line(format_args!(
            "{} sequences, {} + {} tokens each\n",
            grouped(self.batch as u64),
            grouped(self.isl as u64),
            grouped(self.osl as u64)
        ))?;
        print_line(format_args!("{}\n", self.times()))?;
        print_line(self.memory.table())
    }

    fn times(&self) -> comfy_table::Table {
        let milliseconds =
            |p: Percentiles| [p.p50, p.p90, p.p99].map(|seconds| format!("{:.3}", seconds * 1e3));
        let row = |name: &str, value: String| [name.to_owned(), value, String::new(), String::new()];
        let three = |name: &str, values: Option<Percentiles>| {
            let [p50, p90, p99] = values.map_or(["-"; 3].map(str::to_owned), milliseconds);
            [name.to_owned(), p50, p90, p99]
        };
        let mut rows = vec![
            three("to the first token, ms", self.time_to_first_token_seconds),
            three("decode step, ms", self.decode_step_seconds),
            row("prefill, s", format!("{:.3}", self.prefill_seconds)),
            row("decode, s", format!("{:.3}", self.decode_seconds)),
            row("output tokens a second", format!("{:.1}", self.output_tokens_per_second)),
        ];
        if let Some(limit) = &self.limit {
            rows.push(row("limit: prefill, s", format!("{:.3}", limit.prefill_seconds)));
            rows.push(row("limit: decode, s", format!("{:.3}", limit.decode_seconds)));
            rows.push(row("limit: output tokens a second", format!("{:.1}", limit.output_tokens_per_second)));
            rows.push(row("measured over limit", format!("{:.3}", limit.ratio)));
        }
        let title = match self.runs {
            1 => "1 run".to_owned(),
            runs => format!("{runs} runs"),
        };
        table([&title, "p50", "p90", "p99"], rows)
    }
}

impl MemoryReport {
    fn table(&self) -> comfy_table::Table {
        let row = |name: String, size: u64| [name, bytes(size)];
        let mut rows: Vec<[String; 2]> =
            self.weights.iter().map(|part| row(part.name.to_owned(), part.bytes)).collect();
        rows.push(row("weights together".to_owned(), self.weight_bytes));
        rows.push(row(format!("KV cache of {} tokens", grouped(self.kv_tokens as u64)), self.kv_bytes));
        if let Some(measured) = &self.measured {
            let Measured { total_bytes, taken_before_bytes, loaded_bytes, activation_bytes, free_bytes } =
                *measured;
            for (name, size) in [
                ("measured: taken before", taken_before_bytes),
                ("measured: weights and KV cache", loaded_bytes),
                ("measured: activations, workspaces, graphs", activation_bytes),
                ("measured: free", free_bytes),
                ("the card's", total_bytes),
            ] {
                rows.push(row(name.to_owned(), size));
            }
        }
        table(["memory", "size"], rows)
    }
}
