//! The append step against complex numbers in f64, and the laws of rotation. Copies of pages, one by one.

// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Case, Copies, UNIT};
use device::{E4m3, Element, KvLayout};
use half::bf16;
use kv_cache::{CopyPages, RopeAppend};
use op_test::{Rng, assert_close_f64, cases};
use proptest::prelude::*;

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

fn copies<T: Element>(seed: u64, layout: KvLayout, pages: usize, host_pages: usize) {
    let mut case = Copies::<T>::random(&mut Rng::new(seed), layout, pages, host_pages);
    let want = case.copied();
    let mut pools: Vec<&mut [T]> = case.pools.iter_mut().map(Vec::as_mut_slice).collect();
    CopyPages::new(layout, &case.copies).reference(&mut pools, &mut case.host).unwrap();
    let bytes = |pool: &[T]| bytemuck::cast_slice::<T, u8>(pool).to_vec();
    let pools = case.pools.iter().map(|pool| bytes(pool)).collect::<Vec<_>>();
    assert!((pools, bytes(&case.host)) == want, "{:?}", case.copies);
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn copies_are_made_in_order(seed: u64, kv_heads in 1usize..3, pairs in 1usize..5, pages in 1usize..9, host in 0usize..9) {
        let layout = KvLayout::new(kv_heads, 2 * pairs).unwrap();
        copies::<f32>(seed, layout, pages, host);
        copies::<bf16>(seed, layout, pages, host);
        copies::<E4m3>(seed, layout, pages, host);
    }
}
