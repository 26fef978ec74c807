//! A linear layer's tensors as the checkpoint stores them: shapes, dtypes and scales checked, nothing converted.

use crate::quantization::{Group, LinearFormat};
use crate::{Dtype, Result, TensorError, Tensors};
use device::E4m3;
use half::f16;

/// 4-bit codes to a 32-bit word.
const PACK: usize = 8;

/// One linear layer: weight `[out_features, in_features]`, in whatever form, and its bias.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearTensors {
    /// Columns of the weight, K.
    pub in_features: usize,
    /// Rows of the weight, N.
    pub out_features: usize,
    /// The weight.
    pub weight: LinearWeight,
    /// f32 `[N]`.
    pub bias: Option<Vec<f32>>,
}

/// A weight `[N, K]` as stored. Every scale is finite and positive.
#[derive(Debug, Clone, PartialEq)]
pub enum LinearWeight {
    /// bf16, f16 or f32, widened.
    Plain {
        /// f32 `[N, K]`.
        weight: Vec<f32>,
    },
    /// AutoAWQ, version gemm. `w[n][k] = (q - zero) * scale`, all three transposed in storage: rows are K.
    ///
    /// ```text
    /// word c of a row holds columns 8c .. 8c + 8; nibble i (bits 4i .. 4i + 4) is column 8c + [0 2 4 6 1 3 5 7][i]
    /// ```
    AutoAwq {
        /// i32 `[K, N / 8]`.
        qweight: Vec<i32>,
        /// i32 `[K / group_size, N / 8]`, nibbles in the same order.
        qzeros: Vec<i32>,
        /// f16 `[K / group_size, N]`.
        scales: Vec<f16>,
        /// Input features that share a scale; divides K.
        group_size: usize,
    },
    /// compressed-tensors pack-quantized. `w = (q - zero) * scale` with q and zero in -8..=7, stored as q + 8.
    ///
    /// ```text
    /// nibble i of word c of a row of `packed` is column 8c + i
    /// nibble i of word r of a column of `zero_points` is row 8r + i
    /// ```
    PackQuantized {
        /// i32 `[N, K / 8]`.
        packed: Vec<i32>,
        /// f32 (widened) `[N, K / group_size]`.
        scales: Vec<f32>,
        /// i32 `[ceil(N / 8), K / group_size]`; without them zero is 0.
        zero_points: Option<Vec<i32>>,
        /// Input features that share a scale; divides K. K itself where there is one scale to a row.
        group_size: usize,
    },
    /// ModelOpt W4A8_AWQ. `w = q * scale`: `weight_scale` is the whole scale of a weight.
    ///
    /// `weight_scale_2` is no factor of the weight: it only says at which scale the FP8 kernel holds the dequantized
    /// weight (`q * (scale / weight_scale_2)` is what fits e4m3).
    ///
    /// ```text
    /// byte [r][k]: low nibble row 2r, high nibble row 2r + 1, both two's complement (-8..=7)
    /// ```
    W4a8Awq {
        /// u8 `[N / 2, K]`.
        packed: Vec<u8>,
        /// f32 (widened) `[N, K / group_size]`.
        scales: Vec<f32>,
        /// The scale at which dequantized weights are held in FP8.
        weight_scale_2: f32,
        /// The static scale of the FP8 input: `x = code * input_scale`.
        input_scale: f32,
        /// f32 `[K]`: the input is multiplied by it before it is quantized.
        pre_quant_scale: Option<Vec<f32>>,
        /// Input features that share a scale; divides K.
        group_size: usize,
    },
    /// FP8 (compressed-tensors float-quantized, ModelOpt FP8). `w = code * scale`; no code is a NaN.
    Fp8 {
        /// e4m3 `[N, K]`.
        codes: Vec<E4m3>,
        /// One for all or one to a row.
        weight_scale: Fp8Scale,
        /// The static scale of the input (`x = code * input_scale`); without it the input is quantized per token.
        input_scale: Option<f32>,
    },
}

/// The scales of an FP8 weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Fp8Scale {
    /// One.
    Tensor(f32),
    /// f32 `[N]`.
    Rows(Vec<f32>),
}

