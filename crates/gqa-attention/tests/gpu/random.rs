//! Random batches, as many as `op_test::random_cases` makes of them, for either kernel and either element. Each is held element
//! by element, run twice, and run again so that its sequences should not notice: always the same bits.

use crate::common::{Case, Sequence};
use crate::on_device::{self, OnDevice, bits, gpu, rounded};
use crate::truth::{Page, hold, truth};
use cudarc::driver::DeviceRepr;
use device::gpu::multiprocessors;
use device::{E4m3, Element, PAGE_SIZE};
use gqa_attention::{Attention, AttentionKernel, AttentionOptions, AttentionShape};
use half::bf16;
use op_test::{Rng, Worst, random_cases};
use std::ops::Range;
use std::sync::Mutex;

/// Scores times head_dim of a case, elements of its keys: what keeps the truth quick.
const WORK: usize = 2 << 20;
const ELEMENTS: usize = 1 << 18;

fn shape(rng: &mut Rng, head_dims: &[usize]) -> AttentionShape {
    const GROUPS: [usize; 18] = [1, 1, 2, 3, 4, 5, 7, 8, 8, 8, 12, 16, 29, 29, 32, 64, 71, 72];
    let group = GROUPS[rng.below(0..GROUPS.len())];
    let kv_heads = rng.below(1..4);
    AttentionShape {
        query_heads: group * kv_heads,
        kv_heads,
        head_dim: head_dims[rng.below(0..head_dims.len())],
    }
}

fn options(rng: &mut Rng, shape: AttentionShape) -> AttentionOptions {
    AttentionOptions {
        scale: (rng.below(0..4) == 0).then(|| 0.01 + 0.3 * rng.signed().abs()),
        window: (rng.below(0..3) == 0).then(|| match rng.below(0..4) {
            0 => rng.below(1..4),
            1 => PAGE_SIZE * rng.below(1..4) + rng.below(0..3) - 1,
            _ => rng.below(1..500),
        }),
        alibi_slopes: (rng.below(0..3) == 0)
            .then(|| (0..shape.query_heads).map(|_| rng.signed().abs()).collect()),
        settled: rng.below(0..2) == 0,
    }
}

/// Around the ends of pages, short, long, very long.
fn context(rng: &mut Rng, most: usize) -> usize {
    let context = match rng.below(0..16) {
        0..=2 => rng.below(1..5),
        3..=6 => PAGE_SIZE * rng.below(1..9) + rng.below(0..5) - 2,
        7 => rng.below(1000..6000),
        8 | 9 => rng.below(300..1500),
        _ => rng.below(1..400),
    };
    context.min(most).max(1)
}

/// None to 40 sequences with as many new tokens as `queries` draws, cut off where they would take too long.
fn sequences(rng: &mut Rng, shape: AttentionShape, queries: Range<usize>) -> Vec<Sequence> {
    let row = shape.kv_heads * shape.head_dim;
    let (mut work, mut elements) = (WORK, ELEMENTS);
    let count = if rng.below(0..4) == 0 { rng.below(0..41) } else { rng.below(1..7) };
    let mut sequences = Vec::new();
    while sequences.len() < count {
        let context = context(rng, elements / row);
        let cost = context * shape.query_heads * shape.head_dim;
        // Some do not take part in a step.
        let wanted = if rng.below(0..8) == 0 { 0 } else { rng.below(queries.clone()) };
        let queries = wanted.min(context).min((work / cost).max(usize::from(sequences.is_empty())));
        sequences.push(Sequence { context, queries });
        work = work.saturating_sub(queries * cost);
        elements = elements.saturating_sub(context * row);
        if work < WORK / 64 || elements < row {
            break;
        }
    }
    sequences
}

/// Numbers as they come, scores that one key dominates, or all keys alike; scales for each head or for the layer.
fn case<T: Element>(
    rng: &mut Rng,
    shape: AttentionShape,
    options: AttentionOptions,
    sequences: Vec<Sequence>,
) -> Case<T> {
    let mut case = Case::<T>::random(rng, shape, options, sequences);
    let factor = [1.0, 1.0, 1.0, 4.0, 0.05][rng.below(0..5)];
    case.queries.iter_mut().for_each(|q| *q *= factor);
    if rng.below(0..2) == 0 {
        let (keys, values) =
            (case.key_scales[0], case.value_scales[0] * 2f32.powi(rng.below(0..12) as i32 - 8));
        case.key_scales.fill(keys);
        case.value_scales.fill(values);
    }
    rounded(case)
}

