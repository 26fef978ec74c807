//! Random weights of any configuration, of the size that trained ones have: full-size models run without a download.

use crate::load::LinearLayer;
use crate::memory::Storage;
use crate::weights::{LinearWeights, Matrix};
use awq_gemm::{Int4Shape, SyntheticInt4};
use checkpoint::quantization::Group;
use checkpoint::{LinearFormat, Quantization};
use device::{E4m3, Result, near_normal, random_bits};
use fp8::SyntheticWeights;
use half::bf16;

/// The static scale of e4m3 inputs where the format has one: activations of unit variance reach to about 8.
const INPUT_SCALE: f32 = 8.0 / E4m3::MAX;

/// A linear layer of random weights. Every element depends on the seed and its place alone, so that all backends make the
/// same ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SyntheticLinear {
    /// Columns, the summed dimension.
    pub in_features: usize,
    /// Rows.
    pub out_features: usize,
    /// How the weights are stored.
    pub format: SyntheticFormat,
    /// Whether there is a bias.
    pub bias: bool,
    /// The layer's own seed.
    pub seed: u64,
}

/// How random weights are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SyntheticFormat {
    /// Numbers that bf16 holds.
    Dense,
    /// [`SyntheticInt4`].
    Int4 {
        /// Input features that share a scale.
        group_size: usize,
        /// Whether all zero points are 8.
        symmetric: bool,
        /// The static scale of an e4m3 input.
        input_scale: Option<f32>,
    },
    /// e4m3 with a scale per row ([`SyntheticWeights`]).
    Fp8 {
        /// The static scale of an e4m3 input.
        input_scale: Option<f32>,
    },
}

/// A model's random weights: a seed, and the settings of the checkpoint that it stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Synthetic<'a> {
    pub quantization: &'a Quantization,
    pub seed: u64,
}

impl Synthetic<'_> {
    /// The parts of `layer` as one.
    pub fn linear(&self, layer: &LinearLayer<'_>) -> SyntheticLinear {
        let in_features = layer.in_features;
        let name = layer.name();
        // AutoAWQ leaves the head alone without saying so: there it is a `weight`.
        let format = self.quantization.format(name, |tensor| tensor == "lm_head.weight");
        let input_scale = |fixed: bool| fixed.then_some(INPUT_SCALE);
        let int4 =
            |group_size, symmetric, input_scale| SyntheticFormat::Int4 { group_size, symmetric, input_scale };
        let format = match format {
            LinearFormat::Plain => SyntheticFormat::Dense,
            LinearFormat::AutoAwq { group } => int4(group.size(in_features), false, None),
            LinearFormat::PackQuantized { group, symmetric } => {
                int4(group.size(in_features), symmetric, None)
            }
            LinearFormat::W4a8Awq { group_size } => int4(group_size, true, input_scale(true)),
            LinearFormat::Fp8 { static_input, .. } => {
                SyntheticFormat::Fp8 { input_scale: input_scale(static_input) }
            }
        };
        let (out_features, seed) = (layer.out_features(), self.seed_of(name));
        SyntheticLinear { in_features, out_features, format, bias: layer.bias, seed }
    }

    /// The weight of a norm: near 1.
    pub fn norm_weight(&self, name: &str, features: usize) -> Vec<f32> {
        small(self.seed_of(name), features).map(|x| bf16::from_f32(1.0 + x).to_f32()).collect()
    }

    /// A bias: near 0.
    pub fn bias(&self, name: &str, features: usize) -> Vec<f32> {
        bias(self.seed_of(name), features)
    }

    /// Names give tensors seeds of their own (FNV-1a, mixed).
    pub fn seed_of(&self, name: &str) -> u64 {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        random_bits(self.seed, hash)
    }
}

impl SyntheticLinear {
    /// The layer, made on the host.
    pub fn weights(&self) -> Result<LinearWeights> {
        let Self { in_features, out_features, seed, .. } = *self;
        let matrix = match self.format {
            SyntheticFormat::Dense => Matrix::Dense(dense(in_features, out_features, seed)?),
            SyntheticFormat::Int4 { input_scale, .. } => {
                Matrix::Int4 { weights: self.int4()?.reference()?, input_scale }
            }
            SyntheticFormat::Fp8 { input_scale } => {
                let synthetic = SyntheticWeights::new(in_features, out_features, seed)?;
                let mut codes = vec![E4m3::default(); in_features * out_features];
                synthetic.reference_e4m3(&mut codes)?;
                Matrix::Fp8 { codes, row_scales: synthetic.row_scales(), input_scale }
            }
        };
        Ok(LinearWeights {
            in_features,
            out_features,
            matrix,
            bias: self.bias_values(),
            input_multiplier: None,
        })
    }

    /// f32 `[out_features]`, where there is a bias.
    pub fn bias_values(&self) -> Option<Vec<f32>> {
        self.bias.then(|| bias(!self.seed, self.out_features))
    }

    /// Bytes on a device.
    pub(crate) fn bytes(&self) -> u64 {
        let storage = match self.format {
            SyntheticFormat::Dense => Storage::Bf16,
            SyntheticFormat::Fp8 { .. } => Storage::Fp8,
            SyntheticFormat::Int4 { group_size, .. } => Storage::Int4 { group: Group::Size(group_size) },
        };
        storage.bytes(self.in_features as u64, self.out_features as u64)
    }

    /// The INT4 weights, where the format is one.
    pub(crate) fn int4(&self) -> Result<SyntheticInt4> {
        let (group_size, symmetric) = match self.format {
            SyntheticFormat::Int4 { group_size, symmetric, .. } => (group_size, symmetric),
            SyntheticFormat::Dense | SyntheticFormat::Fp8 { .. } => (self.in_features, false),
        };
        let shape = Int4Shape::new(self.in_features, self.out_features, group_size)?;
        let synthetic = SyntheticInt4::new(shape, self.seed);
        Ok(if symmetric { synthetic.symmetric() } else { synthetic })
    }
}

/// f32 `[out_features, in_features]` of numbers that bf16 holds.
pub(crate) fn dense(in_features: usize, out_features: usize, seed: u64) -> Result<Vec<f32>> {
    let synthetic = SyntheticWeights::new(in_features, out_features, seed)?;
    let mut weights = vec![bf16::ZERO; in_features * out_features];
    synthetic.reference_bf16(&mut weights)?;
    Ok(weights.into_iter().map(bf16::to_f32).collect())
}

fn bias(seed: u64, features: usize) -> Vec<f32> {
    small(seed, features).map(|x| bf16::from_f32(x).to_f32()).collect()
}

/// Numbers that deviate by 0.018.
fn small(seed: u64, features: usize) -> impl Iterator<Item = f32> {
    (0..features as u64).map(move |i| near_normal(random_bits(seed, i) as u32) as f32 / 8192.0)
}
