//! Timing of kernels: launches captured into a graph that rotates through copies of the operands, replayed between two
//! events. The host stands between no two launches, and no copy is found in the L2 cache.

mod attention;
mod ceilings;
mod products;
mod steps;
mod sustained;

pub use attention::{Decode, Lengths, Page, ragged};
pub use ceilings::{copy, print_ceilings, read};
pub use products::{Fp8Layer, Int4Layer, LAYERS, Layer, Quantizing, TOKENS};
pub use steps::{Activating, Choosing, Norming};
pub use sustained::{Sustained, sustain};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use device::gpu::{Event, Gpu, Graph};
use device::{Card, Result};
use std::time::Duration;

/// What a launch has to do at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Bytes that are read and written.
    pub bytes: f64,
    /// Bytes a second at best.
    pub bandwidth: f64,
    /// Multiplications and additions.
    pub operations: f64,
    /// Operations a second at best.
    pub rate: f64,
}

impl Work {
    /// Reads `bytes`, FP8 `operations` on them.
    pub fn fp8(card: &Card, bytes: usize, operations: f64) -> Self {
        Self { bytes: bytes as f64, bandwidth: card.read, operations, rate: card.fp8 }
    }

    /// Reads `bytes`, 16-bit `operations` on them.
    pub fn bf16(card: &Card, bytes: usize, operations: f64) -> Self {
        Self { rate: card.bf16, ..Self::fp8(card, bytes, operations) }
    }

    /// Reads and writes `bytes`.
    pub fn copy(card: &Card, bytes: usize) -> Self {
        Self { bytes: bytes as f64, bandwidth: card.copy, operations: 0.0, rate: card.fp8 }
    }

    /// Seconds at best.
    pub fn floor(&self) -> f64 {
        (self.bytes / self.bandwidth).max(self.operations / self.rate)
    }

    /// Bytes where they set the floor, else operations.
    fn throughput(&self) -> Throughput {
        match self.bytes / self.bandwidth >= self.operations / self.rate {
            true => Throughput::Bytes(self.bytes as u64),
            false => Throughput::Elements(self.operations as u64),
        }
    }
}

/// Launches captured together: replaying them runs through all copies of the operands.
pub struct Replay<F> {
    graph: Graph,
    launches: usize,
    /// Holds what the launches read and write.
    _launch: F,
}

/// So many launches at least in a graph, and at most where they are short.
const LAUNCHES: [usize; 2] = [16, 512];
/// A replay takes at least so many seconds where it may: the gap between two is then small beside it.
const REPLAY_SECONDS: f64 = 2e-3;

/// A GPU whose rates are known.
pub struct Bench {
    gpu: Gpu,
    card: &'static Card,
    start: Event,
    end: Event,
}

impl Bench {
    /// Opens the first GPU and prints its ceilings, measured now; `None`, with a line that says why, where there is none
    /// that can be measured against.
    pub fn open() -> Option<Self> {
        let opened = Gpu::open(0).and_then(|gpu| {
            let card = Card::named(&gpu.info().name);
            let (start, end) = (Event::new(gpu.context())?, Event::new(gpu.context())?);
            Ok(card.map(|card| Self { gpu, card, start, end }))
        });
        match opened {
            Ok(Some(bench)) => {
                if let Err(error) = print_ceilings(&bench) {
                    eprintln!("the card's ceilings: {error}");
                    return None;
                }
                Some(bench)
            }
            Ok(None) => {
                eprintln!("not run: this GPU's rates are not known (device::Card)");
                None
            }
            Err(error) => {
                eprintln!("not run: {error}");
                None
            }
        }
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Its rates at best.
    pub fn card(&self) -> &'static Card {
        self.card
    }

    /// Copies of operands of `bytes` bytes that together are beyond four times the L2 cache.
    pub fn copies(&self, bytes: usize) -> usize {
        (4 * self.card.l2).div_ceil(bytes.max(1))
    }

