//! The kernels against attention in f64 from dense keys and values: every element within what the formats round off, outputs
//! poisoned and guarded, everything that is not to be read NaN. Decode here, prefill in gpu/prefill.rs.
//!
//! The tests named small are small by design: `--ignored small` is what to run under racecheck.
#![cfg(feature = "cuda")]
// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

#[path = "gpu/accuracy.rs"]
mod accuracy;
mod common;
#[path = "gpu/on_device.rs"]
mod on_device;
#[path = "gpu/prefill.rs"]
mod prefill;
#[path = "gpu/random.rs"]
mod random;
#[path = "gpu/settled.rs"]
mod settled;
#[path = "gpu/truth.rs"]
mod truth;

use common::{Case, Sequence};
use device::E4m3;
use device::gpu::{Graph, upload};
use gqa_attention::{Attention, AttentionOptions, AttentionShape};
use half::bf16;
use on_device::{OnDevice, gpu, rounded};
use op_test::Rng;
use truth::{Page, check};

/// Runs a case with the kernel for its own number of queries.
fn run<T: Page>(rng: &mut Rng, case: &Case<T>, padding: usize, with_log_sum_exp: bool) {
    let max_queries = case.sequences.iter().map(|s| s.queries).max().unwrap_or(1);
    on_device::run(rng, case, max_queries, padding, with_log_sum_exp);
}

fn decode(contexts: impl IntoIterator<Item = usize>) -> Vec<Sequence> {
    contexts.into_iter().map(|context| Sequence { context, queries: 1 }).collect()
}

#[test]
#[ignore = "needs an H200"]
fn real_shapes_full_size() {
    let mut rng = Rng::new(11);
    let llama = AttentionShape { query_heads: 64, kv_heads: 8, head_dim: 128 };
    let falcon = AttentionShape { query_heads: 232, kv_heads: 8, head_dim: 64 };
    let falcon_7b = AttentionShape { query_heads: 71, kv_heads: 1, head_dim: 64 };
    for (shape, sequences) in [
        (llama, decode((0..40).map(|i| 1 + i * 31))),
        (llama, decode([6000, 1])),
        (falcon, decode((0..16).map(|i| 1 + i * 37))),
        (falcon, decode([2048])),
        (falcon_7b, decode((0..60).map(|i| 1 + i * 29))),
        // Chunks of prompts go the same way.
        (llama, vec![Sequence { context: 100, queries: 100 }, Sequence { context: 300, queries: 40 }]),
        (falcon, vec![Sequence { context: 65, queries: 65 }]),
    ] {
        let none = AttentionOptions::default;
        let case = rounded(Case::<E4m3>::random(&mut rng, shape, none(), sequences.clone()));
        run(&mut rng, &case, 0, true);
        let case = rounded(Case::<bf16>::random(&mut rng, shape, none(), sequences));
        run(&mut rng, &case, 0, false);
    }
}

/// Splits within a block and between blocks, tails, masks, several queries, passes over columns.
#[test]
#[ignore = "needs an H200"]
fn small_batches() {
    let mut rng = Rng::new(14);
    for (group, head_dim) in [(8, 64), (8, 128), (29, 64), (3, 256)] {
        let shape = AttentionShape { query_heads: group, kv_heads: 1, head_dim };
        let options = AttentionOptions { window: Some(300), ..AttentionOptions::default() };
        let sequences = [(1, 1), (400, 1), (130, 3), (64, 0)];
        let sequences = sequences.map(|(context, queries)| Sequence { context, queries }).to_vec();
        let case = rounded(Case::<E4m3>::random(&mut rng, shape, options.clone(), sequences.clone()));
        run(&mut rng, &case, 0, true);
        let case = rounded(Case::<bf16>::random(&mut rng, shape, options, sequences));
        run(&mut rng, &case, 0, true);
    }
}

