//! W4A8 products of large batches: weights are widened into the workspace, as many at a time as it holds, and multiplied from there.

use super::DeviceInt4Weights;
use super::schedule::{Schedule, Tiling};
use super::w4a8::W4A8Workspace;
use crate::pack::{BLOCK, Layout, UNIT};
use crate::{Int4Shape, W4A8};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use device::gpu::{Args, Cubin, Kernel, Launch, Swizzle, TensorMap, Tile};
use device::{E4m3, Element, QuantizedActivation, Result};
use std::sync::Arc;

static CUBIN: Cubin =
    Cubin::new("w4a8_widened_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/w4a8_widened_sm90.cubin")));
static WIDEN: Kernel = Kernel::new(&CUBIN, "w4a8_g128_widen");
static PRODUCT: Kernel = Kernel::new(&CUBIN, "w4a8_g128_widened_t256_f128");

/// The smallest batch for which widening once costs less than widening beside the products.
const FROM_TOKENS: usize = 2048;
/// Room for widened weights: steps of it are long enough for their starts not to matter.
pub(super) const DEFAULT_BYTES: usize = 512 << 20;

// As `Widened` of w4a8_widened.cuh and the constants of w4a8_widen.cuh.
const TOKENS: usize = 256;
const TILE_BLOCKS: usize = 2;
const CLUSTER: usize = 2;
const STAGES: usize = 4;
const MULTIPLIERS: usize = 2;
const RECORD_BYTES: usize = TILE_BLOCKS * (BLOCK * UNIT + BLOCK * 4);
/// Blocks of the widening kernel to a multiprocessor.
const WIDENING_BLOCKS: usize = 4;

/// The output features of one tile of a cluster.
const STEP_FEATURES: usize = TILE_BLOCKS * BLOCK * CLUSTER;

fn shared_bytes() -> u32 {
    (1024 + STAGES * (TOKENS * UNIT + RECORD_BYTES).next_multiple_of(1024)) as u32
}

fn widening_shared_bytes() -> u32 {
    2 * RECORD_BYTES.next_multiple_of(1024) as u32
}

/// `WidenProblem` of w4a8_widen.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Widen {
    codes: u64,
    parameters: u64,
    records: u64,
    first_block: i32,
    end_block: i32,
    all_blocks: i32,
    units: i32,
    windows: i32,
    padding: i32,
}

/// `WidenedProblem` of w4a8_widened.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Product {
    records: u64,
    token_scales: u64,
    bias: u64,
    output: u64,
    partials: u64,
    flags: u64,
    tokens: i32,
    features: i32,
    row_features: i32,
    units: i32,
    stream_tiles: i32,
    panel_tiles: i32,
    output_f16: i32,
    padding: i32,
}

/// Whether a batch goes this way.
pub(super) fn is_chosen(shape: Int4Shape, tokens: usize) -> bool {
    shape.group_size() == 128 && tokens >= FROM_TOKENS
}

/// Output features that are widened at a time, evenly many in each step but the last: whole tiles of clusters; none where
/// `bytes` are too few for one.
fn step_features(out_features: usize, units: usize, bytes: usize) -> Option<usize> {
    let tiles = out_features.div_ceil(STEP_FEATURES).max(1);
    let most = bytes / (CLUSTER * units * RECORD_BYTES);
    (most > 0).then(|| tiles.div_ceil(tiles.div_ceil(most)) * STEP_FEATURES)
}

fn schedule(features: usize, tokens: usize, units: usize, multiprocessors: usize) -> Schedule {
    Schedule::new([STEP_FEATURES, TOKENS], features, tokens, units, (multiprocessors / CLUSTER).max(1))
}

/// How a batch is cut up, were all weights widened at a time; steps are cut as the output features are, whatever the batch.
pub(super) fn tiling(shape: Int4Shape, tokens: usize, multiprocessors: usize) -> Result<Tiling> {
    let units = Layout::new(shape)?.units;
    let tiling = schedule(shape.out_features(), tokens, units, multiprocessors).tiling(PRODUCT.name());
    Ok(Tiling { blocks: tiling.blocks * CLUSTER, ..tiling })
}

