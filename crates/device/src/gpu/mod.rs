//! The GPU side: opening a card, device memory, launches, graphs, events.
//!
//! Exchange types are cudarc's (`CudaStream`, `CudaSlice`, `CudaView`), so that whoever uses cudarc can call one op
//! alone. All unsafe code of the workspace that is not a kernel launch lies in this folder.
//!
//! [`probe()`] is there with and without feature `cuda`; the rest needs it.

mod probe;
pub use probe::{GpuInfo, Probe, probe};

#[cfg(feature = "cuda")]
mod context;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod event;
#[cfg(feature = "cuda")]
mod graph;
#[cfg(feature = "cuda")]
mod kernel;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod memory;
#[cfg(feature = "cuda")]
mod pinned;
#[cfg(feature = "cuda")]
mod pool;
#[cfg(feature = "cuda")]
mod tensor_map;

#[cfg(feature = "cuda")]
pub use {
    context::{Gpu, MemoryInfo, multiprocessors},
    driver::{DriverResult, driver_error},
    event::Event,
    graph::Graph,
    kernel::{Cubin, Kernel},
    launch::{Args, Extent, Launch},
    memory::{check_aligned, check_aligned_mut, check_len, download, upload, zeros},
    pinned::{Pinned, PinnedCopies},
    pool::{Pool, Pooled},
    tensor_map::{MapElement, Swizzle, TensorMap, Tile},
};
