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

}  // namespace peregrine
