// W4A16: INT4 AWQ weights x bf16 or f16 activations on Hopper's tensor cores.
//
//   Y[m,n] = sum_g s[g,n] * sum_{k in g} (q[k,n] - z[g,n]) * x[m,k]  + bias[n]
//
// ONE OUTPUT TILE (features x tokens) is the work of one block; the weights are the 64-row register operand of wgmma, tokens
// are its N. Tiles over blocks: tiles.cuh. Inside a block:
//
//                    tokens (kTokens)         warpgroup 0: warp 0 copies, by bulk loads; warps 1 and 2 turn activations
//                 +-------------------+         others:      multiply, kBlocks feature blocks each (2 drawn)
//   feature block |  64 x kTokens     | ─┐
//   (64 features) +-------------------+  ├ wg 1   a ring of kStages stages, one unit of 128 along K each:
//                 |  64 x kTokens     | ─┘             [ x: 2 x (kTokens x 64), 128-byte swizzle ][ codes of each block ]
//                 +-------------------+           and two buffers for a window of 8 groups:
//                 |        ...        |                [ scales and zero points of each block ]
//
// A multiplying warpgroup, for each block and group: nibbles -> q - z in 16 bits, in registers -> wgmma into a fresh accumulator
// -> promoted in f32:  acc += s * part. So no weight is ever rounded.
//
//   Widening: the bits 0x00q0 and 0x000q of a 16-bit float are q in units of its smallest number, the subnormals and the first
//   normals being one linear ramp. So a mask leaves two codes in a word, and one fused multiply-add makes them
//   (q - z) * kStep, exactly: 9 instructions for 8 weights. 1 / kStep goes into the epilogue.
//
//   Up to 16 tokens of bf16 (kRaw) the mask is all: 5 instructions for 8 weights, and operands whose bits toggle less, where the
//   card's power decides its clock. Rows r have q, rows r + 8 have 16 q, which their scales take back. Zero points are taken out
//   after the products: acc += s * (part - z * X), with X the sum of x over the group, which the turning warps add up.
//
//   Turning: the packed order (drawn in src/pack.rs) was made for e4m3: thread t of a quad has in one word the codes
//   k = 4t .. 4t + 3 of each 16 along K, and the mask takes every second one. wgmma of 16-bit types gives that thread
//   2t, 2t + 1 and 8 + 2t, 9 + 2t. A product may sum K in any order, so the activations are turned instead:
//       0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15   ->   0 2  4 6  8 10  12 14 | 1 3  5 7  9 11  13 15
//   Two warps do that in shared memory, stage by stage, between the copy engine and the multipliers.
#pragma once
#include <peregrine/bulk_copy.cuh>
#include <peregrine/fp8.cuh>
#include <peregrine/mbarrier.cuh>
#include <peregrine/shared.cuh>
#include <peregrine/sync.cuh>
#include <peregrine/wgmma.cuh>

#include "w4a16_plan.cuh"

namespace w4a16 {

// ---- Warp 0: copies ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ CachePolicy weights_policy(const Problem& p) {
    return p.weights_stream_once ? CachePolicy::evict_first : CachePolicy::normal;
}

template <class V>
__device__ __forceinline__ void load_unit(const Stages<V>& stages, const Problem& p, const Runs<V>& runs, int unit) {
    barrier_expect_bytes(stages.full(), V::kXBytes + runs.tile_blocks() * kCodeBytes);
    runs.template load<kCodeBytes>(stages.data() + V::kXBytes, p.codes, unit, p.work.units, stages.full(), weights_policy(p));
}

template <class V>
__device__ __forceinline__ void load_window(const Windows<V>& windows, const Problem& p, const Runs<V>& runs, int window) {
    barrier_expect_bytes(windows.full(), runs.tile_blocks() * kParameterBytes);
    runs.template load<kParameterBytes>(windows.data(), p.parameters, window, p.work.windows, windows.full(), weights_policy(p));
}

