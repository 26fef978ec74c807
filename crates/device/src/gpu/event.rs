//! Points in a stream: to wait for, and to time between.

use super::DriverResult;
use crate::Result;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, sys};
use std::sync::Arc;
use std::time::Duration;

/// A point in a stream, with its time (resolution about half a microsecond).
///
/// ```no_run
/// # fn main() -> device::Result<()> {
/// use device::gpu::{Event, Gpu};
/// let gpu = Gpu::open(0)?;
/// let (start, end) = (Event::new(gpu.context())?, Event::new(gpu.context())?);
/// start.record(gpu.stream())?;
/// // ... launches ...
/// end.record(gpu.stream())?;
/// println!("{:?}", start.elapsed(&end)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Event(CudaEvent);

impl Event {
    /// An event that counts as done until it is recorded.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let event = context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).named("cuEventCreate")?;
        Ok(Self(event))
    }

    /// Marks the end of all work given to `stream` so far.
    pub fn record(&self, stream: &CudaStream) -> Result<()> {
        self.0.record(stream).named("cuEventRecord")
    }

    /// Waits, on the host, until the recorded point is reached.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronize().named("cuEventSynchronize")
    }

    /// Makes later work of `stream` wait for the recorded point.
    pub fn hold(&self, stream: &CudaStream) -> Result<()> {
        stream.wait(&self.0).named("cuStreamWaitEvent")
    }

    /// Device time from `self` to `end`, after waiting for both.
    pub fn elapsed(&self, end: &Self) -> Result<Duration> {
        let milliseconds = self.0.elapsed_ms(&end.0).named("cuEventElapsedTime")?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) * 1e-3))
    }

    pub(super) fn inner(&self) -> &CudaEvent {
        &self.0
    }
}
