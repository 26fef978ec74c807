//! The allocator and its tables against a naive model: a million random operations, and what a cache of this kind must do in
//! plain examples.

// Helpers beside the tests.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "allocator/model.rs"]
mod model;

use kv_cache::{AllocatorError, BlockAllocator, BlockTable, CopyPage, Direction};
use model::{Seen, random_operations};

#[test]
fn a_million_random_operations_match_the_model() {
    let mut total = [0; 10];
    for seed in 0..100 {
        let run = std::panic::catch_unwind(|| random_operations(seed, 10_000));
        assert!(run.is_ok(), "seed {seed}");
        let counts = run.unwrap().counts();
        total.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    println!("{total:?} as in {:?}", Seen::default());
    assert!(total.into_iter().all(|count| count > 1000), "{total:?}");
}

/// A table over the given tokens.
fn filled(allocator: &mut BlockAllocator, salt: u128, tokens: &[u32]) -> BlockTable {
    let mut table = BlockTable::with_prefix(allocator, salt, tokens);
    table.append_tokens(allocator, tokens.len() - table.tokens()).unwrap();
    table.publish(allocator, tokens).unwrap();
    table
}

#[test]
fn a_prompt_starts_with_the_pages_of_an_equal_one() {
    let mut allocator = BlockAllocator::new(8).unwrap();
    let tokens: Vec<u32> = (0..200).collect();
    let mut first = filled(&mut allocator, 0, &tokens);
    // 200 tokens are three full pages; of 192, the last token is left to compute, so two pages are reused.
    let mut equal = BlockTable::with_prefix(&mut allocator, 0, &tokens[..192]);
    assert_eq!(equal.pages(), &first.pages()[..2]);
    assert_eq!(equal.tokens(), 128);
    // Another salt, another first token: nothing in common, though the second page's tokens are equal.
    assert_eq!(BlockTable::with_prefix(&mut allocator, 1, &tokens).tokens(), 0);
    let mut other = tokens.clone();
    other[0] = 999;
    assert_eq!(BlockTable::with_prefix(&mut allocator, 0, &other).tokens(), 0);
    // What was given back can still be found.
    first.release(&mut allocator).unwrap();
    equal.release(&mut allocator).unwrap();
    assert_eq!((allocator.free_pages(), allocator.cached_pages()), (8, 3));
    assert_eq!(BlockTable::with_prefix(&mut allocator, 0, &tokens).tokens(), 192);
}

#[test]
fn what_was_used_last_is_evicted_last_and_a_chain_from_its_end() {
    let mut allocator = BlockAllocator::new(4).unwrap();
    let prompt = |first: u32| -> Vec<u32> { (first..first + 129).collect() };
    let mut old = filled(&mut allocator, 0, &prompt(0));
    old.release(&mut allocator).unwrap();
    // Two pages stay cached, one is free; the new prompt needs three.
    let mut new = filled(&mut allocator, 0, &prompt(1000));
    assert_eq!(BlockTable::with_prefix(&mut allocator, 0, &prompt(0)).tokens(), 64);
    new.release(&mut allocator).unwrap();
    assert_eq!(allocator.take_copies(), [], "nothing to copy to");
}

#[test]
fn what_is_evicted_comes_back_from_the_host() {
    let mut allocator = BlockAllocator::new(3).unwrap().with_host_pages(3).unwrap();
    let prompt = |first: u32| -> Vec<u32> { (first..first + 129).collect() };
    let mut old = filled(&mut allocator, 0, &prompt(0));
    let [first, second, third] = old.pages() else { panic!("three pages of 129 tokens") };
    let (first, second, _) = (*first, *second, *third);
    old.release(&mut allocator).unwrap();
    let mut new = filled(&mut allocator, 0, &prompt(1000));
    // From the end of the chain, to the end of the host's pool: neighbours stay neighbours.
    let out = |from, to| CopyPage { from, to, direction: Direction::ToHost };
    assert_eq!(allocator.take_copies(), [out(second, 2), out(first, 1)]);
    assert_eq!((allocator.cached_pages(), allocator.host_cached_pages()), (0, 2));
    new.release(&mut allocator).unwrap();

    // Its pages are made room for: the new prompt's go out in their turn, the old one's stay on the host as well.
    let mut again = BlockTable::with_prefix(&mut allocator, 0, &prompt(0));
    assert_eq!(again.tokens(), 128);
    let copies = allocator.take_copies();
    let back = |from, to| CopyPage { from, to, direction: Direction::ToDevice };
    let pages = again.pages();
    assert_eq!(copies[0], back(1, pages[0]), "the third page was free");
    let evicted = pages[1];
    assert_eq!(copies[1..], [out(evicted, 0), back(2, evicted)]);
    again.release(&mut allocator).unwrap();
    // Without a place that is not being read the page that has to go is not kept.
    allocator.forget_published();
    assert_eq!((allocator.free_pages(), allocator.cached_pages(), allocator.host_cached_pages()), (3, 0, 0));
    assert_eq!(BlockTable::with_prefix(&mut allocator, 0, &prompt(0)).tokens(), 0);
}

/// A prefix is restored as far as there are pages, and the rest stays where it is.
#[test]
fn a_full_device_cuts_what_is_found() {
    let mut allocator = BlockAllocator::new(4).unwrap().with_host_pages(4).unwrap();
    let prompt: Vec<u32> = (0..257).collect();
    filled(&mut allocator, 0, &prompt[..256]).release(&mut allocator).unwrap();
    let mut held = vec![];
    allocator.allocate_many(2, &mut held).unwrap();
    // The last two pages of the chain went out.
    assert_eq!((allocator.cached_pages(), allocator.host_cached_pages()), (2, 2));
    let mut table = BlockTable::with_prefix(&mut allocator, 0, &prompt);
    assert_eq!((table.tokens(), allocator.free_pages()), (128, 0));
    table.release(&mut allocator).unwrap();
    allocator.release(held[0]).unwrap();
    let mut table = BlockTable::with_prefix(&mut allocator, 0, &prompt);
    assert_eq!(table.tokens(), 192);
    assert_eq!(BlockTable::held_prefix(&allocator, 0, &prompt), 3);
    table.release(&mut allocator).unwrap();
}

#[test]
fn errors_say_what_is_wrong() {
    let mut allocator = BlockAllocator::new(2).unwrap();
    let page = allocator.allocate().unwrap();
    let text = |error: AllocatorError| error.to_string();
    let too_many = BlockAllocator::new(1 << 32).unwrap_err();
    assert_eq!(text(too_many), "block allocator: pages: expected at most 4294967295, got 4294967296");
    let refused = allocator.allocate_many(2, &mut vec![]).unwrap_err();
    assert_eq!(text(refused), "block allocator: 2 pages requested, 1 free of 2");
    assert_eq!(text(allocator.share(7).unwrap_err()), "block allocator: page 7 of a pool of 2");
    allocator.release(page).unwrap();
    let twice = allocator.release(page).unwrap_err();
    assert_eq!(text(twice), format!("block allocator: page {page} is not held by anybody"));

    let mut table = BlockTable::new();
    table.append_tokens(&mut allocator, 64).unwrap();
    let overflow = table.append_tokens(&mut allocator, usize::MAX).unwrap_err();
    let expected = format!("block table: 64 tokens in the cache and {} more overflow", usize::MAX);
    assert_eq!(text(overflow), expected);
    let longer = table.truncate(&mut allocator, 65).unwrap_err();
    assert_eq!(text(longer), "block table: expected at most 64 tokens, got 65");
    let more = table.publish(&mut allocator, &[0; 65]).unwrap_err();
    assert_eq!(text(more), "block table: expected at most 64 tokens, got 65");
    let host = BlockAllocator::new(1).unwrap().with_host_pages(1 << 32).unwrap_err();
    assert_eq!(text(host), "block allocator: pages: expected at most 4294967295, got 4294967296");
    let mut fork = table.fork(&mut allocator).unwrap();
    table.publish(&mut allocator, &[0; 64]).unwrap();
    let page = table.pages()[0];
    let contradiction = fork.publish(&mut allocator, &[1; 64]).unwrap_err();
    assert_eq!(text(contradiction), format!("block allocator: page {page} is published with other tokens"));
    // A table of another pool.
    let mut strange = BlockAllocator::new(2).unwrap();
    assert_eq!(table.fork(&mut strange), Err(AllocatorError::NotHeld { page }));
}
