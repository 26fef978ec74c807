//! Memory, launches, tensor maps, graphs and events on a GPU.
#![cfg(feature = "cuda")]

use cudarc::driver::{DevicePtr, DeviceSlice};
use device::gpu::{
    Args, Cubin, Event, Gpu, Graph, Kernel, Launch, Pinned, Pool, Pooled, Swizzle, TensorMap, Tile,
    check_aligned, download, multiprocessors, upload, zeros,
};
use device::{Check, Error};
use std::time::Duration;

static CUBIN: Cubin = Cubin::new("kernels.ptx", concat!(include_str!("kernels.ptx"), "\0").as_bytes());
static SCALE: Kernel = Kernel::new(&CUBIN, "scale");
static RANKS: Kernel = Kernel::new(&CUBIN, "ranks");
static TILE: Kernel = Kernel::new(&CUBIN, "tile");
static ABSENT: Kernel = Kernel::new(&CUBIN, "absent");

#[test]
#[ignore = "needs an H200"]
fn an_opened_gpu_is_the_one_that_probing_found() {
    let gpu = Gpu::open(0).unwrap();
    assert_eq!(Ok(gpu.info()), device::gpu::probe().gpus.as_ref().map(|gpus| &gpus[0]));
    assert_eq!(multiprocessors(gpu.stream()), Ok(gpu.info().multiprocessors));
    let memory = gpu.memory().unwrap();
    assert!(memory.free > 0 && memory.free <= memory.total);
}

#[test]
#[ignore = "needs an H200"]
fn copies_return_what_was_sent() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let host: Vec<u32> = (0..100_000).collect();
    let device = upload(stream, &host, "numbers").unwrap();
    assert_eq!(download(stream, &device).unwrap(), host);
    assert_eq!(download(stream, &device.slice(10..20)).unwrap(), host[10..20]);
    assert_eq!(download(stream, &zeros::<u32>(stream, 1000, "zeros").unwrap()).unwrap(), [0; 1000]);
    assert_eq!(download(stream, &zeros::<u32>(stream, 0, "nothing").unwrap()).unwrap(), []);

    let check = Check("op");
    assert!(check_aligned(check, "x", &device, 16, stream).is_ok());
    let got = check_aligned(check, "x", &device.slice(1..), 16, stream).unwrap_err().to_string();
    assert!(got.starts_with("op: x: expected an address aligned to 16 bytes, got 0x"), "{got}");
}

#[test]
#[ignore = "needs an H200"]
fn pinned_memory_waits_for_its_copies() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    const LEN: usize = 1 << 22;
    let mut device = zeros::<u32>(stream, LEN, "numbers").unwrap();
    let (mut there, mut back) = (
        Pinned::<u32>::zeros(gpu.context(), LEN).unwrap(),
        Pinned::<u32>::zeros(gpu.context(), LEN).unwrap(),
    );
    // The buffer is written again as soon as it may be: were it written too early, an older round would see it.
    for round in 0..20u32 {
        there.as_mut_slice().unwrap().fill(round + 1);
        there.upload(stream, &mut device).unwrap();
        back.download(stream, &device).unwrap();
        assert!(back.as_slice().unwrap().iter().all(|&x| x == round + 1), "round {round}");
    }
    let mut small = Pinned::<u32>::zeros(gpu.context(), 3).unwrap();
    let want = format!("pinned: device: expected at most 3 elements, got {LEN}");
    assert_eq!(small.upload(stream, &mut device).unwrap_err().to_string(), want);
    assert_eq!(small.download(stream, &device).unwrap_err().to_string(), want);
}

#[test]
#[ignore = "needs an H200"]
fn running_out_of_memory_names_the_buffer_and_leaves_the_gpu_usable() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let total = gpu.info().total_memory;
    let error = zeros::<u8>(stream, 2 * total as usize, "the moon").unwrap_err();
    let Error::OutOfMemory { what, requested, free, total: of } = error else { panic!("{error}") };
    assert_eq!((what.as_str(), requested), ("the moon", 2 * total));
    assert!(free > 0 && free <= of && of <= total);
    assert!(matches!(zeros::<u64>(stream, usize::MAX, "more"), Err(Error::OutOfMemory { .. })));
    // What is freed serves later allocations of other sizes: together more than there is.
    let most = gpu.memory().unwrap().free as usize / 2;
    for round in 1..=3 {
        zeros::<u8>(stream, most - (round << 24), "a large piece").unwrap();
    }
    assert_eq!(download(stream, &zeros::<u32>(stream, 4, "small").unwrap()).unwrap(), [0; 4]);
}

