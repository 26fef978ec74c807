//! From files to the device: pieces are read by several threads into one page-locked buffer while the other is copied.
//!
//! ```text
//! page cache ──► buffer 0 ──► device        read   | 0 | 1 | 0 | 1 |
//!           └──► buffer 1 ──┘               copy       | 0 | 1 | 0 | 1 |
//! ```

use crate::error::Result;
use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use device::gpu::{Pinned, zeros};
use std::num::NonZero;
use std::sync::Arc;
use std::thread;

/// Bytes of a buffer: a copy of it takes about as long as waking the threads ten times.
const BUFFER: usize = 32 << 20;
/// Bytes that are worth a thread.
const PIECE: usize = 1 << 20;
/// Threads that read; more than saturate the memory of a host with one GPU.
const THREADS: usize = 16;

/// What is read for `buffer` from byte `offset` on: any piece, on any thread.
pub(super) type Read<'a> = &'a (dyn Fn(u64, &mut [u8]) -> Result<()> + Sync);

/// Two page-locked buffers.
pub(super) struct Stage {
    stream: Arc<CudaStream>,
    buffers: [Pinned<u8>; 2],
    next: usize,
    threads: usize,
}

impl Stage {
    pub fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Self> {
        Ok(Self {
            stream: stream.clone(),
            buffers: [Pinned::zeros(context, BUFFER)?, Pinned::zeros(context, BUFFER)?],
            next: 0,
            threads: thread::available_parallelism().map_or(1, NonZero::get).min(THREADS),
        })
    }

    /// `len` elements on the device, from what `read` gives.
    pub fn read<T: Pod + DeviceRepr + ValidAsZeroBits>(
        &mut self,
        len: usize,
        what: &str,
        read: Read<'_>,
    ) -> Result<CudaSlice<T>> {
        let mut slice = zeros(&self.stream, len, what)?;
        let total = len * size_of::<T>();
        for start in (0..total).step_by(BUFFER) {
            let bytes = BUFFER.min(total - start);
            let buffer = &mut self.buffers[self.next % 2];
            self.next += 1;
            // Waits for the copy before the last.
            fill(start, &mut buffer.as_mut_slice()?[..bytes], self.threads, read)?;
            buffer.upload_bytes(&self.stream, bytes, &mut slice, start)?;
        }
        Ok(slice)
    }

    /// A copy of `host` on the device.
    pub fn copy<T: Pod + DeviceRepr + ValidAsZeroBits>(
        &mut self,
        host: &[T],
        what: &str,
    ) -> Result<CudaSlice<T>> {
        let bytes: &[u8] = bytemuck::cast_slice(host);
        self.read(host.len(), what, &|offset, buffer| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(from) = bytes.get(from..from.saturating_add(buffer.len())) {
                buffer.copy_from_slice(from);
            }
            Ok(())
        })
    }
}

/// Fills `buffer`, which stands at byte `start`, on up to `threads` threads.
fn fill(start: usize, buffer: &mut [u8], threads: usize, read: Read<'_>) -> Result<()> {
    // Whole elements of any type to a piece.
    let piece = buffer.len().div_ceil(threads).max(PIECE).next_multiple_of(4096);
    if buffer.len() <= piece {
        return read(start as u64, buffer);
    }
    thread::scope(|scope| {
        let pieces = buffer.chunks_mut(piece).enumerate();
        let readers: Vec<_> = pieces
            .map(|(index, buffer)| scope.spawn(move || read((start + index * piece) as u64, buffer)))
            .collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn every_byte_is_read_once_at_its_place() {
        let read = |offset: u64, buffer: &mut [u8]| {
            for (index, byte) in buffer.iter_mut().enumerate() {
                *byte = byte.wrapping_add((offset as usize + index) as u8 | 1);
            }
            Ok(())
        };
        for (len, threads) in [(0, 3), (1, 3), (4097, 1), (3 << 20, 2), ((5 << 20) + 13, 4)] {
            let mut buffer = vec![0; len];
            fill(1 << 24, &mut buffer, threads, &read).unwrap();
            assert!(buffer.iter().enumerate().all(|(index, &byte)| byte == index as u8 | 1));
        }
    }

    #[test]
    fn an_error_of_any_piece_is_the_result() {
        let read = |offset: u64, _: &mut [u8]| match offset {
            0 => Ok(()),
            _ => Err(crate::Error::NotFinite { name: "x".to_owned() }),
        };
        assert!(fill(0, &mut vec![0; 1 << 20], 4, &read).is_ok());
        assert!(fill(0, &mut vec![0; 3 << 20], 4, &read).is_err());
    }
}
