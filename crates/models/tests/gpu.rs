//! Whole models on both backends. The same weights, bit for bit: the CPU backend computes in f32, the CUDA backend keeps
//! activations in bf16 between its kernels.
//!
//! What may differ, relative to the size of what differs. bf16 has 8 significant bits: a rounded value is off by up to
//! 2^-8, by 2^-8 / sqrt(3) in the root mean square. A decoder layer rounds about 9 tensors, each of which reaches the logits
//! with its own size at most, so `l` layers and the embedding come to `PLAIN * sqrt(9 l + 1)`; taken twice, as the sizes of
//! a layer's parts are not equal.
//!
//! Where a product reads e4m3, both backends quantize what is not quite the same. A difference of `d` puts a value on
//! another code with probability `d / step`, and it is then off by a whole step: `sqrt(d * step)` in the root mean square,
//! far more than `d`. Such differences feed each other, up to where the two roundings are independent: two errors of a
//! uniform distribution over a step of at most 2^-3, `2^-3 / sqrt(6)`, for each of the 4 inputs of a layer. e4m3 pages add
//! as much for keys and for values.
#![cfg(feature = "cuda")]
// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

use configs::{awq, falcon, fp8, llama, packed, settings};
use device::gpu::Gpu;
use models::{
    Backend, CacheSpec, Cpu, Cuda, KvDtype, LinearWeights, Matrix, Model, NormWeights, Positions, Sample,
    Step, StepSequence,
};
use serde_json::json;

#[path = "gpu/configs.rs"]
mod configs;
#[path = "gpu/loading.rs"]
mod loading;
#[path = "gpu/pages.rs"]
mod pages;

const PLAIN: f64 = 1.0 / (256.0 * 1.732);
const QUANTIZED: f64 = 0.125 / 2.449;

fn cuda() -> Cuda {
    Cuda::new(Gpu::open(0).unwrap()).unwrap()
}

/// Sequences of a test: prompts of ragged lengths, fed in chunks, then decoded together with the CPU's tokens.
struct Run<B: Backend> {
    model: Model<B>,
    /// Logits of each step, `[sequences, vocab_size]`.
    steps: Vec<Vec<f32>>,
}

const PROMPTS: [usize; 5] = [1, 63, 64, 65, 130];
/// New tokens of a prompt in one step.
const CHUNK: usize = 48;

/// Feeds every prompt in chunks, then `texts[i]` one by one; the logits of the last prompt token and of each fed token.
fn run<B: Backend>(model: Model<B>, texts: &[Vec<u32>], generated: usize) -> Run<B> {
    let mut run = Run { model, steps: Vec::new() };
    let params = sampling::Params::default();
    let pages: Vec<Vec<u32>> = (0..texts.len() as u32).map(|i| (0..4).map(|p| p * 8 + i).collect()).collect();
    let mut done = vec![0; texts.len()];
    let longest = PROMPTS[..texts.len()].iter().max().unwrap();
    for _ in 0..longest.div_ceil(CHUNK) {
        // A prompt that is through waits for the others: only the last chunk's logits count.
        let mut sequences = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let prompt = PROMPTS[index];
            let end = prompt.min(done[index] + CHUNK);
            if done[index] == end {
                continue;
            }
            sequences.push(StepSequence {
                tokens: &text[done[index]..end],
                context_len: end,
                prompt_len: prompt,
                pages: &pages[index],
                sample: None,
            });
            done[index] = end;
        }
        run.model.logits(&Step { sequences }).unwrap();
    }
    for step in 0..generated {
        let sequences = texts.iter().enumerate().map(|(index, text)| {
            let end = PROMPTS[index] + step + 1;
            StepSequence {
                tokens: &text[end - 1..end],
                context_len: end,
                prompt_len: PROMPTS[index],
                pages: &pages[index],
                sample: Some(Sample { params: &params, history: &text[..end], prompt_len: PROMPTS[index] }),
            }
        });
        let sequences = sequences.collect();
        run.steps.push(run.model.logits(&Step { sequences }).unwrap());
    }
    run
}

