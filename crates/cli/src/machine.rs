//! Where a model runs.

use crate::args::BackendChoice;
use crate::error::Result;
use std::fs;

/// The machine behind a backend.
pub enum Machine {
    Cpu,
    #[cfg(feature = "cuda")]
    Gpu(device::gpu::Gpu),
}

impl Machine {
    /// Opens the machine for `choice`; what `auto` comes to is `default`.
    pub fn open(choice: BackendChoice, default: BackendChoice) -> Result<Self> {
        let choice = if choice == BackendChoice::Auto { default } else { choice };
        match choice {
            BackendChoice::Cpu => Ok(Self::Cpu),
            BackendChoice::Cuda => Self::gpu(),
            BackendChoice::Auto => {
                let gpus = device::gpu::probe().gpus.unwrap_or_default();
                if gpus.iter().any(|gpu| gpu.check_supported().is_ok()) { Self::gpu() } else { Ok(Self::Cpu) }
            }
        }
    }

    #[cfg(feature = "cuda")]
    fn gpu() -> Result<Self> {
        Ok(Self::Gpu(device::gpu::Gpu::open(0)?))
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu() -> Result<Self> {
        Err(device::Error::BuiltWithoutCuda.into())
    }

    /// The backend's name on the command line.
    pub fn backend(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => "cuda",
        }
    }

    /// The card's name as the driver gives it.
    pub fn name(&self) -> &str {
        match self {
            Self::Cpu => "CPU",
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => &gpu.info().name,
        }
    }

    /// Bytes of memory that are free, and bytes of all of it; of the host where that is the CPU, if it tells.
    pub fn memory(&self) -> Result<Option<Memory>> {
        match self {
            Self::Cpu => Ok(host_memory()),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => {
                let device::gpu::MemoryInfo { free, total } = gpu.memory()?;
                Ok(Some(Memory { free, total }))
            }
        }
    }
}

/// Bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub free: u64,
    pub total: u64,
}

/// Linux tells it in KiB.
fn host_memory() -> Option<Memory> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Memory { free: field("MemAvailable:")?, total: field("MemTotal:")? })
}
