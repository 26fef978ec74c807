//! What the card does at best in this very run: a slow card shows.

use super::products::{Dense, Product, random_bytes};
use super::{Bench, LAYERS, Layer};
use device::gpu::{Args, Cubin, Kernel, Launch, multiprocessors, zeros};
use device::{Card, E4m3, Result};

static CUBIN: Cubin =
    Cubin::new("memory_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/memory_sm90.cubin")));
static READ_ALL: Kernel = Kernel::new(&CUBIN, "read_all");
static COPY_ALL: Kernel = Kernel::new(&CUBIN, "copy_all");

/// Far beyond the L2 cache.
const BYTES: usize = 2 << 30;
/// Threads of a copying block, and vectors of 16 bytes that each copies (`kCopies` of the kernel).
const COPY_THREADS: usize = 512;
const COPIES_OF_THREAD: usize = 4;
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

/// Bytes read and written a second, by the better of a kernel and the driver's own copy. The driver's is timed outside a graph,
/// in which it has been seen at 0.6 of its rate.
fn copy(bench: &Bench) -> Result<f64> {
    let stream = bench.gpu().stream().clone();
    let from = random_bytes(bench, BYTES / 2, 2)?;
    let mut to = zeros::<E4m3>(&stream, BYTES / 2, "a copy")?;
    let copies = 8;
    let driver = bench.elapsed(|| {
        (0..copies).try_for_each(|_| {
            let copied = stream.memcpy_dtod(&from, &mut to);
            copied.map_err(|error| device::gpu::driver_error("cuMemcpyDtoDAsync", error))
        })
    })?;
    let kernel = rate(bench, BYTES as f64, move |_| {
        let vectors = BYTES / 2 / 16;
        let launch = Launch::grid(vectors.div_ceil(COPY_THREADS * COPIES_OF_THREAD) as u32);
        let args = Args::new(&stream).input(&from).value(vectors as u64).output(&mut to);
        // SAFETY: the parameters are the kernel's, and it reads and writes `vectors` vectors of 16 bytes, as many as both have.
        unsafe { COPY_ALL.launch(&stream, launch.block(COPY_THREADS as u32), args) }
    })?;
    Ok(kernel.max((copies * BYTES) as f64 / driver.as_secs_f64()))
}