fn texts(vocab_size: u64, generated: usize) -> Vec<Vec<u32>> {
    let mut rng = op_test::Rng::new(7);
    let count = if op_test::sanitized() { 3 } else { PROMPTS.len() };
    PROMPTS[..count]
        .iter()
        .map(|prompt| (0..prompt + generated).map(|_| (rng.bits() % vocab_size) as u32).collect())
        .collect()
}

fn rms(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for x in values {
        sum += x * x;
        count += 1;
    }
    (sum / f64::from(count.max(1))).sqrt()
}

fn largest(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, token| if row[token] > row[best] { token } else { best })
}

/// Holds the logits of both backends against `bound`, relative in the root mean square, and their greedy choices against
/// each other: they may differ where the two best lie closer than 6 times the bound. Whether all do.
fn agree(name: &str, cpu: &[Vec<f32>], cuda: &[Vec<f32>], vocab_size: usize, bound: f64) -> bool {
    assert_eq!(cpu.len(), cuda.len());
    let (mut worst, mut differ, mut widest) = (0.0f64, 0, 0.0f64);
    for (step, (cpu, cuda)) in cpu.iter().zip(cuda).enumerate() {
        assert_eq!(cpu.len(), cuda.len(), "{name}: step {step}");
        for (cpu, cuda) in cpu.chunks_exact(vocab_size).zip(cuda.chunks_exact(vocab_size)) {
            let size = rms(cpu.iter().map(|&x| f64::from(x)));
            let error = rms(cpu.iter().zip(cuda).map(|(&a, &b)| f64::from(a) - f64::from(b)));
            // A NaN is no agreement.
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error / size) };
            let (a, b) = (largest(cpu), largest(cuda));
            if a != b {
                differ += 1;
                widest = widest.max(f64::from(cpu[a] - cpu[b]) / size);
            }
        }
    }
    println!(
        "{name}: worst {worst:.5} of {bound:.5}; {differ} greedy choices differ, between logits {widest:.5} apart of {:.5}",
        6.0 * bound
    );
    worst <= bound && widest <= 6.0 * bound
}

/// Whether they do.
fn both_backends_agree(
    name: &str,
    config: serde_json::Value,
    kv: (KvDtype, KvDtype),
    bound: f64,
    generated: usize,
) -> bool {
    let (config, quantization) = settings(config);
    let vocab_size = config.common().vocab_size;
    let texts = texts(vocab_size as u64, generated);
    let cpu = Model::synthetic(&config, &quantization, Cpu::default(), 40, kv.0, 3, &mut |_| ()).unwrap();
    let gpu = Model::synthetic(&config, &quantization, cuda(), 40, kv.1, 3, &mut |_| ()).unwrap();
    let (cpu, gpu) = (run(cpu, &texts, generated), run(gpu, &texts, generated));
    agree(name, &cpu.steps, &gpu.steps, vocab_size, bound)
}

const EXACT: (KvDtype, KvDtype) = (KvDtype::F32, KvDtype::Bf16);
const FP8: (KvDtype, KvDtype) = (KvDtype::Fp8, KvDtype::Fp8);

fn plain_bound(layers: usize) -> f64 {
    2.0 * PLAIN * (9.0 * layers as f64 + 1.0).sqrt()
}

fn quantized_bound(layers: usize, inputs: f64) -> f64 {
    plain_bound(layers).hypot(QUANTIZED * (inputs * layers as f64).sqrt())
}

