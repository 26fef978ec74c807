//! Attention over paged caches, Llama-70B's groups of 8 and Falcon-180B's of 29: decode at equal and ragged lengths, prefill of
//! whole prompts and of a chunk.
#![allow(missing_docs, reason = "a bench is no library")]

use benches::Batch;
use benches::gpu::{Attending, FALCON, LLAMA, Suite};
use device::E4m3;
use gqa_attention::AttentionShape;
use half::bf16;
use std::process::ExitCode;

/// A model, decode's sequences and context lengths, prefill's sequences, context lengths and new tokens.
type Shapes = ((&'static str, AttentionShape), &'static [[usize; 2]], &'static [[usize; 3]]);

const SHAPES: [Shapes; 2] = [
    (
        LLAMA,
        &[[960, 192], [192, 1152], [96, 2176], [16, 8192], [1, 4096], [1, 65536]],
        &[[1, 2048, 2048], [1, 8192, 8192], [1, 16384, 16384], [1, 16384, 2048], [960, 128, 128]],
    ),
    (FALCON, &[[256, 192], [128, 1152], [1, 2048]], &[[1, 2048, 2048], [256, 128, 128]]),
];

/// Of the ragged batch: as many bytes as 192 x 1152.
const SEED: u64 = 7;

fn main() -> ExitCode {
    let mut suite = match Suite::open("gqa_attention") {
        Ok(suite) => suite,
        Err(code) => return code,
    };
    println!(
        "Launches of a replay overlap, as in a captured step (programmatic dependent launch): decode loads pages of its settled \
         batch while the launch before it ends."
    );
    for ((model, shape), decode, _) in SHAPES {
        let equal = |&[sequences, context_len]: &[usize; 2]| {
            (format!("{sequences} x {context_len}"), Batch::equal(sequences, context_len, 1))
        };
        let mut batches: Vec<(String, Batch)> = decode.iter().map(equal).collect();
        batches.push(("192 ragged, mean 1152".to_owned(), Batch::ragged(192, 1152, 8192, SEED)));
        for (name, batch) in &batches {
            both(&mut suite, model, shape, name, batch);
        }
    }
    for ((model, shape), _, prefill) in SHAPES {
        for &[sequences, context_len, queries] in prefill {
            let name = match queries == context_len {
                true => format!("{sequences} x {context_len}"),
                false => format!("{sequences} x the last {queries} of {context_len}"),
            };
            both(&mut suite, model, shape, &name, &Batch::equal(sequences, context_len, queries));
        }
    }
    suite.finish()
}

fn both(suite: &mut Suite, model: &str, shape: AttentionShape, name: &str, batch: &Batch) {
    Attending::<E4m3>::measure(suite, model, shape, name, batch);
    Attending::<bf16>::measure(suite, model, shape, name, batch);
}
