//! Quantization: which kernels run, and over what.

use super::ALIGNMENT;
use crate::{Quantize, ScaleChoice};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use device::gpu::{Args, Cubin, Kernel, Launch, check_aligned, check_aligned_mut};
use device::{Check, E4m3, QuantizedActivation, Result};
use half::bf16;
use std::sync::Arc;

static CUBIN: Cubin =
    Cubin::new("quantize_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/quantize_sm90.cubin")));
/// By how many vectors of a row a thread holds: 1, 4, 8, or none (rows are read twice).
static QUANTIZE_PER_TOKEN: [Kernel; 4] = [
    Kernel::new(&CUBIN, "quantize_per_token_1"),
    Kernel::new(&CUBIN, "quantize_per_token_4"),
    Kernel::new(&CUBIN, "quantize_per_token_8"),
    Kernel::new(&CUBIN, "quantize_per_token_long"),
];
static QUANTIZE_BY_SCALES: [Kernel; 4] = [
    Kernel::new(&CUBIN, "quantize_by_scales_1"),
    Kernel::new(&CUBIN, "quantize_by_scales_4"),
    // With the scale given, no row is read twice anyway.
    Kernel::new(&CUBIN, "quantize_by_scales_long"),
    Kernel::new(&CUBIN, "quantize_by_scales_long"),
];
static ABSMAX_PER_TOKEN: Kernel = Kernel::new(&CUBIN, "absmax_per_token");
static SCALE_OF_TENSOR: Kernel = Kernel::new(&CUBIN, "scale_of_tensor");
static FILL_SCALES: Kernel = Kernel::new(&CUBIN, "fill_scales");

/// Elements that a thread reads at once.
const VECTOR: usize = 8;
impl Quantize {
    /// Quantizes `x`, bf16 `[tokens, features]`, as [`Self::reference`] does.
    ///
    /// `features` is a multiple of 8, `group_size` 0 or a power of two from 8 to 256; `x` and the codes start at multiples
    /// of 16 bytes. One kernel runs, two with a given scale, three with [`ScaleChoice::PerTensor`].
    pub fn launch(
        &self,
        stream: &Arc<CudaStream>,
        x: &impl DevicePtr<bf16>,
        output: &mut QuantizedActivation<impl DevicePtrMut<E4m3>, impl DevicePtrMut<f32>>,
    ) -> Result<()> {
        let check = Self::CHECK;
        let lens = (output.codes.len(), output.scales.len(), output.group_sums.len());
        self.check(x.len(), output.shape, lens)?;
        check.multiple("features", self.features, VECTOR)?;
        let fits = self.group_size.is_power_of_two() && (VECTOR..=32 * VECTOR).contains(&self.group_size);
        let fits = fits || self.group_size == 0;
        check.that(fits, "group_size", "0 or a power of two from 8 to 256", self.group_size)?;
        check_aligned(check, "x", x, ALIGNMENT, stream)?;
        check_aligned_mut(check, "output.codes", &mut output.codes, ALIGNMENT, stream)?;
        let tokens = as_u32(check, "output.shape.tokens", output.shape.tokens)?;

        let row = Row::new(self, tokens)?;
        match self.scale {
            ScaleChoice::PerToken => row.quantize(&QUANTIZE_PER_TOKEN, stream, x, output),
            ScaleChoice::PerTensor => {
                let scales = &mut output.scales;
                let args = Args::new(stream).input(x).output(scales).value(row.features);
                // SAFETY: the kernel's parameters. Block t reads row t of x, in whole aligned vectors, and writes scale t.
                unsafe { ABSMAX_PER_TOKEN.launch(stream, row.launch, args)? };
                let one_block = Launch::grid(tokens.min(1)).block(1024).overlapping();
                let args = Args::new(stream).output(scales).value(tokens);
                // SAFETY: the kernel's parameters. It reads and writes `tokens` scales, which are there.
                unsafe { SCALE_OF_TENSOR.launch(stream, one_block, args)? };
                row.quantize(&QUANTIZE_BY_SCALES, stream, x, output)
            }
            ScaleChoice::Given(scale) => {
                let launch = Launch::grid(tokens.div_ceil(256)).block(256).overlapping();
                let args = Args::new(stream).output(&mut output.scales).value(tokens).value(scale);
                // SAFETY: the kernel's parameters. It writes `tokens` scales, which are there.
                unsafe { FILL_SCALES.launch(stream, launch, args)? };
                row.quantize(&QUANTIZE_BY_SCALES, stream, x, output)
            }
        }
    }
}

/// What the quantizing kernels are launched with, checked: one block a token.
struct Row {
    features: u32,
    group_size: u32,
    /// Which of the kernels.
    held: usize,
    launch: Launch,
}

impl Row {
    fn new(plan: &Quantize, tokens: u32) -> Result<Self> {
        let vectors = plan.features / VECTOR;
        let (held, threads) = match vectors {
            0..=256 => (0, vectors),
            257..=1024 => (1, vectors.div_ceil(4)),
            1025..=3584 => (2, vectors.div_ceil(8)),
            _ => (3, 1024),
        };
        let threads = threads.next_multiple_of(32) as u32;
        let features = as_u32(Quantize::CHECK, "features", plan.features)?;
        let launch = Launch::grid(tokens).block(threads).overlapping();
        Ok(Self { features, group_size: plan.group_size as u32, held, launch })
    }

    /// `kernels` are [`QUANTIZE_PER_TOKEN`] or [`QUANTIZE_BY_SCALES`], which differ in whether they write the scales.
    fn quantize(
        &self,
        kernels: &[Kernel; 4],
        stream: &CudaStream,
        x: &impl DevicePtr<bf16>,
        output: &mut QuantizedActivation<impl DevicePtrMut<E4m3>, impl DevicePtrMut<f32>>,
    ) -> Result<()> {
        let group_sums = (self.group_size > 0).then_some(&mut output.group_sums);
        // Without groups the kernels do not look at the size.
        let group_shift = self.group_size.max(VECTOR as u32).ilog2();
        let args = Args::new(stream).input(x).output(&mut output.codes).output(&mut output.scales);
        let args = args.optional_output(group_sums).value(self.features).value(group_shift);
        // SAFETY: the parameters of all these kernels. Block t reads row t of x and writes row t of the outputs, whose lengths
        // were checked; rows are whole vectors, start aligned, and are no longer than the kernel's threads hold.
        unsafe { kernels[self.held].launch(stream, self.launch, args) }
    }
}

fn as_u32(check: Check, argument: &'static str, size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| check.error(argument, "below 2^32", size))
}
