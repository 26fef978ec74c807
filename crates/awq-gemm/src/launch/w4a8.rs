//! The W4A8 kernel on the device.

use super::DeviceInt4Weights;
use super::schedule::{ABSENT, Schedule, Tiling};
use super::w4a8_widened::{self as widened, DEFAULT_BYTES};
use crate::W4A8;
use crate::pack::{BLOCK, Layout, UNIT, WINDOW};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use device::gpu::{
    Args, Cubin, Kernel, Launch, Swizzle, TensorMap, Tile, check_aligned, check_aligned_mut, check_len,
    multiprocessors, upload, zeros,
};
use device::{E4m3, Element, QuantizedActivation, Result};
use std::sync::Arc;

static CUBIN: Cubin = Cubin::new("w4a8_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/w4a8_sm90.cubin")));

/// One entry point of w4a8_sm90.cu.
#[derive(Debug)]
struct Variant {
    kernel: Kernel,
    group_size: usize,
    /// The largest batch it is chosen for.
    up_to: usize,
    /// The fewest output features it is chosen for.
    from_features: usize,
    /// Tokens of a tile.
    tokens: usize,
    /// Multiplying warpgroups of a block.
    multipliers: usize,
    /// Blocks of 64 features that each of them has.
    blocks: usize,
    /// Units of 128 input features on their way at once.
    stages: usize,
    /// Blocks side by side that share the activations they read.
    cluster: usize,
    /// Blocks that a multiprocessor has room for.
    resident: u32,
}

macro_rules! variants {
    ($($name:literal $group_size:literal $up_to:tt $from:literal $tokens:literal $multipliers:literal $blocks:literal $stages:literal $cluster:literal $resident:literal)*) => {
        [$(Variant {
            kernel: Kernel::new(&CUBIN, $name),
            group_size: $group_size,
            up_to: variants!(@limit $up_to),
            from_features: $from,
            tokens: $tokens,
            multipliers: $multipliers,
            blocks: $blocks,
            stages: $stages,
            cluster: $cluster,
            resident: $resident,
        }),*]
    };
    (@limit any) => { usize::MAX };
    (@limit $tokens:literal) => { $tokens };
}

/// In step with w4a8_sm90.cu. A product takes the first row of its group size that its batch and output features fit: the
/// fastest by measurement (benches/records/notes-w4a8.md). A tile of 256 tokens takes 1.8 times one of 128, so an odd number of those is
/// the better choice for a while.
static VARIANTS: [Variant; 18] = variants![
    // name              group_size  up_to   from  tokens  multipliers  blocks  stages  cluster  resident
    "w4a8_g128_t8_f256"          128      8      0       8            2       2       5        1         2
    "w4a8_g128_t16_f512"         128     16  32768      16            4       2       6        1         1
    "w4a8_g128_t16_f256"         128     16      0      16            2       2       5        1         2
    "w4a8_g128_t32_f512"         128     32  32768      32            4       2       5        1         1
    "w4a8_g128_t32_f256"         128     32      0      32            4       1      10        1         1
    "w4a8_g128_t64_f384"         128     64  32768      64            3       2       6        1         1
    "w4a8_g128_t64_f256"         128     64      0      64            4       1       8        1         1
    "w4a8_g128_t128_f256"        128    128      0     128            2       2       6        2         1
    "w4a8_g128_t192_f128"        128    192      0     192            2       1       6        1         1
    "w4a8_g128_t256_f128"        128    256      0     256            2       1       5        2         1
    "w4a8_g128_t128_f256"        128    384      0     128            2       2       6        2         1
    "w4a8_g128_t256_f128"        128    512      0     256            2       1       5        2         1
    "w4a8_g128_t128_f256"        128    640      0     128            2       2       6        2         1
    "w4a8_g128_t256_f128"        128    any      0     256            2       1       5        2         1
    "w4a8_g64_t16_f256"           64     16      0      16            4       1      11        1         1
    "w4a8_g64_t32_f256"           64     32      0      32            4       1      10        1         1
    "w4a8_g64_t64_f256"           64     64      0      64            4       1       8        1         1
    "w4a8_g64_t128_f256"          64    any      0     128            2       2       6        1         1
];