/// Decoders of both families in bf16, with all that their configurations turn on, for `generated` tokens.
fn bf16_models(generated: usize) {
    let none = serde_json::Value::Null;
    let (deep, shallow) = if op_test::sanitized() { (1, 1) } else { (4, 2) };
    let mut sequential = falcon(deep, none.clone());
    sequential["new_decoder_architecture"] = json!(false);
    sequential.as_object_mut().unwrap().remove("num_kv_heads");
    sequential["parallel_attn"] = json!(false);
    sequential["multi_query"] = json!(false);
    sequential["alibi"] = json!(true);
    sequential["bias"] = json!(true);
    let mut scaled = llama(shallow, none.clone());
    scaled["rope_scaling"] = json!({"rope_type": "dynamic", "factor": 4.0});
    scaled["max_position_embeddings"] = json!(100);
    let mut wide = llama(shallow, none.clone());
    wide["head_dim"] = json!(128);
    wide["tie_word_embeddings"] = json!(true);
    wide["attention_bias"] = json!(true);
    wide["mlp_bias"] = json!(true);
    let agreed = [
        ("llama bf16", llama(deep, none.clone()), deep),
        ("falcon bf16", falcon(deep, none), deep),
        ("falcon-rw bf16, ALiBi, biases", sequential, deep),
        ("llama bf16, dynamic RoPE", scaled, shallow),
        ("llama bf16, head_dim 128, tied, biases", wide, shallow),
    ]
    .map(|(name, config, layers)| both_backends_agree(name, config, EXACT, plain_bound(layers), generated));
    assert!(agreed.iter().all(|&agreed| agreed), "{agreed:?}");
}

#[test]
#[ignore = "needs an H200"]
fn bf16_models_agree() {
    bf16_models(2);
}

#[test]
#[ignore = "needs an H200"]
fn full_size_bf16_models_choose_the_same_tokens_for_64_steps() {
    bf16_models(64);
}

/// Models of all quantized formats, of so many layers, for `generated` tokens.
fn quantized_models(layers: usize, generated: usize) {
    let (bound, with_pages) = (quantized_bound(layers, 4.0), quantized_bound(layers, 6.0));
    let agreed = [
        ("llama FP8 dynamic", llama(layers, fp8(true)), EXACT, bound),
        ("llama FP8 static", llama(layers, fp8(false)), EXACT, bound),
        ("llama AWQ 128", llama(layers, awq(128)), EXACT, bound),
        ("llama AWQ 64", llama(layers, awq(64)), EXACT, bound),
        ("falcon AWQ 128", falcon(layers, awq(128)), EXACT, bound),
        ("llama packed", llama(layers, packed(true)), EXACT, bound),
        ("llama packed with zero points", llama(layers, packed(false)), EXACT, bound),
        ("falcon AWQ 128, FP8 pages", falcon(layers, awq(128)), FP8, with_pages),
        ("llama FP8, FP8 pages", llama(layers, fp8(true)), FP8, with_pages),
    ]
    .map(|(name, config, kv, bound)| {
        both_backends_agree(&format!("{name}, {layers} layers"), config, kv, bound, generated)
    });
    assert!(agreed.iter().all(|&agreed| agreed), "{agreed:?}");
}

#[test]
#[ignore = "needs an H200"]
fn quantized_models_agree() {
    quantized_models(1, 1);
}

#[test]
#[ignore = "needs an H200"]
fn full_size_quantized_models_stay_within_their_bound_at_every_depth() {
    for layers in [1, 2, 4] {
        quantized_models(layers, 16);
    }
}

