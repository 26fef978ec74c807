// The W4A8 variants: one entry point each, named w4a8_g<group_size>_t<tokens>[_b<feature blocks per warpgroup>].
#include "w4a8.cuh"

#define W4A8(NAME, TOKENS, BLOCKS, GROUP, STAGES, IN_FLIGHT)                                                          \
    extern "C" __global__ void __launch_bounds__(w4a8::kThreads, 1)                                                   \
        NAME(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap sums,                         \
             const __grid_constant__ w4a8::Problem problem) {                                                         \
        w4a8::run<w4a8::Variant<TOKENS, BLOCKS, GROUP, STAGES, IN_FLIGHT>>(&x, &sums, problem);                       \
    }

//   name               tokens  blocks  group  stages  in flight
W4A8(w4a8_g128_t8,           8,      2,   128,     12,         2)
W4A8(w4a8_g128_t16,         16,      2,   128,     11,         2)
W4A8(w4a8_g128_t32,         32,      2,   128,     10,         2)
W4A8(w4a8_g128_t64,         64,      2,   128,      9,         2)
W4A8(w4a8_g128_t64_b4,      64,      4,   128,      5,         1)
W4A8(w4a8_g128_t128,       128,      2,   128,      6,         1)
W4A8(w4a8_g64_t16,          16,      2,    64,     10,         2)
W4A8(w4a8_g64_t128,        128,      2,    64,      6,         1)