/// More shared memory than two blocks of one multiprocessor can have, of whose 228 KB each takes 1 KB for itself.
const MORE_THAN_HALF: u32 = 116 * 1024;

impl Variant {
    /// The first row that fits.
    fn choose(group_size: usize, tokens: usize, out_features: usize) -> Option<&'static Self> {
        VARIANTS.iter().find(|variant| {
            variant.group_size == group_size
                && tokens <= variant.up_to
                && out_features >= variant.from_features
        })
    }

    fn threads(&self) -> u32 {
        128 * (1 + self.multipliers as u32)
    }

    /// Features of a tile.
    fn features(&self) -> usize {
        BLOCK * self.blocks * self.multipliers
    }

    /// As `Variant::kSharedBytes` of w4a8_plan.cuh: barriers, two windows of group sums, scales and zero points, stages of
    /// activations and codes.
    fn shared_bytes(&self) -> u32 {
        let tile_blocks = self.blocks * self.multipliers;
        let window = (self.tokens * 4 * WINDOW + tile_blocks * 1280).next_multiple_of(1024);
        let stage = self.tokens * UNIT + tile_blocks * BLOCK * UNIT / 2;
        (1024 + 2 * window + self.stages * stage) as u32
    }

    /// Threads and bytes of shared memory of a block. Where a multiprocessor has room for two, they are of two launches in turn: the
    /// weights of the second are on their way while the last blocks of the first meet. Two of one launch would leave another
    /// multiprocessor idle, so every second launch asks for more shared memory than two blocks can have, and the others for
    /// a warpgroup more, idle, than two blocks have registers for.
    fn block(&self, turn: bool) -> (u32, u32) {
        let (threads, bytes) = (self.threads(), self.shared_bytes());
        match (self.resident, turn) {
            (1, _) => (threads, bytes),
            (_, false) => (threads, bytes.max(MORE_THAN_HALF)),
            (_, true) => (threads + 128, bytes),
        }
    }

    /// How clusters share out tiles, each as wide as a cluster; its grid counts clusters.
    fn schedule(&self, out_features: usize, tokens: usize, units: usize, multiprocessors: usize) -> Schedule {
        let tile = [self.features() * self.cluster, self.tokens];
        Schedule::new(tile, out_features, tokens, units, (multiprocessors / self.cluster).max(1))
    }

    /// What one block may leave in the workspace.
    fn partial_floats(&self) -> usize {
        self.features() * self.tokens
    }

    /// As `Variant::kByValue` of w4a8_plan.cuh: whether partials are awaited themselves, and not their flags.
    fn by_value(&self) -> bool {
        self.tokens <= 32
    }
}

/// `Problem` of w4a8_plan.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Problem {
    codes: u64,
    parameters: u64,
    group_sums: u64,
    token_scales: u64,
    bias: u64,
    output: u64,
    partials: u64,
    flags: u64,
    tokens: i32,
    features: i32,
    units: i32,
    groups: i32,
    windows: i32,
    stream_tiles: i32,
    panel_tiles: i32,
    token_scale_stride: i32,
    output_f16: i32,
    weights_stream_once: i32,
    share: i32,
    extra: i32,
}

/// What W4A8 products keep on a device between launches: partial sums of tiles that several blocks share, and their
/// flags. One serves all products on its stream. After a launch that failed make a new one.
#[derive(Debug)]
pub struct W4A8Workspace {
    stream: Arc<CudaStream>,
    pub(super) partials: CudaSlice<f32>,
    /// Zero between launches.
    pub(super) flags: CudaSlice<u32>,
    /// Partials of small tiles, [`ABSENT`] between launches.
    values: CudaSlice<u32>,
    /// Of two launches in turn the second.
    turn: bool,
    /// Weights that products of large batches have widened.
    pub(super) widened: CudaSlice<u8>,
    pub(super) multiprocessors: usize,
}

