//! Compiles the kernels where feature `cuda` is on.

fn main() {
    #[cfg(feature = "cuda")]
    nvcc_build::compile(&["kernels/pack_sm90.cu", "kernels/w4a16_sm90.cu", "kernels/w4a8_sm90.cu"]);
}
