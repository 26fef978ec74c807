//! Descriptors for the tensor memory accelerator: which tensor, which tiles of it, how they land in shared memory.

use super::DriverResult;
use crate::{Check, E4m3, Result};
use cudarc::driver::{CudaStream, DevicePtr, sys};
use half::{bf16, f16};

/// A descriptor of a tensor in device memory, passed to a kernel by value ([`super::Args::tensor_map`]).
///
/// It holds a plain address: the memory must stay allocated while kernels use it, which is part of their launch contract.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct TensorMap(sys::CUtensorMap);

// The engine reads descriptors at multiples of 64 bytes.
const _: () = assert!(align_of::<TensorMap>() >= 64 && size_of::<TensorMap>() == 128);

/// How a tile's rows are permuted in shared memory, against bank conflicts: the width of the pattern, which is also the
/// largest inner size of the tile in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    /// Rows as they are.
    None,
    /// 16-byte chunk `c` of row `r` lands at `c ^ (r / 4 % 2)`.
    Bytes32,
    /// At `c ^ (r / 2 % 4)`.
    Bytes64,
    /// At `c ^ (r % 8)`: what `wgmma` reads without conflicts.
    Bytes128,
}

/// A tensor cut into tiles. All lists go from the innermost dimension outwards.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    /// Elements along each of the 1 to 5 dimensions.
    pub dims: &'a [u64],
    /// Bytes from one element to the next along each dimension but the innermost: multiples of 16.
    pub strides: &'a [u64],
    /// Elements of a tile along each dimension, at most 256; the innermost fills a multiple of 16 bytes.
    pub tile: &'a [u32],
    /// How the tile lands in shared memory.
    pub swizzle: Swizzle,
}

mod sealed {
    pub trait Sealed {}
}

/// An element type the engine knows. Its width is what matters; out of bounds it fills with zeros.
pub trait MapElement: sealed::Sealed {
    #[doc(hidden)]
    const TYPE: sys::CUtensorMapDataType;
}

macro_rules! map_element {
    ($($type:ty => $name:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl MapElement for $type {
            const TYPE: sys::CUtensorMapDataType = sys::CUtensorMapDataType::$name;
        }
    )*};
}

map_element!(
    u8 => CU_TENSOR_MAP_DATA_TYPE_UINT8,
    E4m3 => CU_TENSOR_MAP_DATA_TYPE_UINT8,
    bf16 => CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    f16 => CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    f32 => CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    u32 => CU_TENSOR_MAP_DATA_TYPE_UINT32
);