template <class V>
__device__ __forceinline__ Early copy_early(uint32_t shared, const Problem& p, int lane) {
    return packed::copy_early<V>(
        Stages<V>(shared), Windows<V>(shared), p.work, lane,
        [&](const Stages<V>& stages, const Runs<V>& runs, int unit) { load_unit<V>(stages, p, runs, unit); },
        [&](const Windows<V>& windows, const Runs<V>& runs, int window) { load_window<V>(windows, p, runs, window); });
}

template <class V>
__device__ __forceinline__ void copy(uint32_t shared, const CUtensorMap* x, const Problem& p, Early early, int lane) {
    grid_wait_predecessor();
    Segment s;
    Stages<V> stages(shared);
    Windows<V> windows(shared);
    for (Schedule<V> schedule(p.work); schedule.next(p.work, s);) {
        const Place place = locate<V>(p.work, s.tile);
        const Runs<V> runs(p.work, place);
        for (int unit = s.first_unit; unit < s.end_unit; ++unit, stages.advance()) {
            if (unit == s.first_unit || unit % V::kWindowUnits == 0) {
                if (--early.windows < 0) {
                    windows.wait_empty();
                    if (lane == 0) load_window<V>(windows, p, runs, unit / V::kWindowUnits);
                }
                windows.advance();
            }
            if (--early.units < 0) {
                stages.wait_empty();
                if (lane == 0) load_unit<V>(stages, p, runs, unit);
            }
            if (lane < 2) {
                tensor_load_2d(stages.data() + lane * V::kBoxBytes, x, unit * kUnit + lane * 64, place.token_tile * V::kTokens,
                               stages.full(), CachePolicy::evict_last);
            }
        }
    }
}

// ---- Warps 1 and 2: each 16 activations change places ------------------------------------------------------------------

constexpr int kTurners = 64;

// Of 16 numbers those at even places (halves 0x5410 of each two words) or odd ones (0x7632).
__device__ __forceinline__ uint4 every_second(uint4 low, uint4 high, uint32_t halves) {
    return make_uint4(__byte_perm(low.x, low.y, halves), __byte_perm(low.z, low.w, halves), __byte_perm(high.x, high.y, halves),
                      __byte_perm(high.z, high.w, halves));
}

template <class V>
__device__ __forceinline__ float sum_of_8(const uint4& v) {
    const float2 a = V::Type::floats(v.x), b = V::Type::floats(v.y), c = V::Type::floats(v.z), d = V::Type::floats(v.w);
    return ((a.x + a.y) + (b.x + b.y)) + ((c.x + c.y) + (d.x + d.y));
}

template <class V>
__device__ __forceinline__ uint4 raised(const uint4& v) {
    return make_uint4(V::Type::raised(v.x), V::Type::raised(v.y), V::Type::raised(v.z), V::Type::raised(v.w));
}

// The stage's group sums, in units of the products', from a thread's sums of the 16s that it turned. Four threads have a row's box,
// a warp has 8 rows; with 8 tokens the warps have a box each.
template <class V, int kBoxes>
__device__ __forceinline__ void leave_group_sums(uint32_t to, float (&sums)[kBoxes], int thread) {
    const int warp = thread / 32, token = thread / 4 % V::kTokens;
#pragma unroll
    for (float& sum : sums) {
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    }
    const bool stores = thread % 4 == 0;
    const auto store = [&](int group, float sum) {
        if (stores) shared_store_32(to + (group * V::kTokens + token) * 4, __float_as_uint(sum));
    };
    if constexpr (V::kGroups == 2) {
#pragma unroll
        for (int i = 0; i < kBoxes; ++i) store(kBoxes == 2 ? i : warp, V::Type::kRawStep * sums[i]);
    } else if constexpr (kBoxes == 2) {
        store(0, V::Type::kRawStep * (sums[0] + sums[1]));
    } else {
        if (warp == 1) store(0, sums[0]);
        named_barrier_sync(1 + V::kMultipliers, kTurners);
        if (warp == 0 && stores) {
            const float other = __uint_as_float(shared_load_32(to + token * 4));
            store(0, V::Type::kRawStep * (sums[0] + other));
        }
    }
}

