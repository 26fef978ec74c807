//! Every bad argument of the append step and of copies, with the exact text of its error.

// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

use device::{BatchView, KvLayout, KvPages};
use kv_cache::{CopyPage, CopyPages, Direction, RopeAppend};

#[test]
fn plans() {
    let layout = KvLayout::new(2, 8).unwrap();
    let cases = [
        (0, 8, "rope_append: query_heads: expected at least 1, got 0"),
        (4, 3, "rope_append: rotary_dim: expected a multiple of 2, at most 8, got 3"),
        (4, 10, "rope_append: rotary_dim: expected a multiple of 2, at most 8, got 10"),
        (
            usize::MAX / 4,
            8,
            "rope_append: query_heads: expected a product that fits in memory, got [4611686018427387907, 8]",
        ),
    ];
    for (query_heads, rotary_dim, text) in cases {
        assert_eq!(RopeAppend::new(query_heads, layout, rotary_dim).unwrap_err().to_string(), text);
    }
    let cases = [
        (0, 8, "kv_layout: kv_heads: expected at least 1, got 0"),
        (1, 0, "kv_layout: head_dim: expected a positive multiple of 2, got 0"),
        (1, 5, "kv_layout: head_dim: expected a positive multiple of 2, got 5"),
        (
            1 << 60,
            1 << 60,
            "kv_layout: head_dim: expected a product that fits in memory, got [1152921504606846976, 1152921504606846976, 128]",
        ),
    ];
    for (kv_heads, head_dim, text) in cases {
        assert_eq!(KvLayout::new(kv_heads, head_dim).unwrap_err().to_string(), text);
    }
}

/// Arguments of `reference`, good as they are: two sequences of 65 and 3 tokens, 1 and 2 of them new.
struct Arguments {
    layout: KvLayout,
    qkv: Vec<f32>,
    inverse_frequencies: Vec<f32>,
    queries: Vec<f32>,
    pool: Vec<f32>,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    block_tables: Vec<u32>,
    context_lens: Vec<u32>,
    query_offsets: Vec<u32>,
}

impl Arguments {
    fn good() -> Self {
        let layout = KvLayout::new(2, 8).unwrap();
        Self {
            layout,
            qkv: vec![0.0; 3 * 64],
            inverse_frequencies: vec![1.0; 3],
            queries: vec![0.0; 3 * 32],
            pool: vec![0.0; 3 * layout.page_elements()],
            key_scales: vec![1.0; 2],
            value_scales: vec![1.0; 2],
            block_tables: vec![2, 0, 1, 99],
            context_lens: vec![65, 3],
            query_offsets: vec![0, 1, 3],
        }
    }

    fn run(&mut self) -> device::Result<()> {
        let mut pages = KvPages {
            layout: self.layout,
            pool: &mut self.pool[..],
            key_scales: &self.key_scales[..],
            value_scales: &self.value_scales[..],
        };
        let batch = BatchView {
            block_tables: &self.block_tables[..],
            max_pages: 2,
            context_lens: &self.context_lens[..],
            query_offsets: &self.query_offsets[..],
        };
        let plan = RopeAppend::new(4, KvLayout::new(2, 8)?, 6)?;
        plan.reference(&self.qkv, &self.inverse_frequencies, &batch, &mut self.queries, &mut pages)
    }
}

