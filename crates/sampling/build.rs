//! Compiles the kernels where feature `cuda` is on.

fn main() {
    #[cfg(feature = "cuda")]
    nvcc_build::compile(&["kernels/argmax_sm90.cu", "kernels/sample_sm90.cu"]);
}
