//! Settled batches: what the kernel before writes is waited for, though everything else is loaded while it runs.

use crate::on_device::{bits, gpu};
use cudarc::driver::{CudaSlice, DevicePtr};
use device::gpu::{download, upload, zeros};
use device::{BatchView, KvLayout, KvPages, PAGE_SIZE};
use gqa_attention::{Attention, AttentionOptions, AttentionShape};
use half::bf16;
use op_test::Rng;

/// Attention over 128 sequences writes the last page of another sequence, keys, values and its query: that page has as many
/// elements as the 128 outputs. The second launch has pages of its own to load in front of that one.
#[test]
#[ignore = "needs an H200"]
fn pages_of_the_kernel_before_are_awaited() {
    const SEQUENCES: usize = 128;
    let (stream, mut rng) = (gpu().stream(), Rng::new(61));
    let shape = AttentionShape { query_heads: 2, kv_heads: 2, head_dim: 64 };
    let row = shape.query_heads * shape.head_dim;
    let layout = KvLayout::new(shape.kv_heads, shape.head_dim).unwrap();
    let page = layout.page_elements();
    assert_eq!(page, SEQUENCES * row);
    let plan =
        |settled| Attention::new(shape, AttentionOptions { settled, ..AttentionOptions::default() }).unwrap();
    let mut random = |len: usize| -> CudaSlice<bf16> {
        let numbers: Vec<bf16> = rng.tensor(len, 1.0).into_iter().map(bf16::from_f32).collect();
        upload(stream, &numbers, "numbers").unwrap()
    };
    let indices = |numbers: &[u32]| upload(stream, numbers, "indices").unwrap();
    let ones = upload(stream, &[1.0f32; 2], "scales").unwrap();

    // Every sequence of the first launch reads the same 16 pages.
    let (first_pool, queries) = (random(16 * page), random(SEQUENCES * row));
    let tables = indices(&(0..SEQUENCES as u32 * 16).map(|i| i % 16).collect::<Vec<_>>());
    let lens = indices(&[16 * PAGE_SIZE as u32; SEQUENCES]);
    let offsets = indices(&(0..=SEQUENCES as u32).collect::<Vec<_>>());
    let first_batch =
        BatchView { block_tables: &tables, max_pages: 16, context_lens: &lens, query_offsets: &offsets };
    // The second's last page is the last of its pool.
    let mut pool = random(4 * page);
    let (table, len, offset) =
        (indices(&[2, 0, 1, 3]), indices(&[3 * PAGE_SIZE as u32 + 17]), indices(&[0, 1]));
    let batch = BatchView { block_tables: &table, max_pages: 4, context_lens: &len, query_offsets: &offset };

    let mut output = zeros::<bf16>(stream, row, "output").unwrap();
    let mut log_sum_exp = zeros::<f32>(stream, shape.query_heads, "log-sum-exp").unwrap();
    let mut run = |settled: bool, pause: bool| {
        let plan = plan(settled);
        let (mut first, mut second) = (plan.workspace(stream).unwrap(), plan.workspace(stream).unwrap());
        let poison = vec![bf16::NAN; page];
        stream.memcpy_htod(&poison, &mut pool.slice_mut(3 * page..)).unwrap();
        fn pages<'a, P: DevicePtr<bf16>>(
            layout: KvLayout,
            pool: &'a P,
            scales: &'a CudaSlice<f32>,
        ) -> KvPages<&'a P, &'a CudaSlice<f32>> {
            KvPages { layout, pool, key_scales: scales, value_scales: scales }
        }
        let none = None::<&mut CudaSlice<f32>>;
        // SAFETY: the tables name pages of the pools, the last offsets are the tokens, and nothing but the second's last page
        // and its query is written between the launches.
        unsafe {
            let written = &mut pool.slice_mut(3 * page..);
            let first_pages = pages(layout, &first_pool, &ones);
            plan.launch(stream, &queries, &first_pages, &first_batch, 1, &mut first, written, none).unwrap();
            if pause {
                stream.synchronize().unwrap();
            }
            let query = pool.slice(3 * page..3 * page + row);
            let second_pages = pages(layout, &pool, &ones);
            let sums = Some(&mut log_sum_exp);
            plan.launch(stream, &query, &second_pages, &batch, 1, &mut second, &mut output, sums).unwrap();
        }
        bits(&(download(stream, &output).unwrap(), download(stream, &log_sum_exp).unwrap()))
    };
    let want = run(false, true);
    assert!(want.0.iter().all(|&x| bf16::from_bits(x).is_finite()));
    for _ in 0..if op_test::sanitized() { 2 } else { 20 } {
        assert!(run(true, false) == want, "pages were read before they were written");
    }
}
