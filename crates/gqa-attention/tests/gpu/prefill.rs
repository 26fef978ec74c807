//! The prefill kernels. Which kernel runs hangs on the number of queries that the launch is told of, so these tell of many.

use crate::common::{Case, Sequence};
use crate::on_device::{self, rounded};
use crate::truth::Page;
use device::E4m3;
use gqa_attention::{Attention, AttentionKernel, AttentionOptions, AttentionShape};
use half::bf16;
use op_test::Rng;

/// Rows enough for prefill at any group.
const MAX_QUERIES: usize = 512;

fn run<T: Page>(rng: &mut Rng, case: &Case<T>, padding: usize, with_log_sum_exp: bool) -> Vec<u16> {
    let plan = Attention::new(case.shape, case.options.clone()).unwrap();
    assert_eq!(on_device::kernel(&plan, case.sequences.len(), MAX_QUERIES), AttentionKernel::Prefill);
    let (output, _) = on_device::run(rng, case, MAX_QUERIES, padding, with_log_sum_exp);
    output.iter().map(|x| x.to_bits()).collect()
}

fn both(rng: &mut Rng, shape: AttentionShape, options: &AttentionOptions, chunks: &[(usize, usize)]) {
    let sequences: Vec<Sequence> =
        chunks.iter().map(|&(context, queries)| Sequence { context, queries }).collect();
    let case = rounded(Case::<E4m3>::random(rng, shape, options.clone(), sequences.clone()));
    run(rng, &case, 1, true);
    let case = rounded(Case::<bf16>::random(rng, shape, options.clone(), sequences));
    run(rng, &case, 0, false);
}

fn shape(group: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape { query_heads: group * kv_heads, kv_heads, head_dim }
}

/// Every branch of the kernels once: several pages and warpgroups, pages that only some warpgroups see, tails of pages, masks
/// at both ends, ALiBi, sequences without queries, tokens beyond a tile.
#[test]
#[ignore = "needs an H200"]
fn small_chunks() {
    let mut rng = Rng::new(21);
    let slopes = |heads: usize| Some((0..heads).map(|head| 1.0 / (2 + head) as f32).collect());
    for head_dim in [64, 128] {
        let plain = AttentionOptions::default();
        both(&mut rng, shape(8, 2, head_dim), &plain, &[(1, 1), (70, 30), (64, 0), (130, 9)]);
        both(&mut rng, shape(1, 1, head_dim), &plain, &[(150, 140), (200, 3)]);
        both(&mut rng, shape(29, 1, head_dim), &plain, &[(65, 7)]);
        both(&mut rng, shape(71, 1, head_dim), &plain, &[(130, 3)]);
        let window = AttentionOptions { window: Some(40), ..AttentionOptions::default() };
        both(&mut rng, shape(2, 1, head_dim), &window, &[(200, 100), (300, 1)]);
        let all =
            AttentionOptions { alibi_slopes: slopes(3), window: Some(100), scale: Some(0.1), settled: true };
        both(&mut rng, shape(3, 1, head_dim), &all, &[(150, 45)]);
    }
}

/// More tiles than blocks: each goes from one to the next, over tails of pages, rows that fill no tile and sequences without
/// queries.
#[test]
#[ignore = "needs an H200"]
fn small_blocks_take_several_tiles() {
    let mut rng = Rng::new(24);
    let chunks: Vec<(usize, usize)> = (0..40)
        .map(|i| {
            let context = 1 + i * 53 % 200;
            (context, context.min(i * 29 % 90))
        })
        .collect();
    for head_dim in [64, 128] {
        both(&mut rng, shape(3, 8, head_dim), &AttentionOptions::default(), &chunks);
    }
}

#[test]
#[ignore = "needs an H200"]
fn real_chunks_full_size() {
    let mut rng = Rng::new(22);
    let plain = AttentionOptions::default();
    let (llama, falcon) = (shape(8, 8, 128), shape(29, 8, 64));
    both(&mut rng, llama, &plain, &[(300, 300), (1500, 64), (1, 1)]);
    both(&mut rng, falcon, &plain, &[(150, 150), (700, 17)]);
    both(&mut rng, shape(71, 1, 64), &plain, &[(300, 100)]);
    // More sequences than one step of the search for a tile's sequence takes in.
    let many: Vec<(usize, usize)> = (0..1100).map(|i| (1 + i % 90, i % 3)).collect();
    both(&mut rng, shape(4, 1, 64), &plain, &many);
    // Long sums stay accurate.
    both(&mut rng, shape(8, 1, 128), &plain, &[(20_000, 40)]);
    both(&mut rng, shape(8, 1, 64), &plain, &[(20_000, 40)]);
}

/// A row's bits hang neither on the batch around its sequence nor on the chunk that it comes in.
#[test]
#[ignore = "needs an H200"]
fn small_rows_alone_and_together() {
    fn alike<T: Page>(rng: &mut Rng, shape: AttentionShape) {
        let options = AttentionOptions { window: Some(300), ..AttentionOptions::default() };
        let sequences = [(330, 90), (3, 3), (200, 150)];
        let sequences = sequences.map(|(context, queries)| Sequence { context, queries }).to_vec();
        let case = rounded(Case::<T>::random(rng, shape, options, sequences));
        let together = run(rng, &case, 0, false);
        let width = shape.query_heads * shape.head_dim;
        for (index, queries, end) in [(0, 90, 90), (0, 31, 90), (1, 2, 93), (2, 77, 243), (2, 1, 243)] {
            let alone = run(rng, &case.alone(index, queries), 0, false);
            assert!(
                alone == together[(end - queries) * width..end * width],
                "sequence {index}, {queries} queries"
            );
        }
    }
    let mut rng = Rng::new(23);
    alike::<E4m3>(&mut rng, shape(3, 1, 128));
    alike::<bf16>(&mut rng, shape(3, 1, 128));
    alike::<E4m3>(&mut rng, shape(3, 1, 64));
    alike::<bf16>(&mut rng, shape(3, 1, 64));
}
