//! The KV pages of the CUDA backend.

use super::batch::{Batch, Indices};
use super::tensor::Tensor;
use super::{Cuda, lock};
use crate::backend::{CacheSpec, KvDtype, Positions};
use cudarc::driver::CudaSlice;
use device::gpu::{upload, zeros};
use device::{Check, E4m3, Element, KvLayout, KvPages, Result};
use gqa_attention::{Attention, AttentionOptions, AttentionWorkspace};
use half::bf16;
use kv_cache::RopeAppend;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// The pages of all layers.
pub struct Cache {
    /// No other cache of this process has it.
    pub(super) id: u64,
    layout: KvLayout,
    pub(super) pages: usize,
    pub(super) positions: Positions,
    attention: Attention,
    workspace: Mutex<AttentionWorkspace>,
    append: RopeAppend,
    /// f32 `[rotary_dim / 2]`, of rotations that do not depend on the context.
    frequencies: CudaSlice<f32>,
    layers: Vec<Layer>,
}

struct Layer {
    pool: Pool,
    /// f32 `[kv_heads]`.
    key_scales: CudaSlice<f32>,
    /// f32 `[kv_heads]`.
    value_scales: CudaSlice<f32>,
}

enum Pool {
    Bf16(CudaSlice<bf16>),
    Fp8(CudaSlice<E4m3>),
}

static CACHES: AtomicU64 = AtomicU64::new(0);

impl Cache {
    pub(super) fn new(cuda: &Cuda, spec: &CacheSpec) -> Result<Self> {
        let (stream, check, shape) = (cuda.stream(), Check("kv_cache"), spec.shape);
        check.positive("pages", spec.pages)?;
        let layout = KvLayout::new(shape.kv_heads, shape.head_dim)?;
        let (frequencies, rotary_dim, alibi_slopes) = match &spec.positions {
            Positions::Rotary(rotary) => (rotary.inverse_frequencies(1), rotary.rotary_dim(), None),
            Positions::Alibi(slopes) => (Vec::new(), 0, Some(slopes.clone())),
        };
        let options = AttentionOptions { alibi_slopes, ..AttentionOptions::default() };
        let attention = Attention::new(shape, options)?;
        let elements = check.product("pages", &[spec.pages, layout.page_elements()])?;
        let layer = |index: usize| {
            let what = format!("KV pages of layer {} of {}", index + 1, spec.layers);
            let pool = match spec.dtype {
                KvDtype::F32 => return Err(check.error("dtype", "bf16 or fp8 on a GPU", "f32")),
                KvDtype::Bf16 => Pool::Bf16(zeros(stream, elements, &what)?),
                KvDtype::Fp8 => Pool::Fp8(zeros(stream, elements, &what)?),
            };
            let scales = |scale: f32| upload(stream, &vec![scale; shape.kv_heads], "scales of KV pages");
            Ok(Layer {
                pool,
                key_scales: scales(spec.key_scales[index])?,
                value_scales: scales(spec.value_scales[index])?,
            })
        };
        Ok(Self {
            id: CACHES.fetch_add(1, Ordering::Relaxed),
            layout,
            pages: spec.pages,
            positions: spec.positions.clone(),
            workspace: Mutex::new(attention.workspace(stream)?),
            attention,
            append: RopeAppend::new(shape.query_heads, layout, rotary_dim)?,
            frequencies: upload(stream, &frequencies, "rotary frequencies")?,
            layers: (0..spec.layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// Rotates, appends, gives the queries.
    pub(super) fn append(
        &mut self,
        cuda: &Cuda,
        qkv: &Tensor,
        layer: usize,
        batch: &Batch,
        indices: &Indices,
    ) -> Result<Tensor> {
        let mut queries = Tensor::new(cuda.pool(), qkv.tokens, self.append.query_features())?;
        let (sections, frequencies) = match &batch.rotations {
            None => (&batch.sequences, &self.frequencies),
            Some((sections, frequencies)) => (sections, frequencies),
        };
        let views = sections.views(indices)?;
        let Layer { pool, key_scales, value_scales } = &mut self.layers[layer];
        let (key_scales, value_scales) = (&*key_scales, &*value_scales);
        macro_rules! append {
            ($pool:expr) => {{
                let mut pages = KvPages { layout: self.layout, pool: $pool, key_scales, value_scales };
                let (qkv, queries) = (&qkv.values, &mut queries.values);
                self.append.launch(cuda.stream(), qkv, frequencies, &views.batch(), queries, &mut pages)?;
            }};
        }
        match pool {
            Pool::Bf16(pool) => append!(pool),
            Pool::Fp8(pool) => append!(pool),
        }
        Ok(queries)
    }

    /// Attention over the pages of `layer`.
    pub(super) fn attend(
        &self,
        cuda: &Cuda,
        queries: &Tensor,
        layer: usize,
        batch: &Batch,
        indices: &Indices,
    ) -> Result<Tensor> {
        match &self.layers[layer].pool {
            Pool::Bf16(pool) => self.attend_over(cuda, queries, pool, layer, batch, indices),
            Pool::Fp8(pool) => self.attend_over(cuda, queries, pool, layer, batch, indices),
        }
    }

    fn attend_over<T: Element>(
        &self,
        cuda: &Cuda,
        queries: &Tensor,
        pool: &CudaSlice<T>,
        layer: usize,
        batch: &Batch,
        indices: &Indices,
    ) -> Result<Tensor> {
        let Layer { key_scales, value_scales, .. } = &self.layers[layer];
        let pages = KvPages { layout: self.layout, pool, key_scales, value_scales };
        let views = batch.sequences.views(indices)?;
        let mut output = Tensor::new(cuda.pool(), queries.tokens, queries.features)?;
        let none = None::<&mut CudaSlice<f32>>;
        // SAFETY: the indices are those of a step that `Batch::new` checked against this cache's pages; rows that pad it have
        // a context of 0.
        unsafe {
            self.attention.launch(
                cuda.stream(),
                &queries.values,
                &pages,
                &views.batch(),
                batch.max_queries,
                &mut lock(&self.workspace),
                &mut output.values,
                none,
            )
        }?;
        Ok(output)
    }
}
