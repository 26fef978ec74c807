// What becomes of a W4A8 tile's accumulators: partials between blocks that share a tile, then scales, bias and the store.
#pragma once
#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

#include "w4a8_plan.cuh"

namespace w4a8 {

// ---- The epilogue ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t transpose_8x8(uint32_t fragment) {
    uint32_t transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(fragment));
    return transposed;
}

__device__ __forceinline__ uint32_t pack_output(float low, float high, int f16) {
    return f16 ? f16x2_from_f32(low, high) : bf16x2_from_f32(low, high);
}

// Lane l has the scales of tokens 32 i + l and hands them round: one trip to memory, and few registers. They may be on
// their way while partials are awaited.
template <class V>
struct TokenScales {
    float of[(V::kTokens + 31) / 32];
    __device__ __forceinline__ void load(const Problem& p, const Place& place, const Lane& lane) {
#pragma unroll
        for (int i = 0; i < (V::kTokens + 31) / 32; ++i) {
            const int token = min(place.token_tile * V::kTokens + 32 * i + lane.thread % 32, p.tokens - 1);
            of[i] = 512.0f * __ldg(p.token_scales + token * p.token_scale_stride);  // 512 is the factor of the codes
        }
    }
};

// D has features as rows, Y has them innermost: 8x8 blocks are transposed in registers, then neighbouring lanes trade words so
// that the four lanes of a token store its 16 features as one 32-byte sector.
template <class V>
__device__ __forceinline__ void store_tile(const Accumulators<V>& acc, const TokenScales<V>& scales, const Problem& p,
                                           const Place& place, const Lane& lane) {
    const bool odd = lane.column % 2;
    const int first_token = place.token_tile * V::kTokens;
#pragma unroll
    for (int i = 0; i < V::kBlocks; ++i) {
        const int block = (place.feature_tile * V::kMultipliers + lane.multiplier) * V::kBlocks + i;
        const int feature = block * kBlockFeatures + lane.warp * 16;
        if (feature >= p.features) return;
        const float bias_low = p.bias ? __ldg(p.bias + feature + lane.row) : 0.0f;
        const float bias_high = p.bias ? __ldg(p.bias + feature + lane.row + 8) : 0.0f;
#pragma unroll
        for (int j = 0; j < V::kTokens / 8; ++j) {
            if (first_token + 8 * j >= p.tokens) break;
            const float* d = acc[i] + 4 * j;
            const int source = 8 * (j % 4) + 2 * lane.column;
            const float scale_0 = __shfl_sync(0xffffffffu, scales.of[j / 4], source);
            const float scale_1 = __shfl_sync(0xffffffffu, scales.of[j / 4], source + 1);
            const float low_0 = fmaf(d[1], scale_0, bias_low), low_1 = fmaf(d[0], scale_1, bias_low);
            const float high_0 = fmaf(d[3], scale_0, bias_high), high_1 = fmaf(d[2], scale_1, bias_high);
            const uint32_t low = transpose_8x8(pack_output(low_0, low_1, p.output_f16));
            const uint32_t high = transpose_8x8(pack_output(high_0, high_1, p.output_f16));
            const uint32_t traded = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
            const int token = first_token + 8 * j + lane.row;
            if (token < p.tokens) {
                uint16_t* row = static_cast<uint16_t*>(p.output) + static_cast<int64_t>(token) * p.features + feature;
                const uint2 words = odd ? make_uint2(traded, high) : make_uint2(low, traded);
                *reinterpret_cast<uint2*>(row + 8 * (lane.column % 2) + 4 * (lane.column / 2)) = words;
            }
        }
    }
}

}  // namespace w4a8
