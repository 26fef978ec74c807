//! The driver library: whether it is there, its version, its GPUs, and how its statuses become errors.

use super::{GpuInfo, Probe};
use crate::{Error, Result};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use std::sync::OnceLock;

/// The CUDA version of the embedded kernels: a driver must support at least this one.
pub(super) const NEEDED_CUDA_VERSION: (u32, u32) = (13, 0);

/// The error for a failed driver call (or kernel) named `call`.
pub fn driver_error(call: impl Into<String>, error: DriverError) -> Error {
    // The driver is asked for the text: where that fails, the number stands alone.
    let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    let message = match text {
        Some(text) => format!("{text} ({:?})", error.0),
        None => format!("{:?}", error.0),
    };
    Error::Driver { call: call.into(), message }
}

/// Gives a driver status the name of the call it came from.
pub trait DriverResult<T> {
    /// The value, or [`Error::Driver`] with this name.
    fn named(self, call: &str) -> Result<T>;
}

impl<T> DriverResult<T> for std::result::Result<T, DriverError> {
    fn named(self, call: &str) -> Result<T> {
        self.map_err(|error| driver_error(call, error))
    }
}

/// Loads and initialises the driver library.
pub(super) fn init() -> Result<()> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: loads libcuda and nothing else; its initialisers are NVIDIA's and expect to be run this way.
    if !*PRESENT.get_or_init(|| unsafe { sys::is_culib_present() }) {
        return Err(Error::NoDriver);
    }
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(Error::NoGpu),
        // A toolkit's link-time stub stands where the driver should be.
        Err(DriverError(sys::CUresult::CUDA_ERROR_STUB_LIBRARY)) => Err(Error::NoDriver),
        status => status.named("cuInit"),
    }
}

/// The newest CUDA version that the driver supports. Call [`init`] first.
pub(super) fn version() -> Result<(u32, u32)> {
    let mut version = 0;
    // SAFETY: the driver writes one int to a place that is one.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().named("cuDriverGetVersion")?;
    // Encoded as 1000 * major + 10 * minor.
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

/// A driver that can load the embedded kernels.
pub(super) fn check_version(found: (u32, u32)) -> Result<()> {
    if found >= NEEDED_CUDA_VERSION {
        Ok(())
    } else {
        Err(Error::DriverTooOld { found, needed: NEEDED_CUDA_VERSION })
    }
}

/// All GPUs; an error where there is none. Call [`init`] first.
pub(super) fn gpus() -> Result<Vec<GpuInfo>> {
    let count = CudaContext::device_count().named("cuDeviceGetCount")?;
    if count == 0 {
        return Err(Error::NoGpu);
    }
    (0..count).map(gpu).collect()
}

fn gpu(ordinal: i32) -> Result<GpuInfo> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal).named("cuDeviceGet")?;
    // SAFETY: `device` comes from cuDeviceGet, here and below.
    let attribute =
        |attribute| unsafe { result::device::get_attribute(device, attribute) }.named("cuDeviceGetAttribute");
    Ok(GpuInfo {
        ordinal: ordinal.unsigned_abs() as usize,
        name: result::device::get_name(device).named("cuDeviceGetName")?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.unsigned_abs(),
        // SAFETY: as above.
        total_memory: unsafe { result::device::total_mem(device) }.named("cuDeviceTotalMem")? as u64,
    })
}

pub(super) fn probe() -> Probe {
    let driver_cuda_version = init().and_then(|()| version());
    let gpus = init().and_then(|()| gpus());
    Probe { built_with_cuda: true, driver_cuda_version: driver_cuda_version.ok(), gpus }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_of_an_older_cuda_is_refused_by_name() {
        assert_eq!(check_version((13, 0)), Ok(()));
        assert_eq!(check_version((14, 1)), Ok(()));
        assert_eq!(
            check_version((12, 9)).unwrap_err().to_string(),
            "the NVIDIA driver supports CUDA up to 12.9; the kernels need 13.0: update the driver (580 or newer)"
        );
    }
}
