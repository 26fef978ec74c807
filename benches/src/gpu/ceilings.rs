//! What the card does at best in this very run: a slow card shows.

use super::{Bench, Fp8Layer, LAYERS, Layer};
use cudarc::driver::CudaSlice;
use device::Result;
use device::gpu::{Args, Cubin, Kernel, Launch, multiprocessors, zeros};
use fp8::SyntheticWeights;

static CUBIN: Cubin = Cubin::new("read_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/read_sm90.cubin")));
static READ_ALL: Kernel = Kernel::new(&CUBIN, "read_all");

/// Far beyond the L2 cache.
const BYTES: usize = 2 << 30;
/// Columns of the random bytes.
const ROW: usize = 1 << 14;
/// Launches that are timed.
const TIMED: u64 = 32;

fn random_bytes(bench: &Bench, bytes: usize, seed: u64) -> Result<CudaSlice<device::E4m3>> {
    let mut data = zeros(bench.gpu().stream(), bytes, "a buffer to read")?;
    SyntheticWeights::new(ROW, bytes / ROW, seed)?.launch_e4m3(bench.gpu().stream(), &mut data)?;
    Ok(data)
}

/// Bytes read a second.
pub fn read(bench: &Bench) -> Result<f64> {
    let stream = bench.gpu().stream();
    let data = random_bytes(bench, BYTES, 1)?;
    let mut result = zeros::<u32>(stream, 1, "a result")?;
    let blocks = 2 * multiprocessors(stream)?;
    let replay = bench.capture(1, |_| {
        let args = Args::new(stream).input(&data).value((BYTES / 16) as u64).output(&mut result);
        // SAFETY: the parameters are the kernel's, and it reads `BYTES` bytes of `data`, which has as many.
        unsafe { READ_ALL.launch(stream, Launch::grid(blocks).block(1024u32), args) }
    })?;
    Ok((BYTES as u64 * TIMED) as f64 / bench.time(&replay, TIMED)?.as_secs_f64())
}

/// Bytes read and written a second.
pub fn copy(bench: &Bench) -> Result<f64> {
    let stream = bench.gpu().stream();
    let from = random_bytes(bench, BYTES / 2, 2)?;
    let mut to = zeros::<device::E4m3>(stream, BYTES / 2, "a copy")?;
    let replay = bench.capture(1, |_| {
        stream
            .memcpy_dtod(&from, &mut to)
            .map_err(|error| device::gpu::driver_error("cuMemcpyDtoDAsync", error))
    })?;
    Ok((BYTES as u64 * TIMED) as f64 / bench.time(&replay, TIMED)?.as_secs_f64())
}

/// Operations a second of cuBLASLt's FP8 product of Falcon-180B's `up`, 8,192 tokens.
fn fp8_product(bench: &Bench) -> Result<f64> {
    let (layer, tokens): (&Layer, usize) = (&LAYERS[2], 8192);
    let mut product = Fp8Layer::new(bench, layer, tokens, 1)?;
    let replay = bench.capture(1, |copy| product.launch(copy))?;
    let launches = 16;
    Ok(layer.operations(tokens) * launches as f64 / bench.time(&replay, launches)?.as_secs_f64())
}

/// Measures and prints the three.
pub fn print_ceilings(bench: &Bench) -> Result<()> {
    println!(
        "{}: reads {:.0} GB/s, copies {:.0} GB/s, cuBLASLt FP8 {:.0} TFLOP/s (burst, M = 8192)",
        bench.gpu().info().name,
        read(bench)? * 1e-9,
        copy(bench)? * 1e-9,
        fp8_product(bench)? * 1e-12
    );
    Ok(())
}
