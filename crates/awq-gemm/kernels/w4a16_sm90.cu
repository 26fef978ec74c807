// The W4A16 variants: one entry point each, named w4a16_<type>_g<group_size>_t<tokens>_f<features of a tile>.
#include "w4a16.cuh"

#define W4A16_OF(NAME, ...)                                                                                           \
    extern "C" __global__ void __launch_bounds__(w4a16::Variant<__VA_ARGS__>::kThreads, 1)                            \
        NAME(const __grid_constant__ CUtensorMap x, const __grid_constant__ w4a16::Problem problem) {                 \
        w4a16::run<w4a16::Variant<__VA_ARGS__>>(&x, problem);                                                         \
    }
#define W4A16(NAME, ...)                          \
    W4A16_OF(w4a16_bf16_##NAME, w4a16::Bf16, __VA_ARGS__) \
    W4A16_OF(w4a16_f16_##NAME, w4a16::F16, __VA_ARGS__)

//    name         group  tokens  warpgroups  blocks  slice  stages  piece  fragment sets
W4A16(g128_t8_f256,  128,      8,          4,      1,     8,     12,     4,             2)
W4A16(g128_t8_f512,  128,      8,          4,      2,     8,      6,     4,             2)
W4A16(g128_t16_f256, 128,     16,          4,      1,    16,     10,     4,             2)
W4A16(g128_t16_f512, 128,     16,          4,      2,    16,      5,     4,             2)
W4A16(g128_t32_f256, 128,     32,          4,      1,    32,      8,     4,             2)
W4A16(g128_t32_f512, 128,     32,          4,      2,    32,      5,     4,             1)
W4A16(g128_t64_f256, 128,     64,          2,      2,    64,      6,     4,             2)
W4A16(g128_t64_f512, 128,     64,          2,      4,    64,      4,     4,             2)
W4A16(g128_t128_f256, 128,   128,          2,      2,    64,      4,     4,             2)
W4A16(g64_t8_f256,    64,      8,          4,      1,     8,     11,     4,             1)
W4A16(g64_t16_f256,   64,     16,          4,      1,    16,     10,     4,             1)
W4A16(g64_t32_f256,   64,     32,          4,      1,    32,      8,     4,             1)
W4A16(g64_t64_f256,   64,     64,          2,      2,    64,      6,     4,             1)
W4A16(g64_t128_f256,  64,    128,          2,      2,    64,      4,     4,             1)
