//! A workload, run and timed step by step.

use super::sequences::Sequences;
use super::workload::Workload;
use crate::error::Result;
use crate::progress::progress_bar;
use engine::StepModel;
use indicatif::ProgressBar;
use serde::Serialize;
use std::time::Instant;

/// Decode steps before anything is timed: whatever a backend does the first times it sees a batch is then done.
pub const WARM_UP_DECODES: usize = 3;

/// How long the steps of one run took, in seconds. Work between two steps counts to the later one, so that all steps
/// together are the whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub prefill: Vec<f64>,
    pub decode: Vec<f64>,
}

impl Run {
    pub fn prefill_seconds(&self) -> f64 {
        self.prefill.iter().sum()
    }

    pub fn decode_seconds(&self) -> f64 {
        self.decode.iter().sum()
    }
}

/// Percentiles by nearest rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Percentiles {
    /// None of nothing.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let rank =
            |percent: usize| values.get((values.len() * percent).div_ceil(100).checked_sub(1)?).copied();
        Some(Self { p50: rank(50)?, p90: rank(90)?, p99: rank(99)? })
    }
}

/// Runs one prefill step of each size, and some decode steps.
pub fn warm_up<M: StepModel>(model: &mut M, workload: &Workload, seed: u64) -> Result<()> {
    let mut sequences = Sequences::new(workload, model.vocab_size(), !seed);
    let prefill = workload.prefill();
    // All but the last are of one size.
    let rest = prefill.len().saturating_sub(1).max(1);
    for step in prefill.first().into_iter().chain(prefill.get(rest)) {
        sequences.run(model, step)?;
    }
    sequences.pretend_prefilled();
    for position in workload.decode_positions().take(WARM_UP_DECODES) {
        sequences.step(model, &workload.decode(position))?;
    }
    Ok(())
}

/// Runs the workload `runs` times.
pub fn runs<M: StepModel>(model: &mut M, workload: &Workload, seed: u64, runs: usize) -> Result<Vec<Run>> {
    let prefill = workload.prefill();
    let steps = (prefill.len() + workload.decode_positions().len()) * runs;
    let bar = progress_bar(steps as u64, "measuring", "{pos}/{len} steps");
    let result = (0..runs).map(|_| run(model, workload, seed, &bar)).collect();
    bar.finish_and_clear();
    result
}

fn run<M: StepModel>(model: &mut M, workload: &Workload, seed: u64, bar: &ProgressBar) -> Result<Run> {
    let mut sequences = Sequences::new(workload, model.vocab_size(), seed);
    let (prefill_steps, positions) = (workload.prefill(), workload.decode_positions());
    let mut prefill = Vec::with_capacity(prefill_steps.len());
    let mut decode = Vec::with_capacity(positions.len());
    let mut last = Instant::now();
    let mut lap = || {
        let now = Instant::now();
        bar.inc(1);
        (now - std::mem::replace(&mut last, now)).as_secs_f64()
    };
    for step in &prefill_steps {
        sequences.step(model, step)?;
        prefill.push(lap());
    }
    for position in positions {
        sequences.step(model, &workload.decode(position))?;
        decode.push(lap());
    }
    Ok(Run { prefill, decode })
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::Step;
    use sampling::Sampled;
    use std::collections::HashMap;

    /// Notes what it is asked for; a page must hold the positions before the new ones, of its own sequence.
    struct Noting {
        pages: HashMap<u32, Vec<u32>>,
        steps: Vec<(usize, usize)>,
        checks_history: bool,
    }

    impl Noting {
        fn new(checks_history: bool) -> Self {
            Self { pages: HashMap::new(), steps: Vec::new(), checks_history }
        }
    }

    impl StepModel for Noting {
        fn vocab_size(&self) -> usize {
            50
        }

        fn max_context(&self) -> usize {
            1000
        }

        fn pages(&self) -> usize {
            100
        }

        fn step(&mut self, step: &Step<'_>) -> device::Result<Vec<Sampled>> {
            let mut sampled = Vec::new();
            for sequence in &step.sequences {
                for (index, &token) in sequence.tokens.iter().enumerate() {
                    let position = sequence.context_len - sequence.tokens.len() + index;
                    let page = self.pages.entry(sequence.pages[position / 64]).or_default();
                    page.truncate(position % 64);
                    assert!(!self.checks_history || page.len() == position % 64);
                    page.resize(position % 64, 0);
                    page.push(token);
                }
                if let Some(sample) = sequence.sample {
                    let cached: Vec<u32> =
                        sequence.pages.iter().flat_map(|page| self.pages[page].clone()).collect();
                    assert_eq!(sample.history.len(), sequence.context_len);
                    assert!(!self.checks_history || cached == sample.history);
                    let sum: u32 = sample.history.iter().sum();
                    sampled.push(Sampled { token: sum % 50, ..Sampled::default() });
                }
            }
            self.steps.push((step.tokens(), sampled.len()));
            Ok(sampled)
        }
    }

    #[test]
    fn every_sequence_goes_on_from_its_own_tokens() {
        let workload = Workload { isl: 70, osl: 60, batch: 3, max_batch_tokens: 100 };
        let mut model = Noting::new(true);
        let run = &runs(&mut model, &workload, 7, 1).unwrap()[0];
        assert_eq!((run.prefill.len(), run.decode.len()), (3, 59));
        assert_eq!(model.steps[..3], [(100, 1), (100, 1), (10, 1)]);
        assert!(model.steps[3..].iter().all(|&step| step == (3, 3)));
        assert!(run.prefill.iter().chain(&run.decode).all(|&seconds| seconds >= 0.0));
    }

    #[test]
    fn the_warm_up_sees_every_size() {
        let workload = Workload { isl: 70, osl: 60, batch: 3, max_batch_tokens: 100 };
        let mut model = Noting::new(false);
        warm_up(&mut model, &workload, 7).unwrap();
        assert_eq!(model.steps, [(100, 1), (10, 1), (3, 3), (3, 3), (3, 3)]);
        let short = Workload { isl: 4, osl: 1, batch: 1, max_batch_tokens: 100 };
        let mut model = Noting::new(false);
        warm_up(&mut model, &short, 7).unwrap();
        assert_eq!(model.steps, [(4, 1)]);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        assert_eq!(Percentiles::of(Vec::new()), None);
        assert_eq!(Percentiles::of(vec![3.0]), Some(Percentiles { p50: 3.0, p90: 3.0, p99: 3.0 }));
        let hundred = (1..=100).rev().map(f64::from).collect();
        assert_eq!(Percentiles::of(hundred), Some(Percentiles { p50: 50.0, p90: 90.0, p99: 99.0 }));
        assert_eq!(Percentiles::of(vec![4.0, 1.0, 2.0]), Some(Percentiles { p50: 2.0, p90: 4.0, p99: 4.0 }));
    }
}
