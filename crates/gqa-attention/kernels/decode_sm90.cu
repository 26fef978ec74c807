// Entry points of decode attention: decode_{element}_d{head_dim}_n{columns}, one block to a multiprocessor.
//
// columns >= query_len x group_size takes a group in one pass; where the largest variant is too small, several passes read
// K and V again. A wide variant wastes work on a small group: take the smallest that fits.
#include "decode.cuh"

using namespace peregrine;

// element, its name, head_dim, columns, workers, pages of a step, bytes of dynamic shared memory. Blocks have 160 threads a
// worker; the workspace has gridDim.x * (2 + workers) * columns * (head_dim + 4) floats.
#define DECODE_VARIANTS(V)                \
    V(E4m3, e4m3, 64, 8, 4, 1, 221056)    \
    V(E4m3, e4m3, 64, 16, 4, 1, 226176)   \
    V(E4m3, e4m3, 64, 32, 4, 1, 218752)   \
    V(E4m3, e4m3, 64, 64, 2, 1, 217728)   \
    V(E4m3, e4m3, 64, 72, 2, 1, 208000)   \
    V(E4m3, e4m3, 128, 8, 3, 2, 228608)   \
    V(E4m3, e4m3, 128, 16, 3, 2, 209280)  \
    V(E4m3, e4m3, 128, 32, 2, 2, 228224)  \
    V(E4m3, e4m3, 128, 64, 2, 1, 215552)  \
    V(E4m3, e4m3, 256, 8, 3, 1, 189184)   \
    V(E4m3, e4m3, 256, 16, 3, 1, 229504)  \
    V(E4m3, e4m3, 256, 32, 2, 1, 206464)  \
    V(Bf16, bf16, 64, 8, 3, 2, 219392)    \
    V(Bf16, bf16, 64, 16, 3, 2, 215552)   \
    V(Bf16, bf16, 64, 32, 2, 2, 220032)   \
    V(Bf16, bf16, 64, 64, 2, 1, 225664)   \
    V(Bf16, bf16, 64, 72, 2, 1, 216960)   \
    V(Bf16, bf16, 128, 8, 2, 2, 219904)   \
    V(Bf16, bf16, 128, 16, 3, 1, 209152)  \
    V(Bf16, bf16, 128, 32, 2, 1, 211712)  \
    V(Bf16, bf16, 128, 64, 2, 1, 223616)  \
    V(Bf16, bf16, 256, 8, 2, 1, 225408)   \
    V(Bf16, bf16, 256, 16, 1, 1, 225024)  \
    V(Bf16, bf16, 256, 32, 1, 1, 220032)

#define DECODE_ENTRY(ELEMENT, NAME, HEAD_DIM, COLUMNS, WORKERS, PAGES, SHARED)              \
    extern "C" __global__ void __launch_bounds__((WORKERS) * 160, 1)                        \
        decode_##NAME##_d##HEAD_DIM##_n##COLUMNS(const __grid_constant__ DecodeArgs args) { \
        using Tile = DecodeTile<ELEMENT, HEAD_DIM, COLUMNS, WORKERS, PAGES>;                \
        static_assert(Tile::threads == (WORKERS) * 160);                                    \
        static_assert(sizeof(Tile::Shared) == (SHARED), "the launch table is out of step"); \
        decode<Tile>(args);                                                                 \
    }
DECODE_VARIANTS(DECODE_ENTRY)
