//! Long runs, which the card's power cap holds back: the mean rate, with the clock and the power beside it.

use super::{Bench, Replay};
use cudarc::driver::sys::CUuuid;
use device::Result;
use device::gpu::{Event, Gpu};
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::{Device, Nvml};
use std::time::{Duration, Instant};

/// A time of a launch: of bursts, or the mean of a long run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sustained {
    /// Seconds of one launch.
    pub seconds: f64,
    /// MHz of the multiprocessors and watts of the card: of a long run, where NVML tells them.
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
    let nvml = nvml();
    let card = nvml.as_ref().and_then(|nvml| managed(nvml, bench.gpu()));
    let mut samples = Vec::new();
    let start = Instant::now();
    let (mut counted, mut settling, mut last) = (0usize, true, 0);
    for chunk in 0.. {
        if settling && start.elapsed() >= SETTLING {
            settled.record(bench.gpu().stream())?;
            settling = false;
        }
        for _ in 0..replays {
            replay.graph.replay()?;
        }
        counted += if settling { 0 } else { replays };
        last = chunk % 2;
        ends[last].record(bench.gpu().stream())?;
        // The chunk before this one: the stream always has work.
        ends[1 - last].synchronize()?;
        if !settling {
            samples.extend(card.as_ref().and_then(clock_and_power));
        }
        if start.elapsed() >= duration && counted > 0 {
            break;
        }
    }
    ends[last].synchronize()?;
    let seconds = settled.elapsed(&ends[last])?.as_secs_f64() / (counted * replay.launches) as f64;
    Ok(Sustained { seconds, clock_and_power: mean(&samples) })
}

/// The driver's version, where NVML tells it.
pub(super) fn driver() -> Option<String> {
    nvml()?.sys_driver_version().ok()
}

/// NVML, by the name under which a driver without a toolkit brings it.
fn nvml() -> Option<Nvml> {
    Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().ok()
}

/// The GPU as NVML knows it: by UUID, as the two libraries may count GPUs in different orders.
fn managed<'nvml>(nvml: &'nvml Nvml, gpu: &Gpu) -> Option<Device<'nvml>> {
    nvml.device_by_uuid(name(gpu.context().uuid().ok()?)).ok()
}

/// `GPU-00010203-0405-0607-0809-0a0b0c0d0e0f`.
fn name(uuid: CUuuid) -> String {
    let hex: Vec<String> = uuid.bytes.iter().map(|&byte| format!("{:02x}", byte as u8)).collect();
    let parts = [&hex[..4], &hex[4..6], &hex[6..8], &hex[8..10], &hex[10..]].map(|part| part.concat());
    format!("GPU-{}", parts.join("-"))
}

/// MHz of the multiprocessors and watts, now.
fn clock_and_power(card: &Device) -> Option<(f64, f64)> {
    Some((f64::from(card.clock_info(Clock::SM).ok()?), f64::from(card.power_usage().ok()?) / 1000.0))
}

fn mean(samples: &[(f64, f64)]) -> Option<(f64, f64)> {
    let mean = |value: fn(&(f64, f64)) -> f64| samples.iter().map(value).sum::<f64>() / samples.len() as f64;
    (!samples.is_empty()).then(|| (mean(|sample| sample.0), mean(|sample| sample.1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_gpu() {
        let bytes = std::array::from_fn(|i| (0x11 * i) as i8);
        assert_eq!(name(CUuuid { bytes }), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn means() {
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[(1400.0, 690.0), (1500.0, 700.0)]), Some((1450.0, 695.0)));
    }
}
