//! Compiles the kernels where feature `cuda` is on.

fn main() {
    #[cfg(feature = "cuda")]
    nvcc_build::compile(&[
        "kernels/norm_sm90.cu",
        "kernels/activation_sm90.cu",
        "kernels/elementwise_sm90.cu",
    ]);
}
