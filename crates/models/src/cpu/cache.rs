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
    scales: Vec<Scales>,
    pools: Pools,
}

/// What one layer's keys and values are divided by.
struct Scales {
    /// f32 `[kv_heads]`.
    keys: Vec<f32>,
    /// f32 `[kv_heads]`.
    values: Vec<f32>,
}

enum Pools {
    F32(Pages<f32>),
    Bf16(Pages<bf16>),
    Fp8(Pages<E4m3>),
}

struct Pages<T> {
    /// A pool a layer.
    layers: Vec<Vec<T>>,
    /// What was moved out, of all layers.
    host: Vec<T>,
}

impl<T: Element> Pages<T> {
    fn zeros(layers: usize, elements: usize) -> Self {
        Self { layers: vec![vec![T::zeroed(); elements]; layers], host: Vec::new() }
    }

    fn add_host_pages(&mut self, elements: usize) -> Result<()> {
        let elements = Check("kv_cache").product("host_pages", &[self.layers.len(), elements])?;
        self.host = vec![T::zeroed(); elements];
        Ok(())
    }

    fn copy(&mut self, copies: &CopyPages) -> Result<()> {
        let mut pools: Vec<&mut [T]> = self.layers.iter_mut().map(Vec::as_mut_slice).collect();
        copies.reference(&mut pools, &mut self.host)
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
        let scales = |index: usize| Scales {
            keys: vec![spec.key_scales[index]; shape.kv_heads],
            values: vec![spec.value_scales[index]; shape.kv_heads],
        };
        Ok(Self {
            layout,
            pages: spec.pages,
            attention: Attention::new(shape, options)?,
            append: RopeAppend::new(shape.query_heads, layout, rotary_dim)?,
            rotary,
            scales: (0..spec.layers).map(scales).collect(),
            pools: match spec.dtype {
                KvDtype::F32 => Pools::F32(Pages::zeros(spec.layers, elements)),
                KvDtype::Bf16 => Pools::Bf16(Pages::zeros(spec.layers, elements)),
                KvDtype::Fp8 => Pools::Fp8(Pages::zeros(spec.layers, elements)),
            },
        })
    }

    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    pub(super) fn add_host_pages(&mut self, pages: usize) -> Result<()> {
        let elements = Check("kv_cache").product("host_pages", &[pages, self.layout.page_elements()])?;
        match &mut self.pools {
            Pools::F32(pages) => pages.add_host_pages(elements),
            Pools::Bf16(pages) => pages.add_host_pages(elements),
            Pools::Fp8(pages) => pages.add_host_pages(elements),
        }
    }

    pub(super) fn copy_pages(&mut self, copies: &[CopyPage]) -> Result<()> {
        let copies = CopyPages::new(self.layout, copies);
        match &mut self.pools {
            Pools::F32(pages) => pages.copy(&copies),
            Pools::Bf16(pages) => pages.copy(&copies),
            Pools::Fp8(pages) => pages.copy(&copies),
        }
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
        let Scales { keys, values } = &self.scales[layer];
        let (layout, key_scales, value_scales) = (self.layout, &keys[..], &values[..]);
        let plan = &self.append;
        macro_rules! append {
            ($pages:expr) => {{
                let pool = &mut $pages.layers[layer][..];
                let mut pages = KvPages { layout, pool, key_scales, value_scales };
                plan.reference(qkv, &inverse_frequencies, &view, &mut queries, &mut pages)?;
            }};
        }
        match &mut self.pools {
            Pools::F32(pages) => append!(pages),
            Pools::Bf16(pages) => append!(pages),
            Pools::Fp8(pages) => append!(pages),
        }
        Ok(queries)
    }

    /// Attention over the pages of `layer`.
    pub(super) fn attend(&self, queries: &[f32], layer: usize, batch: &Batch) -> Result<Vec<f32>> {
        match &self.pools {
            Pools::F32(pages) => self.attend_over(queries, &pages.layers[layer], layer, batch),
            Pools::Bf16(pages) => self.attend_over(queries, &pages.layers[layer], layer, batch),
            Pools::Fp8(pages) => self.attend_over(queries, &pages.layers[layer], layer, batch),
        }
    }

    fn attend_over<T: Element>(
        &self,
        queries: &[f32],
        pool: &[T],
        layer: usize,
        batch: &Batch,
    ) -> Result<Vec<f32>> {
        let Scales { keys, values } = &self.scales[layer];
        let pages = KvPages { layout: self.layout, pool, key_scales: &keys[..], value_scales: &values[..] };
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
        let Pools::Fp8(Pages { layers, .. }) = &cache.pools else { panic!("asked for FP8 pages") };
        let pool = &layers[1];
        assert_eq!(pool[layout.key::<E4m3>(0, 0, 0, 0)].to_f32(), 3.0 / 0.5);
        assert_eq!(pool[layout.value::<E4m3>(0, 0, 0, 0)].to_f32(), 8.0 / 4.0);
        // One key: attention gives its value back.
        assert_eq!(cache.attend(&[1.0, 1.0], 1, &batch).unwrap(), [8.0, 8.0]);
    }
}
