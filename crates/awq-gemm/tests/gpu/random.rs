//! Random products around the edges of tiles, as many as `op_test::random_cases` makes of them. Each is held element by element,
//! run twice, run beside other rows, and run again with fewer tokens of the same tiling: always the same bits.

use super::w4a16::{self, Type, Values};
use super::{Case, Codes, OnDevice, floats};
use awq_gemm::{Int4Shape, Int4Weights, PackedWeights, Tiling, W4A8, W4A8Workspace, W4A16, W4A16Workspace};
use cudarc::driver::DeviceRepr;
use device::gpu::{Gpu, multiprocessors, upload};
use device::{E4m3, Element, QuantizedActivation};
use half::{bf16, f16};
use op_test::{Rng, Worst, assert_close_f64, random_cases};
use std::ops::Range;
use std::sync::Mutex;

/// Multiplications of a usual case, at most.
const MULTIPLICATIONS: usize = 1 << 23;

/// A shape and a number of tokens: around every width that a tile may have, single tokens, several panels of tiles; few
/// features and enough for wide tiles; one group and enough for many windows, and for units that are half padding.
fn problem(rng: &mut Rng) -> (Int4Shape, usize) {
    const EDGES: [usize; 12] = [8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 384];
    let group_size = [64, 128][rng.below(0..2)];
    let tokens = match rng.below(0..20) {
        0 => rng.below(500..3000),
        1..=5 => rng.below(1..400),
        6..=9 => rng.below(1..18),
        _ => EDGES[rng.below(0..EDGES.len())] - 1 + rng.below(0..3),
    };
    let wide = tokens <= 66 && rng.below(0..24) == 0;
    let blocks = if wide {
        [64, 128, 192, 256, 512][rng.below(0..5)] - 2 + rng.below(0..8)
    } else {
        let most = MULTIPLICATIONS / (tokens * 64 * group_size);
        let widest = [10, 40, 80][rng.below(0..3)];
        rng.below(1..widest).min(most.max(1))
    };
    let most = (MULTIPLICATIONS >> rng.below(0..4)) / (tokens * 64 * blocks * group_size);
    let most = most.clamp(1, 150);
    let groups = if rng.below(0..2) == 0 { most } else { rng.below(1..most + 1) };
    (Int4Shape::new(group_size * groups, 64 * blocks, group_size).unwrap(), tokens)
}

/// Codes over all of 0 to 15 or all at one end; symmetric or any zero points; scales as checkpoints have them, adversarial
/// ones among them, or one extreme everywhere.
fn weights(rng: &mut Rng, shape: Int4Shape) -> Int4Weights {
    let groups = shape.out_features() * shape.groups();
    let mut nibbles = |len: usize| -> Vec<u8> {
        let words = (0..len.div_ceil(16)).map(|_| rng.bits());
        words.flat_map(|word| (0..16).map(move |i| (word >> (4 * i)) as u8 & 0xf)).take(len).collect()
    };
    let (mut codes, mut zeros) = (nibbles(shape.out_features() * shape.in_features()), nibbles(groups));
    match rng.below(0..24) {
        0 => codes.fill(0),
        1 => codes.fill(15),
        _ => {}
    }
    if rng.below(0..2) == 0 {
        zeros.fill(8);
    }
    let largest = f16::MAX.to_f32();
    let extremes = [0.0, f16::MIN_POSITIVE_SUBNORMAL.to_f32(), largest, -largest, 1.0];
    let kind = rng.below(0..12);
    let scales = (0..groups).map(|_| match kind {
        0..=4 => extremes[kind],
        5..=8 => f16::from_f32(0.001 + 0.01 * rng.signed().abs()).to_f32(),
        _ => super::common::scale(rng),
    });
    let scales = scales.map(|scale| f16::from_f32(scale).to_f32()).collect();
    Int4Weights::new(shape, codes, zeros, scales).unwrap()
}

