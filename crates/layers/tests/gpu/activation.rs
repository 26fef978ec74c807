//! Activations, plain and quantized, at row widths that take one block and that take a cluster of eight.

use crate::support::{BF16, F32, Quantized, Stream, WIDTHS, draw, widen};
use cudarc::driver::CudaSlice;
use device::gpu::{Gpu, upload};
use half::bf16;
use layers::{Activate, Activation};
use op_test::{DeviceGuarded, Rng, assert_close_f64};

const ALL: [Activation; 4] = [Activation::Swiglu, Activation::Gelu, Activation::Silu, Activation::Identity];

/// The activation in f64, and how far one in f32 may lie from it.
fn want(
    activation: Activation,
    features: usize,
    input: &[bf16],
    multiplier: Option<&[f32]>,
) -> (Vec<f64>, Vec<f64>) {
    let (mut want, mut bounds) = (Vec::new(), Vec::new());
    for row in input.chunks_exact(features * activation.fan_in()) {
        for feature in 0..features {
            let x = f64::from(row[feature].to_f32());
            let up = match activation {
                Activation::Swiglu => f64::from(row[features + feature].to_f32()),
                _ => 1.0,
            };
            let factor = up * multiplier.map_or(1.0, |multiplier| f64::from(multiplier[feature]));
            let (y, bound) = match activation {
                Activation::Gelu => {
                    let tail = 0.5 * libm::erfc(x.abs() / std::f64::consts::SQRT_2);
                    // The polynomial's fit is 2^-20.3, its arithmetic and the two approximate functions add 2^-21; three
                    // roundings of x^2 / 2 enter the exponential.
                    let relative = 2f64.powi(-19) + 1.5 * x * x * F32;
                    let y = x.max(0.0) - x.abs() * tail;
                    (y, x.abs() * tail * relative + y.abs() * F32)
                }
                Activation::Identity => (x, 0.0),
                Activation::Swiglu | Activation::Silu => {
                    let y = x / (1.0 + (-x).exp());
                    // The exponential's argument is rounded twice, itself to two places, sum and reciprocal to two more.
                    (y, y.abs() * (5.0 + 1.2 * x.abs()) * 2.0 * F32)
                }
            };
            want.push(y * factor);
            // Two products more; and the approximate functions give 0 for subnormal results, at x of -87 and -13.
            let vanished = 88.0 * 2f64.powi(-126);
            bounds.push((bound + y.abs() * 2.0 * F32 + vanished) * factor.abs() + vanished);
        }
    }
    (want, bounds)
}

fn check(stream: &Stream, activate: &Activate, input: &[bf16], multiplier: Option<&[f32]>, shape: Shape) {
    let Shape { activation, features, group_sizes } = shape;
    let (want, bounds) = want(activation, features, input, multiplier);
    let tokens = want.len() / features;
    let input = upload(stream, input, "input").unwrap();
    let multiplier: Option<CudaSlice<f32>> = multiplier.map(|x| upload(stream, x, "multiplier").unwrap());

    let mut output = DeviceGuarded::<bf16>::new(stream, want.len());
    activate.launch(stream, &input, multiplier.as_ref(), &mut output.view()).unwrap();
    let rounded = |i: usize| bounds[i] * (1.0 + BF16) + BF16 * want[i].abs();
    let loose: Vec<f64> = (0..want.len()).map(rounded).collect();
    assert_close_f64(&widen(&output.checked(stream)), &want, &loose);

    for &group_size in group_sizes {
        let mut output = Quantized::new(stream, tokens, features, group_size);
        activate.launch_quantized(stream, &input, multiplier.as_ref(), &mut output.view()).unwrap();
        output.check(stream, &want, &bounds);
    }
}

struct Shape<'a> {
    activation: Activation,
    features: usize,
    group_sizes: &'a [usize],
}

