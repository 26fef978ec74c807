//! Weights from checkpoints and random ones, without a detour over the host: tensors are streamed as they lie in the file,
//! INT4 is packed and random weights are made where they stay.

use super::linear::DeviceMatrix;
use super::rows::{Element, Rows};
use super::stage::Stage;
use super::{Cuda, Embedding, Linear, lock};
use crate::error::{Error, Result};
use crate::load::{EmbeddingSource, LinearSource, check_bias};
use crate::synthetic::{SyntheticFormat, SyntheticLinear};
use crate::weights::{divided, static_scale};
use awq_gemm::{DeviceInt4Weights, DeviceTensors, Int4Shape, f16_scales};
use checkpoint::{Fp8Scale, LinearTensors, LinearWeight};
use device::gpu::zeros;
use fp8::SyntheticWeights;
use std::sync::Arc;

impl Linear {
    /// A layer of a checkpoint. Formats that have no way of their own go by the host.
    pub(super) fn read(cuda: &Cuda, source: &LinearSource<'_>) -> Result<Self> {
        let layer = source.layer;
        let part = |&(name, out_features): &(&str, usize)| {
            let tensors = source.checkpoint.linear_to_stream(name, layer.in_features, out_features)?;
            check_bias(name, tensors.bias.is_some(), layer.bias)?;
            match tensors.bias.iter().flatten().all(|x| x.is_finite()) {
                true => Ok(tensors),
                false => Err(Error::NotFinite { name: name.to_owned() }),
            }
        };
        let parts = layer.parts.iter().map(part).collect::<Result<Vec<_>>>()?;
        let Some(matrix) = stream_matrix(cuda, source, &parts)? else {
            return Ok(Self::new(cuda, source.weights()?)?);
        };
        let rows = Order::of(source).rows;
        let bias: Vec<f32> =
            parts.iter().filter_map(|part| part.bias.as_deref()).flatten().copied().collect();
        let bias = layer.bias.then(|| rows.iter().filter_map(|&row| bias.get(row).copied()).collect());
        let multiplier = match (layer.divisors, source.divisors()?) {
            (Some(name), Some(divisors)) => Some(divided(None, name, &divisors)?),
            _ => None,
        };
        Ok(Self::on_device(cuda, layer.in_features, rows.len(), matrix, bias, multiplier)?)
    }

    /// A layer of random weights.
    pub(super) fn synthetic(cuda: &Cuda, synthetic: &SyntheticLinear) -> device::Result<Self> {
        let SyntheticLinear { in_features, out_features, format, seed, .. } = *synthetic;
        let stream = cuda.stream();
        let plan = SyntheticWeights::new(in_features, out_features, seed)?;
        let matrix = match format {
            SyntheticFormat::Dense => {
                let mut weights = zeros(stream, in_features * out_features, "bf16 weights")?;
                plan.launch_bf16(stream, &mut weights)?;
                DeviceMatrix::Dense(Arc::new(weights))
            }
            SyntheticFormat::Int4 { group_size, input_scale, .. } if fits(out_features, group_size) => {
                let weights = DeviceInt4Weights::synthetic(stream, &synthetic.int4()?)?;
                DeviceMatrix::Int4 { weights, input_scale }
            }
            SyntheticFormat::Int4 { .. } => return Self::new(cuda, synthetic.weights()?),
            SyntheticFormat::Fp8 { input_scale } => {
                let mut codes = zeros(stream, in_features * out_features, "FP8 weights")?;
                plan.launch_e4m3(stream, &mut codes)?;
                DeviceMatrix::Fp8 { codes, row_scales: plan.row_scales(), input_scale }
            }
        };
        Self::on_device(cuda, in_features, out_features, matrix, synthetic.bias_values(), None)
    }
}

impl Embedding {
    /// A table of a checkpoint.
    pub(super) fn read(cuda: &Cuda, source: &EmbeddingSource<'_>) -> Result<Self> {
        let EmbeddingSource { checkpoint, rows, features, .. } = *source;
        let name = format!("{}.weight", source.name);
        let dtype = checkpoint.tensors.expect_floats(&name, &[rows, features])?;
        let tensor = Rows::whole(&checkpoint.tensors, &name, [rows, features], Element::of(dtype));
        let table = cuda.staged(|stage| {
            stage.read(tensor.elements(), "the embedding", &|offset, buffer| tensor.read(offset, buffer))
        })?;
        Ok(Self::on_device(table, rows, features)?)
    }