impl W4A8Workspace {
    /// Room for any W4A8 product of up to a million input features on `stream`: 563 MB on an H200.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        Self::with_widened_bytes(stream, DEFAULT_BYTES)
    }

    /// As `new`, with room for so many bytes of widened weights: batches of 2048 tokens and more take as many steps as their weights have
    /// parts of that size, 1.03 bytes a weight. One step is at least 256 output features.
    pub fn with_widened_bytes(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self> {
        let multiprocessors = multiprocessors(stream)? as usize;
        let most = |by_value| {
            let variants = VARIANTS.iter().filter(move |variant| variant.by_value() == by_value);
            variants.map(Variant::partial_floats).max().unwrap_or(0)
        };
        let (partials, values) = (most(false), vec![ABSENT; multiprocessors * most(true)]);
        let flags = VARIANTS.iter().map(|variant| variant.multipliers).max().unwrap_or(0);
        Ok(Self {
            stream: stream.clone(),
            partials: zeros(stream, multiprocessors * partials, "partial sums of W4A8 products")?,
            flags: zeros(stream, multiprocessors * flags, "flags of W4A8 products")?,
            values: upload(stream, &values, "partial sums of small W4A8 products")?,
            turn: false,
            widened: zeros(stream, bytes, "widened weights of W4A8 products")?,
            multiprocessors,
        })
    }
}

