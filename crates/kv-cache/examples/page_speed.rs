//! How fast pages of large models go to host memory and come back, on the first GPU.
//!
//!     cargo run --release -p kv-cache --features cuda --example page-speed

use device::gpu::{Event, Gpu, Pinned, zeros};
use device::{E4m3, KvLayout};
use kv_cache::{CopyPage, CopyPages, Direction};
use std::time::{Duration, Instant};

const LAYERS: usize = 80;
/// Pages of each pool.
const PAGES: usize = 64;

/// The copies of `pages` pages, which are neighbours on both sides or on neither.
fn copies(pages: usize, neighbours: bool, direction: Direction) -> Vec<CopyPage> {
    let place = |index: usize| if neighbours { index } else { index * 37 % PAGES } as u32;
    (0..pages as u32).map(|index| CopyPage { from: place(index as usize), to: index, direction }).collect()
}

fn main() -> device::Result<()> {
    let gpu = Gpu::open(0)?;
    let (stream, start, end) = (gpu.stream(), Event::new(gpu.context())?, Event::new(gpu.context())?);
    println!("{}, {LAYERS} layers, e4m3 pages of 64 tokens", gpu.info().name);
    println!("| pages | of | direction | MiB | ms | GB/s | host, ms |\n|---|---|---|---|---|---|---|");
    for (model, kv_heads, head_dim) in [("Llama-70B", 8, 128), ("Falcon-180B", 8, 64)] {
        let layout = KvLayout::new(kv_heads, head_dim)?;
        let elements = PAGES * layout.page_elements();
        let mut pools = Vec::new();
        for _ in 0..LAYERS {
            pools.push(zeros::<E4m3>(stream, elements, "pool")?);
        }
        let mut host = Pinned::zeros(gpu.context(), LAYERS * elements)?;
        for (pages, neighbours) in [(1, true), (16, true), (16, false)] {
            for direction in [Direction::ToHost, Direction::ToDevice] {
                let plan = CopyPages::new(layout, &copies(pages, neighbours, direction));
                let mut times: Vec<(Duration, Duration)> = Vec::new();
                for _ in 0..5 {
                    gpu.synchronize()?;
                    start.record(stream)?;
                    let called = Instant::now();
                    let mut views: Vec<_> = pools.iter_mut().map(|pool| pool.as_view_mut()).collect();
                    plan.launch(stream, &mut views, &mut host)?;
                    let returned = called.elapsed();
                    end.record(stream)?;
                    times.push((start.elapsed(&end)?, returned));
                }
                times.sort_unstable();
                let (device, host) = times[times.len() / 2];
                let bytes = (LAYERS * pages * layout.page_elements()) as f64;
                println!(
                    "| {pages}{} | {model} | {direction:?} | {:.0} | {:.2} | {:.1} | {:.2} |",
                    if neighbours { "" } else { ", scattered" },
                    bytes / f64::from(1 << 20),
                    device.as_secs_f64() * 1e3,
                    bytes / device.as_secs_f64() * 1e-9,
                    host.as_secs_f64() * 1e3,
                );
            }
        }
    }
    Ok(())
}