impl W4A8 {
    /// The product of operands that `launch` has checked.
    pub(super) fn launch_widened<Y: Element>(
        &self,
        stream: &Arc<CudaStream>,
        x: &QuantizedActivation<impl DevicePtr<E4m3>, impl DevicePtr<f32>>,
        weights: &DeviceInt4Weights,
        bias: Option<&impl DevicePtr<f32>>,
        workspace: &mut W4A8Workspace,
        y: &mut impl DevicePtrMut<Y>,
    ) -> Result<()> {
        let (check, shape, tokens) = (Self::CHECK, self.shape(), x.shape.tokens);
        let layout = Layout::new(shape)?;
        let Layout { blocks, units, windows } = layout;
        let room = workspace.widened.len();
        let step = step_features(shape.out_features(), units, room).ok_or_else(|| {
            let least = CLUSTER * units * RECORD_BYTES;
            check.error("workspace", format_args!("room for {least} bytes of widened weights"), room)
        })?;
        // The kernel counts in 32 bits.
        let number = |argument, value: usize| {
            i32::try_from(value)
                .map_err(|_| check.error(argument, format_args!("at most {}", i32::MAX), value))
        };
        let tile = Tile {
            dims: &[shape.in_features() as u64, tokens as u64],
            strides: &[shape.in_features() as u64],
            tile: &[UNIT as u32, (TOKENS / CLUSTER) as u32],
            swizzle: Swizzle::Bytes128,
        };
        let x_map = TensorMap::new(stream, &x.codes, tile)?;
        // The guards say when the stream is done with a slice; they live until the last launch.
        let (_, _codes) = x.codes.device_ptr(stream);
        let (token_scales, _scales) = x.scales.device_ptr(stream);
        let (bytes, _bytes) = weights.bytes().device_ptr(stream);
        let bias = bias.map(|bias| bias.device_ptr(stream));
        let (output, _output) = y.device_ptr_mut(stream);
        let (partials, _partials) = workspace.partials.device_ptr_mut(stream);
        let (flags, _flags) = workspace.flags.device_ptr_mut(stream);
        let (records, _records) = workspace.widened.device_ptr_mut(stream);
        for first in (0..shape.out_features()).step_by(step) {
            let features = step.min(shape.out_features() - first);
            let widen = Widen {
                codes: bytes,
                parameters: bytes + layout.code_bytes() as u64,
                records,
                first_block: number("weights", first / BLOCK)?,
                end_block: number("weights", (first + features) / BLOCK)?,
                all_blocks: number("weights", blocks)?,
                units: number("weights", units)?,
                windows: number("weights", windows)?,
                padding: 0,
            };
            let grid = (features.div_ceil(TILE_BLOCKS * BLOCK) * units)
                .min(WIDENING_BLOCKS * workspace.multiprocessors);
            let launch = Launch::grid(grid as u32)
                .block(128 * TILE_BLOCKS as u32)
                .shared(widening_shared_bytes())
                .overlapping();
            // SAFETY: `weights` has the bytes of its shape by construction, of which these blocks are; the records of a step
            // fit the workspace by `step_features`, and the kernel before, which may read them, is waited for.
            unsafe { WIDEN.launch(stream, launch, Args::new(stream).structure(&widen)) }?;

            let schedule = schedule(features, tokens, units, workspace.multiprocessors);
            number("weights", schedule.stream_tiles.max(layout.blocks) * units)?;
            let product = Product {
                records,
                token_scales,
                bias: bias.as_ref().map_or(0, |bias| bias.0 + 4 * first as u64),
                output: output + 2 * first as u64,
                partials,
                flags,
                tokens: number("x.shape.tokens", tokens)?,
                features: number("weights", features)?,
                row_features: number("weights", shape.out_features())?,
                units: number("weights", units)?,
                stream_tiles: number("weights", schedule.stream_tiles)?,
                panel_tiles: number("x.shape.tokens", schedule.panel_tiles())?,
                output_f16: i32::from(Y::NAME == "f16"),
                padding: 0,
            };
            let launch = Launch::grid((schedule.grid * CLUSTER) as u32)
                .cluster(CLUSTER as u32)
                .block(128 * (1 + MULTIPLIERS as u32))
                .shared(shared_bytes())
                .overlapping();
            let args = Args::new(stream).tensor_map(&x_map).structure(&product);
            // SAFETY: the parameters are the kernel's tensor map and `WidenedProblem`, made of slices of this call whose
            // lengths and alignment `launch` checked, and of records that the kernel before has written. The workspace has
            // room for what each block leaves, as a block of the other tiles leaves as much, and its flags are zero between
            // the launches of its one stream.
            unsafe { PRODUCT.launch(stream, launch, args) }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{CLUSTER, RECORD_BYTES, STEP_FEATURES, shared_bytes, step_features};

    #[test]
    fn steps_fit_and_are_even() {
        assert!(shared_bytes() <= 227 * 1024);
        for out_features in [64, 256, 320, 8192, 14848, 59392] {
            for units in [1, 64, 116, 464] {
                let tile = CLUSTER * units * RECORD_BYTES;
                assert_eq!(step_features(out_features, units, tile - 1), None);
                for bytes in [tile, 3 * tile, 512 << 20] {
                    let step = step_features(out_features, units, bytes).unwrap();
                    assert!(step.is_multiple_of(STEP_FEATURES));
                    assert!(step / STEP_FEATURES * tile <= bytes, "{out_features} {units} {bytes}");
                    // No fewer steps would do.
                    let steps = out_features.div_ceil(step);
                    let least = out_features.div_ceil(STEP_FEATURES).div_ceil(bytes / tile);
                    assert!(steps <= least, "{steps} steps of {step} where {least} do");
                }
            }
        }
    }
}