/// At the given widths, each with each number of tokens, and all sizes of groups or, where rows are wide, the last two: all
/// would only take time.
fn check_widths(widths: impl Iterator<Item = usize> + Clone, batches: &[usize]) {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(1);
    for activation in ALL {
        for features in widths.clone() {
            let groups = [0, 8, 16, 32, 64, 128, 256].into_iter();
            let groups: Vec<usize> = groups.filter(|&g| g == 0 || features % g == 0).collect();
            let group_sizes =
                if features > 5000 { &groups[groups.len().saturating_sub(2)..] } else { &groups[..] };
            for &tokens in batches {
                let deviation = [0.1, 2.0, 30.0][rng.below(0..3)];
                let input = draw(&mut rng, tokens * features * activation.fan_in(), deviation);
                let multiplier = rng.tensor(features, 1.0);
                let multiplier = (rng.below(0..2) == 1).then_some(&multiplier[..]);
                let activate = Activate::new(activation, features).unwrap();
                let shape = Shape { activation, features, group_sizes };
                check(gpu.stream(), &activate, &input, multiplier, shape);
            }
        }
    }
}

/// One token takes as many blocks as a cluster has.
#[test]
#[ignore = "needs an H200"]
fn activations_at_every_width() {
    check_widths(WIDTHS.into_iter().chain([28672, 59392, 131072]), &[1]);
}

/// Forty tokens take as few blocks as hold a row.
#[test]
#[ignore = "needs an H200"]
fn full_size_activations_of_many_tokens() {
    check_widths(WIDTHS.into_iter().chain([28672, 59392, 131072]), &[40]);
}

/// Every bf16 of at most 2^40, so every branch of the functions; far below zero both give zero.
#[test]
#[ignore = "needs an H200"]
fn activations_of_every_number() {
    let gpu = Gpu::open(0).unwrap();
    let numbers = (0..=u16::MAX).map(bf16::from_bits).filter(|x| x.to_f32().abs() <= 1.1e12);
    let mut input: Vec<bf16> = numbers.collect();
    let features = 8192;
    input.resize(input.len().next_multiple_of(features), bf16::ONE);
    for activation in [Activation::Gelu, Activation::Silu] {
        let activate = Activate::new(activation, features).unwrap();
        check(gpu.stream(), &activate, &input, None, Shape { activation, features, group_sizes: &[] });
    }
}

#[test]
#[ignore = "needs an H200"]
fn activations_of_zeros_and_of_nothing() {
    let gpu = Gpu::open(0).unwrap();
    let features = 59392;
    let shape = || Shape { activation: Activation::Gelu, features, group_sizes: &[128] };
    let gelu = Activate::new(Activation::Gelu, features).unwrap();
    check(gpu.stream(), &gelu, &vec![bf16::ZERO; features], None, shape());
    check(gpu.stream(), &gelu, &[], None, shape());
}

/// More rows than multiprocessors hold at a time.
#[test]
#[ignore = "needs an H200"]
fn full_size_activations_of_a_batch() {
    let gpu = Gpu::open(0).unwrap();
    let features = 59392;
    let gelu = Activate::new(Activation::Gelu, features).unwrap();
    let input = draw(&mut Rng::new(2), 150 * features, 1.0);
    check(
        gpu.stream(),
        &gelu,
        &input,
        None,
        Shape { activation: Activation::Gelu, features, group_sizes: &[128] },
    );
}

/// Rows enough for blocks that go from one to the next, some without any number above 0.3, whose largest activation is not that
/// of their largest number.
#[test]
#[ignore = "needs an H200"]
fn gelu_goes_from_row_to_row() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(3);
    for (features, tokens, group_sizes) in
        [(16392, 48, &[0, 8][..]), (16384, 300, &[128][..]), (32776, 140, &[8][..]), (66048, 70, &[256][..])]
    {
        let gelu = Activate::new(Activation::Gelu, features).unwrap();
        let mut input = draw(&mut rng, tokens * features, 2.0);
        for (token, row) in input.chunks_exact_mut(features).enumerate() {
            let changed = |x: &bf16| match token % 4 {
                0 => -x.to_f32().abs(),
                1 => x.to_f32().min(0.25),
                2 => x.to_f32() / 256.0,
                _ => x.to_f32(),
            };
            row.iter_mut().for_each(|x| *x = bf16::from_f32(changed(x)));
        }
        let shape = Shape { activation: Activation::Gelu, features, group_sizes };
        check(gpu.stream(), &gelu, &input, None, shape);
    }
}