/// Every form that a layer reads its input in, behind a norm and behind an activation.
#[test]
#[ignore = "needs an H200"]
fn every_form_of_input_is_the_same_on_both_backends() {
    let (features, hidden, tokens) = (512, 256, 37);
    let mut rng = op_test::Rng::new(11);
    let bf16s =
        |values: Vec<f32>| values.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect::<Vec<_>>();
    let table = bf16s(rng.tensor(100 * hidden, 1.0));
    let norm = NormWeights {
        kind: layers::NormKind::Rms,
        weight: rng.tensor(hidden, 0.2).iter().map(|x| 1.0 + x).collect(),
        bias: None,
        epsilon: 1e-5,
    };
    let multiplier: Vec<f32> = rng.tensor(hidden, 0.4).iter().map(|x| 1.0 + x).collect();
    let dense = |rng: &mut op_test::Rng| Matrix::Dense(bf16s(rng.tensor(features * hidden, 0.06)));
    let int4 = |group_size, rng: &mut op_test::Rng, input_scale| {
        let shape = awq_gemm::Int4Shape::new(hidden, features, group_size).unwrap();
        let codes = (0..hidden * features).map(|_| (rng.bits() % 16) as u8).collect();
        let groups = features * shape.groups();
        let zeros = (0..groups).map(|_| (rng.bits() % 16) as u8).collect();
        let scales =
            (0..groups).map(|_| half::f16::from_f32(0.01 + 0.01 * rng.signed().abs()).to_f32()).collect();
        let weights = awq_gemm::Int4Weights::new(shape, codes, zeros, scales).unwrap();
        Matrix::Int4 { weights, input_scale }
    };
    let fp8 = |rng: &mut op_test::Rng, input_scale| {
        let codes = rng.tensor(features * hidden, 100.0).into_iter().map(device::E4m3::from_f32).collect();
        Matrix::Fp8 { codes, row_scales: vec![0.001; features], input_scale }
    };
    let matrices = [
        ("dense", dense(&mut rng)),
        ("int4, 128", int4(128, &mut rng, None)),
        ("int4, 64, static", int4(64, &mut rng, Some(0.02))),
        ("fp8", fp8(&mut rng, None)),
        ("fp8, static", fp8(&mut rng, Some(0.02))),
    ];
    let (cpu, gpu) = (Cpu::default(), cuda());
    let tokens: Vec<u32> = (0..tokens).map(|_| (rng.bits() % 100) as u32).collect();
    for (name, matrix) in matrices {
        for (multiplied, biased) in [(false, false), (true, true)] {
            let weights = LinearWeights {
                in_features: hidden,
                out_features: features,
                matrix: matrix.clone(),
                bias: biased.then(|| bf16s(rng.tensor(features, 1.0))),
                input_multiplier: multiplied.then(|| multiplier.clone()),
            };
            let on_cpu = forms(&cpu, &weights, &norm, &table, &tokens, |x| x.values().to_vec());
            let on_gpu = forms(&gpu, &weights, &norm, &table, &tokens, |x| x.to_host().unwrap());
            for (which, (a, b)) in ["norm", "activation"].iter().zip(on_cpu.iter().zip(&on_gpu)) {
                let size = rms(a.iter().map(|&x| f64::from(x)));
                let error = rms(a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b))) / size;
                // Input and output rounded to bf16; e4m3 inputs that were rounded to bf16 before.
                let bound = if matches!(matrix, Matrix::Dense(_)) { 2.0 * PLAIN } else { QUANTIZED };
                println!("{name}, {which}, multiplier {multiplied}: {error:.5} of {bound:.5}");
                assert!(error <= bound, "{name}, {which}, multiplier {multiplied}: {error} of {bound}");
            }
        }
    }
}

/// `linear(norm(x))`, and `linear(gelu(x))`, with x the embedding of `tokens`.
fn forms<B: Backend>(
    backend: &B,
    weights: &LinearWeights,
    norm: &NormWeights,
    table: &[f32],
    tokens: &[u32],
    to_host: impl Fn(&B::Tensor) -> Vec<f32>,
) -> [Vec<f32>; 2] {
    let spec = CacheSpec {
        layers: 1,
        shape: gqa_attention::AttentionShape { query_heads: 1, kv_heads: 1, head_dim: 64 },
        positions: Positions::Alibi(vec![0.5]),
        pages: 1,
        dtype: KvDtype::Bf16,
        key_scales: vec![1.0],
        value_scales: vec![1.0],
    };
    let linear = backend.load_linear(weights.clone()).unwrap();
    let norm = backend.load_norm(norm.clone()).unwrap();
    let table = backend.load_embedding(table.to_vec(), weights.in_features).unwrap();
    let cache = backend.new_cache(&spec).unwrap();
    let sequence = StepSequence {
        tokens,
        context_len: tokens.len(),
        prompt_len: tokens.len(),
        pages: &[0],
        sample: None,
    };
    let batch = backend.begin(&Step { sequences: vec![sequence] }, &cache).unwrap();
    let mut x = backend.embed(&table, &batch).unwrap();
    let normed = backend.add_norm(&mut x, &[], &norm, &linear).unwrap();
    let activated = backend.activate(&x, layers::Activation::Gelu, &linear).unwrap();
    [normed, activated].map(|input| to_host(&backend.linear(&input, &linear).unwrap()))
}

