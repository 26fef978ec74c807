// Operands of warpgroup products made of core matrices: 8 rows x 16 bytes, 128 contiguous bytes, no swizzle.
//
// A tile stored as [chunk of 16 bytes along K][row][16 bytes] is read by wgmma as it lies, so that one plain bulk copy of
// kilobytes delivers an operand. Such products run as fast as with the 128-byte swizzle (measured: 18, 24 and 32 clocks for
// m64k32 of N = 8, 32 and 64 either way).
//
//     row 0  [ 16 bytes of chunk 0 ]  ...  [ 16 bytes of chunk 1 ]
//     row 1  [                     ]  ...  [                     ]     rows are 16 bytes apart, 8 of them 128 (stride)
//     ...                                                              chunks are 16 * rows bytes apart (leading)
#pragma once
#include <cstdint>

#include "mbarrier.cuh"
#include "wgmma.cuh"

namespace peregrine {

// Descriptor of such a tile, K-major, as its lower 32 bits (address and leading distance); the upper ones are the same for all.
// It counts 16 bytes: the next K step of 32 bytes is 2 * rows further, row r (a multiple of 8) is r further. One register of
// state instead of two, and no carries: the sum stays within 14 bits for any tile of shared memory.
__device__ __forceinline__ uint32_t core_matrix_tile(SharedAddress tile, uint32_t rows) {
    return (tile.value & 0x3ffffu) >> 4 | rows << 16;
}
__device__ __forceinline__ uint64_t core_matrix_descriptor(uint32_t tile) {
    return static_cast<uint64_t>(128 >> 4) << 32 | tile;
}

// 8x8 matrices of 16-bit elements, one 32-bit register each, stored transposed: lane l holds elements 2 (l % 4) + {0, 1} of
// row l / 4, which land in rows 2 (l % 4) + {0, 1}, column l / 4. Lane 8m + r passes the address of row r of matrix m.
// It turns an accumulator fragment into the operand of the next product.
__device__ __forceinline__ void store_transposed(SharedAddress row, uint32_t a) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(row.value), "r"(a) : "memory");
}
__device__ __forceinline__ void store_transposed(SharedAddress row, uint32_t a, uint32_t b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(row.value), "r"(a), "r"(b) : "memory");
}
__device__ __forceinline__ void store_transposed(SharedAddress row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(row.value), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}

// 72 columns: 71 query heads to one KV head (Falcon-7B).
#define PEREGRINE_R36 PEREGRINE_R32 ",%32,%33,%34,%35"
#define PEREGRINE_D36 PEREGRINE_D32, PEREGRINE_D(32)
PEREGRINE_WGMMA(72, 36, "%36", "%37", "%38", "%39", "%40", "%41", "%42")

}  // namespace peregrine