/// One scale to a token, or one for all, of any magnitude.
fn activation_scales(rng: &mut Rng, tokens: usize) -> Vec<f32> {
    let magnitude = 2f32.powi(rng.below(0..28) as i32 - 24);
    if rng.below(0..3) == 0 {
        vec![magnitude; tokens]
    } else {
        (0..tokens).map(|_| magnitude * (0.01 + rng.signed().abs())).collect()
    }
}

/// Activations of `tokens` rows, with their sums.
fn w4a8_rows(rng: &mut Rng, case: &mut Case, kind: Codes) {
    let features = case.shape.in_features();
    let count = case.tokens * features;
    case.codes = match kind {
        Codes::Exact => {
            let numbers = [-2.0, -1.0, 0.0, 1.0, 2.0].map(E4m3::from_f32);
            (0..count).map(|_| numbers[rng.below(0..5)]).collect()
        }
        Codes::Real => {
            let (outlier, deviation) = (rng.below(0..features), 2f32.powi(rng.below(0..16) as i32 - 8));
            let mut code = |i: usize| rng.normal(if i % features == outlier { 200.0 } else { deviation });
            (0..count).map(|i| E4m3::from_f32(code(i))).collect()
        }
    };
    let sum = |codes: &[E4m3]| codes.iter().map(|code| f64::from(code.to_f32())).sum::<f64>() as f32;
    case.group_sums = case.codes.chunks(case.shape.group_size()).map(sum).collect();
    case.scales = activation_scales(rng, case.tokens);
}

/// A number of tokens below `tokens` that is cut up in the same way, if one is found near it or by chance.
fn fewer(rng: &mut Rng, tokens: usize, tiling: impl Fn(usize) -> Tiling) -> Option<usize> {
    let own = tiling(tokens);
    let candidates = [rng.below(0..tokens), tokens - tokens.min(7), tokens - 1];
    candidates.into_iter().find(|&fewer| fewer > 0 && tiling(fewer) == own)
}

/// What a case gave.
struct Runs<Y> {
    first: Vec<Y>,
    second: Vec<Y>,
    /// The elements of `row` are those of a row whose operands are the first's, among others.
    beside: Vec<Y>,
    row: Range<usize>,
    /// Of the first rows alone, where as many are cut up like all.
    less: Option<Vec<Y>>,
}

impl<Y: Element> Runs<Y> {
    fn check(&self, what: &str, want: &[f64], bounds: &[f64], worst: &Worst) {
        println!("{what}");
        let got = floats(&self.first);
        assert_close_f64(&got, want, bounds);
        worst.add(&got, want, bounds);
        assert!(self.second == self.first, "{what}: another result for the same operands");
        let row = self.row.clone();
        assert!(self.beside[row.clone()] == self.first[row], "{what}: a row depends on the others");
        if let Some(less) = &self.less {
            assert!(less == &self.first[..less.len()], "{what}: other bits in a smaller batch");
        }
    }
}

/// A case of the W4A8 product, and what is right.
fn w4a8_case(rng: &mut Rng) -> (Case, Codes, Vec<f64>) {
    let (shape, tokens) = problem(rng);
    let kind = [Codes::Exact, Codes::Real][rng.below(0..2)];
    let weights = weights(rng, shape);
    let bias = (rng.below(0..2) == 0).then(|| rng.tensor(shape.out_features(), 1.0));
    let (codes, scales, group_sums) = Default::default();
    let mut case = Case { shape, tokens, codes, scales, group_sums, weights, bias };
    w4a8_rows(rng, &mut case, kind);
    let want = case.reference();
    (case, kind, want)
}

/// The bounds are no tighter than the kernel's way to sum, taken in f64, needs. Needs no GPU.
#[test]
fn bounds_hold_for_sums_by_groups() {
    let worst = Worst::default();
    random_cases(|rng| {
        let (case, kind, want) = w4a8_case(rng);
        let (codes, scales, group_sums) = (&case.codes[..], &case.scales[..], &case.group_sums[..]);
        let x = QuantizedActivation { shape: case.activation_shape(), codes, scales, group_sums };
        let mut y = vec![f32::NAN; want.len()];
        let bias = case.bias.as_deref();
        W4A8::new(case.shape).reference_by_group_sums(&x, &case.weights, bias, &mut y).unwrap();
        let y: Vec<f32> = y.into_iter().map(|y| bf16::from_f32(y).to_f32()).collect();
        let bounds = case.bounds::<bf16>(kind, &want);
        assert_close_f64(&y, &want, &bounds);
        worst.add(&y, &want, &bounds);
    });
    println!("largest share of the bound: {:.3}", worst.share());
}

