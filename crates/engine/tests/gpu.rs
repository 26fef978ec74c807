//! The engine on the CUDA backend: texts under pressure are those with room for all.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

use checkpoint::Files;
use device::gpu::Gpu;
use engine::{Config, Engine, Event, Request, Statistics};
use models::{Cuda, KvDtype, Model};
use op_test::sanitized;
use sampling::{Params, Sampled};
use std::collections::BTreeMap;

/// Weights of 4 bits: the products are kernels of this repository, in which a sanitizer finds something if there is something.
const CONFIG: &str = r#"{
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 512,
    "intermediate_size": 1024, "num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 2,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
    "quantization_config": { "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm" }
}"#;

/// Conversations of two turns, three at a time: their answers with all log-probabilities.
///
/// Only three run at once, and there are pages for three, so that a step has the same sequences whatever the pools hold: the
/// same products, the same bits.
fn conversations(pages: usize, host_pages: usize) -> (Vec<Vec<Sampled>>, Statistics) {
    // A sanitizer takes its time for each launch: there are fewer of them, and the prompts have most of the tokens.
    let (answer, layers) = if sanitized() { (3, "1") } else { (60, "2") };
    let config = CONFIG.replace("LAYERS", layers).into_bytes().leak();
    let files = Files::memory([("config.json", &*config)]);
    let (config, quantization) = checkpoint::settings(&files).unwrap();
    let backend = Cuda::new(Gpu::open(0).unwrap()).unwrap();
    let model =
        Model::synthetic(&config, &quantization, backend, pages, KvDtype::Fp8, 7, &mut |_| ()).unwrap();
    let model = model.with_host_pages(host_pages).unwrap();
    let config = Config { max_sequences: 3, max_batch_tokens: 256, eos_tokens: vec![] };
    let mut engine = Engine::new(config, model).unwrap();
    let mut requests: Vec<Request> = (0..9u32)
        .map(|index| {
            let params = match index % 2 {
                0 => Params { logprobs: Some(0), ..Params::default() },
                _ => Params {
                    temperature: 0.9,
                    top_k: 40,
                    seed: index.into(),
                    logprobs: Some(0),
                    ..Params::default()
                },
            };
            let prompt = (0..210 - 2 * answer + 8 * index).map(|i| (i * i + index) % 512).collect();
            Request { prompt, max_tokens: Some(answer as usize), params, ..Request::default() }
        })
        .collect();
    let mut answers = Vec::new();
    for _ in 0..2 {
        for group in requests.chunks_mut(3) {
            for request in group.iter() {
                engine.submit(request.clone()).unwrap();
            }
            let mut texts: BTreeMap<_, Vec<Sampled>> = BTreeMap::new();
            while !engine.is_idle() {
                for event in engine.step() {
                    if let Event::Token { id, sampled } = event {
                        texts.entry(id).or_default().push(sampled);
                    }
                }
            }
            for (request, text) in group.iter_mut().zip(texts.into_values()) {
                assert_eq!(text.len(), answer as usize);
                request.prompt.extend(text.iter().map(|sampled| sampled.token).chain([5, 6]));
                answers.push(text);
            }
        }
    }
    (answers, engine.statistics())
}

#[test]
#[ignore = "needs an H200"]
fn what_comes_back_from_the_host_gives_the_same_tokens() {
    // Three conversations of at most 276 tokens: five pages each.
    let (crowded, under_pressure) = conversations(15, 60);
    let (roomy, plentiful) = conversations(100, 0);
    println!("{under_pressure:?}");
    assert!(under_pressure.pages_out > 15 && under_pressure.pages_in > 15, "{under_pressure:?}");
    assert_eq!((plentiful.pages_out, plentiful.pages_in), (0, 0));
    assert_eq!(under_pressure.reused_tokens, plentiful.reused_tokens);
    assert_eq!(crowded, roomy);
}
