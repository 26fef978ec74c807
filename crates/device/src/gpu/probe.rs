//! What this machine offers, for `peregrine doctor`.

use crate::{Error, Result};

/// One GPU as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its number in the driver's order (`CUDA_VISIBLE_DEVICES` applies).
    pub ordinal: usize,
    /// The driver's name for it (`NVIDIA H200`).
    pub name: String,
    /// Compute capability, major and minor part.
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub total_memory: u64,
}

impl GpuInfo {
    /// The embedded kernels are sm_90a machine code: they run on compute capability 9.0 and nothing else.
    pub fn check_supported(&self) -> Result<()> {
        match self.compute_capability {
            (9, 0) => Ok(()),
            (major, minor) => {
                Err(Error::UnsupportedComputeCapability { name: self.name.clone(), major, minor })
            }
        }
    }
}

/// What was built in, and what the driver says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Whether this binary has feature `cuda`.
    pub built_with_cuda: bool,
    /// The newest CUDA version the driver supports, major and minor part; `None` without a driver.
    pub driver_cuda_version: Option<(u32, u32)>,
    /// All GPUs, supported or not, or why there are none.
    pub gpus: Result<Vec<GpuInfo>>,
}

/// Asks the driver, if there is one. Never panics, creates no context and takes no device memory.
///
/// ```
/// let probe = device::gpu::probe();
/// assert_eq!(probe.built_with_cuda, cfg!(feature = "cuda"));
/// ```
pub fn probe() -> Probe {
    #[cfg(feature = "cuda")]
    return super::driver::probe();
    #[cfg(not(feature = "cuda"))]
    Probe { built_with_cuda: false, driver_cuda_version: None, gpus: Err(Error::BuiltWithoutCuda) }
}