template <class V>
__device__ __forceinline__ void turn(uint32_t shared, const Problem& p, int thread) {
    // A 16 of a row is two 16-byte chunks c and c + 1 (c even), at c ^ (row % 8) and that ^ 1. Four 16s of two rows are one
    // pass over all banks. A thread has the same place in every pass: rows advance by kTurners / 4, a multiple of 8. Passes
    // are both boxes of 64 along K, or, with 8 tokens, half of the threads have the one and half the other.
    constexpr int kRows = kTurners / 4, kBoxes = V::kTokens < kRows ? 1 : 2, kRounds = (V::kTokens + kRows - 1) / kRows;
    static_assert(V::kTokens == 8 || V::kTokens % kRows == 0);
    const int row = thread / 4 % V::kTokens, box = thread / 4 / V::kTokens;
    const int at = box * V::kBoxBytes + row * 128 + ((2 * (thread % 4)) ^ (row % 8)) * 16;
    Segment s;
    Stages<V> stages(shared);
    for (Schedule<V> schedule(p.work); schedule.next(p.work, s);) {
        for (int unit = s.first_unit; unit < s.end_unit; ++unit, stages.advance()) {
            const uint32_t first = stages.data() + at;
            stages.wait_full();
#pragma unroll 1
            for (int round = 0; round < kRounds; ++round) {
                uint4 low[kBoxes], high[kBoxes];
                float sums[kBoxes];
#pragma unroll
                for (int i = 0; i < kBoxes; ++i) {
                    const uint32_t from = first + round * kRows * 128 + i * V::kBoxBytes;
                    low[i] = shared_load_128(from);
                    high[i] = shared_load_128(from ^ 16);
                }
#pragma unroll
                for (int i = 0; i < kBoxes; ++i) {
                    const uint32_t to = first + round * kRows * 128 + i * V::kBoxBytes;
                    if (V::kRaw) {
                        sums[i] = sum_of_8<V>(low[i]) + sum_of_8<V>(high[i]);
                        low[i] = raised<V>(low[i]);
                        high[i] = raised<V>(high[i]);
                    }
                    shared_store_128(to, every_second(low[i], high[i], 0x5410));
                    shared_store_128(to ^ 16, every_second(low[i], high[i], 0x7632));
                }
                if constexpr (V::kRaw) {
                    static_assert(kRounds == 1);
                    leave_group_sums<V>(stages.group_sums(shared), sums, thread);
                }
            }
            fence_async_shared();
            barrier_arrive(stages.turned());
        }
    }
}

// ---- The multiplying warpgroups ----------------------------------------------------------------------------------------

struct Codes {
    uint32_t words[8];  // one for each 16 along K
    __device__ __forceinline__ void load(uint32_t block, int thread) {
        const uint4 a = shared_load_128(block + thread * 16), b = shared_load_128(block + 2048 + thread * 16);
        words[0] = a.x, words[1] = a.y, words[2] = a.z, words[3] = a.w;
        words[4] = b.x, words[5] = b.y, words[6] = b.z, words[7] = b.w;
    }
};

// Scales and zero points of rows r and r + 8 in one group.
template <class V, bool kRaw = V::kRaw>
struct Group {
    float scale[2];
    uint32_t minus_zero[2];  // -z * kStep, twice
    __device__ __forceinline__ void load(uint32_t parameters, int in_window, int row) {
        const uint32_t scales = shared_load_32(parameters + in_window * 2 * kBlockFeatures + 4 * row);
        const uint32_t zeros = shared_load_8(parameters + kScaleBytes + in_window * kBlockFeatures / 2 + row);
        scale[0] = f32_from_f16(static_cast<uint16_t>(scales));
        scale[1] = f32_from_f16(static_cast<uint16_t>(scales >> 16));
        const uint32_t twice = __byte_perm(zeros, 0, 0x4040);
        minus_zero[0] = V::Type::multiply_add(twice & 0x000f000fu, V::Type::kLow ^ 0x80008000u, 0x80008000u);
        minus_zero[1] = V::Type::multiply_add(twice & 0x00f000f0u, V::Type::kHigh ^ 0x80008000u, 0x80008000u);
    }
    // One step of 16 along K as wgmma's register operand.
    __device__ __forceinline__ void widen(uint32_t (&a)[4], uint32_t word) const {
        const uint32_t odd = word >> 8;
        a[0] = V::Type::multiply_add(word & 0x000f000fu, V::Type::kLow, minus_zero[0]);
        a[1] = V::Type::multiply_add(word & 0x00f000f0u, V::Type::kHigh, minus_zero[1]);
        a[2] = V::Type::multiply_add(odd & 0x000f000fu, V::Type::kLow, minus_zero[0]);
        a[3] = V::Type::multiply_add(odd & 0x00f000f0u, V::Type::kHigh, minus_zero[1]);
        wgmma_pin(a);
    }
};

