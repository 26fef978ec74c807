//! The FP8 product (cuBLASLt) at the shapes of Falcon-180B and Llama-70B, and the quantizing kernel in front of it, from a
//! step's activations to tensors of 64 MB and more.
#![allow(missing_docs, reason = "a bench is no library")]

use benches::Work;
use benches::gpu::{Case, LAYERS, Product, Quantizing, Suite, TOKENS};
use serde_json::json;
use std::process::ExitCode;

/// Tokens and features: a decode step's, then those of prefill, from 64 MB on.
const QUANTIZED: [[usize; 2]; 7] =
    [[16, 8192], [256, 14848], [960, 8192], [4096, 8192], [8192, 8192], [4096, 14848], [8192, 14848]];

fn main() -> ExitCode {
    let mut suite = match Suite::open("fp8") {
        Ok(suite) => suite,
        Err(code) => return code,
    };
    for [tokens, features] in QUANTIZED {
        let bytes = Quantizing::bytes(tokens, features);
        let case = Case {
            group: "quantize per token, group sums".to_owned(),
            name: format!("{tokens} x {features}"),
            shape: json!({ "tokens": tokens, "features": features }),
            work: Work::copy(bytes),
            copies: suite.bench().copies(bytes),
        };
        let copies = case.copies;
        suite.measure(case, |bench| {
            let mut quantizing = Quantizing::new(bench, tokens, features, copies)?;
            Ok(move |copy| quantizing.launch(copy))
        });
    }
    for tokens in TOKENS {
        for layer in &LAYERS {
            Product::Fp8.measure(&mut suite, layer, tokens);
        }
    }
    suite.finish()
}
