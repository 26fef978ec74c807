//! The append kernels against the reference: values bit for bit, queries and keys within the rounding of their formats, and
//! no other byte written. Copies of pages bit for bit.
#![cfg(feature = "cuda")]
// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Case, Copies, UNIT};
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use device::gpu::{Gpu, Graph, Pinned, download, upload, zeros};
use device::{BatchView, E4m3, Element, KvLayout, KvPages};
use half::bf16;
use kv_cache::{CopyPage, CopyPages, Direction, RopeAppend};
use op_test::{Guarded, Rng, cases};
use proptest::prelude::*;
use std::sync::{Arc, OnceLock};

type Stream = Arc<CudaStream>;

fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| Gpu::open(0).unwrap())
}

/// A pool's element with what its rounding allows.
trait Page: Element + DeviceRepr {
    const ROUNDOFF: f64;
    const FLOOR: f64;
    const LARGEST: f64;
}

impl Page for bf16 {
    const ROUNDOFF: f64 = 1.0 / 256.0;
    const FLOOR: f64 = 0.0;
    const LARGEST: f64 = f64::INFINITY;
}

impl Page for E4m3 {
    const ROUNDOFF: f64 = 1.0 / 16.0;
    /// Half of the smallest step.
    const FLOOR: f64 = 1.0 / 1024.0;
    const LARGEST: f64 = 448.0;
}

/// Everything of a case on the device. Queries and pool are poisoned and guarded.
struct OnDevice<T> {
    qkv: CudaSlice<bf16>,
    frequencies: CudaSlice<f32>,
    block_tables: CudaSlice<u32>,
    context_lens: CudaSlice<u32>,
    query_offsets: CudaSlice<u32>,
    key_scales: CudaSlice<f32>,
    value_scales: CudaSlice<f32>,
    queries: (Guarded<bf16>, CudaSlice<bf16>),
    pool: (Guarded<T>, CudaSlice<T>),
    max_pages: usize,
}

impl<T: Page> OnDevice<T> {
    /// `padding` rows of activations more than the batch has.
    fn new(stream: &Stream, case: &Case, padding: usize) -> Self {
        let rows = case.batch().tokens() + padding;
        let mut qkv: Vec<bf16> = case.qkv.iter().map(|&x| bf16::from_f32(x)).collect();
        qkv.resize(rows * case.plan.qkv_features(), bf16::ONE);
        let mut queries = Guarded::new(rows * case.plan.query_features());
        let mut pool = Guarded::new(case.pages * case.plan.layout().page_elements());
        let on_device = (
            upload(stream, queries.whole_mut(), "queries").unwrap(),
            upload(stream, pool.whole_mut(), "pool").unwrap(),
        );
        Self {
            qkv: upload(stream, &qkv, "qkv").unwrap(),
            frequencies: upload(stream, &case.frequencies, "frequencies").unwrap(),
            block_tables: upload(stream, &case.block_tables, "block tables").unwrap(),
            context_lens: upload(stream, &case.context_lens, "context lengths").unwrap(),
            query_offsets: upload(stream, &case.query_offsets, "query offsets").unwrap(),
            key_scales: upload(stream, &case.key_scales, "key scales").unwrap(),
            value_scales: upload(stream, &case.value_scales, "value scales").unwrap(),
            queries: (queries, on_device.0),
            pool: (pool, on_device.1),
            max_pages: case.max_pages,
        }
    }

    fn launch(&mut self, stream: &Stream, plan: &RopeAppend) -> device::Result<()> {
        let batch = BatchView {
            block_tables: &self.block_tables,
            max_pages: self.max_pages,
            context_lens: &self.context_lens,
            query_offsets: &self.query_offsets,
        };
        let mut pool = self.pool.1.slice_mut(self.pool.0.range());
        let mut queries = self.queries.1.slice_mut(self.queries.0.range());
        let (key_scales, value_scales) = (&self.key_scales, &self.value_scales);
        let mut pages = KvPages { layout: plan.layout(), pool: &mut pool, key_scales, value_scales };
        plan.launch::<T>(stream, &self.qkv, &self.frequencies, &batch, &mut queries, &mut pages)
    }

