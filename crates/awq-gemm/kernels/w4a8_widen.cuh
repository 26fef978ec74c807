// W4A8 for large batches, first step: packed weights as e4m3, with their scales, in the order in which products copy them.
//
// A zero point is taken off before the product: code - zero is a whole number in -15..15, and a whole number n below 16 is the e4m3
// byte n times 2^-9 (subnormal up to 7). So |code - zero| and the sign bit are the operand, exactly.
//
//   A RECORD is what a tile of 2 feature blocks needs of a unit of 128 along K:
//       [ 2 x 64 rows x 128 bytes, 128-byte swizzle ][ 2 x 32 pairs of f32 scales: pair 8 w + r = rows 16 w + r and 16 w + 8 + r ]
//   Records of a tile follow each other along K, tiles follow each other: a product takes a record by one bulk copy.
//
// A warpgroup takes a feature block: 32 bytes of codes a thread, stored as matrices of 8 rows x 16 bytes (stmatrix), whose fragments
// have the packed order (drawn in w4a8.cuh). The block stores its record from shared memory by one bulk copy; two buffers.
#pragma once
#include <peregrine/bulk_copy.cuh>
#include <peregrine/fp8.cuh>
#include <peregrine/shared.cuh>
#include <peregrine/sync.cuh>

#include "tiles.cuh"

namespace w4a8 {

using namespace packed;

constexpr int kRecordBlocks = 2;
constexpr int kWideBytes = kBlockFeatures * kUnit;         // of a block's unit
constexpr int kScalePairBytes = kBlockFeatures / 2 * 8;
constexpr int kRecordBytes = kRecordBlocks * (kWideBytes + kScalePairBytes);
constexpr int kWidenThreads = 128 * kRecordBlocks;
constexpr int kWidenBuffer = (kRecordBytes + 1023) / 1024 * 1024;

// `Widen` of launch/w4a8_widened.rs.
struct WidenProblem {
    const uint8_t* codes;
    const uint8_t* parameters;
    uint8_t* records;
    int32_t first_block, end_block, all_blocks;  // feature blocks to widen, of all
    int32_t units, windows, padding;
};

__device__ __forceinline__ void store_matrices(uint32_t to, const uint32_t (&words)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
}

// Zero points of one row for four bytes at once.
struct Zero {
    uint32_t zeros, offset;
    __device__ __forceinline__ explicit Zero(uint32_t zero) : zeros(zero * 0x01010101u), offset(0x80808080u - zeros) {}
    // No byte of codes + offset carries into the next; its upper bit is set where code >= zero.
    __device__ __forceinline__ uint32_t take_off(uint32_t codes) const {
        uint32_t magnitude;
        asm("vabsdiff4.u32.u32.u32 %0, %1, %2, %3;" : "=r"(magnitude) : "r"(codes), "r"(zeros), "r"(0));
        return magnitude | (~(codes + offset) & 0x80808080u);
    }
};

__device__ __forceinline__ void widen(const WidenProblem& p) {
    extern __shared__ __align__(1024) uint8_t dynamic_shared[];
    const uint32_t shared = shared_address(dynamic_shared);
    const int own = threadIdx.x / 128, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, row = lane / 4;
    const int tiles = (p.end_block - p.first_block + kRecordBlocks - 1) / kRecordBlocks;
    // Blocks of the grid that run together take the tiles of a stripe: its codes of a unit are read as one run.
    constexpr int kTogether = kStripe / kRecordBlocks;
    const int64_t records = static_cast<int64_t>(tiles) * p.units;
    uint32_t buffer = shared;
    bool first = true;
    grid_release_successor();
    for (int64_t i = blockIdx.x; i < records; i += gridDim.x) {
        const int64_t group = i / (kTogether * p.units);
        const int in_group = static_cast<int>(i - group * kTogether * p.units);
        const int width = static_cast<int>(min(static_cast<int64_t>(kTogether), tiles - kTogether * group));
        const int unit = in_group / width;
        const int64_t tile = kTogether * group + in_group - unit * width;
        // Where a tile has one block only, its second is any other.
        const int block = min(p.first_block + static_cast<int>(tile) * kRecordBlocks + own, p.all_blocks - 1);
        const int stripe = block / kStripe * kStripe, blocks = min(kStripe, p.all_blocks - stripe), in_window = unit % kWindow;
        const auto chunk = [&](int index, int count) { return static_cast<int64_t>(stripe) * count + index * blocks + block - stripe; };
        const uint8_t* codes = p.codes + chunk(unit, p.units) * kCodeBytes + thread * 16;
        const uint8_t* parameters = p.parameters + chunk(unit / kWindow, p.windows) * kParameterBytes;
        const uint4 halves[2] = {__ldcs(reinterpret_cast<const uint4*>(codes)),
                                 __ldcs(reinterpret_cast<const uint4*>(codes + kCodeBytes / 2))};
        const uint32_t pair = __ldg(reinterpret_cast<const uint32_t*>(parameters + in_window * 2 * kBlockFeatures) + 8 * warp + row);
        const uint32_t zeros = __ldg(parameters + kScaleBytes + in_window * kBlockFeatures / 2 + 8 * warp + row);
        if (first) grid_wait_predecessor();  // it reads the records that are about to be overwritten
        first = false;
        if (threadIdx.x == 0) bulk_store_wait_read<1>();
        __syncthreads();
        const Zero low(zeros & 15), high(zeros >> 4);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const uint32_t words[4] = {halves[j].x, halves[j].y, halves[j].z, halves[j].w};
            // Lane l names row l % 8 of matrix l / 8: 16 bytes 4 j + l / 8 of the row, swizzled.
            const uint32_t to = buffer + own * kWideBytes + (16 * warp + lane % 8) * kUnit + ((4 * j + lane / 8) ^ lane % 8) * 16;
            uint32_t rows[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) rows[k] = low.take_off(words[k] & 0x0f0f0f0fu);
            store_matrices(to, rows);
#pragma unroll
            for (int k = 0; k < 4; ++k) rows[k] = high.take_off((words[k] >> 4) & 0x0f0f0f0fu);
            store_matrices(to + 8 * kUnit, rows);
        }
        if (lane % 4 == 0) {
            const float scales[2] = {f32_from_f16(static_cast<uint16_t>(pair)), f32_from_f16(static_cast<uint16_t>(pair >> 16))};
            const uint32_t to = buffer + kRecordBlocks * kWideBytes + own * kScalePairBytes + (8 * warp + row) * 8;
            shared_store_32(to, __float_as_uint(scales[0]));
            shared_store_32(to + 4, __float_as_uint(scales[1]));
        }
        fence_async_shared();
        __syncthreads();
        if (threadIdx.x == 0) {
            bulk_store(p.records + (tile * p.units + unit) * kRecordBytes, buffer, kRecordBytes);
            bulk_store_commit();
        }
        buffer = shared + (buffer == shared ? kWidenBuffer : 0);
    }
    if (threadIdx.x == 0) bulk_store_wait<0>();
}

}  // namespace w4a8