    /// Captures launches on copies 0 to `copies - 1`, in turn.
    pub fn capture<F: FnMut(usize) -> Result<()>>(&self, copies: usize, mut launch: F) -> Result<Replay<F>> {
        // Kernels are loaded and products planned at their first launch, which cannot be captured.
        launch(0)?;
        self.gpu.synchronize()?;
        let [least, most] = LAUNCHES;
        let launches = least.next_multiple_of(copies);
        let replay = Replay { graph: self.graph(launches, copies, &mut launch)?, launches, _launch: () };
        let each = self.time(&replay, launches as u64)?.as_secs_f64() / launches as f64;
        let launches = ((REPLAY_SECONDS / each) as usize).clamp(least, most).next_multiple_of(copies);
        Ok(Replay { graph: self.graph(launches, copies, &mut launch)?, launches, _launch: launch })
    }

    fn graph(
        &self,
        launches: usize,
        copies: usize,
        mut launch: impl FnMut(usize) -> Result<()>,
    ) -> Result<Graph> {
        // SAFETY: what the launches read and write is held by `launch`, which the caller keeps for as long as the graph,
        // and all work goes to the one stream.
        unsafe {
            Graph::capture(self.gpu.stream(), || (0..launches).try_for_each(|index| launch(index % copies)))
        }
    }

    /// Device time of at least `launches` launches, as if it were `launches`.
    pub fn time<F>(&self, replay: &Replay<F>, launches: u64) -> Result<Duration> {
        let replays = launches.div_ceil(replay.launches as u64).max(1);
        self.start.record(self.gpu.stream())?;
        for _ in 0..replays {
            replay.graph.replay()?;
        }
        self.end.record(self.gpu.stream())?;
        self.end.synchronize()?;
        let each = self.start.elapsed(&self.end)?.as_secs_f64() / (replays * replay.launches as u64) as f64;
        Ok(Duration::from_secs_f64(each * launches as f64))
    }

    /// One benchmark of `group`, and a line with its time beside the floor. `prepare` makes the operands, which the launch
    /// that it gives owns; it is not called where the command line leaves this benchmark out.
    pub fn measure<F: FnMut(usize) -> Result<()>>(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        work: Work,
        copies: usize,
        prepare: impl FnOnce() -> Result<F>,
    ) -> Result<()> {
        let mut prepare = Some(prepare);
        let mut replay = None;
        let mut outcome = Ok(());
        let mut seconds = Vec::new();
        group.throughput(work.throughput());
        group.bench_function(name, |bencher| {
            if let Some(prepare) = prepare.take() {
                match prepare().and_then(|launch| self.capture(copies, launch)) {
                    Ok(captured) => replay = Some(captured),
                    Err(error) => outcome = Err(error),
                }
            }
            bencher.iter_custom(|launches| {
                let timed = replay.as_ref().map(|replay| self.time(replay, launches));
                match timed {
                    Some(Ok(time)) => {
                        seconds.push(time.as_secs_f64() / launches as f64);
                        return time;
                    }
                    Some(Err(error)) => outcome = Err(error),
                    None => {}
                }
                // criterion divides by it; the error ends the benchmark.
                Duration::from_secs(1)
            });
        });
        outcome?;
        // Nothing ran where a filter left this one out.
        seconds.sort_unstable_by(f64::total_cmp);
        if let Some(&median) = seconds.get(seconds.len() / 2) {
            let (microseconds, floor) = (median * 1e6, work.floor() * 1e6);
            println!(
                "    {name}: {microseconds:.1} us, floor {floor:.1}, {:.2}x; {:.0} GB/s, {:.0} TFLOP/s",
                median / work.floor(),
                work.bytes / median * 1e-9,
                work.operations / median * 1e-12
            );
        }
        Ok(())
    }
}

/// Short runs: the card's clock falls in long ones, and time on it is dear. `--measurement-time` and its like take
/// precedence.
pub fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .sample_size(10)
        .configure_from_args()
}
