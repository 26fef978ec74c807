//! The order of weights in device memory, as the W4A8 kernel copies them: long runs for a tile, one 16-byte load a thread
//! and fragment.
//!
//! ```text
//! out_features in blocks of 64 (b), blocks in stripes of 8 whose last may have fewer (m = min(8, blocks - 8 [b/8])),
//! in_features in units of 128 (u) and windows of 8 groups (v), the last of each padded with zeros:
//!
//!    codes of (b, u):       4096 bytes at 4096 (8 [b/8] units + u m + b % 8)
//!    parameters of (b, v):  1280 bytes at 4096 blocks units + 1280 (8 [b/8] windows + v m + b % 8)
//!                           [ scales, 8 x 64 f16 ][ zero points, 8 x 32 bytes ]
//!
//!    code of out_feature n = 16 w + 8 h + r of the block, in_feature k = 64 j + 32 i + 16 c + 4 t + e of the unit:
//!        byte 2048 j + 16 (32 w + 4 r + t) + 8 i + 4 c + e, nibble h (0 low, 1 high)
//!    scale of group g of the window:       f16 at 128 g + 4 (8 w + r) + 2 h
//!    zero point of group g of the window:  byte 1024 + 32 g + 8 w + r, nibble h
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
pub(crate) const BLOCK: usize = 64;
/// Input features to a unit.
pub(crate) const UNIT: usize = 128;
/// Groups to a window.
pub(crate) const WINDOW: usize = 8;
/// Blocks to a stripe.
const STRIPE: usize = 8;
/// Bytes of a block's unit of codes.
const CODE_BYTES: usize = BLOCK * UNIT / 2;
/// Bytes of the scales of a block's window.
const SCALE_BYTES: usize = WINDOW * BLOCK * 2;
/// Bytes of a block's window of scales and zero points.
const PARAMETER_BYTES: usize = SCALE_BYTES + WINDOW * BLOCK / 2;

/// INT4 weights in the order of the W4A8 kernel, as bytes to be copied to the device.
///
/// ```
/// use awq_gemm::{Int4Shape, PackedWeights, quantize};
/// let shape = Int4Shape::new(256, 64, 128)?;
/// let weights = quantize(shape, &vec![0.5; 256 * 64])?;
/// let packed = PackedWeights::pack(&weights)?;
/// assert_eq!(packed.bytes().len(), 2 * 4096 + 1280);
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
        let layout = Layout::new(shape)?;
        let scales = f16_scales(weights.scales())?;
        let mut bytes = vec![0; Self::bytes_of(shape)?];
        let (codes, parameters) = bytes.split_at_mut(layout.code_bytes());
        codes.par_chunks_mut(CODE_BYTES).enumerate().for_each(|(at, chunk)| {
            let (block, unit) = layout.place(at, layout.units);
            for n in 0..BLOCK {
                let row =
                    &weights.codes()[(block * BLOCK + n) * shape.in_features()..][..shape.in_features()];
                for (k, &code) in row[unit * UNIT..].iter().take(UNIT).enumerate() {
                    let (byte, shift) = code_at(n, k);
                    chunk[byte] |= code << shift;
                }
            }
        });
        parameters.par_chunks_mut(PARAMETER_BYTES).enumerate().for_each(|(at, chunk)| {
            let (block, window) = layout.place(at, layout.windows);
            for (n, g) in (0..BLOCK).flat_map(|n| (0..WINDOW).map(move |g| (n, g))) {
                if window * WINDOW + g < shape.groups() {
                    let group = (block * BLOCK + n) * shape.groups() + window * WINDOW + g;
                    chunk[scale_at(n, g)..][..2].copy_from_slice(&scales[group].to_le_bytes());
                    let (byte, shift) = zero_at(n, g);
                    chunk[byte] |= weights.zeros()[group] << shift;
                }
            }
        });
        Ok(Self { shape, bytes })
    }

    /// Takes over bytes in this order; padding is not looked at.
    pub fn from_bytes(shape: Int4Shape, bytes: Vec<u8>) -> Result<Self> {
        CHECK.len("bytes", &bytes, Self::bytes_of(shape)?)?;
        Ok(Self { shape, bytes })
    }

    /// How many bytes weights of `shape` take.
    pub fn bytes_of(shape: Int4Shape) -> Result<usize> {
        let Layout { blocks, units, windows } = Layout::new(shape)?;
        CHECK.product("out_features", &[blocks, units * CODE_BYTES + windows * PARAMETER_BYTES])
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
        let layout = Layout::new(shape)?;
        let (packed, parameters) = self.bytes.split_at(layout.code_bytes());
        let mut codes = vec![0; shape.out_features() * shape.in_features()];
        codes.par_chunks_mut(shape.in_features()).enumerate().for_each(|(n, codes)| {
            for (k, code) in codes.iter_mut().enumerate() {
                let chunk = layout.chunk(n / BLOCK, k / UNIT, layout.units);
                let (byte, shift) = code_at(n % BLOCK, k % UNIT);
                *code = packed[chunk * CODE_BYTES + byte] >> shift & 0xf;
            }
        });
        let (mut zeros, mut scales) = (Vec::new(), Vec::new());
        for n in 0..shape.out_features() {
            for group in 0..shape.groups() {
                let chunk = layout.chunk(n / BLOCK, group / WINDOW, layout.windows);
                let chunk = &parameters[chunk * PARAMETER_BYTES..][..PARAMETER_BYTES];
                let (byte, shift) = zero_at(n % BLOCK, group % WINDOW);
                zeros.push(chunk[byte] >> shift & 0xf);
                let at = scale_at(n % BLOCK, group % WINDOW);
                scales.push(f16::from_le_bytes([chunk[at], chunk[at + 1]]).to_f32());
            }
        }
        Int4Weights::new(shape, codes, zeros, scales)
    }
}

