// Entry points of prefill attention: prefill_{element}_d{head_dim}, a grid of at most one block to a multiprocessor.
#include "prefill.cuh"

using namespace peregrine;

// element, its name, head_dim, consumers, register steps, promoted pages, bytes of dynamic shared memory. Blocks have
// 128 * (consumers + 1) threads; how many consumers was chosen by time.
#define PREFILL_VARIANTS(V)             \
    V(E4m3, e4m3, 64, 4, 1, 5, 152064)  \
    V(E4m3, e4m3, 128, 3, 2, 5, 224768) \
    V(Bf16, bf16, 64, 4, 1, 1, 156288)  \
    V(Bf16, bf16, 128, 3, 2, 1, 201216)

#define PREFILL_ENTRY(ELEMENT, NAME, HEAD_DIM, CONSUMERS, STEPS, PAGES, SHARED)                                  \
    extern "C" __global__ void __launch_bounds__(128 * (CONSUMERS) + 128, 1)                                     \
        prefill_##NAME##_d##HEAD_DIM(const __grid_constant__ DecodeArgs args) {                                  \
        using Tile = PrefillTile<ELEMENT, HEAD_DIM, CONSUMERS, STEPS, PAGES>;                                    \
        static_assert(sizeof(Tile::Shared) == (SHARED), "the launch table is out of step");                      \
        prefill<Tile>(args);                                                                                     \
    }
PREFILL_VARIANTS(PREFILL_ENTRY)
