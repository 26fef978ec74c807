//! The device side of the plans: the crate's only unsafe code.
//!
//! All kernels start while the one before them in the stream drains (programmatic dependent launch).

mod activation;
mod elementwise;
mod norm;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use device::gpu::{check_aligned, check_aligned_mut};
use device::{ActivationShape, Check, E4m3, QuantizedActivation, Result};

/// Elements that a thread reads at once: 16 bytes of bf16.
const VECTOR: usize = 8;
/// What vectors of 16 bytes ask of addresses.
const ALIGNMENT: u64 = 16;
/// Features of a row or slice that a thread holds.
const THREAD_FEATURES: usize = 4 * VECTOR;

/// Threads that hold `features` features: whole warps.
fn threads(features: usize) -> u32 {
    (features.div_ceil(32 * THREAD_FEATURES) * 32) as u32
}

fn as_u32(check: Check, argument: &'static str, size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| check.error(argument, "below 2^32", size))
}

/// The lanes of a group, 0 for no group sums; groups must be powers of two that a warp holds.
fn group_lanes(check: Check, shape: ActivationShape) -> Result<u32> {
    let size = shape.group_size;
    let fits = size == 0 || size.is_power_of_two() && (VECTOR..=32 * VECTOR).contains(&size);
    check.that(fits, "output.shape.group_size", "0 or a power of two from 8 to 256", size)?;
    Ok((size / VECTOR) as u32)
}

fn aligned<T>(
    check: Check,
    argument: &'static str,
    slice: &impl DevicePtr<T>,
    stream: &CudaStream,
) -> Result<()> {
    check_aligned(check, argument, slice, ALIGNMENT, stream)
}

fn aligned_mut<T>(
    check: Check,
    argument: &'static str,
    slice: &mut impl DevicePtrMut<T>,
    stream: &CudaStream,
) -> Result<()> {
    check_aligned_mut(check, argument, slice, ALIGNMENT, stream)
}

fn optional_aligned<T>(
    check: Check,
    argument: &'static str,
    slice: Option<&impl DevicePtr<T>>,
    stream: &CudaStream,
) -> Result<()> {
    slice.map_or(Ok(()), |slice| aligned(check, argument, slice, stream))
}

/// Lengths and alignment of an output on the device; gives the lanes of its groups.
fn check_quantized(
    check: Check,
    output: &mut QuantizedActivation<impl DevicePtrMut<E4m3>, impl DevicePtrMut<f32>>,
    tokens: usize,
    features: usize,
    stream: &CudaStream,
) -> Result<u32> {
    let (codes, scales, group_sums) = (output.codes.len(), output.scales.len(), output.group_sums.len());
    let lens = crate::rows::QuantizedLens { codes, scales, group_sums };
    crate::rows::quantized(check, output.shape, lens, tokens, features)?;
    aligned_mut(check, "output.codes", &mut output.codes, stream)?;
    group_lanes(check, output.shape)
}
