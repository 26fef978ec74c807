//! The append step on the CPU, in f32, and the copies of pages.

use crate::append::{CHECK, Lengths};
use crate::{CopyPages, Direction, RopeAppend};
use device::{BatchView, Element, KvPages, Result, rotate_head};

impl RopeAppend {
    /// Reads `qkv`, f32 `[tokens, (query_heads + 2 kv_heads) * head_dim]`; `inverse_frequencies`, f32 `[rotary_dim / 2]`
    /// radians a token, or `[sequences, rotary_dim / 2]` where each sequence has its own.
    ///
    /// Writes `queries`, f32 `[tokens, query_heads, head_dim]`, and the places of the batch's new tokens in `pages`;
    /// everything else in the pages stays as it is. e4m3 pages saturate.
    pub fn reference<T: Element>(
        &self,
        qkv: &[f32],
        inverse_frequencies: &[f32],
        batch: &BatchView<&[u32]>,
        queries: &mut [f32],
        pages: &mut KvPages<&mut [T], &[f32]>,
    ) -> Result<()> {
        self.check_layout(pages.layout)?;
        batch.check(CHECK.0, pages.layout.pages(CHECK.0, pages.pool.len())?)?;
        let lengths = Lengths {
            qkv: qkv.len(),
            inverse_frequencies: inverse_frequencies.len(),
            queries: queries.len(),
            key_scales: pages.key_scales.len(),
            value_scales: pages.value_scales.len(),
        };
        self.check(batch.tokens(), batch.sequences(), lengths)?;
        let half = self.rotary_dim() / 2;
        for index in 0..batch.sequences() {
            let own = if inverse_frequencies.len() == half { 0 } else { index * half };
            let frequencies = &inverse_frequencies[own..own + half];
            for (position, row) in (batch.first_position(index)..).zip(batch.rows(index)) {
                let qkv = &qkv[row * self.qkv_features()..][..self.qkv_features()];
                let queries = &mut queries[row * self.query_features()..][..self.query_features()];
                self.token(qkv, frequencies, position, batch.place(index, position), queries, pages);
            }
        }
        Ok(())
    }

    fn token<T: Element>(
        &self,
        qkv: &[f32],
        frequencies: &[f32],
        position: usize,
        (page, slot): (usize, usize),
        queries: &mut [f32],
        pages: &mut KvPages<&mut [T], &[f32]>,
    ) {
        let (layout, head_dim) = (self.layout(), self.layout().head_dim());
        let (q, kv) = qkv.split_at(queries.len());
        let (keys, values) = kv.split_at(kv.len() / 2);
        queries.copy_from_slice(q);
        queries.chunks_exact_mut(head_dim).for_each(|head| rotate_head(head, position as u32, frequencies));
        let mut key = vec![0.0; head_dim];
        for (kv_head, (k, v)) in keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)).enumerate() {
            key.copy_from_slice(k);
            rotate_head(&mut key, position as u32, frequencies);
            for (dim, (&key, &value)) in key.iter().zip(v).enumerate() {
                pages.pool[layout.key::<T>(page, kv_head, slot, dim)] =
                    T::from_f32(key / pages.key_scales[kv_head]);
                pages.pool[layout.value::<T>(page, kv_head, slot, dim)] =
                    T::from_f32(value / pages.value_scales[kv_head]);
            }
        }
    }
}

impl CopyPages {
    /// Copies pages of all layers: `pools` a pool for each, `[pages]` of [`device::KvLayout::page_elements`] elements, `host`
    /// `[layers][host pages]` of as many.
    pub fn reference<T: Element>(&self, pools: &mut [&mut [T]], host: &mut [T]) -> Result<()> {
        let on_host = self.check_layers(pools.iter().map(|pool| pool.len()), host.len())?;
        let page = self.layout.page_elements();
        for (layer, pool) in pools.iter_mut().enumerate() {
            let host = &mut host[layer * on_host..][..on_host];
            for run in &self.runs {
                let (from, to) = (run.from * page..(run.from + run.pages) * page, run.to * page);
                match run.direction {
                    Direction::OnDevice => pool.copy_within(from, to),
                    Direction::ToHost => host[to..][..from.len()].copy_from_slice(&pool[from]),
                    Direction::ToDevice => pool[to..][..from.len()].copy_from_slice(&host[from]),
                }
            }
        }
        Ok(())
    }
}
