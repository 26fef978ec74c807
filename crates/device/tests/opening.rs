//! Opening a GPU where there may be none: typed errors, and `probe` saying the same.

use device::Error;
use device::gpu::{GpuInfo, probe};

#[test]
fn probing_never_fails_and_repeats_itself() {
    let first = probe();
    assert_eq!(first.built_with_cuda, cfg!(feature = "cuda"));
    assert_eq!(first, probe());
    match &first.gpus {
        Ok(gpus) => {
            assert!(!gpus.is_empty() && first.driver_cuda_version.is_some());
            assert!(gpus.iter().enumerate().all(|(i, gpu)| gpu.ordinal == i && gpu.total_memory > 0));
        }
        Err(Error::NoDriver | Error::BuiltWithoutCuda) => assert_eq!(first.driver_cuda_version, None),
        Err(Error::NoGpu | Error::Driver { .. }) => {}
        Err(other) => panic!("not an answer of the driver: {other}"),
    }
}

#[cfg(feature = "cuda")]
#[test]
fn opening_fails_as_probing_says() {
    use device::gpu::Gpu;
    match probe().gpus {
        Err(error) => assert_eq!(Gpu::open(0).unwrap_err(), error),
        Ok(gpus) => {
            let count = gpus.len();
            let want = format!("gpu: ordinal: expected below {count}, got {count}");
            assert_eq!(Gpu::open(count).unwrap_err().to_string(), want);
        }
    }
}

#[test]
fn only_hopper_is_supported() {
    let gpu = |name: &str, compute_capability| GpuInfo {
        ordinal: 0,
        name: name.to_owned(),
        compute_capability,
        multiprocessors: 132,
        total_memory: 1 << 37,
    };
    assert_eq!(gpu("NVIDIA H200", (9, 0)).check_supported(), Ok(()));
    for (name, version, text) in [("NVIDIA A100", (8, 0), "8.0"), ("NVIDIA B200", (10, 0), "10.0")] {
        let want = format!("{name} has compute capability {text}; the kernels need 9.0 (H100, H200)");
        assert_eq!(gpu(name, version).check_supported().unwrap_err().to_string(), want);
    }
}

#[test]
fn errors_say_what_to_do() {
    let memory = Error::OutOfMemory { what: "KV pages".into(), requested: 3, free: 2, total: 7 };
    let cases = [
        (Error::NoDriver, "no NVIDIA driver found (libcuda.so.1); install the driver or use the CPU backend"),
        (Error::BuiltWithoutCuda, "this binary was built without CUDA; build it with `--features cuda`"),
        (
            Error::NoCublasLt,
            "no cuBLASLt found (libcublasLt.so.13); install CUDA 13's, or add its folder to LD_LIBRARY_PATH",
        ),
        (memory, "out of GPU memory allocating KV pages: 3 bytes requested, 2 bytes free of 7"),
    ];
    for (error, want) in cases {
        assert_eq!(error.to_string(), want);
    }
}
