// Entry points of pack.cuh: codes and parameters from each source.
#include "pack.cuh"

#define PACK(NAME, SOURCE)                                                                                           \
    extern "C" __global__ void __launch_bounds__(pack::kThreads)                                                      \
        NAME##_codes(const __grid_constant__ pack::Problem problem) {                                                 \
        pack::pack_codes<pack::SOURCE>(problem);                                                                      \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(pack::kThreads)                                                      \
        NAME##_parameters(const __grid_constant__ pack::Problem problem) {                                            \
        pack::pack_parameters<pack::SOURCE>(problem);                                                                 \
    }

PACK(pack_auto_awq, AutoAwq)
PACK(pack_pack_quantized, PackQuantized)
PACK(pack_synthetic, Synthetic)
