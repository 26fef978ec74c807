//! Device memory: allocated with a name, copied with checks.

use super::context::{memory_info, trim};
use super::{DriverResult, driver_error};
use crate::{Check, E4m3, E5m2, Error, Result};
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, DriverError,
    ValidAsZeroBits, sys,
};
use std::sync::Arc;

// SAFETY: one byte each, transparent, and every bit pattern is a code; the kernels see `__nv_fp8` bytes.
unsafe impl DeviceRepr for E4m3 {}
// SAFETY: as above.
unsafe impl DeviceRepr for E5m2 {}
// SAFETY: the code 0x00 is zero.
unsafe impl ValidAsZeroBits for E4m3 {}
// SAFETY: as above.
unsafe impl ValidAsZeroBits for E5m2 {}

/// Allocates `len` zeros. `what` names the buffer in the error where memory is short.
///
/// Zeroing costs 0.2 ms a gigabyte and leaves no uninitialised memory to be read by mistake.
pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(
    stream: &Arc<CudaStream>,
    len: usize,
    what: &str,
) -> Result<CudaSlice<T>> {
    let mut slice = allocate(stream, len, what)?;
    stream.memset_zeros(&mut slice).named("cuMemsetD8Async")?;
    Ok(slice)
}

/// Allocates a copy of `host`. Waits until the copy is done.
pub fn upload<T: DeviceRepr>(stream: &Arc<CudaStream>, host: &[T], what: &str) -> Result<CudaSlice<T>> {
    let mut slice = allocate(stream, host.len(), what)?;
    if !host.is_empty() {
        stream.memcpy_htod(host, &mut slice).named("cuMemcpyHtoDAsync")?;
        stream.synchronize().named("cuStreamSynchronize")?;
    }
    Ok(slice)
}

/// Copies a device slice or view to the host. Waits for all earlier work of the stream; its errors show here.
pub fn download<T: DeviceRepr + bytemuck::Zeroable + Clone>(
    stream: &Arc<CudaStream>,
    device: &impl DevicePtr<T>,
) -> Result<Vec<T>> {
    let mut host = vec![T::zeroed(); device.len()];
    if !host.is_empty() {
        stream.memcpy_dtoh(device, &mut host).named("cuMemcpyDtoHAsync")?;
    }
    stream.synchronize().named("cuStreamSynchronize")?;
    Ok(host)
}

/// A device slice or view of exactly `expected` elements.
pub fn check_len<T>(
    check: Check,
    argument: &'static str,
    slice: &impl DeviceSlice<T>,
    expected: usize,
) -> Result<()> {
    check.that(slice.len() == expected, argument, format_args!("{expected} elements"), slice.len())
}

/// A device slice or view that starts at a multiple of `bytes`, for kernels that read it in vectors.
pub fn check_aligned<T>(
    check: Check,
    argument: &'static str,
    slice: &impl DevicePtr<T>,
    bytes: u64,
    stream: &CudaStream,
) -> Result<()> {
    check_address(check, argument, slice.device_ptr(stream).0, bytes)
}

/// The same of one that is written.
pub fn check_aligned_mut<T>(
    check: Check,
    argument: &'static str,
    slice: &mut impl DevicePtrMut<T>,
    bytes: u64,
    stream: &CudaStream,
) -> Result<()> {
    check_address(check, argument, slice.device_ptr_mut(stream).0, bytes)
}

fn check_address(check: Check, argument: &'static str, address: u64, bytes: u64) -> Result<()> {
    let ok = address.is_multiple_of(bytes);
    check.that(
        ok,
        argument,
        format_args!("an address aligned to {bytes} bytes"),
        format_args!("{address:#x}"),
    )
}

fn allocate<T: DeviceRepr>(stream: &Arc<CudaStream>, len: usize, what: &str) -> Result<CudaSlice<T>> {
    let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| isize::try_from(bytes).is_ok());
    let Some(bytes) = bytes else {
        return Err(out_of_memory(stream.context(), what, u64::MAX));
    };
    if len == 0 {
        return stream.null().named("cuMemAllocAsync");
    }
    match try_allocate(stream, len) {
        Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
            // The pool may hold freed pieces that are too small each: give them back and ask once more.
            stream.synchronize().named("cuStreamSynchronize")?;
            trim(stream.context())?;
            match try_allocate(stream, len) {
                Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                    Err(out_of_memory(stream.context(), what, bytes as u64))
                }
                status => status.map_err(|error| driver_error(format!("cuMemAllocAsync for {what}"), error)),
            }
        }
        status => status.map_err(|error| driver_error(format!("cuMemAllocAsync for {what}"), error)),
    }
}

fn try_allocate<T: DeviceRepr>(
    stream: &Arc<CudaStream>,
    len: usize,
) -> std::result::Result<CudaSlice<T>, DriverError> {
    // SAFETY: the memory is unset, and both callers of `allocate` write all of it before they hand it out.
    unsafe { stream.alloc(len) }
}

fn out_of_memory(context: &CudaContext, what: &str, requested: u64) -> Error {
    match memory_info(context) {
        Ok(memory) => {
            Error::OutOfMemory { what: what.to_owned(), requested, free: memory.free, total: memory.total }
        }
        Err(error) => error,
    }
}
