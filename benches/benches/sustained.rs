//! Products kept up for 7 seconds: the card's power cap then sets the rate, so the clock and the power stand beside it.
#![allow(clippy::expect_used, missing_docs, reason = "a benchmark that cannot run ends")]

use benches::gpu::{Bench, Fp8Layer, Int4Layer, LAYERS, Layer, sustain};
use device::Result;
use std::time::Duration;

const DURATION: Duration = Duration::from_secs(7);

/// Falcon's `up` and Llama's gate and up.
const SUSTAINED: [&Layer; 2] = [&LAYERS[2], &LAYERS[6]];

fn main() {
    let Some(bench) = Bench::open() else { return };
    println!(
        "| product | N x K | M | TFLOP/s over 7 s | weights GB/s | SM MHz | W |\n|---|---|---|---|---|---|---|"
    );
    for layer in SUSTAINED {
        for tokens in [256, 8192] {
            int4(&bench, layer, tokens).expect("a product runs");
            fp8(&bench, layer, tokens).expect("a product runs");
        }
    }
}

fn int4(bench: &Bench, layer: &Layer, tokens: usize) -> Result<()> {
    let copies = bench.copies(layer.int4_bytes());
    let mut product = Int4Layer::new(bench, layer, tokens, copies)?;
    run(bench, "W4A8", layer, tokens, layer.int4_bytes(), copies, |copy| product.launch_w4a8(copy))
}

fn fp8(bench: &Bench, layer: &Layer, tokens: usize) -> Result<()> {
    let copies = bench.copies(layer.fp8_bytes());
    let mut product = Fp8Layer::new(bench, layer, tokens, copies)?;
    run(bench, "FP8 (cuBLASLt)", layer, tokens, layer.fp8_bytes(), copies, |copy| product.launch(copy))
}

fn run(
    bench: &Bench,
    product: &str,
    layer: &Layer,
    tokens: usize,
    bytes: usize,
    copies: usize,
    launch: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    let replay = bench.capture(copies, launch)?;
    let sustained = sustain(bench, &replay, DURATION)?;
    let (clock, power) =
        sustained.clock_and_power.map_or(("-".to_owned(), "-".to_owned()), |(clock, power)| {
            (format!("{clock:.0}"), format!("{power:.0}"))
        });
    println!(
        "| {product} | {} x {} | {tokens} | {:.0} | {:.0} | {clock} | {power} |",
        layer.out_features,
        layer.in_features,
        layer.operations(tokens) / sustained.seconds * 1e-12,
        bytes as f64 / sustained.seconds * 1e-9,
    );
    Ok(())
}
