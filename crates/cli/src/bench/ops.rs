//! `peregrine bench ops`: a decode step, op by op, as an account that sums to the step.

use super::limits::{StepShape, Work};
use super::measure::{Percentiles, WARM_UP_DECODES};
use super::report::Setting;
use super::sequences::Sequences;
use super::target::Target;
use super::workload::{Workload, at_least_1};
use crate::args::BenchOps;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::output::{print_json, print_line};
use crate::progress::progress_bar;
use crate::table::{grouped, table};
use device::Card;
use models::{Clock, KvDtype, Op, Timed, Trace};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    setting: Setting,
    batch: usize,
    context: usize,
    steps: usize,
    /// Steps as a model runs them, nothing timed inside.
    step_seconds: Option<Percentiles>,
    ops: Vec<OpReport>,
    /// Between ops: gaps before launches, work of the host.
    between_seconds: f64,
    /// The mean timed step: all ops and what is between.
    timed_step_seconds: f64,
    /// The step at the card's limit.
    limit_seconds: Option<f64>,
}

/// One kind of op, all layers together, in the mean step.
#[derive(Serialize)]
struct OpReport {
    op: &'static str,
    calls: usize,
    seconds: f64,
    floor_seconds: Option<f64>,
}

/// The decode step that is measured, as the last one of a workload.
pub fn workload(args: &BenchOps) -> Result<Workload> {
    let sizes = [("batch", args.batch), ("context", args.context), ("steps", args.steps)];
    for (option, size) in sizes {
        at_least_1(option, size)?;
    }
    if args.context < 2 {
        let expected = "at least 2".to_owned();
        return Err(Error::Option { option: "context", expected, got: args.context.to_string() });
    }
    let (batch, max_batch_tokens) = (args.batch, args.model.max_batch_tokens);
    // The step that computes the first generated token, which stands at the end of the context.
    Ok(Workload { isl: args.context - 1, osl: 2, batch, max_batch_tokens })
}

pub fn run<B: Clock>(
    args: &BenchOps,
    target: &Target,
    machine: &Machine,
    backend: B,
    pages: usize,
    kv: KvDtype,
) -> Result<()> {
    let workload = workload(args)?;
    let (seed, steps) = (args.model.seed, args.steps);
    let backend = Timed::new(backend);
    let trace = backend.trace();
    let mut model = target.load(backend, pages, kv, seed)?;
    let mut sequences = Sequences::new(&workload, model.vocab_size(), seed);
    let prefill = workload.prefill();
    let count = prefill.len() + WARM_UP_DECODES + 2 * steps;
    let bar = progress_bar(count as u64, "measuring", "{pos}/{len} steps");
    for step in &prefill {
        sequences.step(&mut model, step)?;
        bar.inc(1);
    }
    let decode = workload.decode(workload.isl);
    // The same step again and again: it writes the same place of the cache.
    let mut step = || {
        let start = Instant::now();
        sequences.run(&mut model, &decode)?;
        bar.inc(1);
        Ok(start.elapsed())
    };
    for _ in 0..WARM_UP_DECODES {
        step()?;
    }
    let untimed = (0..steps).map(|_| step()).collect::<Result<Vec<Duration>>>()?;
    // The first step that is run op by op may have to load what a captured one had no need for.
    timed(&trace, &mut step)?;
    let timed = (0..steps).map(|_| timed(&trace, &mut step)).collect::<Result<Vec<_>>>()?;
    bar.finish_and_clear();

    let work = Work::new(&target.config, &target.quantization, kv);
    let card = Card::named(machine.name());
    let shape = workload.shape(&decode);
    let floor = |op| card.and_then(|card| work.op_seconds(card, op, shape));
    let (ops, timed_step_seconds) = account(&timed, floor);
    let report = Report {
        setting: Setting::new("ops", target, machine, kv),
        batch: args.batch,
        context: args.context,
        steps,
        step_seconds: Percentiles::of(untimed.iter().map(Duration::as_secs_f64).collect()),
        between_seconds: timed_step_seconds - ops.iter().map(|op| op.seconds).sum::<f64>(),
        ops,
        timed_step_seconds,
        limit_seconds: card.map(|card| work.step_seconds(card, shape)),
    };
    if args.model.json {
        return print_json(&report);
    }
    report.print(shape)
}

/// A step with the time of each of its ops.
struct TimedStep {
    whole: Duration,
    ops: Vec<(Op, Duration)>,
}

