//! The choice of tokens for batches over the vocabularies of Falcon, Llama 2 and Llama 3: the largest logit, and all options of a
//! request.
#![allow(missing_docs, reason = "a bench is no library")]

use benches::Work;
use benches::gpu::{Case, Choosing, Sampling, Suite};
use sampling::Params;
use serde_json::json;
use std::process::ExitCode;

/// Rows and vocabulary.
const SHAPES: [[usize; 2]; 8] =
    [[1, 65024], [16, 65024], [64, 65024], [256, 65024], [1, 32000], [192, 32000], [960, 32000], [1, 128256]];

/// Tokens that penalties apply to.
const HISTORY: usize = 256;

fn main() -> ExitCode {
    let mut suite = match Suite::open("sampling") {
        Ok(suite) => suite,
        Err(code) => return code,
    };
    let temperature = Params { temperature: 0.8, ..Params::default() };
    let top_p = Params { top_p: 0.9, ..temperature.clone() };
    let all = Params {
        top_k: 50,
        min_p: 0.05,
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.2,
        logprobs: Some(0),
        ..top_p.clone()
    };
    let options = [
        ("temperature", temperature, 0),
        ("temperature, top-p", top_p, 0),
        ("all options, 256 tokens of history", all, HISTORY),
    ];
    for shape in SHAPES {
        let case = case(&suite, "argmax", shape, size_of::<half::bf16>());
        let copies = case.copies;
        suite.measure(case, |bench| {
            let mut choosing = Choosing::new(bench, shape, copies)?;
            Ok(move |copy| choosing.launch(copy))
        });
        for (group, params, history) in &options {
            let case = self::case(&suite, group, shape, size_of::<f32>());
            let copies = case.copies;
            suite.measure(case, |bench| {
                let mut sampling = Sampling::new(bench, shape, params, *history, copies)?;
                Ok(move |copy| sampling.launch(copy))
            });
        }
    }
    suite.finish()
}

/// Logits of `size` bytes, each read once.
fn case(suite: &Suite, group: &str, [rows, vocab_size]: [usize; 2], size: usize) -> Case {
    let bytes = rows * vocab_size * size;
    Case {
        group: group.to_owned(),
        name: format!("{rows} x {vocab_size}"),
        shape: json!({ "rows": rows, "vocab_size": vocab_size }),
        work: Work::read(bytes),
        copies: suite.bench().copies(bytes),
    }
}
