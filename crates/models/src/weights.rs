//! Linear layers in canonical form: whatever the checkpoint's format, `[out_features, in_features]`.

use crate::error::{Error, Result};
use awq_gemm::formats::compressed_tensors::ZeroPoints;
use awq_gemm::{Int4Shape, Int4Weights, formats};
use checkpoint::{Fp8Scale, LinearTensors, LinearWeight};
use device::E4m3;

/// One linear layer as a backend takes it over.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearWeights {
    /// Columns, the summed dimension.
    pub in_features: usize,
    /// Rows.
    pub out_features: usize,
    /// The weight.
    pub matrix: Matrix,
    /// f32 `[out_features]`.
    pub bias: Option<Vec<f32>>,
    /// f32 `[in_features]`, what the input is multiplied by before it is quantized.
    pub input_multiplier: Option<Vec<f32>>,
}

/// A weight matrix.
#[derive(Debug, Clone, PartialEq)]
pub enum Matrix {
    /// f32 `[out_features, in_features]`.
    Dense(Vec<f32>),
    /// 4 bits a weight.
    Int4 {
        /// Codes, zero points, scales.
        weights: Int4Weights,
        /// The static scale of an e4m3 input, where the checkpoint fixes one.
        input_scale: Option<f32>,
    },
    /// e4m3 weights.
    Fp8 {
        /// e4m3 `[out_features, in_features]`.
        codes: Vec<E4m3>,
        /// f32 `[out_features]`: fused layers whose parts have scales of their own stay exact.
        row_scales: Vec<f32>,
        /// The static scale of an e4m3 input, where the checkpoint fixes one.
        input_scale: Option<f32>,
    },
}

impl LinearWeights {
    /// From a checkpoint's tensors, exactly.
    pub fn from_tensors(name: &str, tensors: LinearTensors) -> Result<Self> {
        let LinearTensors { in_features, out_features, weight, bias } = tensors;
        let int4 = |group_size| Int4Shape::new(in_features, out_features, group_size);
        let mut input_multiplier = None;
        let matrix = match weight {
            LinearWeight::Plain { weight } => Matrix::Dense(weight),
            LinearWeight::AutoAwq { qweight, qzeros, scales, group_size } => {
                let weights = formats::auto_awq::read(int4(group_size)?, &qweight, &qzeros, &scales)?;
                Matrix::Int4 { weights, input_scale: None }
            }
            LinearWeight::PackQuantized { packed, scales, zero_points, group_size } => {
                let zero_points = zero_points.as_deref().map_or(ZeroPoints::Symmetric, ZeroPoints::Packed);
                let weights =
                    formats::compressed_tensors::read(int4(group_size)?, &packed, &scales, zero_points)?;
                Matrix::Int4 { weights, input_scale: None }
            }
            LinearWeight::W4a8Awq { packed, scales, input_scale, pre_quant_scale, group_size, .. } => {
                input_multiplier = pre_quant_scale;
                let weights = formats::model_opt::read(int4(group_size)?, &packed, &scales)?;
                Matrix::Int4 { weights, input_scale: Some(input_scale) }
            }
            LinearWeight::Fp8 { codes, weight_scale, input_scale } => {
                let row_scales = match weight_scale {
                    Fp8Scale::Tensor(scale) => vec![scale; out_features],
                    Fp8Scale::Rows(scales) => scales,
                };
                Matrix::Fp8 { codes, row_scales, input_scale }
            }
        };
        let weights = Self { in_features, out_features, matrix, bias, input_multiplier };
        weights.checked(name)
    }

    /// A plain layer without bias.
    pub fn dense(in_features: usize, out_features: usize, weight: Vec<f32>) -> Self {
        let matrix = Matrix::Dense(weight);
        Self { in_features, out_features, matrix, bias: None, input_multiplier: None }
    }

    /// The rows of all parts, one part below the other.
    ///
    /// Parts read the same input, so they must agree on its multiplier; of static input scales the largest is taken,
    /// which clips nothing. Parts of different formats become plain, exactly.
    pub fn fuse(name: &str, mut parts: Vec<Self>) -> Result<Self> {
        let refuse = |what: &str| Error::Fused { name: name.to_owned(), what: what.to_owned() };
        let Some(first) = parts.first() else { return Err(refuse("no parts")) };
        let in_features = first.in_features;
        let input_multiplier = first.input_multiplier.clone();
        if parts.iter().any(|part| part.input_multiplier != input_multiplier) {
            return Err(refuse("pre_quant_scale differs between its parts"));
        }
        let bias = match parts.iter().filter(|part| part.bias.is_some()).count() {
            0 => None,
            n if n == parts.len() => {
                Some(parts.iter_mut().flat_map(|part| part.bias.take().unwrap_or_default()).collect())
            }
            _ => return Err(refuse("only some of its parts have a bias")),
        };
        let out_features = parts.iter().map(|part| part.out_features).sum();
        let matrix = Matrix::fuse(parts.into_iter().map(|part| part.matrix).collect())?;
        Ok(Self { in_features, out_features, matrix, bias, input_multiplier })
    }

