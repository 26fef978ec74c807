//! INT4 products at the shapes of Falcon-180B and Llama-70B: W4A8 at every number of tokens, W4A16 at few.
#![allow(clippy::expect_used, missing_docs, reason = "a benchmark that cannot run ends")]

use benches::gpu::{Bench, Int4Layer, LAYERS, TOKENS, Work, criterion};

/// Beyond this the multiplication sets the floor, and FP8 is twice as fast.
const MOST_W4A16_TOKENS: usize = 64;

fn main() {
    let Some(bench) = Bench::open() else { return };
    let mut criterion = criterion();
    for layer in &LAYERS {
        let bytes = layer.int4_bytes();
        let copies = bench.copies(bytes);
        for tokens in TOKENS {
            let operations = layer.operations(tokens);
            let name = format!("{} {} x {}, M = {tokens}", layer.name, layer.out_features, layer.in_features);
            let operands = || Int4Layer::new(&bench, layer, tokens, copies);
            let work = Work::fp8(bench.card(), bytes, operations);
            let mut group = criterion.benchmark_group("W4A8");
            let product = || operands().map(|mut layer| move |copy| layer.launch_w4a8(copy));
            bench.measure(&mut group, &name, work, copies, product).expect("a product runs");
            drop(group);
            if tokens <= MOST_W4A16_TOKENS {
                let work = Work::bf16(bench.card(), bytes, operations);
                let mut group = criterion.benchmark_group("W4A16");
                let product = || operands().map(|mut layer| move |copy| layer.launch_w4a16(copy));
                bench.measure(&mut group, &name, work, copies, product).expect("a product runs");
            }
        }
    }
    criterion.final_summary();
}
