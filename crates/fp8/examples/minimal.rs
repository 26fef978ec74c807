//! A linear layer in FP8: weights quantized per output feature, activations per token. On the GPU where there is one.

use device::{E4m3, QuantizedActivation, Result};
use fp8::{Fp8Product, Quantize};

const TOKENS: usize = 2;
const IN_FEATURES: usize = 256;
const OUT_FEATURES: usize = 16;

fn main() -> Result<()> {
    let x: Vec<f32> = (0..TOKENS * IN_FEATURES).map(|i| (i as f32 * 0.1).sin()).collect();
    let w: Vec<f32> = (0..OUT_FEATURES * IN_FEATURES).map(|i| (i as f32 * 0.1 + 0.5).sin()).collect();

    // A row of weights is quantized as a token is.
    let (weights, weight_scales) = quantize(&w)?;
    let (codes, scales) = quantize(&x)?;
    let shape = Quantize::per_token(IN_FEATURES)?.shape(TOKENS);
    let quantized =
        QuantizedActivation { shape, codes: &codes[..], scales: &scales[..], group_sums: &[][..] };
    let mut y = vec![0.0; TOKENS * OUT_FEATURES];
    let product = Fp8Product::new(IN_FEATURES, OUT_FEATURES)?;
    product.reference(&quantized, &weights, &weight_scales, None, &mut y)?;

    let dot = |t: usize, n: usize| -> f32 {
        let (x, w) = (&x[t * IN_FEATURES..][..IN_FEATURES], &w[n * IN_FEATURES..][..IN_FEATURES]);
        x.iter().zip(w).map(|(x, w)| x * w).sum()
    };
    println!("feature 0 of token 0: {:.3} in FP8, {:.3} in f32", y[0], dot(0, 0));
    println!("feature 3 of token 1: {:.3} in FP8, {:.3} in f32", y[OUT_FEATURES + 3], dot(1, 3));
    #[cfg(feature = "cuda")]
    match device::gpu::Gpu::open(0) {
        Ok(gpu) => {
            println!("the same two on {}: {:?}", gpu.info().name, on_gpu(&gpu, &x, &weights, &weight_scales)?)
        }
        Err(error) => println!("not run on a GPU: {error}"),
    }
    Ok(())
}

fn quantize(rows: &[f32]) -> Result<(Vec<E4m3>, Vec<f32>)> {
    let plan = Quantize::per_token(IN_FEATURES)?;
    let shape = plan.shape(rows.len() / IN_FEATURES);
    let (mut codes, mut scales) = (vec![E4m3::default(); rows.len()], vec![0.0; shape.tokens]);
    let (c, s) = (&mut codes[..], &mut scales[..]);
    plan.reference(rows, &mut QuantizedActivation { shape, codes: c, scales: s, group_sums: &mut [] })?;
    Ok((codes, scales))
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &device::gpu::Gpu, x: &[f32], weights: &[E4m3], weight_scales: &[f32]) -> Result<[f32; 2]> {
    use device::gpu::{download, upload, zeros};
    use half::bf16;
    let stream = gpu.stream();
    let x: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
    let x = upload(stream, &x, "x")?;
    let weights = upload(stream, weights, "weights")?;
    let weight_scales = upload(stream, weight_scales, "weight scales")?;
    let plan = Quantize::per_token(IN_FEATURES)?;
    let mut quantized = QuantizedActivation {
        shape: plan.shape(TOKENS),
        codes: zeros::<E4m3>(stream, TOKENS * IN_FEATURES, "codes")?,
        scales: zeros::<f32>(stream, TOKENS, "scales")?,
        group_sums: zeros::<f32>(stream, 0, "group sums")?,
    };
    plan.launch(stream, &x, &mut quantized)?;
    let mut y = zeros::<bf16>(stream, TOKENS * OUT_FEATURES, "y")?;
    let no_bias = None::<&cudarc::driver::CudaSlice<bf16>>;
    let product = Fp8Product::new(IN_FEATURES, OUT_FEATURES)?;
    product.launch(stream, &quantized, &weights, &weight_scales, no_bias, &mut y)?;
    let y = download(stream, &y)?;
    Ok([y[0].to_f32(), y[OUT_FEATURES + 3].to_f32()])
}
