//! Every bad argument, with the exact text of its error.

// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

use device::{BatchView, KvLayout, KvPages};
use gqa_attention::{Attention, AttentionOptions, AttentionShape};

const SHAPE: AttentionShape = AttentionShape { query_heads: 4, kv_heads: 2, head_dim: 8 };

fn new_error(shape: AttentionShape, options: AttentionOptions) -> String {
    Attention::new(shape, options).unwrap_err().to_string()
}

#[test]
fn shapes() {
    let none = AttentionOptions::default;
    let cases = [
        (AttentionShape { kv_heads: 0, ..SHAPE }, "attention: kv_heads: expected at least 1, got 0"),
        (
            AttentionShape { query_heads: 0, ..SHAPE },
            "attention: query_heads: expected a positive multiple of 2, got 0",
        ),
        (
            AttentionShape { query_heads: 5, ..SHAPE },
            "attention: query_heads: expected a positive multiple of 2, got 5",
        ),
        (
            AttentionShape { head_dim: 0, ..SHAPE },
            "attention: head_dim: expected a positive multiple of 2, got 0",
        ),
        (
            AttentionShape { head_dim: 7, ..SHAPE },
            "attention: head_dim: expected a positive multiple of 2, got 7",
        ),
        (
            AttentionShape { query_heads: 1 << 40, head_dim: 1 << 40, ..SHAPE },
            "attention: head_dim: expected a product that fits in memory, got [1099511627776, 1099511627776]",
        ),
    ];
    for (shape, text) in cases {
        assert_eq!(new_error(shape, none()), text);
    }
}

#[test]
fn options() {
    let none = AttentionOptions::default;
    let slopes = |slopes: &[f32]| AttentionOptions { alibi_slopes: Some(slopes.to_vec()), ..none() };
    let cases = [
        (
            AttentionOptions { scale: Some(f32::NAN), ..none() },
            "attention: scale: expected a finite number, got NaN",
        ),
        (AttentionOptions { window: Some(0), ..none() }, "attention: window: expected at least 1, got 0"),
        (slopes(&[1.0; 3]), "attention: alibi_slopes: expected 4 elements, got 3"),
        (
            slopes(&[1.0, 2.0, f32::INFINITY, 0.0]),
            "attention: alibi_slopes: expected a finite number, got inf",
        ),
    ];
    for (options, text) in cases {
        assert_eq!(new_error(SHAPE, options), text);
    }
}

/// Arguments of `reference`, good as they are: two sequences of 65 and 3 tokens, 1 and 2 of them new.
struct Arguments {
    layout: KvLayout,
    pool: Vec<f32>,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    block_tables: Vec<u32>,
    max_pages: usize,
    context_lens: Vec<u32>,
    query_offsets: Vec<u32>,
    queries: Vec<f32>,
    output: Vec<f32>,
    log_sum_exp: Vec<f32>,
}

impl Arguments {
    fn good() -> Self {
        let layout = KvLayout::new(2, 8).unwrap();
        Self {
            layout,
            pool: vec![0.0; 3 * layout.page_elements()],
            key_scales: vec![1.0; 2],
            value_scales: vec![1.0; 2],
            block_tables: vec![2, 0, 1, 99],
            max_pages: 2,
            context_lens: vec![65, 3],
            query_offsets: vec![0, 1, 3],
            queries: vec![0.0; 3 * 32],
            output: vec![0.0; 3 * 32],
            log_sum_exp: vec![0.0; 3 * 4],
        }
    }

    fn run(&mut self) -> device::Result<()> {
        let pages = KvPages {
            layout: self.layout,
            pool: &self.pool[..],
            key_scales: &self.key_scales[..],
            value_scales: &self.value_scales[..],
        };
        let batch = BatchView {
            block_tables: &self.block_tables[..],
            max_pages: self.max_pages,
            context_lens: &self.context_lens[..],
            query_offsets: &self.query_offsets[..],
        };
        let plan = Attention::new(SHAPE, AttentionOptions::default())?;
        plan.reference(&self.queries, &pages, &batch, &mut self.output, Some(&mut self.log_sum_exp))
    }
}

#[test]
fn arguments() {
    assert_eq!(Arguments::good().run(), Ok(()));
    type Spoil = fn(&mut Arguments);
    let cases: [(Spoil, &str); 19] = [
        (
            |a| a.layout = KvLayout::new(4, 8).unwrap(),
            "layout: expected 2 KV heads of 8, got 4 KV heads of 8",
        ),
        (
            |a| a.layout = KvLayout::new(2, 16).unwrap(),
            "layout: expected 2 KV heads of 8, got 2 KV heads of 16",
        ),
        (|a| a.key_scales.push(1.0), "key_scales: expected 2 elements, got 3"),
        (|a| a.value_scales.truncate(1), "value_scales: expected 2 elements, got 1"),
        (|a| a.pool.truncate(100), "pool: expected a multiple of 2048 elements, got 100"),
        (|a| a.block_tables.truncate(3), "block_tables: expected 4 elements, got 3"),
        (
            |a| a.max_pages = usize::MAX,
            "max_pages: expected a product that fits in memory, got [2, 18446744073709551615]",
        ),
        (|a| a.query_offsets.truncate(2), "query_offsets: expected 3 elements, got 2"),
        (|a| a.query_offsets.clear(), "query_offsets: expected 3 elements, got 0"),
        (|a| a.query_offsets[0] = 1, "query_offsets: expected 0 first, got 1"),
        (|a| a.query_offsets[2] = 0, "query_offsets: expected offsets that never fall, got 1, 0"),
        (|a| a.context_lens[1] = 1, "context_lens: expected at least the 2 new tokens, got 1"),
        (|a| a.context_lens[0] = 129, "max_pages: expected at least 3, got 2"),
        (|a| a.block_tables[1] = 3, "block_tables: expected pages below 3, got 3"),
        (|a| a.block_tables[2] = u32::MAX, "block_tables: expected pages below 3, got 4294967295"),
        (|a| a.queries.truncate(95), "queries: expected 96 elements, got 95"),
        (|a| a.output.push(0.0), "output: expected 96 elements, got 97"),
        (|a| a.log_sum_exp.truncate(11), "log_sum_exp: expected 12 elements, got 11"),
        (|a| a.context_lens.push(5), "block_tables: expected 6 elements, got 4"),
    ];
    for (spoil, text) in cases {
        let mut arguments = Arguments::good();
        spoil(&mut arguments);
        assert_eq!(arguments.run().unwrap_err().to_string(), format!("attention: {text}"));
    }
}

/// Nothing to do is done.
#[test]
fn an_empty_batch_is_fine() {
    let plan = Attention::new(SHAPE, AttentionOptions::default()).unwrap();
    let layout = KvLayout::new(2, 8).unwrap();
    let pages =
        KvPages { layout, pool: &[] as &[f32], key_scales: &[1.0, 1.0][..], value_scales: &[1.0, 1.0][..] };
    let batch =
        BatchView { block_tables: &[][..], max_pages: 7, context_lens: &[][..], query_offsets: &[0][..] };
    assert_eq!(plan.reference(&[], &pages, &batch, &mut [], None), Ok(()));
}
