//! The order of weights in device memory, as the W4A8 kernel copies them: one bulk copy a unit, one 16-byte load a
//! thread and fragment.
//!
//! ```text
//! out_features in blocks of 64 (b), in_features in units of 128 (u, the last one padded); unit (b, u) starts at byte
//! (b * units + u) * unit_bytes, with G = 128 / group_size groups to a unit:
//!
//!    [ codes, 4096 bytes ][ scales, G x 64 f16 ][ zero points, G x 32 bytes ]
//!
//!    code of out_feature n = 16 w + 8 h + r, in_feature k = 64 j + 32 i + 16 c + 4 t + e of the unit:
//!        byte 2048 j + 16 (32 w + 4 r + t) + 8 i + 4 c + e, nibble h (0 low, 1 high)
//!    scale of group g:       f16 at 4096 + 128 g + 4 (8 w + r) + 2 h
//!    zero point of group g:  byte 4096 + 128 G + 32 g + 8 w + r, nibble h
//! ```
//!
//! Thread 32 w + 4 r + t of a warpgroup holds rows r and r + 8 of the tensor core's register operand: with row r in low
//! nibbles and row r + 8 in high ones, each 32-bit word is a whole register of either after one mask.

use crate::{Int4Shape, Int4Weights};
use device::{Check, Result};
use half::f16;
use rayon::prelude::*;

const CHECK: Check = Check("pack");

/// Output features to a block.
const BLOCK: usize = 64;
/// Input features to a unit.
const UNIT: usize = 128;
/// Bytes of a unit's codes.
const CODE_BYTES: usize = BLOCK * UNIT / 2;

/// INT4 weights in the order of the W4A8 kernel, as bytes to be copied to the device.
///
/// ```
/// use awq_gemm::{Int4Shape, PackedWeights, quantize};
/// let shape = Int4Shape::new(256, 64, 128)?;
/// let weights = quantize(shape, &vec![0.5; 256 * 64])?;
/// let packed = PackedWeights::pack(&weights)?;
/// assert_eq!(packed.bytes().len(), 2 * (4096 + 128 + 32));
/// assert_eq!(packed.unpack()?, weights);
/// # Ok::<(), device::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedWeights {
    shape: Int4Shape,
    bytes: Vec<u8>,
}

