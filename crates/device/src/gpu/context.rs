//! One opened GPU.

use super::{DriverResult, GpuInfo, driver};
use crate::{Check, Result};
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use std::sync::Arc;

/// One GPU, opened: its primary context, one stream that all work goes to, and what the driver says about it.
///
/// Work is ordered by that one stream alone (cudarc's automatic events between streams are off: they cost time on every
/// call and break graph capture). Whoever makes another stream orders it with [`super::Event`].
#[derive(Debug, Clone)]
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    info: GpuInfo,
}

/// Device memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Free on the card, plus what this process' pool holds and does not use.
    pub free: u64,
    /// All of the card.
    pub total: u64,
}

impl Gpu {
    /// Opens GPU number `ordinal`.
    ///
    /// # Errors
    /// [`NoDriver`](crate::Error::NoDriver), [`NoGpu`](crate::Error::NoGpu),
    /// [`DriverTooOld`](crate::Error::DriverTooOld),
    /// [`UnsupportedComputeCapability`](crate::Error::UnsupportedComputeCapability), an argument error where there are
    /// fewer GPUs, or a driver error.
    pub fn open(ordinal: usize) -> Result<Self> {
        driver::init()?;
        driver::check_version(driver::version()?)?;
        let gpus = driver::gpus()?;
        let count = gpus.len();
        let wanted = gpus.into_iter().nth(ordinal);
        let info =
            wanted.ok_or_else(|| Check("gpu").error("ordinal", format_args!("below {count}"), ordinal))?;
        info.check_supported()?;
        let context = CudaContext::new(ordinal).named("cuDevicePrimaryCtxRetain")?;
        // SAFETY: nothing is allocated yet, and all work goes to one stream, which orders allocation, use and release.
        unsafe { context.disable_event_tracking() };
        keep_freed_memory(&context)?;
        let stream = context.new_stream().named("cuStreamCreate")?;
        Ok(Self { context, stream, info })
    }

    /// The context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// The stream that all work goes to.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Name, memory, multiprocessors.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// Free and total device memory.
    pub fn memory(&self) -> Result<MemoryInfo> {
        memory_info(&self.context)
    }

    /// Waits until all work of the stream is done. An error of an earlier kernel shows here.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().named("cuStreamSynchronize")
    }
}

/// Streaming multiprocessors of the GPU that `stream` belongs to: what a persistent grid is sized by.
pub fn multiprocessors(stream: &CudaStream) -> Result<u32> {
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    let count = stream.context().attribute(attribute).named("cuDeviceGetAttribute")?;
    Ok(count.unsigned_abs())
}

/// Has the driver's pool keep what is freed, so that the next allocation is served without going to the system.
fn keep_freed_memory(context: &CudaContext) -> Result<()> {
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let pool = pool(context)?;
    // SAFETY: the pool is the device's own, and this attribute is a 64-bit count that the driver only reads.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()) }
        .named("cuMemPoolSetAttribute")
}

/// Gives what the pool holds and does not use back to the card.
pub(super) fn trim(context: &CudaContext) -> Result<()> {
    // SAFETY: the pool is the device's own.
    unsafe { result::mem_pool::trim_to(pool(context)?, 0) }.named("cuMemPoolTrimTo")
}

pub(super) fn memory_info(context: &CudaContext) -> Result<MemoryInfo> {
    let (free, total) = context.mem_get_info().named("cuMemGetInfo")?;
    let pool = pool(context)?;
    let count = |attribute| -> Result<u64> {
        let mut bytes = 0u64;
        // SAFETY: the pool is the device's own, and the driver writes one 64-bit count.
        unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }
            .named("cuMemPoolGetAttribute")?;
        Ok(bytes)
    };
    let reserved = count(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = count(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Ok(MemoryInfo { free: free as u64 + reserved.saturating_sub(used), total: total as u64 })
}

fn pool(context: &CudaContext) -> Result<sys::CUmemoryPool> {
    // SAFETY: the device comes from an open context.
    unsafe { result::device::get_default_mem_pool(context.cu_device()) }.named("cuDeviceGetDefaultMemPool")
}
