//! The W4A16 kernel on the device.

use super::DeviceInt4Weights;
use super::schedule::{ABSENT, Schedule, Tiling};
use crate::pack::{BLOCK, Layout, UNIT, WINDOW};
use crate::{Int4Shape, W4A16};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use device::gpu::{
    Args, Cubin, Kernel, Launch, Swizzle, TensorMap, Tile, check_aligned, check_aligned_mut, check_len,
    multiprocessors, upload, zeros,
};
use device::{Element, Result};
use half::{bf16, f16};
use std::sync::Arc;

static CUBIN: Cubin = Cubin::new("w4a16_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/w4a16_sm90.cubin")));

/// The entry points of w4a16_sm90.cu with the same tile.
#[derive(Debug)]
struct Variant {
    bf16: Kernel,
    f16: Kernel,
    group_size: usize,
    /// Tokens of a tile.
    tokens: usize,
    /// The fewest output features it is chosen for.
    from_features: usize,
    /// With fewer, the fewest weights, in millions.
    or_weights: usize,
    /// Multiplying warpgroups of a block.
    multipliers: usize,
    /// Blocks of 64 features that each of them has.
    blocks: usize,
    /// Units of 128 input features on their way at once.
    stages: usize,
}

macro_rules! variants {
    ($($name:literal $group_size:literal $tokens:literal $from:literal $weights:tt $multipliers:literal $blocks:literal $stages:literal)*) => {
        [$(Variant {
            bf16: Kernel::new(&CUBIN, concat!("w4a16_bf16_", $name)),
            f16: Kernel::new(&CUBIN, concat!("w4a16_f16_", $name)),
            group_size: $group_size,
            tokens: $tokens,
            from_features: $from,
            or_weights: variants!(@least $weights),
            multipliers: $multipliers,
            blocks: $blocks,
            stages: $stages,
        }),*]
    };
    (@least none) => { usize::MAX };
    (@least $weights:literal) => { $weights };
}

/// In step with w4a16_sm90.cu. Of the narrowest tiles that hold the batch (or else the widest) the last whose output features or
/// weights are there: tiles of 512 features read activations half as often and ask for more weights at once, but more blocks share one.
static VARIANTS: [Variant; 14] = variants![
    // name       group_size  tokens   from  weights  multipliers  blocks  stages
    "g128_t8_f256"        128       8      0        0            4       1      12
    "g128_t8_f512"        128       8  12288      128            4       2       6
    "g128_t16_f256"       128      16      0        0            4       1      10
    "g128_t16_f512"       128      16  12288      128            4       2       5
    "g128_t32_f256"       128      32      0        0            4       1       8
    "g128_t32_f512"       128      32  32768     none            4       2       5
    "g128_t64_f256"       128      64      0        0            2       2       6
    "g128_t64_f512"       128      64  32768     none            2       4       4
    "g128_t128_f256"      128     128      0        0            2       2       4
    "g64_t8_f256"          64       8      0        0            4       1      11
    "g64_t16_f256"         64      16      0        0            4       1      10
    "g64_t32_f256"         64      32      0        0            4       1       8
    "g64_t64_f256"         64      64      0        0            2       2       6
    "g64_t128_f256"        64     128      0        0            2       2       4
];

/// Activations in a row of the 128-byte swizzle: half a unit.
const BOX: usize = UNIT / 2;