/// One captured graph serves batches whose lengths change between its replays.
fn a_graph_follows_the_batch(max_queries: usize) {
    let stream = gpu().stream();
    let shape = AttentionShape { query_heads: 16, kv_heads: 2, head_dim: 128 };
    let plan = Attention::new(shape, AttentionOptions::default()).unwrap();
    let mut workspace = plan.workspace(stream).unwrap();
    let kernel = on_device::kernel(&plan, 3, max_queries);
    let mut rng = Rng::new(13);
    // Three sequences of up to 20 pages, 6 new tokens in all, in a pool of 64 pages.
    let mut batch = |lengths: [(usize, usize); 3]| {
        let sequences = lengths.map(|(context, queries)| Sequence { context, queries }).to_vec();
        let case = rounded(Case::<E4m3>::random(&mut rng, shape, AttentionOptions::default(), sequences));
        let mut paged = case.lay_out(&mut rng, 0);
        let mut tables = vec![u32::MAX; 3 * 20];
        for (row, table) in paged.block_tables.chunks(paged.max_pages).enumerate() {
            tables[row * 20..][..table.len()].copy_from_slice(table);
        }
        (paged.block_tables, paged.max_pages) = (tables, 20);
        paged.pool.resize(64 * paged.layout.page_elements(), E4m3::NAN);
        (case, paged)
    };
    let (case, paged) = batch([(1200, 1), (5, 1), (64, 4)]);
    let mut on_device = OnDevice::new(stream, &case, &paged, 0);
    on_device.launch(stream, &plan, paged.layout, max_queries, &mut workspace, true).unwrap();
    check(&case, kernel, &on_device.written(stream), true);
    // SAFETY: everything outlives the graph.
    let graph = unsafe {
        Graph::capture(stream, || {
            on_device.launch(stream, &plan, paged.layout, max_queries, &mut workspace, true)
        })
    }
    .unwrap();
    for lengths in [[(1, 1), (1, 1), (4, 4)], [(900, 2), (1279, 2), (2, 2)], [(300, 6), (7, 0), (1000, 0)]] {
        let (case, paged) = batch(lengths);
        let next = OnDevice::new(stream, &case, &paged, 0);
        stream.memcpy_dtod(&next.queries, &mut on_device.queries).unwrap();
        stream.memcpy_dtod(&next.pool, &mut on_device.pool).unwrap();
        stream.memcpy_dtod(&next.key_scales, &mut on_device.key_scales).unwrap();
        stream.memcpy_dtod(&next.value_scales, &mut on_device.value_scales).unwrap();
        stream.memcpy_dtod(&next.block_tables, &mut on_device.block_tables).unwrap();
        stream.memcpy_dtod(&next.context_lens, &mut on_device.context_lens).unwrap();
        stream.memcpy_dtod(&next.query_offsets, &mut on_device.query_offsets).unwrap();
        stream.memcpy_dtod(&next.output.1, &mut on_device.output.1).unwrap();
        graph.replay().unwrap();
        check(&case, kernel, &on_device.written(stream), true);
    }
}

#[test]
#[ignore = "needs an H200"]
fn a_graph_of_decode_follows_the_batch() {
    a_graph_follows_the_batch(1);
}

#[test]
#[ignore = "needs an H200"]
fn a_graph_of_prefill_follows_the_batch() {
    a_graph_follows_the_batch(64);
}

