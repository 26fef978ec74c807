// The W4A8 variants: one entry point each, named w4a8_g<group_size>_t<tokens>_f<features of a block's tile>.
#include "w4a8.cuh"

#define W4A8(NAME, ...)                                                                                               \
    extern "C" __global__ void __launch_bounds__(w4a8::Variant<__VA_ARGS__>::kThreads, 1)                             \
        NAME(const __grid_constant__ CUtensorMap x, const __grid_constant__ w4a8::Problem problem) {                  \
        w4a8::run<w4a8::Variant<__VA_ARGS__>>(&x, problem);                                                           \
    }

// Of these, two blocks fit on a multiprocessor: while the last blocks of one product meet, the next one's have their first weights on
// the way. Two blocks of one product must not share a multiprocessor, though, for another would stand idle. So launches take
// turns: one asks for more shared memory than two blocks can have, the next one for a warpgroup more than two blocks have registers
// for, which stays until the kernel before it is done; one of each fits (src/launch/w4a8.rs). Registers are those of a quarter of the
// multiprocessor, which has every fourth warp. No launch bounds, as ptxas would count registers for that warpgroup.
#define W4A8_PAIR(NAME, ...)                                                                                          \
    extern "C" __global__ void __maxnreg__((w4a8::Variant<__VA_ARGS__, 1, 2>::kEntryRegisters))                       \
        NAME(const __grid_constant__ CUtensorMap x, const __grid_constant__ w4a8::Problem problem) {                  \
        w4a8::run<w4a8::Variant<__VA_ARGS__, 1, 2>>(&x, problem);                                                     \
    }

//   name                  tokens  warpgroups  blocks  slice  group  stages  chain sets  cluster
W4A8_PAIR(w4a8_g128_t8_f256,    8,          2,      2,     8,   128,      5,          1)
W4A8_PAIR(w4a8_g128_t16_f256,  16,          2,      2,    16,   128,      5,          1)
W4A8(w4a8_g128_t16_f512,       16,          4,      2,    16,   128,      6,          1)
W4A8(w4a8_g128_t32_f256,       32,          4,      1,    32,   128,     10,          1)
W4A8(w4a8_g128_t32_f512,       32,          4,      2,    32,   128,      5,          1)
W4A8(w4a8_g128_t64_f256,       64,          4,      1,    64,   128,      8,          1)
W4A8(w4a8_g128_t64_f384,       64,          3,      2,    64,   128,      6,          1)
W4A8(w4a8_g128_t128_f256,     128,          2,      2,    64,   128,      6,          2,       2)
W4A8(w4a8_g128_t192_f128,     192,          2,      1,    96,   128,      6,          1)
W4A8(w4a8_g128_t256_f128,     256,          2,      1,    64,   128,      5,          2,       2)
W4A8(w4a8_g64_t16_f256,        16,          4,      1,    16,    64,     11,          1)
W4A8(w4a8_g64_t32_f256,        32,          4,      1,    32,    64,     10,          1)
W4A8(w4a8_g64_t64_f256,        64,          4,      1,    64,    64,      8,          1)
W4A8(w4a8_g64_t128_f256,      128,          2,      2,    64,    64,      6,          1)
