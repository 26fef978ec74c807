//! The append step against complex numbers in f64, and the laws of rotation.

// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

use device::{BatchView, E4m3, Element, KvLayout, KvPages, PAGE_SIZE};
use half::bf16;
use kv_cache::RopeAppend;
use op_test::{Guarded, Rng, assert_close_f64, cases};
use proptest::prelude::*;

/// What f32 rounds off: half a unit in the last place.
const UNIT: f64 = 1.0 / (1 << 24) as f64;

/// A batch in shuffled pages and everything the step reads.
#[derive(Debug, Clone)]
struct Case {
    plan: RopeAppend,
    pages: usize,
    block_tables: Vec<u32>,
    max_pages: usize,
    context_lens: Vec<u32>,
    query_offsets: Vec<u32>,
    frequencies: Vec<f32>,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    qkv: Vec<f32>,
}

/// What the step writes.
#[derive(Debug, Clone)]
struct Written<T> {
    queries: Vec<f32>,
    pool: Vec<T>,
}

impl Case {
    /// `sequences`: tokens in the cache and how many of them are new. Frequencies are one table or one a sequence.
    fn random(rng: &mut Rng, plan: RopeAppend, sequences: &[(usize, usize)], own_frequencies: bool) -> Self {
        let used: usize = sequences.iter().map(|s| s.0.div_ceil(PAGE_SIZE)).sum();
        let longest = sequences.iter().map(|s| s.0.div_ceil(PAGE_SIZE)).max().unwrap_or(0);
        let (pages, max_pages) = (used + 2, longest + rng.below(0..2));
        let mut free: Vec<u32> = (0..pages as u32).collect();
        let mut block_tables = vec![u32::MAX; sequences.len() * max_pages];
        let mut query_offsets = vec![0];
        for (index, (context, queries)) in sequences.iter().enumerate() {
            for entry in &mut block_tables[index * max_pages..][..context.div_ceil(PAGE_SIZE)] {
                *entry = free.swap_remove(rng.below(0..free.len()));
            }
            query_offsets.push(query_offsets[index] + *queries as u32);
        }
        let tokens = query_offsets[sequences.len()] as usize;
        let tables = if own_frequencies { sequences.len() } else { 1 };
        let half = plan.rotary_dim() / 2;
        let frequencies = (0..tables * half)
            .map(|i| 10000f32.powf(-((i % half) as f32) / half as f32) * (1.0 + 0.1 * rng.signed()))
            .collect();
        let kv_heads = plan.layout().kv_heads();
        let mut scales = || (0..kv_heads).map(|_| 0.01 + 0.1 * rng.signed().abs()).collect();
        let (key_scales, value_scales) = (scales(), scales());
        let qkv = rng.tensor(tokens * plan.qkv_features(), 2.0);
        let context_lens = sequences.iter().map(|s| s.0 as u32).collect();
        Self {
            plan,
            pages,
            block_tables,
            max_pages,
            context_lens,
            query_offsets,
            frequencies,
            key_scales,
            value_scales,
            qkv,
        }
    }

    fn batch(&self) -> BatchView<&[u32]> {
        BatchView {
            block_tables: &self.block_tables,
            max_pages: self.max_pages,
            context_lens: &self.context_lens,
            query_offsets: &self.query_offsets,
        }
    }

    /// Runs the reference on a pool of NaN, or on top of `pool`.
    fn run<T: Element>(&self, pool: Option<Vec<T>>) -> Written<T> {
        let layout = self.plan.layout();
        let mut pool =
            pool.unwrap_or_else(|| vec![T::from_f32(f32::NAN); self.pages * layout.page_elements()]);
        let mut queries = Guarded::<f32>::new(self.batch().tokens() * self.plan.query_features());
        let mut pages = KvPages {
            layout,
            pool: &mut pool[..],
            key_scales: &self.key_scales[..],
            value_scales: &self.value_scales[..],
        };
        let batch = self.batch();
        self.plan.reference(&self.qkv, &self.frequencies, &batch, queries.payload_mut(), &mut pages).unwrap();
        Written { queries: queries.checked(), pool }
    }

    /// Every new token: its sequence, its position, its row.
    fn new_tokens(&self) -> Vec<(usize, usize, usize)> {
        let batch = self.batch();
        let of =
            |index| batch.rows(index).zip(batch.first_position(index)..).map(move |(row, p)| (index, p, row));
        (0..batch.sequences()).flat_map(of).collect()
    }

