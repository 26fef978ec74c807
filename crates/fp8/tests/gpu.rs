//! The kernels against the reference, outputs poisoned and guarded.
#![cfg(feature = "cuda")]
// Helpers beside the tests.
#![allow(clippy::unwrap_used)]

#[path = "gpu/product.rs"]
mod product;

use cudarc::driver::{CudaSlice, CudaStream};
use device::gpu::{Event, Gpu, Graph, download, upload, zeros};
use device::{ActivationShape, E4m3, QuantizedActivation};
use fp8::{DenseProduct, Fp8Product, Quantize, ScaleChoice, SyntheticWeights};
use half::bf16;
use op_test::{DeviceGuarded, Rng};
use std::sync::Arc;

type Stream = Arc<CudaStream>;

struct Quantized {
    codes: Vec<E4m3>,
    scales: Vec<f32>,
    group_sums: Vec<f32>,
}

fn quantize_on_gpu(stream: &Stream, plan: &Quantize, x: &[bf16], shape: ActivationShape) -> Quantized {
    let x = upload(stream, x, "x").unwrap();
    let mut codes = DeviceGuarded::new(stream, shape.tokens * shape.features);
    let mut scales = DeviceGuarded::new(stream, shape.tokens);
    let mut group_sums = DeviceGuarded::new(stream, shape.tokens * shape.groups());
    let (c, s, g) = (codes.view(), scales.view(), group_sums.view());
    plan.launch(stream, &x, &mut QuantizedActivation { shape, codes: c, scales: s, group_sums: g }).unwrap();
    Quantized {
        codes: codes.contents(stream),
        scales: scales.checked(stream),
        group_sums: group_sums.contents(stream),
    }
}

/// Codes and scales bit for bit, group sums in value; NaN stands for any NaN.
#[track_caller]
fn check_quantize(stream: &Stream, plan: &Quantize, x: &[bf16], features: usize) {
    let shape = plan.shape(x.len() / features);
    let got = quantize_on_gpu(stream, plan, x, shape);
    let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let (mut codes, mut scales) = (vec![E4m3::default(); x.len()], vec![0.0; shape.tokens]);
    let mut group_sums = vec![0.0; shape.tokens * shape.groups()];
    let (c, s, g) = (&mut codes[..], &mut scales[..], &mut group_sums[..]);
    plan.reference(&wide, &mut QuantizedActivation { shape, codes: c, scales: s, group_sums: g }).unwrap();
    assert_eq!(got.scales, scales, "{plan:?}");
    let same = |got: &E4m3, want: &E4m3| got == want || got.is_nan() && want.is_nan();
    let wrong = (0..codes.len()).find(|&i| !same(&got.codes[i], &codes[i]));
    assert_eq!(wrong.map(|i| (i, x[i], got.codes[i], codes[i])), None, "{plan:?}");
    let same = |got: f32, want: f32| got == want || got.is_nan() && want.is_nan();
    let wrong = (0..group_sums.len()).find(|&i| !same(got.group_sums[i], group_sums[i]));
    assert_eq!(wrong.map(|i| (i, got.group_sums[i], group_sums[i])), None, "{plan:?}");
}

/// Rows at very different magnitudes; some are zero, one holds what is not finite.
fn activations(tokens: usize, features: usize, rng: &mut Rng) -> Vec<bf16> {
    let mut x = Vec::with_capacity(tokens * features);
    for token in 0..tokens {
        let deviation = 2f32.powi(rng.below(0..40) as i32 - 20);
        let mut row: Vec<bf16> = rng.tensor(features, deviation).into_iter().map(bf16::from_f32).collect();
        match token % 7 {
            1 => row.fill(bf16::ZERO),
            2 => row[rng.below(0..features)] *= bf16::from_f32(3000.0),
            3 => row.iter_mut().for_each(|x| *x = bf16::from_bits(x.to_bits() & 0x807f)),
            4 => row[rng.below(0..features)] = bf16::NAN,
            5 => row[rng.below(0..features)] = bf16::NEG_INFINITY,
            _ => {}
        }
        x.extend(row);
    }
    x
}

#[test]
#[ignore = "needs an H200"]
fn quantization_gives_the_bits_of_the_reference() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(1);
    // Around the ends of a vector, a warp, a block's pass; then real widths (Llama, Falcon).
    let widths = [
        8, 16, 248, 256, 264, 504, 512, 2040, 2048, 2056, 4104, 8192, 14848, 16384, 16392, 28672, 28680,
        59392,
    ];
    for features in widths {
        let group_sizes = [0, 8, 16, 32, 64, 128, 256].into_iter().filter(|&g| g == 0 || features % g == 0);
        for group_size in group_sizes {
            let tokens = [1, 7, 9][rng.below(0..3)];
            let x = activations(tokens, features, &mut rng);
            for scale in [ScaleChoice::PerToken, ScaleChoice::PerTensor, ScaleChoice::Given(0.0371)] {
                let plan = Quantize::new(features, scale).unwrap();
                let plan = if group_size == 0 { plan } else { plan.with_group_sums(group_size).unwrap() };
                check_quantize(gpu.stream(), &plan, &x, features);
            }
        }
    }
    // More tokens than one block of the tensor's maximum has threads.
    let x = activations(3000, 64, &mut rng);
    check_quantize(gpu.stream(), &Quantize::per_tensor(64).unwrap(), &x, 64);
    check_quantize(gpu.stream(), &Quantize::per_token(64).unwrap(), &[], 64);
}

