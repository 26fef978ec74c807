//! RoPE and append for Llama-70B and Falcon-180B, decode steps and a prefill, beside the bytes they move.
#![allow(missing_docs, reason = "a bench is no library")]

use benches::Batch;
use benches::gpu::{Appending, FALCON, LLAMA, Suite, TOKENS};
use device::E4m3;
use half::bf16;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut suite = match Suite::open("kv_cache") {
        Ok(suite) => suite,
        Err(code) => return code,
    };
    for tokens in TOKENS {
        // Prompts of 128 tokens, or the next token of sequences of 192.
        let batch = match tokens {
            4096.. => Batch::equal(tokens / 128, 128, 128),
            _ => Batch::equal(tokens, 192, 1),
        };
        for (model, shape) in [LLAMA, FALCON] {
            Appending::<E4m3>::measure(&mut suite, model, shape, &batch);
            Appending::<bf16>::measure(&mut suite, model, shape, &batch);
        }
    }
    suite.finish()
}
