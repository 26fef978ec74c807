//! How a kernel is launched: its grid and its arguments.

use super::TensorMap;
use crate::{Check, Error, Result};
use bytemuck::Pod;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop, sys};
use std::ffi::c_void;

/// Grid, block, shared memory, cluster.
///
/// ```
/// use device::gpu::Launch;
/// let per_row = Launch::grid(960).block(256).shared(4096);
/// let tiles = Launch::grid([116, 4]).block(384).shared(200 * 1024).cluster(2).overlapping();
/// # let _ = (per_row, tiles);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    grid: [u32; 3],
    block: [u32; 3],
    pub(super) shared_bytes: u32,
    pub(super) shared_beside: bool,
    cluster: u32,
    overlapping: bool,
}

/// Sizes along x, y, z: one, two or three numbers.
pub trait Extent {
    /// x, y, z, with 1 where nothing was said.
    fn xyz(self) -> [u32; 3];
}

impl Extent for u32 {
    fn xyz(self) -> [u32; 3] {
        [self, 1, 1]
    }
}

impl Extent for [u32; 2] {
    fn xyz(self) -> [u32; 3] {
        [self[0], self[1], 1]
    }
}

impl Extent for [u32; 3] {
    fn xyz(self) -> [u32; 3] {
        self
    }
}

impl Launch {
    /// A grid of so many blocks of one warp.
    pub fn grid(blocks: impl Extent) -> Self {
        Self {
            grid: blocks.xyz(),
            block: [32, 1, 1],
            shared_bytes: 0,
            shared_beside: false,
            cluster: 1,
            overlapping: false,
        }
    }

    /// Threads of a block, at most 1024.
    pub fn block(self, threads: impl Extent) -> Self {
        Self { block: threads.xyz(), ..self }
    }

    /// Dynamic shared memory of a block in bytes, at most 227 KB with the static.
    pub fn shared(self, bytes: u32) -> Self {
        Self { shared_bytes: bytes, ..self }
    }

    /// All memory that a multiprocessor can share out is shared memory while the kernel runs, so that a block of another
    /// launch finds room beside one of this; else the driver leaves to the cache what this launch does not ask for.
    pub fn shared_beside(self) -> Self {
        Self { shared_beside: true, ..self }
    }

    /// Blocks of a cluster, along x: 1 to 8, and a divisor of the grid's x.
    pub fn cluster(self, blocks: u32) -> Self {
        Self { cluster: blocks, ..self }
    }

    /// Programmatic dependent launch: the kernel may start while the one before it in the stream drains. It must call
    /// `grid_wait_predecessor` (peregrine/sync.cuh) before it touches anything that one reads or writes.
    pub fn overlapping(self) -> Self {
        Self { overlapping: true, ..self }
    }

    pub(super) fn is_empty(self) -> bool {
        self.grid.contains(&0)
    }

    pub(super) fn check(self, kernel: &'static str) -> Result<()> {
        let check = Check(kernel);
        let threads = self.block.iter().map(|&n| u64::from(n)).product::<u64>();
        check.that(
            (1..=1024).contains(&threads),
            "block",
            "1 to 1024 threads",
            format_args!("{:?}", self.block),
        )?;
        let [_, y, z] = self.grid;
        let fits = self.grid[0] <= i32::MAX as u32 && y <= 65535 && z <= 65535;
        check.that(
            fits,
            "grid",
            "at most 2147483647, 65535, 65535 blocks",
            format_args!("{:?}", self.grid),
        )?;
        let divides = (1..=8).contains(&self.cluster) && self.grid[0].is_multiple_of(self.cluster);
        check.that(divides, "cluster", format_args!("1 to 8, dividing {}", self.grid[0]), self.cluster)
    }

    pub(super) fn attributes(self) -> Vec<sys::CUlaunchAttribute> {
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let mut attributes = Vec::new();
        if self.cluster > 1 {
            let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            let size = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: self.cluster, y: 1, z: 1 };
            attributes.push(attribute(id, sys::CUlaunchAttributeValue { clusterDim: size }));
        }
        if self.overlapping {
            let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            let allowed = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
            attributes.push(attribute(id, allowed));
        }
        attributes
    }

    /// The driver's form of this; it points at `attributes`.
    pub(super) fn config(
        self,
        stream: &CudaStream,
        attributes: &mut [sys::CUlaunchAttribute],
    ) -> sys::CUlaunchConfig {
        let ([gx, gy, gz], [bx, by, bz]) = (self.grid, self.block);
        sys::CUlaunchConfig {
            gridDimX: gx,
            gridDimY: gy,
            gridDimZ: gz,
            blockDimX: bx,
            blockDimY: by,
            blockDimZ: bz,
            sharedMemBytes: self.shared_bytes,
            hStream: stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        }
    }
}

/// A kernel's arguments, in the order of its parameters.
///
/// Slices may be `CudaSlice`, `CudaView` or `CudaViewMut`; they are borrowed as the kernel uses them, and become plain
/// pointers. cudarc's events are honoured where the context has them on.
pub struct Args<'a> {
    stream: &'a CudaStream,
    values: Vec<Value<'a>>,
    /// Record, when dropped behind the launch, that the stream uses the slices.
    guards: Vec<SyncOnDrop<'a>>,
}