    /// A random table.
    pub(super) fn synthetic(cuda: &Cuda, rows: usize, features: usize, seed: u64) -> device::Result<Self> {
        let plan = SyntheticWeights::new(features, rows, seed)?;
        let mut table = zeros(cuda.stream(), rows * features, "the embedding")?;
        plan.launch_bf16(cuda.stream(), &mut table)?;
        Self::on_device(table, rows, features)
    }
}

impl Cuda {
    /// Runs `read` with the page-locked buffers. They stay until the cache is made, behind the last weights.
    fn staged<T>(&self, read: impl FnOnce(&mut Stage) -> Result<T>) -> Result<T> {
        let mut stage = lock(&self.stage);
        match &mut *stage {
            Some(stage) => read(stage),
            empty => read(empty.insert(Stage::new(self.gpu.context(), self.stream())?)),
        }
    }
}

/// Where the rows of a layer come from.
struct Order {
    /// Row i of the layer is row `rows[i]` of all parts, one below the other.
    rows: Vec<usize>,
    /// The first row of each part.
    firsts: Vec<usize>,
}

impl Order {
    fn of(source: &LinearSource<'_>) -> Self {
        let mut firsts = Vec::new();
        let mut total = 0;
        for &(_, out_features) in &source.layer.parts {
            firsts.push(total);
            total += out_features;
        }
        let rows = source.layer.rows.map_or_else(|| (0..total).collect(), <[usize]>::to_vec);
        Self { rows, firsts }
    }
}

/// Whether INT4 weights can be packed as they are; whatever else is wrong with them, the host's way says so.
fn fits(out_features: usize, group_size: usize) -> bool {
    out_features.is_multiple_of(64) && group_size.is_multiple_of(64)
}

/// The weights of all parts; `None` where they have no way of their own.
fn stream_matrix(
    cuda: &Cuda,
    source: &LinearSource<'_>,
    parts: &[LinearTensors],
) -> Result<Option<DeviceMatrix>> {
    if parts.iter().all(|part| matches!(part.weight, LinearWeight::Plain { .. })) {
        return stream_plain(cuda, source).map(Some);
    }
    let fp8 = |part: &LinearTensors| match &part.weight {
        LinearWeight::Fp8 { weight_scale, input_scale, .. } => {
            let scales = match weight_scale {
                Fp8Scale::Tensor(scale) => vec![*scale; part.out_features],
                Fp8Scale::Rows(scales) => scales.clone(),
            };
            Some((scales, *input_scale))
        }
        _ => None,
    };
    if let Some(scales) = parts.iter().map(fp8).collect::<Option<Vec<_>>>() {
        let (row_scales, input_scales): (Vec<_>, Vec<_>) = scales.into_iter().unzip();
        return stream_fp8(cuda, source, &row_scales.concat(), static_scale(input_scales)).map(Some);
    }
    let awq = parts.iter().all(|part| matches!(part.weight, LinearWeight::AutoAwq { .. }));
    let packed = parts.iter().all(|part| matches!(part.weight, LinearWeight::PackQuantized { .. }));
    let group_sizes: Vec<usize> = parts
        .iter()
        .filter_map(|part| match part.weight {
            LinearWeight::AutoAwq { group_size, .. } | LinearWeight::PackQuantized { group_size, .. } => {
                Some(group_size)
            }
            _ => None,
        })
        .collect();
    match group_sizes.first() {
        Some(&group_size)
            if (awq || packed)
                && group_sizes.iter().all(|&size| size == group_size)
                && fits(Order::of(source).rows.len(), group_size) =>
        {
            stream_int4(cuda, source, parts, group_size).map(Some)
        }
        _ => Ok(None),
    }
}

/// The rows of `weight` of all parts, in the layer's order.
fn weight_rows<'a>(source: &LinearSource<'a>, element: impl Fn(&str) -> Result<Element>) -> Result<Rows<'a>> {
    let Order { rows, firsts } = Order::of(source);
    let parts = source
        .layer
        .parts
        .iter()
        .map(|&(name, _)| Ok((name.to_owned(), format!("{name}.weight"), element(name)?)))
        .collect::<Result<Vec<_>>>()?;
    Ok(Rows::ordered(&source.checkpoint.tensors, source.layer.in_features, parts, &firsts, &rows))
}