#[test]
#[ignore = "needs an H200"]
fn random_products() {
    let gpu = Gpu::open(0).unwrap();
    let multiprocessors = multiprocessors(gpu.stream()).unwrap() as usize;
    let workspace = Mutex::new(W4A8Workspace::new(gpu.stream()).unwrap());
    let worst = [Worst::default(), Worst::default()];
    random_cases(|rng| {
        let (case, kind, want) = w4a8_case(rng);
        let half = rng.below(0..2) == 0 && want.iter().all(|y| y.abs() < 60000.0);
        let check = if half { w4a8::<f16> } else { w4a8::<bf16> };
        check(rng, &gpu, multiprocessors, &workspace, &case, kind, &want, &worst[kind as usize]);
    });
    println!("largest share of the bound: {:.3} (exact sums), {:.3}", worst[0].share(), worst[1].share());
}

#[allow(clippy::too_many_arguments)]
fn w4a8<Y: Element + DeviceRepr>(
    rng: &mut Rng,
    gpu: &Gpu,
    multiprocessors: usize,
    workspace: &Mutex<W4A8Workspace>,
    case: &Case,
    kind: Codes,
    want: &[f64],
    worst: &Worst,
) {
    let (shape, tokens) = (case.shape, case.tokens);
    let (features, groups, outputs) = (shape.in_features(), shape.groups(), shape.out_features());
    let what = format!("{} {shape:?} tokens {tokens} {kind:?}", Y::NAME);
    let packed = PackedWeights::pack(&case.weights).unwrap();
    // The same row among others, NaN among them.
    let row = rng.below(0..tokens);
    let mut others = case.clone();
    w4a8_rows(rng, &mut others, Codes::Real);
    others.codes[rng.below(0..tokens) * features] = E4m3::NAN;
    let (codes, sums) = (row * features..(row + 1) * features, row * groups..(row + 1) * groups);
    others.codes[codes.clone()].copy_from_slice(&case.codes[codes]);
    others.group_sums[sums.clone()].copy_from_slice(&case.group_sums[sums]);
    others.scales[row] = case.scales[row];
    let plan = W4A8::new(shape);
    let less = fewer(rng, tokens, |tokens| plan.tiling(tokens, multiprocessors).unwrap()).map(|less| {
        let mut case = case.clone();
        case.tokens = less;
        case.codes.truncate(less * features);
        case.group_sums.truncate(less * groups);
        case.scales.truncate(less);
        case
    });

    // Nothing in here is shared out over threads: another case could be taken up, and wait for the same lock.
    let mut workspace = workspace.lock().unwrap();
    let mut on_device = OnDevice::packed(gpu.stream(), case, &packed);
    let first: Vec<Y> = on_device.run(gpu.stream(), &mut workspace);
    let second: Vec<Y> = on_device.run(gpu.stream(), &mut workspace);
    on_device.x = OnDevice::activation(gpu.stream(), &others);
    let beside = on_device.launch::<Y>(gpu.stream(), &mut workspace).contents(gpu.stream());
    let less = less.map(|less| {
        on_device.x = OnDevice::activation(gpu.stream(), &less);
        on_device.run(gpu.stream(), &mut workspace)
    });
    drop(workspace);

    let runs = Runs { first, second, beside, row: row * outputs..(row + 1) * outputs, less };
    runs.check(&what, want, &case.bounds::<Y>(kind, want), worst);
}

