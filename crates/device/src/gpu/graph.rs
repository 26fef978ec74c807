//! Work captured once and replayed as a whole: one call to the driver instead of hundreds of launches.

use super::DriverResult;
use crate::{Error, Result};
use cudarc::driver::{CudaGraph, CudaStream, sys};
use std::sync::Arc;

/// Work of one stream, captured.
pub struct Graph(CudaGraph);

// SAFETY: graph objects may be used from any thread, not from two at a time: `Graph` is not `Sync`, so it has one user.
unsafe impl Send for Graph {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Graph").finish_non_exhaustive()
    }
}

impl Graph {
    /// Captures what `work` gives to `stream`; nothing runs yet. Kernels are loaded, workspaces allocated and products
    /// planned at their first run, none of which can be captured: run `work` once before.
    ///
    /// # Errors
    /// What `work` returned, or a driver error where it did something that cannot be captured (allocate, wait).
    ///
    /// # Safety
    /// The graph holds plain device addresses. All memory that the captured work reads or writes must stay allocated,
    /// and be free of other uses than those ordered by the stream, for as long as the graph is replayed.
    pub unsafe fn capture(stream: &Arc<CudaStream>, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        // Thread-local: other threads may allocate meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).named("cuStreamBeginCapture")?;
        let worked = work();
        // The capture is ended in any case, so that the stream is usable after a failure.
        let captured = stream.end_capture(sys::CUgraphInstantiate_flags(0)).named("cuStreamEndCapture");
        worked?;
        let empty =
            || Error::Driver { call: "cuStreamEndCapture".into(), message: "nothing was captured".into() };
        let graph = captured?.ok_or_else(empty)?;
        graph.upload().named("cuGraphUpload")?;
        Ok(Self(graph))
    }

    /// Gives the captured work to the stream it was captured from.
    pub fn replay(&self) -> Result<()> {
        self.0.launch().named("cuGraphLaunch")
    }
}
