//! How tiles of a product over packed weights are shared out: drawn in kernels/tiles.cuh.

/// Token tiles that run side by side before the features advance: their activations stay in L2 while weights stream.
const PANEL_TILES: usize = 8;
/// Units a block should have at least, for its start to pay.
const UNITS_PER_BLOCK: usize = 2;

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

    /// Token tiles of a panel.
    pub fn panel_tiles(&self) -> usize {
        self.token_tiles.min(PANEL_TILES)
    }
}