impl Variant {
    /// The fastest for a batch, by the measurements in the README.
    fn choose(shape: Int4Shape, tokens: usize) -> Option<&'static Self> {
        let (group_size, features) = (shape.group_size(), shape.out_features());
        let millions = features.saturating_mul(shape.in_features()) / 1_000_000;
        let fitting = VARIANTS.iter().filter(|variant| variant.group_size == group_size);
        let widest = fitting.clone().map(|variant| variant.tokens).max()?;
        let tile =
            fitting.clone().map(|variant| variant.tokens).find(|&tile| tile >= tokens).unwrap_or(widest);
        fitting.rev().find(|variant| {
            variant.tokens == tile && (variant.from_features <= features || variant.or_weights <= millions)
        })
    }

    fn threads(&self) -> u32 {
        128 * (1 + self.multipliers as u32)
    }

    /// Features of a tile.
    fn features(&self) -> usize {
        BLOCK * self.blocks * self.multipliers
    }

    /// As `Variant::kSharedBytes` of w4a16_plan.cuh: barriers, group sums of each stage, two windows of scales and zero points, stages
    /// of activations and codes.
    fn shared_bytes(&self, f16: bool) -> u32 {
        let tile_blocks = self.blocks * self.multipliers;
        let sums = if self.raw(f16) { UNIT / self.group_size * self.tokens * 4 } else { 0 };
        let window = tile_blocks * (WINDOW * BLOCK * 5 / 2);
        let stage = self.tokens * UNIT * 2 + tile_blocks * BLOCK * UNIT / 2;
        let before = (512 + self.stages * sums).next_multiple_of(1024) + (2 * window).next_multiple_of(1024);
        (before + self.stages * stage) as u32
    }

    /// As `Variant::kRaw` of w4a16_plan.cuh: whether codes are multiplied as they are.
    fn raw(&self, f16: bool) -> bool {
        !f16 && self.tokens <= 16
    }

    /// As `Variant::kByValue` of w4a16_plan.cuh: whether partials are awaited themselves, and not their flags.
    fn by_value(&self) -> bool {
        self.tokens <= 32
    }

    /// What one block may leave in the workspace.
    fn partial_floats(&self) -> usize {
        self.features() * self.tokens
    }
}

/// `packed::Work` of tiles.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Work {
    partials: u64,
    flags: u64,
    tokens: i32,
    features: i32,
    units: i32,
    windows: i32,
    stream_tiles: i32,
    panel_tiles: i32,
    share: i32,
    extra: i32,
}

/// `Problem` of w4a16_plan.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Problem {
    codes: u64,
    parameters: u64,
    bias: u64,
    output: u64,
    work: Work,
    output_f16: i32,
    weights_stream_once: i32,
}

/// What W4A16 products keep on a device between launches: partial sums of tiles that several blocks share, and their
/// flags. One serves all products on its stream. After a launch that failed make a new one.
#[derive(Debug)]
pub struct W4A16Workspace {
    stream: Arc<CudaStream>,
    partials: CudaSlice<f32>,
    /// Zero between launches.
    flags: CudaSlice<u32>,
    /// Partials of small tiles, [`ABSENT`] between launches.
    values: CudaSlice<u32>,
    multiprocessors: usize,
}

impl W4A16Workspace {
    /// Room for any W4A16 product on `stream`: 26 MB on an H200.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let multiprocessors = multiprocessors(stream)? as usize;
        let most = |by_value| {
            let variants = VARIANTS.iter().filter(move |variant| variant.by_value() == by_value);
            variants.map(Variant::partial_floats).max().unwrap_or(0)
        };
        let (partials, values) = (most(false), vec![ABSENT; multiprocessors * most(true)]);
        let flags = VARIANTS.iter().map(|variant| variant.multipliers).max().unwrap_or(0);
        Ok(Self {
            stream: stream.clone(),
            partials: zeros(stream, multiprocessors * partials, "partial sums of W4A16 products")?,
            flags: zeros(stream, multiprocessors * flags, "flags of W4A16 products")?,
            values: upload(stream, &values, "partial sums of small W4A16 products")?,
            multiprocessors,
        })
    }
}

/// A dtype of activations on the device: bf16 or f16.
pub trait Activation: sealed::Activation {}

impl Activation for bf16 {}
impl Activation for f16 {}

mod sealed {
    pub trait Activation: device::gpu::MapElement {
        /// Whether it is f16.
        const F16: bool;
    }
}

impl sealed::Activation for bf16 {
    const F16: bool = false;
}

impl sealed::Activation for f16 {
    const F16: bool = true;
}

