//! The KV pages of the CPU backend.

use crate::backend::{CacheSpec, KvDtype, Positions};
use crate::batch::Batch;
use device::{Check, E4m3, Element, KvLayout, KvPages, Result};
use gqa_attention::{Attention, AttentionOptions};
use half::bf16;
use kv_cache::{CopyPage, CopyPages, RopeAppend};
use layers::Rotary;

/// The pages of all layers.
pub struct Cache {
    layout: KvLayout,
    pages: usize,
    attention: Attention,
    append: RopeAppend,
    rotary: Option<Rotary>,
    layers: Vec<Layer>,
}

struct Layer {
    pool: Pool,
    /// f32 `[kv_heads]`.
    key_scales: Vec<f32>,
    /// f32 `[kv_heads]`.
    value_scales: Vec<f32>,
}

enum Pool {
    F32(Pages<f32>),
    Bf16(Pages<bf16>),
    Fp8(Pages<E4m3>),
}

struct Pages<T> {
    pool: Vec<T>,
    /// What was moved out.
    host: Vec<T>,
}

impl<T: Element> Pages<T> {
    fn zeros(elements: usize) -> Self {
        Self { pool: vec![T::zeroed(); elements], host: Vec::new() }
    }
}

impl Cache {
    pub(super) fn new(spec: &CacheSpec) -> Result<Self> {
        let shape = spec.shape;
        let layout = KvLayout::new(shape.kv_heads, shape.head_dim)?;
        let (rotary, alibi_slopes) = match &spec.positions {
            Positions::Rotary(rotary) => (Some(*rotary), None),
            Positions::Alibi(slopes) => (None, Some(slopes.clone())),
        };
        let options = AttentionOptions { alibi_slopes, ..AttentionOptions::default() };
        let rotary_dim = rotary.map_or(0, |rotary| rotary.rotary_dim());
        let elements = Check("kv_cache").product("pages", &[spec.pages, layout.page_elements()])?;
        let layer = |index: usize| Layer {
            pool: match spec.dtype {
                KvDtype::F32 => Pool::F32(Pages::zeros(elements)),
                KvDtype::Bf16 => Pool::Bf16(Pages::zeros(elements)),
                KvDtype::Fp8 => Pool::Fp8(Pages::zeros(elements)),
            },
            key_scales: vec![spec.key_scales[index]; shape.kv_heads],
            value_scales: vec![spec.value_scales[index]; shape.kv_heads],
        };
        Ok(Self {
            layout,
            pages: spec.pages,
            attention: Attention::new(shape, options)?,
            append: RopeAppend::new(shape.query_heads, layout, rotary_dim)?,
            rotary,
            layers: (0..spec.layers).map(layer).collect(),
        })
    }

    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    pub(super) fn add_host_pages(&mut self, pages: usize) -> Result<()> {
        let elements = Check("kv_cache").product("host_pages", &[pages, self.layout.page_elements()])?;
        for layer in &mut self.layers {
            match &mut layer.pool {
                Pool::F32(pages) => pages.host = vec![0.0; elements],
                Pool::Bf16(pages) => pages.host = vec![bf16::ZERO; elements],
                Pool::Fp8(pages) => pages.host = vec![E4m3::default(); elements],
            }
        }
        Ok(())
    }

    pub(super) fn copy_pages(&mut self, copies: &[CopyPage]) -> Result<()> {
        let plan = CopyPages::new(self.layout, copies);
        self.layers.iter_mut().try_for_each(|layer| match &mut layer.pool {
            Pool::F32(pages) => plan.reference(&mut pages.pool, &mut pages.host),
            Pool::Bf16(pages) => plan.reference(&mut pages.pool, &mut pages.host),
            Pool::Fp8(pages) => plan.reference(&mut pages.pool, &mut pages.host),
        })
    }

    /// Columns of the queries.
    pub(super) fn query_features(&self) -> usize {
        self.append.query_features()
    }

