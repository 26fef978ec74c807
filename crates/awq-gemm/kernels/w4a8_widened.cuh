// W4A8 for large batches, second step: products of widened weights (w4a8_widen.cuh) by e4m3 activations.
//
//   y[m,n] = xs[m] * sum_g s[n,g] * sum_{k in g} w[n,k] * x[m,k]  + bias[n]        w = code - zero, exactly; groups of 128
//
// A tile is 128 features x 256 tokens, 64 x 256 for each of two multiplying warpgroups. Warp 0 copies; a stage of the ring of four is
//
//      [ x: 256 tokens x 128 bytes ][ record: 128 features x 128 bytes, then their scales ]                 one *unit* of 128 along K
//
// A unit is two chains of 64 x 128 x 128 a warpgroup, both operands in shared memory, into one accumulator set:
//
//    tensor cores   [ wg 1, tokens 0..127 ][ wg 2, 0..127 ][ wg 1, 128..255 ][ wg 2, 128..255 ]
//    wg 1                                   [acc += s part ]                 [next: wait, scales; acc += s part]
//    wg 2                                                  [acc += s part   ]
//
// The turns are handed on by named barriers when a chain is issued: left to themselves the warpgroups take them most of the time, but
// draw more power. What limits it: shared memory, 144 bytes of 128 a clock at the tensor cores' full rate (96 KB of operands a unit of
// 1,024 clocks, 48 KB coming in), and the registers' ports, which products and FMAs share. So a multiplying warp does nothing
// else: the loop is a round of the ring, unrolled, where every descriptor and barrier is a constant; 128 FMAs of some 170
// instructions a unit. A segment takes whole rounds, the last of them with stages that are empty.
//
// Clusters, the cut of tiles between blocks and parts of tiles are those of w4a8.cuh.
#pragma once
#include <peregrine/bulk_copy.cuh>
#include <peregrine/mbarrier.cuh>
#include <peregrine/shared.cuh>
#include <peregrine/sync.cuh>
#include <peregrine/wgmma.cuh>

#include "w4a8_multiply.cuh"
#include "w4a8_output.cuh"
#include "w4a8_widen.cuh"