impl LinearTensors {
    /// Reads the layer `prefix`, stored as `format`; the largest tensor only if `codes`.
    pub(crate) fn read(
        tensors: &Tensors,
        prefix: &str,
        format: LinearFormat,
        in_features: usize,
        out_features: usize,
        codes: bool,
    ) -> Result<Self> {
        let layer = Layer { tensors, prefix, in_features, out_features, codes };
        let weight = match format {
            LinearFormat::Plain => LinearWeight::Plain { weight: layer.plain()? },
            LinearFormat::AutoAwq { group } => layer.auto_awq(group)?,
            LinearFormat::PackQuantized { group, symmetric } => layer.pack_quantized(group, symmetric)?,
            LinearFormat::W4a8Awq { group_size } => layer.w4a8_awq(group_size)?,
            LinearFormat::Fp8 { per_row, static_input } => layer.fp8(per_row, static_input)?,
        };
        let bias = layer.name("bias");
        let bias = if tensors.contains(&bias) { Some(tensors.f32s(&bias, &[out_features])?) } else { None };
        Ok(Self { in_features, out_features, weight, bias })
    }
}

/// A layer to be read.
struct Layer<'a> {
    tensors: &'a Tensors,
    prefix: &'a str,
    in_features: usize,
    out_features: usize,
    /// Whether the largest tensor is read, or only checked.
    codes: bool,
}