#[test]
fn arguments() {
    assert_eq!(Arguments::good().run(), Ok(()));
    let mut own_frequencies = Arguments::good();
    own_frequencies.inverse_frequencies = vec![1.0; 6];
    assert_eq!(own_frequencies.run(), Ok(()));
    type Spoil = fn(&mut Arguments);
    let cases: [(Spoil, &str); 11] = [
        (
            |a| a.layout = KvLayout::new(4, 8).unwrap(),
            "layout: expected 2 KV heads of 8, got 4 KV heads of 8",
        ),
        (|a| a.pool.truncate(2049), "pool: expected a multiple of 2048 elements, got 2049"),
        (|a| a.qkv.push(0.0), "qkv: expected 192 elements, got 193"),
        (
            |a| a.inverse_frequencies.push(0.0),
            "inverse_frequencies: expected 3 elements, or 6: as many for each sequence, got 4",
        ),
        (|a| a.queries.truncate(95), "queries: expected 96 elements, got 95"),
        (|a| a.key_scales.push(1.0), "key_scales: expected 2 elements, got 3"),
        (|a| a.value_scales.clear(), "value_scales: expected 2 elements, got 0"),
        (|a| a.block_tables.truncate(3), "block_tables: expected 4 elements, got 3"),
        (|a| a.block_tables[0] = 3, "block_tables: expected pages below 3, got 3"),
        (|a| a.query_offsets[2] = 9, "context_lens: expected at least the 8 new tokens, got 3"),
        (|a| a.context_lens[0] = 200, "max_pages: expected at least 4, got 2"),
    ];
    for (spoil, text) in cases {
        let mut arguments = Arguments::good();
        spoil(&mut arguments);
        assert_eq!(arguments.run().unwrap_err().to_string(), format!("rope_append: {text}"));
    }
}

#[test]
fn copies() {
    use Direction::{OnDevice, ToDevice, ToHost};
    let layout = KvLayout::new(1, 2).unwrap();
    let page = layout.page_elements();
    let run = |from, to, direction, spare: usize| {
        let before = vec![1f32; 3 * page];
        let (mut pool, mut host) = (before[..3 * page - spare].to_vec(), vec![2f32; 2 * page]);
        // The good copy stands first: nothing is copied where any is refused.
        let good = CopyPage { from: 0, to: 0, direction: ToHost };
        let plan = CopyPages::new(layout, &[good, CopyPage { from, to, direction }]);
        let refused = plan.reference(&mut [&mut pool], &mut host).map_err(|error| error.to_string());
        assert!(refused.is_ok() || (pool == before[..pool.len()] && host == vec![2.0; 2 * page]));
        refused
    };
    assert_eq!(run(2, 1, ToHost, 0), Ok(()));
    let cases = [
        (3, 0, OnDevice, 0, "from: expected pages below 3, got 3"),
        (0, 3, OnDevice, 0, "to: expected pages below 3, got 3"),
        (3, 1, ToHost, 0, "from: expected pages below 3, got 3"),
        (1, 2, ToHost, 0, "to: expected pages below 2, got 2"),
        (2, 0, ToDevice, 0, "from: expected pages below 2, got 2"),
        (1, u32::MAX, ToDevice, 0, "to: expected pages below 3, got 4294967295"),
        (1, 1, ToHost, 1, "pool: expected a multiple of 256 elements, got 767"),
    ];
    for (from, to, direction, spare, text) in cases {
        assert_eq!(run(from, to, direction, spare).unwrap_err(), format!("copy_pages: {text}"));
    }
    // Of neighbours the last one counts.
    for (direction, argument) in [(ToHost, "to"), (ToDevice, "from")] {
        let copies = [1, 2].map(|page| CopyPage { from: page, to: page, direction });
        let plan = CopyPages::new(layout, &copies);
        let refused = plan.reference(&mut [&mut vec![0f32; 3 * page]], &mut vec![0.0; 2 * page]).unwrap_err();
        assert_eq!(refused.to_string(), format!("copy_pages: {argument}: expected pages below 2, got 2"));
    }
    // Of several layers each pool is checked, and the host's part of each.
    let plan = CopyPages::new(layout, &[CopyPage { from: 1, to: 0, direction: ToHost }]);
    let several = |pages: [usize; 2], host: usize| {
        let [mut first, mut second] = pages.map(|pages| vec![0f32; pages * page]);
        plan.reference(&mut [&mut first, &mut second], &mut vec![0.0; host]).unwrap_err().to_string()
    };
    assert_eq!(several([2, 1], 2 * page), "copy_pages: from: expected pages below 1, got 1");
    assert_eq!(several([2, 2], page), "copy_pages: pool: expected a multiple of 256 elements, got 128");
    assert_eq!(several([2, 2], 1), "copy_pages: host: expected as many elements for each of 2 layers, got 1");
    assert_eq!(several([2, 2], 0), "copy_pages: to: expected pages below 0, got 0");
    assert_eq!(plan.reference::<f32>(&mut [], &mut []), Ok(()));
}