// The same of raw codes. Those of row r + 8 are 16-fold: so is its zero point, and its scale is a sixteenth.
template <class V>
struct Group<V, true> {
    float scale[2], minus_zero[2];
    __device__ __forceinline__ void load(uint32_t parameters, int in_window, int row) {
        const uint32_t scales = shared_load_32(parameters + in_window * 2 * kBlockFeatures + 4 * row);
        const uint32_t zeros = shared_load_8(parameters + kScaleBytes + in_window * kBlockFeatures / 2 + row);
        scale[0] = f32_from_f16(static_cast<uint16_t>(scales));
        scale[1] = 0x1p-4f * f32_from_f16(static_cast<uint16_t>(scales >> 16));
        // 0x4b000000 is 2^23, whose last bit is 1.
        minus_zero[0] = 0x1p23f - __uint_as_float((zeros & 0x0fu) | 0x4b000000u);
        minus_zero[1] = 0x1p23f - __uint_as_float((zeros & 0xf0u) | 0x4b000000u);
    }
    __device__ __forceinline__ void widen(uint32_t (&a)[4], uint32_t word) const {
        const uint32_t odd = word >> 8;
        a[0] = word & 0x000f000fu;
        a[1] = word & 0x00f000f0u;
        a[2] = odd & 0x000f000fu;
        a[3] = odd & 0x00f000f0u;
        wgmma_pin(a);
    }
};

// Group sums of a thread's tokens in one unit.
template <class V>
struct Sums {
    static constexpr int kPairs = V::kValues / 4;
    uint2 pairs[V::kGroups][kPairs];
    __device__ __forceinline__ void load(uint32_t stage_sums, const Lane& lane) {
#pragma unroll
        for (int i = 0; i < V::kGroups * kPairs; ++i) {
            pairs[i / kPairs][i % kPairs] = shared_load_64(stage_sums + (8 * i + 2 * lane.column) * 4);
        }
    }
};

// acc += s * part, or s * (part - z * X), row by row: consecutive FMAs then share the scale's register read.
template <class V>
__device__ __forceinline__ void promote(float* acc, float (&part)[V::kChainValues], const Group<V>& group, const uint2* sums) {
    wgmma_pin(part);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int i = 2 * row; i < V::kChainValues; i += 4) {
            if constexpr (V::kRaw) {
                part[i] = fmaf(group.minus_zero[row], __uint_as_float(sums[i / 4].x), part[i]);
                part[i + 1] = fmaf(group.minus_zero[row], __uint_as_float(sums[i / 4].y), part[i + 1]);
            }
            acc[i] = fmaf(group.scale[row], part[i], acc[i]);
            acc[i + 1] = fmaf(group.scale[row], part[i + 1], acc[i + 1]);
        }
    }
}

