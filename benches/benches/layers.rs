//! Norms and activations of Falcon-180B and Llama-70B, each with the quantization behind it, beside the bytes they move.
#![allow(clippy::expect_used, missing_docs, reason = "a bench is no library")]

use benches::Work;
use benches::gpu::{Activating, Case, Norming, Suite, TOKENS};
use layers::{Activation, Norm};
use serde_json::json;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut suite = match Suite::open("layers") {
        Ok(suite) => suite,
        Err(code) => return code,
    };
    for tokens in TOKENS {
        for (name, norm, features, deltas) in [
            ("Falcon-180B layer norm", Norm::layer(14848, 1e-5), 14848, 0),
            ("Falcon-180B layer norm, two deltas", Norm::layer(14848, 1e-5), 14848, 2),
            ("Llama-70B RMS norm, one delta", Norm::rms(8192, 1e-5), 8192, 1),
        ] {
            let (norm, shape) = (norm.expect("features are positive"), [tokens, features]);
            let case = case(&suite, "norm", name, shape, Norming::bytes(shape, deltas));
            let copies = case.copies;
            suite.measure(case, |bench| {
                let mut norming = Norming::new(bench, norm, shape, deltas, copies)?;
                Ok(move |copy| norming.launch(copy))
            });
        }
        for (name, activation, features) in
            [("Falcon-180B GELU", Activation::Gelu, 59392), ("Llama-70B SwiGLU", Activation::Swiglu, 28672)]
        {
            let shape = [tokens, features];
            let case = case(&suite, "activation", name, shape, Activating::bytes(activation, shape));
            let copies = case.copies;
            suite.measure(case, |bench| {
                let mut activating = Activating::new(bench, activation, shape, copies)?;
                Ok(move |copy| activating.launch(copy))
            });
        }
    }
    suite.finish()
}

fn case(suite: &Suite, group: &str, name: &str, [tokens, features]: [usize; 2], bytes: usize) -> Case {
    Case {
        group: group.to_owned(),
        name: format!("{name}, {tokens} x {features}"),
        shape: json!({ "tokens": tokens, "features": features }),
        work: Work::copy(bytes),
        copies: suite.bench().copies(bytes),
    }
}
