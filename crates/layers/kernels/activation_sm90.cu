// Entry points of activation.cuh: `slices` blocks a token, threads a multiple of 32 with up to 32 features each. The
// quantizing ones are launched in clusters of `slices`.
#include "activation.cuh"

// The bounds are threads, then blocks to a multiprocessor: with two, one computes while the other loads, stores, or waits for
// its cluster.
#define ENTRY(NAME, PLAIN, QUANTIZING)                                                                               \
    extern "C" __global__ void __launch_bounds__ PLAIN                                                               \
        NAME(const uint16_t* input, const float* multiplier, uint32_t features, uint32_t slices, uint16_t* output) { \
        layers::activate<layers::Activation::NAME>({input, multiplier, features, slices}, output);                   \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__ QUANTIZING NAME##_quantize(                                         \
        const uint16_t* input, const float* multiplier, uint32_t features, uint32_t slices, uint8_t* codes,          \
        float* scales, float* group_sums, uint32_t group_lanes) {                                                    \
        layers::activate_quantize<layers::Activation::NAME>({input, multiplier, features, slices}, codes, scales,    \
                                                            group_sums, group_lanes);                                \
    }

ENTRY(swiglu, (512), (512, 2))
ENTRY(gelu, (512), (512, 2))
// ptxas would hold these to 64 registers and spill a few of them.
ENTRY(silu, (512), (512, 1))
ENTRY(identity, (512, 1), (512, 2))