    /// Rotates, appends, gives the queries.
    pub(super) fn append(&mut self, qkv: &[f32], layer: usize, batch: &Batch) -> Result<Vec<f32>> {
        let mut queries = vec![0.0; batch.tokens.len() * self.append.query_features()];
        let runs = self.rotary.filter(Rotary::is_dynamic).map(|_| batch.rotary_runs());
        let (view, inverse_frequencies) = match (&self.rotary, &runs) {
            (None, _) => (batch.sequences.view(), Vec::new()),
            (Some(rotary), None) => (batch.sequences.view(), rotary.inverse_frequencies(1)),
            (Some(rotary), Some((runs, context_lens))) => {
                (runs.view(), context_lens.iter().flat_map(|&len| rotary.inverse_frequencies(len)).collect())
            }
        };
        let Layer { pool, key_scales, value_scales } = &mut self.layers[layer];
        let (layout, key_scales, value_scales) = (self.layout, &key_scales[..], &value_scales[..]);
        let plan = &self.append;
        macro_rules! append {
            ($pages:expr) => {{
                let mut pages = KvPages { layout, pool: &mut $pages.pool[..], key_scales, value_scales };
                plan.reference(qkv, &inverse_frequencies, &view, &mut queries, &mut pages)?;
            }};
        }
        match pool {
            Pool::F32(pages) => append!(pages),
            Pool::Bf16(pages) => append!(pages),
            Pool::Fp8(pages) => append!(pages),
        }
        Ok(queries)
    }

    /// Attention over the pages of `layer`.
    pub(super) fn attend(&self, queries: &[f32], layer: usize, batch: &Batch) -> Result<Vec<f32>> {
        match &self.layers[layer].pool {
            Pool::F32(pages) => self.attend_over(queries, &pages.pool, layer, batch),
            Pool::Bf16(pages) => self.attend_over(queries, &pages.pool, layer, batch),
            Pool::Fp8(pages) => self.attend_over(queries, &pages.pool, layer, batch),
        }
    }

    fn attend_over<T: Element>(
        &self,
        queries: &[f32],
        pool: &[T],
        layer: usize,
        batch: &Batch,
    ) -> Result<Vec<f32>> {
        let Layer { key_scales, value_scales, .. } = &self.layers[layer];
        let pages = KvPages {
            layout: self.layout,
            pool,
            key_scales: &key_scales[..],
            value_scales: &value_scales[..],
        };
        let mut output = vec![0.0; queries.len()];
        self.attention.reference(queries, &pages, &batch.sequences.view(), &mut output, None)?;
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Step, StepSequence};
    use gqa_attention::AttentionShape;

    #[test]
    fn each_layer_divides_keys_and_values_by_its_own_scales() {
        let spec = CacheSpec {
            layers: 2,
            shape: AttentionShape { query_heads: 1, kv_heads: 1, head_dim: 2 },
            positions: Positions::Alibi(vec![0.0]),
            pages: 1,
            dtype: KvDtype::Fp8,
            key_scales: vec![1.0, 0.5],
            value_scales: vec![1.0, 4.0],
        };
        let mut cache = Cache::new(&spec).unwrap();
        let sequence =
            StepSequence { tokens: &[0], context_len: 1, prompt_len: 1, pages: &[0], sample: None };
        let batch = Batch::new(&Step { sequences: vec![sequence] }, 1).unwrap();
        cache.append(&[1.0, 1.0, 3.0, 3.0, 8.0, 8.0], 1, &batch).unwrap();
        let layout = cache.layout;
        let Pool::Fp8(Pages { pool, .. }) = &cache.layers[1].pool else { panic!("asked for FP8 pages") };
        assert_eq!(pool[layout.key::<E4m3>(0, 0, 0, 0)].to_f32(), 3.0 / 0.5);
        assert_eq!(pool[layout.value::<E4m3>(0, 0, 0, 0)].to_f32(), 8.0 / 4.0);
        // One key: attention gives its value back.
        assert_eq!(cache.attend(&[1.0, 1.0], 1, &batch).unwrap(), [8.0, 8.0]);
    }
}
