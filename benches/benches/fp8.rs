//! The FP8 product (cuBLASLt) at the shapes of Falcon-180B and Llama-70B, and the quantizing kernel at tensors of 64 MB and
//! more.
#![allow(clippy::expect_used, missing_docs, reason = "a benchmark that cannot run ends")]

use benches::gpu::{Bench, Fp8Layer, LAYERS, Quantizing, TOKENS, Work, criterion};

fn main() {
    let Some(bench) = Bench::open() else { return };
    let mut criterion = criterion();
    for layer in &LAYERS {
        let bytes = layer.fp8_bytes();
        let copies = bench.copies(bytes);
        for tokens in TOKENS {
            let name = format!("{} {} x {}, M = {tokens}", layer.name, layer.out_features, layer.in_features);
            let operands = || Fp8Layer::new(&bench, layer, tokens, copies);
            let product = || operands().map(|mut layer| move |copy| layer.launch(copy));
            let work = Work::fp8(bench.card(), bytes, layer.operations(tokens));
            let mut group = criterion.benchmark_group("FP8 product");
            bench.measure(&mut group, &name, work, copies, product).expect("a product runs");
        }
    }
    for (tokens, features) in [(256, 14848), (960, 8192), (8192, 8192), (4096, 14848), (8192, 14848)] {
        let bytes = Quantizing::bytes(tokens, features);
        let copies = bench.copies(bytes);
        let operands = || Quantizing::new(&bench, tokens, features, copies);
        let kernel = || operands().map(|mut quantizing| move |copy| quantizing.launch(copy));
        let (name, work) = (format!("{tokens} x {features}"), Work::copy(bench.card(), bytes));
        let mut group = criterion.benchmark_group("quantize per token");
        bench.measure(&mut group, &name, work, copies, kernel).expect("the kernel runs");
    }
    criterion.final_summary();
}