/// Numbers of the rows of a sequence among those of `output`'s first dimension times heads.
fn rows_of<T>(case: &Case<T>, index: usize) -> Range<usize> {
    let before: usize = case.sequences[..index].iter().map(|s| s.queries).sum();
    let heads = case.shape.query_heads;
    before * heads..(before + case.sequences[index].queries) * heads
}

/// Whether the rows `got` of one answer are the rows `want` of another, bit for bit.
fn same_rows(
    head_dim: usize,
    (a, got): (&(Vec<bf16>, Vec<f32>), Range<usize>),
    (b, want): (&(Vec<bf16>, Vec<f32>), Range<usize>),
) -> bool {
    let part = |answer: &(Vec<bf16>, Vec<f32>), rows: Range<usize>| {
        let output = answer.0[rows.start * head_dim..rows.end * head_dim].to_vec();
        bits(&(output, answer.1[rows].to_vec()))
    };
    part(a, got) == part(b, want)
}

fn run<T: Page + DeviceRepr>(
    rng: &mut Rng,
    (lock, worst): (&Mutex<()>, &Worst),
    case: &Case<T>,
    max_queries: usize,
) {
    let padding = rng.below(0..4);
    let with_log_sum_exp = rng.below(0..2) == 0;
    let plan = Attention::new(case.shape, case.options.clone()).unwrap();
    let kernel = on_device::kernel(&plan, case.sequences.len(), max_queries);
    let what = format!(
        "{} {kernel} {:?} {:?} {:?}",
        T::NAME,
        case.shape,
        case.options.window,
        case.sequences.iter().map(|s| (s.context, s.queries)).collect::<Vec<_>>()
    );
    println!("{what}");
    let truth = truth(case, kernel);
    let paged = case.lay_out(rng, 1);

    // Another time in other pages. One sequence is as it was; keys, values and queries of the others are NaN.
    let busy: Vec<usize> = (0..case.sequences.len()).filter(|&i| case.sequences[i].queries > 0).collect();
    let kept = (!busy.is_empty()).then(|| busy[rng.below(0..busy.len())]);
    let beside = kept.map(|kept| {
        let mut others = case.clone();
        let rows = rows_of(case, kept);
        let own = rows.start * case.shape.head_dim..rows.end * case.shape.head_dim;
        for (at, query) in others.queries.iter_mut().enumerate() {
            if !own.contains(&at) {
                *query = f32::NAN;
            }
        }
        for index in (0..case.sequences.len()).filter(|&index| index != kept) {
            others.keys[index].fill(T::from_f32(f32::NAN));
            others.values[index].fill(T::from_f32(f32::NAN));
        }
        let paged = others.lay_out(rng, 2);
        (kept, others, paged)
    });
    // A sequence alone, with its last new tokens only.
    let alone = kept.map(|kept| {
        let queries = rng.below(1..case.sequences[kept].queries + 1);
        let alone = case.alone(kept, queries);
        let paged = alone.lay_out(rng, 0);
        (kept, alone, paged)
    });

    // One launch at a time, and nothing in here is shared out over threads: another case could be taken up, and wait for the
    // same lock.
    let launching = lock.lock().unwrap();
    let stream = gpu().stream();
    let mut workspace = plan.workspace(stream).unwrap();
    let mut launch = |case: &Case<T>, paged: &crate::common::Paged<T>, padding: usize| {
        let mut on_device = OnDevice::new(stream, case, paged, padding);
        on_device.launch(stream, &plan, paged.layout, max_queries, &mut workspace, with_log_sum_exp).unwrap();
        on_device.written(stream)
    };
    let first = launch(case, &paged, padding);
    let second = launch(case, &paged, padding);
    let beside = beside.map(|(kept, case, paged)| (kept, launch(&case, &paged, padding)));
    let alone = alone.map(|(kept, case, paged)| {
        let kernel = on_device::kernel(&plan, 1, max_queries);
        (kept, kernel, case.sequences[0].queries, launch(&case, &paged, 0))
    });
    drop(launching);

    worst.raise(hold(case, &truth, &first, with_log_sum_exp));
    assert!(bits(&second) == bits(&first), "{what}: a second run gave other bits");
    let head_dim = case.shape.head_dim;
    if let Some((kept, beside)) = beside {
        let rows = rows_of(case, kept);
        assert!(
            same_rows(head_dim, (&beside, rows.clone()), (&first, rows)),
            "{what}: sequence {kept} depends on the others or on where its pages lie"
        );
    }
    if let Some((kept, AttentionKernel::Prefill, queries, alone)) = alone {
        let rows = rows_of(case, kept);
        let last = rows.end - queries * case.shape.query_heads..rows.end;
        let all = 0..queries * case.shape.query_heads;
        if kernel == AttentionKernel::Prefill {
            assert!(
                same_rows(head_dim, (&alone, all), (&first, last)),
                "{what}: sequence {kept} has other bits alone, with its last {queries} queries"
            );
        }
    }
}