#[test]
#[ignore = "needs an H200"]
fn arguments_arrive_in_their_places() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let (x, bias) = (upload(stream, &x, "x").unwrap(), upload(stream, &vec![0.5f32; 1000], "bias").unwrap());
    let mut y = zeros::<f32>(stream, 1000, "y").unwrap();
    let shift = [0.25f32, 9.0, 9.0, 9.0];
    for bias in [None, Some(&bias)] {
        let args = Args::new(stream).input(&x).output(&mut y).value(999u32).value(2.0f32);
        let args = args.optional_input(bias).structure(&shift);
        // SAFETY: the parameters of `scale`; it touches the first 999 elements.
        unsafe { SCALE.launch(stream, Launch::grid(8).block(128), args) }.unwrap();
        let got = download(stream, &y).unwrap();
        let want = |i: usize| if i < 999 { 2.0 * i as f32 + bias.map_or(0.25, |_| 0.75) } else { 0.0 };
        assert!((0..1000).all(|i| got[i] == want(i)));
    }
}

#[test]
#[ignore = "needs an H200"]
fn launches_that_do_not_fit_the_kernel_are_refused() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let mut out = zeros::<u32>(stream, 8, "out").unwrap();
    // SAFETY: refused before anything runs, all of them.
    let launch = |kernel: &Kernel, launch, args| unsafe { kernel.launch(stream, launch, args) };
    let error = launch(&RANKS, Launch::grid(1), Args::new(stream)).unwrap_err();
    assert_eq!(error.to_string(), "ranks: args: expected parameters of [8] bytes, got []");
    let error = launch(&RANKS, Launch::grid(1), Args::new(stream).value(1u32)).unwrap_err();
    assert_eq!(error.to_string(), "ranks: args: expected parameters of [8] bytes, got [4]");
    let error =
        launch(&RANKS, Launch::grid(1).shared(1 << 20), Args::new(stream).output(&mut out)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ranks failed: 1048576 bytes of dynamic shared memory are more than this GPU gives a block"
    );
    let error = launch(&ABSENT, Launch::grid(1), Args::new(stream)).unwrap_err();
    assert!(
        error.to_string().starts_with("cuModuleGetFunction of absent in kernels.ptx failed: "),
        "{error}"
    );
    assert_eq!(launch(&ABSENT, Launch::grid(0), Args::new(stream)), Ok(()));
    assert_eq!(download(stream, &out).unwrap(), [0; 8]);
}

#[test]
#[ignore = "needs an H200"]
fn clusters_shared_memory_and_overlapping_launches() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    for cluster in [1, 2, 4, 8] {
        for shared in [16, 48 << 10, 200 << 10] {
            let mut out = zeros::<u32>(stream, 16, "out").unwrap();
            for _ in 0..3 {
                let launch = Launch::grid(16).block(64).shared(shared).cluster(cluster).overlapping();
                // SAFETY: the parameter of `ranks`, which writes one element a block.
                unsafe { RANKS.launch(stream, launch, Args::new(stream).output(&mut out)) }.unwrap();
            }
            let want: Vec<u32> = (0..16).map(|block| block % cluster * 1000 + block).collect();
            assert_eq!(download(stream, &out).unwrap(), want, "cluster {cluster}, shared {shared}");
        }
    }
    assert_eq!(RANKS.blocks_per_multiprocessor(stream, 1024, 100 << 10), Ok(2));
}

#[test]
#[ignore = "needs an H200"]
fn a_tile_is_the_box_of_the_tensor_with_zeros_outside() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let (columns, rows) = (20, 13);
    let tensor: Vec<f32> = (0..columns * rows).map(|i| i as f32 + 1.0).collect();
    let device = upload(stream, &tensor, "tensor").unwrap();
    let (dims, strides) = ([columns as u64, rows as u64], [columns as u64 * 4]);
    let tile = Tile { dims: &dims, strides: &strides, tile: &[8, 8], swizzle: Swizzle::None };
    let map = TensorMap::new(stream, &device, tile).unwrap();
    let mut out = zeros::<f32>(stream, 64, "out").unwrap();
    for (x, y) in [(0, 0), (4, 3), (16, 8), (-4, -2)] {
        let args = Args::new(stream).tensor_map(&map).output(&mut out).value(x).value(y);
        // SAFETY: the parameters of `tile`; the map's tensor is `device`.
        unsafe { TILE.launch(stream, Launch::grid(1), args) }.unwrap();
        let got = download(stream, &out).unwrap();
        for (i, got) in got.into_iter().enumerate() {
            let (column, row) = (x + (i % 8) as i32, y + (i / 8) as i32);
            let inside = (0..columns as i32).contains(&column) && (0..rows as i32).contains(&row);
            let want = if inside { tensor[row as usize * columns + column as usize] } else { 0.0 };
            assert_eq!(got, want, "[{i}] of the box at {x}, {y}");
        }
    }
    let error = TensorMap::new(stream, &device.slice(1..), tile).unwrap_err();
    assert_eq!(error.to_string(), "tensor_map: slice: expected at least 1040 bytes, got 1036");
}

