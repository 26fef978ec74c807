//! A tiny checkpoint cut at every byte and with every bit of its header flipped: an error or an equal parse, no panic,
//! and never more memory than twice the file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use checkpoint::{Checkpoint, Files, Result, Tensors};
use common::{Folder, Piece, leak, llama_pieces, raw, safetensors};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

/// Counts the bytes that the current thread holds, and the most it held.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(allocated: usize, freed: usize) {
    // Wrapping: a thread may free what another allocated.
    let held = HELD.get().wrapping_add(allocated).wrapping_sub(freed);
    HELD.set(held);
    if (held as isize) > (PEAK.get() as isize) {
        PEAK.set(held);
    }
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may both be there for a moment.
        count(size, 0);
        count(0, layout.size());
        // SAFETY: the caller's promises are handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` gives, and the most bytes it held beyond those held before.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let value = work();
    (value, PEAK.get() - before)
}

/// What a message takes: names of file and tensor, a shape.
const MESSAGE: usize = 512;

/// One file, in memory.
fn files(bytes: &'static [u8]) -> Files {
    Files::memory([("model.safetensors", bytes)])
}

/// Opens and reads every tensor of the tiny Llama, each into the same buffer, as loading does.
fn load(files: &Files, pieces: &[Piece], buffer: &mut [u8]) -> Result<bool> {
    let tensors = Tensors::open(files)?;
    let mut equal = tensors.names().count() == pieces.len();
    for piece in pieces {
        let info = tensors.get(&piece.name)?;
        let buffer = &mut buffer[..piece.bytes.len()];
        tensors.read_into(&piece.name, 0, buffer)?;
        let bytes = info.bytes == piece.bytes.len() as u64 && buffer == piece.bytes;
        equal &= bytes && info.shape == piece.shape && info.dtype.name() == piece.dtype;
    }
    Ok(equal)
}

#[test]
fn cut_at_every_byte() {
    let pieces = llama_pieces();
    let whole = leak(safetensors(&pieces));
    let mut buffer = vec![0; whole.len()];
    let mut worst = 0.0f64;
    for length in 0..=whole.len() {
        let files = files(&whole[..length]);
        let (loaded, peak) = measured(|| load(&files, &pieces, &mut buffer));
        assert_eq!(loaded.ok(), (length == whole.len()).then_some(true), "cut to {length} bytes");
        assert!(peak <= 2 * length + MESSAGE, "cut to {length} bytes: {peak} bytes held");
        worst = worst.max(peak.saturating_sub(MESSAGE) as f64 / length.max(1) as f64);
    }
    println!("{} cuts, at most {worst:.2} times the file", whole.len() + 1);
}

#[test]
fn every_bit_of_the_header_flipped() {
    let pieces = llama_pieces();
    let whole = safetensors(&pieces);
    let data = whole.len() - pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, &whole).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let files = Files::folder(folder.path()).unwrap();
    let mut buffer = vec![0; whole.len()];
    let (mut refused, mut equal) = (0, 0);
    for bit in 0..8 * data {
        let at = bit / 8;
        file.write_all_at(&[whole[at] ^ (1 << (bit % 8))], at as u64).unwrap();
        let (loaded, peak) = measured(|| load(&files, &pieces, &mut buffer));
        assert!(peak <= 2 * whole.len() + MESSAGE, "bit {bit}: {peak} bytes held");
        match loaded {
            Err(error) => {
                common::assert_one_line(&error);
                refused += 1;
            }
            // Metadata is not used, and spaces may be other spaces.
            Ok(true) => equal += 1,
            Ok(false) => {
                panic!("bit {bit} of {:?}: another parse", String::from_utf8_lossy(&whole[8..data]))
            }
        }
        file.write_all_at(&whole[at..=at], at as u64).unwrap();
    }
    println!("{refused} refused, {equal} equal");
    assert!(refused > 9 * equal, "{refused} refused, {equal} equal");
}

