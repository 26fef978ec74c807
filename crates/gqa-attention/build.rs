//! Compiles the kernels.

fn main() {
    // Variants for wide groups and for many workers are at the limit of their registers; how many workers each has was
    // chosen by time on an H200.
    #[cfg(feature = "cuda")]
    {
        nvcc_build::compile_allowing_spills(&["kernels/decode_sm90.cu"], 256);
        nvcc_build::compile(&["kernels/prefill_sm90.cu"]);
    }
}
