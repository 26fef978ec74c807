//! Compiles the kernels.

fn main() {
    #[cfg(feature = "cuda")]
    nvcc_build::compile(&["kernels/rope_append_sm90.cu"]);
}