    /// Row `i` of the result is row `rows[i]`.
    pub fn permuted(self, rows: &[usize]) -> Result<Self> {
        let Self { in_features, matrix, bias, .. } = self;
        let matrix = match matrix {
            Matrix::Dense(weight) => Matrix::Dense(take_rows(&weight, in_features, rows)),
            Matrix::Int4 { weights, input_scale } => {
                Matrix::Int4 { weights: weights.select_rows(rows)?, input_scale }
            }
            Matrix::Fp8 { codes, row_scales, input_scale } => Matrix::Fp8 {
                codes: take_rows(&codes, in_features, rows),
                row_scales: take_rows(&row_scales, 1, rows),
                input_scale,
            },
        };
        let bias = bias.map(|bias| take_rows(&bias, 1, rows));
        Ok(Self {
            in_features,
            out_features: rows.len(),
            matrix,
            bias,
            input_multiplier: self.input_multiplier,
        })
    }

    /// Folds `divisors`, f32 `[in_features]` of the tensor `name`, into the input's multiplier.
    pub fn divide_input(&mut self, name: &str, divisors: &[f32]) -> Result<()> {
        self.input_multiplier = Some(divided(self.input_multiplier.take(), name, divisors)?);
        Ok(())
    }

    /// The weight in f32 `[out_features, in_features]`.
    pub fn dequantize(&self) -> Vec<f32> {
        self.matrix.dequantize()
    }

    /// Refuses what the formats allow and no model has: values that are not finite.
    fn checked(self, name: &str) -> Result<Self> {
        let multiplier = self.input_multiplier.iter().flatten();
        let finite = match &self.matrix {
            Matrix::Dense(weight) => weight.iter().all(|x| x.is_finite()),
            // Codes are finite by construction, scales were checked by `checkpoint`.
            Matrix::Int4 { .. } | Matrix::Fp8 { .. } => true,
        };
        if finite && multiplier.chain(self.bias.iter().flatten()).all(|x| x.is_finite()) {
            Ok(self)
        } else {
            Err(Error::NotFinite { name: name.to_owned() })
        }
    }
}

impl Matrix {
    fn fuse(parts: Vec<Self>) -> Result<Self> {
        let group_sizes: Option<Vec<usize>> = parts
            .iter()
            .map(|part| match part {
                Self::Int4 { weights, .. } => Some(weights.shape().group_size()),
                _ => None,
            })
            .collect();
        if group_sizes.is_some_and(|sizes| sizes.iter().all(|&size| size == sizes[0])) {
            let (weights, scales): (Vec<_>, Vec<_>) = parts
                .into_iter()
                .filter_map(|part| match part {
                    Self::Int4 { weights, input_scale } => Some((weights, input_scale)),
                    _ => None,
                })
                .unzip();
            return Ok(Self::Int4 {
                weights: Int4Weights::concat(&weights)?,
                input_scale: static_scale(scales),
            });
        }
        if parts.iter().all(|part| matches!(part, Self::Fp8 { .. })) {
            let (mut all_codes, mut all_scales, mut input_scales) = (Vec::new(), Vec::new(), Vec::new());
            for part in parts {
                if let Self::Fp8 { codes, row_scales, input_scale } = part {
                    all_codes.extend(codes);
                    all_scales.extend(row_scales);
                    input_scales.push(input_scale);
                }
            }
            let input_scale = static_scale(input_scales);
            return Ok(Self::Fp8 { codes: all_codes, row_scales: all_scales, input_scale });
        }
        Ok(Self::Dense(parts.iter().flat_map(Self::dequantize).collect()))
    }

    fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::Dense(weight) => weight.clone(),
            Self::Int4 { weights, .. } => weights.dequantize(),
            Self::Fp8 { codes, row_scales, .. } => {
                let columns = codes.len() / row_scales.len().max(1);
                let rows = codes.chunks_exact(columns.max(1)).zip(row_scales);
                rows.flat_map(|(row, scale)| row.iter().map(move |code| code.to_f32() * scale)).collect()
            }
        }
    }
}

/// The static input scale of fused parts: the largest, which clips nothing. A part without one is quantized by what comes:
/// then all are.
pub(crate) fn static_scale(scales: Vec<Option<f32>>) -> Option<f32> {
    let scales = scales.into_iter().collect::<Option<Vec<f32>>>()?;
    scales.into_iter().reduce(f32::max)
}

/// The multiplier of an input, 1 where there is none, over `divisors`, f32 `[in_features]` of the tensor `name`.
pub(crate) fn divided(multiplier: Option<Vec<f32>>, name: &str, divisors: &[f32]) -> Result<Vec<f32>> {
    let mut multiplier = multiplier.unwrap_or_else(|| vec![1.0; divisors.len()]);
    for (factor, divisor) in multiplier.iter_mut().zip(divisors) {
        *factor /= divisor;
    }
    let finite = multiplier.iter().all(|factor| factor.is_finite());
    if finite { Ok(multiplier) } else { Err(Error::NotFinite { name: format!("1 / {name}") }) }
}

fn take_rows<T: Copy>(matrix: &[T], columns: usize, rows: &[usize]) -> Vec<T> {
    rows.iter().flat_map(|&row| &matrix[row * columns..][..columns]).copied().collect()
}
