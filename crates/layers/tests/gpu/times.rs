//! Times of the steps of real models, beside the bytes they move. Prints; the asserted part is that all of them run.

use crate::support::{Stream, draw};
use cudarc::driver::CudaSlice;
use device::gpu::{Event, Gpu, Graph, upload, zeros};
use device::{ActivationShape, E4m3, QuantizedActivation, Result};
use half::bf16;
use layers::{Activate, Activation, Norm};
use op_test::Rng;

/// Buffers in rotation: together beyond four times the 60 MB of L2, so that each launch finds its input in memory.
fn rotation(bytes: usize) -> usize {
    (256_000_000 / bytes).clamp(2, 64)
}

/// Median time of one of `count` launches in microseconds, from replays of a graph.
fn time(gpu: &Gpu, count: usize, work: impl Fn(usize) -> Result<()>) -> f64 {
    let all = || (0..count).try_for_each(&work);
    all().unwrap();
    // SAFETY: the buffers of `work` outlive the graph, and the stream orders all uses of them.
    let graph = unsafe { Graph::capture(gpu.stream(), all) }.unwrap();
    let event = || Event::new(gpu.context()).unwrap();
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let (start, end) = (event(), event());
            start.record(gpu.stream()).unwrap();
            graph.replay().unwrap();
            end.record(gpu.stream()).unwrap();
            start.elapsed(&end).unwrap().as_secs_f64() * 1e6 / count as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[3]
}

fn report(name: &str, tokens: usize, features: usize, bytes: usize, microseconds: f64) {
    let rate = bytes as f64 / microseconds / 1e3;
    println!("{name:<32} {tokens:>5} x {features:<6} {microseconds:>8.2} us {rate:>6.0} GB/s");
    assert!(microseconds > 0.0);
}

type Output = QuantizedActivation<CudaSlice<E4m3>, CudaSlice<f32>>;

fn output(stream: &Stream, tokens: usize, features: usize) -> Output {
    let shape = ActivationShape { tokens, features, group_size: 128 };
    QuantizedActivation {
        shape,
        codes: zeros(stream, tokens * features, "codes").unwrap(),
        scales: zeros(stream, tokens, "scales").unwrap(),
        group_sums: zeros(stream, tokens * shape.groups(), "group sums").unwrap(),
    }
}

/// The same random numbers in every buffer, drawn once.
fn copies(stream: &Stream, count: usize, len: usize) -> Vec<CudaSlice<bf16>> {
    let numbers = draw(&mut Rng::new(1), len, 1.0);
    (0..count).map(|_| upload(stream, &numbers, "input").unwrap()).collect()
}

#[test]
#[ignore = "needs an H200"]
fn times() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    for tokens in [1, 16, 64, 256, 2048] {
        for (name, norm, features, deltas) in [
            ("layer_norm_quantize, no delta", Norm::layer(14848, 1e-5).unwrap(), 14848, 0),
            ("layer_norm_quantize, two deltas", Norm::layer(14848, 1e-5).unwrap(), 14848, 2),
            ("rms_norm_quantize, one delta", Norm::rms(8192, 1e-5).unwrap(), 8192, 1),
        ] {
            // Residual read and, with deltas, written; deltas read; codes written.
            let bytes = tokens * features * (2 + if deltas > 0 { 2 + 2 * deltas } else { 0 } + 1);
            let count = rotation(bytes);
            let weight = upload(stream, &vec![1.0f32; features], "weight").unwrap();
            let mut residuals = copies(stream, count, tokens * features);
            let delta = copies(stream, count, tokens * features);
            let mut outputs: Vec<Output> = (0..count).map(|_| output(stream, tokens, features)).collect();
            let sets = std::cell::RefCell::new((&mut residuals, &mut outputs));
            let microseconds = time(&gpu, count, |i| {
                let (residuals, outputs) = &mut *sets.borrow_mut();
                let bias = Some(&weight);
                let both = [&delta[i], &delta[(i + 1) % count]];
                norm.launch_quantized(
                    stream,
                    &weight,
                    bias,
                    &both[..deltas],
                    &mut residuals[i],
                    &mut outputs[i],
                )
            });
            report(name, tokens, features, bytes, microseconds);
        }
        for (name, activation, features) in
            [("gelu_quantize", Activation::Gelu, 59392), ("swiglu_quantize", Activation::Swiglu, 28672)]
        {
            let activate = Activate::new(activation, features).unwrap();
            let bytes = tokens * features * (2 * activation.fan_in() + 1);
            let count = rotation(bytes);
            let inputs = copies(stream, count, tokens * features * activation.fan_in());
            let mut outputs: Vec<Output> = (0..count).map(|_| output(stream, tokens, features)).collect();
            let outputs = std::cell::RefCell::new(&mut outputs);
            let microseconds = time(&gpu, count, |i| {
                let mut outputs = outputs.borrow_mut();
                activate.launch_quantized(stream, &inputs[i], None::<&CudaSlice<f32>>, &mut outputs[i])
            });
            report(name, tokens, features, bytes, microseconds);
        }
    }
}