impl PackedWeights {
    /// Packs `weights`: `group_size` 64 or 128, `in_features` in multiples of it, `out_features` in multiples of 64,
    /// scales that f16 holds exactly.
    pub fn pack(weights: &Int4Weights) -> Result<Self> {
        let shape = weights.shape();
        let unit = Unit::new(shape)?;
        let mut bytes = vec![0; Self::bytes_of(shape)?];
        let (units, groups) = (shape.in_features().div_ceil(UNIT), shape.groups());
        bytes.par_chunks_mut(unit.bytes).enumerate().try_for_each(|(at, bytes)| {
            let (row, k) = (at / units * BLOCK, at % units * UNIT);
            for n in 0..BLOCK {
                let codes = &weights.codes()[(row + n) * shape.in_features()..][..shape.in_features()];
                for (k, &code) in codes[k..].iter().take(UNIT).enumerate() {
                    let (byte, shift) = Unit::code(n, k);
                    bytes[byte] |= code << shift;
                }
                // A unit that is padded has fewer groups; those beyond stay zero, and so do their codes.
                let first = k / shape.group_size();
                for g in 0..unit.groups.min(groups - first) {
                    let group = (row + n) * groups + first + g;
                    let scale = f16::from_f32(weights.scales()[group]);
                    let exact = scale.to_f32() == weights.scales()[group];
                    CHECK.that(exact, "scales", "numbers that f16 holds exactly", weights.scales()[group])?;
                    let at = Unit::scale(n, g);
                    bytes[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                    let (byte, shift) = unit.zero(n, g);
                    bytes[byte] |= weights.zeros()[group] << shift;
                }
            }
            device::Result::Ok(())
        })?;
        Ok(Self { shape, bytes })
    }

    /// Takes over bytes in this order; padding is not looked at.
    pub fn from_bytes(shape: Int4Shape, bytes: Vec<u8>) -> Result<Self> {
        CHECK.len("bytes", &bytes, Self::bytes_of(shape)?)?;
        Ok(Self { shape, bytes })
    }

    /// How many bytes weights of `shape` take.
    pub fn bytes_of(shape: Int4Shape) -> Result<usize> {
        let (blocks, units) = (shape.out_features() / BLOCK, shape.in_features().div_ceil(UNIT));
        CHECK.product("out_features", &[blocks, units, Unit::new(shape)?.bytes])
    }

    /// The shape.
    pub fn shape(&self) -> Int4Shape {
        self.shape
    }

    /// The bytes, to be copied to the device.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The weights: the inverse of [`Self::pack`].
    pub fn unpack(&self) -> Result<Int4Weights> {
        let shape = self.shape;
        let unit = Unit::new(shape)?;
        let (units, groups) = (shape.in_features().div_ceil(UNIT), shape.groups());
        let unit_of =
            |n: usize, k: usize| &self.bytes[(n / BLOCK * units + k / UNIT) * unit.bytes..][..unit.bytes];
        let mut codes = vec![0; shape.out_features() * shape.in_features()];
        codes.par_chunks_mut(shape.in_features()).enumerate().for_each(|(n, codes)| {
            for (k, code) in codes.iter_mut().enumerate() {
                let (byte, shift) = Unit::code(n % BLOCK, k % UNIT);
                *code = unit_of(n, k)[byte] >> shift & 0xf;
            }
        });
        let all_groups = || (0..shape.out_features()).flat_map(|n| (0..groups).map(move |group| (n, group)));
        let zero = |(n, group): (usize, usize)| {
            let (byte, shift) = unit.zero(n % BLOCK, group % unit.groups);
            unit_of(n, group * shape.group_size())[byte] >> shift & 0xf
        };
        let scale = |(n, group): (usize, usize)| {
            let (bytes, at) =
                (unit_of(n, group * shape.group_size()), Unit::scale(n % BLOCK, group % unit.groups));
            f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
        };
        Int4Weights::new(shape, codes, all_groups().map(zero).collect(), all_groups().map(scale).collect())
    }
}

/// Where things lie in a unit.
#[derive(Debug, Clone, Copy)]
struct Unit {
    groups: usize,
    bytes: usize,
}

impl Unit {
    fn new(shape: Int4Shape) -> Result<Self> {
        let group_size = shape.group_size();
        let expected = "64 or 128 (Int4Weights::split_groups makes them of wider ones)";
        CHECK.that(group_size == 64 || group_size == 128, "group_size", expected, group_size)?;
        let whole = shape.out_features().is_multiple_of(BLOCK);
        let expected = "a multiple of 64 (append rows whose codes, zeros and scales are 0)";
        CHECK.that(whole, "out_features", expected, shape.out_features())?;
        let groups = UNIT / group_size;
        Ok(Self { groups, bytes: CODE_BYTES + groups * (2 * BLOCK + BLOCK / 2) })
    }

    /// Byte and shift of the code of output feature `n` (0..64) and input feature `k` (0..128).
    fn code(n: usize, k: usize) -> (usize, usize) {
        let (w, h, r) = (n / 16, n / 8 % 2, n % 8);
        let (j, i, c, t, e) = (k / 64, k / 32 % 2, k / 16 % 2, k / 4 % 4, k % 4);
        (2048 * j + 16 * (32 * w + 4 * r + t) + 8 * i + 4 * c + e, 4 * h)
    }

    /// Byte of the scale of output feature `n` in group `g` of the unit.
    fn scale(n: usize, g: usize) -> usize {
        let (w, h, r) = (n / 16, n / 8 % 2, n % 8);
        CODE_BYTES + 2 * BLOCK * g + 4 * (8 * w + r) + 2 * h
    }

    /// Byte and shift of the zero point of output feature `n` in group `g` of the unit.
    fn zero(self, n: usize, g: usize) -> (usize, usize) {
        let (w, h, r) = (n / 16, n / 8 % 2, n % 8);
        (CODE_BYTES + 2 * BLOCK * self.groups + BLOCK / 2 * g + 8 * w + r, 4 * h)
    }
}
