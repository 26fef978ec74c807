// W4A8: INT4 AWQ weights x e4m3 activations on Hopper's tensor cores.
//
//   Y[m,n] = xs[m] * sum_g s[g,n] * sum_{k in g} (q[k,n] - z[g,n]) * x[m,k]  + bias[n]
//
// ONE OUTPUT TILE (features x tokens) is the work of one block; the weights are the 64-row operand of wgmma, tokens are its N,
// so a batch of 5 wastes 3 columns of 8 and not 59 rows of 64:
//
//                    tokens (kTokens)         warpgroup 0: warp 0 copies, by bulk loads; warps 1 and 2 split group sums
//                 +-------------------+         others:      multiply, kBlocks feature blocks each (2 drawn)
//   feature block |  64 x kTokens     | ─┐
//   (64 features) +-------------------+  ├ wg 1   a ring of kStages stages, one *unit* of 128 along K each:
//                 |  64 x kTokens     | ─┘             [ x: kTokens x 128 e4m3, 128-byte swizzle ][ codes of each block ]
//                 +-------------------+           and two buffers for a *window* of 8 groups:
//                 |  64 x kTokens     | ─┐             [ group sums of x: kTokens x 8, 32-byte swizzle ]
//                 +-------------------+  ├ wg 2        [ scales and zero points of each block          ]
//                 |  64 x kTokens     | ─┘
//                 +-------------------+
//
// A multiplying warpgroup, for each block and group: 16 bytes of nibbles a thread -> e4m3 in registers -> wgmma into a fresh
// accumulator -> promoted in f32:  acc += s * part. The factor 512 of the codes goes into the token scales. How its products,
// FMAs and loads overlap is told in w4a8_multiply.cuh.
//
//   Widening: the bytes 0x00..0x0f are exactly 0..15 times 2^-9 in e4m3, so it is a mask and a shift, 3 instructions for
//   8 weights. Raw unsigned codes also toggle fewer bits in the multiplier than centred ones, which the power cap repays.
//
//   Zero points: sum_g (s z)[g,n] * X[m,g], with X the group sums that the quantizing kernel wrote, is a thin product. It runs
//   on the tensor cores too, in bf16 once per window. Both factors are split so that nothing is lost: s z has 15 significant
//   bits = high + low in bf16, exactly; X = high + low to 16 bits. K of that product is 16:
//      B, token m, group j:  columns 2j, 2j + 1 = high, low of X[m,j]
//      A, feature n:         columns 2j, 2j + 1 = both the high part of -(s z)[j,n], then, in a second step, both the low
//
// Batches of 2048 tokens and more, in groups of 128, go another way: w4a8_widen.cuh and w4a8_widened.cuh.
//
// CLUSTERS. kCluster blocks that lie side by side multiply neighbouring feature tiles by the same tokens, in step: each copies its
// share of a unit's activations into all of them, so that L2 is read once, which is energy. A stage is free when all of them have
// released it. The kernel counts in clusters where the drawing below says block.
//
// BETWEEN BLOCKS the grid is persistent, one block per multiprocessor. The first `stream_tiles` tiles are cut evenly along
// (tile, K unit) over all blocks, so that no block idles in a last wave; the remaining tiles, a multiple of the grid, go whole:
//
//    block:     0        1        2       3          a block that starts inside a tile leaves an f32 partial in the workspace;
//            |-------|-------|-------|-------|       the block that holds a tile's first unit adds the partials of the blocks
//    tiles:  [    0    ][    1    ][    2    ]       after it, in order: the sum is the same on every run
//
// PACKED WEIGHTS. Features in blocks of 64 (b), blocks in stripes of 8 whose last may have fewer (w = min(8, blocks - 8 [b/8]));
// K in units of 128 (u) and windows of 8 groups (v), the last of each padded with zeros:
//
//    codes of (b, u): 4096 bytes at 4096 (8 [b/8] units + u w + b % 8)             a tile of 8 blocks reads 32 KB runs
//    parameters of (b, v): 1280 bytes at 4096 blocks units + 1280 (8 [b/8] windows + v w + b % 8)
//                          [ scales, 8 x 64 f16 ][ zero points, 8 x 32 bytes ]
//
//    code (feature n, input k) of the unit, n = 16 w + 8 h + r, k = 64 j + 32 i + 16 c + 4 t + e:
//        byte  2048 j + 16 (32 w + 4 r + t) + 8 i + 4 c + e,   nibble h (0 low, 1 high)
//          n: w 0..3 | h 0..1 | r 0..7          thread 32 w + 4 r + t loads bytes 16 thread .. +15 of half j
//          k: j 0..1 | i 0..1 | c 0..1 | t 0..3 | e 0..3
//    scale (group g of the window, feature n):     f16 at 128 g + 4 (8 w + r) + 2 h
//    zero point (group g, feature n):              byte 1024 + 32 g + 8 w + r, nibble h
//
// So one 32-bit word of codes holds, masked, a whole fragment register of row r (low nibbles) and of row r + 8 (high).
#pragma once
#include <peregrine/bulk_copy.cuh>
#include <peregrine/fp8.cuh>
#include <peregrine/mbarrier.cuh>
#include <peregrine/shared.cuh>
#include <peregrine/sync.cuh>