// Accumulates units first .. end of one window, whose parameters are those of the warpgroup's blocks.
template <class V>
__device__ __forceinline__ void multiply(Accumulators<V>& acc, Stages<V>& stages, uint32_t shared, uint32_t parameters, int first,
                                         int end, const Lane& lane) {
    const uint32_t blocks = V::kXBytes + lane.multiplier * V::kBlocks * kCodeBytes;
    const int row = 8 * lane.warp + lane.row;
    Codes codes;
    uint32_t a[V::kFragmentSets][V::kPiece][4];
    float part[V::kChainValues];

    // Steps first .. of a group's products over a slice, from the fragments of one set.
    const auto issue = [&](uint32_t x, const uint32_t(&fragments)[V::kPiece][4], int group, int piece, int slice) {
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < V::kPiece; ++i) {
            const int step = piece * V::kPiece + i, k = group * V::kSteps + step;
            const uint32_t tile = x + (k / 4 * V::kBoxBytes + slice * V::kSlice * 128) / 16 + 2 * (k % 4);
            V::Type::template multiply<V::kSlice>(part, fragments[i], wgmma_descriptor_from_low<Swizzle::bytes_128>(tile), step > 0);
        }
        wgmma_commit();
    };
    stages.wait_full();
    codes.load(stages.data() + blocks, lane.thread);
    for (int unit = first; unit < end; ++unit) {
        const uint32_t data = stages.data(), release = stages.empty(), group_sums = stages.group_sums(shared);
        Sums<V> sums;
        const uint32_t x = warp_uniform(wgmma_descriptor_low<Swizzle::bytes_128>(data));
        const bool more = unit + 1 < end;
        stages.wait_turned();
        stages.advance();
        if (V::kRaw) sums.load(group_sums, lane);
#pragma unroll
        for (int block = 0; block < V::kBlocks; ++block) {
#pragma unroll
            for (int g = 0; g < V::kGroups; ++g) {
                Group<V> group;
                group.load(parameters + block * kParameterBytes, (unit * V::kGroups + g) % kWindow, row);
#pragma unroll
                for (int piece = 0; piece < V::kPieces; ++piece) {
                    uint32_t(&fragments)[V::kPiece][4] = a[piece % V::kFragmentSets];
                    if (piece >= V::kFragmentSets) {
                        wgmma_wait<V::kFragmentSets - 1>();
#pragma unroll
                        for (int i = 0; i < V::kPiece; ++i) wgmma_pin(fragments[i]);
                    }
#pragma unroll
                    for (int i = 0; i < V::kPiece; ++i) group.widen(fragments[i], codes.words[g * V::kSteps + piece * V::kPiece + i]);
                    issue(x, fragments, g, piece, 0);
                }
                // The next codes arrive while the products run.
                const bool last = block == V::kBlocks - 1 && g == V::kGroups - 1;
                if (g == V::kGroups - 1 && block + 1 < V::kBlocks) codes.load(data + blocks + (block + 1) * kCodeBytes, lane.thread);
#pragma unroll
                for (int slice = 0; slice < V::kSlices; ++slice) {
                    wgmma_wait<0>();
                    // A later use of the fragments: they keep their registers until the products are done (wgmma.cuh).
#pragma unroll
                    for (int set = 0; set < V::kFragmentSets; ++set) {
#pragma unroll
                        for (int i = 0; i < V::kPiece; ++i) wgmma_pin(a[set][i]);
                    }
                    if (last && slice == V::kSlices - 1) barrier_arrive(release);
                    promote<V>(acc[block] + slice * V::kChainValues, part, group, sums.pairs[g]);
                    if (slice + 1 < V::kSlices) {
#pragma unroll
                        for (int piece = 0; piece < V::kPieces; ++piece) issue(x, a[piece], g, piece, slice + 1);
                    }
                }
            }
        }
        if (more) {
            stages.wait_full();
            codes.load(stages.data() + blocks, lane.thread);
        }
    }
}

// ---- The epilogue ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t transposed_pair(float low, float high, int f16) {
    const uint32_t fragment = f16 ? f16x2_from_f32(low, high) : bf16x2_from_f32(low, high);
    uint32_t transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(fragment));
    return transposed;
}