impl W4A16 {
    /// The product on `stream`, for `group_size` 64 or 128 and `out_features` in multiples of 64.
    ///
    /// - `x` bf16 or f16 `[tokens, in_features]`, at a multiple of 16 bytes
    /// - `weights` of the plan's shape
    /// - `bias` f32 `[out_features]`
    /// - `y` bf16 or f16 `[tokens, out_features]`, at a multiple of 16 bytes
    ///
    /// No weight is rounded: `code - zero` is exact in 16 bits, or, up to 16 tokens of bf16, codes are multiplied as they are
    /// and zero points taken out by the sums of the activations' groups, in f32; activations from 2^63 on overflow there. Sums are
    /// promoted to f32 with their scale group by group.
    /// The same call gives the same bits; a row depends neither on the other rows nor on their number, as long as that takes
    /// tiles of the same width and as many of them.
    ///
    /// It may overlap the kernel before it in the stream (programmatic dependent launch): weights are read before that one
    /// has finished, so it must not be one that writes them, and the one behind this must wait for this where it is launched
    /// overlapping too, as all kernels of this workspace do.
    pub fn launch<X: Activation, Y: Element>(
        &self,
        stream: &Arc<CudaStream>,
        x: &impl DevicePtr<X>,
        weights: &DeviceInt4Weights,
        bias: Option<&impl DevicePtr<f32>>,
        workspace: &mut W4A16Workspace,
        y: &mut impl DevicePtrMut<Y>,
    ) -> Result<()> {
        let (check, shape) = (Self::CHECK, self.shape());
        check.that(matches!(Y::NAME, "bf16" | "f16"), "y", "elements of bf16 or f16", Y::NAME)?;
        let tokens = self.tokens(x.len())?;
        self.check_weights(weights.shape())?;
        if let Some(bias) = bias {
            check_len(check, "bias", bias, shape.out_features())?;
        }
        check_len(check, "y", y, check.product("y", &[tokens, shape.out_features()])?)?;
        check_aligned(check, "x", x, 16, stream)?;
        check_aligned_mut(check, "y", y, 16, stream)?;
        let own = workspace.stream.cu_stream() == stream.cu_stream();
        check.that(own, "workspace", "one made for this stream", "another stream's")?;
        let layout = Layout::new(shape)?;
        let (variant, schedule) = self.schedule(tokens, workspace.multiprocessors)?;
        if tokens == 0 {
            return Ok(());
        }

        let Layout { units, windows, .. } = layout;
        // The kernel counts in 32 bits: tokens, and units over all streamed tiles.
        let number = |argument, value: usize| {
            i32::try_from(value)
                .map_err(|_| check.error(argument, format_args!("at most {}", i32::MAX), value))
        };
        number("weights", schedule.stream_tiles.max(layout.blocks) * units)?;
        let tile = Tile {
            dims: &[shape.in_features() as u64, tokens as u64],
            strides: &[2 * shape.in_features() as u64],
            tile: &[BOX as u32, variant.tokens as u32],
            swizzle: Swizzle::Bytes128,
        };
        let x_map = TensorMap::new(stream, x, tile)?;
        // The guards say when the stream is done with a slice; they live until the launch.
        let (_, _x) = x.device_ptr(stream);
        let (bytes, _bytes) = weights.bytes().device_ptr(stream);
        let bias = bias.map(|bias| bias.device_ptr(stream));
        let (output, _output) = y.device_ptr_mut(stream);
        let (partials, _partials) = if variant.by_value() {
            workspace.values.device_ptr_mut(stream)
        } else {
            workspace.partials.device_ptr_mut(stream)
        };
        let (flags, _flags) = workspace.flags.device_ptr_mut(stream);
        let (share, extra) = schedule.shares(units);
        let problem = Problem {
            codes: bytes,
            parameters: bytes + layout.code_bytes() as u64,
            bias: bias.as_ref().map_or(0, |bias| bias.0),
            output,
            work: Work {
                partials,
                flags,
                tokens: number("x", tokens)?,
                features: number("weights", shape.out_features())?,
                units: number("weights", units)?,
                windows: number("weights", windows)?,
                stream_tiles: number("weights", schedule.stream_tiles)?,
                panel_tiles: number("x", schedule.panel_tiles())?,
                share: number("weights", share)?,
                extra: number("weights", extra)?,
            },
            output_f16: i32::from(Y::NAME == "f16"),
            weights_stream_once: i32::from(schedule.token_tiles == 1),
        };
        let launch =
            Launch::grid(schedule.grid as u32).block(variant.threads()).shared(variant.shared_bytes(X::F16));
        let args = Args::new(stream).tensor_map(&x_map).structure(&problem);
        let kernel = if X::F16 { &variant.f16 } else { &variant.bf16 };
        // SAFETY: the parameters are the kernel's tensor map and `Problem`, made of slices of this call whose lengths and
        // alignment were checked above; `weights` has the bytes of its shape by construction. The workspace has room for
        // what each block leaves, as the grid has at most one block a multiprocessor, and its flags are zero and its values
        // absent between the launches of its one stream.
        unsafe { kernel.launch(stream, launch.overlapping(), args) }
    }

