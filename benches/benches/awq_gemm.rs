//! Products at the shapes of Falcon-180B and Llama-70B: of INT4 weights (W4A8 and W4A16), and cuBLASLt's of FP8 weights beside
//! them in the same run.
#![allow(missing_docs, reason = "a bench is no library")]

use benches::gpu::{LAYERS, Product, Suite, TOKENS};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut suite = match Suite::open("awq_gemm") {
        Ok(suite) => suite,
        Err(code) => return code,
    };
    // Few tokens first: what they show is memory's, and the card's clock has not given way yet.
    for tokens in TOKENS {
        for layer in &LAYERS {
            for product in [Product::W4A8, Product::Fp8, Product::W4A16] {
                product.measure(&mut suite, layer, tokens);
            }
        }
    }
    suite.finish()
}
