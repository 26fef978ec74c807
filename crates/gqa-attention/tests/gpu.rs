//! The decode kernels against attention in f64 from dense keys and values: every element within what the formats round off, outputs
//! poisoned and guarded, everything that is not to be read NaN.
//!
//! Rounding of the probabilities and of the queries is taken as independent from key to key (Higham and Mary 2019): eight
//! standard deviations bound a sum of such errors with probability 1 - 3e-14. Errors that may all point one way (sums in
//! the tensor core, the exponential) are bounded by their sum.
#![cfg(feature = "cuda")]
// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Case, Paged, Sequence};
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use device::gpu::{Gpu, Graph, download, upload};
use device::{BatchView, E4m3, Element, KvPages};
use gqa_attention::{Attention, AttentionOptions, AttentionShape, AttentionWorkspace};
use half::bf16;
use op_test::{Guarded, Rng, cases};
use proptest::prelude::*;
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

type Stream = Arc<CudaStream>;

fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| Gpu::open(0).unwrap())
}

/// What the kernel for pages of this element rounds.
trait Page: Element + DeviceRepr {
    /// Probabilities, relative.
    const WEIGHT: f64;
    /// Probabilities, relative to the largest of their row: half of the smallest step.
    const WEIGHT_FLOOR: f64;
    /// Queries, relative, and relative to the largest element of their row.
    const QUERY: f64;
    const QUERY_FLOOR: f64;
    /// A sum in the tensor core: each step of 32 bytes along the sum, relative to the largest number in it.
    const STEP: f64;
}

impl Page for bf16 {
    const WEIGHT: f64 = 1.0 / 256.0;
    const WEIGHT_FLOOR: f64 = 0.0;
    const QUERY: f64 = 0.0;
    const QUERY_FLOOR: f64 = 0.0;
    const STEP: f64 = 1.0 / (1 << 22) as f64;
}

impl Page for E4m3 {
    const WEIGHT: f64 = 1.0 / 16.0;
    /// The largest is scaled to 2^8, the smallest step is 2^-9.
    const WEIGHT_FLOOR: f64 = 1.0 / (1 << 18) as f64;
    /// Two terms, each rounded to four bits.
    const QUERY: f64 = 1.0 / 256.0;
    /// The largest is scaled to 448.
    const QUERY_FLOOR: f64 = 1.0 / (1 << 18) as f64;
    const STEP: f64 = 1.0 / (1 << 13) as f64;
}

/// One query head of one new token: what is right, and by how much each element may be off.
struct Truth {
    output: Vec<f64>,
    output_bounds: Vec<f64>,
    log_sum_exp: f64,
    log_sum_exp_bound: f64,
}

/// In the order of the rows of `output`.
fn truth<T: Page>(case: &Case<T>) -> Vec<Truth> {
    let heads = case.shape.query_heads;
    let tokens = case
        .sequences
        .iter()
        .enumerate()
        .flat_map(|(index, s)| (0..s.queries).map(move |query| (index, query)));
    let rows: Vec<(usize, usize, usize)> =
        tokens.flat_map(|(index, query)| (0..heads).map(move |head| (index, query, head))).collect();
    rows.into_par_iter()
        .enumerate()
        .map(|(row, (index, query, head))| row_truth(case, row, index, query, head))
        .collect()
}