    /// How a batch of `tokens` is cut up on so many multiprocessors, for `group_size` 64 or 128 and `out_features` in
    /// multiples of 64.
    pub fn tiling(&self, tokens: usize, multiprocessors: usize) -> Result<Tiling> {
        let (variant, schedule) = self.schedule(tokens, multiprocessors)?;
        Ok(schedule.tiling(variant.bf16.name()))
    }

    fn schedule(&self, tokens: usize, multiprocessors: usize) -> Result<(&'static Variant, Schedule)> {
        let shape = self.shape();
        let units = Layout::new(shape)?.units;
        let variant = Variant::choose(shape, tokens)
            .ok_or_else(|| Self::CHECK.error("group_size", "64 or 128", shape.group_size()))?;
        let tile = [variant.features(), variant.tokens];
        Ok((variant, Schedule::new(tile, shape.out_features(), tokens, units, multiprocessors)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::Schedule;
    use super::{VARIANTS, Variant};
    use crate::Int4Shape;

    #[test]
    fn the_narrowest_tile_that_holds_the_batch_is_chosen() {
        let chosen = |group_size, tokens, [out_features, in_features]: [usize; 2]| {
            let shape = Int4Shape::new(in_features, out_features, group_size).ok()?;
            let variant = Variant::choose(shape, tokens)?;
            Some((variant.tokens, variant.features()))
        };
        let [small, deep, square, wide] = [[8192, 8192], [8192, 28672], [14848, 14848], [57344, 8192]];
        for (tokens, tile) in [
            (0, 8),
            (1, 8),
            (8, 8),
            (9, 16),
            (16, 16),
            (17, 32),
            (33, 64),
            (65, 128),
            (129, 128),
            (4096, 128),
        ] {
            let up_to = |widest| Some((tile, if tile <= widest { 512 } else { 256 }));
            assert_eq!(chosen(128, tokens, small), up_to(0));
            assert_eq!(chosen(128, tokens, deep), up_to(16));
            assert_eq!(chosen(128, tokens, square), up_to(16));
            assert_eq!(chosen(128, tokens, wide), up_to(64));
            assert_eq!(chosen(64, tokens, wide), up_to(0));
        }
        assert_eq!(chosen(32, 1, [64, 64]), None);
        for variant in &VARIANTS {
            assert!(variant.shared_bytes(false) <= 227 * 1024, "{variant:?}");
        }
    }

    /// Every unit of every tile is somebody's: streamed tiles by the cut, whole ones by the stride of the grid.
    #[test]
    fn tiles_are_shared_out() {
        for variant in &VARIANTS {
            for (out_features, tokens, units) in
                [(64, 1, 1), (59392, 16, 116), (8192, 256, 64), (57344, 4096, 64)]
            {
                let schedule =
                    Schedule::new([variant.features(), variant.tokens], out_features, tokens, units, 132);
                let tiles = out_features.div_ceil(variant.features()) * schedule.token_tiles;
                assert!(schedule.stream_tiles <= tiles && (1..=132).contains(&schedule.grid));
                assert_eq!((tiles - schedule.stream_tiles) % schedule.grid, 0, "{schedule:?} of {tiles}");
                // A block's share of the streamed tiles is never empty.
                assert!(schedule.stream_tiles == 0 || schedule.stream_tiles * units >= schedule.grid);
            }
        }
    }
}
