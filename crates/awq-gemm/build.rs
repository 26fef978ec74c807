//! Compiles the kernels where feature `cuda` is on.

fn main() {
    #[cfg(feature = "cuda")]
    {
        nvcc_build::compile(&[
            "kernels/pack_sm90.cu",
            "kernels/w4a16_sm90.cu",
            "kernels/w4a8_widened_sm90.cu",
        ]);
        // w4a8_g128_t128_f256 keeps 10 words of its place in the schedule in memory, read once a tile or window: its main loop takes
        // every register, and is faster than the one that leaves some.
        nvcc_build::compile_allowing_spills(&["kernels/w4a8_sm90.cu"], 48);
    }
}