fn timed<B: Clock>(trace: &Trace<B>, step: &mut impl FnMut() -> Result<Duration>) -> Result<TimedStep> {
    trace.start();
    let whole = step()?;
    Ok(TimedStep { whole, ops: trace.stop()? })
}

/// Means by op, in the order that a step has them, and the mean step.
fn account(steps: &[TimedStep], floor: impl Fn(Op) -> Option<f64>) -> (Vec<OpReport>, f64) {
    let count = steps.len().max(1) as f64;
    let mut sums: BTreeMap<Op, (usize, f64)> = BTreeMap::new();
    for (op, time) in steps.iter().flat_map(|step| &step.ops) {
        let (calls, seconds) = sums.entry(*op).or_default();
        *calls += 1;
        *seconds += time.as_secs_f64();
    }
    let report = |(op, (calls, seconds)): (Op, (usize, f64))| OpReport {
        op: name(op),
        calls: calls / steps.len().max(1),
        seconds: seconds / count,
        floor_seconds: floor(op),
    };
    let whole: f64 = steps.iter().map(|step| step.whole.as_secs_f64()).sum();
    (sums.into_iter().map(report).collect(), whole / count)
}

fn name(op: Op) -> &'static str {
    match op {
        Op::Begin => "batch to the device",
        Op::Embed => "embed",
        Op::AttentionNorm => "norm before attention",
        Op::Qkv => "qkv",
        Op::RopeAppend => "rope and append",
        Op::Attend => "attention",
        Op::Output => "attention output",
        Op::MlpNorm => "norm before the MLP",
        Op::Up => "up",
        Op::Activate => "activation",
        Op::Down => "down",
        Op::SampledRows => "sampled rows",
        Op::HeadNorm => "last norm",
        Op::Head => "head",
        Op::Sample => "sample",
        Op::ToHost => "logits to the host",
    }
}

impl Report {
    fn print(&self, shape: StepShape) -> Result<()> {
        print_line(self.setting.line())?;
        print_line(format_args!(
            "a decode step of {} sequences, {} tokens in the cache; means of {} steps\n",
            grouped(self.batch as u64),
            grouped(shape.kv_tokens as u64),
            self.steps
        ))?;
        let whole = self.timed_step_seconds;
        let milliseconds = |seconds: f64| format!("{:.4}", seconds * 1e3);
        let row = |name: &str, calls: Option<usize>, seconds: f64, floor: Option<f64>| {
            [
                name.to_owned(),
                calls.map_or(String::new(), |calls| calls.to_string()),
                milliseconds(seconds),
                calls.map_or(String::new(), |calls| format!("{:.2}", seconds * 1e6 / calls.max(1) as f64)),
                format!("{:.1}", 100.0 * seconds / whole),
                floor.map_or("-".to_owned(), milliseconds),
                floor.map_or("-".to_owned(), |floor| format!("{:.2}", seconds / floor)),
            ]
        };
        let mut rows: Vec<_> =
            self.ops.iter().map(|op| row(op.op, Some(op.calls), op.seconds, op.floor_seconds)).collect();
        rows.push(row("launch gaps and host", None, self.between_seconds, None));
        rows.push(row("the step, timed op by op", None, whole, self.limit_seconds));
        if let Some(step) = self.step_seconds {
            rows.push(row("the step as it runs, p50", None, step.p50, self.limit_seconds));
        }
        print_line(table(["op", "calls", "ms", "µs a call", "%", "floor ms", "x floor"], rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_sums_to_the_step() {
        let ms = Duration::from_millis;
        let step = |up: u64, whole: u64| TimedStep {
            whole: ms(whole),
            ops: vec![(Op::Up, ms(up)), (Op::Attend, ms(2)), (Op::Up, ms(3))],
        };
        let (ops, whole) = account(&[step(1, 10), step(5, 20)], |op| (op == Op::Up).then_some(0.004));
        assert!((whole - 0.015).abs() < 1e-12);
        let names: Vec<_> = ops.iter().map(|op| (op.op, op.calls)).collect();
        assert_eq!(names, [("attention", 1), ("up", 2)]);
        assert!((ops[0].seconds - 0.002).abs() < 1e-12);
        assert!((ops[1].seconds - 0.006).abs() < 1e-12);
        assert_eq!(ops.iter().map(|op| op.floor_seconds).collect::<Vec<_>>(), [None, Some(0.004)]);
    }
}