/// A captured step has rows for more sequences than are there: those of no tokens and one query give zeros, whatever their
/// queries and their table rows hold, and change nothing else.
#[test]
#[ignore = "needs an H200"]
fn small_padding_of_a_captured_step() {
    fn pad<T: Page>(rng: &mut Rng, shape: AttentionShape, max_queries: usize) {
        const PADDING: usize = 3;
        let stream = gpu().stream();
        let options = AttentionOptions { window: Some(90), ..AttentionOptions::default() };
        let case = rounded(Case::<T>::random(rng, shape, options.clone(), decode([70, 1, 200])));
        let mut paged = case.lay_out(rng, 0);
        let plan = Attention::new(shape, options).unwrap();
        let mut workspace = plan.workspace(stream).unwrap();
        let mut on_device = OnDevice::new(stream, &case, &paged, PADDING);
        for _ in 0..PADDING {
            paged.block_tables.resize(paged.block_tables.len() + paged.max_pages, u32::MAX);
            paged.context_lens.push(0);
            paged.query_offsets.push(paged.query_offsets.len() as u32);
        }
        on_device.block_tables = upload(stream, &paged.block_tables, "block tables").unwrap();
        on_device.context_lens = upload(stream, &paged.context_lens, "context lengths").unwrap();
        on_device.query_offsets = upload(stream, &paged.query_offsets, "query offsets").unwrap();
        on_device.launch(stream, &plan, paged.layout, max_queries, &mut workspace, true).unwrap();
        let (mut output, mut log_sum_exp) = on_device.written(stream);
        let padding = output.split_off(output.len() - PADDING * shape.query_heads * shape.head_dim);
        assert!(padding.iter().all(|x| x.to_f32() == 0.0), "padding is not zero");
        let padding = log_sum_exp.split_off(log_sum_exp.len() - PADDING * shape.query_heads);
        assert!(padding.iter().all(|&x| x == f32::NEG_INFINITY), "padding has a log-sum-exp");
        let kernel = on_device::kernel(&plan, 3 + PADDING, max_queries);
        check(&case, kernel, &(output, log_sum_exp), true);
    }
    let mut rng = Rng::new(15);
    for (group, head_dim) in [(8, 128), (29, 64), (3, 256)] {
        let shape = AttentionShape { query_heads: 2 * group, kv_heads: 2, head_dim };
        for max_queries in [1, 512] {
            pad::<E4m3>(&mut rng, shape, max_queries);
            pad::<bf16>(&mut rng, shape, max_queries);
        }
    }
}

#[test]
#[ignore = "needs an H200"]
fn refusals() {
    fn attempt<T: Page>(
        shape: AttentionShape,
        options: AttentionOptions,
        spoil: impl FnOnce(&mut OnDevice<T>),
    ) -> String {
        let stream = gpu().stream();
        let sequences = vec![Sequence { context: 70, queries: 2 }, Sequence { context: 3, queries: 1 }];
        let case = Case::<T>::random(&mut Rng::new(1), shape, options.clone(), sequences);
        let paged = case.lay_out(&mut Rng::new(2), 0);
        let plan = Attention::new(shape, options).unwrap();
        let mut workspace = plan.workspace(stream).unwrap();
        let mut on_device = OnDevice::new(stream, &case, &paged, 0);
        spoil(&mut on_device);
        let attempted = on_device.launch(stream, &plan, paged.layout, 2, &mut workspace, true);
        attempted.unwrap_err().to_string()
    }
    let stream = gpu().stream();
    let shape = AttentionShape { query_heads: 4, kv_heads: 2, head_dim: 64 };
    let none = AttentionOptions::default;
    let odd = AttentionShape { head_dim: 96, ..shape };
    assert_eq!(attempt::<bf16>(odd, none(), |_| ()), "attention: head_dim: expected 64, 128 or 256, got 96");
    let negative = AttentionOptions { scale: Some(-1.0), ..none() };
    assert_eq!(
        attempt::<bf16>(shape, negative, |_| ()),
        "attention: scale: expected a number above 0, got -1"
    );
    let long = |d: &mut OnDevice<E4m3>| d.key_scales = upload(stream, &[1.0; 3], "scales").unwrap();
    assert_eq!(attempt(shape, none(), long), "attention: key_scales: expected 2 elements, got 3");
    let short = |d: &mut OnDevice<E4m3>| d.query_offsets = upload(stream, &[0; 2], "offsets").unwrap();
    assert_eq!(attempt(shape, none(), short), "attention: query_offsets: expected 3 elements, got 2");
    let wide = |d: &mut OnDevice<E4m3>| d.max_pages = 3;
    assert_eq!(attempt(shape, none(), wide), "attention: block_tables: expected 6 elements, got 4");
    let ragged = |d: &mut OnDevice<E4m3>| d.queries = upload(stream, &[bf16::ONE; 257], "queries").unwrap();
    assert_eq!(
        attempt(shape, none(), ragged),
        "attention: queries: expected a multiple of 256 elements, got 257"
    );
}
