// Entry points of decode attention: decode_{element}_d{head_dim}_n{columns}, one block to a multiprocessor.
//
// columns >= query_len x group_size takes a group in one pass; where the largest variant is too small, several passes read
// K and V again. A wide variant wastes work on a small group: take the smallest that fits.
#include "decode.cuh"

using namespace peregrine;

// element, its name, head_dim, columns, workers, warps along the columns, bytes of dynamic shared memory. Blocks have 160
// threads a worker; the workspace has gridDim.x * (2 + workers) * columns * (head_dim + 4) floats.
#define DECODE_VARIANTS(V)               \
    V(E4m3, e4m3, 64, 8, 4, 1, 200960)   \
    V(E4m3, e4m3, 64, 16, 4, 2, 200832)  \
    V(E4m3, e4m3, 64, 32, 4, 2, 202880)  \
    V(E4m3, e4m3, 64, 64, 2, 4, 167168)  \
    V(E4m3, e4m3, 64, 72, 2, 4, 171520)  \
    V(E4m3, e4m3, 128, 8, 4, 1, 200704)  \
    V(E4m3, e4m3, 128, 16, 3, 2, 199680) \
    V(E4m3, e4m3, 128, 32, 2, 2, 199808) \
    V(E4m3, e4m3, 128, 64, 2, 4, 199808) \
    V(E4m3, e4m3, 256, 8, 2, 1, 198656)  \
    V(E4m3, e4m3, 256, 16, 2, 2, 198656) \
    V(E4m3, e4m3, 256, 32, 2, 4, 198656) \
    V(Bf16, bf16, 64, 8, 3, 1, 224384)   \
    V(Bf16, bf16, 64, 16, 3, 2, 224384)  \
    V(Bf16, bf16, 64, 32, 3, 2, 201216)  \
    V(Bf16, bf16, 64, 64, 2, 4, 199808)  \
    V(Bf16, bf16, 64, 72, 2, 4, 204160)  \
    V(Bf16, bf16, 128, 8, 2, 1, 231552)  \
    V(Bf16, bf16, 128, 16, 2, 2, 231424) \
    V(Bf16, bf16, 128, 32, 2, 2, 199680) \
    V(Bf16, bf16, 128, 64, 2, 4, 199680) \
    V(Bf16, bf16, 256, 8, 1, 1, 230528)  \
    V(Bf16, bf16, 256, 16, 1, 2, 230528) \
    V(Bf16, bf16, 256, 32, 1, 4, 230528)

#define DECODE_ENTRY(ELEMENT, NAME, HEAD_DIM, COLUMNS, WORKERS, COLUMN_WARPS, SHARED)       \
    extern "C" __global__ void __launch_bounds__((WORKERS) * 160, 1)                        \
        decode_##NAME##_d##HEAD_DIM##_n##COLUMNS(const __grid_constant__ DecodeArgs args) { \
        using Tile = DecodeTile<ELEMENT, HEAD_DIM, COLUMNS, WORKERS, COLUMN_WARPS>;         \
        static_assert(Tile::threads == (WORKERS) * 160);                                    \
        static_assert(sizeof(Tile::Shared) == (SHARED), "the launch table is out of step"); \
        decode<Tile>(args);                                                                 \
    }
DECODE_VARIANTS(DECODE_ENTRY)