// D has features as rows, Y has them innermost: 8x8 blocks are transposed in registers, then neighbouring lanes trade words so
// that the four lanes of a token store its 16 features as one 32-byte sector.
template <class V>
__device__ __forceinline__ void store_tile(const Accumulators<V>& acc, const Problem& p, const Place& place, const Lane& lane) {
    constexpr float kScale = 1 / V::kUnitOfSums;
    const bool odd = lane.column % 2;
    const int first_token = place.token_tile * V::kTokens;
#pragma unroll
    for (int i = 0; i < V::kBlocks; ++i) {
        const int block = (place.feature_tile * V::kMultipliers + lane.multiplier) * V::kBlocks + i;
        const int feature = block * kBlockFeatures + lane.warp * 16;
        if (feature >= p.work.features) return;
        const float bias_low = p.bias ? __ldg(p.bias + feature + lane.row) : 0.0f;
        const float bias_high = p.bias ? __ldg(p.bias + feature + lane.row + 8) : 0.0f;
#pragma unroll
        for (int j = 0; j < V::kTokens / 8; ++j) {
            if (first_token + 8 * j >= p.work.tokens) break;
            const float* d = acc[i] + 4 * j;
            const uint32_t low = transposed_pair(fmaf(d[0], kScale, bias_low), fmaf(d[1], kScale, bias_low), p.output_f16);
            const uint32_t high = transposed_pair(fmaf(d[2], kScale, bias_high), fmaf(d[3], kScale, bias_high), p.output_f16);
            const uint32_t traded = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
            const int token = first_token + 8 * j + lane.row;
            if (token < p.work.tokens) {
                uint16_t* row = static_cast<uint16_t*>(p.output) + static_cast<int64_t>(token) * p.work.features + feature;
                const uint2 words = odd ? make_uint2(traded, high) : make_uint2(low, traded);
                *reinterpret_cast<uint2*>(row + 8 * (lane.column % 2) + 4 * (lane.column / 2)) = words;
            }
        }
    }
}

// ---- The kernel ---------------------------------------------------------------------------------------------------------

template <class V>
__device__ __forceinline__ void consume(uint32_t shared, const Problem& p) {
    const Lane lane;
    Schedule<V> schedule(p.work);
    Segment s;
    Stages<V> stages(shared);
    Windows<V> windows(shared);
    grid_wait_predecessor();
    while (schedule.next(p.work, s)) {
        Accumulators<V> acc = {};
        const int values = values_behind<V>(p.work, s);
        for (int unit = s.first_unit; unit < s.end_unit; windows.advance()) {
            const int end = window_end<V>(s, unit);
            windows.wait_full();
            multiply<V>(acc, stages, shared, windows.data() + lane.multiplier * V::kBlocks * kParameterBytes, unit, end, lane);
            barrier_arrive(windows.empty());
            unit = end;
        }
        if (s.first_unit > 0) {
            leave_partial<V>(acc, p.work, lane);
        } else {
            if (s.end_unit < p.work.units) add_partials<V>(acc, p.work, s.tile, values, lane);
            store_tile<V>(acc, p, locate<V>(p.work, s.tile), lane);
        }
    }
}

// All threads that read a buffer hand it back. A warp's 32 arrivals cost no more than one's, and compute-sanitizer's racecheck follows a
// barrier by the threads that arrive.
template <class V>
__device__ __forceinline__ void init_barriers(uint32_t shared) {
    for (Stages<V> stages(shared); stages.phase == 0; stages.advance()) {
        barrier_init(stages.full(), 1);
        barrier_init(stages.empty(), 128 * V::kMultipliers);
        barrier_init(stages.turned(), kTurners);
    }
    for (Windows<V> windows(shared); windows.phase == 0; windows.advance()) {
        barrier_init(windows.full(), 1);
        barrier_init(windows.empty(), 128 * V::kMultipliers);
    }
    barrier_init_fence();
}

template <class V>
__device__ __forceinline__ void run(const CUtensorMap* x, const Problem& p) {
    extern __shared__ __align__(1024) uint8_t dynamic_shared[];
    const uint32_t shared = warp_uniform(shared_address(dynamic_shared));
    Early early;
    if (warp_uniform(threadIdx.x / 32) == 0) {
        if (threadIdx.x == 0) init_barriers<V>(shared);
        __syncwarp();
        early = copy_early<V>(shared, p, threadIdx.x);
        if (threadIdx.x == 0) prefetch_tensor_map(x);
    }
    __syncthreads();
    grid_release_successor();
    if (warp_uniform(threadIdx.x / 128) == 0) {
        registers_shrink<V::kCopierRegisters>();
        const int warp = warp_uniform(threadIdx.x / 32);
        if (warp == 0) copy<V>(shared, x, p, early, threadIdx.x);
        if (warp == 1 || warp == 2) turn<V>(shared, p, threadIdx.x - 32);
    } else {
        registers_grow<V::kMultiplierRegisters>();
        consume<V>(shared, p);
    }
}

}  // namespace w4a16