    /// Queries and pool, their guard zones checked.
    fn written(&mut self, stream: &Stream) -> (Vec<bf16>, Vec<T>) {
        fn payload<T: Page>(stream: &Stream, (guarded, device): &mut (Guarded<T>, CudaSlice<T>)) -> Vec<T> {
            let whole: Vec<T> = download(stream, device).unwrap();
            let range = guarded.range();
            let poisoned = |part: &[T]| part.iter().all(|x| x.to_f32().is_nan());
            assert!(
                poisoned(&whole[..range.start]) && poisoned(&whole[range.end..]),
                "a guard zone was written"
            );
            whole[range].to_vec()
        }
        (payload(stream, &mut self.queries), payload(stream, &mut self.pool))
    }
}

/// The case as the kernel sees it: activations rounded to bf16.
fn rounded(mut case: Case) -> Case {
    case.qkv.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    case
}

/// Holds what the kernel wrote for `case`, `padding` rows behind it left alone.
#[track_caller]
fn check<T: Page>(case: &Case, (queries, pool): &(Vec<bf16>, Vec<T>)) {
    // The reference without the rounding of the pages, and with it.
    let (exact, stored) = (case.run::<f32>(None), case.run::<T>(None));
    let (layout, plan) = (case.plan.layout(), case.plan);
    let (dim, half) = (layout.head_dim(), plan.rotary_dim() / 2);
    // Sine, cosine, products and sum on both sides, and a rounding of the key's quotient: relative to the length of the
    // pair that turned.
    let slack = |head: &[f64], d: usize| match half {
        0 => 0.0,
        _ => 16.0 * UNIT * head[d % half].hypot(head[d % half + half]),
    };
    let (got_rows, padding) = queries.split_at(exact.queries.len());
    for (row, (got, want)) in got_rows.chunks(dim).zip(exact.queries.chunks(dim)).enumerate() {
        let want: Vec<f64> = want.iter().map(|&x| f64::from(x)).collect();
        for d in 0..dim {
            let (got, bound) = (f64::from(got[d].to_f32()), want[d].abs() / 256.0 + 1.01 * slack(&want, d));
            assert!(
                (got - want[d]).abs() <= bound,
                "query row {row} dim {d}: {got} against {} +- {bound}",
                want[d]
            );
        }
    }
    assert!(padding.iter().all(|x| x.is_nan()), "a row behind the batch was written");
    let mut untouched = vec![true; pool.len()];
    for (index, position, _) in case.new_tokens() {
        let (page, slot) = case.batch().place(index, position);
        for head in 0..layout.kv_heads() {
            let place = |d| layout.key::<T>(page, head, slot, d);
            let want: Vec<f64> =
                (0..dim).map(|d| f64::from(exact.pool[layout.key::<f32>(page, head, slot, d)])).collect();
            for d in 0..dim {
                let (got, value) =
                    (f64::from(pool[place(d)].to_f32()), layout.value::<T>(page, head, slot, d));
                let bound = T::ROUNDOFF * want[d].abs() + (1.0 + T::ROUNDOFF) * slack(&want, d) + T::FLOOR;
                let clamped = want[d].clamp(-T::LARGEST, T::LARGEST);
                assert!(
                    (got - clamped).abs() <= bound,
                    "key {index} {position} {head} {d}: {got} against {clamped}"
                );
                assert_eq!(pool[value], stored.pool[value], "value {index} {position} {head} {d}");
                (untouched[place(d)], untouched[value]) = (false, false);
            }
        }
    }
    let wrong = (0..pool.len()).find(|&place| pool[place].to_f32().is_nan() != untouched[place]);
    assert_eq!(
        wrong, None,
        "a place of the pool that is not the batch's was written, or one that is was not"
    );
}

fn run<T: Page>(stream: &Stream, case: &Case, padding: usize) {
    let mut on_device = OnDevice::<T>::new(stream, case, padding);
    on_device.launch(stream, &case.plan).unwrap();
    check(case, &on_device.written(stream));
}

fn plan(query_heads: usize, kv_heads: usize, head_dim: usize, turns: bool) -> RopeAppend {
    let layout = KvLayout::new(kv_heads, head_dim).unwrap();
    RopeAppend::new(query_heads, layout, if turns { head_dim } else { 0 }).unwrap()
}