#[test]
fn a_whole_checkpoint_cut_in_any_file() {
    let folder =
        Folder::llama().with("generation_config.json", r#"{"eos_token_id": [2], "temperature": 0.5}"#);
    let total: usize = folder.0.values().map(Vec::len).sum();
    let shapes = [("self_attn.q_proj", 16, 16), ("mlp.down_proj", 32, 16), ("self_attn.k_proj", 16, 8)];
    let whole: BTreeMap<&str, &'static [u8]> =
        folder.0.iter().map(|(name, bytes)| (name.as_str(), leak(bytes.clone()))).collect();
    for (&name, bytes) in &whole {
        for length in 0..=bytes.len() {
            let mut files = whole.clone();
            files.insert(name, &bytes[..length]);
            let files = Files::memory(files);
            let (result, peak) = measured(|| {
                let checkpoint = Checkpoint::from_files(files)?;
                for (part, in_features, out_features) in shapes {
                    checkpoint.linear(&format!("model.layers.0.{part}"), in_features, out_features)?;
                }
                Ok::<_, checkpoint::Error>(checkpoint.config)
            });
            assert!(peak <= 2 * total, "{name} cut to {length} bytes: {peak} bytes held of {total}");
            assert_eq!(result.is_ok(), length == bytes.len(), "{name} cut to {length} bytes");
        }
    }
}

/// Headers made to cost as much as they can: the shortest entries there are.
#[test]
fn hostile_headers_stay_within_twice_their_size() {
    let many = |count: usize, entry: &dyn Fn(usize) -> String| {
        let entries: Vec<_> = (0..count).map(entry).collect();
        raw(&format!("{{{}}}", entries.join(",")), &[])
    };
    let empty = |name: usize| format!(r#""{name:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let metadata = (0..20_000).map(|i| format!(r#""{i}":"""#)).collect::<Vec<_>>().join(",");
    let cases = [
        ("empty tensors", many(20_000, &empty)),
        ("the same name", many(20_000, &|_| empty(0))),
        ("objects of nothing", many(20_000, &|_| r#""":{}"#.to_owned())),
        ("braces", vec![b'{'; 100_000]),
        ("braces in a header", raw(&"{".repeat(100_000), &[])),
        ("braces in strings", raw(&format!(r#"{{"__metadata__":{{"a":"{}"}}}}"#, "{".repeat(100_000)), &[])),
        ("metadata", raw(&format!(r#"{{"__metadata__":{{{metadata}}}}}"#), &[])),
        ("a long shape", raw(&format!(r#"{{"a":{{"shape":[{}1]}}}}"#, "1,".repeat(50_000)), &[])),
        ("long offsets", raw(&format!(r#"{{"a":{{"data_offsets":[{}1]}}}}"#, "1,".repeat(50_000)), &[])),
        ("a long name", raw(&format!(r#"{{"{}":1}}"#, "n".repeat(100_000)), &[])),
        ("a long dtype", raw(&format!(r#"{{"a":{{"dtype":"{}"}}}}"#, "F".repeat(100_000)), &[])),
        ("a long number", raw(&format!(r#"{{"a":{{"shape":[{}]}}}}"#, "9".repeat(100_000)), &[])),
        ("escapes", raw(&format!(r#"{{"{}":1}}"#, "\\u0061".repeat(20_000)), &[])),
    ];
    for (case, file) in cases {
        let files = files(leak(file.clone()));
        let (_, peak) = measured(|| Tensors::open(&files).map(|tensors| tensors.names().count()));
        assert!(peak <= 2 * file.len() + MESSAGE, "{case}: {peak} bytes held for {}", file.len());
    }
}

/// A header that claims more than the file has.
#[test]
fn sizes_are_proved_before_they_are_allocated() {
    let huge = r#"{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}"#;
    for file in [raw(huge, &[0; 16]), [&u64::MAX.to_le_bytes()[..], &[b'{'; 32]].concat()] {
        let files = files(leak(file.clone()));
        let (result, peak) = measured(|| Tensors::open(&files).map(|_| ()));
        assert!(result.is_err() && peak <= 2 * file.len() + MESSAGE, "{peak}");
    }
}