#[test]
#[ignore = "needs an H200"]
fn every_bf16_is_quantized_as_by_the_reference() {
    let gpu = Gpu::open(0).unwrap();
    let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    // 1 shows the conversion alone, the others the division before it.
    for scale in [1.0, 3.0, 1e-3, 1e-22, 1e-30, f32::MIN_POSITIVE, 1e22, 1e30] {
        let plan = Quantize::with_scale(8192, scale).unwrap().with_group_sums(128).unwrap();
        check_quantize(gpu.stream(), &plan, &all, 8192);
    }
}

#[test]
#[ignore = "needs an H200"]
fn a_captured_layer_replays() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let (tokens, in_features, out_features) = (16, 1024, 2048);
    let mut rng = Rng::new(4);
    let plan = Quantize::per_token(in_features).unwrap().with_group_sums(128).unwrap();
    let product = Fp8Product::new(in_features, out_features).unwrap();
    let draw = |rng: &mut Rng| -> Vec<bf16> {
        rng.tensor(tokens * in_features, 1.0).into_iter().map(bf16::from_f32).collect()
    };
    let codes: Vec<E4m3> =
        (0..out_features * in_features).map(|_| E4m3::from_f32(rng.normal(60.0))).collect();
    let weights = upload(stream, &codes, "weights").unwrap();
    let weight_scales = upload(stream, &vec![0.01f32; out_features], "scales").unwrap();
    let mut x = upload(stream, &draw(&mut rng), "x").unwrap();
    let shape = plan.shape(tokens);
    let mut quantized = QuantizedActivation {
        shape,
        codes: zeros::<E4m3>(stream, tokens * in_features, "codes").unwrap(),
        scales: zeros::<f32>(stream, tokens, "scales").unwrap(),
        group_sums: zeros::<f32>(stream, tokens * shape.groups(), "group sums").unwrap(),
    };
    let mut y = zeros::<bf16>(stream, tokens * out_features, "y").unwrap();
    let no_bias = None::<&CudaSlice<bf16>>;
    let mut layer = |x: &CudaSlice<bf16>| {
        plan.launch(stream, x, &mut quantized)?;
        product.launch(stream, &quantized, &weights, &weight_scales, no_bias, &mut y)
    };
    // The first run loads and plans; captured before, it is a typed error.
    layer(&x).unwrap();
    // SAFETY: all buffers outlive the graph, and the stream orders every use of them.
    let graph = unsafe { Graph::capture(stream, || layer(&x)) }.unwrap();
    stream.memcpy_htod(&draw(&mut rng), &mut x).unwrap();
    graph.replay().unwrap();
    let replayed = download(stream, &y).unwrap();
    let mut again = zeros::<bf16>(stream, tokens * out_features, "y").unwrap();
    plan.launch(stream, &x, &mut quantized).unwrap();
    product.launch(stream, &quantized, &weights, &weight_scales, no_bias, &mut again).unwrap();
    assert_eq!(replayed, download(stream, &again).unwrap());

    let unplanned = Fp8Product::new(in_features, 16).unwrap();
    let (few, few_scales) = (weights.slice(..16 * in_features), weight_scales.slice(..16));
    let mut narrow = zeros::<bf16>(stream, tokens * 16, "y").unwrap();
    // SAFETY: as above.
    let captured = unsafe {
        Graph::capture(stream, || {
            unplanned.launch(stream, &quantized, &few, &few_scales, no_bias, &mut narrow)
        })
    };
    assert_eq!(
        captured.unwrap_err().to_string(),
        "cublasLtMatmul failed: the plan of a product is made at the first run, which cannot be captured: run it once \
         before"
    );
    // The stream is usable behind the refused capture.
    unplanned.launch(stream, &quantized, &few, &few_scales, no_bias, &mut narrow).unwrap();
    gpu.synchronize().unwrap();
}

