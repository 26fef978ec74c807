//! A decode step of two sequences of different lengths, with Llama's grouping: 8 query heads on 2 KV heads.

use device::{BatchView, KvLayout, KvPages, PAGE_SIZE, Result};
use gqa_attention::{Attention, AttentionOptions, AttentionShape};

fn main() -> Result<()> {
    let shape = AttentionShape { query_heads: 8, kv_heads: 2, head_dim: 64 };
    let layout = KvLayout::new(shape.kv_heads, shape.head_dim)?;
    let (context_lens, block_tables) = ([70, 3], [2, 0, 1, 0]);

    // Keys are unit vectors of dim `position`, values are the position itself.
    let mut pool = vec![0f32; 3 * layout.page_elements()];
    for (sequence, &context) in context_lens.iter().enumerate() {
        for position in 0..context as usize {
            let page = block_tables[2 * sequence + position / PAGE_SIZE] as usize;
            for head in 0..shape.kv_heads {
                pool[layout.key::<f32>(page, head, position % PAGE_SIZE, position % shape.head_dim)] = 1.0;
                for dim in 0..shape.head_dim {
                    pool[layout.value::<f32>(page, head, position % PAGE_SIZE, dim)] = position as f32;
                }
            }
        }
    }
    let ones = [1.0; 2];
    let pages = KvPages { layout, pool: &pool[..], key_scales: &ones[..], value_scales: &ones[..] };
    let batch = BatchView {
        block_tables: &block_tables[..],
        max_pages: 2,
        context_lens: &context_lens[..],
        query_offsets: &[0, 1, 2][..],
    };

    // Every query looks along dim 1: for position 1, and for 65 where there is one.
    let mut queries = vec![0f32; 2 * shape.query_heads * shape.head_dim];
    queries.iter_mut().skip(1).step_by(shape.head_dim).for_each(|q| *q = 200.0);
    let mut output = vec![0f32; queries.len()];
    let attention = Attention::new(shape, AttentionOptions::default())?;
    attention.reference(&queries, &pages, &batch, &mut output, None)?;
    for (sequence, row) in output.chunks(shape.query_heads * shape.head_dim).enumerate() {
        println!("sequence {sequence} of {:2} tokens reads {:.3}", context_lens[sequence], row[0]);
    }
    Ok(())
}
