//! Device buffers that are used again: activations live for a part of a step, and the next step wants the same ones.

use super::{DriverResult, zeros};
use crate::{Check, Error, Result};
use bytemuck::AnyBitPattern;
use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice,
    SyncOnDrop, sys,
};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Sizes are rounded up to a quarter of a power of two, so that buffers of nearly equal size are the same.
const STEPS: usize = 4;
const SMALLEST: usize = 1024;

/// Buffers of one stream. What is dropped comes back and is handed out again; memory returns to the card with the pool.
///
/// Work of one stream is ordered, so a buffer may be taken while the kernel that read it last has yet to run. That holds for
/// captured graphs too, as long as the pool lives and they are replayed on its stream.
#[derive(Debug, Clone)]
pub struct Pool {
    stream: Arc<CudaStream>,
    free: Free,
}

type Free = Arc<Mutex<Vec<CudaSlice<u8>>>>;

/// A buffer out of a [`Pool`]: `len` elements, aligned to 256 bytes. It holds what its last user left.
#[derive(Debug)]
pub struct Pooled<T> {
    /// At least `len` elements.
    bytes: ManuallyDrop<CudaSlice<u8>>,
    len: usize,
    stream: Arc<CudaStream>,
    home: Free,
    elements: PhantomData<T>,
}

impl Pool {
    /// An empty pool on `stream`.
    pub fn new(stream: &Arc<CudaStream>) -> Self {
        Self { stream: stream.clone(), free: Free::default() }
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// A buffer of `len` elements: the smallest free one that holds them, or a new one. `what` names it where memory is short.
    ///
    /// While the stream is captured only free ones are given: what is allocated then would belong to the graph.
    pub fn take<T: DeviceRepr + AnyBitPattern>(&self, len: usize, what: &str) -> Result<Pooled<T>> {
        let bytes = Check("pool").product("len", &[len, size_of::<T>()])?;
        let reused = {
            let mut free = lock(&self.free);
            // Sorted by size.
            let at = free.partition_point(|buffer| buffer.len() < bytes);
            (at < free.len()).then(|| free.remove(at))
        };
        let buffer = match reused {
            Some(buffer) => buffer,
            None => self.allocate(bytes, what)?,
        };
        let (stream, home) = (self.stream.clone(), self.free.clone());
        Ok(Pooled { bytes: ManuallyDrop::new(buffer), len, stream, home, elements: PhantomData })
    }

    /// Bytes of the buffers that nobody holds.
    pub fn free_bytes(&self) -> usize {
        lock(&self.free).iter().map(CudaSlice::len).sum()
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<CudaSlice<u8>> {
        let status = self.stream.capture_status().named("cuStreamIsCapturing")?;
        if status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            let message = format!("no free buffer of {bytes} bytes for {what} while a graph is captured");
            return Err(Error::Driver { call: "cuMemAllocAsync".into(), message });
        }
        let step = (bytes.max(SMALLEST) / STEPS).next_power_of_two();
        zeros(&self.stream, bytes.max(SMALLEST).next_multiple_of(step), what)
    }
}

impl<T: AnyBitPattern> Pooled<T> {
    /// Elements `range`, or nothing where it goes beyond the end.
    pub fn slice(&self, range: Range<usize>) -> Option<CudaView<'_, T>> {
        let bytes = range.start * size_of::<T>()..range.end * size_of::<T>();
        let view = (range.start <= range.end && range.end <= self.len).then(|| self.bytes.slice(bytes))?;
        // SAFETY: every bit pattern is a `T`; the buffer starts at a multiple of 256 bytes, the view at one of `T`'s size.
        unsafe { view.transmute(range.len()) }
    }

    /// The first `len` elements, to be written, or nothing where there are fewer.
    pub fn prefix_mut(&mut self, len: usize) -> Option<CudaViewMut<'_, T>> {
        if len > self.len {
            return None;
        }
        // SAFETY: as in `slice`; what is written to a `T` is a `T`.
        unsafe { self.bytes.transmute_mut(len) }
    }
}

impl<T> DeviceSlice<T> for Pooled<T> {
    fn len(&self) -> usize {
        self.len
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl<T> DevicePtr<T> for Pooled<T> {
    fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        self.bytes.device_ptr(stream)
    }
}

impl<T> DevicePtrMut<T> for Pooled<T> {
    fn device_ptr_mut<'a>(&'a mut self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        self.bytes.device_ptr_mut(stream)
    }
}

impl<T> Drop for Pooled<T> {
    fn drop(&mut self) {
        // SAFETY: taken once, as the value goes away.
        let buffer = unsafe { ManuallyDrop::take(&mut self.bytes) };
        let mut free = lock(&self.home);
        let at = free.partition_point(|other| other.len() < buffer.len());
        free.insert(at, buffer);
    }
}

/// A list of buffers is whole whenever the lock is free, whatever happened to a thread that held it.
fn lock(free: &Free) -> std::sync::MutexGuard<'_, Vec<CudaSlice<u8>>> {
    free.lock().unwrap_or_else(PoisonError::into_inner)
}