/// The truth and its bounds are sound: the reference, which rounds far less, lies within them. Needs no GPU.
#[test]
fn the_reference_is_within_the_bounds() {
    fn check<T: Page>(rng: &mut Rng, case: &Case<T>) {
        let answer = case.run(rng, 0);
        let output = answer.output.iter().map(|&x| bf16::from_f32(x)).collect();
        let answer = (output, answer.log_sum_exp);
        for kernel in [AttentionKernel::Decode, AttentionKernel::Prefill] {
            hold(case, &truth(case, kernel), &answer, true);
        }
    }
    random_cases(|rng| {
        let shape = shape(rng, &[64, 128, 256]);
        let options = options(rng, shape);
        let sequences = sequences(rng, shape, 1..30);
        if rng.below(0..2) == 0 {
            let case = case::<E4m3>(rng, shape, options, sequences);
            check(rng, &case);
        } else {
            let case = case::<bf16>(rng, shape, options, sequences);
            check(rng, &case);
        }
    });
}

/// 1 to 8 new tokens a sequence, told so.
#[test]
#[ignore = "needs an H200"]
fn random_batches() {
    let (lock, worst) = (Mutex::new(()), Worst::default());
    random_cases(|rng| {
        let shape = shape(rng, &[64, 128, 256]);
        let options = options(rng, shape);
        let queries = if rng.below(0..2) == 0 { 1..2 } else { 1..9 };
        let sequences = sequences(rng, shape, queries);
        let max_queries = sequences.iter().map(|s| s.queries).max().unwrap_or(1);
        if rng.below(0..2) == 0 {
            let case = case::<E4m3>(rng, shape, options, sequences);
            run(rng, (&lock, &worst), &case, max_queries);
        } else {
            let case = case::<bf16>(rng, shape, options, sequences);
            run(rng, (&lock, &worst), &case, max_queries);
        }
    });
    println!("largest share of the bound: {:.3}", worst.share());
}

/// Prompts and chunks of them, by prefill's kernel, which takes any number of queries.
#[test]
#[ignore = "needs an H200"]
fn random_chunks() {
    let (lock, worst) = (Mutex::new(()), Worst::default());
    let multiprocessors = multiprocessors(gpu().stream()).unwrap() as usize;
    random_cases(|rng| {
        let shape = shape(rng, &[64, 128]);
        let options = options(rng, shape);
        let queries = if rng.below(0..3) == 0 { 1..9 } else { 1..500 };
        let sequences = sequences(rng, shape, queries);
        let plan = Attention::new(shape, options.clone()).unwrap();
        assert_eq!(plan.kernel(sequences.len(), 512, multiprocessors), AttentionKernel::Prefill);
        if rng.below(0..2) == 0 {
            let case = case::<E4m3>(rng, shape, options, sequences);
            run(rng, (&lock, &worst), &case, 512);
        } else {
            let case = case::<bf16>(rng, shape, options, sequences);
            run(rng, (&lock, &worst), &case, 512);
        }
    });
    println!("largest share of the bound: {:.3}", worst.share());
}
