//! Packed weights in device memory.

use crate::{Int4Shape, PackedWeights, W4A8};
use cudarc::driver::{CudaSlice, CudaStream};
use device::Result;
use device::gpu::{check_len, upload, zeros};
use std::sync::Arc;

/// INT4 weights in device memory, in the order of [`PackedWeights`].
#[derive(Debug)]
pub struct DeviceInt4Weights {
    shape: Int4Shape,
    bytes: CudaSlice<u8>,
}

impl DeviceInt4Weights {
    /// Copies packed weights to the device.
    pub fn upload(stream: &Arc<CudaStream>, packed: &PackedWeights) -> Result<Self> {
        Ok(Self { shape: packed.shape(), bytes: upload(stream, packed.bytes(), "INT4 weights")? })
    }

    /// Takes over [`PackedWeights::bytes_of`] bytes that lie on the device already. Any bytes are safe to multiply with.
    pub fn from_bytes(shape: Int4Shape, bytes: CudaSlice<u8>) -> Result<Self> {
        check_len(W4A8::CHECK, "weights", &bytes, PackedWeights::bytes_of(shape)?)?;
        Ok(Self { shape, bytes })
    }

    /// All codes, scales and zero points 0, to be filled by [`Self::add`].
    pub fn zeros(stream: &Arc<CudaStream>, shape: Int4Shape) -> Result<Self> {
        Ok(Self { shape, bytes: zeros(stream, PackedWeights::bytes_of(shape)?, "INT4 weights")? })
    }

    /// The shape.
    pub fn shape(&self) -> Int4Shape {
        self.shape
    }

    /// The bytes, in the order of [`PackedWeights`].
    pub fn bytes(&self) -> &CudaSlice<u8> {
        &self.bytes
    }

    /// The bytes, for this crate's kernels.
    pub(super) fn bytes_mut(&mut self) -> &mut CudaSlice<u8> {
        &mut self.bytes
    }
}