fn plans() -> impl Strategy<Value = RopeAppend> {
    let dims = prop::sample::select(vec![16usize, 32, 48, 64, 80, 128, 192, 256]);
    let groups = prop::sample::select(vec![1usize, 2, 8, 29, 71]);
    (groups, 1usize..4, dims, any::<bool>())
        .prop_map(|(group, kv_heads, head_dim, turns)| plan(group * kv_heads, kv_heads, head_dim, turns))
}

fn sequences() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let context = prop_oneof![1usize..5, 15usize..18, 62usize..67, 126usize..131, 1usize..300];
    let queries = prop_oneof![Just(0usize), Just(1), 1usize..9, 62usize..70];
    let sequence = (context, queries).prop_map(|(context, queries)| (context, queries.min(context)));
    prop::collection::vec(sequence, 0..6)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    #[ignore = "needs an H200"]
    fn random_batches(plan in plans(), sequences in sequences(), own: bool, padding in 0usize..5, seed: u64) {
        let gpu = gpu();
        let case = rounded(Case::random(&mut Rng::new(seed), plan, &sequences, own));
        run::<E4m3>(gpu.stream(), &case, padding);
        run::<bf16>(gpu.stream(), &case, padding);
    }
}

#[test]
#[ignore = "needs an H200"]
fn real_shapes() {
    let gpu = gpu();
    let decode: Vec<(usize, usize)> = (0..256).map(|i| (1 + i % 130, 1)).collect();
    let prefill = [(1000, 1000), (700, 300), (2048, 1), (129, 129)];
    for plan in
        [plan(232, 8, 64, true), plan(64, 8, 128, true), plan(71, 1, 64, true), plan(32, 32, 64, false)]
    {
        for sequences in [&decode[..], &prefill[..]] {
            let case = rounded(Case::random(&mut Rng::new(7), plan, sequences, false));
            run::<E4m3>(gpu.stream(), &case, 0);
            run::<bf16>(gpu.stream(), &case, 0);
        }
    }
}

/// One captured graph serves batches that change between its replays.
#[test]
#[ignore = "needs an H200"]
fn a_graph_follows_the_batch() {
    let gpu = gpu();
    let stream = gpu.stream();
    let plan = plan(16, 2, 128, true);
    let mut rng = Rng::new(3);
    // Three sequences, at most 20 pages each and 40 new tokens in all.
    let mut batch = |sequences: &[(usize, usize)]| {
        let mut case = rounded(Case::random(&mut rng, plan, sequences, false));
        let mut tables = vec![u32::MAX; 3 * 20];
        for (row, table) in case.block_tables.chunks(case.max_pages).enumerate() {
            tables[row * 20..][..table.len()].copy_from_slice(table);
        }
        (case.block_tables, case.max_pages, case.pages) = (tables, 20, 64);
        case
    };
    let first = batch(&[(1200, 1), (5, 5), (64, 34)]);
    let mut on_device = OnDevice::<E4m3>::new(stream, &first, 0);
    on_device.launch(stream, &plan).unwrap();
    check(&first, &on_device.written(stream));
    // SAFETY: `on_device` outlives the graph.
    let graph = unsafe { Graph::capture(stream, || on_device.launch(stream, &plan)) }.unwrap();
    for sequences in
        [[(65, 1), (1000, 0), (39, 39)], [(1, 1), (1, 1), (1, 1)], [(900, 12), (77, 13), (500, 15)]]
    {
        let next = batch(&sequences);
        let qkv: Vec<bf16> = next.qkv.iter().map(|&x| bf16::from_f32(x)).collect();
        stream.memcpy_htod(&qkv, &mut on_device.qkv).unwrap();
        stream.memcpy_htod(&next.frequencies, &mut on_device.frequencies).unwrap();
        stream.memcpy_htod(&next.block_tables, &mut on_device.block_tables).unwrap();
        stream.memcpy_htod(&next.context_lens, &mut on_device.context_lens).unwrap();
        stream.memcpy_htod(&next.query_offsets, &mut on_device.query_offsets).unwrap();
        stream.memcpy_htod(&next.key_scales, &mut on_device.key_scales).unwrap();
        stream.memcpy_htod(&next.value_scales, &mut on_device.value_scales).unwrap();
        let poison = |len| vec![bf16::NAN; len];
        stream.memcpy_htod(&poison(on_device.queries.1.len()), &mut on_device.queries.1).unwrap();
        stream.memcpy_htod(&vec![E4m3::NAN; on_device.pool.1.len()], &mut on_device.pool.1).unwrap();
        graph.replay().unwrap();
        check(&next, &on_device.written(stream));
    }
}

