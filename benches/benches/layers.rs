//! Norms and activations of Falcon-180B and Llama-70B, each with the quantization behind it, beside the bytes they move.
#![allow(clippy::expect_used, missing_docs, reason = "a benchmark that cannot run ends")]

use benches::gpu::{Activating, Bench, Norming, Work, criterion};
use layers::{Activation, Norm};

fn main() {
    let Some(bench) = Bench::open() else { return };
    let mut criterion = criterion();
    for tokens in [1, 16, 64, 256, 2048] {
        for (name, norm, features, deltas) in [
            ("layer norm", Norm::layer(14848, 1e-5), 14848, 0),
            ("layer norm, two deltas", Norm::layer(14848, 1e-5), 14848, 2),
            ("RMS norm, one delta", Norm::rms(8192, 1e-5), 8192, 1),
        ] {
            let (norm, shape) = (norm.expect("a norm"), [tokens, features]);
            let bytes = Norming::bytes(shape, deltas);
            let copies = bench.copies(bytes);
            let operands = || Norming::new(&bench, norm, shape, deltas, copies);
            let kernel = || operands().map(|mut norming| move |copy| norming.launch(copy));
            let name = format!("{name}, {tokens} x {features}");
            let mut group = criterion.benchmark_group("norm");
            bench
                .measure(&mut group, &name, Work::copy(bench.card(), bytes), copies, kernel)
                .expect("the kernel runs");
        }
        for (name, activation, features) in
            [("GELU", Activation::Gelu, 59392), ("SwiGLU", Activation::Swiglu, 28672)]
        {
            let shape = [tokens, features];
            let bytes = Activating::bytes(activation, shape);
            let copies = bench.copies(bytes);
            let operands = || Activating::new(&bench, activation, shape, copies);
            let kernel = || operands().map(|mut activating| move |copy| activating.launch(copy));
            let name = format!("{name}, {tokens} x {features}");
            let mut group = criterion.benchmark_group("activation");
            bench
                .measure(&mut group, &name, Work::copy(bench.card(), bytes), copies, kernel)
                .expect("the kernel runs");
        }
    }
    criterion.final_summary();
}