#include "w4a8_ahead.cuh"
#include "w4a8_few.cuh"
#include "w4a8_multiply.cuh"
#include "w4a8_output.cuh"
#include "w4a8_plan.cuh"

namespace w4a8 {

// ---- Warp 0: copies (tiles of few tokens: w4a8_few.cuh) ----------------------------------------------------------------

// Lane i issues the copies of feature block i.
template <class V>
__device__ __forceinline__ void load_codes(const Stages<V>& stages, const Problem& p, const Place& place, int unit, int lane) {
    if (lane == 0) barrier_expect_bytes(stages.full(), V::kStageBytes);
    if (lane >= V::kTileBlocks) return;
    const int64_t source = static_cast<int64_t>(chunk<V>(p, place, lane, unit, p.units)) * kCodeBytes;
    bulk_load(stages.data() + V::kXBytes + lane * kCodeBytes, p.codes + source, kCodeBytes, stages.full(),
              p.weights_stream_once ? CachePolicy::evict_first : CachePolicy::normal);
}

template <class V>
__device__ __forceinline__ void load_parameters(const Windows<V>& windows, const Problem& p, const Place& place, int window,
                                                int lane) {
    if (lane == 0) barrier_expect_bytes(windows.full(), V::kTileBlocks * kParameterBytes);
    if (lane >= V::kTileBlocks) return;
    const int64_t source = static_cast<int64_t>(chunk<V>(p, place, lane, window, p.windows)) * kParameterBytes;
    bulk_load(windows.data() + V::kSumBytes + lane * kParameterBytes, p.parameters + source, kParameterBytes, windows.full(),
              p.weights_stream_once ? CachePolicy::evict_first : CachePolicy::normal);
}

// Weights do not depend on the kernel before this one: what the empty buffers hold is on its way before that has finished.
template <class V>
__device__ __forceinline__ void copy(uint32_t shared, const CUtensorMap* x, const Problem& p, int lane) {
    Segment s;
    int early_units = 0, early_windows = 0;
    Stages<V> stages(shared);
    Windows<V> windows(shared);
    for (Schedule<V> schedule(p); early_units < V::kStages && schedule.next(p, s);) {
        const Place place = locate<V>(p, s.tile);
        for (int unit = s.first_unit; unit < s.end_unit && early_units < V::kStages; ++unit, ++early_units) {
            if (unit == s.first_unit || unit % V::kWindowUnits == 0) {
                if (early_windows == 2) break;
                load_parameters<V>(windows, p, place, unit / V::kWindowUnits, lane);
                ++early_windows;
                windows.advance();
            }
            load_codes<V>(stages, p, place, unit, lane);
            stages.advance();
        }
        if (early_windows == 2) break;
    }
    grid_wait_predecessor();
    stages = Stages<V>(shared);
    windows = Windows<V>(shared);
    for (Schedule<V> schedule(p); schedule.next(p, s);) {
        const Place place = locate<V>(p, s.tile);
        for (int unit = s.first_unit; unit < s.end_unit; ++unit, stages.advance()) {
            if (unit == s.first_unit || unit % V::kWindowUnits == 0) {
                if (--early_windows < 0) {
                    windows.wait_empty();
                    load_parameters<V>(windows, p, place, unit / V::kWindowUnits, lane);
                }
                windows.advance();
            }
            if (--early_units < 0) {
                stages.wait_empty();
                load_codes<V>(stages, p, place, unit, lane);
            }
            if (lane == 0) {
                constexpr int kShare = V::kTokens / V::kCluster;
                const int own = cluster_rank<V>() * kShare, token = place.token_tile * V::kTokens + own;
                if constexpr (V::kCluster == 1) {
                    tensor_load_2d(stages.data(), x, unit * kUnit, token, stages.full(), CachePolicy::evict_last);
                } else {
                    tensor_load_2d_multicast(stages.data() + own * kUnit, x, unit * kUnit, token, stages.full(),
                                             (1 << V::kCluster) - 1, CachePolicy::evict_last);
                }
            }
        }
    }
}

// ---- Warps 1 and 2: group sums -----------------------------------------------------------------------------------------

// An f32 as two bf16 in one word: its upper half as it is (truncated), and the rest, rounded.
__device__ __forceinline__ uint32_t split_bf16(float value) {
    const uint32_t high = __float_as_uint(value) & 0xffff0000u;
    return bf16x2_from_f32(__uint_as_float(high), value - __uint_as_float(high));
}

// Loads a window's sums before its buffer is free, so that their latency is never waited for.
template <class V>
__device__ __forceinline__ void split_group_sums(uint32_t shared, const Problem& p, int thread) {
    constexpr int kSplitters = 64, kRows = kSplitters / kWindow;
    constexpr int kAll = V::kTokens / kRows;
    constexpr int kPasses = kAll <= 8 ? kAll : kAll % 8 == 0 ? 8 : 6;  // as many loads at once as there are registers for
    constexpr int kRounds = kAll / kPasses;
    static_assert(kRounds * kPasses * kRows == V::kTokens);
    const int row = thread / kWindow;
    // The 32-byte swizzle exchanges the halves of a row where bit 2 of its number is set; rows 8 apart agree in it.
    const int at = (row * kSumRowBytes + thread % kWindow * 4) ^ (row / 4 % 2 * 16);
    grid_wait_predecessor();
    Segment s;
    Windows<V> windows(shared);
    for (Schedule<V> schedule(p); schedule.next(p, s);) {
        const int first_token = locate<V>(p, s.tile).token_tile * V::kTokens;
        for (int unit = s.first_unit; unit < s.end_unit; unit = window_end<V>(s, unit), windows.advance()) {
            // Past the last token or group whatever is finite will do: nothing is stored, or its zero point is 0.
            const int group = min(unit / V::kWindowUnits * kWindow + thread % kWindow, p.groups - 1);
#pragma unroll 1
            for (int round = 0; round < kRounds; ++round) {
                int first = first_token + round * kPasses * kRows + row;
                asm volatile("" : "+r"(first));  // these warps have too few registers to keep every pass's offset across windows
                float sums[kPasses];
#pragma unroll
                for (int i = 0; i < kPasses; ++i) {
                    const int token = min(first + i * kRows, p.tokens - 1);
                    sums[i] = __ldg(p.group_sums + token * p.groups + group);
                }
                if (round == 0) windows.wait_empty();
                const uint32_t to = windows.data() + at + round * kPasses * kRows * kSumRowBytes;
#pragma unroll
                for (int i = 0; i < kPasses; ++i) shared_store_32(to + i * kRows * kSumRowBytes, split_bf16(sums[i]));
            }
            fence_async_shared();
            named_barrier_sync(1 + V::kMultipliers, kSplitters);
            if (thread == 0) barrier_arrive(windows.full());
        }
    }
}

// ---- The kernel ---------------------------------------------------------------------------------------------------------

template <class V>
__device__ __forceinline__ void consume(uint32_t shared, const Problem& p) {
    const Lane lane;
    Schedule<V> schedule(p);
    Segment s;
    Stages<V> stages(shared);
    Windows<V> windows(shared);
    grid_wait_predecessor();
    while (schedule.next(p, s)) {
        Accumulators<V> acc = {};
        const int values = values_behind<V>(p, s);
        if constexpr (V::kChainSets == 2) {
            multiply_ahead<V>(acc, stages, windows, s, lane);
        } else {
            for (int unit = s.first_unit; unit < s.end_unit; windows.advance()) {
                const int end = window_end<V>(s, unit);
                const uint32_t parameters = windows.data() + V::kSumBytes + lane.multiplier * V::kBlocks * kParameterBytes;
                windows.wait_full();
                multiply<V>(acc, stages, parameters, unit, end, lane);
                subtract_zero_points<V>(acc, windows.data(), parameters, unit, end, lane);
                barrier_arrive(windows.empty());
                unit = end;
            }
        }
        if (s.first_unit > 0) {
            leave_partial<V>(acc, p, lane);
        } else {
            TokenScales<V> scales;
            if (V::kScalesEarly) scales.load(p, locate<V>(p, s.tile), lane);
            if (s.end_unit < p.units) add_partials<V>(acc, p, s.tile, values, lane);
            const Place place = locate<V>(p, s.tile);
            if (!V::kScalesEarly) scales.load(p, place, lane);
            store_tile<V>(acc, scales, p, place, lane);
        }
    }
}

template <class V>
__device__ __forceinline__ void init_barriers(uint32_t shared) {
    for (Stages<V> stages(shared); stages.phase == 0; stages.advance()) {
        barrier_init(stages.full(), 1);
        barrier_init(stages.empty(), 4 * V::kMultipliers * (32 + V::kCluster - 1));
    }
    for (Windows<V> windows(shared); windows.phase == 0; windows.advance()) {
        barrier_init(windows.full(), 2);  // parameters, group sums
        barrier_init(windows.empty(), 128 * V::kMultipliers);
    }
    barrier_init_fence();
}

template <class V>
__device__ __forceinline__ void run(const CUtensorMap* x, const Problem& p) {
    extern __shared__ __align__(1024) uint8_t dynamic_shared[];
    const uint32_t shared = warp_uniform(shared_address(dynamic_shared));
    [[maybe_unused]] Early early;
    if constexpr (V::kFew) {
        if (warp_uniform(threadIdx.x / 32) == 0) {
            if (threadIdx.x == 0) init_barriers<V>(shared);
            __syncwarp();
            early = copy_early<V>(shared, p, threadIdx.x);
            if (threadIdx.x == 0) prefetch_tensor_map(x);
        }
    } else if (threadIdx.x == 0) {
        prefetch_tensor_map(x);
        init_barriers<V>(shared);
    }
    if constexpr (V::kCluster > 1) cluster_sync_barriers();
    else __syncthreads();
    grid_release_successor();
    if (V::kResident > 1 && threadIdx.x >= V::kThreads) {  // in every second launch, see w4a8_sm90.cu
        grid_wait_predecessor();
        return;
    }
    if (warp_uniform(threadIdx.x / 128) == 0) {
        registers_shrink<V::kCopierRegisters>();
        const int warp = warp_uniform(threadIdx.x / 32);
        if constexpr (V::kFew) {
            if (warp == 0) copy_few<V>(shared, x, p, early, threadIdx.x);
        } else {
            if (warp == 0) copy<V>(shared, x, p, threadIdx.x);
        }
        if (warp == 1 || warp == 2) split_group_sums<V>(shared, p, threadIdx.x - 32);
    } else {
        registers_grow<V::kMultiplierRegisters>();
        consume<V>(shared, p);
    }
    if constexpr (V::kCluster > 1) cluster_sync_divergent();  // until then neighbours write into this block's shared memory
}

}  // namespace w4a8
