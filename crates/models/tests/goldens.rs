//! Logits and greedy tokens against Hugging Face transformers: tests/goldens/README.md says how the numbers were made.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation fails the test"
)]

use approx::AbsDiffEq;
use base64::Engine;
use checkpoint::Checkpoint;
use models::{Cpu, KvDtype, Model, Sample, Step, StepSequence};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The largest absolute difference over the largest absolute logit.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    config: serde_json::Value,
    generation_config: Option<serde_json::Value>,
    tensors: Vec<Tensor>,
    prompt: Vec<u32>,
    positions: Vec<usize>,
    logits: String,
    #[serde(default)]
    greedy: Vec<u32>,
    greedy_last_logits: Option<String>,
    #[serde(default)]
    greedy_until_eos: Vec<u32>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    amplitude: f32,
    offset: f32,
}

impl Tensor {
    /// The generator of tests/goldens/README.md.
    fn bytes(&self) -> Vec<u8> {
        let seed = self.name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let mut rng = op_test::Rng::new(seed);
        let elements: usize = self.shape.iter().product();
        (0..elements).flat_map(|_| (rng.signed() * self.amplitude + self.offset).to_le_bytes()).collect()
    }
}

impl Golden {
    fn read(name: &str) -> Self {
        let path = folder().join(name).with_extension("json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Writes it as a checkpoint of the kind that people download.
    fn write(&self, folder: &Path) {
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        if let Some(generation) = &self.generation_config {
            std::fs::write(folder.join("generation_config.json"), generation.to_string()).unwrap();
        }
        let bytes: Vec<Vec<u8>> = self.tensors.iter().map(Tensor::bytes).collect();
        let views = self.tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
            (&tensor.name, TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn decode(logits: &str) -> Vec<f32> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(logits).unwrap();
    bytes.chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect()
}

#[track_caller]
fn hold(got: &[f32], want: &[f32], what: &str) {
    let largest = want.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    assert!(got.abs_diff_eq(want, TOLERANCE * largest), "{what}: beyond {TOLERANCE} of {largest}");
    assert!(largest > 0.0, "{what}: logits of zeros would say nothing");
}

/// One sequence that grows over pages in an order of its own.
struct Sequence {
    tokens: Vec<u32>,
    cached: usize,
    prompt_len: usize,
    pages: Vec<u32>,
}

impl Sequence {
    fn new(prompt: &[u32], pages: u32) -> Self {
        let pages = (0..pages).rev().collect();
        Self { tokens: prompt.to_vec(), cached: 0, prompt_len: prompt.len(), pages }
    }

    /// Runs the tokens up to position `end`, gives the last one's logits.
    fn logits(&mut self, model: &mut Model<Cpu>, end: usize) -> Vec<f32> {
        let params = sampling::Params::default();
        let sample = Sample { params: &params, history: &self.tokens[..end], prompt_len: self.prompt_len };
        let sequence = StepSequence {
            tokens: &self.tokens[self.cached..end],
            context_len: end,
            prompt_len: self.prompt_len,
            pages: &self.pages,
            sample: Some(sample),
        };
        let logits = model.logits(&Step { sequences: vec![sequence] }).unwrap();
        self.cached = end;
        logits
    }
}

fn check(name: &str) {
    let golden = Golden::read(name);
    let folder = tempfile::tempdir().unwrap();
    golden.write(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let pages = (golden.prompt.len() + golden.greedy.len()).div_ceil(device::PAGE_SIZE) as u32 + 1;
    let mut model =
        Model::load(&checkpoint, Cpu::default(), pages as usize, KvDtype::F32, &mut |_| ()).unwrap();
    let vocab_size = model.vocab_size();

    // A chunk ends at each position, so that chunks of all sizes are joined over the pages.
    let wanted = decode(&golden.logits);
    let mut sequence = Sequence::new(&golden.prompt, pages);
    for (&position, wanted) in golden.positions.iter().zip(wanted.chunks_exact(vocab_size)) {
        let got = sequence.logits(&mut model, position + 1);
        hold(&got, wanted, &format!("{name}, position {position}, in chunks"));
    }

    // The whole prompt at once, then token by token.
    let mut sequence = Sequence::new(&golden.prompt, pages);
    let mut logits = sequence.logits(&mut model, golden.prompt.len());
    if golden.positions.last() == Some(&(golden.prompt.len() - 1)) {
        hold(&logits, &wanted[wanted.len() - vocab_size..], &format!("{name}, at once"));
    }
    let mut tokens = Vec::new();
    for _ in &golden.greedy {
        let best = (0..vocab_size).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        tokens.push(best as u32);
        sequence.tokens.push(best as u32);
        if tokens.len() < golden.greedy.len() {
            logits = sequence.logits(&mut model, sequence.tokens.len());
        }
    }
    assert_eq!(tokens, golden.greedy, "{name}: greedy tokens");
    if let Some(last) = &golden.greedy_last_logits {
        hold(&logits, &decode(last), &format!("{name}, last greedy step"));
    }
    if let Some(end) = golden.greedy_until_eos.last() {
        assert!(checkpoint.eos_token_ids().contains(end), "{name}: {end} ends a text");
        let first = tokens.iter().position(|token| checkpoint.eos_token_ids().contains(token)).unwrap();
        assert_eq!(tokens[..=first], golden.greedy_until_eos, "{name}: up to the end token");
    }
}

macro_rules! goldens {
    ($($test:ident = $name:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            check($name);
        })*

        #[test]
        fn every_golden_is_held() {
            let mut files: Vec<String> = std::fs::read_dir(folder()).unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()))
                .collect();
            files.sort();
            assert_eq!(files, [$($name),*]);
        }
    };
}

goldens! {
    falcon_11b = "falcon-11b",
    falcon_7b = "falcon-7b",
    falcon_alias_refinedweb = "falcon-alias-refinedweb",
    falcon_alias_refinedwebmodel = "falcon-alias-refinedwebmodel",
    falcon_new_group29 = "falcon-new-group29",
    falcon_new_group29_kv2 = "falcon-new-group29-kv2",
    falcon_new_group3 = "falcon-new-group3",
    falcon_rw = "falcon-rw",
    falcon_rw_heads6 = "falcon-rw-heads6",
    falcon_sequential = "falcon-sequential",
    falcon_triples = "falcon-triples",
    llama_bias = "llama-bias",
    llama_eos_generation_config = "llama-eos-generation-config",
    llama_eos_list = "llama-eos-list",
    llama_gqa = "llama-gqa",
    llama_gqa_group5 = "llama-gqa-group5",
    llama_head_dim = "llama-head-dim",
    llama_mha = "llama-mha",
    llama_mqa = "llama-mqa",
    llama_rope_dynamic_long = "llama-rope-dynamic-long",
    llama_rope_dynamic_short = "llama-rope-dynamic-short",
    llama_rope_linear = "llama-rope-linear",
    llama_rope_llama3 = "llama-rope-llama3",
    llama_rope_llama3_saved = "llama-rope-llama3-saved",
}
