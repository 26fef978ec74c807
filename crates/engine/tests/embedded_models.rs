//! The embedded Falcon and Llama on the CPU: texts of a crowded batch are, token for token, those of each request alone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use checkpoint::{Checkpoint, Files};
use engine::{Config, Engine, Event, FinishReason, Request, RequestId};
use models::{Cpu, KvDtype, Model};
use op_test::Rng;
use sampling::{Params, Sampled};
use std::collections::BTreeMap;

fn model(name: &str, pages: usize, kv: KvDtype) -> Model<Cpu> {
    let folder = format!("{}/../cli/models/{name}", env!("CARGO_MANIFEST_DIR"));
    let checkpoint = Checkpoint::open(folder).unwrap();
    Model::load(&checkpoint, Cpu::default(), pages, kv, &mut |_| ()).unwrap()
}

fn engine(name: &str, pages: usize, config: Config) -> Engine<Model<Cpu>> {
    Engine::new(config, model(name, pages, KvDtype::F32)).unwrap()
}

/// Greedy, sampled and penalized requests of all lengths.
fn requests(vocab_size: usize, count: u64) -> Vec<Request> {
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
    (0..count).map(request).collect()
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
    let requests = requests(together.model().vocab_size(), 9);
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

/// Conversations of two turns over six pages, of which each alone needs up to four: they are sent back, moved out, and come back
/// from the host. Each is, token for token and in its log-probabilities, what it is where there is room for all and nothing is
/// shared.
fn moved_out_and_back(name: &str, kv: KvDtype) {
    let run = |pages: usize, host_pages: usize, shares: bool| {
        let model = model(name, pages, kv).with_host_pages(host_pages).unwrap();
        let config = Config { max_sequences: 5, max_batch_tokens: 40, eos_tokens: vec![] };
        let mut engine = Engine::new(config, model).unwrap();
        let vocab_size = engine.model().vocab_size();
        let mut salts = 0..;
        let mut salt = || if shares { 0 } else { salts.next().unwrap() };
        let beginning: Vec<u32> = (0..70).map(|token| token * 7 % vocab_size as u32).collect();
        let mut turn: Vec<Request> = requests(vocab_size, 6);
        for (index, request) in turn.iter_mut().enumerate() {
            request.prompt.truncate(20);
            // Half of them begin alike.
            request.prompt.splice(0..0, beginning.iter().copied().filter(|_| index % 2 == 0));
            request.max_tokens = Some(140 + 10 * index);
        }
        let mut texts = Vec::new();
        for _ in 0..2 {
            for request in &turn {
                engine.submit(Request { salt: salt(), ..request.clone() }).unwrap();
            }
            let answers: Vec<_> = drain(&mut engine).into_values().collect();
            for (request, (answer, _)) in turn.iter_mut().zip(&answers) {
                request.prompt.extend(answer.iter().map(|sampled| sampled.token).chain([5, 6]));
                request.max_tokens = Some(40);
            }
            texts.extend(answers);
        }
        (texts, engine.statistics())
    };
    let (crowded, under_pressure) = run(6, 100, true);
    let (roomy, plentiful) = run(100, 0, false);
    println!("{under_pressure:?}");
    assert!(under_pressure.preemptions > 0, "{under_pressure:?}");
    assert!(under_pressure.pages_out > 10 && under_pressure.pages_in > 10, "{under_pressure:?}");
    assert_eq!((plentiful.preemptions, plentiful.reused_tokens, plentiful.pages_out), (0, 0, 0));
    assert_eq!(crowded, roomy);
}

#[test]
fn llama_moved_out_and_back() {
    moved_out_and_back("tiny-llama", KvDtype::F32);
    moved_out_and_back("tiny-llama", KvDtype::Fp8);
}

#[test]
fn falcon_moved_out_and_back() {
    moved_out_and_back("tiny-falcon", KvDtype::Bf16);
}

/// With dynamic rotary scaling the keys of a prompt depend on its length: equal beginnings of prompts of other lengths must
/// not be taken for each other.
#[test]
fn dynamic_rotary_scaling_shares_only_what_is_equal() {
    let config = br#"{
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
        "original_max_position_embeddings": 64, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}
    }"#;
    let (config, quantization) =
        checkpoint::settings(&Files::memory([("config.json", &config[..])])).unwrap();
    let engine = || {
        let backend = Cpu::default();
        let model =
            Model::synthetic(&config, &quantization, backend, 12, KvDtype::F32, 5, &mut |_| ()).unwrap();
        Engine::new(Config { max_sequences: 4, max_batch_tokens: 600, eos_tokens: vec![] }, model).unwrap()
    };
    let whole: Vec<u32> = (0..400).map(|token| token * 13 % 300).collect();
    let mut shared = engine();
    for (len, reused) in [(200, 0), (390, 0), (200, 192), (390, 192 + 384)] {
        let request = Request { prompt: whole[..len].to_vec(), max_tokens: Some(20), ..Request::default() };
        shared.submit(request.clone()).unwrap();
        let text = drain(&mut shared);
        assert_eq!(shared.statistics().reused_tokens, reused, "{len} tokens");
        let mut alone = engine();
        alone.submit(request).unwrap();
        assert!(text.into_values().eq(drain(&mut alone).into_values()), "{len} tokens");
    }
}
