//! Two prompts with a common beginning share its pages; a fork copies the page it writes into; what is evicted goes to the host
//! and comes back.

use kv_cache::{AllocatorError, BlockAllocator, BlockTable};

fn main() -> Result<(), AllocatorError> {
    let mut allocator = BlockAllocator::new(16)?.with_host_pages(16)?;
    let prompt: Vec<u32> = (0..200).collect();

    let mut first = BlockTable::with_prefix(&mut allocator, 0, &prompt);
    first.append_tokens(&mut allocator, prompt.len() - first.tokens())?;
    // .. the step that writes keys and values runs here ..
    first.publish(&mut allocator, &prompt)?;
    println!("first   pages {:?}, {} free", first.pages(), allocator.free_pages());

    let mut second = BlockTable::with_prefix(&mut allocator, 0, &prompt);
    println!("second  starts with {} tokens in pages {:?}", second.tokens(), second.pages());

    let mut fork = first.fork(&mut allocator)?;
    fork.append_tokens(&mut allocator, 1)?;
    println!("fork    pages {:?}, after {:?}", fork.pages(), allocator.take_copies());

    for table in [&mut first, &mut second, &mut fork] {
        table.release(&mut allocator)?;
    }
    println!("end     {} free, {} of them cached prefixes", allocator.free_pages(), allocator.cached_pages());

    let mut large = BlockTable::new();
    large.append_tokens(&mut allocator, 16 * 64)?;
    println!("large   evicts them: {:?}", allocator.take_copies());
    large.release(&mut allocator)?;
    let mut third = BlockTable::with_prefix(&mut allocator, 0, &prompt);
    println!("third   brings {} tokens back: {:?}", third.tokens(), allocator.take_copies());
    third.release(&mut allocator)?;
    Ok(())
}
