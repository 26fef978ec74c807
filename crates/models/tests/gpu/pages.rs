//! Pages that go to the host, are overwritten on the device, and come back to other places: the model goes on as if nothing
//! had been.

use super::configs::{falcon, llama, settings};
use super::cuda;
use kv_cache::{CopyPage, Direction};
use models::{Cuda, KvDtype, Model, Sample, Step, StepSequence};
use sampling::Params;
use serde_json::{Value, json};

const PROMPT: usize = 150;

fn model(config: &Value, kv: KvDtype) -> Model<Cuda> {
    let (config, quantization) = settings(config.clone());
    let model = Model::synthetic(&config, &quantization, cuda(), 9, kv, 3, &mut |_| ()).unwrap();
    model.with_host_pages(5).unwrap()
}

fn text(first: u32) -> Vec<u32> {
    (0..PROMPT as u32 + 60).map(|i| (first + i * 37) % 512).collect()
}

/// The logits' bits after `tokens` new tokens of `text` that end at `context_len`.
fn step(model: &mut Model<Cuda>, text: &[u32], tokens: usize, context_len: usize, pages: &[u32]) -> Vec<u32> {
    let params = Params::default();
    let sequence = StepSequence {
        tokens: &text[context_len - tokens..context_len],
        context_len,
        prompt_len: PROMPT,
        pages,
        sample: Some(Sample { params: &params, history: &text[..context_len], prompt_len: PROMPT }),
    };
    let logits = model.logits(&Step { sequences: vec![sequence] }).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits.into_iter().map(f32::to_bits).collect()
}

fn copy(pairs: &[(u32, u32)], direction: Direction) -> Vec<CopyPage> {
    pairs.iter().map(|&(from, to)| CopyPage { from, to, direction }).collect()
}

/// A prompt of three pages, then decodes; before the 10th (and, where `moves`, never otherwise) its pages go out, another
/// prompt takes them, they come back elsewhere.
fn decoded(config: &Value, kv: KvDtype, moves: bool) -> Vec<Vec<u32>> {
    let mut model = model(config, kv);
    let (own, other) = (text(1), text(200));
    let mut pages = [0, 1, 2, 3];
    let mut steps = vec![step(&mut model, &own, PROMPT, PROMPT, &pages)];
    let steps_after = if op_test::sanitized() { 14 } else { 40 };
    for context_len in PROMPT + 1..PROMPT + steps_after {
        if moves && context_len == PROMPT + 10 {
            model.copy_pages(&copy(&[(2, 0), (1, 1), (0, 4)], Direction::ToHost)).unwrap();
            let others = step(&mut model, &other, PROMPT, PROMPT, &[2, 0, 1]);
            assert_ne!(others, steps[0]);
            // One goes on to its place by way of another: copies follow each other.
            model.copy_pages(&copy(&[(1, 5), (0, 7), (4, 6)], Direction::ToDevice)).unwrap();
            model.copy_pages(&copy(&[(6, 8), (5, 6)], Direction::OnDevice)).unwrap();
            pages = [8, 6, 7, 4];
        }
        steps.push(step(&mut model, &own, 1, context_len, &pages));
    }
    steps
}

#[test]
#[ignore = "needs an H200"]
fn pages_that_went_out_and_came_back_change_no_bit() {
    let plain = llama(2, Value::Null);
    let mut dynamic = plain.clone();
    dynamic["max_position_embeddings"] = json!(128);
    dynamic["rope_scaling"] = json!({"rope_type": "dynamic", "factor": 4.0});
    let cases = [
        (&plain, KvDtype::Fp8),
        (&dynamic, KvDtype::Bf16),
        (&plain, KvDtype::Bf16),
        (&dynamic, KvDtype::Fp8),
        (&falcon(2, Value::Null), KvDtype::Fp8),
    ];
    for &(config, kv) in &cases[..if op_test::sanitized() { 1 } else { cases.len() }] {
        let (undisturbed, moved) = (decoded(config, kv, false), decoded(config, kv, true));
        for (index, (undisturbed, moved)) in undisturbed.iter().zip(&moved).enumerate() {
            assert!(undisturbed == moved, "{kv:?}, step {index} of {config}");
        }
    }
}

/// Pages the model does not have are refused by name.
#[test]
#[ignore = "needs an H200"]
fn pages_that_are_not_there_are_not_copied() {
    let mut model = model(&llama(1, Value::Null), KvDtype::Fp8);
    let mut refused =
        |from, to, direction| model.copy_pages(&[CopyPage { from, to, direction }]).unwrap_err().to_string();
    assert_eq!(refused(9, 0, Direction::ToHost), "copy_pages: from: expected pages below 9, got 9");
    assert_eq!(refused(0, 5, Direction::ToHost), "copy_pages: to: expected pages below 5, got 5");
    assert_eq!(refused(5, 0, Direction::ToDevice), "copy_pages: from: expected pages below 5, got 5");
}
