//! Compiles the kernels.

fn main() {
    // Variants for wide groups are at the limit of their registers.
    #[cfg(feature = "cuda")]
    {
        nvcc_build::compile_allowing_spills(&["kernels/decode_sm90.cu"], 160);
        nvcc_build::compile(&["kernels/prefill_sm90.cu"]);
    }
}