    /// The head that starts at `offset` of row `row`, as complex numbers turned by `position`, in f64; and for each
    /// element the sum of the magnitudes that went into it.
    fn turned(&self, index: usize, position: usize, row: usize, offset: usize) -> (Vec<f64>, Vec<f64>) {
        let (dim, half) = (self.plan.layout().head_dim(), self.plan.rotary_dim() / 2);
        let head = &self.qkv[row * self.plan.qkv_features() + offset..][..dim];
        let mut turned: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
        let mut magnitudes: Vec<f64> = turned.iter().map(|x| x.abs()).collect();
        let first = if self.frequencies.len() == half { 0 } else { index * half };
        for pair in 0..half {
            // The angle is defined in f32: radians a token times the position, rounded.
            let angle = f64::from(self.frequencies[first + pair] * position as f32);
            let (re, im) = (f64::from(head[pair]), f64::from(head[pair + half]));
            let (modulus, argument) = (re.hypot(im), im.atan2(re));
            turned[pair] = modulus * (argument + angle).cos();
            turned[pair + half] = modulus * (argument + angle).sin();
            magnitudes[pair] = re.abs() + im.abs();
            magnitudes[pair + half] = re.abs() + im.abs();
        }
        (turned, magnitudes)
    }
}

/// Holds the queries, the keys and the values, and that nothing else was written.
fn check<T: Element>(case: &Case, roundoff: f64, floor: f64, largest: f64) {
    let written = case.run::<T>(None);
    let (layout, plan) = (case.plan.layout(), case.plan);
    let dim = layout.head_dim();
    let mut expected_holes = vec![true; written.pool.len()];
    for (index, position, row) in case.new_tokens() {
        for head in 0..plan.query_heads() {
            let (want, magnitudes) = case.turned(index, position, row, head * dim);
            // Sine and cosine are good to an ulp of one, the products and their sum rounded once each.
            let bounds: Vec<f64> = magnitudes.iter().map(|m| 4.0 * UNIT * m).collect();
            assert_close_f64(
                &written.queries[(row * plan.query_heads() + head) * dim..][..dim],
                &want,
                &bounds,
            );
        }
        let (page, slot) = case.batch().place(index, position);
        for head in 0..layout.kv_heads() {
            let (key, magnitudes) = case.turned(index, position, row, (plan.query_heads() + head) * dim);
            let scale = f64::from(case.key_scales[head]);
            for (d, (key, magnitude)) in key.into_iter().zip(magnitudes).enumerate() {
                let place = layout.key::<T>(page, head, slot, d);
                expected_holes[place] = false;
                let want = (key / scale).clamp(-largest, largest);
                let got = f64::from(written.pool[place].to_f32());
                let bound = roundoff * want.abs() + (1.0 + roundoff) * 5.0 * UNIT * magnitude / scale + floor;
                assert!(
                    (got - want).abs() <= bound,
                    "key {position} {head} {d}: {got} against {want} +- {bound}"
                );
            }
            let values = row * plan.qkv_features() + (plan.query_heads() + layout.kv_heads() + head) * dim;
            for d in 0..dim {
                let place = layout.value::<T>(page, head, slot, d);
                expected_holes[place] = false;
                assert_eq!(written.pool[place], T::from_f32(case.qkv[values + d] / case.value_scales[head]));
            }
        }
    }
    for (place, hole) in expected_holes.into_iter().enumerate() {
        assert_eq!(written.pool[place].to_f32().is_nan(), hole, "place {place} of the pool");
    }
}

fn plans() -> impl Strategy<Value = RopeAppend> {
    let dims = prop::sample::select(vec![2usize, 6, 16, 20, 64, 80, 128, 256]);
    let rotary = prop::sample::select(vec![0usize, 1, 2]);
    (1usize..9, 1usize..4, dims, rotary).prop_map(|(query_heads, kv_heads, head_dim, rotary)| {
        // None of a head turns, about half of it, or all.
        let rotary_dim = [0, head_dim / 4 * 2, head_dim][rotary];
        RopeAppend::new(query_heads, KvLayout::new(kv_heads, head_dim).unwrap(), rotary_dim).unwrap()
    })
}