#[test]
#[ignore = "needs an H200"]
fn a_graph_replays_and_a_failed_capture_leaves_the_stream_usable() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let x = upload(stream, &[1.0f32; 64], "x").unwrap();
    let mut y = zeros::<f32>(stream, 64, "y").unwrap();
    let shift = [1.0f32, 0.0, 0.0, 0.0];
    // y += x + 1, through the optional input.
    let mut step = || {
        let previous = y.slice(..);
        let address = previous.device_ptr(stream).0;
        let args = Args::new(stream).input(&x).output(&mut y).value(64u32).value(1.0f32).value(address);
        // SAFETY: the parameters of `scale`; y is read and written by the same thread.
        unsafe { SCALE.launch(stream, Launch::grid(1).block(64), args.structure(&shift)) }
    };
    step().unwrap();
    // SAFETY: x and y outlive the graph, and only this stream uses them.
    let graph = unsafe { Graph::capture(stream, &mut step) }.unwrap();
    for _ in 0..10 {
        graph.replay().unwrap();
    }
    assert_eq!(download(stream, &y).unwrap(), [22.0; 64]);

    // SAFETY: nothing is captured.
    let failed = unsafe { Graph::capture(stream, || Err(Error::NoGpu)) };
    assert_eq!(failed.unwrap_err(), Error::NoGpu);
    graph.replay().unwrap();
    assert_eq!(download(stream, &y).unwrap(), [24.0; 64]);
}

#[test]
#[ignore = "needs an H200"]
fn events_order_and_time() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let (start, end) = (Event::new(gpu.context()).unwrap(), Event::new(gpu.context()).unwrap());
    start.record(stream).unwrap();
    let large = zeros::<u8>(stream, 1 << 32, "four gigabytes").unwrap();
    end.record(stream).unwrap();
    let other = gpu.context().new_stream().unwrap();
    end.hold(&other).unwrap();
    other.synchronize().unwrap();
    // 4 GiB at the memory's speed take about a millisecond.
    let time = start.elapsed(&end).unwrap();
    assert!(time > Duration::from_micros(500), "{time:?}");
    drop(large);
}

#[test]
#[ignore = "needs an H200"]
fn pooled_buffers_come_back_and_none_is_allocated_in_a_capture() {
    let gpu = Gpu::open(0).unwrap();
    let stream = gpu.stream();
    let pool = Pool::new(stream);
    let address = |buffer: &Pooled<f32>| buffer.device_ptr(stream).0;
    let large = pool.take::<f32>(100_000, "large").unwrap();
    let small = pool.take::<f32>(1000, "small").unwrap();
    let (large_at, small_at) = (address(&large), address(&small));
    assert_eq!((large.len(), small.len(), pool.free_bytes()), (100_000, 1000, 0));
    drop((large, small));
    assert!(pool.free_bytes() >= 404_000);
    // The smallest that holds it, then the next larger one, then a new one.
    let again: Vec<_> = (0..3).map(|_| pool.take::<f32>(900, "again").unwrap()).collect();
    assert_eq!((address(&again[0]), address(&again[1])), (small_at, large_at));
    assert!(![small_at, large_at].contains(&address(&again[2])));
    drop(again);

    let mut buffer = pool.take::<f32>(1000, "buffer").unwrap();
    stream.memcpy_htod(&[1.0; 7], &mut buffer.prefix_mut(7).unwrap()).unwrap();
    assert_eq!(download(stream, &buffer.slice(6..8).unwrap()).unwrap()[0], 1.0);
    assert!(buffer.slice(999..1001).is_none() && buffer.prefix_mut(1001).is_none());
    drop(buffer);

    // SAFETY: nothing is captured that uses memory.
    let captured = unsafe {
        Graph::capture(stream, || {
            drop(pool.take::<f32>(1000, "known")?);
            pool.take::<f32>(1 << 20, "unknown").map(drop)
        })
    };
    let message = captured.unwrap_err().to_string();
    assert!(message.contains("no free buffer of 4194304 bytes for unknown"), "{message}");
    assert!(pool.take::<f32>(1 << 20, "unknown").is_ok());
    let error = pool.take::<f32>(1 << 45, "the sky").unwrap_err().to_string();
    assert!(error.contains("the sky"), "{error}");
}
