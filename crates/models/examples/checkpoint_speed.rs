//! How fast a checkpoint loads: writes one of Falcon-40B's shape with random contents, as AutoAWQ does (sharded safetensors,
//! groups of 128), unless the folder has it already, then loads it onto the GPU.
//!
//!     cargo run --release -p models --features cuda --example checkpoint-speed -- FOLDER [LAYERS]
//!
//! 60 layers are 22 GB. What was just written comes from the page cache; so does what does a second time.

use device::random_bits;
use serde_json::json;
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const HIDDEN: usize = 8192;
const FFN: usize = 4 * HIDDEN;
const HEAD_DIM: usize = 64;
const QUERY_HEADS: usize = 128;
const KV_HEADS: usize = 8;
const VOCABULARY: usize = 65024;
const GROUP_SIZE: usize = 128;
const LAYERS: usize = 60;

/// Bytes of a shard, about.
const SHARD: usize = 5 << 30;
/// Words of eight bytes that a thread writes at once.
const PIECE: usize = 1 << 20;

/// What eight bytes of a tensor are made of.
#[derive(Debug, Clone, Copy)]
enum Contents {
    /// Codes.
    Any,
    /// Zero points 7 and 8.
    ZeroPoints,
    /// f16 scales that make weights deviate by about 1 / sqrt(in_features).
    Scales { in_features: usize },
    /// bf16 numbers of either sign around 0.01.
    Small,
    /// bf16 ones.
    Ones,
    /// bf16 zeros.
    Zeros,
}

struct Tensor {
    name: String,
    dtype: &'static str,
    shape: [usize; 2],
    contents: Contents,
}

/// Eight-byte words `range` of a tensor.
struct Piece<'a> {
    file: &'a File,
    offset: u64,
    seed: u64,
    words: std::ops::Range<usize>,
    contents: Contents,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(folder) = arguments.first() else {
        return Err("usage: checkpoint-speed FOLDER [LAYERS]".into());
    };
    let layers = arguments.get(1).map_or(Ok(LAYERS), |layers| layers.parse())?;
    let folder = Path::new(folder);
    if !folder.join("config.json").exists() {
        let start = Instant::now();
        let bytes = write(folder, layers)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("written: {:.2} GB in {seconds:.1} s", bytes as f64 / 1e9);
    }
    load(folder)
}

#[cfg(not(feature = "cuda"))]
fn load(_: &Path) -> Result<(), Box<dyn Error>> {
    println!("not loaded: built without the feature cuda");
    Ok(())
}

#[cfg(feature = "cuda")]
fn load(folder: &Path) -> Result<(), Box<dyn Error>> {
    use models::{Cuda, KvDtype, Model, Sample, Step, StepSequence};

    let checkpoint = checkpoint::Checkpoint::open(folder)?;
    let bytes = checkpoint.tensors.total_bytes() as f64;
    let gpu = device::gpu::Gpu::open(0)?;
    let backend = Cuda::new(gpu.clone())?;
    let start = Instant::now();
    let mut model = Model::load(&checkpoint, backend, 16, KvDtype::Fp8, &mut |_| ())?;
    gpu.synchronize()?;
    let seconds = start.elapsed().as_secs_f64();
    println!("loaded: {:.2} GB in {seconds:.2} s, {:.2} GB/s", bytes / 1e9, bytes / 1e9 / seconds);

    // The weights are usable: one token's logits are finite.
    let params = sampling::Params::default();
    let sample = Some(Sample { params: &params, history: &[11], prompt_len: 1 });
    let sequence = StepSequence { tokens: &[11], context_len: 1, prompt_len: 1, pages: &[0], sample };
    let logits = model.logits(&Step { sequences: vec![sequence] })?;
    let square = logits.iter().map(|x| f64::from(x * x)).sum::<f64>() / logits.len() as f64;
    println!("logits of one token: {} of them, root mean square {:.3}", logits.len(), square.sqrt());

    let status = fs::read_to_string("/proc/self/status")?;
    for line in status
        .lines()
        .filter(|line| ["VmHWM", "RssAnon", "VmPin", "VmLck"].iter().any(|key| line.starts_with(key)))
    {
        println!("{line}");
    }
    Ok(())
}