/// Tokens in the cache, new ones among them.
fn sequences() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let context = prop_oneof![1usize..5, 15usize..18, 62usize..67, 126usize..131, 1usize..400];
    let queries = prop_oneof![Just(0usize), Just(1), 1usize..9, 62usize..70];
    let sequence = (context, queries).prop_map(|(context, queries)| (context, queries.min(context)));
    prop::collection::vec(sequence, 0..4)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn equals_complex_rotation_f32(plan in plans(), sequences in sequences(), own: bool, seed: u64) {
        check::<f32>(&Case::random(&mut Rng::new(seed), plan, &sequences, own), UNIT, 0.0, f64::INFINITY);
    }

    #[test]
    fn equals_complex_rotation_bf16(plan in plans(), sequences in sequences(), own: bool, seed: u64) {
        check::<bf16>(&Case::random(&mut Rng::new(seed), plan, &sequences, own), 1.0 / 256.0, 0.0, f64::INFINITY);
    }

    /// Scales are small here, so that some elements saturate; the floor is half of e4m3's smallest step.
    #[test]
    fn equals_complex_rotation_e4m3(plan in plans(), sequences in sequences(), own: bool, seed: u64) {
        check::<E4m3>(&Case::random(&mut Rng::new(seed), plan, &sequences, own), 1.0 / 16.0, 1.0 / 1024.0, 448.0);
    }

    /// A prompt appended in chunks leaves the same bits as appended at once.
    #[test]
    fn chunks_do_not_matter(plan in plans(), context in 2usize..300, seed: u64) {
        let mut rng = Rng::new(seed);
        let whole = Case::random(&mut rng, plan, &[(context, context)], false);
        let want = whole.run::<E4m3>(None);
        let (mut pool, mut queries, mut done) = (None, vec![], 0);
        while done < context {
            let chunk = rng.below(1..context - done + 1);
            let rows = done * plan.qkv_features()..(done + chunk) * plan.qkv_features();
            done += chunk;
            let case = Case {
                context_lens: vec![done as u32],
                query_offsets: vec![0, chunk as u32],
                qkv: whole.qkv[rows].to_vec(),
                ..whole.clone()
            };
            let written = case.run::<E4m3>(pool);
            queries.extend(written.queries);
            pool = Some(written.pool);
        }
        prop_assert_eq!(want.queries, queries);
        prop_assert_eq!(Some(want.pool), pool);
    }

    /// The product of a query and a key depends on how far apart they are, not on where they stand.
    #[test]
    fn only_the_distance_matters(dim in 1usize..65, distance in 0usize..60, shift in 1usize..1000, seed: u64) {
        let mut rng = Rng::new(seed);
        let layout = KvLayout::new(1, 2 * dim).unwrap();
        let plan = RopeAppend::new(1, layout, 2 * dim).unwrap();
        let near = Case {
            key_scales: vec![1.0],
            value_scales: vec![1.0],
            ..Case::random(&mut rng, plan, &[(distance + 1, distance + 1)], false)
        };
        // The same rows, `shift` tokens later.
        let far = Case {
            frequencies: near.frequencies.clone(),
            qkv: near.qkv.clone(),
            key_scales: vec![1.0],
            value_scales: vec![1.0],
            ..Case::random(&mut rng, plan, &[(shift + distance + 1, distance + 1)], false)
        };
        let product = |case: &Case| {
            let written = case.run::<f32>(None);
            let (page, slot) = case.batch().place(0, case.context_lens[0] as usize - 1 - distance);
            let query = &written.queries[distance * 2 * dim..];
            (0..2 * dim).map(|d| f64::from(query[d]) * f64::from(written.pool[layout.key::<f32>(page, 0, slot, d)]))
                .sum::<f64>()
        };
        // Angles are f32 products, off by a rounding of their size; all else by a few roundings.
        let size = |from: &[f32]| from[..2 * dim].iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
        let (q, k) = (size(&near.qkv[distance * plan.qkv_features()..]), size(&near.qkv[2 * dim..]));
        let angle = 1.1 * (shift + distance) as f64 * UNIT * 4.0;
        let slack = 2.0 * dim as f64 * q * k * 4.0 * (angle + 16.0 * UNIT);
        prop_assert!((product(&near) - product(&far)).abs() <= slack);
    }

    /// Position 0 turns nothing, and without rotary dims no position does.
    #[test]
    fn nothing_turns_at_the_start(plan in plans(), seed: u64) {
        let mut rng = Rng::new(seed);
        let case = Case::random(&mut rng, plan, &[(1, 1)], false);
        prop_assert_eq!(&case.run::<f32>(None).queries[..], &case.qkv[..plan.query_features()]);
        let still = RopeAppend::new(plan.query_heads(), plan.layout(), 0).unwrap();
        let case = Case::random(&mut rng, still, &[(150, 1)], false);
        prop_assert_eq!(&case.run::<f32>(None).queries[..], &case.qkv[..plan.query_features()]);
    }
}
