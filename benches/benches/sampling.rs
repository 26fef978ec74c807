//! The greedy choice for batches over the vocabularies of Falcon, Llama 2 and Llama 3.
#![allow(clippy::expect_used, missing_docs, reason = "a benchmark that cannot run ends")]

use benches::gpu::{Bench, Choosing, Work, criterion};

fn main() {
    let Some(bench) = Bench::open() else { return };
    let mut criterion = criterion();
    for (rows, vocab_size) in [(1, 65024), (1, 128256), (16, 65024), (64, 65024), (256, 65024), (960, 32000)]
    {
        let bytes = rows * vocab_size * 2;
        let copies = bench.copies(bytes);
        let operands = || Choosing::new(&bench, [rows, vocab_size], copies);
        let kernel = || operands().map(|mut choosing| move |copy| choosing.launch(copy));
        let (name, work) = (format!("{rows} x {vocab_size}"), Work::fp8(bench.card(), bytes, 0.0));
        let mut group = criterion.benchmark_group("argmax");
        bench.measure(&mut group, &name, work, copies, kernel).expect("the kernel runs");
    }
    criterion.final_summary();
}
