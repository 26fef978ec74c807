//! Long runs, which the card's power cap holds back: the mean rate, with the clock and the power beside it.

use super::{Bench, Replay};
use device::Result;
use device::gpu::Event;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A time of a launch: of bursts, or the mean of a long run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sustained {
    /// Seconds of one launch.
    pub seconds: f64,
    /// MHz of the multiprocessors and watts of the card: of a long run, where nvidia-smi (NVML) tells them.
    pub clock_and_power: Option<(f64, f64)>,
}

/// What the card needs to settle at a clock.
const SETTLING: Duration = Duration::from_secs(1);
/// Replays given to the stream at once take about so long.
const CHUNK: Duration = Duration::from_millis(100);

/// Replays for `duration`; the first second does not count.
pub(super) fn sustain<F>(bench: &Bench, replay: &Replay<F>, duration: Duration) -> Result<Sustained> {
    let each = bench.time(replay, replay.launches as u64)?;
    let replays = (CHUNK.as_secs_f64() / each.as_secs_f64()).ceil().max(1.0) as usize;
    let event = || Event::new(bench.gpu().context());
    let (settled, ends) = (event()?, [event()?, event()?]);
    let monitor = Monitor::start(bench.gpu().info().ordinal);
    let start = Instant::now();
    let (mut counted, mut from, mut last) = (0usize, None, 0);
    for chunk in 0.. {
        if from.is_none() && start.elapsed() >= SETTLING {
            settled.record(bench.gpu().stream())?;
            from = Some(Instant::now());
        }
        for _ in 0..replays {
            replay.graph.replay()?;
        }
        counted += if from.is_some() { replays } else { 0 };
        last = chunk % 2;
        ends[last].record(bench.gpu().stream())?;
        // The chunk before this one: the stream always has work.
        ends[1 - last].synchronize()?;
        if start.elapsed() >= duration && counted > 0 {
            break;
        }
    }
    ends[last].synchronize()?;
    let until = Instant::now();
    let seconds = settled.elapsed(&ends[last])?.as_secs_f64() / (counted * replay.launches) as f64;
    let clock_and_power = monitor.and_then(|monitor| monitor.mean(from?, until));
    Ok(Sustained { seconds, clock_and_power })
}

/// The driver's version, where nvidia-smi tells it.
pub(super) fn driver() -> Option<String> {
    let query = ["--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"];
    let output = Command::new("nvidia-smi").args(query).stderr(Stdio::null()).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !version.is_empty()).then_some(version)
}

/// Samples of nvidia-smi: when, MHz, watts.
type Samples = Arc<Mutex<Vec<(Instant, f64, f64)>>>;

/// nvidia-smi, asked again and again while the run goes on.
struct Monitor {
    process: Child,
    reader: JoinHandle<()>,
    samples: Samples,
}

impl Monitor {
    /// `None` where there is no nvidia-smi.
    fn start(ordinal: usize) -> Option<Self> {
        let mut process = Command::new("nvidia-smi")
            .args(["--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", "-lms", "200"])
            .args(["-i", &ordinal.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let output = process.stdout.take()?;
        let samples = Samples::default();
        let shared = samples.clone();
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
                if let Some((clock, power)) = parse(&line) {
                    let now = Instant::now();
                    shared.lock().unwrap_or_else(PoisonError::into_inner).push((now, clock, power));
                }
            }
        });
        Some(Self { process, reader, samples })
    }

    /// Means between two moments.
    fn mean(mut self, from: Instant, until: Instant) -> Option<(f64, f64)> {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = self.reader.join();
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let within: Vec<_> = samples.iter().filter(|sample| (from..=until).contains(&sample.0)).collect();
        let mean = |value: fn(&(Instant, f64, f64)) -> f64| {
            within.iter().map(|sample| value(sample)).sum::<f64>() / within.len() as f64
        };
        (!within.is_empty()).then(|| (mean(|sample| sample.1), mean(|sample| sample.2)))
    }
}

/// `1380, 698.52`.
fn parse(line: &str) -> Option<(f64, f64)> {
    let (clock, power) = line.split_once(',')?;
    Some((clock.trim().parse().ok()?, power.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_nvidia_smi() {
        assert_eq!(parse("1380, 698.52"), Some((1380.0, 698.52)));
        assert_eq!(parse("[N/A], 698.52"), None);
        assert_eq!(parse("No devices were found"), None);
    }
}
