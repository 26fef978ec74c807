//! Page-locked host memory, which copies to and from the device without a detour and without waiting.

use super::{DriverResult, Event};
use crate::{Check, Result};
use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, result, sys};
use std::sync::Arc;

/// A page-locked host buffer. Copies return at once; the next look at the contents waits for them.
#[derive(Debug)]
pub struct Pinned<T> {
    /// From cuMemHostAlloc, `len` elements, all set.
    pointer: *mut T,
    len: usize,
    /// Behind the last copy that touches the buffer.
    copied: Event,
    context: Arc<CudaContext>,
}

// SAFETY: the memory belongs to this value alone and is reached through `&self` for reading and `&mut self` for
// writing; CUDA calls bind the context to whichever thread makes them.
unsafe impl<T: Send> Send for Pinned<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Pinned<T> {}

impl<T: Pod + DeviceRepr> Pinned<T> {
    /// A buffer of `len` zeros.
    pub fn zeros(context: &Arc<CudaContext>, len: usize) -> Result<Self> {
        let bytes = Check("pinned").product("len", &[len.max(1), size_of::<T>()])?;
        context.bind_to_thread().named("cuCtxSetCurrent")?;
        let copied = Event::new(context)?;
        // SAFETY: the context is current. No flag: the host reads and writes this memory through its caches.
        let pointer: *mut T = unsafe { result::malloc_host(bytes, 0) }.named("cuMemHostAlloc")?.cast();
        // SAFETY: `bytes` bytes were just allocated at a page boundary, and nobody else knows them.
        unsafe { pointer.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { pointer, len, copied, context: context.clone() })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The contents, after waiting for the last copy.
    pub fn as_slice(&self) -> Result<&[T]> {
        self.copied.synchronize()?;
        // SAFETY: `len` elements of a type of which every bit pattern is valid; no copy is under way.
        Ok(unsafe { std::slice::from_raw_parts(self.pointer, self.len) })
    }

    /// The contents, to be written, after waiting for the last copy.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T]> {
        self.copied.synchronize()?;
        // SAFETY: as in `as_slice`, and `&mut self` makes this the only reference.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) })
    }

    /// Copies the first elements to all of `device`, in stream order, without waiting.
    pub fn upload(&mut self, stream: &CudaStream, device: &mut impl DevicePtrMut<T>) -> Result<()> {
        self.copies(stream, |copies| copies.upload(0, device))
    }

    /// Copies all of `device` over the first elements, in stream order, without waiting.
    pub fn download(&mut self, stream: &CudaStream, device: &impl DevicePtr<T>) -> Result<()> {
        self.copies(stream, |copies| copies.download(0, device))
    }

    /// Gives any number of copies to `stream`, without waiting. To mark their end once takes less than to mark each.
    pub fn copies(
        &mut self,
        stream: &CudaStream,
        give: impl FnOnce(&mut PinnedCopies<'_, T>) -> Result<()>,
    ) -> Result<()> {
        self.context.bind_to_thread().named("cuCtxSetCurrent")?;
        let given = give(&mut PinnedCopies { pinned: self, stream });
        // After a failure too: those before it are under way.
        self.copied.record(stream)?;
        given
    }

    fn check(&self, first: usize, device_len: usize) -> Result<()> {
        let room = self.len.saturating_sub(first);
        let fits = first <= self.len && device_len <= room;
        Check("pinned").that(fits, "device", format_args!("at most {room} elements"), device_len)
    }
}

/// Copies between a page-locked buffer and device memory, in stream order ([`Pinned::copies`]).
#[derive(Debug)]
pub struct PinnedCopies<'a, T> {
    pinned: &'a mut Pinned<T>,
    stream: &'a CudaStream,
}

impl<T: Pod + DeviceRepr> PinnedCopies<'_, T> {
    /// Copies the elements from `first` on to all of `device`.
    pub fn upload(&mut self, first: usize, device: &mut impl DevicePtrMut<T>) -> Result<()> {
        self.pinned.check(first, device.len())?;
        let bytes = device.len() * size_of::<T>();
        let (address, _guard) = device.device_ptr_mut(self.stream);
        // SAFETY: both sides have `bytes` bytes, the host's from `first` on. The event that `Pinned::copies` records behind this
        // keeps the host side from being written or freed before the copy is done.
        unsafe {
            let host = self.pinned.pointer.add(first).cast();
            sys::cuMemcpyHtoDAsync_v2(address, host, bytes, self.stream.cu_stream())
        }
        .result()
        .named("cuMemcpyHtoDAsync")
    }

    /// Copies all of `device` over the elements from `first` on.
    pub fn download(&mut self, first: usize, device: &impl DevicePtr<T>) -> Result<()> {
        self.pinned.check(first, device.len())?;
        let bytes = device.len() * size_of::<T>();
        let (address, _guard) = device.device_ptr(self.stream);
        // SAFETY: as in `upload`; the event keeps the host side from being read before the copy is done.
        unsafe {
            let host = self.pinned.pointer.add(first).cast();
            sys::cuMemcpyDtoHAsync_v2(host, address, bytes, self.stream.cu_stream())
        }
        .result()
        .named("cuMemcpyDtoHAsync")
    }
}

impl Pinned<u8> {
    /// Copies the first `len` bytes over the bytes of `device` from byte `at` on, in stream order, without waiting.
    pub fn upload_bytes<T: Pod>(
        &mut self,
        stream: &CudaStream,
        len: usize,
        device: &mut impl DevicePtrMut<T>,
        at: usize,
    ) -> Result<()> {
        self.context.bind_to_thread().named("cuCtxSetCurrent")?;
        self.check(0, len)?;
        let room = (device.len() * size_of::<T>()).saturating_sub(at);
        Check("pinned").that(len <= room, "len", format_args!("at most {room} bytes"), len)?;
        let (address, _guard) = device.device_ptr_mut(stream);
        // SAFETY: both sides have `len` bytes from there on, and any bytes are elements of `device`. The event as in
        // `upload`.
        unsafe {
            sys::cuMemcpyHtoDAsync_v2(address + at as u64, self.pointer.cast(), len, stream.cu_stream())
        }
        .result()
        .named("cuMemcpyHtoDAsync")?;
        self.copied.record(stream)
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // A copy that is still under way must not find the memory gone. Errors have nowhere to go here: the context
        // keeps them and returns them from its next call.
        let waited = self.copied.inner().synchronize();
        self.context.record_err(waited);
        // SAFETY: allocated by cuMemHostAlloc in `zeros`, freed once, no copy under way.
        self.context.record_err(unsafe { result::free_host(self.pointer.cast()) });
    }
}
