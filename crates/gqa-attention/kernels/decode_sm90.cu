// Entry points of decode attention: decode_{element}_d{head_dim}_n{columns}, one block to a multiprocessor.
//
// columns >= query_len x group_size takes a group in one pass; where the largest variant is too small, several passes read
// K and V again. A wide variant wastes work on a small group: take the smallest that fits.
#include "decode.cuh"

using namespace peregrine;

// element, its name, head_dim, columns, workers, warps along the columns, products of the warpgroup, bytes of dynamic shared memory.
// Blocks have 160 threads a worker.
#define DECODE_VARIANTS(V)                      \
    V(E4m3, e4m3, 64, 8, 3, 1, false, 212224)   \
    V(E4m3, e4m3, 64, 16, 3, 2, false, 224896)  \
    V(E4m3, e4m3, 64, 32, 4, 4, true, 202240)   \
    V(E4m3, e4m3, 64, 64, 2, 4, false, 201728)  \
    V(E4m3, e4m3, 64, 72, 2, 4, false, 210432)  \
    V(E4m3, e4m3, 128, 8, 3, 1, false, 224384)  \
    V(E4m3, e4m3, 128, 16, 3, 2, false, 200064) \
    V(E4m3, e4m3, 128, 32, 2, 2, false, 200576) \
    V(E4m3, e4m3, 128, 64, 2, 4, false, 201600) \
    V(E4m3, e4m3, 256, 8, 2, 1, false, 214912)  \
    V(E4m3, e4m3, 256, 16, 2, 2, false, 198528) \
    V(E4m3, e4m3, 256, 32, 2, 4, false, 198528) \
    V(Bf16, bf16, 64, 8, 3, 1, false, 187520)   \
    V(Bf16, bf16, 64, 16, 3, 2, false, 200064)  \
    V(Bf16, bf16, 64, 32, 3, 2, false, 202368)  \
    V(Bf16, bf16, 64, 64, 2, 4, false, 201600)  \
    V(Bf16, bf16, 64, 72, 2, 4, false, 210304)  \
    V(Bf16, bf16, 128, 8, 2, 1, false, 182272)  \
    V(Bf16, bf16, 128, 16, 2, 2, false, 198912) \
    V(Bf16, bf16, 128, 32, 2, 2, false, 199552) \
    V(Bf16, bf16, 128, 64, 2, 4, false, 199552) \
    V(Bf16, bf16, 256, 8, 1, 1, false, 181376)  \
    V(Bf16, bf16, 256, 16, 1, 2, false, 181504) \
    V(Bf16, bf16, 256, 32, 1, 4, false, 198144)

#define DECODE_ENTRY(ELEMENT, NAME, HEAD_DIM, COLUMNS, WORKERS, COLUMN_WARPS, WARPGROUP, SHARED) \
    extern "C" __global__ void __launch_bounds__((WORKERS) * 160, 1)                             \
        decode_##NAME##_d##HEAD_DIM##_n##COLUMNS(const __grid_constant__ DecodeArgs args) {      \
        using Tile = DecodeTile<ELEMENT, HEAD_DIM, COLUMNS, WORKERS, COLUMN_WARPS, WARPGROUP>;   \
        static_assert(Tile::threads == (WORKERS) * 160);                                         \
        static_assert(sizeof(Tile::Shared) == (SHARED), "the launch table is out of step");      \
        decode<Tile>(args);                                                                      \
    }
DECODE_VARIANTS(DECODE_ENTRY)
