// Entry points of activation.cuh: `slices` blocks a token, threads a multiple of 32 with up to 32 features each. The
// quantizing ones are launched in clusters of `slices`.
#include "activation.cuh"

// `...` bounds the plain kernel beyond its 512 threads.
#define ENTRY(NAME, ...)                                                                                             \
    extern "C" __global__ void __launch_bounds__(512 __VA_ARGS__)                                                    \
        NAME(const uint16_t* input, const float* multiplier, uint32_t features, uint32_t slices, uint16_t* output) { \
        layers::activate<layers::Activation::NAME>({input, multiplier, features, slices}, output);                   \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(512) NAME##_quantize(                                               \
        const uint16_t* input, const float* multiplier, uint32_t features, uint32_t slices, uint8_t* codes,          \
        float* scales, float* group_sums, uint32_t group_lanes) {                                                    \
        layers::activate_quantize<layers::Activation::NAME>({input, multiplier, features, slices}, codes, scales,    \
                                                            group_sums, group_lanes);                                \
    }

ENTRY(swiglu)
ENTRY(gelu)
ENTRY(silu)
// ptxas would hold it to 64 registers and spill one of them.
ENTRY(identity, , 1)
