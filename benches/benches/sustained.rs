//! Products kept up for 7 seconds: the card's power cap then sets the rate, so the clock and the power stand beside it.
#![allow(missing_docs, reason = "a bench is no library")]

use benches::gpu::{LAYERS, Layer, Product, Suite};
use std::process::ExitCode;
use std::time::Duration;

const DURATION: Duration = Duration::from_secs(7);

/// Falcon's `up` and Llama's gate and up.
const SUSTAINED: [&Layer; 2] = [&LAYERS[2], &LAYERS[6]];

fn main() -> ExitCode {
    let mut suite = match Suite::open_table("sustained") {
        Ok(suite) => suite,
        Err(code) => return code,
    };
    for layer in SUSTAINED {
        for tokens in [256, 8192] {
            for product in [Product::W4A8, Product::Fp8] {
                product.sustain(&mut suite, layer, tokens, DURATION);
            }
        }
    }
    suite.finish()
}