/// Writes config.json, the shards and their index; bytes of all shards.
fn write(folder: &Path, layers: usize) -> Result<usize, Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let mut shards: Vec<Vec<Tensor>> = vec![Vec::new()];
    let mut size = 0;
    for tensor in tensors(layers) {
        if size > SHARD {
            shards.push(Vec::new());
            size = 0;
        }
        size += tensor.bytes();
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    let (mut index, mut total) = (serde_json::Map::new(), 0);
    for (number, tensors) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        total += write_shard(&folder.join(&name), number as u64, tensors)?;
        index.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(name))));
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": index});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string())?;
    let config = json!({
        "model_type": "falcon", "architectures": ["FalconForCausalLM"], "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN, "num_hidden_layers": layers, "num_attention_heads": QUERY_HEADS,
        "num_kv_heads": KV_HEADS, "new_decoder_architecture": true, "parallel_attn": true, "bias": false,
        "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
        "quantization_config":
            {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": GROUP_SIZE, "zero_point": true},
    });
    // Last, as it says that the rest is there.
    fs::write(folder.join("config.json"), config.to_string())?;
    Ok(total)
}

fn tensors(layers: usize) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    let mut add =
        |name: String, dtype, shape, contents| tensors.push(Tensor { name, dtype, shape, contents });
    add("transformer.word_embeddings.weight".to_owned(), "BF16", [VOCABULARY, HIDDEN], Contents::Small);
    let qkv = (QUERY_HEADS + 2 * KV_HEADS) * HEAD_DIM;
    for layer in 0..layers {
        let module = |part: &str| format!("transformer.h.{layer}.{part}");
        for norm in ["ln_attn", "ln_mlp"] {
            add(module(norm) + ".weight", "BF16", [HIDDEN, 0], Contents::Ones);
            add(module(norm) + ".bias", "BF16", [HIDDEN, 0], Contents::Zeros);
        }
        for (part, k, n) in [
            ("self_attention.query_key_value", HIDDEN, qkv),
            ("self_attention.dense", HIDDEN, HIDDEN),
            ("mlp.dense_h_to_4h", HIDDEN, FFN),
            ("mlp.dense_4h_to_h", FFN, HIDDEN),
        ] {
            add(module(part) + ".qweight", "I32", [k, n / 8], Contents::Any);
            add(module(part) + ".qzeros", "I32", [k / GROUP_SIZE, n / 8], Contents::ZeroPoints);
            add(module(part) + ".scales", "F16", [k / GROUP_SIZE, n], Contents::Scales { in_features: k });
        }
    }
    add("transformer.ln_f.weight".to_owned(), "BF16", [HIDDEN, 0], Contents::Ones);
    add("transformer.ln_f.bias".to_owned(), "BF16", [HIDDEN, 0], Contents::Zeros);
    tensors
}

impl Tensor {
    /// A vector has 0 columns.
    fn dims(&self) -> &[usize] {
        if self.shape[1] == 0 { &self.shape[..1] } else { &self.shape }
    }

    fn bytes(&self) -> usize {
        self.dims().iter().product::<usize>() * if self.dtype == "I32" { 4 } else { 2 }
    }
}

/// Writes a shard; its bytes.
fn write_shard(path: &Path, number: u64, tensors: &[Tensor]) -> Result<usize, Box<dyn Error>> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for tensor in tensors {
        let offsets = [end, end + tensor.bytes()];
        end = offsets[1];
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.dims(), "data_offsets": offsets});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = File::create(path)?;
    file.write_all_at(&(header.len() as u64).to_le_bytes(), 0)?;
    file.write_all_at(&header, 8)?;
    let mut pieces = Vec::new();
    let mut offset = 8 + header.len();
    for (index, tensor) in tensors.iter().enumerate() {
        let words = tensor.bytes() / 8;
        for first in (0..words).step_by(PIECE) {
            pieces.push(Piece {
                file: &file,
                offset: (offset + 8 * first) as u64,
                seed: random_bits(number, index as u64),
                words: first..words.min(first + PIECE),
                contents: tensor.contents,
            });
        }
        offset += tensor.bytes();
    }
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        let work = || -> io::Result<()> {
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                piece.write()?;
            }
            Ok(())
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(offset)
}

impl Piece<'_> {
    fn write(&self) -> io::Result<()> {
        let words = self.words.clone().map(|index| self.contents.word(random_bits(self.seed, index as u64)));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        self.file.write_all_at(&bytes, self.offset)
    }
}

impl Contents {
    fn word(self, bits: u64) -> u64 {
        // The same 16 bits four times.
        let four = |half: u16| u64::from(half) * 0x0001_0001_0001_0001;
        match self {
            Self::Any => bits,
            Self::ZeroPoints => 0x7777_7777_7777_7777 + (bits & 0x1111_1111_1111_1111),
            Self::Scales { in_features } => {
                let least = half::f16::from_f32(0.9 / (4.64 * (in_features as f32).sqrt()));
                four(least.to_bits()) + (bits & four(0xff))
            }
            Self::Small => four(half::bf16::from_f32(0.008).to_bits() & 0xff00) | (bits & four(0x80ff)),
            Self::Ones => four(half::bf16::ONE.to_bits()),
            Self::Zeros => 0,
        }
    }
}