#[test]
#[ignore = "needs an H200"]
fn w4a16_random_products() {
    let gpu = Gpu::open(0).unwrap();
    let multiprocessors = multiprocessors(gpu.stream()).unwrap() as usize;
    let workspace = Mutex::new(W4A16Workspace::new(gpu.stream()).unwrap());
    let worst = Worst::default();
    random_cases(|rng| {
        let random = if rng.below(0..2) == 0 { w4a16::<bf16> } else { w4a16::<f16> };
        random(rng, &gpu, multiprocessors, &workspace, &worst);
    });
    println!("largest share of the bound: {:.3}", worst.share());
}

fn w4a16_rows<X: Type>(rng: &mut Rng, case: &mut w4a16::Case<X>, values: Values) {
    let features = case.shape.in_features();
    let count = case.tokens * features;
    case.x = match values {
        Values::Exact => (0..count).map(|_| X::from_f32(rng.below(0..5) as f32 - 2.0)).collect(),
        Values::Real => {
            let (outlier, deviation) = (rng.below(0..features), 2f32.powi(rng.below(0..20) as i32 - 12));
            let mut value = |i: usize| rng.normal(if i % features == outlier { 200.0 } else { deviation });
            (0..count).map(|i| X::from_f32(value(i))).collect()
        }
    };
}

fn w4a16<X: Type>(
    rng: &mut Rng,
    gpu: &Gpu,
    multiprocessors: usize,
    workspace: &Mutex<W4A16Workspace>,
    worst: &Worst,
) {
    let (shape, tokens) = problem(rng);
    let values = [Values::Exact, Values::Real][rng.below(0..2)];
    let bias = (rng.below(0..2) == 0).then(|| rng.tensor(shape.out_features(), 1.0));
    let mut case = w4a16::Case::<X> { shape, tokens, x: vec![], weights: weights(rng, shape), bias };
    w4a16_rows(rng, &mut case, values);
    let want = case.reference();
    let half = rng.below(0..2) == 0 && want.iter().all(|y| y.abs() < 60000.0);
    let check = if half { w4a16_check::<X, f16> } else { w4a16_check::<X, bf16> };
    check(rng, gpu, multiprocessors, workspace, &case, values, &want, worst);
}

#[allow(clippy::too_many_arguments)]
fn w4a16_check<X: Type, Y: Element + DeviceRepr>(
    rng: &mut Rng,
    gpu: &Gpu,
    multiprocessors: usize,
    workspace: &Mutex<W4A16Workspace>,
    case: &w4a16::Case<X>,
    values: Values,
    want: &[f64],
    worst: &Worst,
) {
    let (shape, tokens) = (case.shape, case.tokens);
    let (features, outputs) = (shape.in_features(), shape.out_features());
    let what = format!("{} to {} {shape:?} tokens {tokens} {values:?}", X::NAME, Y::NAME);
    let packed = PackedWeights::pack(&case.weights).unwrap();
    let row = rng.below(0..tokens);
    let mut others = case.clone();
    w4a16_rows(rng, &mut others, Values::Real);
    others.x[rng.below(0..tokens) * features] = X::from_f32(f32::NAN);
    let own = row * features..(row + 1) * features;
    others.x[own.clone()].copy_from_slice(&case.x[own]);
    let plan = W4A16::new(shape);
    let less = fewer(rng, tokens, |tokens| plan.tiling(tokens, multiprocessors).unwrap());

    // As above: nothing in here is shared out over threads.
    let mut workspace = workspace.lock().unwrap();
    let mut on_device = w4a16::OnDevice::packed(gpu.stream(), case, &packed);
    let first: Vec<Y> = on_device.run(gpu.stream(), &mut workspace);
    let second: Vec<Y> = on_device.run(gpu.stream(), &mut workspace);
    on_device.x = upload(gpu.stream(), &others.x, "x").unwrap();
    let beside = on_device.launch::<Y>(gpu.stream(), &mut workspace).contents(gpu.stream());
    let less = less.map(|less| {
        on_device.tokens = less;
        on_device.x = upload(gpu.stream(), &case.x[..less * features], "x").unwrap();
        on_device.run(gpu.stream(), &mut workspace)
    });
    drop(workspace);

    let runs = Runs { first, second, beside, row: row * outputs..(row + 1) * outputs, less };
    runs.check(&what, want, &case.bounds::<Y>(values, want), worst);
}