#[test]
#[ignore = "needs an H200"]
fn what_does_not_fit_is_refused_in_one_line() {
    let (config, quantization) = settings(llama(2, serde_json::Value::Null));
    let refused = |pages, kv| {
        let model = Model::synthetic(&config, &quantization, cuda(), pages, kv, 0, &mut |_| ());
        model.err().unwrap().to_string()
    };
    assert_eq!(refused(0, KvDtype::Fp8), "kv_cache: pages: expected at least 1, got 0");
    assert_eq!(refused(4, KvDtype::F32), "kv_cache: dtype: expected bf16 or fp8 on a GPU, got f32");
    // 64 tokens of 2 layers, 2 heads of 64, keys and values: 64 KiB in bf16; 2^26 pages are 2 TiB a layer.
    let message = refused(1 << 26, KvDtype::Bf16);
    assert!(message.contains("KV pages of layer 1 of 2") && !message.contains('\n'), "{message}");
}

/// A step that fails leaves the model usable, and batches of every size give what they give alone.
#[test]
#[ignore = "needs an H200"]
fn batches_grow_and_shrink_between_replays() {
    let (config, quantization) = settings(llama(2, awq(128)));
    let mut model =
        Model::synthetic(&config, &quantization, cuda(), 64, KvDtype::Fp8, 5, &mut |_| ()).unwrap();
    let params = sampling::Params::default();
    let pages: Vec<[u32; 1]> = (0..40).map(|page| [page]).collect();
    let mut tokens = vec![vec![1u32]; 40];
    let mut wanted: Vec<Vec<f32>> = Vec::new();
    for count in [40usize, 40, 40, 7, 7, 7, 13, 40, 1, 1, 1, 9, 40] {
        let sequences = (0..count).map(|index| StepSequence {
            tokens: &tokens[index],
            context_len: 1,
            prompt_len: 1,
            pages: &pages[index],
            sample: Some(Sample { params: &params, history: &tokens[index], prompt_len: 1 }),
        });
        let step = Step { sequences: sequences.collect() };
        let logits = model.logits(&step).unwrap();
        let vocab_size = model.vocab_size();
        assert_eq!(logits.len(), count * vocab_size);
        // Every sequence is the same one-token text in a page of its own.
        let rows: Vec<Vec<f32>> = logits.chunks_exact(vocab_size).map(<[f32]>::to_vec).collect();
        assert!(rows.iter().all(|row| row == &rows[0]), "{count}");
        let sampled = model.step(&step).unwrap();
        assert!(sampled.iter().all(|token| token.token as usize == largest(&rows[0])), "{count}");
        wanted.push(rows[0].clone());
    }
    for row in &wanted {
        let size = rms(row.iter().map(|&x| f64::from(x)));
        let error = rms(row.iter().zip(&wanted[0]).map(|(&a, &b)| f64::from(a) - f64::from(b)));
        assert!(error <= quantized_bound(2, 6.0) * size);
    }
    tokens[0] = vec![9999];
    let bad = StepSequence { tokens: &tokens[0], context_len: 1, prompt_len: 1, pages: &[99], sample: None };
    assert!(model.step(&Step { sequences: vec![bad] }).is_err());
}

