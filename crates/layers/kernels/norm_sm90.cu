// Entry points of norm.cuh: one block a token, threads a multiple of 32 with up to 32 features each. The number in a name
// is the number of deltas; a number known at compile time keeps the loads free of branches and so in flight together.
#include "norm.cuh"

#define PARAMETERS                                                                                              \
    uint16_t *residual, const uint16_t *delta0, const uint16_t *delta1, const float *weight, const float *bias, \
        uint32_t features, float epsilon
#define ENTRY(NAME, CENTERED, DELTAS)                                                                             \
    extern "C" __global__ void __launch_bounds__(1024) NAME##_##DELTAS(PARAMETERS, uint16_t* output) {            \
        layers::norm<CENTERED, DELTAS>({residual, delta0, delta1, weight, bias, features, epsilon}, output);      \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(1024) NAME##_quantize_##DELTAS(                                  \
        PARAMETERS, uint8_t* codes, float* scales, float* group_sums, uint32_t group_lanes) {                     \
        layers::norm_quantize<CENTERED, DELTAS>({residual, delta0, delta1, weight, bias, features, epsilon}, codes, \
                                                scales, group_sums, group_lanes);                                 \
    }

ENTRY(rms_norm, false, 0)
ENTRY(rms_norm, false, 1)
ENTRY(rms_norm, false, 2)
ENTRY(layer_norm, true, 0)
ENTRY(layer_norm, true, 1)
ENTRY(layer_norm, true, 2)