/// What stands in the batch cannot be checked on the host: nonsense leaves tokens out and never leads outside the pool.
#[test]
#[ignore = "needs an H200"]
fn nonsense_in_the_batch_writes_nothing() {
    let gpu = gpu();
    let stream = gpu.stream();
    let good = rounded(Case::random(&mut Rng::new(5), plan(8, 2, 64, true), &[(130, 4), (70, 1)], false));
    let nothing = |spoil: &dyn Fn(&mut Case)| {
        let mut case = good.clone();
        spoil(&mut case);
        let mut on_device = OnDevice::<E4m3>::new(stream, &good, 0);
        on_device.block_tables = upload(stream, &case.block_tables, "block tables").unwrap();
        on_device.context_lens = upload(stream, &case.context_lens, "context lengths").unwrap();
        on_device.query_offsets = upload(stream, &case.query_offsets, "query offsets").unwrap();
        on_device.launch(stream, &case.plan).unwrap();
        let (queries, pool) = on_device.written(stream);
        assert!(queries.iter().all(|x| x.is_nan()) && pool.iter().all(|x| x.to_f32().is_nan()));
    };
    nothing(&|case| case.block_tables.fill(case.pages as u32));
    nothing(&|case| case.block_tables.fill(u32::MAX));
    nothing(&|case| case.context_lens.fill(0));
    nothing(&|case| case.context_lens.fill(u32::MAX));
    nothing(&|case| case.query_offsets.fill(0));
    nothing(&|case| case.query_offsets.fill(u32::MAX));
}

#[test]
#[ignore = "needs an H200"]
fn refusals() {
    let gpu = gpu();
    let stream = gpu.stream();
    fn attempt<T: Page>(stream: &Stream, plan: RopeAppend, spoil: impl FnOnce(&mut OnDevice<T>)) -> String {
        let case = Case::random(&mut Rng::new(1), plan, &[(3, 2), (65, 1)], false);
        let mut on_device = OnDevice::<T>::new(stream, &case, 0);
        spoil(&mut on_device);
        on_device.launch(stream, &plan).unwrap_err().to_string()
    }
    let good = plan(4, 2, 64, true);
    let layout = good.layout();
    let fewer = |stream: &Stream| zeros::<u32>(stream, 2, "too few").unwrap();
    assert_eq!(
        attempt::<E4m3>(stream, plan(4, 2, 24, true), |_| ()),
        "rope_append: head_dim: expected a positive multiple of 16, got 24"
    );
    assert_eq!(
        attempt::<E4m3>(stream, plan(4, 2, 272, true), |_| ()),
        "rope_append: head_dim: expected at most 256, got 272"
    );
    assert_eq!(
        attempt::<E4m3>(stream, RopeAppend::new(4, layout, 32).unwrap(), |_| ()),
        "rope_append: rotary_dim: expected 0 or 64, got 32"
    );
    assert_eq!(
        attempt::<bf16>(stream, good, |d| d.query_offsets = fewer(stream)),
        "rope_append: query_offsets: expected 3 elements, got 2"
    );
    let short_tables = |d: &mut OnDevice<bf16>| (d.block_tables, d.max_pages) = (fewer(stream), 9);
    assert_eq!(
        attempt::<bf16>(stream, good, short_tables),
        "rope_append: block_tables: expected 18 elements, got 2"
    );
    assert_eq!(
        attempt::<bf16>(stream, good, |d| d.key_scales = zeros(stream, 3, "too many").unwrap()),
        "rope_append: key_scales: expected 2 elements, got 3"
    );
}