#[test]
#[ignore = "needs an H200"]
fn device_arguments_are_checked() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let x = zeros::<bf16>(stream, 4096, "x").unwrap();
    let run = |features: usize, group_size: usize, offset: usize| {
        let plan = Quantize::per_token(features).unwrap();
        let plan = if group_size == 0 { plan } else { plan.with_group_sums(group_size).unwrap() };
        let shape = plan.shape(2);
        let codes = zeros::<E4m3>(stream, 2 * features, "codes").unwrap();
        let scales = zeros::<f32>(stream, 2, "scales").unwrap();
        let group_sums = zeros::<f32>(stream, 2 * shape.groups(), "sums").unwrap();
        let x = x.slice(offset..offset + 2 * features);
        plan.launch(stream, &x, &mut QuantizedActivation { shape, codes, scales, group_sums })
    };
    let message = |features, group_size, offset| run(features, group_size, offset).unwrap_err().to_string();
    assert_eq!(message(12, 0, 0), "fp8_quantize: features: expected a positive multiple of 8, got 12");
    assert_eq!(
        message(1536, 512, 0),
        "fp8_quantize: group_size: expected 0 or a power of two from 8 to 256, got 512"
    );
    let got = message(64, 0, 1);
    assert!(got.starts_with("fp8_quantize: x: expected an address aligned to 16 bytes, got 0x"), "{got}");

    let product = DenseProduct::new(64, 12).unwrap();
    let mut y = zeros::<bf16>(stream, 24, "y").unwrap();
    let (x, w) = (x.slice(..128), x.slice(..64 * 12));
    let got = product.launch(stream, &x, &w, None::<&CudaSlice<bf16>>, &mut y).unwrap_err().to_string();
    assert_eq!(got, "dense_product: out_features: expected a positive multiple of 8, got 12");
    gpu.synchronize().unwrap();
}

/// Not a benchmark: shows at a glance what a step's quantization costs.
#[test]
#[ignore = "needs an H200"]
fn a_graph_of_quantizations_gives_the_same_full_size() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut rng = Rng::new(5);
    let some: Vec<bf16> = rng.tensor(1 << 20, 1.0).into_iter().map(bf16::from_f32).collect();
    for (tokens, features) in [(1, 8192), (16, 14848), (256, 14848), (960, 28672), (8192, 8192)] {
        let plan = Quantize::per_token(features).unwrap().with_group_sums(128).unwrap();
        let shape = plan.shape(tokens);
        let x: Vec<bf16> = some.iter().cycle().copied().take(tokens * features).collect();
        let x = upload(stream, &x, "x").unwrap();
        let mut output = QuantizedActivation {
            shape,
            codes: zeros::<E4m3>(stream, tokens * features, "codes").unwrap(),
            scales: zeros::<f32>(stream, tokens, "scales").unwrap(),
            group_sums: zeros::<f32>(stream, tokens * shape.groups(), "sums").unwrap(),
        };
        let repeats = 20;
        plan.launch(stream, &x, &mut output).unwrap();
        let codes = download(stream, &output.codes).unwrap();
        let work = || (0..repeats).try_for_each(|_| plan.launch(stream, &x, &mut output));
        // SAFETY: the buffers outlive the graph, and only this stream uses them.
        let graph = unsafe { Graph::capture(stream, work) }.unwrap();
        let (start, end) = (Event::new(gpu.context()).unwrap(), Event::new(gpu.context()).unwrap());
        stream.memset_zeros(&mut output.codes).unwrap();
        graph.replay().unwrap();
        start.record(stream).unwrap();
        graph.replay().unwrap();
        end.record(stream).unwrap();
        let time = start.elapsed(&end).unwrap() / repeats;
        let bytes = (tokens * features * 3) as f64;
        println!("quantize {tokens} x {features}: {time:?}, {:.0} GB/s", bytes / time.as_secs_f64() / 1e9);
        assert_eq!(download(stream, &output.codes).unwrap(), codes);
    }
}

/// Bit for bit, whole vectors and a tail of any length.
#[test]
#[ignore = "needs an H200"]
fn random_weights_are_those_of_the_host() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    for (in_features, out_features) in
        [(1, 1), (1, 7), (8, 1), (9, 1), (63, 65), (64, 2048), (129, 1031), (8192, 300)]
    {
        let synthetic = SyntheticWeights::new(in_features, out_features, 0x0123_4567_89ab_cdef).unwrap();
        let len = in_features * out_features;
        let mut want = vec![bf16::ZERO; len];
        synthetic.reference_bf16(&mut want).unwrap();
        let mut got = DeviceGuarded::<bf16>::new(stream, len);
        synthetic.launch_bf16(stream, &mut got.view()).unwrap();
        assert_eq!(got.checked(stream), want, "{synthetic:?}");
        let mut want = vec![E4m3::default(); len];
        synthetic.reference_e4m3(&mut want).unwrap();
        let mut got = DeviceGuarded::<E4m3>::new(stream, len);
        synthetic.launch_e4m3(stream, &mut got.view()).unwrap();
        assert_eq!(got.checked(stream), want, "{synthetic:?}");
    }
    let synthetic = SyntheticWeights::new(4, 2, 1).unwrap();
    let mut short = zeros::<bf16>(stream, 7, "weights").unwrap();
    let error = synthetic.launch_bf16(stream, &mut short).unwrap_err();
    assert_eq!(error.to_string(), "synthetic_weights: weights: expected 8 elements, got 7");
}
