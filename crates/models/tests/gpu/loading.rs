//! Streaming to the device gives what loading by way of the host gives, bit for bit, and refuses what it refuses.

use super::cuda;
use awq_gemm::formats::{auto_awq, compressed_tensors};
use awq_gemm::{Int4Shape, Int4Weights};
use checkpoint::{Checkpoint, Files};
use device::E4m3;
use half::{bf16, f16};
use models::{Backend, Cuda, EmbeddingSource, LinearLayer, LinearSource};
use op_test::Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

const IN_FEATURES: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    Plain(Dtype),
    AutoAwq(Option<usize>),
    Packed { group_size: usize, symmetric: bool, scales: Dtype },
    Fp8 { per_row: bool, static_input: bool },
}

const FORMATS: [Format; 14] = [
    Format::Plain(Dtype::BF16),
    Format::Plain(Dtype::F16),
    Format::Plain(Dtype::F32),
    Format::AutoAwq(Some(64)),
    Format::AutoAwq(Some(128)),
    Format::AutoAwq(Some(256)),
    Format::AutoAwq(None),
    Format::Packed { group_size: 128, symmetric: true, scales: Dtype::BF16 },
    Format::Packed { group_size: 64, symmetric: false, scales: Dtype::F16 },
    Format::Packed { group_size: 512, symmetric: false, scales: Dtype::F32 },
    Format::Fp8 { per_row: true, static_input: false },
    Format::Fp8 { per_row: false, static_input: false },
    Format::Fp8 { per_row: true, static_input: true },
    // By way of the host in either case: the file has groups that no kernel has.
    Format::AutoAwq(Some(32)),
];

/// A checkpoint in the making.
struct Writer {
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    rng: Rng,
}

impl Writer {
    fn new() -> Self {
        Self { tensors: Vec::new(), rng: Rng::new(17) }
    }

    fn add<T: bytemuck::Pod>(&mut self, name: String, dtype: Dtype, shape: &[usize], values: &[T]) {
        self.tensors.push((name, dtype, shape.to_vec(), bytemuck::cast_slice(values).to_vec()));
    }

