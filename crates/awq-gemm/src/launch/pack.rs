//! Packing on the device: from a checkpoint's tensors as they lie in the file, or random weights.

use super::DeviceInt4Weights;
use crate::pack::Layout;
use crate::{Int4Shape, SyntheticInt4};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use device::gpu::{Args, Cubin, Kernel, Launch, check_len};
use device::{Check, Result};
use half::f16;
use std::sync::Arc;

const CHECK: Check = Check("pack");

static CUBIN: Cubin = Cubin::new("pack_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/pack_sm90.cubin")));
static AUTO_AWQ: [Kernel; 2] =
    [Kernel::new(&CUBIN, "pack_auto_awq_codes"), Kernel::new(&CUBIN, "pack_auto_awq_parameters")];
static PACK_QUANTIZED: [Kernel; 2] =
    [Kernel::new(&CUBIN, "pack_pack_quantized_codes"), Kernel::new(&CUBIN, "pack_pack_quantized_parameters")];
static SYNTHETIC: [Kernel; 2] =
    [Kernel::new(&CUBIN, "pack_synthetic_codes"), Kernel::new(&CUBIN, "pack_synthetic_parameters")];

const THREADS: u32 = 256;
/// Codes to a word of a checkpoint.
const CODES: usize = 8;

/// The tensors of one layer of a checkpoint, in device memory as they lie in the file.
#[derive(Debug, Clone, Copy)]
pub enum DeviceTensors<'a> {
    /// As in [`formats::auto_awq`](crate::formats::auto_awq).
    AutoAwq {
        /// i32 `[in_features, out_features / 8]`.
        qweight: &'a CudaSlice<i32>,
        /// i32 `[groups, out_features / 8]`.
        qzeros: &'a CudaSlice<i32>,
        /// f16 `[groups, out_features]`.
        scales: &'a CudaSlice<f16>,
    },
    /// As in [`formats::compressed_tensors`](crate::formats::compressed_tensors).
    PackQuantized {
        /// i32 `[out_features, ceil(in_features / 8)]`.
        packed: &'a CudaSlice<i32>,
        /// f16 `[out_features, groups]`.
        scales: &'a CudaSlice<f16>,
        /// i32 `[ceil(out_features / 8), groups]`; without them all are 8.
        zero_points: Option<&'a CudaSlice<i32>>,
    },
}

/// `Problem` of pack.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Problem {
    codes: u64,
    parameters: u64,
    words: u64,
    scales: u64,
    zeros: u64,
    rows: u64,
    seed: u64,
    blocks: i32,
    in_features: i32,
    groups: i32,
    source_rows: i32,
    source_groups: i32,
    repeat: i32,
    least_scale: i32,
    symmetric: i32,
}

impl DeviceInt4Weights {
    /// Packs the rows of one layer of a checkpoint: after all parts of a fused layer have been added to
    /// [`Self::zeros`], the bytes are those of [`PackedWeights::pack`](crate::PackedWeights::pack).
    ///
    /// - `part` is the layer's shape: `in_features` of these weights, groups that are a multiple of theirs
    /// - `rows` i32 `[out_features]`, which row of the layer each row of these weights is, or -1 where it is none of them;
    ///   without it row n is row n. A row is added once.
    pub fn add(
        &mut self,
        stream: &Arc<CudaStream>,
        part: Int4Shape,
        tensors: DeviceTensors<'_>,
        rows: Option<&CudaSlice<i32>>,
    ) -> Result<()> {
        let (inputs, outputs, groups) = (part.in_features(), part.out_features(), part.groups());
        if let Some(rows) = rows {
            check_len(CHECK, "rows", rows, self.shape().out_features())?;
        }
        let rows = rows.map(|rows| rows.device_ptr(stream));
        let problem = Problem { rows: rows.as_ref().map_or(0, |rows| rows.0), ..Problem::zeroed() };
        match tensors {
            DeviceTensors::AutoAwq { qweight, qzeros, scales } => {
                CHECK.multiple("out_features", outputs, CODES)?;
                check_len(CHECK, "qweight", qweight, inputs * (outputs / CODES))?;
                check_len(CHECK, "qzeros", qzeros, groups * (outputs / CODES))?;
                check_len(CHECK, "scales", scales, groups * outputs)?;
                let (words, _words) = qweight.device_ptr(stream);
                let (zeros, _zeros) = qzeros.device_ptr(stream);
                let (scales, _scales) = scales.device_ptr(stream);
                let problem = Problem { words, zeros, scales, ..problem };
                // SAFETY: the tensors are there for the call and have the lengths of `part`, checked above; `rows` has an
                // element for each row.
                unsafe { self.launch(stream, &AUTO_AWQ, part, problem) }
            }
            DeviceTensors::PackQuantized { packed, scales, zero_points } => {
                check_len(CHECK, "packed", packed, outputs * inputs.div_ceil(CODES))?;
                check_len(CHECK, "scales", scales, outputs * groups)?;
                if let Some(zeros) = zero_points {
                    check_len(CHECK, "zero_points", zeros, outputs.div_ceil(CODES) * groups)?;
                }
                let (words, _words) = packed.device_ptr(stream);
                let (scales, _scales) = scales.device_ptr(stream);
                let zeros = zero_points.map(|zeros| zeros.device_ptr(stream));
                let problem =
                    Problem { words, zeros: zeros.as_ref().map_or(0, |zeros| zeros.0), scales, ..problem };
                // SAFETY: as above; zero points may be absent.
                unsafe { self.launch(stream, &PACK_QUANTIZED, part, problem) }
            }
        }
    }

