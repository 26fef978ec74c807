//! Compiles the kernels that measure the rates of memory, where feature `cuda` is on.

fn main() {
    #[cfg(feature = "cuda")]
    nvcc_build::compile(&["kernels/memory_sm90.cu"]);
}