impl W4A8 {
    /// The product on `stream`, for `group_size` 64 or 128 and `out_features` in multiples of 64.
    ///
    /// - `x` e4m3 `[tokens, in_features]` with its scales and the group sums for the weights' `group_size`; the codes
    ///   start at a multiple of 16 bytes
    /// - `weights` of the plan's shape
    /// - `bias` f32 `[out_features]`
    /// - `y` bf16 or f16 `[tokens, out_features]`, at a multiple of 16 bytes
    ///
    /// No weight is rounded: codes are multiplied as they are, sums are promoted to f32 with their scale group by group,
    /// zero points are taken out by the group sums (from 2048 tokens on, in groups of 128, `code - zero` is multiplied). The same
    /// call gives the same bits; a row depends neither on the other rows nor on their number, as long as that takes tiles of the
    /// same width and as many of them, and, from 2048 tokens on, a workspace of the same size.
    ///
    /// It may overlap the kernel before it in the stream (programmatic dependent launch): weights are read before that one
    /// has finished, so it must not be one that writes them, and the one behind this must wait for this where it is launched
    /// overlapping too, as all kernels of this workspace do.
    pub fn launch<Y: Element>(
        &self,
        stream: &Arc<CudaStream>,
        x: &QuantizedActivation<impl DevicePtr<E4m3>, impl DevicePtr<f32>>,
        weights: &DeviceInt4Weights,
        bias: Option<&impl DevicePtr<f32>>,
        workspace: &mut W4A8Workspace,
        y: &mut impl DevicePtrMut<Y>,
    ) -> Result<()> {
        let (check, shape, tokens) = (Self::CHECK, self.shape(), x.shape.tokens);
        check.that(matches!(Y::NAME, "bf16" | "f16"), "y", "elements of bf16 or f16", Y::NAME)?;
        self.check_shapes(x.shape.features, weights.shape())?;
        let group_size = shape.group_size();
        check.that(x.shape.group_size == group_size, "x.shape.group_size", group_size, x.shape.group_size)?;
        check_len(
            check,
            "x.codes",
            &x.codes,
            check.product("x.shape.tokens", &[tokens, shape.in_features()])?,
        )?;
        check_len(check, "x.scales", &x.scales, tokens)?;
        check_len(check, "x.group_sums", &x.group_sums, tokens * shape.groups())?;
        if let Some(bias) = bias {
            check_len(check, "bias", bias, shape.out_features())?;
        }
        check_len(check, "y", y, check.product("y", &[tokens, shape.out_features()])?)?;
        check_aligned(check, "x.codes", &x.codes, 16, stream)?;
        check_aligned_mut(check, "y", y, 16, stream)?;
        let own = workspace.stream.cu_stream() == stream.cu_stream();
        check.that(own, "workspace", "one made for this stream", "another stream's")?;
        if widened::is_chosen(shape, tokens) {
            return self.launch_widened(stream, x, weights, bias, workspace, y);
        }
        let layout = Layout::new(shape)?;
        let (variant, schedule) = self.schedule(tokens, workspace.multiprocessors)?;
        if tokens == 0 {
            return Ok(());
        }

        let Layout { units, windows, .. } = layout;
        // The kernel counts in 32 bits: rows times groups, and units over all streamed tiles.
        let number = |argument, value: usize| {
            i32::try_from(value)
                .map_err(|_| check.error(argument, format_args!("at most {}", i32::MAX), value))
        };
        number("x.shape.tokens", tokens * shape.groups())?;
        number("weights", schedule.stream_tiles.max(layout.blocks) * units)?;
        let tile = Tile {
            dims: &[shape.in_features() as u64, tokens as u64],
            strides: &[shape.in_features() as u64],
            tile: &[UNIT as u32, (variant.tokens / variant.cluster) as u32],
            swizzle: Swizzle::Bytes128,
        };
        let x_map = TensorMap::new(stream, &x.codes, tile)?;
        // The guards say when the stream is done with a slice; they live until the launch.
        let (_, _codes) = x.codes.device_ptr(stream);
        let (token_scales, _scales) = x.scales.device_ptr(stream);
        let (group_sums, _group_sums) = x.group_sums.device_ptr(stream);
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
            group_sums,
            token_scales,
            bias: bias.as_ref().map_or(0, |bias| bias.0),
            output,
            partials,
            flags,
            tokens: number("x.shape.tokens", tokens)?,
            features: number("weights", shape.out_features())?,
            units: number("weights", units)?,
            groups: number("weights", shape.groups())?,
            windows: number("weights", windows)?,
            stream_tiles: number("weights", schedule.stream_tiles)?,
            panel_tiles: number("x.shape.tokens", schedule.panel_tiles())?,
            token_scale_stride: 1,
            output_f16: i32::from(Y::NAME == "f16"),
            weights_stream_once: i32::from(schedule.token_tiles == 1),
            share: number("weights", share)?,
            extra: number("weights", extra)?,
        };
        workspace.turn = !workspace.turn;
        let (threads, shared_bytes) = variant.block(workspace.turn);
        let launch = Launch::grid((schedule.grid * variant.cluster) as u32)
            .cluster(variant.cluster as u32)
            .block(threads)
            .shared(shared_bytes);
        let launch = if variant.resident > 1 { launch.shared_beside() } else { launch };
        let args = Args::new(stream).tensor_map(&x_map).structure(&problem);
        // SAFETY: the parameters are the kernel's tensor map and `Problem`, made of slices of this call whose lengths and
        // alignment were checked above; `weights` has the bytes of its shape by construction. The workspace has room for
        // what each block leaves, as the grid has at most one block a multiprocessor, and its flags are zero and its values
        // absent between the launches of its one stream.
        unsafe { variant.kernel.launch(stream, launch.overlapping(), args) }
    }

    /// How a batch of `tokens` is cut up on so many multiprocessors, for `group_size` 64 or 128 and `out_features` in
    /// multiples of 64.
    pub fn tiling(&self, tokens: usize, multiprocessors: usize) -> Result<Tiling> {
        if widened::is_chosen(self.shape(), tokens) {
            return widened::tiling(self.shape(), tokens, multiprocessors);
        }
        let (variant, schedule) = self.schedule(tokens, multiprocessors)?;
        let tiling = schedule.tiling(variant.kernel.name());
        Ok(Tiling { blocks: tiling.blocks * variant.cluster, ..tiling })
    }

    fn schedule(&self, tokens: usize, multiprocessors: usize) -> Result<(&'static Variant, Schedule)> {
        let shape = self.shape();
        let units = Layout::new(shape)?.units;
        let variant = Variant::choose(shape.group_size(), tokens, shape.out_features())
            .ok_or_else(|| Self::CHECK.error("group_size", "64 or 128", shape.group_size()))?;
        Ok((variant, variant.schedule(shape.out_features(), tokens, units, multiprocessors)))
    }
}

#[cfg(test)]
mod tests {
    use super::{VARIANTS, Variant};

