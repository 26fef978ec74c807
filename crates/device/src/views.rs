//! The plain structs that ops exchange. Generic over storage: host slices for references, device slices for kernels.

use crate::{Check, Element, Result};

/// Tokens to a page of the KV cache.
pub const PAGE_SIZE: usize = 64;

/// How keys and values of one layer lie in its pool of pages.
///
/// ```text
/// pool   = [page][kv_head] blocks, each one contiguous piece (one bulk copy):
/// block  = [ K tile: 64 * head_dim elements | V tile: 64 * head_dim elements ]
/// K tile = [head_dim / E chunks of dims][64 tokens, see below][E dims]       E = the elements of 16 bytes:
/// V tile = [64 / E chunks of tokens][head_dim dims][E tokens]                16 of e4m3, 8 of bf16, 4 of f32
/// ```
///
/// Eight rows of 16 bytes are one core matrix of `wgmma`, so a tile that was copied as it lies is an operand, contiguous
/// along the dimension that is summed: dims for `Q * K^T`, tokens for `P * V`. Where `head_dim` is no multiple of `E`, the
/// last chunk of dims is narrower; only references read such pages.
///
/// 8-bit keys stand with the even tokens of every 16 first, then the odd ones: a thread of `wgmma` then holds the scores of
/// neighbouring tokens, which is how it packs the probabilities for the product with V.
///
/// ```text
/// 8-bit K row   0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15
/// token         0  2  4  6  8 10 12 14  1  3  5  7  9 11 13 15
/// ```
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

    /// How many pages a pool of `elements` elements is, or an error in the name of `op` where that is no whole number.
    pub fn pages(self, op: &'static str, elements: usize) -> Result<usize> {
        let page = self.page_elements();
        let whole = elements.is_multiple_of(page);
        Check(op).that(whole, "pool", format_args!("a multiple of {page} elements"), elements)?;
        Ok(elements / page)
    }

    /// Where in a pool of `T` element `dim` of the key of `token` (0..64 in its page) lies.
    #[inline]
    pub fn key<T: Element>(self, page: usize, kv_head: usize, token: usize, dim: usize) -> usize {
        let width = chunk_elements::<T>();
        let row = if size_of::<T>() == 1 { token & 48 | (token & 1) << 3 | (token & 15) >> 1 } else { token };
        let first = dim / width * width;
        self.block(page, kv_head) + first * PAGE_SIZE + row * width.min(self.head_dim - first) + dim - first
    }

    /// Where in a pool of `T` element `dim` of the value of `token` (0..64 in its page) lies.
    #[inline]
    pub fn value<T: Element>(self, page: usize, kv_head: usize, token: usize, dim: usize) -> usize {
        let width = chunk_elements::<T>();
        let first = token / width * width;
        self.block(page, kv_head) + (PAGE_SIZE + first) * self.head_dim + dim * width + token - first
    }

    #[inline]
    fn block(self, page: usize, kv_head: usize) -> usize {
        (page * self.kv_heads + kv_head) * 2 * PAGE_SIZE * self.head_dim
    }
}

/// Elements of 16 bytes.
fn chunk_elements<T: Element>() -> usize {
    16 / size_of::<T>()
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
        self.pool[self.layout.key::<T>(page, kv_head, token, dim)].to_f32() * self.key_scales[kv_head]
    }

    /// The value element, scaled.
    pub fn value(&self, page: usize, kv_head: usize, token: usize, dim: usize) -> f32 {
        self.pool[self.layout.value::<T>(page, kv_head, token, dim)].to_f32() * self.value_scales[kv_head]
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
            check.that(
                queries.is_some(),
                "query_offsets",
                "offsets that never fall",
                format_args!("{start}, {end}"),
            )?;
            let fits = queries.is_some_and(|queries| queries <= context);
            check.that(
                fits,
                "context_lens",
                format_args!("at least the {} new tokens", end - start),
                context,
            )?;
            let used = (context as usize).div_ceil(PAGE_SIZE);
            check.that(
                used <= self.max_pages,
                "max_pages",
                format_args!("at least {used}"),
                self.max_pages,
            )?;
            let row = &self.block_tables[index * self.max_pages..][..used];
            let bad = row.iter().find(|&&page| page as usize >= pages);
            check.that(
                bad.is_none(),
                "block_tables",
                format_args!("pages below {pages}"),
                bad.unwrap_or(&0),
            )?;
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
        self.features.checked_div(self.group_size).unwrap_or(0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::E4m3;
    use half::bf16;

    /// The byte offsets that the kernels use, as their own formula.
    fn kernel_offsets(size: usize, head_dim: usize, token: usize, dim: usize) -> (usize, usize) {
        let chunk = 16 / size;
        let row = match size {
            1 => token / 16 * 16 + token % 2 * 8 + token % 16 / 2,
            _ => token,
        };
        let key = (dim / chunk * 64 + row) * 16 + dim % chunk * size;
        let value = 64 * head_dim * size + (token / chunk * head_dim + dim) * 16 + token % chunk * size;
        (key, value)
    }

    fn every_element_has_a_place<T: Element>(kv_heads: usize, head_dim: usize) {
        let layout = KvLayout::new(kv_heads, head_dim).unwrap();
        let size = size_of::<T>();
        let mut seen = vec![false; 2 * layout.page_elements()];
        for (page, kv_head) in (0..2).flat_map(|page| (0..kv_heads).map(move |head| (page, head))) {
            for (token, dim) in (0..PAGE_SIZE).flat_map(|token| (0..head_dim).map(move |dim| (token, dim))) {
                let key = layout.key::<T>(page, kv_head, token, dim);
                let value = layout.value::<T>(page, kv_head, token, dim);
                for place in [key, value] {
                    assert!(!std::mem::replace(&mut seen[place], true), "two elements at {place}");
                }
                if (head_dim * size).is_multiple_of(16) {
                    let block = (page * kv_heads + kv_head) * 2 * 64 * head_dim * size;
                    let (key_offset, value_offset) = kernel_offsets(size, head_dim, token, dim);
                    assert_eq!((key * size, value * size), (block + key_offset, block + value_offset));
                }
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }

    #[test]
    fn the_layout_is_a_bijection_and_what_the_kernels_read() {
        for head_dim in [2, 4, 6, 16, 20, 64, 128, 256] {
            every_element_has_a_place::<f32>(2, head_dim);
            every_element_has_a_place::<bf16>(3, head_dim);
            every_element_has_a_place::<E4m3>(1, head_dim);
        }
    }
}
