//! RoPE and append: from fused QKV rows to queries and pages.

use super::attention::{DeviceBatch, Page, pool};
use super::products::random;
use super::{Bench, Case, Suite};
use crate::{Batch, Work};
use cudarc::driver::{CudaSlice, CudaStream};
use device::gpu::{upload, zeros};
use device::{KvLayout, KvPages, Result};
use gqa_attention::AttentionShape;
use half::bf16;
use kv_cache::RopeAppend;
use layers::{RopeScaling, Rotary};
use serde_json::json;
use std::sync::Arc;

/// One layer's append.
pub struct Appending<T> {
    stream: Arc<CudaStream>,
    plan: RopeAppend,
    batch: DeviceBatch,
    frequencies: CudaSlice<f32>,
    pool: CudaSlice<T>,
    scales: CudaSlice<f32>,
    /// Fused rows and queries.
    copies: Vec<(CudaSlice<bf16>, CudaSlice<bf16>)>,
}

impl<T: Page + 'static> Appending<T> {
    /// Times the new tokens of a batch, beside the bytes of their rows, queries, keys and values.
    pub fn measure(suite: &mut Suite, model: &str, shape: AttentionShape, batch: &Batch) {
        let AttentionShape { query_heads, kv_heads, head_dim } = shape;
        let tokens = batch.context_lens.len() * batch.queries;
        let (query, kv) = (query_heads * head_dim, 2 * kv_heads * head_dim);
        let bytes = tokens * (2 * (query + kv) + 2 * query + size_of::<T>() * kv);
        let case = Case {
            group: format!("RoPE and append {model}, {} pages", T::NAME),
            name: format!("{} x {} tokens", batch.context_lens.len(), batch.queries),
            shape: json!({ "pages": T::NAME, "batch": batch.json() }),
            work: Work::copy(bytes),
            copies: suite.bench().copies(bytes),
        };
        let copies = case.copies;
        suite.measure(case, |bench| {
            let mut appending = Self::new(bench, shape, batch, copies)?;
            Ok(move |copy| appending.launch(copy))
        });
    }

    fn new(bench: &Bench, shape: AttentionShape, batch: &Batch, copies: usize) -> Result<Self> {
        let stream = bench.gpu().stream();
        let layout = KvLayout::new(shape.kv_heads, shape.head_dim)?;
        let plan = RopeAppend::new(shape.query_heads, layout, shape.head_dim)?;
        let rotary = Rotary::new(shape.head_dim, 10000.0, RopeScaling::None)?;
        let tokens = batch.context_lens.len() * batch.queries;
        let on_device = DeviceBatch::new(bench, batch)?;
        let copy = |_| {
            let queries = zeros(stream, tokens * plan.query_features(), "queries")?;
            Ok((random(bench, tokens * plan.qkv_features(), 1)?, queries))
        };
        Ok(Self {
            stream: stream.clone(),
            frequencies: upload(stream, &rotary.inverse_frequencies(1), "frequencies")?,
            pool: pool(bench, layout, on_device.pages, 1)?,
            scales: upload(stream, &vec![T::SCALE; shape.kv_heads], "scales")?,
            copies: (0..copies).map(copy).collect::<Result<_>>()?,
            batch: on_device,
            plan,
        })
    }

    /// One launch on copy number `copy`.
    fn launch(&mut self, copy: usize) -> Result<()> {
        let (qkv, queries) = &mut self.copies[copy];
        let mut pages = KvPages {
            layout: self.plan.layout(),
            pool: &mut self.pool,
            key_scales: &self.scales,
            value_scales: &self.scales,
        };
        self.plan.launch(&self.stream, qkv, &self.frequencies, &self.batch.view(), queries, &mut pages)
    }
}