fn stream_plain(cuda: &Cuda, source: &LinearSource<'_>) -> Result<DeviceMatrix> {
    let element =
        |name: &str| Ok(Element::of(source.checkpoint.tensors.get(&format!("{name}.weight"))?.dtype));
    let rows = weight_rows(source, element)?;
    let read = |offset: u64, buffer: &mut [u8]| rows.read(offset, buffer);
    let weights = cuda.staged(|stage| stage.read(rows.elements(), "bf16 weights", &read))?;
    Ok(DeviceMatrix::Dense(Arc::new(weights)))
}

fn stream_fp8(
    cuda: &Cuda,
    source: &LinearSource<'_>,
    row_scales: &[f32],
    input_scale: Option<f32>,
) -> Result<DeviceMatrix> {
    let rows = weight_rows(source, |_| Ok(Element::E4m3))?;
    let read = |offset: u64, buffer: &mut [u8]| rows.read(offset, buffer);
    let codes = cuda.staged(|stage| stage.read(rows.elements(), "FP8 weights", &read))?;
    let order = Order::of(source).rows;
    let row_scales = order.iter().filter_map(|&row| row_scales.get(row).copied()).collect();
    Ok(DeviceMatrix::Fp8 { codes, row_scales, input_scale })
}

/// Each part's tensors are staged on the device as they are and packed there.
fn stream_int4(
    cuda: &Cuda,
    source: &LinearSource<'_>,
    parts: &[LinearTensors],
    group_size: usize,
) -> Result<DeviceMatrix> {
    let (stream, in_features) = (cuda.stream(), source.layer.in_features);
    let Order { rows, firsts } = Order::of(source);
    let shape = Int4Shape::new(in_features, rows.len(), group_size)?.for_kernels()?;
    let mut weights = DeviceInt4Weights::zeros(stream, shape)?;
    let in_order = source.layer.rows.is_none() && parts.len() == 1;
    for ((part, &(name, out_features)), first) in parts.iter().zip(&source.layer.parts).zip(firsts) {
        let of_part = |&row: &usize| match row.checked_sub(first) {
            Some(row) if row < out_features => i32::try_from(row).unwrap_or(-1),
            _ => -1,
        };
        let map: Option<Vec<i32>> = (!in_order).then(|| rows.iter().map(of_part).collect());
        let shape = Int4Shape::new(in_features, out_features, group_size)?;
        cuda.staged(|stage| {
            let map = map.map(|map| stage.copy(&map, "rows of a layer")).transpose()?;
            let mut words = |suffix: &str, len: usize| {
                let tensor = format!("{name}.{suffix}");
                let read = |offset: u64, buffer: &mut [u8]| {
                    Ok(source.checkpoint.tensors.read_into(&tensor, offset, buffer)?)
                };
                stage.read(len, "INT4 weights as stored", &read)
            };
            match &part.weight {
                LinearWeight::AutoAwq { qzeros, scales, .. } => {
                    let qweight = words("qweight", in_features * (out_features / 8))?;
                    let qzeros = stage.copy(qzeros, "zero points as stored")?;
                    let scales = stage.copy(scales, "scales as stored")?;
                    let (qweight, qzeros, scales) = (&qweight, &qzeros, &scales);
                    let tensors = DeviceTensors::AutoAwq { qweight, qzeros, scales };
                    weights.add(stream, shape, tensors, map.as_ref())?;
                }
                LinearWeight::PackQuantized { scales, zero_points, .. } => {
                    let packed = words("weight_packed", out_features * (in_features / 8))?;
                    let scales = stage.copy(&f16_scales(scales)?, "scales as stored")?;
                    let zeros = zero_points.as_ref();
                    let zeros = zeros.map(|zeros| stage.copy(zeros, "zero points as stored")).transpose()?;
                    let (packed, scales, zero_points) = (&packed, &scales, zeros.as_ref());
                    let tensors = DeviceTensors::PackQuantized { packed, scales, zero_points };
                    weights.add(stream, shape, tensors, map.as_ref())?;
                }
                _ => {}
            }
            Ok(())
        })?;
    }
    Ok(DeviceMatrix::Int4 { weights, input_scale: None })
}
