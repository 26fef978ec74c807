//! What the card does at best in this very run: a slow card shows.

use super::products::{Dense, Product, random_bytes};
use super::{Bench, LAYERS, Layer};
use cudarc::driver::CudaSlice;
use device::gpu::{Args, Cubin, Kernel, Launch, multiprocessors, zeros};
use device::{Card, E4m3, Result};

static CUBIN: Cubin = Cubin::new("read_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/read_sm90.cubin")));
static READ_ALL: Kernel = Kernel::new(&CUBIN, "read_all");

/// Far beyond the L2 cache.
const BYTES: usize = 2 << 30;
/// Tokens of the products.
const TOKENS: usize = 8192;
/// The products' layer: Llama-70B's gate and up, large and in memory for both types.
const LAYER: &Layer = &LAYERS[6];

/// All ceilings, in bursts.
pub fn measure(bench: &Bench) -> Result<Card> {
    let operations = LAYER.operations(TOKENS);
    let fp8 = rate(bench, operations, Product::Fp8.prepare(bench, LAYER, TOKENS, 1)?)?;
    let mut dense = Dense::new(bench, LAYER, TOKENS)?;
    let bf16 = rate(bench, operations, move |_| dense.launch())?;
    Ok(Card { read: read(bench)?, copy: copy(bench)?, fp8, bf16, ..*bench.card() })
}

/// Of something done by each launch, so much a second.
fn rate(bench: &Bench, amount: f64, launch: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    Ok(amount / bench.median(&bench.capture(1, launch)?)?)
}

/// Bytes read a second.
fn read(bench: &Bench) -> Result<f64> {
    let stream = bench.gpu().stream().clone();
    let data = random_bytes(bench, BYTES, 1)?;
    let mut result = zeros::<u32>(&stream, 1, "a result")?;
    let blocks = 2 * multiprocessors(&stream)?;
    rate(bench, BYTES as f64, move |_| {
        let args = Args::new(&stream).input(&data).value((BYTES / 16) as u64).output(&mut result);
        let launch = Launch::grid(blocks).block(1024u32);
        // SAFETY: the parameters are the kernel's, and it reads `BYTES` bytes of `data`, which has as many.
        unsafe { READ_ALL.launch(&stream, launch, args) }
    })
}

/// Bytes read and written a second.
fn copy(bench: &Bench) -> Result<f64> {
    let stream = bench.gpu().stream().clone();
    let from: CudaSlice<E4m3> = random_bytes(bench, BYTES / 2, 2)?;
    let mut to = zeros::<E4m3>(&stream, BYTES / 2, "a copy")?;
    rate(bench, BYTES as f64, move |_| {
        stream
            .memcpy_dtod(&from, &mut to)
            .map_err(|error| device::gpu::driver_error("cuMemcpyDtoDAsync", error))
    })
}