fn row_truth<T: Page>(case: &Case<T>, row: usize, index: usize, query: usize, head: usize) -> Truth {
    const DEVIATIONS: f64 = 8.0;
    let AttentionShape { kv_heads, head_dim, .. } = case.shape;
    let Sequence { context, queries } = case.sequences[index];
    let position = context - queries + query;
    let first = case.options.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let kv_head = head / case.shape.group();
    let scale = f64::from(case.options.scale.unwrap_or(1.0 / (head_dim as f32).sqrt()));
    let key_scale = scale * f64::from(case.key_scales[kv_head]);
    let q: Vec<f64> = case.queries[row * head_dim..][..head_dim].iter().map(|&x| f64::from(x)).collect();
    let largest_query = q.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let stored = |from: &[T], token: usize, dim: usize| {
        f64::from(from[(token * kv_heads + kv_head) * head_dim + dim].to_f32())
    };

    // Scores, the deviation of each, and what all may be off together.
    let (mut scores, mut deviations, mut together) = (vec![], vec![], 0.0f64);
    for token in first..=position {
        let (mut sum, mut rounding, mut size) = (0.0, 0.0, 0.0);
        for (dim, &q) in q.iter().enumerate() {
            let key = stored(&case.keys[index], token, dim);
            sum += q * key;
            size += (q * key) * (q * key);
            rounding += ((T::QUERY * q.abs() + T::QUERY_FLOOR * largest_query) * key).powi(2);
        }
        let slope = case.options.alibi_slopes.as_ref().map(|slopes| slopes[head]);
        let bias = slope.map_or(0.0, |slope| f64::from(device::alibi_bias(slope, token as u32)));
        let own = slope.map_or(0.0, |slope| f64::from(device::alibi_bias(slope, position as u32)));
        scores.push(key_scale * sum + scale * bias);
        deviations.push(key_scale * rounding.sqrt());
        // Two terms of the query; partial sums reach a few times the root of the sum of squares.
        let steps = (2 * head_dim * size_of::<T>()).div_ceil(32) as f64;
        let sums = steps * T::STEP * 4.0 * key_scale.abs() * size.sqrt();
        let f32_rounding = (key_scale * sum).abs() + (scale * (bias - own)).abs();
        together = together.max(sums + 8.0 * f32_rounding / (1 << 24) as f64);
    }
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp() / sum).collect();
    let floor = T::WEIGHT_FLOOR / sum;
    let deviation_of = |i: usize| weights[i] * (T::WEIGHT + deviations[i]) + floor;
    // Products of a step of up to 128 tokens in the tensor core, then f32 sums over the steps and the joined parts.
    let sums = 8.0 * T::STEP + (weights.len() as f64).sqrt() / (1 << 22) as f64;

    let value_scale = f64::from(case.value_scales[kv_head]);
    let (mut output, mut output_bounds) = (vec![], vec![]);
    for dim in 0..head_dim {
        let values: Vec<f64> =
            (first..=position).map(|token| value_scale * stored(&case.values[index], token, dim)).collect();
        let mean: f64 = weights.iter().zip(&values).map(|(w, v)| w * v).sum();
        let (mut variance, mut spread, mut size) = (0.0, 0.0, 0.0);
        for (i, (w, v)) in weights.iter().zip(&values).enumerate() {
            variance += (deviation_of(i) * (v - mean)).powi(2);
            spread += w * (v - mean).abs();
            size += w * v.abs();
        }
        let bound =
            DEVIATIONS * variance.sqrt() + 2.0 * together.exp_m1() * spread + sums * (size + mean.abs());
        output.push(mean);
        // The output's own rounding.
        output_bounds.push(bound + (mean.abs() + bound) / 256.0 + 1e-30);
    }
    let variance: f64 = (0..weights.len()).map(|i| deviation_of(i).powi(2)).sum();
    // What is below the floor may all be rounded down.
    let lost = weights.len() as f64 * floor;
    let log_sum_exp = top + sum.ln();
    let log_sum_exp_bound = DEVIATIONS * variance.sqrt()
        + lost
        + together
        + sums
        + 8.0 * (log_sum_exp.abs() + top.abs() + 1.0) / (1 << 23) as f64;
    Truth { output, output_bounds, log_sum_exp, log_sum_exp_bound }
}

/// Everything of a case on the device.
struct OnDevice<T> {
    queries: CudaSlice<bf16>,
    pool: CudaSlice<T>,
    key_scales: CudaSlice<f32>,
    value_scales: CudaSlice<f32>,
    block_tables: CudaSlice<u32>,
    context_lens: CudaSlice<u32>,
    query_offsets: CudaSlice<u32>,
    max_pages: usize,
    output: (Guarded<bf16>, CudaSlice<bf16>),
    log_sum_exp: (Guarded<f32>, CudaSlice<f32>),
}

impl<T: Page> OnDevice<T> {
    /// `padding` rows of activations more than the batch has.
    fn new(stream: &Stream, case: &Case<T>, paged: &Paged<T>, padding: usize) -> Self {
        let AttentionShape { query_heads, head_dim, .. } = case.shape;
        let rows = (paged.batch().tokens() + padding) * query_heads;
        let mut queries: Vec<bf16> = case.queries.iter().map(|&x| bf16::from_f32(x)).collect();
        queries.resize(rows * head_dim, bf16::NAN);
        let (mut output, mut log_sum_exp) = (Guarded::new(rows * head_dim), Guarded::new(rows));
        Self {
            queries: upload(stream, &queries, "queries").unwrap(),
            pool: upload(stream, &paged.pool, "pool").unwrap(),
            key_scales: upload(stream, &case.key_scales, "key scales").unwrap(),
            value_scales: upload(stream, &case.value_scales, "value scales").unwrap(),
            block_tables: upload(stream, &paged.block_tables, "block tables").unwrap(),
            context_lens: upload(stream, &paged.context_lens, "context lengths").unwrap(),
            query_offsets: upload(stream, &paged.query_offsets, "query offsets").unwrap(),
            max_pages: paged.max_pages,
            output: (output.clone(), upload(stream, output.whole_mut(), "output").unwrap()),
            log_sum_exp: (
                log_sum_exp.clone(),
                upload(stream, log_sum_exp.whole_mut(), "log-sum-exp").unwrap(),
            ),
        }
    }

