//! Compiles the kernel that measures the reading rate, where feature `cuda` is on.

fn main() {
    #[cfg(feature = "cuda")]
    nvcc_build::compile(&["kernels/read_sm90.cu"]);
}