/// A decode step's rows with many options: on the device what the host's sampler makes of the same logits.
#[test]
#[ignore = "needs an H200"]
fn options_of_sampling_run_on_the_device() {
    let (config, quantization) = settings(llama(1, serde_json::Value::Null));
    let mut model =
        Model::synthetic(&config, &quantization, cuda(), 64, KvDtype::Bf16, 5, &mut |_| ()).unwrap();
    let params = |seed: u64| sampling::Params {
        temperature: [0.0, 0.7, 1.3][seed as usize % 3],
        top_k: [0, 5, 50][seed as usize / 3 % 3],
        top_p: [1.0, 0.9][seed as usize % 2],
        min_p: [0.0, 0.05][seed as usize / 2 % 2],
        repetition_penalty: [1.0, 1.3][seed as usize / 5 % 2],
        presence_penalty: [0.0, 0.5][seed as usize / 7 % 2],
        frequency_penalty: [0.0, 0.2][seed as usize / 3 % 2],
        logit_bias: if seed % 4 == 1 { vec![(7, 3.0), (9, -2.0)] } else { Vec::new() },
        seed,
        logprobs: seed.is_multiple_of(6).then_some(0),
    };
    let all: Vec<_> = (0..40).map(params).collect();
    let mut rng = op_test::Rng::new(23);
    let histories: Vec<Vec<u32>> =
        (0..40).map(|len| (0..=len).map(|_| (rng.bits() % 512) as u32).collect()).collect();
    let pages: Vec<[u32; 1]> = (0..40).map(|page| [page]).collect();
    let sequences = (0..40).map(|index| {
        let history = &histories[index];
        StepSequence {
            tokens: &history[history.len() - 1..],
            context_len: 1,
            prompt_len: 1,
            pages: &pages[index],
            sample: Some(Sample { params: &all[index], history, prompt_len: history.len() / 2 }),
        }
    });
    let step = Step { sequences: sequences.collect() };
    for _ in 0..3 {
        let logits = model.logits(&step).unwrap();
        let sampled = model.step(&step).unwrap();
        for (index, (row, sampled)) in logits.chunks_exact(512).zip(&sampled).enumerate() {
            let wanted = step.sequences[index].sample.unwrap().choose(row).unwrap();
            assert_eq!(sampled.token, wanted.token, "{index}: {:?}", all[index]);
            let close = match (sampled.logprob, wanted.logprob) {
                (Some(a), Some(b)) => (a - b).abs() < 1e-4,
                (a, b) => a.is_none() && b.is_none(),
            };
            assert!(close, "{index}: {:?} against {:?}", sampled.logprob, wanted.logprob);
        }
    }
}

/// Activations that stay in 16 bits in front of INT4 weights.
fn w4a16_models(generated: usize) {
    for group_size in [64, 128] {
        let (config, quantization) = settings(llama(2, awq(group_size)));
        let texts = texts(512, generated);
        let full = models::Int4Activations::Full;
        let cpu = Cpu { int4_activations: full };
        let cpu = Model::synthetic(&config, &quantization, cpu, 40, KvDtype::F32, 3, &mut |_| ()).unwrap();
        let gpu = cuda().with_int4_activations(full);
        let gpu = Model::synthetic(&config, &quantization, gpu, 40, KvDtype::Bf16, 3, &mut |_| ()).unwrap();
        let (cpu, gpu) = (run(cpu, &texts, generated), run(gpu, &texts, generated));
        assert!(agree("llama AWQ, W4A16", &cpu.steps, &gpu.steps, 512, plain_bound(2)), "{group_size}");
    }
}

#[test]
#[ignore = "needs an H200"]
fn w4a16_models_agree() {
    w4a16_models(1);
}

#[test]
#[ignore = "needs an H200"]
fn full_size_w4a16_models_agree_for_16_steps() {
    w4a16_models(16);
}
