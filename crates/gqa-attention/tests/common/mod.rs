//! A random batch whose keys and values are known densely, beside the pages they lie in.

// Each test binary uses its part of this.
#![allow(dead_code)]

use device::{BatchView, Element, KvLayout, KvPages, PAGE_SIZE};
use gqa_attention::{Attention, AttentionOptions, AttentionShape};
use op_test::{Guarded, Rng};

/// One sequence: how much it has in the cache, how much of that is new.
#[derive(Debug, Clone, Copy)]
pub struct Sequence {
    pub context: usize,
    pub queries: usize,
}

/// The dense truth. Keys and values are stored elements, to be multiplied by the scales.
#[derive(Debug, Clone)]
pub struct Case<T> {
    pub shape: AttentionShape,
    pub options: AttentionOptions,
    pub sequences: Vec<Sequence>,
    /// Per sequence `[context][kv_heads][head_dim]`.
    pub keys: Vec<Vec<T>>,
    pub values: Vec<Vec<T>>,
    pub key_scales: Vec<f32>,
    pub value_scales: Vec<f32>,
    /// `[tokens][query_heads][head_dim]`.
    pub queries: Vec<f32>,
}

/// What attention gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub output: Vec<f32>,
    pub log_sum_exp: Vec<f32>,
}

/// A case in shuffled pages between NaN.
#[derive(Debug, Clone)]
pub struct Paged<T> {
    pub layout: KvLayout,
    pub pool: Vec<T>,
    pub block_tables: Vec<u32>,
    pub max_pages: usize,
    pub context_lens: Vec<u32>,
    pub query_offsets: Vec<u32>,
}

impl<T> Paged<T> {
    pub fn batch(&self) -> BatchView<&[u32]> {
        BatchView {
            block_tables: &self.block_tables,
            max_pages: self.max_pages,
            context_lens: &self.context_lens,
            query_offsets: &self.query_offsets,
        }
    }
}

impl<T: Element> Case<T> {
    pub fn random(
        rng: &mut Rng,
        shape: AttentionShape,
        options: AttentionOptions,
        sequences: Vec<Sequence>,
    ) -> Self {
        let row = shape.kv_heads * shape.head_dim;
        let mut store = |deviation: f32| -> Vec<Vec<T>> {
            let tensor =
                |s: &Sequence| rng.tensor(s.context * row, deviation).into_iter().map(T::from_f32).collect();
            sequences.iter().map(tensor).collect()
        };
        let (keys, values) = (store(1.5), store(1.0));
        let tokens: usize = sequences.iter().map(|s| s.queries).sum();
        let mut scales = || (0..shape.kv_heads).map(|_| 0.5 + rng.signed().abs()).collect();
        let (key_scales, value_scales) = (scales(), scales());
        let queries = rng.tensor(tokens * shape.query_heads * shape.head_dim, 1.0);
        Self { shape, options, sequences, keys, values, key_scales, value_scales, queries }
    }

    /// Lays the case out in shuffled pages, with as many entries to a table row as `spare` more than the longest needs.
    pub fn lay_out(&self, rng: &mut Rng, spare: usize) -> Paged<T> {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let layout = KvLayout::new(kv_heads, head_dim).unwrap();
        let used = |s: &Sequence| s.context.div_ceil(PAGE_SIZE);
        let max_pages = self.sequences.iter().map(used).max().unwrap_or(0) + spare;
        let pages: usize = self.sequences.iter().map(used).sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..pages as u32).collect();
        // Unread entries of a table are no page numbers at all.
        let mut block_tables = vec![u32::MAX; self.sequences.len() * max_pages];
        let mut pool = vec![T::from_f32(f32::NAN); pages * layout.page_elements()];
        for (index, sequence) in self.sequences.iter().enumerate() {
            for position in 0..sequence.context {
                let entry = &mut block_tables[index * max_pages + position / PAGE_SIZE];
                if position.is_multiple_of(PAGE_SIZE) {
                    *entry = free.swap_remove(rng.below(0..free.len()));
                }
                let (page, slot) = (*entry as usize, position % PAGE_SIZE);
                for head in 0..kv_heads {
                    for dim in 0..head_dim {
                        let element = (position * kv_heads + head) * head_dim + dim;
                        pool[layout.key::<T>(page, head, slot, dim)] = self.keys[index][element];
                        pool[layout.value::<T>(page, head, slot, dim)] = self.values[index][element];
                    }
                }
            }
        }
        let context_lens: Vec<u32> = self.sequences.iter().map(|s| s.context as u32).collect();
        let mut query_offsets = vec![0u32];
        for sequence in &self.sequences {
            query_offsets.push(query_offsets[query_offsets.len() - 1] + sequence.queries as u32);
        }
        Paged { layout, pool, block_tables, max_pages, context_lens, query_offsets }
    }

    /// Runs the reference on the case laid out.
    pub fn run(&self, rng: &mut Rng, spare: usize) -> Answer {
        let AttentionShape { query_heads, head_dim, .. } = self.shape;
        let paged = self.lay_out(rng, spare);
        let pages = KvPages {
            layout: paged.layout,
            pool: &paged.pool[..],
            key_scales: &self.key_scales[..],
            value_scales: &self.value_scales[..],
        };
        let plan = Attention::new(self.shape, self.options.clone()).unwrap();
        let tokens = paged.batch().tokens();
        let mut output = Guarded::<f32>::new(tokens * query_heads * head_dim);
        let mut log_sum_exp = Guarded::<f32>::new(tokens * query_heads);
        let lse = Some(log_sum_exp.payload_mut());
        plan.reference(&self.queries, &pages, &paged.batch(), output.payload_mut(), lse).unwrap();
        Answer { output: output.checked(), log_sum_exp: log_sum_exp.checked() }
    }

    /// The sequence `index` alone, with only the last `queries` of its new tokens.
    pub fn alone(&self, index: usize, queries: usize) -> Self {
        let rows: usize = self.sequences[..=index].iter().map(|s| s.queries).sum();
        let width = self.shape.query_heads * self.shape.head_dim;
        Self {
            sequences: vec![Sequence { queries, ..self.sequences[index] }],
            keys: vec![self.keys[index].clone()],
            values: vec![self.values[index].clone()],
            queries: self.queries[(rows - queries) * width..rows * width].to_vec(),
            ..self.clone()
        }
    }
}