impl TensorMap {
    /// Describes `slice`, which must hold the whole tensor and start at a multiple of 16 bytes.
    pub fn new<T: MapElement>(
        stream: &CudaStream,
        slice: &impl DevicePtr<T>,
        tile: Tile<'_>,
    ) -> Result<Self> {
        tile.check(size_of::<T>() as u64, slice.len() as u64)?;
        let (address, _guard) = slice.device_ptr(stream);
        let check = Check("tensor_map");
        check.that(
            address.is_multiple_of(16),
            "slice",
            "an address aligned to 16 bytes",
            format_args!("{address:#x}"),
        )?;
        let swizzle = match tile.swizzle {
            Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Bytes32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::Bytes64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let every_element = [1u32; 5];
        let mut map = Self(sys::CUtensorMap { opaque: [0; 16] });
        // SAFETY: the lists have as many entries as the rank says (checked above; one stride fewer), and the driver
        // writes one descriptor to a place that is one. It does not touch the tensor.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map.0,
                T::TYPE,
                tile.dims.len() as u32,
                address as *mut _,
                tile.dims.as_ptr(),
                tile.strides.as_ptr(),
                tile.tile.as_ptr(),
                every_element.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        status.result().named("cuTensorMapEncodeTiled")?;
        Ok(map)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        bytemuck::bytes_of(&self.0.opaque)
    }
}

impl Tile<'_> {
    /// What the engine asks for, and that the tensor lies inside `len` elements of `width` bytes.
    fn check(self, width: u64, len: u64) -> Result<()> {
        let check = Check("tensor_map");
        let rank = self.dims.len();
        check.that((1..=5).contains(&rank), "dims", "1 to 5 dimensions", rank)?;
        check.that(
            self.strides.len() == rank - 1,
            "strides",
            format_args!("{} strides", rank - 1),
            self.strides.len(),
        )?;
        check.that(self.tile.len() == rank, "tile", format_args!("{rank} sizes"), self.tile.len())?;
        let sizes = |ok: bool, argument, expected: &str, got: &dyn std::fmt::Debug| {
            check.that(ok, argument, expected, format_args!("{got:?}"))
        };
        let dims = self.dims.iter().all(|&n| (1..=1 << 32).contains(&n));
        sizes(dims, "dims", "1 to 2^32 elements each", &self.dims)?;
        let strides = self.strides.iter().all(|&bytes| bytes.is_multiple_of(16) && bytes < 1 << 40);
        sizes(strides, "strides", "multiples of 16 bytes below 2^40", &self.strides)?;
        sizes(self.tile.iter().all(|n| (1..=256).contains(n)), "tile", "1 to 256 elements each", &self.tile)?;
        let inner = self.tile.first().map_or(0, |&n| u64::from(n) * width);
        let limit = match self.swizzle {
            Swizzle::None => u64::MAX,
            Swizzle::Bytes32 => 32,
            Swizzle::Bytes64 => 64,
            Swizzle::Bytes128 => 128,
        };
        let ok = inner.is_multiple_of(16) && inner <= limit;
        check.that(
            ok,
            "tile",
            "an inner size of a multiple of 16 bytes within the swizzle",
            format_args!("{inner} bytes"),
        )?;
        // Bytes from the first to behind the last element; below 6 * 2^72, so in 128 bits.
        let steps = std::iter::once(&width).chain(self.strides);
        let span: u128 =
            self.dims.iter().zip(steps).map(|(&n, &step)| u128::from(n - 1) * u128::from(step)).sum();
        let held = u128::from(len) * u128::from(width);
        let needed = span + u128::from(width);
        check.that(needed <= held, "slice", format_args!("at least {needed} bytes"), held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_the_engine_cannot_copy_are_refused() {
        let good =
            Tile { dims: &[8192, 100], strides: &[8192], tile: &[128, 64], swizzle: Swizzle::Bytes128 };
        let message = |tile: Tile<'_>, len| tile.check(1, len).unwrap_err().to_string();
        assert!(good.check(1, 819_200).is_ok());
        assert_eq!(message(good, 819_199), "tensor_map: slice: expected at least 819200 bytes, got 819199");
        assert_eq!(
            message(Tile { dims: &[], ..good }, 1),
            "tensor_map: dims: expected 1 to 5 dimensions, got 0"
        );
        assert_eq!(
            message(Tile { strides: &[], ..good }, 1),
            "tensor_map: strides: expected 1 strides, got 0"
        );
        assert_eq!(message(Tile { tile: &[64], ..good }, 1), "tensor_map: tile: expected 2 sizes, got 1");
        assert_eq!(
            message(Tile { dims: &[8192, 0], ..good }, 1),
            "tensor_map: dims: expected 1 to 2^32 elements each, got [8192, 0]"
        );
        assert_eq!(
            message(Tile { strides: &[8200], ..good }, 1),
            "tensor_map: strides: expected multiples of 16 bytes below 2^40, got [8200]"
        );
        assert_eq!(
            message(Tile { tile: &[128, 257], ..good }, 1),
            "tensor_map: tile: expected 1 to 256 elements each, got [128, 257]"
        );
        assert_eq!(
            message(Tile { tile: &[256, 64], ..good }, 1),
            "tensor_map: tile: expected an inner size of a multiple of 16 bytes within the swizzle, got 256 bytes"
        );
    }
}
