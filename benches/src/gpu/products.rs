//! Linear layers of Falcon-180B and Llama-70B with random weights and activations.

use super::{Bench, Case, Suite};
use crate::Work;
use awq_gemm::{DeviceInt4Weights, Int4Shape, SyntheticInt4, W4A8, W4A8Workspace, W4A16, W4A16Workspace};
use cudarc::driver::{CudaSlice, CudaStream};
use device::gpu::{upload, zeros};
use device::{E4m3, QuantizedActivation, Result};
use fp8::{DenseProduct, Fp8Product, Quantize, SyntheticWeights};
use half::bf16;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// A linear layer's name and sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Model and layer.
    pub name: &'static str,
    /// The summed dimension.
    pub in_features: usize,
    /// Rows.
    pub out_features: usize,
}

const fn layer(name: &'static str, out_features: usize, in_features: usize) -> Layer {
    Layer { name, in_features, out_features }
}

/// All linear layers of the two models.
pub const LAYERS: [Layer; 8] = [
    layer("Falcon-180B qkv", 15872, 14848),
    layer("Falcon-180B dense", 14848, 14848),
    layer("Falcon-180B up", 59392, 14848),
    layer("Falcon-180B down", 14848, 59392),
    layer("Llama-70B qkv", 10240, 8192),
    layer("Llama-70B o", 8192, 8192),
    layer("Llama-70B gate+up", 57344, 8192),
    layer("Llama-70B down", 8192, 28672),
];

/// Tokens of a step, from one sequence to a prefill chunk.
pub const TOKENS: [usize; 11] = [1, 8, 16, 32, 64, 128, 192, 256, 512, 1024, 4096];

/// Input features that share a scale.
const GROUP_SIZE: usize = 128;

impl Layer {
    /// Multiplications and additions for so many tokens.
    pub fn operations(&self, tokens: usize) -> f64 {
        2.0 * (self.in_features * self.out_features) as f64 * tokens as f64
    }

    /// Bytes of INT4 weights with their scales and zero points.
    pub fn int4_bytes(&self) -> usize {
        let weights = self.in_features * self.out_features;
        // 4 bits, and for every group 16 bits of scale and 4 of zero point.
        weights / 2 + weights / GROUP_SIZE * 5 / 2
    }

    /// Bytes of FP8 weights.
    pub fn fp8_bytes(&self) -> usize {
        self.in_features * self.out_features
    }

    /// bf16 `[tokens, in_features]` of the size of normed activations: a deviation of 1.
    fn activations(&self, bench: &Bench, tokens: usize) -> Result<CudaSlice<bf16>> {
        // Numbers whose deviation is 1 / sqrt(features), so in rows of one feature.
        random(bench, tokens * self.in_features, 1)
    }
}

/// bf16 near-normal numbers of a deviation of 1 / sqrt(features).
pub(super) fn random(bench: &Bench, elements: usize, features: usize) -> Result<CudaSlice<bf16>> {
    let stream = bench.gpu().stream();
    let mut x = zeros(stream, elements, "activations")?;
    SyntheticWeights::new(features, elements / features, 11)?.launch_bf16(stream, &mut x)?;
    Ok(x)
}

/// Near-normal e4m3 numbers over all of its range.
pub(super) fn random_bytes(bench: &Bench, bytes: usize, seed: u64) -> Result<CudaSlice<E4m3>> {
    let mut codes = zeros(bench.gpu().stream(), bytes, "random codes")?;
    // The codes do not depend on the shape.
    SyntheticWeights::new(1, bytes, seed)?.launch_e4m3(bench.gpu().stream(), &mut codes)?;
    Ok(codes)
}

pub(super) type Activation = QuantizedActivation<CudaSlice<E4m3>, CudaSlice<f32>>;

/// The quantizing kernel, a scale per token.
pub struct Quantizing {
    stream: Stream,
    plan: Quantize,
    copies: Vec<(CudaSlice<bf16>, Activation)>,
}

type Stream = Arc<CudaStream>;

impl Quantizing {
    /// `[tokens, features]` with group sums, `copies` times.
    pub fn new(bench: &Bench, tokens: usize, features: usize, copies: usize) -> Result<Self> {
        let plan = Quantize::per_token(features)?.with_group_sums(GROUP_SIZE)?;
        let copy = |_| Ok((random(bench, tokens * features, 1)?, output(bench, &plan, tokens)?));
        let copies = (0..copies).map(copy).collect::<Result<_>>()?;
        Ok(Self { stream: bench.gpu().stream().clone(), plan, copies })
    }