    fn launch(
        &mut self,
        stream: &Stream,
        plan: &Attention,
        layout: device::KvLayout,
        max_queries: usize,
        workspace: &mut AttentionWorkspace,
        with_log_sum_exp: bool,
    ) -> device::Result<()> {
        let (key_scales, value_scales) = (&self.key_scales, &self.value_scales);
        let pages = KvPages { layout, pool: &self.pool, key_scales, value_scales };
        let batch = BatchView {
            block_tables: &self.block_tables,
            max_pages: self.max_pages,
            context_lens: &self.context_lens,
            query_offsets: &self.query_offsets,
        };
        let mut output = self.output.1.slice_mut(self.output.0.range());
        let mut log_sum_exp = self.log_sum_exp.1.slice_mut(self.log_sum_exp.0.range());
        let log_sum_exp = with_log_sum_exp.then_some(&mut log_sum_exp);
        // SAFETY: `Case::lay_out` makes batches that pass `BatchView::check`.
        unsafe {
            plan.launch::<T>(
                stream,
                &self.queries,
                &pages,
                &batch,
                max_queries,
                workspace,
                &mut output,
                log_sum_exp,
            )
        }
    }

    /// Output and log-sum-exp, their guard zones checked.
    fn written(&self, stream: &Stream) -> (Vec<bf16>, Vec<f32>) {
        fn payload<T: Element + DeviceRepr>(
            stream: &Stream,
            (host, device): &(Guarded<T>, CudaSlice<T>),
        ) -> Vec<T> {
            let whole: Vec<T> = download(stream, device).unwrap();
            let range = host.range();
            let poisoned = |part: &[T]| part.iter().all(|x| x.to_f32().is_nan());
            assert!(
                poisoned(&whole[..range.start]) && poisoned(&whole[range.end..]),
                "a guard zone was written"
            );
            whole[range].to_vec()
        }
        (payload(stream, &self.output), payload(stream, &self.log_sum_exp))
    }
}

/// Holds what the kernel wrote for `case`; rows behind the batch, and the log-sum-exp where it was not wanted, are poison
/// still.
#[track_caller]
fn check<T: Page>(case: &Case<T>, (output, log_sum_exp): &(Vec<bf16>, Vec<f32>), with_log_sum_exp: bool) {
    let head_dim = case.shape.head_dim;
    let truth = truth(case);
    for (row, truth) in truth.iter().enumerate() {
        for (dim, (want, bound)) in truth.output.iter().zip(&truth.output_bounds).enumerate() {
            let got = f64::from(output[row * head_dim + dim].to_f32());
            assert!(
                (got - want).abs() <= *bound,
                "{} row {row} dim {dim}: {got} against {want} +- {bound}",
                T::NAME
            );
        }
        if with_log_sum_exp {
            let (got, want) = (f64::from(log_sum_exp[row]), truth.log_sum_exp);
            let bound = truth.log_sum_exp_bound;
            assert!(
                (got - want).abs() <= bound,
                "{} log-sum-exp {row}: {got} against {want} +- {bound}",
                T::NAME
            );
        }
    }
    let behind = if with_log_sum_exp { truth.len() } else { 0 };
    assert!(
        output[truth.len() * head_dim..].iter().all(|x| x.is_nan()),
        "a row behind the batch was written"
    );
    assert!(log_sum_exp[behind..].iter().all(|x| x.is_nan()), "a log-sum-exp behind the batch was written");
}

/// The case with queries as the kernel sees them.
fn rounded<T>(mut case: Case<T>) -> Case<T> {
    case.queries.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    case
}

/// Runs a case twice on one workspace: both times the same bits, and the right ones.
fn run<T: Page>(rng: &mut Rng, case: &Case<T>, padding: usize, with_log_sum_exp: bool) {
    let stream = gpu().stream();
    let paged = case.lay_out(rng, 1);
    let plan = Attention::new(case.shape, case.options.clone()).unwrap();
    let mut workspace = plan.workspace(stream).unwrap();
    let max_queries = case.sequences.iter().map(|s| s.queries).max().unwrap_or(1);
    let mut written = || {
        let mut on_device = OnDevice::new(stream, case, &paged, padding);
        on_device.launch(stream, &plan, paged.layout, max_queries, &mut workspace, with_log_sum_exp).unwrap();
        on_device.written(stream)
    };
    let first = written();
    check(case, &first, with_log_sum_exp);
    let bits = |(output, log_sum_exp): &(Vec<bf16>, Vec<f32>)| -> (Vec<u16>, Vec<u32>) {
        (output.iter().map(|x| x.to_bits()).collect(), log_sum_exp.iter().map(|x| x.to_bits()).collect())
    };
    assert!(bits(&written()) == bits(&first), "a second run gave other bits");
}

