//! The plain structs that ops exchange. Generic over storage: host slices for references, device slices for kernels.

use crate::{Check, Element, Result};

/// Tokens to a page of the KV cache.
pub const PAGE_SIZE: usize = 64;

/// How keys and values of one layer lie in its pool of pages.
///
/// ```text
/// pool  = [page][kv_head] blocks, each one contiguous piece of 2 * 64 * head_dim elements (one bulk copy):
/// block = [ K tile: 64 tokens x head_dim | V tile, transposed: head_dim x 64 tokens ]
/// ```
///
/// V is transposed because FP8 `wgmma` wants both operands contiguous along the summed dimension, which for
/// `P * V` is the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvLayout {
    kv_heads: usize,
    head_dim: usize,
}

impl KvLayout {
    /// Any number of KV heads; `head_dim` a positive multiple of 2.
    pub fn new(kv_heads: usize, head_dim: usize) -> Result<Self> {
        let check = Check("kv_layout");
        check.positive("kv_heads", kv_heads)?;
        check.multiple("head_dim", head_dim, 2)?;
        check.product("head_dim", &[kv_heads, head_dim, 2 * PAGE_SIZE])?;
        Ok(Self { kv_heads, head_dim })
    }

    /// KV heads.
    pub fn kv_heads(self) -> usize {
        self.kv_heads
    }

    /// Elements of one head.
    pub fn head_dim(self) -> usize {
        self.head_dim
    }

    /// Elements of one page: K and V of all heads.
    pub fn page_elements(self) -> usize {
        2 * PAGE_SIZE * self.head_dim * self.kv_heads
    }

    /// Where in the pool element `dim` of the key of `token` (0..64 in its page) lies.
    pub fn key(self, page: usize, kv_head: usize, token: usize, dim: usize) -> usize {
        self.block(page, kv_head) + token * self.head_dim + dim
    }

    /// Where in the pool element `dim` of the value of `token` (0..64 in its page) lies.
    pub fn value(self, page: usize, kv_head: usize, token: usize, dim: usize) -> usize {
        self.block(page, kv_head) + (self.head_dim + dim) * PAGE_SIZE + token
    }

    fn block(self, page: usize, kv_head: usize) -> usize {
        (page * self.kv_heads + kv_head) * 2 * PAGE_SIZE * self.head_dim
    }
}

/// One layer's pages with their scales. A stored element times its head's scale is the key or the value.
#[derive(Debug, Clone, Copy)]
pub struct KvPages<Pool, Scales> {
    /// How the pool is laid out.
    pub layout: KvLayout,
    /// `[pages]` of [`KvLayout::page_elements`] elements.
    pub pool: Pool,
    /// f32 `[kv_heads]`.
    pub key_scales: Scales,
    /// f32 `[kv_heads]`.
    pub value_scales: Scales,
}

impl<T: Element> KvPages<&[T], &[f32]> {
    /// The key element, scaled.
    pub fn key(&self, page: usize, kv_head: usize, token: usize, dim: usize) -> f32 {
        self.pool[self.layout.key(page, kv_head, token, dim)].to_f32() * self.key_scales[kv_head]
    }

    /// The value element, scaled.
    pub fn value(&self, page: usize, kv_head: usize, token: usize, dim: usize) -> f32 {
        self.pool[self.layout.value(page, kv_head, token, dim)].to_f32() * self.value_scales[kv_head]
    }
}

/// A ragged batch of sequences over pages.
///
/// Sequence `i` has `context_lens[i]` tokens in the cache, the new ones included; its new tokens (the queries) are the
/// last `query_offsets[i + 1] - query_offsets[i]` of them and stand at those rows of the step's activations. Token `t`
/// lies in page `block_tables[i * max_pages + t / 64]` at place `t % 64`.
#[derive(Debug, Clone, Copy)]
pub struct BatchView<Indices> {
    /// u32 `[sequences * max_pages]`; entries past a sequence's last page are never read.
    pub block_tables: Indices,
    /// Pages to a row of `block_tables`.
    pub max_pages: usize,
    /// u32 `[sequences]`.
    pub context_lens: Indices,
    /// u32 `[sequences + 1]`, from 0, never falling.
    pub query_offsets: Indices,
}

impl BatchView<&[u32]> {
    /// Sequences in the batch.
    pub fn sequences(&self) -> usize {
        self.context_lens.len()
    }

    /// Rows of activations: the new tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.query_offsets.last().map_or(0, |&end| end as usize)
    }

    /// The rows of sequence `index`.
    pub fn rows(&self, index: usize) -> std::ops::Range<usize> {
        self.query_offsets[index] as usize..self.query_offsets[index + 1] as usize
    }

    /// The cache position of the first new token of sequence `index`.
    pub fn first_position(&self, index: usize) -> usize {
        self.context_lens[index] as usize - self.rows(index).len()
    }

    /// The page and the place in it of token `position` of sequence `index`.
    pub fn place(&self, index: usize, position: usize) -> (usize, usize) {
        let page = self.block_tables[index * self.max_pages + position / PAGE_SIZE];
        (page as usize, position % PAGE_SIZE)
    }

    /// Checks lengths, offsets and page numbers against a pool of `pages` pages, in the name of `op`.
    pub fn check(&self, op: &'static str, pages: usize) -> Result<()> {
        let check = Check(op);
        let sequences = self.sequences();
        let entries = check.product("max_pages", &[sequences, self.max_pages])?;
        check.len("block_tables", self.block_tables, entries)?;
        check.len("query_offsets", self.query_offsets, sequences + 1)?;
        check.that(self.query_offsets[0] == 0, "query_offsets", "0 first", self.query_offsets[0])?;
        for index in 0..sequences {
            let (start, end) = (self.query_offsets[index], self.query_offsets[index + 1]);
            let context = self.context_lens[index];
            let queries = end.checked_sub(start);
            check.that(queries.is_some(), "query_offsets", "offsets that never fall", format_args!("{start}, {end}"))?;
            let fits = queries.is_some_and(|queries| queries <= context);
            check.that(fits, "context_lens", format_args!("at least the {} new tokens", end - start), context)?;
            let used = (context as usize).div_ceil(PAGE_SIZE);
            check.that(used <= self.max_pages, "max_pages", format_args!("at least {used}"), self.max_pages)?;
            let row = &self.block_tables[index * self.max_pages..][..used];
            let bad = row.iter().find(|&&page| page as usize >= pages);
            check.that(bad.is_none(), "block_tables", format_args!("pages below {pages}"), bad.unwrap_or(&0))?;
        }
        Ok(())
    }
}

/// The shape of an activation as a quantizing step writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ActivationShape {
    /// Rows.
    pub tokens: usize,
    /// Columns.
    pub features: usize,
    /// Columns to a group sum, or 0 where no group sums are wanted.
    pub group_size: usize,
}

impl ActivationShape {
    /// Groups to a row; 0 where no group sums are wanted.
    pub fn groups(self) -> usize {
        if self.group_size == 0 { 0 } else { self.features / self.group_size }
    }
}

/// An activation quantized to e4m3: element `[t][f]` is `codes[t * features + f] * scales[t]`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedActivation<Codes, Floats> {
    /// Rows, columns, group size.
    pub shape: ActivationShape,
    /// e4m3 `[tokens, features]`.
    pub codes: Codes,
    /// f32 `[tokens]`.
    pub scales: Floats,
    /// f32 `[tokens, features / group_size]`: the sums of the *codes'* values (without the scale) over each group.
    /// The INT4 product takes zero points out with them.
    pub group_sums: Floats,
}