    /// Bytes read and written: 16-bit numbers, codes, scales, group sums.
    pub fn bytes(tokens: usize, features: usize) -> usize {
        tokens * (3 * features + 4 + 4 * features.div_ceil(GROUP_SIZE))
    }

    /// One launch on copy number `copy`.
    pub fn launch(&mut self, copy: usize) -> Result<()> {
        let (x, output) = &mut self.copies[copy];
        self.plan.launch(&self.stream, x, output)
    }
}

pub(super) fn output(bench: &Bench, plan: &Quantize, tokens: usize) -> Result<Activation> {
    let (stream, shape) = (bench.gpu().stream(), plan.shape(tokens));
    Ok(QuantizedActivation {
        codes: zeros(stream, tokens * shape.features, "codes")?,
        scales: zeros(stream, tokens, "scales")?,
        group_sums: zeros(stream, tokens * shape.groups(), "group sums")?,
        shape,
    })
}

fn quantized(bench: &Bench, plan: Quantize, x: &CudaSlice<bf16>, tokens: usize) -> Result<Activation> {
    let mut quantized = output(bench, &plan, tokens)?;
    plan.launch(bench.gpu().stream(), x, &mut quantized)?;
    Ok(quantized)
}

/// A launch on copy number so many of its operands, which it owns.
pub(super) type Launch = Box<dyn FnMut(usize) -> Result<()>>;

/// The products of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// INT4 weights, FP8 activations.
    W4A8,
    /// INT4 weights, bf16 activations.
    W4A16,
    /// FP8 weights and activations, through cuBLASLt.
    Fp8,
}

impl Product {
    /// Times it.
    pub fn measure(self, suite: &mut Suite, layer: &Layer, tokens: usize) {
        let case = self.case(suite.bench(), layer, tokens);
        let copies = case.copies;
        suite.measure(case, |bench| self.prepare(bench, layer, tokens, copies));
    }

    /// Keeps it up for `duration`.
    pub fn sustain(self, suite: &mut Suite, layer: &Layer, tokens: usize, duration: Duration) {
        let case = self.case(suite.bench(), layer, tokens);
        let copies = case.copies;
        suite.sustain(case, duration, |bench| self.prepare(bench, layer, tokens, copies));
    }

    fn case(self, bench: &Bench, layer: &Layer, tokens: usize) -> Case {
        let Layer { name, in_features, out_features } = *layer;
        let operations = layer.operations(tokens);
        let (group, work) = match self {
            Self::W4A8 => ("W4A8", Work::read(layer.int4_bytes()).fp8(operations)),
            Self::W4A16 => ("W4A16", Work::read(layer.int4_bytes()).bf16(operations)),
            Self::Fp8 => ("FP8 (cuBLASLt)", Work::read(layer.fp8_bytes()).fp8(operations)),
        };
        Case {
            group: group.to_owned(),
            name: format!("{name} {out_features} x {in_features}, M = {tokens}"),
            shape: json!({
                "layer": name, "out_features": out_features, "in_features": in_features, "tokens": tokens,
            }),
            work,
            copies: bench.copies(work.bytes as usize),
        }
    }

    /// The product with random operands.
    pub(super) fn prepare(
        self,
        bench: &Bench,
        layer: &Layer,
        tokens: usize,
        copies: usize,
    ) -> Result<Launch> {
        if self == Self::Fp8 {
            let mut layer = Fp8Layer::new(bench, layer, tokens, copies)?;
            return Ok(Box::new(move |copy| layer.launch(copy)));
        }
        let mut layer = Int4Layer::new(bench, layer, tokens, copies)?;
        Ok(match self {
            Self::W4A16 => Box::new(move |copy| layer.launch_w4a16(copy)),
            _ => Box::new(move |copy| layer.launch_w4a8(copy)),
        })
    }
}

/// A layer of INT4 weights.
struct Int4Layer {
    stream: Stream,
    shape: Int4Shape,
    copies: Vec<DeviceInt4Weights>,
    x: CudaSlice<bf16>,
    quantized: Activation,
    y: CudaSlice<bf16>,
    w4a8: W4A8Workspace,
    w4a16: W4A16Workspace,
}