fn shapes() -> impl Strategy<Value = AttentionShape> {
    let groups = prop::sample::select(vec![1usize, 2, 3, 4, 8, 12, 16, 29, 71]);
    (groups, 1usize..4, prop::sample::select(vec![64usize, 128, 256])).prop_map(
        |(group, kv_heads, head_dim)| AttentionShape { query_heads: group * kv_heads, kv_heads, head_dim },
    )
}

fn sequences() -> impl Strategy<Value = Vec<Sequence>> {
    let context = prop_oneof![1usize..5, 62usize..67, 126usize..131, 1usize..400];
    let queries = prop_oneof![Just(0usize), Just(1), Just(1), 1usize..9];
    let sequence =
        (context, queries).prop_map(|(context, queries)| Sequence { context, queries: queries.min(context) });
    prop::collection::vec(sequence, 0..7)
}

proptest! {
    #![proptest_config(cases())]

    /// The truth and its bounds are sound: the reference, which rounds far less, lies within them. Needs no GPU.
    #[test]
    fn the_reference_is_within_the_bounds(
        shape in shapes(), sequences in sequences(), window in prop::option::of(1usize..200), alibi: bool, seed: u64,
    ) {
        let mut rng = Rng::new(seed);
        let slopes = alibi.then(|| (0..shape.query_heads).map(|_| rng.signed().abs()).collect());
        let options = AttentionOptions { scale: None, window, alibi_slopes: slopes };
        let case = rounded(Case::<bf16>::random(&mut rng, shape, options, sequences));
        let answer = case.run(&mut rng, 0);
        let output = answer.output.iter().map(|&x| bf16::from_f32(x)).collect();
        check(&case, &(output, answer.log_sum_exp), true);
    }

    #[test]
    #[ignore = "needs an H200"]
    fn random_batches(
        shape in shapes(), sequences in sequences(), window in prop::option::of(1usize..200), alibi: bool,
        scale in prop::option::of(0.01f32..0.3), padding in 0usize..4, with_log_sum_exp: bool, seed: u64,
    ) {
        let mut rng = Rng::new(seed);
        let slopes = alibi.then(|| (0..shape.query_heads).map(|_| rng.signed().abs()).collect());
        let options = AttentionOptions { scale, window, alibi_slopes: slopes };
        let case = rounded(Case::<E4m3>::random(&mut rng, shape, options.clone(), sequences.clone()));
        run(&mut rng, &case, padding, with_log_sum_exp);
        let case = rounded(Case::<bf16>::random(&mut rng, shape, options, sequences));
        run(&mut rng, &case, padding, with_log_sum_exp);
    }
}

fn decode(contexts: impl IntoIterator<Item = usize>) -> Vec<Sequence> {
    contexts.into_iter().map(|context| Sequence { context, queries: 1 }).collect()
}

#[test]
#[ignore = "needs an H200"]
fn real_shapes() {
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

/// A far token with a dominant score is found at 128k, and a long sum stays accurate.
#[test]
#[ignore = "needs an H200"]
fn long_contexts() {
    fn needle<T: Page>(rng: &mut Rng) {
        let shape = AttentionShape { query_heads: 8, kv_heads: 1, head_dim: 128 };
        let options = AttentionOptions::default();
        let mut case = Case::<T>::random(rng, shape, options, decode([131_072]));
        run(rng, &rounded(case.clone()), 0, true);
        // One key along the first query, long enough to outweigh all others.
        let at = 777 * shape.head_dim;
        for dim in 0..shape.head_dim {
            case.keys[0][at + dim] = T::from_f32(4.0 * case.queries[dim]);
        }
        run(rng, &rounded(case), 0, true);
    }
    let mut rng = Rng::new(12);
    needle::<E4m3>(&mut rng);
    needle::<bf16>(&mut rng);
}

/// One captured graph serves batches whose lengths change between its replays.
#[test]
#[ignore = "needs an H200"]
fn a_graph_follows_the_batch() {
    let stream = gpu().stream();
    let shape = AttentionShape { query_heads: 16, kv_heads: 2, head_dim: 128 };
    let plan = Attention::new(shape, AttentionOptions::default()).unwrap();
    let mut workspace = plan.workspace(stream).unwrap();
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
    on_device.launch(stream, &plan, paged.layout, 1, &mut workspace, true).unwrap();
    check(&case, &on_device.written(stream), true);
    // SAFETY: everything outlives the graph.
    let graph = unsafe {
        Graph::capture(stream, || on_device.launch(stream, &plan, paged.layout, 1, &mut workspace, true))
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
        check(&case, &on_device.written(stream), true);
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