    /// Numbers of either sign and every size, in a float format.
    fn floats(&mut self, name: String, dtype: Dtype, shape: &[usize], values: &[f32]) {
        match dtype {
            Dtype::F32 => self.add(name, dtype, shape, values),
            Dtype::F16 => {
                self.add(name, dtype, shape, &values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>())
            }
            _ => self.add(name, dtype, shape, &values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
        }
    }

    /// The linear layer `name` with a bias.
    fn linear(&mut self, name: &str, out_features: usize, format: Format) {
        let tensor = |suffix: &str| format!("{name}.{suffix}");
        let (n, k) = (out_features, IN_FEATURES);
        let bias = self.rng.tensor(n, 1.0);
        self.floats(tensor("bias"), Dtype::F16, &[n], &bias);
        match format {
            Format::Plain(dtype) => {
                let weights = self.rng.tensor(n * k, 0.05);
                self.floats(tensor("weight"), dtype, &[n, k], &weights);
            }
            Format::AutoAwq(group_size) => {
                let weights = self.int4(n, group_size.unwrap_or(k), false, Dtype::F16);
                let groups = weights.shape().groups();
                let tensors = auto_awq::write::<f16>(&weights).unwrap();
                self.add(tensor("qweight"), Dtype::I32, &[k, n / 8], &tensors.qweight);
                self.add(tensor("qzeros"), Dtype::I32, &[groups, n / 8], &tensors.qzeros);
                self.add(tensor("scales"), Dtype::F16, &[groups, n], &tensors.scales);
            }
            Format::Packed { group_size, symmetric, scales } => {
                let weights = self.int4(n, group_size, symmetric, scales);
                let groups = weights.shape().groups();
                let tensors = compressed_tensors::write::<f32>(&weights).unwrap();
                self.add(tensor("weight_packed"), Dtype::I32, &[n, k / 8], &tensors.weight_packed);
                self.floats(tensor("weight_scale"), scales, &[n, groups], &tensors.weight_scale);
                if let Some(zeros) = &tensors.weight_zero_point {
                    self.add(tensor("weight_zero_point"), Dtype::I32, &[n.div_ceil(8), groups], zeros);
                }
                self.add(tensor("weight_shape"), Dtype::I64, &[2], &tensors.weight_shape);
            }
            Format::Fp8 { per_row, static_input } => {
                let codes: Vec<u8> =
                    self.rng.tensor(n * k, 100.0).into_iter().map(|x| E4m3::from_f32(x).0).collect();
                self.add(tensor("weight"), Dtype::F8_E4M3, &[n, k], &codes);
                let scale = |rng: &mut Rng| 0.001 + 0.001 * rng.signed().abs();
                let scales: Vec<f32> =
                    (0..if per_row { n } else { 1 }).map(|_| scale(&mut self.rng)).collect();
                let shape: &[usize] = if per_row { &[n, 1] } else { &[1] };
                self.floats(tensor("weight_scale"), Dtype::F32, shape, &scales);
                if static_input {
                    let scale = scale(&mut self.rng);
                    self.floats(tensor("input_scale"), Dtype::F32, &[1], &[scale]);
                }
            }
        }
    }

    /// Scales that bf16, and so every other format, holds.
    fn int4(
        &mut self,
        out_features: usize,
        group_size: usize,
        symmetric: bool,
        scales: Dtype,
    ) -> Int4Weights {
        let shape = Int4Shape::new(IN_FEATURES, out_features, group_size).unwrap();
        let groups = out_features * shape.groups();
        let rng = &mut self.rng;
        let codes = (0..out_features * IN_FEATURES).map(|_| rng.below(0..16) as u8).collect();
        let zeros = (0..groups).map(|_| if symmetric { 8 } else { rng.below(0..16) as u8 }).collect();
        let narrow = |x: f32| {
            if scales == Dtype::F16 { f16::from_f32(x).to_f32() } else { bf16::from_f32(x).to_f32() }
        };
        let scales = (0..groups).map(|_| narrow(0.001 + 0.01 * rng.signed().abs())).collect();
        Int4Weights::new(shape, codes, zeros, scales).unwrap()
    }

    fn checkpoint(self, format: Format) -> Checkpoint {
        let input = |fixed: bool| {
            let strategy = if fixed { "tensor" } else { "token" };
            json!({"num_bits": 8, "type": "float", "symmetric": true, "dynamic": !fixed, "strategy": strategy})
        };
        let compressed = |format: &str, weights: Value, input: Option<Value>| {
            let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": input});
            json!({"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}})
        };
        let quantization = match format {
            Format::Plain(_) => Value::Null,
            Format::AutoAwq(group_size) => json!({
                "quant_method": "awq", "version": "gemm", "bits": 4, "zero_point": true,
                "group_size": group_size.map_or(-1, |size| size as i64),
            }),
            Format::Packed { group_size, symmetric, .. } => {
                let weights = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size,
                    "symmetric": symmetric});
                compressed("pack-quantized", weights, None)
            }
            Format::Fp8 { per_row, static_input } => {
                let strategy = if per_row { "channel" } else { "tensor" };
                let weights = json!({"num_bits": 8, "type": "float", "symmetric": true, "dynamic": false,
                    "strategy": strategy});
                compressed("float-quantized", weights, Some(input(static_input)))
            }
        };
        let config = json!({"model_type": "llama", "vocab_size": 8, "hidden_size": IN_FEATURES,
            "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8,
            "quantization_config": quantization});
        let views = self.tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        let files: [(&str, &'static [u8]); 2] =
            [("config.json", config.to_string().leak().as_bytes()), ("model.safetensors", file.leak())];
        Checkpoint::from_files(Files::memory(files)).unwrap()
    }
}

#[track_caller]
fn same(cuda: &Cuda, checkpoint: &Checkpoint, layer: &LinearLayer<'_>, what: &str) {
    let source = LinearSource { checkpoint, layer };
    let streamed = cuda.read_linear(&source).map(|linear| linear.to_host().unwrap());
    let by_host = source.weights().and_then(|weights| Ok(cuda.load_linear(weights)?.to_host()?));
    match (streamed, by_host) {
        (Ok(streamed), Ok(by_host)) => {
            let wrong = streamed.iter().zip(&by_host).position(|(a, b)| a != b);
            assert_eq!((streamed.len(), wrong), (by_host.len(), None), "{what}: {layer:?}");
        }
        (streamed, by_host) => {
            let text = |result: models::Result<Vec<u8>>| result.err().map(|error| error.to_string());
            let (streamed, by_host) = (text(streamed), text(by_host));
            assert_eq!(streamed, by_host, "{what}: {layer:?}");
            let groups_of_32 = "int4_weights: group_size: expected a multiple of 64 (the kernels have groups of 64 and 128), got 32";
            assert_eq!(streamed.as_deref(), Some(groups_of_32), "{what}");
        }
    }
}

#[test]
#[ignore = "needs an H200"]
fn streamed_layers_are_those_of_the_host() {
    let cuda = cuda();
    for format in FORMATS {
        let mut writer = Writer::new();
        let parts = [("m.q_proj", 136), ("m.k_proj", 24), ("m.v_proj", 32)];
        for (name, rows) in parts {
            writer.linear(name, rows, format);
        }
        writer.linear("m.whole", 320, format);
        let divisors: Vec<f32> = writer.rng.tensor(IN_FEATURES, 0.2).iter().map(|x| 1.5 + x).collect();
        writer.floats("m.act.scales".to_owned(), Dtype::F16, &[IN_FEATURES], &divisors);
        // Falcon's order, heads of 64: out of order by heads, in order inside.
        let heads: Vec<usize> = [0, 1, 3, 2, 4].iter().flat_map(|head| head * 64..(head + 1) * 64).collect();
        let mut shuffled: Vec<usize> = (0..320).collect();
        for i in (1..320).rev() {
            shuffled.swap(i, writer.rng.below(0..i + 1));
        }
        let checkpoint = writer.checkpoint(format);
        let layer =
            LinearLayer { parts: vec![], in_features: IN_FEATURES, bias: true, rows: None, divisors: None };
        let whole = LinearLayer { parts: vec![("m.whole", 320)], ..layer.clone() };
        let what = format!("{format:?}");
        same(&cuda, &checkpoint, &whole, &what);
        same(&cuda, &checkpoint, &LinearLayer { divisors: Some("m.act.scales"), ..whole.clone() }, &what);
        same(&cuda, &checkpoint, &LinearLayer { divisors: Some("m.none"), ..whole.clone() }, &what);
        same(&cuda, &checkpoint, &LinearLayer { rows: Some(&heads), ..whole.clone() }, &what);
        same(&cuda, &checkpoint, &LinearLayer { rows: Some(&shuffled), ..whole }, &what);
        same(&cuda, &checkpoint, &LinearLayer { parts: parts.to_vec(), ..layer }, &what);
    }
}

#[test]
#[ignore = "needs an H200"]
fn streamed_embeddings_are_those_of_the_host() {
    let cuda = cuda();
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let mut writer = Writer::new();
        let values = writer.rng.tensor(99 * IN_FEATURES, 1.0);
        writer.floats("wte.weight".to_owned(), dtype, &[99, IN_FEATURES], &values);
        let checkpoint = writer.checkpoint(Format::Plain(dtype));
        let source =
            EmbeddingSource { checkpoint: &checkpoint, name: "wte", rows: 99, features: IN_FEATURES };
        let streamed = cuda.read_embedding(&source).unwrap().to_host().unwrap();
        let by_host = cuda.load_embedding(source.values().unwrap(), IN_FEATURES).unwrap().to_host().unwrap();
        assert_eq!(streamed, by_host);
    }
}

#[test]
#[ignore = "needs an H200"]
fn what_the_host_refuses_is_refused_by_the_same_words() {
    let cuda = cuda();
    let refused = |format: Format, damage: &dyn Fn(&mut Writer), text: &str| {
        let mut writer = Writer::new();
        writer.linear("m.a", 64, format);
        writer.linear("m.b", 128, format);
        damage(&mut writer);
        let checkpoint = writer.checkpoint(format);
        let parts = vec![("m.a", 64), ("m.b", 128)];
        let layer = LinearLayer { parts, in_features: IN_FEATURES, bias: true, rows: None, divisors: None };
        let source = LinearSource { checkpoint: &checkpoint, layer: &layer };
        assert_eq!(cuda.read_linear(&source).err().unwrap().to_string(), text);
        let by_host = source.weights().and_then(|weights| Ok(cuda.load_linear(weights)?));
        assert_eq!(by_host.err().unwrap().to_string(), text);
    };
    fn tensor<'a>(writer: &'a mut Writer, name: &str) -> &'a mut Vec<u8> {
        &mut writer.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap().3
    }
    let damaged =
        "m.b: has values that are not finite; the file is damaged or was exported from a diverged model";
    // The last element of the last row: an infinity.
    let plain: [(Dtype, &[u8]); 3] =
        [(Dtype::BF16, &[0x80, 0x7f]), (Dtype::F16, &[0, 0xfc]), (Dtype::F32, &[0, 0, 0x80, 0xff])];
    for (dtype, infinity) in plain {
        let damage = |writer: &mut Writer| {
            let bytes = tensor(writer, "m.b.weight");
            let at = bytes.len() - infinity.len();
            bytes[at..].copy_from_slice(infinity);
        };
        refused(Format::Plain(dtype), &damage, damaged);
    }
    let nan_bias = |writer: &mut Writer| tensor(writer, "m.b.bias")[..2].copy_from_slice(&[0, 0x7e]);
    let awq = Format::AutoAwq(Some(128));
    refused(awq, &nan_bias, damaged);
    let nan_code = |writer: &mut Writer| tensor(writer, "m.b.weight")[1000] = 0xff;
    let fp8 = Format::Fp8 { per_row: true, static_input: false };
    let mut writer = Writer::new();
    writer.linear("m.b", 128, fp8);
    nan_code(&mut writer);
    let said = writer.checkpoint(fp8).linear("m.b", IN_FEATURES, 128).unwrap_err().to_string();
    assert!(said.contains("m.b.weight") && said.contains("1000"), "{said}");
    refused(fp8, &nan_code, &said);
    // A scale that needs more than f16 has.
    let packed = Format::Packed { group_size: 128, symmetric: true, scales: Dtype::F32 };
    let fine = |writer: &mut Writer| {
        tensor(writer, "m.b.weight_scale")[..4].copy_from_slice(&0.1f32.to_le_bytes());
    };
    refused(packed, &fine, "pack: scales: expected numbers that f16 holds exactly, got 0.1");
    let no_bias = |writer: &mut Writer| writer.tensors.retain(|tensor| tensor.0 != "m.b.bias");
    refused(awq, &no_bias, "m.b.bias: config.json says there is one, the tensors say otherwise");
}
