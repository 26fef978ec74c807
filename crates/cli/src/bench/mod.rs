//! `peregrine bench`: how fast a model is, beside the least time that the card would need.
//!
//! The model is stepped as the engine steps it, but with a fixed batch: prompts first, in full steps, then all sequences
//! decode side by side until each has its tokens.

mod limits;
mod measure;
mod ops;
mod report;
mod sequences;
mod target;
mod workload;

use crate::args::{Bench, BenchModel, BenchOps};
use crate::error::{Error, Result};
use crate::machine::Machine;
use models::{Clock, Cpu, KvDtype};
use report::{Results, Setting, Watch};
use target::Target;
use workload::{Workload, at_least_1};

pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Throughput(args) => {
            let workload = lengths(&args.model, args.lengths.isl, args.lengths.osl, args.batch);
            Whole { name: "throughput", model: &args.model, workload, runs: 1 }.open()
        }
        Bench::Latency(args) => {
            at_least_1("runs", args.runs)?;
            let workload = lengths(&args.model, args.lengths.isl, args.lengths.osl, args.batch);
            Whole { name: "latency", model: &args.model, workload, runs: args.runs }.open()
        }
        Bench::Ops(args) => ops(args),
    }
}

fn lengths(model: &BenchModel, isl: usize, osl: usize, batch: usize) -> Workload {
    Workload { isl, osl, batch, max_batch_tokens: model.max_batch_tokens }
}

/// A whole workload, measured: throughput and latency are two views of it.
struct Whole<'a> {
    name: &'static str,
    model: &'a BenchModel,
    workload: Workload,
    runs: usize,
}

impl Whole<'_> {
    fn open(self) -> Result<()> {
        let target = Target::open(self.model)?;
        self.workload.check(target.max_context())?;
        let machine = target.machine(self.model.backend)?;
        let kv = target.kv_dtype(self.model.kv, &machine);
        let tokens = self.workload.cached_tokens();
        let pages = target.pages(self.workload.batch, tokens, self.model.kv_tokens, kv, &machine)?;
        match &machine {
            Machine::Cpu => self.run(&target, &machine, Cpu::default(), pages, kv),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => self.run(&target, &machine, models::Cuda::new(gpu.clone())?, pages, kv),
        }
    }

    fn run<B: Clock>(
        self,
        target: &Target,
        machine: &Machine,
        backend: B,
        pages: usize,
        kv: KvDtype,
    ) -> Result<()> {
        let (workload, seed) = (&self.workload, self.model.seed);
        // Others use the host's memory as well: a difference would say little.
        let memory = || if matches!(machine, Machine::Cpu) { Ok(None) } else { machine.memory() };
        let before = memory()?;
        let mut model = target.load(backend, pages, kv, seed)?;
        let loaded = memory()?;
        measure::warm_up(&mut model, workload, seed)?;
        let runs = measure::runs(&mut model, workload, seed, self.runs)?;
        let watch = Watch { before, loaded, after: memory()? };
        let setting = Setting::new(self.name, target, machine, kv);
        let results = Results { target, machine, setting, workload, kv, pages, seed, runs: &runs, watch };
        results.print(self.model.json)
    }
}

fn ops(args: &BenchOps) -> Result<()> {
    let workload = ops::workload(args)?;
    at_least_1("max-batch-tokens", workload.max_batch_tokens)?;
    let target = Target::open(&args.model)?;
    let (tokens, max_context) = (args.context, target.max_context());
    if tokens > max_context {
        let what = format!("--context {tokens} makes sequences");
        return Err(Error::BeyondContext { what, tokens, max_context });
    }
    let machine = target.machine(args.model.backend)?;
    let kv = target.kv_dtype(args.model.kv, &machine);
    let pages = target.pages(args.batch, tokens, args.model.kv_tokens, kv, &machine)?;
    match &machine {
        Machine::Cpu => ops::run(args, &target, &machine, Cpu::default(), pages, kv),
        #[cfg(feature = "cuda")]
        Machine::Gpu(gpu) => ops::run(args, &target, &machine, models::Cuda::new(gpu.clone())?, pages, kv),
    }
}