    /// Random weights, made where they stay: those of `synthetic`, whose groups are 64 or a multiple of 128 wide and become
    /// groups of 64 or 128. `out_features` is a multiple of 64.
    pub fn synthetic(stream: &Arc<CudaStream>, synthetic: &SyntheticInt4) -> Result<Self> {
        let shape = synthetic.shape();
        let mut weights = Self::zeros(stream, shape.for_kernels()?)?;
        let problem = Problem {
            seed: synthetic.seed(),
            least_scale: i32::from(synthetic.least_scale()),
            symmetric: i32::from(synthetic.is_symmetric()),
            ..Problem::zeroed()
        };
        // SAFETY: these kernels read no memory but their own output.
        unsafe { weights.launch(stream, &SYNTHETIC, shape, problem)? };
        Ok(weights)
    }

    /// Packs codes and parameters of a source of shape `part`.
    ///
    /// # Safety
    /// What the kernels read through `problem` (`words`, `scales`, `zeros` but for null, `rows` but for null) is there until
    /// they are done, with the lengths that `part` and this shape give it.
    unsafe fn launch(
        &mut self,
        stream: &Arc<CudaStream>,
        kernels: &'static [Kernel; 2],
        part: Int4Shape,
        problem: Problem,
    ) -> Result<()> {
        let shape = self.shape();
        let Layout { blocks, units, windows } = Layout::new(shape)?;
        let code_bytes = Layout::new(shape)?.code_bytes();
        CHECK.that(
            part.in_features() == shape.in_features(),
            "part.in_features",
            shape.in_features(),
            part.in_features(),
        )?;
        let whole = part.group_size().is_multiple_of(shape.group_size());
        let expected = format_args!("a multiple of {}", shape.group_size());
        CHECK.that(whole, "part.group_size", expected, part.group_size())?;
        let number = |argument, value: usize| {
            i32::try_from(value)
                .map_err(|_| CHECK.error(argument, format_args!("at most {}", i32::MAX), value))
        };
        // Chunks are counted in 32 bits.
        let code_chunks = number("out_features", blocks * units)?;
        let parameter_chunks = number("out_features", blocks * windows)?;
        let (address, _guard) = self.bytes_mut().device_ptr_mut(stream);
        let problem = Problem {
            codes: address,
            parameters: address + code_bytes as u64,
            blocks: number("out_features", blocks)?,
            in_features: number("in_features", shape.in_features())?,
            groups: number("in_features", shape.groups())?,
            source_rows: number("part.out_features", part.out_features())?,
            source_groups: number("part.in_features", part.groups())?,
            repeat: number("part.group_size", part.group_size() / shape.group_size())?,
            ..problem
        };
        for (kernel, chunks) in kernels.iter().zip([code_chunks, parameter_chunks]) {
            let launch = Launch::grid(chunks.unsigned_abs()).block(THREADS);
            let args = Args::new(stream).structure(&problem);
            // SAFETY: the kernel's one parameter. A block writes its own chunk of codes or of parameters, and there are as
            // many of either as the layout of this shape has; rows outside the source are skipped. Reading: the caller's
            // contract.
            unsafe { kernel.launch(stream, launch, args)? };
        }
        Ok(())
    }
}
