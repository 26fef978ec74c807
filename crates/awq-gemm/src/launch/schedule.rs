//! How tiles of a product over packed weights are shared out: drawn in kernels/tiles.cuh.

use std::fmt;

/// Token tiles that run side by side before the features advance: their activations stay in L2 while weights stream.
const PANEL_TILES: usize = 8;
/// Units a block should have at least, for its start to pay.
const UNITS_PER_BLOCK: usize = 2;

/// `kAbsent` of tiles.cuh: what stands in the workspace where no partial has come.
pub(super) const ABSENT: u32 = u32::MAX;

/// How a batch is cut up. A row has the same bits in all batches of one tiling, whatever their other rows hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// The kernel, which fixes the tile.
    pub kernel: &'static str,
    /// Blocks of its grid.
    pub blocks: usize,
    /// Tiles along the tokens.
    pub token_tiles: usize,
    /// Tiles, of all, that are cut along the input features so that every block has the same share of them.
    pub stream_tiles: usize,
}

impl fmt::Display for Tiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, blocks, token_tiles, stream_tiles } = self;
        write!(f, "{kernel}: {blocks} blocks, {token_tiles} tiles of tokens, {stream_tiles} tiles streamed")
    }
}

/// A persistent grid and its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedule {
    pub grid: usize,
    /// Tiles cut along K, evenly over all blocks; the rest is a multiple of the grid and goes whole.
    pub stream_tiles: usize,
    pub token_tiles: usize,
}

impl Schedule {
    /// For tiles of `[features, tokens]`.
    pub fn new(
        tile: [usize; 2],
        out_features: usize,
        tokens: usize,
        units: usize,
        multiprocessors: usize,
    ) -> Self {
        let token_tiles = tokens.div_ceil(tile[1]);
        let tiles = out_features.div_ceil(tile[0]) * token_tiles;
        let grid = (tiles * units / UNITS_PER_BLOCK).clamp(1, multiprocessors);
        let rest = tiles % grid;
        // A last wave that is not full is cut together with the one before it.
        let stream_tiles = if rest == 0 || tiles < grid { rest } else { rest + grid };
        Self { grid, stream_tiles, token_tiles }
    }

    pub fn tiling(&self, kernel: &'static str) -> Tiling {
        Tiling { kernel, blocks: self.grid, token_tiles: self.token_tiles, stream_tiles: self.stream_tiles }
    }

    /// Streamed units of each block of the grid, and how many of its first blocks have one more.
    pub fn shares(&self, units: usize) -> (usize, usize) {
        let streamed = self.stream_tiles * units;
        (streamed / self.grid, streamed % self.grid)
    }

    /// Token tiles of a panel.
    pub fn panel_tiles(&self) -> usize {
        self.token_tiles.min(PANEL_TILES)
    }
}
