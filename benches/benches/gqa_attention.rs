//! Decode attention over paged caches: Llama-70B's groups of 8, Falcon-180B's of 29, equal and ragged lengths.
#![allow(clippy::expect_used, missing_docs, reason = "a benchmark that cannot run ends")]

use benches::gpu::{Bench, Decode, Lengths, Page, Work, criterion, ragged};
use criterion::Criterion;
use device::E4m3;
use gqa_attention::AttentionShape;
use half::bf16;

const LLAMA: (&str, AttentionShape) =
    ("Llama-70B", AttentionShape { query_heads: 64, kv_heads: 8, head_dim: 128 });
const FALCON: (&str, AttentionShape) =
    ("Falcon-180B", AttentionShape { query_heads: 232, kv_heads: 8, head_dim: 64 });

/// Of the ragged batch.
const SEED: u64 = 7;

fn main() {
    let Some(bench) = Bench::open() else { return };
    let mut criterion = criterion();
    for (model, shapes) in [
        (LLAMA, &[(960, 192), (192, 1152), (96, 2176), (16, 8192), (1, 4096), (1, 65536)][..]),
        (FALCON, &[(256, 192), (128, 1152), (1, 2048)]),
    ] {
        for &(batch, context) in shapes {
            let lengths = Lengths::equal(batch, context);
            let name = format!("{batch} x {context}");
            decode::<E4m3>(&bench, &mut criterion, model, &name, &lengths);
            decode::<bf16>(&bench, &mut criterion, model, &name, &lengths);
        }
        let lengths = ragged(192, 1152, 8192, SEED);
        decode::<E4m3>(&bench, &mut criterion, model, "192 ragged, mean 1152", &lengths);
    }
    criterion.final_summary();
}

fn decode<T: Page>(
    bench: &Bench,
    criterion: &mut Criterion,
    (model, shape): (&str, AttentionShape),
    name: &str,
    lengths: &Lengths,
) {
    let bytes = Decode::<T>::bytes(shape, lengths);
    let copies = bench.copies(bytes);
    // The floor is the cache's bytes alone: 16-bit products over it are short of setting one.
    let work = Work {
        operations: Decode::<T>::operations(shape, lengths),
        rate: f64::INFINITY,
        ..Work::fp8(bench.card(), bytes, 0.0)
    };
    let mut group = criterion.benchmark_group(format!("decode {model}, {} pages", T::NAME));
    let operands = || Decode::<T>::new(bench, shape, lengths, copies);
    let decode = || operands().map(|mut decode| move |copy| decode.launch(copy));
    bench.measure(&mut group, name, work, copies, decode).expect("attention runs");
}
