// Entry points of activation.cuh and activation_quantize.cuh: `slices` blocks a token, threads a multiple of 32 with up to 32
// features each (64 in gelu_rows_quantize). The quantizing ones are launched in clusters of `slices`.
#include "activation_quantize.cuh"

// 640 threads twice are 48 registers each, 576 are 56: five blocks of 224 to a multiprocessor, of which some load, some compute,
// some wait for their cluster. Longer rows are taken by blocks of 512. ptxas would have `identity` spill there.
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

ENTRY(swiglu, (512), (576, 2))
ENTRY(gelu, (512), (640, 2))
ENTRY(silu, (512), (640, 2))
ENTRY(identity, (512, 1), (512, 2))

extern "C" __global__ void __launch_bounds__(512, 2)
    gelu_rows_quantize(const uint16_t* input, uint32_t features, uint32_t slices, uint32_t tokens, uint8_t* codes, float* scales,
                       float* group_sums, uint32_t group_lanes) {
    layers::gelu_rows({input, nullptr, features, slices}, tokens, codes, scales, group_sums, group_lanes);
}
