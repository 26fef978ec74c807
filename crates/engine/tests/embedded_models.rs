//! The embedded Falcon and Llama on the CPU: texts of a crowded batch are, token for token, those of each request alone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use checkpoint::Checkpoint;
use engine::{Config, Engine, Event, FinishReason, Request, RequestId};
use models::{Cpu, KvDtype, Model};
use op_test::Rng;
use sampling::{Params, Sampled};
use std::collections::BTreeMap;

fn engine(name: &str, pages: usize, config: Config) -> Engine<Model<Cpu>> {
    let folder = format!("{}/../cli/models/{name}", env!("CARGO_MANIFEST_DIR"));
    let checkpoint = Checkpoint::open(folder).unwrap();
    let model = Model::load(&checkpoint, Cpu::default(), pages, KvDtype::F32, &mut |_| ()).unwrap();
    Engine::new(config, model).unwrap()
}

/// Greedy, sampled and penalized requests of all lengths.
fn requests(vocab_size: usize) -> Vec<Request> {
    let request = |index: u64| {
        let mut rng = Rng::new(index);
        let prompt =
            (0..1 + rng.below(0..2) * rng.below(1..90)).map(|_| rng.below(0..vocab_size) as u32).collect();
        let params = match index % 3 {
            0 => Params { logprobs: Some(2), ..Params::default() },
            1 => Params { temperature: 0.9, top_k: 40, top_p: 0.95, seed: index, ..Params::default() },
            _ => Params { repetition_penalty: 1.2, frequency_penalty: 0.1, ..Params::default() },
        };
        Request { prompt, max_tokens: Some(rng.below(100..160)), params, ..Request::default() }
    };
    (0..9).map(request).collect()
}

fn drain(engine: &mut Engine<Model<Cpu>>) -> BTreeMap<RequestId, (Vec<Sampled>, Option<FinishReason>)> {
    let mut texts: BTreeMap<RequestId, (Vec<Sampled>, Option<FinishReason>)> = BTreeMap::new();
    while !engine.is_idle() {
        for event in engine.step() {
            match event {
                Event::Token { id, sampled } => texts.entry(id).or_default().0.push(sampled),
                Event::Finished { id, reason } => texts.entry(id).or_default().1 = Some(reason),
            }
        }
    }
    texts
}

fn together_as_alone(name: &str) {
    // Six running texts of up to three pages each over eight pages, prompts in chunks of what 40 rows leave.
    let config = Config { max_sequences: 6, max_batch_tokens: 40, eos_tokens: vec![] };
    let mut together = engine(name, 8, config);
    let requests = requests(together.model().vocab_size());
    for request in &requests {
        together.submit(request.clone()).unwrap();
    }
    let texts = drain(&mut together);
    let statistics = together.statistics();
    assert!(statistics.preemptions > 0, "{statistics:?}");
    assert_eq!(statistics.free_pages, 8);
    // Whole prompts in one step, nobody else in the batch.
    let mut alone = engine(name, 8, Config { max_sequences: 1, max_batch_tokens: 1000, eos_tokens: vec![] });
    for (request, text) in requests.into_iter().zip(texts.into_values()) {
        let max_tokens = request.max_tokens.unwrap();
        alone.submit(request).unwrap();
        assert_eq!(text.0.len(), max_tokens);
        assert_eq!(drain(&mut alone).into_values().collect::<Vec<_>>(), [text]);
    }
    assert_eq!(alone.statistics().preemptions, 0);
}

#[test]
fn falcon() {
    together_as_alone("tiny-falcon");
}

#[test]
fn llama() {
    together_as_alone("tiny-llama");
}
