//! Compiles the kernels where feature `cuda` is on.

fn main() {
    #[cfg(feature = "cuda")]
    nvcc_build::compile(&[
        "kernels/quantize_sm90.cu",
        "kernels/product_sm90.cu",
        "kernels/synthetic_sm90.cu",
    ]);
}