impl Layer<'_> {
    fn name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.prefix)
    }

    /// A format needs `got` features to come in whole units.
    fn multiple(&self, format: &'static str, argument: &'static str, got: usize, unit: usize) -> Result<()> {
        if got == 0 || !got.is_multiple_of(unit) {
            let layer = self.prefix.to_owned();
            return Err(TensorError::Features { layer, format, argument, unit, got }.into());
        }
        Ok(())
    }

    /// The scales of groups `[rows, columns]`.
    fn scales(&self, suffix: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let name = self.name(suffix);
        let scales = self.tensors.f32s(&name, shape)?;
        check_scales(&name, scales.iter().copied())?;
        Ok(scales)
    }

    fn scalar_scale(&self, suffix: &str) -> Result<f32> {
        let name = self.name(suffix);
        let scale = self.tensors.scalar(&name)?;
        check_scales(&name, [scale])?;
        Ok(scale)
    }

    fn plain(&self) -> Result<Vec<f32>> {
        let (name, shape) = (self.name("weight"), [self.out_features, self.in_features]);
        if self.codes {
            return self.tensors.f32s(&name, &shape);
        }
        self.tensors.expect_floats(&name, &shape)?;
        Ok(Vec::new())
    }

    /// The words of codes of `shape`.
    fn words(&self, suffix: &str, shape: &[usize]) -> Result<Vec<i32>> {
        let name = self.name(suffix);
        if self.codes {
            return self.tensors.i32s(&name, shape);
        }
        self.tensors.expect(&name, shape, "I32", Dtype::I32)?;
        Ok(Vec::new())
    }

    fn auto_awq(&self, group: Group) -> Result<LinearWeight> {
        let (k, n, group_size) = (self.in_features, self.out_features, group.size(self.in_features));
        self.multiple("AutoAWQ", "out_features", n, PACK)?;
        self.multiple("AutoAWQ", "in_features", k, group_size)?;
        let scales_name = self.name("scales");
        let scales = self.tensors.f16s(&scales_name, &[k / group_size, n])?;
        check_scales(&scales_name, scales.iter().map(|scale| scale.to_f32()))?;
        Ok(LinearWeight::AutoAwq {
            qweight: self.words("qweight", &[k, n / PACK])?,
            qzeros: self.tensors.i32s(&self.name("qzeros"), &[k / group_size, n / PACK])?,
            scales,
            group_size,
        })
    }

    fn pack_quantized(&self, group: Group, symmetric: bool) -> Result<LinearWeight> {
        let (k, n, group_size) = (self.in_features, self.out_features, group.size(self.in_features));
        self.multiple("pack-quantized", "in_features", k, PACK)?;
        self.multiple("pack-quantized", "in_features", k, group_size)?;
        let order = self.name("weight_g_idx");
        if self.tensors.contains(&order) {
            let (what, supported) = ("a reordering of the input features", "actorder weight, or none");
            return Err(TensorError::Unsupported { tensor: order, what, supported }.into());
        }
        let shape_name = self.name("weight_shape");
        if self.tensors.contains(&shape_name) {
            let (expected, got) = ([n as u64, k as u64], self.tensors.i64s(&shape_name, &[2])?);
            if got.iter().zip(expected).any(|(&got, expected)| u64::try_from(got) != Ok(expected)) {
                let got = [got.first().copied().unwrap_or(0), got.last().copied().unwrap_or(0)];
                return Err(TensorError::WeightShape { tensor: shape_name, expected, got }.into());
            }
        }
        Ok(LinearWeight::PackQuantized {
            packed: self.words("weight_packed", &[n, k / PACK])?,
            scales: self.scales("weight_scale", &[n, k / group_size])?,
            zero_points: if symmetric { None } else { Some(self.zero_points(k / group_size)?) },
            group_size,
        })
    }

    /// Zero points as words. Files written before compressed-tensors 0.10 have them as signed bytes, one each.
    fn zero_points(&self, groups: usize) -> Result<Vec<i32>> {
        let name = self.name("weight_zero_point");
        if self.tensors.get(&name)?.dtype != Dtype::I8 {
            return self.tensors.i32s(&name, &[self.out_features.div_ceil(PACK), groups]);
        }
        let bytes = self.tensors.i8s(&name, &[self.out_features, groups])?;
        if let Some(index) = bytes.iter().position(|zero| !(-8..=7).contains(zero)) {
            let value = bytes.get(index).copied().unwrap_or(0);
            return Err(TensorError::ZeroPoint { tensor: name, index, value }.into());
        }
        let mut words = vec![0; self.out_features.div_ceil(PACK) * groups];
        for (row, zeros) in bytes.chunks_exact(groups).enumerate() {
            for (word, zero) in words.iter_mut().skip(row / PACK * groups).zip(zeros) {
                *word |= (i32::from(*zero) + 8) << (4 * (row % PACK));
            }
        }
        Ok(words)
    }

    fn w4a8_awq(&self, group_size: usize) -> Result<LinearWeight> {
        let (k, n) = (self.in_features, self.out_features);
        self.multiple("W4A8_AWQ", "out_features", n, 2)?;
        self.multiple("W4A8_AWQ", "in_features", k, group_size)?;
        let smoothing = self.name("pre_quant_scale");
        Ok(LinearWeight::W4a8Awq {
            packed: self.tensors.u8s(&self.name("weight"), &[n / 2, k])?,
            scales: self.scales("weight_scale", &[n, k / group_size])?,
            weight_scale_2: self.scalar_scale("weight_scale_2")?,
            input_scale: self.scalar_scale("input_scale")?,
            pre_quant_scale: match self.tensors.contains(&smoothing) {
                true => Some(self.scales("pre_quant_scale", &[k])?),
                false => None,
            },
            group_size,
        })
    }

    fn fp8(&self, per_row: bool, static_input: bool) -> Result<LinearWeight> {
        let name = self.name("weight");
        let shape = [self.out_features, self.in_features];
        let codes = match self.codes {
            true => self.tensors.e4m3s(&name, &shape)?,
            false => {
                self.tensors.expect(&name, &shape, "F8_E4M3", Dtype::F8E4m3)?;
                Vec::new()
            }
        };
        if let Some(index) = codes.iter().position(|code| code.is_nan()) {
            return Err(TensorError::Nan { tensor: name, index }.into());
        }
        let weight_scale = if per_row {
            // [N, 1] from compressed-tensors, [N] from ModelOpt.
            let flat = self.tensors.get(&self.name("weight_scale"))?.shape.len() == 1;
            let shape = [self.out_features, 1];
            Fp8Scale::Rows(self.scales("weight_scale", if flat { &shape[..1] } else { &shape })?)
        } else {
            Fp8Scale::Tensor(self.scalar_scale("weight_scale")?)
        };
        let input_scale = if static_input { Some(self.scalar_scale("input_scale")?) } else { None };
        Ok(LinearWeight::Fp8 { codes, weight_scale, input_scale })
    }
}

/// Every scale is finite and over zero.
pub(crate) fn check_scales(tensor: &str, scales: impl IntoIterator<Item = f32>) -> Result<()> {
    match scales.into_iter().enumerate().find(|(_, scale)| !(scale.is_finite() && *scale > 0.0)) {
        Some((index, value)) => Err(TensorError::Scale { tensor: tensor.to_owned(), index, value }.into()),
        None => Ok(()),
    }
}
