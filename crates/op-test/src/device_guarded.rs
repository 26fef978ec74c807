//! [`Guarded`] on the device, for the tests of kernels.

use crate::Guarded;
use cudarc::driver::{CudaSlice, CudaStream, CudaViewMut, DeviceRepr};
use device::Element;
use device::gpu::{download, upload};
use std::sync::Arc;

/// A device buffer whose payload starts as NaN and whose guard zones must stay as they were.
pub struct DeviceGuarded<T> {
    host: Guarded<T>,
    device: CudaSlice<T>,
}

impl<T: Element + DeviceRepr> DeviceGuarded<T> {
    /// A payload of `len` poisoned elements.
    pub fn new(stream: &Arc<CudaStream>, len: usize) -> Self {
        Self::upload(stream, Guarded::new(len))
    }

    /// Guards around given contents, for what a kernel updates in place.
    pub fn filled(stream: &Arc<CudaStream>, contents: &[T]) -> Self {
        let mut host = Guarded::new(contents.len());
        host.payload_mut().copy_from_slice(contents);
        Self::upload(stream, host)
    }

    fn upload(stream: &Arc<CudaStream>, mut host: Guarded<T>) -> Self {
        let device =
            upload(stream, host.whole_mut(), "a guarded buffer").expect("memory for a test's buffer");
        Self { host, device }
    }

    /// The payload, to be written by a kernel.
    pub fn view(&mut self) -> CudaViewMut<'_, T> {
        self.device.slice_mut(self.host.range())
    }

    /// Waits for the stream; the payload, after checking that the guards still hold poison. NaNs may be results.
    #[track_caller]
    pub fn contents(&mut self, stream: &Arc<CudaStream>) -> Vec<T> {
        let whole = download(stream, &self.device).expect("the kernels before ran to their end");
        self.host.whole_mut().copy_from_slice(&whole);
        self.host.contents()
    }

    /// The same, with every element written and none a NaN.
    #[track_caller]
    pub fn checked(&mut self, stream: &Arc<CudaStream>) -> Vec<T> {
        self.contents(stream);
        self.host.checked()
    }
}
