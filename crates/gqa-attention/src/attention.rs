//! The plan: shapes and options, checked once.

use device::{Check, Result};

pub(crate) const CHECK: Check = Check("attention");

/// Heads and their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    /// Query heads: a positive multiple of `kv_heads`.
    pub query_heads: usize,
    /// KV heads. Query heads `h * group .. (h + 1) * group` read KV head `h`.
    pub kv_heads: usize,
    /// Elements of one head: a positive multiple of 2.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Query heads that read one KV head.
    pub fn group(self) -> usize {
        self.query_heads / self.kv_heads
    }
}

/// What the formula may carry beside queries, keys and values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AttentionOptions {
    /// What scores are multiplied by; `None` is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// How many keys a query sees, its own among them; `None` is all of them.
    pub window: Option<usize>,
    /// ALiBi: the slope of each query head, f32 `[query_heads]`. [`device::alibi_bias`] of a key's position is added
    /// to its score before the scale.
    pub alibi_slopes: Option<Vec<f32>>,
    /// On a GPU: whether every batch is settled before the launches that overlap on the stream. These may write queries, and
    /// pages from that of a sequence's first new token on, as appending them does; lengths, tables, offsets and all earlier
    /// pages were written ahead of a copy, an ordinary launch or the start of a graph, behind which nothing of them is still
    /// under way. Decode then loads pages while the kernels before it run.
    pub settled: bool,
}

/// Attention of one shape: prefill, decode and anything between.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    shape: AttentionShape,
    scale: f32,
    window: Option<usize>,
    alibi_slopes: Option<Vec<f32>>,
    settled: bool,
}

impl Attention {
    /// Checks shape and options.
    pub fn new(shape: AttentionShape, options: AttentionOptions) -> Result<Self> {
        let AttentionShape { query_heads, kv_heads, head_dim } = shape;
        CHECK.positive("kv_heads", kv_heads)?;
        CHECK.multiple("query_heads", query_heads, kv_heads)?;
        CHECK.multiple("head_dim", head_dim, 2)?;
        CHECK.product("head_dim", &[query_heads, head_dim])?;
        let scale = options.scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
        CHECK.finite("scale", scale)?;
        if let Some(window) = options.window {
            CHECK.positive("window", window)?;
        }
        if let Some(slopes) = &options.alibi_slopes {
            CHECK.len("alibi_slopes", slopes, query_heads)?;
            slopes.iter().try_for_each(|&slope| CHECK.finite("alibi_slopes", slope))?;
        }
        let AttentionOptions { window, alibi_slopes, settled, .. } = options;
        Ok(Self { shape, scale, window, alibi_slopes, settled })
    }

    /// Heads and their size.
    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// What scores are multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// How many keys a query sees; `None` is all of them.
    pub fn window(&self) -> Option<usize> {
        self.window
    }

    /// The ALiBi slopes, f32 `[query_heads]`.
    pub fn alibi_slopes(&self) -> Option<&[f32]> {
        self.alibi_slopes.as_deref()
    }

    /// Whether batches are settled ([`AttentionOptions::settled`]).
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// The positions of the keys that a query at `position` sees.
    pub(crate) fn visible(&self, position: usize) -> std::ops::Range<usize> {
        let end = position + 1;
        end.saturating_sub(self.window.unwrap_or(end))..end
    }

    /// That the pages are of this plan's shape.
    pub(crate) fn check_layout(&self, layout: device::KvLayout) -> Result<()> {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let text = |kv_heads, head_dim| format!("{kv_heads} KV heads of {head_dim}");
        let equal = layout.kv_heads() == kv_heads && layout.head_dim() == head_dim;
        CHECK.that(equal, "layout", text(kv_heads, head_dim), text(layout.kv_heads(), layout.head_dim()))
    }
}
