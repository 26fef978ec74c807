//! What the device side refuses beyond what the reference does.

use cudarc::driver::CudaSlice;
use device::gpu::{Gpu, zeros};
use device::{ActivationShape, E4m3, QuantizedActivation, Result};
use half::bf16;
use layers::{Activate, Activation, AddResidual, Embedding, Norm, Rotate};

/// The error, up to the address that an alignment error ends with.
#[track_caller]
fn rejects(result: Result<()>, message: &str) {
    let got = result.unwrap_err().to_string();
    assert_eq!(got.split(", got 0x").next().unwrap(), message);
}

const ALIGNED: &str = "expected an address aligned to 16 bytes";

#[test]
#[ignore = "needs an H200"]
fn device_arguments_are_checked() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let f = zeros::<f32>(stream, 131080, "f32").unwrap();
    let x = zeros::<bf16>(stream, 131080, "bf16").unwrap();
    let mut y = zeros::<bf16>(stream, 131080, "bf16").unwrap();
    let mut out = zeros::<bf16>(stream, 131080, "bf16").unwrap();
    let no_bias = None::<&CudaSlice<f32>>;
    let none: [&CudaSlice<bf16>; 0] = [];

    let mut norm = |features: usize, weight: usize, residual: usize, output: usize| {
        let weight = f.slice(weight..weight + features);
        let (mut residual, mut output) =
            (y.slice_mut(residual..residual + features), out.slice_mut(output..output + features));
        Norm::rms(features, 1e-5).unwrap().launch(stream, &weight, None, &none, &mut residual, &mut output)
    };
    assert_eq!(norm(32768, 4, 8, 8), Ok(()));
    rejects(norm(12, 0, 0, 0), "rms_norm: features: expected a positive multiple of 8, got 12");
    rejects(norm(32776, 0, 0, 0), "rms_norm: features: expected at most 32768, got 32776");
    rejects(norm(8, 1, 0, 0), &format!("rms_norm: weight: {ALIGNED}"));
    rejects(norm(8, 0, 1, 0), &format!("rms_norm: residual: {ALIGNED}"));
    rejects(norm(8, 0, 0, 4), &format!("rms_norm: output: {ALIGNED}"));

    let activate = |features: usize, group_size: usize, input: usize, codes_at: usize| {
        let shape = ActivationShape { tokens: 1, features, group_size };
        let mut codes = zeros::<E4m3>(stream, features + codes_at, "codes").unwrap();
        let mut output = QuantizedActivation {
            shape,
            codes: codes.slice_mut(codes_at..),
            scales: zeros::<f32>(stream, 1, "scales").unwrap(),
            group_sums: zeros::<f32>(stream, shape.groups(), "sums").unwrap(),
        };
        let input = x.slice(input..input + features);
        let silu = Activate::new(Activation::Silu, features).unwrap();
        silu.launch_quantized(stream, &input, no_bias, &mut output)
    };
    assert_eq!(activate(131072, 256, 8, 16), Ok(()));
    rejects(activate(20, 0, 0, 0), "silu: features: expected a positive multiple of 8, got 20");
    rejects(activate(131080, 0, 0, 0), "silu: features: expected at most 131072, got 131080");
    let groups = "silu: output.shape.group_size: expected 0 or a power of two from 8 to 256, got";
    rejects(activate(96, 48, 0, 0), &format!("{groups} 48"));
    rejects(activate(1024, 512, 0, 0), &format!("{groups} 512"));
    rejects(activate(1024, 4, 0, 0), &format!("{groups} 4"));
    rejects(activate(8, 0, 1, 0), &format!("silu: input: {ALIGNED}"));
    rejects(activate(8, 0, 0, 8), &format!("silu: output.codes: {ALIGNED}"));

    let tokens = zeros::<u32>(stream, 1, "tokens").unwrap();
    let embed = |features: usize, at: usize| {
        let table = x.slice(at..at + features);
        let mut output = zeros::<bf16>(stream, features, "output").unwrap();
        Embedding::new(1, features).unwrap().launch(stream, &table, &tokens, &mut output)
    };
    assert_eq!(embed(16, 8), Ok(()));
    rejects(embed(9, 0), "embedding: features: expected a positive multiple of 8, got 9");
    rejects(embed(8, 2), &format!("embedding: table: {ALIGNED}"));

    let mut add = |features: usize, at: usize| {
        let delta = x.slice(at..at + features);
        AddResidual::new(features).unwrap().launch(stream, &[&delta], &mut y.slice_mut(..features))
    };
    assert_eq!(add(16, 8), Ok(()));
    rejects(add(4, 0), "add_residual: features: expected a positive multiple of 8, got 4");
    rejects(add(8, 4), &format!("add_residual: deltas: {ALIGNED}"));

    let mut rotate = |head_dim: usize, half: usize, at: usize| {
        let rows = &mut out.slice_mut(at..at + head_dim);
        Rotate::new(1, 1, head_dim).unwrap().launch(stream, &tokens, &f.slice(..half), rows)
    };
    assert_eq!(rotate(64, 32, 8), Ok(()));
    assert_eq!(rotate(8192, 4096, 0), Ok(()));
    rejects(rotate(12, 4, 0), "rotate: head_dim: expected a positive multiple of 8, got 12");
    rejects(rotate(24, 12, 0), "rotate: inverse_frequencies: expected a positive multiple of 8, got 12");
    rejects(rotate(16384, 4104, 0), "rotate: inverse_frequencies: expected at most 4096 elements, got 4104");
    rejects(rotate(64, 32, 1), &format!("rotate: rows: {ALIGNED}"));
    gpu.synchronize().unwrap();
}