impl Int4Layer {
    /// `layer` with `copies` copies of its weights, for `tokens` tokens.
    fn new(bench: &Bench, layer: &Layer, tokens: usize, copies: usize) -> Result<Self> {
        let stream = bench.gpu().stream();
        let shape = Int4Shape::new(layer.in_features, layer.out_features, GROUP_SIZE)?;
        let weights = |seed| DeviceInt4Weights::synthetic(stream, &SyntheticInt4::new(shape, seed as u64));
        let x = layer.activations(bench, tokens)?;
        let plan = Quantize::per_token(layer.in_features)?.with_group_sums(GROUP_SIZE)?;
        Ok(Self {
            stream: stream.clone(),
            shape,
            copies: (0..copies).map(weights).collect::<Result<_>>()?,
            quantized: quantized(bench, plan, &x, tokens)?,
            x,
            y: zeros(stream, tokens * layer.out_features, "y")?,
            w4a8: W4A8Workspace::new(stream)?,
            w4a16: W4A16Workspace::new(stream)?,
        })
    }

    /// The product with e4m3 activations.
    fn launch_w4a8(&mut self, copy: usize) -> Result<()> {
        let (weights, workspace) = (&self.copies[copy], &mut self.w4a8);
        let product = W4A8::new(self.shape);
        product.launch(&self.stream, &self.quantized, weights, NO_BIAS, workspace, &mut self.y)
    }

    /// The product with bf16 activations.
    fn launch_w4a16(&mut self, copy: usize) -> Result<()> {
        let (weights, workspace) = (&self.copies[copy], &mut self.w4a16);
        W4A16::new(self.shape).launch(&self.stream, &self.x, weights, NO_BIAS, workspace, &mut self.y)
    }
}

const NO_BIAS: Option<&CudaSlice<f32>> = None;

/// A layer of FP8 weights, through cuBLASLt.
struct Fp8Layer {
    stream: Stream,
    product: Fp8Product,
    copies: Vec<CudaSlice<E4m3>>,
    row_scales: CudaSlice<f32>,
    quantized: Activation,
    y: CudaSlice<bf16>,
}

impl Fp8Layer {
    /// `layer` with `copies` copies of its weights, for `tokens` tokens.
    fn new(bench: &Bench, layer: &Layer, tokens: usize, copies: usize) -> Result<Self> {
        let stream = bench.gpu().stream();
        let weights = SyntheticWeights::new(layer.in_features, layer.out_features, 0)?;
        let copy = |seed| random_bytes(bench, layer.fp8_bytes(), seed as u64);
        let x = layer.activations(bench, tokens)?;
        Ok(Self {
            stream: stream.clone(),
            product: Fp8Product::new(layer.in_features, layer.out_features)?,
            copies: (0..copies).map(copy).collect::<Result<_>>()?,
            row_scales: upload(stream, &weights.row_scales(), "row scales")?,
            quantized: quantized(bench, Quantize::per_token(layer.in_features)?, &x, tokens)?,
            y: zeros(stream, tokens * layer.out_features, "y")?,
        })
    }

    /// The product.
    fn launch(&mut self, copy: usize) -> Result<()> {
        let no_bias = None::<&CudaSlice<bf16>>;
        let (x, weights) = (&self.quantized, &self.copies[copy]);
        self.product.launch(&self.stream, x, weights, &self.row_scales, no_bias, &mut self.y)
    }
}

/// A layer of bf16 weights, through cuBLASLt.
pub(super) struct Dense {
    stream: Stream,
    product: DenseProduct,
    weights: CudaSlice<bf16>,
    x: CudaSlice<bf16>,
    y: CudaSlice<bf16>,
}

impl Dense {
    /// `layer` for `tokens` tokens.
    pub fn new(bench: &Bench, layer: &Layer, tokens: usize) -> Result<Self> {
        Ok(Self {
            stream: bench.gpu().stream().clone(),
            product: DenseProduct::new(layer.in_features, layer.out_features)?,
            weights: random(bench, layer.in_features * layer.out_features, layer.in_features)?,
            x: layer.activations(bench, tokens)?,
            y: zeros(bench.gpu().stream(), tokens * layer.out_features, "y")?,
        })
    }

    /// The product.
    pub fn launch(&mut self) -> Result<()> {
        let no_bias = None::<&CudaSlice<bf16>>;
        self.product.launch(&self.stream, &self.x, &self.weights, no_bias, &mut self.y)
    }
}
