//! The kernels' instantiations, and which one a launch takes.

use crate::Attention;
use device::gpu::{Cubin, Kernel};
use std::fmt;

static DECODE: Cubin =
    Cubin::new("decode_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/decode_sm90.cubin")));
static PREFILL: Cubin =
    Cubin::new("prefill_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/prefill_sm90.cubin")));

/// One instantiation of decode.cuh.
pub(crate) struct DecodeVariant {
    pub kernel: Kernel,
    element: &'static str,
    pub head_dim: usize,
    /// Query tokens times heads of a group that one pass over keys and values takes.
    columns: usize,
    /// Groups of four warps of a block, each with a loading warp.
    workers: usize,
    pub shared_bytes: u32,
}

impl DecodeVariant {
    pub fn threads(&self) -> u32 {
        self.workers as u32 * 160
    }

    /// Floats of the workspace that a block hands its part of an item over in: `part_floats` of decode_tile.cuh.
    pub fn part_floats(&self) -> usize {
        self.columns * self.head_dim * 3 / 2
    }

    /// Floats of the workspace that a block puts its workers' first pieces in, where its shared memory has no room.
    pub fn first_piece_floats(&self) -> usize {
        self.workers * self.columns * (self.head_dim + 4)
    }

    /// The variant for `columns`: the narrowest that takes them in one pass, or else the widest but 72, which serves groups of
    /// 65 to 72 heads only.
    pub fn choose(element: &str, head_dim: usize, columns: usize) -> Option<&'static Self> {
        let mut fitting = DECODE_VARIANTS.iter().filter(|v| v.element == element && v.head_dim == head_dim);
        let mut widest = None;
        let found = fitting.find(|variant| {
            if variant.columns.is_power_of_two() {
                widest = Some(*variant);
            }
            variant.columns >= columns
        });
        found.or(widest)
    }
}

/// In step with `DECODE_VARIANTS` of decode_sm90.cu, where the compiler holds the sizes of shared memory against the code.
macro_rules! decode_variants {
    ($($element:literal $head_dim:literal $columns:literal $workers:literal $shared_bytes:literal)*) => {
        [$(DecodeVariant {
            kernel: Kernel::new(&DECODE, concat!("decode_", $element, "_d", $head_dim, "_n", $columns)),
            element: $element,
            head_dim: $head_dim,
            columns: $columns,
            workers: $workers,
            shared_bytes: $shared_bytes,
        }),*]
    };
}

pub(crate) static DECODE_VARIANTS: [DecodeVariant; 24] = decode_variants![
    "e4m3" 64 8 3 212224
    "e4m3" 64 16 3 224896
    "e4m3" 64 32 4 202240
    "e4m3" 64 64 2 201728
    "e4m3" 64 72 2 210432
    "e4m3" 128 8 3 224384
    "e4m3" 128 16 3 200064
    "e4m3" 128 32 2 200576
    "e4m3" 128 64 2 201600
    "e4m3" 256 8 2 214912
    "e4m3" 256 16 2 198528
    "e4m3" 256 32 2 198528
    "bf16" 64 8 3 187520
    "bf16" 64 16 3 200064
    "bf16" 64 32 3 202368
    "bf16" 64 64 2 201600
    "bf16" 64 72 2 210304
    "bf16" 128 8 2 182272
    "bf16" 128 16 2 198912
    "bf16" 128 32 2 199552
    "bf16" 128 64 2 199552
    "bf16" 256 8 1 181376
    "bf16" 256 16 1 181504
    "bf16" 256 32 1 198144
];

/// One instantiation of prefill.cuh.
pub(crate) struct PrefillVariant {
    pub kernel: Kernel,
    element: &'static str,
    head_dim: usize,
    /// Warpgroups of a block that multiply, beside the one that copies.
    consumers: usize,
    pub shared_bytes: u32,
}

impl PrefillVariant {
    pub fn threads(&self) -> u32 {
        self.consumers as u32 * 128 + 128
    }

    /// Query tokens times heads of a group that a tile takes.
    pub fn rows(&self) -> usize {
        self.consumers * 64
    }

    pub fn choose(element: &str, head_dim: usize) -> Option<&'static Self> {
        PREFILL_VARIANTS.iter().find(|v| v.element == element && v.head_dim == head_dim)
    }
}

/// In step with `PREFILL_VARIANTS` of prefill_sm90.cu.
macro_rules! prefill_variants {
    ($($element:literal $head_dim:literal $consumers:literal $shared_bytes:literal)*) => {
        [$(PrefillVariant {
            kernel: Kernel::new(&PREFILL, concat!("prefill_", $element, "_d", $head_dim)),
            element: $element,
            head_dim: $head_dim,
            consumers: $consumers,
            shared_bytes: $shared_bytes,
        }),*]
    };
}

static PREFILL_VARIANTS: [PrefillVariant; 4] = prefill_variants![
    "e4m3" 64 4 152064
    "e4m3" 128 3 224768
    "bf16" 64 4 156288
    "bf16" 128 3 201216
];