/// The bytes of the pools and of the host after the copies, which go beside poisoned guard zones.
fn copied<T: Page>(stream: &Stream, case: &Copies<T>) -> (Vec<Vec<u8>>, Vec<u8>) {
    let bytes = |pool: &[T]| bytemuck::cast_slice::<T, u8>(pool).to_vec();
    let mut layers: Vec<(Guarded<T>, CudaSlice<T>)> = Vec::new();
    for pool in &case.pools {
        let mut guarded = Guarded::<T>::new(pool.len());
        let range = guarded.range();
        guarded.whole_mut()[range].copy_from_slice(pool);
        let pool = upload(stream, guarded.whole_mut(), "pool").unwrap();
        layers.push((guarded, pool));
    }
    let mut host = Pinned::<T>::zeros(stream.context(), case.host.len()).unwrap();
    host.as_mut_slice().unwrap().copy_from_slice(&case.host);
    let mut views: Vec<_> =
        layers.iter_mut().map(|(guarded, pool)| pool.slice_mut(guarded.range())).collect();
    CopyPages::new(case.layout, &case.copies).launch(stream, &mut views, &mut host).unwrap();
    drop(views);
    let payload = |(guarded, pool): &mut (Guarded<T>, CudaSlice<T>)| {
        let (whole, range) = (download(stream, pool).unwrap(), guarded.range());
        let before = guarded.whole_mut();
        assert_eq!(bytes(&whole[..range.start]), bytes(&before[..range.start]), "the guard in front");
        assert_eq!(bytes(&whole[range.end..]), bytes(&before[range.end..]), "the guard behind");
        bytes(&whole[range])
    };
    (layers.iter_mut().map(payload).collect(), bytes(host.as_slice().unwrap()))
}

#[test]
#[ignore = "needs an H200"]
fn copies_are_made_in_order() {
    fn run<T: Page>(stream: &Stream, rng: &mut Rng, layout: KvLayout) {
        let (pages, host_pages) = (rng.below(1..9), rng.below(0..9));
        let case = Copies::<T>::random(rng, layout, pages, host_pages);
        assert!(copied(stream, &case) == case.copied(), "{:?}", case.copies);
    }
    let gpu = gpu();
    let mut rng = Rng::new(29);
    for _ in 0..cases().cases / 4 {
        let layout = KvLayout::new(rng.below(1..4), 16 * rng.below(1..9)).unwrap();
        run::<E4m3>(gpu.stream(), &mut rng, layout);
        run::<bf16>(gpu.stream(), &mut rng, layout);
    }
}

/// Pages of which each was written by the append step go out, are overwritten by another sequence's, and come back to other
/// places: the step that reads them there finds every byte. Nothing waits in between.
#[test]
#[ignore = "needs an H200"]
fn pages_go_out_and_come_back_among_steps() {
    let gpu = gpu();
    let stream = gpu.stream();
    let mut rng = Rng::new(31);
    let plan = plan(16, 2, 128, true);
    let page = plan.layout().page_elements();
    // Two sequences that fill the same pages with other tokens.
    let mut batch = || rounded(Case::random(&mut rng, plan, &[(192, 192)], false));
    let (first, second) = (batch(), batch());
    let mut filled = OnDevice::<E4m3>::new(stream, &first, 0);
    filled.launch(stream, &plan).unwrap();
    let (_, want) = filled.written(stream);

    let mut steps = OnDevice::<E4m3>::new(stream, &first, 0);
    let pages = first.pages as u32;
    let copy = |pairs: &[(u32, u32)], direction| {
        let copies: Vec<_> = pairs.iter().map(|&(from, to)| CopyPage { from, to, direction }).collect();
        CopyPages::new(plan.layout(), &copies)
    };
    let out: Vec<(u32, u32)> = (0..pages).map(|page| (page, pages - 1 - page)).collect();
    let back: Vec<(u32, u32)> = out.iter().map(|&(page, host)| (host, (page + 1) % pages)).collect();
    let mut host = Pinned::<E4m3>::zeros(gpu.context(), pages as usize * page).unwrap();
    let other =
        upload(stream, &second.qkv.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), "qkv").unwrap();
    steps.launch(stream, &plan).unwrap();
    let range = steps.pool.0.range();
    copy(&out, Direction::ToHost)
        .launch(stream, &mut [steps.pool.1.slice_mut(range.clone())], &mut host)
        .unwrap();
    let own = std::mem::replace(&mut steps.qkv, other);
    steps.launch(stream, &plan).unwrap();
    copy(&back, Direction::ToDevice).launch(stream, &mut [steps.pool.1.slice_mut(range)], &mut host).unwrap();
    let (_, got) = steps.written(stream);
    drop(own);
    assert!(want.iter().any(|x| !x.to_f32().is_nan()), "the step wrote something");
    for (index, old) in want.chunks(page).enumerate() {
        let new = (index + 1) % first.pages * page;
        assert!(got[new..new + page] == *old, "page {index}");
    }
}
