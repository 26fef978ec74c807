//! The timing backend changes nothing but knows everything.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation fails the test"
)]

use checkpoint::Checkpoint;
use models::{Backend, Cpu, KvDtype, Model, Op, Sample, Step, StepSequence, Timed};
use sampling::Params;
use std::path::Path;
use std::time::{Duration, Instant};

fn checkpoint(name: &str) -> Checkpoint {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/models");
    Checkpoint::open(models.join(name)).unwrap()
}

fn model<B: Backend>(name: &str, backend: B) -> Model<B> {
    Model::load(&checkpoint(name), backend, 2, KvDtype::F32, &mut |_| ()).unwrap()
}

/// Three tokens of one sequence, two of another.
fn step<T>(run: impl FnOnce(&Step<'_>) -> T) -> T {
    let params = Params::default();
    let sequence = |tokens, pages| StepSequence {
        tokens,
        context_len: tokens.len(),
        prompt_len: tokens.len(),
        pages,
        sample: Some(Sample { params: &params, history: tokens, prompt_len: tokens.len() }),
    };
    run(&Step { sequences: vec![sequence(&[5, 6, 7], &[1]), sequence(&[9, 2], &[0])] })
}

#[test]
fn a_timed_model_gives_the_same_and_accounts_for_its_step() {
    for (name, branches) in [("tiny-llama", 1), ("tiny-falcon", 2)] {
        let plain = step(|step| model(name, Cpu::default()).logits(step).unwrap());
        let timed = Timed::new(Cpu::default());
        let trace = timed.trace();
        let mut timed = model(name, timed);
        let quiet = step(|step| timed.logits(step).unwrap());
        trace.start();
        let start = Instant::now();
        let recorded = step(|step| timed.logits(step).unwrap());
        let whole = start.elapsed();
        let ops = trace.stop().unwrap();
        assert_eq!((&quiet, &recorded), (&plain, &plain));

        let layer = [
            Op::AttentionNorm,
            Op::Qkv,
            Op::RopeAppend,
            Op::Attend,
            Op::Output,
            Op::MlpNorm,
            Op::Up,
            Op::Activate,
            Op::Down,
        ];
        let rows = vec![Op::SampledRows; 1 + branches];
        let head = [Op::HeadNorm, Op::Head, Op::ToHost];
        let wanted = [&[Op::Begin, Op::Embed][..], &layer, &layer, &layer, &rows, &head].concat();
        assert_eq!(ops.iter().map(|&(op, _)| op).collect::<Vec<_>>(), wanted, "{name}");
        let sum: Duration = ops.iter().map(|&(_, time)| time).sum();
        assert!(sum <= whole && sum > Duration::ZERO, "{sum:?} of {whole:?}");

        // A record ends where it is stopped, and starts anew.
        let tokens = step(|step| timed.step(step).unwrap());
        assert_eq!(trace.stop().unwrap(), []);
        trace.start();
        assert_eq!(step(|step| timed.step(step).unwrap()), tokens);
        assert_eq!(trace.stop().unwrap().last().map(|&(op, _)| op), Some(Op::Sample));
    }
}
