//! Embedding and residual addition bit for bit, rotation within its roundings.

use crate::support::{BF16, F32, draw, widen};
use device::gpu::{Gpu, download, upload, zeros};
use half::bf16;
use layers::{AddResidual, Embedding, Rotate};
use op_test::{DeviceGuarded, Rng, assert_close_f64};

#[test]
#[ignore = "needs an H200"]
fn embedding_copies_rows() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut rng = Rng::new(1);
    for (vocab_size, features, tokens) in
        [(1, 8, 1), (3, 2040, 7), (100, 2056, 0), (1000, 8192, 300), (65024, 64, 9)]
    {
        let table = draw(&mut rng, vocab_size * features, 1.0);
        let ids: Vec<u32> = (0..tokens).map(|_| rng.below(0..vocab_size) as u32).collect();
        let want: Vec<bf16> =
            ids.iter().flat_map(|&id| table[id as usize * features..][..features].to_vec()).collect();
        let embedding = Embedding::new(vocab_size, features).unwrap();
        let (table, ids) = (upload(stream, &table, "table").unwrap(), upload(stream, &ids, "ids").unwrap());
        let mut output = DeviceGuarded::<bf16>::new(stream, want.len());
        embedding.launch(stream, &table, &ids, &mut output.view()).unwrap();
        assert_eq!(output.checked(stream), want);
    }
}

#[test]
#[ignore = "needs an H200"]
fn an_id_beyond_the_vocabulary_gives_nan() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let table = upload(stream, &[bf16::ONE; 5 * 16], "table").unwrap();
    let ids = upload(stream, &[4, 5, u32::MAX, 0], "ids").unwrap();
    let mut output = zeros::<bf16>(stream, 4 * 16, "output").unwrap();
    Embedding::new(5, 16).unwrap().launch(stream, &table, &ids, &mut output).unwrap();
    for (row, known) in download(stream, &output).unwrap().chunks_exact(16).zip([true, false, false, true]) {
        assert!(row.iter().all(|x| if known { *x == bf16::ONE } else { x.is_nan() }));
    }
}

#[test]
#[ignore = "needs an H200"]
fn residual_additions_are_rounded_once() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut rng = Rng::new(2);
    for (tokens, features) in [(1, 8), (3, 2040), (257, 8), (0, 16), (300, 14848)] {
        for count in 0..=2 {
            let before = draw(&mut rng, tokens * features, 4.0);
            let deltas: Vec<_> = (0..count).map(|_| draw(&mut rng, before.len(), 1.0)).collect();
            let sum = |i: usize| {
                let delta: f32 = deltas.iter().map(|delta| delta[i].to_f32()).sum();
                bf16::from_f32(before[i].to_f32() + delta)
            };
            let want: Vec<bf16> = (0..before.len()).map(sum).collect();
            let on_device: Vec<_> =
                deltas.iter().map(|delta| upload(stream, delta, "delta").unwrap()).collect();
            let on_device: Vec<_> = on_device.iter().collect();
            let mut residual = DeviceGuarded::filled(stream, &before);
            AddResidual::new(features).unwrap().launch(stream, &on_device, &mut residual.view()).unwrap();
            assert_eq!(residual.checked(stream), want);
        }
    }
}

#[test]
#[ignore = "needs an H200"]
fn rotation_turns_pairs() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut rng = Rng::new(3);
    // Falcon-180B (232 + 8 of 248 heads of 64), Llama-70B, heads of which only a part turns, no head at all.
    let shapes = [(248, 240, 64, 32), (80, 72, 128, 64), (3, 2, 80, 16), (5, 5, 24, 8), (2, 0, 64, 32)];
    for (row_heads, rotated_heads, head_dim, half) in shapes {
        let tokens = rng.below(0..20);
        let before = draw(&mut rng, tokens * row_heads * head_dim, 1.0);
        // Past 105,615 the sine's argument is reduced another way.
        let positions: Vec<u32> =
            (0..tokens).map(|i| [0, 1, 2047, 131071, rng.below(0..3000)][i % 5] as u32).collect();
        let frequencies: Vec<f32> = (0..half).map(|i| 10000f32.powf(-(i as f32) / half as f32)).collect();
        let (mut want, mut bounds) = (Vec::new(), Vec::new());
        for (index, x) in before.iter().enumerate() {
            let (dim, head, token) =
                (index % head_dim, index / head_dim % row_heads, index / head_dim / row_heads);
            if head >= rotated_heads || dim >= 2 * half {
                want.push(f64::from(x.to_f32()));
                bounds.push(0.0);
                continue;
            }
            let pair = index - dim + dim % half;
            let (a, b) = (f64::from(before[pair].to_f32()), f64::from(before[pair + half].to_f32()));
            let (sin, cos) = f64::from(positions[token] as f32 * frequencies[dim % half]).sin_cos();
            let y = if dim < half { a * cos - b * sin } else { b * cos + a * sin };
            want.push(y);
            // Sine and cosine to two places, two products, a sum, and the rounding to bf16.
            bounds.push(BF16 * y.abs() + (4.0 + 1.0 + 1.0) * F32 * (a.abs() + b.abs()));
        }
        let positions = upload(stream, &positions, "positions").unwrap();
        let frequencies = upload(stream, &frequencies, "frequencies").unwrap();
        let mut rows = DeviceGuarded::filled(stream, &before);
        let rotate = Rotate::new(row_heads, rotated_heads, head_dim).unwrap();
        rotate.launch(stream, &positions, &frequencies, &mut rows.view()).unwrap();
        assert_close_f64(&widen(&rows.checked(stream)), &want, &bounds);
    }
}
