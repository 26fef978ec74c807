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
    scales: Vec<Scales>,
    pools: Pools,
}

/// What one layer's keys and values are divided by.
struct Scales {
    /// f32 `[kv_heads]`.
    keys: CudaSlice<f32>,
    /// f32 `[kv_heads]`.
    values: CudaSlice<f32>,
}

enum Pools {
    Bf16(Pages<bf16>),
    Fp8(Pages<E4m3>),
}

struct Pages<T> {
    /// A pool a layer.
    layers: Vec<CudaSlice<T>>,
    /// What was moved out, of all layers.
    host: Pinned<T>,
}

impl<T: Element + DeviceRepr + ValidAsZeroBits> Pages<T> {
    fn zeros(cuda: &Cuda, layers: usize, elements: usize) -> Result<Self> {
        let pool = |index: usize| {
            zeros(cuda.stream(), elements, &format!("KV pages of layer {} of {layers}", index + 1))
        };
        Ok(Self {
            layers: (0..layers).map(pool).collect::<Result<_>>()?,
            host: Pinned::zeros(cuda.gpu().context(), 0)?,
        })
    }

    fn add_host_pages(&mut self, cuda: &Cuda, elements: usize) -> Result<()> {
        let elements = Check("kv_cache").product("host_pages", &[self.layers.len(), elements])?;
        self.host = Pinned::zeros(cuda.gpu().context(), elements)?;
        Ok(())
    }

    fn copy(&mut self, cuda: &Cuda, copies: &CopyPages) -> Result<()> {
        let mut pools: Vec<_> = self.layers.iter_mut().map(CudaSlice::as_view_mut).collect();
        copies.launch(cuda.stream(), &mut pools, &mut self.host)
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
        // A step's indices are there before its first kernel, and what it appends is all that it writes to pages.
        let options = AttentionOptions { alibi_slopes, settled: true, ..AttentionOptions::default() };
        let attention = Attention::new(shape, options)?;
        let elements = check.product("pages", &[spec.pages, layout.page_elements()])?;
        let pools = match spec.dtype {
            KvDtype::F32 => return Err(check.error("dtype", "bf16 or fp8 on a GPU", "f32")),
            KvDtype::Bf16 => Pools::Bf16(Pages::zeros(cuda, spec.layers, elements)?),
            KvDtype::Fp8 => Pools::Fp8(Pages::zeros(cuda, spec.layers, elements)?),
        };
        let heads = |scale: f32| upload(stream, &vec![scale; shape.kv_heads], "scales of KV pages");
        let scales = |index: usize| {
            Ok(Scales { keys: heads(spec.key_scales[index])?, values: heads(spec.value_scales[index])? })
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
            scales: (0..spec.layers).map(scales).collect::<Result<_>>()?,
            pools,
        })
    }

    pub(super) fn add_host_pages(&mut self, cuda: &Cuda, pages: usize) -> Result<()> {
        let elements = Check("kv_cache").product("host_pages", &[pages, self.layout.page_elements()])?;
        match &mut self.pools {
            Pools::Bf16(pages) => pages.add_host_pages(cuda, elements),
            Pools::Fp8(pages) => pages.add_host_pages(cuda, elements),
        }
    }

    /// On the stream of the steps: behind the one that wrote what goes out, before the one that overwrites it.
    pub(super) fn copy_pages(&mut self, cuda: &Cuda, copies: &[CopyPage]) -> Result<()> {
        let copies = CopyPages::new(self.layout, copies);
        match &mut self.pools {
            Pools::Bf16(pages) => pages.copy(cuda, &copies),
            Pools::Fp8(pages) => pages.copy(cuda, &copies),
        }
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
        let Scales { keys: key_scales, values: value_scales } = &self.scales[layer];
        macro_rules! append {
            ($pages:expr) => {{
                let pool = &mut $pages.layers[layer];
                let mut pages = KvPages { layout: self.layout, pool, key_scales, value_scales };
                let (qkv, queries) = (&qkv.values, &mut queries.values);
                self.append.launch(cuda.stream(), qkv, &frequencies, &views.batch(), queries, &mut pages)?;
            }};
        }
        match &mut self.pools {
            Pools::Bf16(pages) => append!(pages),
            Pools::Fp8(pages) => append!(pages),
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
        match &self.pools {
            Pools::Bf16(pages) => {
                self.attend_over(cuda, queries, &pages.layers[layer], layer, batch, indices)
            }
            Pools::Fp8(pages) => self.attend_over(cuda, queries, &pages.layers[layer], layer, batch, indices),
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
        let Scales { keys: key_scales, values: value_scales } = &self.scales[layer];
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