/// Which of its kernels serves a launch of [`Attention::launch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionKernel {
    /// Tokens of the cache are the tensor core's rows; every multiprocessor takes an equal share of all pages.
    Decode,
    /// Queries are the tensor core's rows; blocks go from tile to tile of them and walk all pages that each sees.
    Prefill,
}

impl fmt::Display for AttentionKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
        })
    }
}

impl Attention {
    /// The kernel for a batch of `sequences` with up to `max_queries` new tokens each, on `multiprocessors`.
    ///
    /// It is decode's for single tokens, for a `head_dim` that prefill's has not (256), and as long as one of its narrow passes
    /// takes all `rows = max_queries * group <= 32`. It is prefill's otherwise, if that has tiles of rows for half of the
    /// multiprocessors or a sequence brings 512 rows: a block of prefill walks a whole context alone, which decode
    /// spreads over all multiprocessors.
    pub fn kernel(&self, sequences: usize, max_queries: usize, multiprocessors: usize) -> AttentionKernel {
        /// Tiles are counted small: half a tile of rows is worth a block's walk already.
        const TILE_ROWS: usize = 128;
        let shape = self.shape();
        let rows = max_queries.saturating_mul(shape.group());
        let tiles = rows.div_ceil(TILE_ROWS).saturating_mul(sequences).saturating_mul(shape.kv_heads);
        let offered = PrefillVariant::choose("bf16", shape.head_dim).is_some();
        let busy = tiles.saturating_mul(2) >= multiprocessors || rows >= 512;
        if offered && max_queries > 1 && rows > 32 && busy {
            AttentionKernel::Prefill
        } else {
            AttentionKernel::Decode
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AttentionKernel, DECODE_VARIANTS, DecodeVariant, PREFILL_VARIANTS, PrefillVariant};
    use crate::{Attention, AttentionOptions, AttentionShape};

    #[test]
    fn the_narrowest_variant_that_fits_is_chosen() {
        let columns =
            |head_dim, wanted| DecodeVariant::choose("e4m3", head_dim, wanted).map(|variant| variant.columns);
        for (wanted, got) in
            [(1, 8), (8, 8), (9, 16), (29, 32), (33, 64), (64, 64), (71, 72), (72, 72), (73, 64)]
        {
            assert_eq!(columns(64, wanted), Some(got));
        }
        for (wanted, got) in [(8, 8), (64, 64), (65, 64), (1000, 64)] {
            assert_eq!(columns(128, wanted), Some(got));
        }
        for (wanted, got) in [(16, 16), (32, 32), (33, 32)] {
            assert_eq!(columns(256, wanted), Some(got));
        }
        assert_eq!(columns(96, 1), None);
        assert!(DecodeVariant::choose("f32", 64, 1).is_none());
        assert!(DECODE_VARIANTS.iter().all(|variant| variant.shared_bytes <= 232_448));
    }

    #[test]
    fn prefill_has_both_elements_at_each_head_dim() {
        for head_dim in [32, 64, 96, 128, 256] {
            let [bf16, e4m3] = ["bf16", "e4m3"].map(|element| PrefillVariant::choose(element, head_dim));
            assert_eq!((bf16.is_some(), e4m3.is_some()), ([64, 128].contains(&head_dim), bf16.is_some()));
        }
        assert!(PREFILL_VARIANTS.iter().all(|variant| variant.shared_bytes <= 232_448));
    }

    #[test]
    fn decode_serves_few_rows_and_few_tiles() {
        let kernel = |query_heads, head_dim, sequences, max_queries| {
            let shape = AttentionShape { query_heads, kv_heads: 8, head_dim };
            let plan = Attention::new(shape, AttentionOptions::default());
            plan.map(|plan| plan.kernel(sequences, max_queries, 132).to_string()).unwrap_or_default()
        };
        // Single tokens, narrow passes.
        for (heads, queries) in [(8 * 71, 1), (64, 1), (64, 4), (8, 32), (64, 0)] {
            assert_eq!(kernel(heads, 64, 1000, queries), "decode");
        }
        // Half of the multiprocessors: 66 tiles of 8 heads.
        assert_eq!(kernel(64, 128, 8, 5), "decode");
        assert_eq!(kernel(64, 128, 9, 5), "prefill");
        assert_eq!(kernel(64, 128, 4, 17), "decode");
        assert_eq!(kernel(64, 128, 5, 17), "prefill");
        // Long chunks.
        assert_eq!(kernel(64, 128, 1, 63), "decode");
        assert_eq!(kernel(64, 128, 1, 64), "prefill");
        assert_eq!(kernel(8, 64, 1, 512), "prefill");
        assert_eq!(kernel(64, 256, 1, 4096), "decode");
        assert_eq!(kernel(64, 128, usize::MAX, usize::MAX), "prefill");
        assert_eq!(AttentionKernel::Decode.to_string(), "decode");
    }
}
