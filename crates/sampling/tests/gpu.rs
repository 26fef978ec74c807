//! The kernel against the reference, token for token.
#![cfg(feature = "cuda")]
// Helpers beside the tests; a failed expectation is the test's failure.
#![allow(clippy::unwrap_used)]

#[path = "gpu/batch.rs"]
mod batch;

use cudarc::driver::{CudaStream, DeviceRepr};
use device::Element;
use device::gpu::{Gpu, download, upload, zeros};
use half::bf16;
use op_test::Rng;
use sampling::{Argmax, Logit, NO_TOKEN};
use std::sync::Arc;

type Stream = Arc<CudaStream>;

/// What the token buffer holds before and around what is written: no id, and not `NO_TOKEN`.
const POISON: u32 = 0xdead_beef;

/// Runs both sides on `logits[offset..]`, so that rows start anywhere.
#[track_caller]
fn check<T: Logit + Element + DeviceRepr>(stream: &Stream, vocab_size: usize, logits: &[T], offset: usize) {
    let argmax = Argmax::new(vocab_size).unwrap();
    let rows = (logits.len() - offset) / vocab_size;
    let wide: Vec<f32> = logits[offset..].iter().map(|x| x.to_f32()).collect();
    let mut want = vec![POISON; rows];
    argmax.reference(&wide, &mut want).unwrap();
    let logits = upload(stream, logits, "logits").unwrap();
    let mut tokens = upload(stream, &vec![POISON; rows + 8], "tokens").unwrap();
    argmax.launch(stream, &logits.slice(offset..), &mut tokens.slice_mut(4..4 + rows)).unwrap();
    let tokens = download(stream, &tokens).unwrap();
    assert_eq!(tokens[4..4 + rows], want, "vocab_size {vocab_size}, offset {offset}");
    assert!(
        tokens[..4].iter().chain(&tokens[4 + rows..]).all(|&token| token == POISON),
        "a guard was written"
    );
}

/// Continuous logits, coarse ones with many equals, equals only, zeros of both signs, and the ends of the range.
fn draw(rng: &mut Rng, len: usize) -> Vec<f32> {
    let kind = rng.below(0..5);
    (0..len)
        .map(|_| match kind {
            0 => rng.normal(4.0),
            1 => rng.normal(2.0).round(),
            2 => -3.5,
            3 => [0.0, -0.0][rng.below(0..2)],
            _ => [f32::MIN, -1e30, -1e-40, 0.0][rng.below(0..2)],
        })
        .collect()
}

fn check_widths(stream: &Stream, widths: &[usize], batches: &[usize]) {
    let mut rng = Rng::new(1);
    for &vocab_size in widths {
        for &rows in batches {
            for offset in [0, 1, 5] {
                let logits = draw(&mut rng, rows * vocab_size + offset);
                check(stream, vocab_size, &logits, offset);
                // f32::MIN is beyond bf16: what rounds to infinity is for the test of broken rows.
                let narrow = |x: &f32| bf16::from_f32(x.max(-3e38));
                check(stream, vocab_size, &logits.iter().map(narrow).collect::<Vec<_>>(), offset);
            }
        }
    }
}

#[test]
#[ignore = "needs an H200"]
fn argmax_at_every_width() {
    let gpu = Gpu::open(0).unwrap();
    // Around a vector, a block's pass, each number of slices.
    let widths = [1, 3, 4, 7, 8, 9, 31, 511, 512, 2049, 4095, 4097, 8191, 8192, 16385, 32767, 32768];
    check_widths(gpu.stream(), &widths, &[1, 2, 20]);
    check::<f32>(gpu.stream(), 1000, &[], 0);
}

#[test]
#[ignore = "needs an H200"]
fn full_size_argmax() {
    let gpu = Gpu::open(0).unwrap();
    // More rows than multiprocessors; real vocabularies.
    check_widths(gpu.stream(), &[4097, 8192, 16385, 32768], &[150]);
    check_widths(gpu.stream(), &[32000, 65024, 128256, 256000], &[1, 2, 20]);
}

#[test]
#[ignore = "needs an H200"]
fn the_best_token_is_found_wherever_it_stands() {
    let gpu = Gpu::open(0).unwrap();
    let mut rng = Rng::new(2);
    for vocab_size in [37, 5000, 65027] {
        // One row for each place near an end, and for random ones.
        let near = (0..20).chain(vocab_size - 20..vocab_size).filter(|&place| place < vocab_size);
        let places: Vec<usize> = near.chain((0..40).map(|_| rng.below(0..vocab_size))).collect();
        let mut logits = rng.tensor(places.len() * vocab_size, 1.0);
        places.iter().enumerate().for_each(|(row, place)| logits[row * vocab_size + place] = 50.0);
        check(gpu.stream(), vocab_size, &logits, 0);
        check(gpu.stream(), vocab_size, &logits.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), 0);
    }
}

#[test]
#[ignore = "needs an H200"]
fn rows_that_are_not_finite_get_no_token() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut rng = Rng::new(3);
    for vocab_size in [1, 9, 4097, 128256] {
        let rows = 30;
        let mut logits = rng.tensor(rows * vocab_size, 1.0);
        for row in 0..rows - 3 {
            let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN][row % 4];
            logits[row * vocab_size + rng.below(0..vocab_size)] = bad;
        }
        check(stream, vocab_size, &logits, 0);
        check(stream, vocab_size, &logits.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), 0);
    }
    let nan = upload(stream, &[bf16::NAN; 8], "logits").unwrap();
    let mut tokens = upload(stream, &[POISON], "tokens").unwrap();
    Argmax::new(8).unwrap().launch(stream, &nan, &mut tokens).unwrap();
    assert_eq!(download(stream, &tokens).unwrap(), [NO_TOKEN]);
}

#[test]
#[ignore = "needs an H200"]
fn lengths_are_checked() {
    let gpu = Gpu::open(0).unwrap();
    let logits = zeros::<bf16>(gpu.stream(), 20, "logits").unwrap();
    let mut tokens = zeros::<u32>(gpu.stream(), 3, "tokens").unwrap();
    let error = Argmax::new(10).unwrap().launch(gpu.stream(), &logits, &mut tokens).unwrap_err();
    assert_eq!(error.to_string(), "argmax: logits: expected 30 elements, got 20");
}