namespace w4a8 {

// `Product` of launch/w4a8_widened.rs; passed by value.
struct WidenedProblem {
    const uint8_t* records;
    const float* token_scales;  // [tokens]
    const float* bias;          // [features] or null
    void* output;               // [tokens, row_features], bf16 or f16: the first `features` of each row
    float* partials;            // workspace, as in w4a8_plan.cuh
    uint32_t* flags;
    int32_t tokens, features;
    int32_t row_features;
    int32_t units;
    int32_t stream_tiles, panel_tiles;
    int32_t output_f16;
    int32_t padding;
};

struct Widened {
    static constexpr int kTokens = 256, kMultipliers = 2, kBlocks = 1, kSlice = 128, kStages = 4, kCluster = 2;
    static constexpr int kTileBlocks = kBlocks * kMultipliers, kThreads = 128 * (1 + kMultipliers);
    static constexpr int kSlices = kTokens / kSlice, kChainValues = kSlice / 2, kValues = kTokens / 2;
    static constexpr bool kByValue = false, kFew = false;
    static constexpr int kXBytes = kTokens * kUnit;
    static constexpr int kScaleOffset = kXBytes + kTileBlocks * kWideBytes;  // in a stage
    static constexpr int kStageBytes = (kXBytes + kRecordBytes + 1023) / 1024 * 1024;
    static constexpr int kStageOffset = 1024;  // after the barriers
    static constexpr int kSharedBytes = kStageOffset + kStages * kStageBytes;
    static constexpr int kTurnBarrier = 1 + kMultipliers;  // named barriers behind those of parts of tiles (tiles.cuh)
    static constexpr int kCopierRegisters = 24, kMultiplierRegisters = 240;
    static_assert(kTileBlocks == kRecordBlocks && kSharedBytes <= 227 * 1024);
};

using WidenedRing = Ring<Widened::kStages, Widened::kStageBytes>;
__device__ __forceinline__ WidenedRing widened_ring(uint32_t shared) { return {shared, shared + Widened::kStageOffset}; }

__device__ __forceinline__ void copy_widened(uint32_t shared, const CUtensorMap* x, const WidenedProblem& p, int lane) {
    using V = Widened;
    constexpr int kShare = V::kTokens / V::kCluster;
    const int tiles = (p.features / kBlockFeatures + V::kTileBlocks - 1) / V::kTileBlocks, own = cluster_rank<V>() * kShare;
    WidenedRing ring = widened_ring(shared);
    Segment s;
    grid_wait_predecessor();
    for (Schedule<V> schedule(p); schedule.next(p, s);) {
        const Place place = locate<V>(p, s.tile);
        // A tile past the last feature multiplies the last one again and does not store it.
        const uint8_t* records = p.records + static_cast<int64_t>(min(place.feature_tile, tiles - 1)) * p.units * kRecordBytes;
        const int end = s.first_unit + (s.end_unit - s.first_unit + V::kStages - 1) / V::kStages * V::kStages;
        for (int unit = s.first_unit; unit < end; ++unit, ring.advance()) {
            ring.wait_empty();
            if (lane != 0) continue;
            if (unit >= s.end_unit) {
                barrier_arrive(ring.full());
                continue;
            }
            barrier_expect_bytes(ring.full(), V::kXBytes + kRecordBytes);
            bulk_load(ring.data() + V::kXBytes, records + static_cast<int64_t>(unit) * kRecordBytes, kRecordBytes, ring.full(),
                      CachePolicy::normal);
            tensor_load_2d_multicast(ring.data() + own * kUnit, x, unit * kUnit, place.token_tile * V::kTokens + own, ring.full(),
                                     (1 << V::kCluster) - 1, CachePolicy::evict_last);
        }
    }
}

// Accumulates `left` units, from the first stage of the ring on; `phase` is its round's.
__device__ __forceinline__ void multiply_widened(Accumulators<Widened>& acc, uint32_t& phase, uint32_t shared, int left, const Lane& lane) {
    using V = Widened;
    const auto full = [&](int slot) { return shared + 8 * slot; };
    const auto empty = [&](int slot) { return shared + 8 * (V::kStages + slot); };
    uint32_t scales = shared + V::kStageOffset + V::kScaleOffset + lane.multiplier * kScalePairBytes + (8 * lane.warp + lane.row) * 8;
    asm volatile("" : "+r"(scales));  // else it is worked out anew from the thread's number at each use
    const uint32_t first_x = wgmma_descriptor_low<Swizzle::bytes_128>(shared + V::kStageOffset);
    const uint32_t first_a = first_x + (V::kXBytes + lane.multiplier * kWideBytes) / 16;
    float part[V::kChainValues];
    barrier_wait(full(0), phase);
    uint2 pair = shared_load_64(scales);
    int used = 0;
#pragma unroll 1
    while (left > 0) {
#pragma unroll
        for (int slot = 0; slot < V::kStages; ++slot) {
            const uint32_t x = first_x + slot * (V::kStageBytes / 16), a = first_a + slot * (V::kStageBytes / 16);
            const float scale[2] = {__uint_as_float(pair.x), __uint_as_float(pair.y)};
            --left;
#pragma unroll
            for (int chain = 0; chain < V::kSlices; ++chain) {
                const bool last = chain + 1 == V::kSlices;
                named_barrier_sync(V::kTurnBarrier + lane.multiplier, 256);
                wgmma_fence();
#pragma unroll
                for (int step = 0; step < 4; ++step) {
                    Wgmma<V::kSlice>::e4m3(part, wgmma_descriptor_from_low<Swizzle::bytes_128>(a + 2 * step),
                                           wgmma_descriptor_from_low<Swizzle::bytes_128>(x + chain * V::kSlice * kUnit / 16 + 2 * step),
                                           step > 0);
                }
                wgmma_commit();
                named_barrier_arrive(V::kTurnBarrier + (lane.multiplier ^ 1), 256);
                if (last && left > 0) {
                    const int next = (slot + 1) % V::kStages;
                    barrier_wait(full(next), next == 0 ? phase ^ 1 : phase);
                    pair = shared_load_64(scales + next * V::kStageBytes);
                }
                wgmma_wait<0>();
                if (last) release_stage<V>(empty(slot), lane);
                promote<V>(acc[0] + chain * V::kChainValues, part, scale);
            }
            used = slot + 1;
            if (left == 0) break;
        }
        if (left > 0) phase ^= 1;
    }
    for (; used < V::kStages; ++used) {
        barrier_wait(full(used), phase);
        release_stage<V>(empty(used), lane);
    }
    phase ^= 1;
}

// As store_tile of w4a8_output.cuh, without branches: a round of stores waits for none before it.
__device__ __forceinline__ void store_widened(const Accumulators<Widened>& acc, const WidenedProblem& p, const Place& place, const Lane& lane) {
    using V = Widened;
    const int feature = (place.feature_tile * V::kMultipliers + lane.multiplier) * kBlockFeatures + lane.warp * 16;
    const int first_token = place.token_tile * V::kTokens;
    if (feature >= p.features) return;
    // Lane l has the scales of tokens 32 i + l and hands them round.
    float token_scales[V::kTokens / 32];
#pragma unroll
    for (int i = 0; i < V::kTokens / 32; ++i) {
        token_scales[i] = 512.0f * __ldg(p.token_scales + min(first_token + 32 * i + lane.thread % 32, p.tokens - 1));
    }
    const float bias_low = p.bias ? __ldg(p.bias + feature + lane.row) : 0.0f;
    const float bias_high = p.bias ? __ldg(p.bias + feature + lane.row + 8) : 0.0f;
    const bool odd = lane.column % 2;
    const int left = p.tokens - first_token - lane.row;
    uint16_t* to = static_cast<uint16_t*>(p.output) + static_cast<int64_t>(first_token + lane.row) * p.row_features + feature +
                   8 * (lane.column % 2) + 4 * (lane.column / 2);
#pragma unroll
    for (int j = 0; j < V::kTokens / 8; ++j, to += 8 * static_cast<int64_t>(p.row_features)) {
        const float* d = acc[0] + 4 * j;
        const int source = 8 * (j % 4) + 2 * lane.column;
        const float scale_0 = __shfl_sync(0xffffffffu, token_scales[j / 4], source);
        const float scale_1 = __shfl_sync(0xffffffffu, token_scales[j / 4], source + 1);
        const float low_0 = fmaf(d[1], scale_0, bias_low), low_1 = fmaf(d[0], scale_1, bias_low);
        const float high_0 = fmaf(d[3], scale_0, bias_high), high_1 = fmaf(d[2], scale_1, bias_high);
        const uint32_t low = transpose_8x8(pack_output(low_0, low_1, p.output_f16));
        const uint32_t high = transpose_8x8(pack_output(high_0, high_1, p.output_f16));
        const uint32_t traded = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
        asm volatile("{\n .reg .pred p;\n setp.lt.s32 p, %3, %4;\n @p st.global.v2.u32 [%0], {%1, %2};\n}" ::"l"(to),
                     "r"(odd ? traded : low), "r"(odd ? high : traded), "r"(8 * j), "r"(left)
                     : "memory");
    }
}

__device__ __forceinline__ void run_widened(const CUtensorMap* x, const WidenedProblem& p) {
    using V = Widened;
    extern __shared__ __align__(1024) uint8_t dynamic_shared[];
    const uint32_t shared = warp_uniform(shared_address(dynamic_shared));
    if (threadIdx.x == 0) {
        prefetch_tensor_map(x);
        for (WidenedRing ring = widened_ring(shared); ring.phase == 0; ring.advance()) {
            barrier_init(ring.full(), 1);
            barrier_init(ring.empty(), 4 * V::kMultipliers * (32 + V::kCluster - 1));
        }
        barrier_init_fence();
    }
    cluster_sync_barriers();
    grid_release_successor();
    if (warp_uniform(threadIdx.x / 128) == 0) {
        registers_shrink<V::kCopierRegisters>();
        if (warp_uniform(threadIdx.x / 32) == 0) copy_widened(shared, x, p, threadIdx.x);
    } else {
        registers_grow<V::kMultiplierRegisters>();
        const Lane lane;
        uint32_t phase = 0;
        Segment s;
        if (lane.multiplier == 1) named_barrier_arrive(V::kTurnBarrier, 256);
        grid_wait_predecessor();
        for (Schedule<V> schedule(p); schedule.next(p, s);) {
            Accumulators<V> acc = {};
            multiply_widened(acc, phase, shared, s.end_unit - s.first_unit, lane);
            if (s.first_unit > 0) {
                leave_partial<V>(acc, p, lane);
            } else {
                if (s.end_unit < p.units) add_partials<V>(acc, p, s.tile, 0, lane);
                store_widened(acc, p, locate<V>(p, s.tile), lane);
            }
        }
        if (lane.multiplier == 0) named_barrier_sync(V::kTurnBarrier, 256);  // the last turn, which nobody takes
    }
    cluster_sync_divergent();  // until then neighbours write into this block's shared memory
}

}  // namespace w4a8
