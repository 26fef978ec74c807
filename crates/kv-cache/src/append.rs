//! The plan of the append step: shapes, checked once.

use device::{Check, KvLayout, Result};

pub(crate) const CHECK: Check = Check("rope_append");

/// Splits fused QKV rows, turns queries and keys by their positions, and puts keys and values into their pages.
///
/// ```text
/// qkv row      [ q head 0 | q head 1 | .. | k head 0 | .. | v head 0 | .. ]       each head_dim wide
///                  │ rotate                  │ rotate, / key scale, round │ / value scale, round
///                  ▼                         ▼                            ▼
/// queries [tokens, query_heads, head_dim]    page of the token's position, as KvLayout says
/// ```
///
/// The rotation is [`device::rotate_head`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RopeAppend {
    query_heads: usize,
    layout: KvLayout,
    rotary_dim: usize,
}

impl RopeAppend {
    /// `rotary_dim`: how many dims of a head turn, even, at most `head_dim`; 0 where positions enter in another way
    /// (ALiBi).
    pub fn new(query_heads: usize, layout: KvLayout, rotary_dim: usize) -> Result<Self> {
        CHECK.positive("query_heads", query_heads)?;
        let fits = rotary_dim.is_multiple_of(2) && rotary_dim <= layout.head_dim();
        let head_dim = layout.head_dim();
        CHECK.that(fits, "rotary_dim", format_args!("a multiple of 2, at most {head_dim}"), rotary_dim)?;
        let heads = query_heads.saturating_add(2 * layout.kv_heads());
        CHECK.product("query_heads", &[heads, head_dim])?;
        Ok(Self { query_heads, layout, rotary_dim })
    }

    /// Query heads.
    pub fn query_heads(&self) -> usize {
        self.query_heads
    }

    /// The layout of the pages.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// Dims of a head that turn.
    pub fn rotary_dim(&self) -> usize {
        self.rotary_dim
    }

    /// Elements of a fused row.
    pub fn qkv_features(&self) -> usize {
        (self.query_heads + 2 * self.layout.kv_heads()) * self.layout.head_dim()
    }

    /// Elements of a row of queries.
    pub fn query_features(&self) -> usize {
        self.query_heads * self.layout.head_dim()
    }

    /// Checks the lengths of everything but the batch, for `tokens` rows of `sequences` sequences.
    pub(crate) fn check(&self, tokens: usize, sequences: usize, lengths: Lengths) -> Result<()> {
        let len = |argument, got: usize, expected: usize| {
            CHECK.that(got == expected, argument, format_args!("{expected} elements"), got)
        };
        len("qkv", lengths.qkv, CHECK.product("qkv", &[tokens, self.qkv_features()])?)?;
        let (shared, own) = (self.rotary_dim / 2, sequences.saturating_mul(self.rotary_dim / 2));
        let (ok, got) = ([shared, own].contains(&lengths.inverse_frequencies), lengths.inverse_frequencies);
        let expected = format_args!("{shared} elements, or {own}: as many for each sequence");
        CHECK.that(ok, "inverse_frequencies", expected, got)?;
        len("queries", lengths.queries, tokens * self.query_features())?;
        len("key_scales", lengths.key_scales, self.layout.kv_heads())?;
        len("value_scales", lengths.value_scales, self.layout.kv_heads())
    }

    /// That the pages are of this plan's layout.
    pub(crate) fn check_layout(&self, layout: KvLayout) -> Result<()> {
        let text = |layout: KvLayout| format!("{} KV heads of {}", layout.kv_heads(), layout.head_dim());
        CHECK.that(layout == self.layout, "layout", text(self.layout), text(layout))
    }
}

/// The lengths of the arguments in elements, on the host or on the device.
pub(crate) struct Lengths {
    pub qkv: usize,
    pub inverse_frequencies: usize,
    pub queries: usize,
    pub key_scales: usize,
    pub value_scales: usize,
}
