//! One bench binary: its benchmarks through criterion, or as one table.

use super::{Bench, Sustained};
use crate::{Arguments, Report, Row, Work};
use criterion::{Criterion, SamplingMode};
use device::Result;
use serde_json::Value;
use std::process::ExitCode;
use std::time::Duration;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Case {
    /// What runs.
    pub group: String,
    /// On what.
    pub name: String,
    /// The same for programs: an object of sizes.
    pub shape: Value,
    /// Of one launch.
    pub work: Work,
    /// Copies of the operands.
    pub copies: usize,
}

/// A bench binary under way.
pub struct Suite {
    bench: Bench,
    report: Report,
    arguments: Arguments,
    /// `None` where only the table is wanted.
    criterion: Option<Criterion>,
    failures: usize,
}

impl Suite {
    /// Reads the command line, opens the first GPU and prints its ceilings, measured now. Where nothing can be run a line says
    /// why, and what the program ends with is returned.
    pub fn open(name: &'static str) -> std::result::Result<Self, ExitCode> {
        Self::with_arguments(name, std::env::args().skip(1))
    }

    /// As [`Self::open`], for benchmarks that criterion has no part in.
    pub fn open_table(name: &'static str) -> std::result::Result<Self, ExitCode> {
        Self::with_arguments(name, ["--table".to_owned()].into_iter().chain(std::env::args().skip(1)))
    }

    fn with_arguments(
        name: &'static str,
        arguments: impl Iterator<Item = String>,
    ) -> std::result::Result<Self, ExitCode> {
        let arguments = Arguments::parse(arguments).map_err(|error| {
            eprintln!("{error}");
            ExitCode::from(2)
        })?;
        let criterion = (!arguments.table).then(criterion);
        let bench = match Bench::open() {
            Ok(bench) => bench,
            // A machine without a GPU is no failure of the benches.
            Err(reason) => {
                eprintln!("not run: {reason}");
                return Err(ExitCode::SUCCESS);
            }
        };
        let ceilings = super::ceilings::measure(&bench).map_err(|error| {
            eprintln!("the card's ceilings: {error}");
            ExitCode::FAILURE
        })?;
        let (card, driver) = (*bench.card(), super::sustained::driver());
        let report = Report { bench: name, card, ceilings, driver, rows: Vec::new() };
        println!("{name} on {}", report.card_line());
        Ok(Self { bench, report, arguments, criterion, failures: 0 })
    }

    /// The GPU and its rates.
    pub fn bench(&self) -> &Bench {
        &self.bench
    }

    /// Measures `case`. `prepare` makes the operands, which the launch that it gives owns; it is not called where the command
    /// line leaves this benchmark out. A failure is printed and remembered.
    pub fn measure<F: FnMut(usize) -> Result<()>>(
        &mut self,
        case: Case,
        prepare: impl FnOnce(&Bench) -> Result<F>,
    ) {
        let measured = match &mut self.criterion {
            Some(criterion) => by_criterion(criterion, &self.bench, &case, prepare),
            None if self.arguments.leave_out(&case.group, &case.name) => Ok(None),
            None => prepare(&self.bench)
                .and_then(|launch| self.bench.capture(case.copies, launch))
                .and_then(|replay| self.bench.median(&replay))
                .map(Some),
        };
        let sustained =
            |seconds: Option<f64>| seconds.map(|seconds| Sustained { seconds, clock_and_power: None });
        self.add(case, measured.map(sustained));
    }

    /// Keeps up `case` for `duration`, without criterion.
    pub fn sustain<F: FnMut(usize) -> Result<()>>(
        &mut self,
        case: Case,
        duration: Duration,
        prepare: impl FnOnce(&Bench) -> Result<F>,
    ) {
        if self.arguments.leave_out(&case.group, &case.name) {
            return;
        }
        let sustained = prepare(&self.bench)
            .and_then(|launch| self.bench.capture(case.copies, launch))
            .and_then(|replay| super::sustained::sustain(&self.bench, &replay, duration));
        self.add(case, sustained.map(Some));
    }

    fn add(&mut self, case: Case, measured: Result<Option<Sustained>>) {
        let Case { group, name, shape, work, .. } = case;
        match measured {
            Ok(Some(Sustained { seconds, clock_and_power })) => {
                let row = Row { group, name, shape, work, seconds, clock_and_power };
                // A line at once: what was measured is not lost where a later one fails.
                if self.criterion.is_none() {
                    if self.report.rows.is_empty() {
                        println!("{}", Report::table_head(clock_and_power.is_some()));
                    }
                    println!("{}", self.report.table_row(&row));
                }
                self.report.rows.push(row);
            }
            Ok(None) => {}
            Err(error) => {
                eprintln!("{group}, {name}: {error}");
                self.failures += 1;
            }
        }
    }

    /// Prints and writes what is wanted, and says whether all ran.
    pub fn finish(self) -> ExitCode {
        if let Some(criterion) = &self.criterion {
            criterion.final_summary();
            if !self.report.rows.is_empty() {
                println!("{}\n{}", self.report.card_line(), self.report.table());
            }
        }
        if let Some(Err(error)) = self.arguments.json.as_deref().map(|folder| self.report.write_json(folder))
        {
            eprintln!("the JSON could not be written: {error}");
            return ExitCode::FAILURE;
        }
        match self.failures {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

/// The median of what criterion's calls took; `None` where its filter leaves the case out.
fn by_criterion<F: FnMut(usize) -> Result<()>>(
    criterion: &mut Criterion,
    bench: &Bench,
    case: &Case,
    prepare: impl FnOnce(&Bench) -> Result<F>,
) -> Result<Option<f64>> {
    let mut prepare = Some(prepare);
    let mut replay = None;
    let mut outcome = Ok(());
    let mut seconds = Vec::new();
    let mut group = criterion.benchmark_group(&case.group);
    group.throughput(case.work.throughput(bench.card())).sampling_mode(SamplingMode::Flat);
    group.bench_function(&case.name, |bencher| {
        if let Some(prepare) = prepare.take() {
            match prepare(bench).and_then(|launch| bench.capture(case.copies, launch)) {
                Ok(captured) => replay = Some(captured),
                Err(error) => outcome = Err(error),
            }
        }
        bencher.iter_custom(|launches| {
            match replay.as_ref().map(|replay| bench.time(replay, launches)) {
                Some(Ok(time)) => {
                    seconds.push(time.as_secs_f64() / launches as f64);
                    return time;
                }
                Some(Err(error)) => outcome = Err(error),
                None => {}
            }
            // criterion divides by it; the error is reported instead.
            Duration::from_secs(1)
        });
    });
    group.finish();
    outcome?;
    seconds.sort_unstable_by(f64::total_cmp);
    Ok(seconds.get(seconds.len() / 2).copied())
}

/// Short runs: a bench binary has hundreds of benchmarks, the card's clock falls in long ones, and time on it is dear.
/// `--measurement-time` and its like take precedence.
fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(20))
        .measurement_time(Duration::from_millis(150))
        .sample_size(10)
        .nresamples(5000)
        .configure_from_args()
}
