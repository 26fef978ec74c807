//! The KV pages of the CUDA backend.

use super::batch::{Batch, Indices};
use super::tensor::Tensor;
use super::{Cuda, lock};
use crate::backend::{CacheSpec, KvDtype, Positions};
use cudarc::driver::{CudaSlice, DeviceRepr, ValidAsZeroBits};
use device::gpu::{Pinned, upload, zeros};
use device::{Check, E4m3, Element, KvLayout, KvPages, Result};
use gqa_attention::{Attention, AttentionOptions, AttentionWorkspace};
use half::bf16;
use kv_cache::{CopyPage, CopyPages, RopeAppend};
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
    Bf16(Pages<bf16>),
    Fp8(Pages<E4m3>),
}

struct Pages<T> {
    pool: CudaSlice<T>,
    /// What was moved out.
    host: Pinned<T>,
}

impl<T: Element + DeviceRepr + ValidAsZeroBits> Pages<T> {
    fn zeros(cuda: &Cuda, elements: usize, what: &str) -> Result<Self> {
        let host = Pinned::zeros(cuda.gpu().context(), 0)?;
        Ok(Self { pool: zeros(cuda.stream(), elements, what)?, host })
    }

    fn add_host_pages(&mut self, cuda: &Cuda, elements: usize) -> Result<()> {
        self.host = Pinned::zeros(cuda.gpu().context(), elements)?;
        Ok(())
    }

    fn copy(&mut self, cuda: &Cuda, copies: &CopyPages) -> Result<()> {
        copies.launch(cuda.stream(), &mut self.pool.as_view_mut(), &mut self.host)
    }
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
                KvDtype::Bf16 => Pool::Bf16(Pages::zeros(cuda, elements, &what)?),
                KvDtype::Fp8 => Pool::Fp8(Pages::zeros(cuda, elements, &what)?),
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

    pub(super) fn add_host_pages(&mut self, cuda: &Cuda, pages: usize) -> Result<()> {
        let elements = Check("kv_cache").product("host_pages", &[pages, self.layout.page_elements()])?;
        self.layers.iter_mut().try_for_each(|layer| match &mut layer.pool {
            Pool::Bf16(pages) => pages.add_host_pages(cuda, elements),
            Pool::Fp8(pages) => pages.add_host_pages(cuda, elements),
        })
    }

    /// On the stream of the steps: behind the one that wrote what goes out, before the one that overwrites it.
    pub(super) fn copy_pages(&mut self, cuda: &Cuda, copies: &[CopyPage]) -> Result<()> {
        let copies = CopyPages::new(self.layout, copies);
        self.layers.iter_mut().try_for_each(|layer| match &mut layer.pool {
            Pool::Bf16(pages) => pages.copy(cuda, &copies),
            Pool::Fp8(pages) => pages.copy(cuda, &copies),
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
            None => (&batch.sequences, self.frequencies.as_view()),
            Some((sections, frequencies)) => (sections, indices.floats(frequencies)?),
        };
        let views = sections.views(indices)?;
        let Layer { pool, key_scales, value_scales } = &mut self.layers[layer];
        let (key_scales, value_scales) = (&*key_scales, &*value_scales);
        macro_rules! append {
            ($pages:expr) => {{
                let pool = &mut $pages.pool;
                let mut pages = KvPages { layout: self.layout, pool, key_scales, value_scales };
                let (qkv, queries) = (&qkv.values, &mut queries.values);
                self.append.launch(cuda.stream(), qkv, &frequencies, &views.batch(), queries, &mut pages)?;
            }};
        }
        match pool {
            Pool::Bf16(pages) => append!(pages),
            Pool::Fp8(pages) => append!(pages),
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
            Pool::Bf16(pages) => self.attend_over(cuda, queries, &pages.pool, layer, batch, indices),
            Pool::Fp8(pages) => self.attend_over(cuda, queries, &pages.pool, layer, batch, indices),
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