/// Scales as packed weights have them; an error where f16 cannot hold one exactly.
pub fn f16_scales(scales: &[f32]) -> Result<Vec<f16>> {
    let exact = |&scale: &f32| {
        let narrow = f16::from_f32(scale);
        CHECK.that(narrow.to_f32() == scale, "scales", "numbers that f16 holds exactly", scale)?;
        Ok(narrow)
    };
    scales.iter().map(exact).collect()
}

/// How many chunks there are, and in which order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub blocks: usize,
    pub units: usize,
    pub windows: usize,
}

impl Layout {
    pub fn new(shape: Int4Shape) -> Result<Self> {
        let group_size = shape.group_size();
        let expected = "64 or 128 (Int4Weights::split_groups makes them of wider ones)";
        CHECK.that(group_size == 64 || group_size == 128, "group_size", expected, group_size)?;
        let whole = shape.out_features().is_multiple_of(BLOCK);
        let expected = "a multiple of 64 (append rows whose codes, zeros and scales are 0)";
        CHECK.that(whole, "out_features", expected, shape.out_features())?;
        Ok(Self {
            blocks: shape.out_features() / BLOCK,
            units: shape.in_features().div_ceil(UNIT),
            windows: shape.groups().div_ceil(WINDOW),
        })
    }

    /// Bytes of all codes; scales and zero points follow.
    pub fn code_bytes(self) -> usize {
        self.blocks * self.units * CODE_BYTES
    }

    /// Which chunk, of `count` along the input features, the one of `block` at `index` is.
    fn chunk(self, block: usize, index: usize, count: usize) -> usize {
        let stripe = block / STRIPE * STRIPE;
        stripe * count + index * STRIPE.min(self.blocks - stripe) + block - stripe
    }

    /// The inverse of [`Self::chunk`].
    fn place(self, chunk: usize, count: usize) -> (usize, usize) {
        let stripe = chunk / (STRIPE * count) * STRIPE;
        let (inside, width) = (chunk - stripe * count, STRIPE.min(self.blocks - stripe));
        (stripe + inside % width, inside / width)
    }
}

/// An output feature of a block as its thread sees it: warp, half, row.
fn split(n: usize) -> (usize, usize, usize) {
    (n / 16, n / 8 % 2, n % 8)
}

/// Byte and shift of the code of output feature `n` (0..64) and input feature `k` (0..128) in their unit.
fn code_at(n: usize, k: usize) -> (usize, usize) {
    let (w, h, r) = split(n);
    let (j, i, c, t, e) = (k / 64, k / 32 % 2, k / 16 % 2, k / 4 % 4, k % 4);
    (2048 * j + 16 * (32 * w + 4 * r + t) + 8 * i + 4 * c + e, 4 * h)
}

/// Byte of the scale of output feature `n` and group `g` in their window.
fn scale_at(n: usize, g: usize) -> usize {
    let (w, h, r) = split(n);
    2 * BLOCK * g + 4 * (8 * w + r) + 2 * h
}

/// Byte and shift of the zero point of output feature `n` and group `g` in their window.
fn zero_at(n: usize, g: usize) -> (usize, usize) {
    let (w, h, r) = split(n);
    (SCALE_BYTES + BLOCK / 2 * g + 8 * w + r, 4 * h)
}