    #[test]
    fn the_first_row_that_fits_is_chosen() {
        let chosen = |group_size, tokens, out_features| {
            let variant = Variant::choose(group_size, tokens, out_features)?;
            Some((variant.tokens, variant.features()))
        };
        for (tokens, narrow, wide) in [
            (0, (8, 256), (8, 256)),
            (8, (8, 256), (8, 256)),
            (9, (16, 256), (16, 512)),
            (16, (16, 256), (16, 512)),
            (17, (32, 256), (32, 512)),
            (64, (64, 256), (64, 384)),
            (65, (128, 256), (128, 256)),
            (129, (192, 128), (192, 128)),
            (193, (256, 128), (256, 128)),
            (257, (128, 256), (128, 256)),
            (385, (256, 128), (256, 128)),
            (640, (128, 256), (128, 256)),
            (641, (256, 128), (256, 128)),
            (100_000, (256, 128), (256, 128)),
        ] {
            assert_eq!(chosen(128, tokens, 8192), Some(narrow), "{tokens} tokens");
            assert_eq!(chosen(128, tokens, 57344), Some(wide), "{tokens} tokens");
        }
        for (tokens, tile) in [(1, 16), (17, 32), (33, 64), (65, 128), (4096, 128)] {
            assert_eq!(chosen(64, tokens, 57344), Some((tile, 256)), "{tokens} tokens");
        }
        assert_eq!(chosen(32, 1, 64), None);
    }

    /// The kernel's own limits, and a row that an earlier one hides would never run.
    #[test]
    fn every_row_is_sound_and_within_reach() {
        for (i, variant) in VARIANTS.iter().enumerate() {
            assert!(variant.block(false).1 <= 227 * 1024, "{variant:?}");
            // A block of a cluster loads whole patterns of the swizzle, and awaits no partial by value.
            assert!(variant.tokens.is_multiple_of(8 * variant.cluster), "{variant:?}");
            assert!(variant.cluster == 1 || !variant.by_value(), "{variant:?}");
            // `Variant::kFew` of w4a8_plan.cuh: one tile of tokens, ever.
            assert!(variant.tokens > 64 || variant.up_to <= variant.tokens, "{variant:?}");
            let whole = variant.up_to == usize::MAX || variant.up_to.is_multiple_of(variant.tokens);
            assert!(whole, "{variant:?}");
            let features = variant.from_features.max(64);
            let least = VARIANTS[..i]
                .iter()
                .filter(|row| row.group_size == variant.group_size && row.from_features <= features);
            let tokens = least.map(|row| row.up_to + 1).max().unwrap_or(0);
            let chosen = Variant::choose(variant.group_size, tokens, features);
            assert!(chosen.is_some_and(|row| std::ptr::eq(row, variant)), "{variant:?}");
        }
    }

    /// Blocks of two launches in turn fit on a multiprocessor together, whichever comes first; two of one launch do not, by shared
    /// memory or registers. Each quarter of a multiprocessor has every fourth warp and 16,384 registers.
    #[test]
    fn launches_take_turns() {
        for variant in VARIANTS.iter().filter(|variant| variant.resident > 1) {
            let registers = 65536 / (2 * variant.threads() + 128) / 8 * 8;
            let fit = |a: (u32, u32), b: (u32, u32)| {
                let warps = (a.0 / 32).div_ceil(4) + (b.0 / 32).div_ceil(4);
                warps * 32 * registers <= 65536 / 4 && a.1 + b.1 + 2 * 1024 <= 228 * 1024
            };
            let [first, second] = [variant.block(false), variant.block(true)];
            assert!(fit(first, second) && !fit(first, first) && !fit(second, second), "{variant:?}");
        }
    }

    /// Every unit of every tile is somebody's: streamed tiles by the cut, whole ones by the stride of the clusters.
    #[test]
    fn tiles_are_shared_out() {
        for variant in &VARIANTS {
            for (out_features, tokens, units) in
                [(64, 1, 1), (59392, 16, 116), (8192, 256, 64), (57344, 4096, 64)]
            {
                let schedule = variant.schedule(out_features, tokens, units, 132);
                let tiles =
                    out_features.div_ceil(variant.features() * variant.cluster) * schedule.token_tiles;
                let clusters = 1..=132 / variant.cluster;
                assert!(schedule.stream_tiles <= tiles && clusters.contains(&schedule.grid));
                assert_eq!((tiles - schedule.stream_tiles) % schedule.grid, 0, "{schedule:?} of {tiles}");
                let (share, extra) = schedule.shares(units);
                assert_eq!(share * schedule.grid + extra, schedule.stream_tiles * units);
                // A cluster's share of the streamed tiles is never empty.
                assert!(schedule.stream_tiles == 0 || schedule.stream_tiles * units >= schedule.grid);
            }
        }
    }
}
