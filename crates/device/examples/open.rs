//! Says what this machine offers, and opens its first GPU if there is one.

fn main() {
    let probe = device::gpu::probe();
    println!("built with CUDA: {}", probe.built_with_cuda);
    if let Some((major, minor)) = probe.driver_cuda_version {
        println!("driver: supports CUDA up to {major}.{minor}");
    }
    match probe.gpus {
        Ok(gpus) => gpus.iter().for_each(|gpu| println!("{gpu:?}")),
        Err(error) => println!("no GPU: {error}"),
    }
    #[cfg(feature = "cuda")]
    match device::gpu::Gpu::open(0).and_then(|gpu| gpu.memory()) {
        Ok(memory) => println!("opened; {} of {} bytes free", memory.free, memory.total),
        Err(error) => println!("not opened: {error}"),
    }
}
