//! Timing of kernels: launches captured into a graph that rotates through copies of the operands, replayed between two
//! events. The host stands between no two launches, and no copy is found in the L2 cache.

mod append;
mod attention;
mod ceilings;
mod products;
mod steps;
mod suite;
mod sustained;

pub use append::Appending;
pub use attention::{Attending, FALCON, LLAMA, Page};
pub use products::{LAYERS, Layer, Product, Quantizing, TOKENS};
pub use steps::{Activating, Choosing, Norming, Sampling};
pub use suite::{Case, Suite};
pub use sustained::Sustained;

use device::gpu::{Event, Gpu, Graph};
use device::{Card, Result};
use std::time::Duration;

/// Launches captured together: replaying them runs through all copies of the operands.
pub struct Replay<F> {
    graph: Graph,
    launches: usize,
    /// Holds what the launches read and write.
    _launch: F,
}

/// A replay takes at least so many seconds where it may: the gap between two is then small beside it.
const REPLAY_SECONDS: f64 = 2e-3;
/// So many launches at most in a graph, rounded up to whole rounds through the copies.
const MOST_LAUNCHES: usize = 512;
/// At most so many copies: beyond, making them takes longer than timing them.
const MOST_COPIES: usize = 256;
/// Replays whose median counts.
const SAMPLES: usize = 7;

/// A GPU whose rates are known.
pub struct Bench {
    gpu: Gpu,
    card: &'static Card,
    start: Event,
    end: Event,
}

impl Bench {
    /// Opens the first GPU, or says why there is none that can be measured against.
    pub fn open() -> std::result::Result<Self, String> {
        let gpu = Gpu::open(0).map_err(|error| error.to_string())?;
        let card = Card::named(&gpu.info().name).ok_or("this GPU's rates are not known (device::Card)")?;
        let event = || Event::new(gpu.context()).map_err(|error| error.to_string());
        let (start, end) = (event()?, event()?);
        Ok(Self { gpu, card, start, end })
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Its rates at best.
    pub fn card(&self) -> &'static Card {
        self.card
    }

    /// Copies of operands of `bytes` bytes that together are beyond four times the L2 cache. Operands of less than a
    /// megabyte stay within it, as they do in a model, where the launch before has just written them.
    pub fn copies(&self, bytes: usize) -> usize {
        (4 * self.card.l2).div_ceil(bytes.max(1)).min(MOST_COPIES)
    }

    /// Captures launches on copies 0 to `copies - 1`, in turn.
    pub fn capture<F: FnMut(usize) -> Result<()>>(&self, copies: usize, mut launch: F) -> Result<Replay<F>> {
        // Kernels are loaded and products planned at their first launch, which cannot be captured and does not count.
        launch(0)?;
        self.gpu.synchronize()?;
        let once = self.elapsed(|| launch(copies - 1))?.as_secs_f64();
        let launches = ((REPLAY_SECONDS / once) as usize).clamp(1, MOST_LAUNCHES).next_multiple_of(copies);
        // SAFETY: what the launches read and write is held by `launch`, which is kept for as long as the graph, and all work
        // goes to the one stream.
        let graph = unsafe {
            Graph::capture(self.gpu.stream(), || (0..launches).try_for_each(|index| launch(index % copies)))
        }?;
        Ok(Replay { graph, launches, _launch: launch })
    }

    /// Device time of at least `launches` launches, as if it were `launches`.
    pub fn time<F>(&self, replay: &Replay<F>, launches: u64) -> Result<Duration> {
        let replays = launches.div_ceil(replay.launches as u64).max(1);
        let all = self.elapsed(|| (0..replays).try_for_each(|_| replay.graph.replay()))?;
        Ok(all.mul_f64(launches as f64 / (replays * replay.launches as u64) as f64))
    }

    /// Seconds of a launch: the median over some replays, after one that warms up.
    pub fn median<F>(&self, replay: &Replay<F>) -> Result<f64> {
        replay.graph.replay()?;
        let sample = |_| Ok(self.elapsed(|| replay.graph.replay())?.as_secs_f64() / replay.launches as f64);
        let mut samples = (0..SAMPLES).map(sample).collect::<Result<Vec<f64>>>()?;
        samples.sort_unstable_by(f64::total_cmp);
        Ok(samples[SAMPLES / 2])
    }

    /// Device time of `work`.
    fn elapsed(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
        self.start.record(self.gpu.stream())?;
        work()?;
        self.end.record(self.gpu.stream())?;
        self.end.synchronize()?;
        self.start.elapsed(&self.end)
    }
}