/// One argument, to be copied by the driver.
enum Value<'a> {
    /// Up to eight bytes, in the order of memory.
    Bits { bytes: [u64; 1], size: usize },
    /// Larger ones are copied from where they lie.
    Struct(&'a [u8]),
}

impl<'a> Args<'a> {
    /// No arguments yet.
    pub fn new(stream: &'a CudaStream) -> Self {
        Self { stream, values: Vec::with_capacity(16), guards: Vec::with_capacity(8) }
    }

    /// A slice the kernel reads: `const T*`.
    pub fn input<T>(mut self, slice: &'a impl DevicePtr<T>) -> Self {
        let (address, guard) = slice.device_ptr(self.stream);
        self.guards.push(guard);
        self.value(address)
    }

    /// A slice the kernel writes, and may read: `T*`.
    pub fn output<T>(mut self, slice: &'a mut impl DevicePtrMut<T>) -> Self {
        let (address, guard) = slice.device_ptr_mut(self.stream);
        self.guards.push(guard);
        self.value(address)
    }

    /// A slice the kernel reads, or a null pointer.
    pub fn optional_input<T>(self, slice: Option<&'a impl DevicePtr<T>>) -> Self {
        match slice {
            Some(slice) => self.input(slice),
            None => self.value(0u64),
        }
    }

    /// A slice the kernel writes, or a null pointer.
    pub fn optional_output<T>(self, slice: Option<&'a mut impl DevicePtrMut<T>>) -> Self {
        match slice {
            Some(slice) => self.output(slice),
            None => self.value(0u64),
        }
    }

    /// A number (or a struct of at most eight bytes), by value.
    pub fn value<T: Pod>(mut self, value: T) -> Self {
        const { assert!(size_of::<T>() <= 8, "pass larger structs with `structure`") };
        let size = size_of::<T>();
        let mut bytes = [0u64];
        bytemuck::cast_slice_mut(&mut bytes)[..size].copy_from_slice(bytemuck::bytes_of(&value));
        self.values.push(Value::Bits { bytes, size });
        self
    }

    /// A `#[repr(C)]` struct, by value.
    pub fn structure<T: Pod>(mut self, value: &'a T) -> Self {
        self.values.push(Value::Struct(bytemuck::bytes_of(value)));
        self
    }

    /// A tensor map: `const __grid_constant__ CUtensorMap`.
    pub fn tensor_map(mut self, map: &'a TensorMap) -> Self {
        self.values.push(Value::Struct(map.bytes()));
        self
    }

    /// Compares number and sizes with the kernel's parameters.
    pub(super) fn check(&self, kernel: &'static str, parameters: &[usize]) -> Result<()> {
        let sizes: Vec<usize> = self.values.iter().map(Value::size).collect();
        let (expected, got) = (format!("parameters of {parameters:?} bytes"), format!("{sizes:?}"));
        let error = || -> Error { Check(kernel).error("args", expected, got) };
        if sizes == parameters { Ok(()) } else { Err(error()) }
    }

    /// Where each argument lies.
    pub(super) fn addresses(&self) -> Vec<*mut c_void> {
        let address = |value: &Value<'_>| match value {
            Value::Bits { bytes, .. } => bytes.as_ptr().cast_mut().cast(),
            Value::Struct(bytes) => bytes.as_ptr().cast_mut().cast(),
        };
        self.values.iter().map(address).collect()
    }
}

impl Value<'_> {
    fn size(&self) -> usize {
        match self {
            Value::Bits { size, .. } => *size,
            Value::Struct(bytes) => bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Launch;

    #[test]
    fn shapes_no_card_can_run_are_refused() {
        let message = |launch: Launch| launch.check("k").unwrap_err().to_string();
        assert!(Launch::grid(7).block(1024).check("k").is_ok());
        assert!(Launch::grid([8, 65535, 65535]).block([32, 4]).cluster(8).check("k").is_ok());
        assert_eq!(
            message(Launch::grid(1).block(1025)),
            "k: block: expected 1 to 1024 threads, got [1025, 1, 1]"
        );
        assert_eq!(message(Launch::grid(1).block(0)), "k: block: expected 1 to 1024 threads, got [0, 1, 1]");
        assert_eq!(
            message(Launch::grid([1, 65536])),
            "k: grid: expected at most 2147483647, 65535, 65535 blocks, got [1, 65536, 1]"
        );
        assert_eq!(message(Launch::grid(6).cluster(4)), "k: cluster: expected 1 to 8, dividing 6, got 4");
        assert_eq!(message(Launch::grid(32).cluster(16)), "k: cluster: expected 1 to 8, dividing 32, got 16");
        assert!(Launch::grid([4, 0]).is_empty());
    }

    #[test]
    fn only_what_was_asked_for_becomes_an_attribute() {
        assert!(Launch::grid(8).attributes().is_empty());
        assert_eq!(Launch::grid(8).cluster(2).attributes().len(), 1);
        assert_eq!(Launch::grid(8).cluster(2).overlapping().attributes().len(), 2);
    }
}
