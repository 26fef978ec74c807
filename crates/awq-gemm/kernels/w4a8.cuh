// W4A8: INT4 AWQ weights x e4m3 activations on Hopper's tensor cores.
//
//   Y[m,n] = xs[m] * sum_g s[g,n] * sum_{k in g} (q[k,n] - z[g,n]) * x[m,k]  + bias[n]
//
// ONE OUTPUT TILE (features x tokens) is the work of one block; the weights are the 64-row operand of wgmma, tokens are its N,
// so a batch of 5 wastes 3 columns of 8 and not 59 rows of 64:
//
//                     tokens (kTokens)              warpgroup 0 (128 threads)   copies: one thread issues bulk loads into
//                 +-------------------+             warpgroup 1 ┐               a ring of kStages stages, a stage being
//   feature block |  64 x kTokens     | ─┐          warpgroup 2 ┘ multiply      one *unit* of 128 along K:
//   (64 features) +-------------------+  ├ wg 1
//                 |  64 x kTokens     | ─┘            stage:  [ x: kTokens x 128 e4m3, swizzled      ]
//                 +-------------------+                       [ packed weights: one unit per block   ]
//                 |  64 x kTokens     | ─┐                    [ group sums of x: f32, kTokens a group]
//                 +-------------------+  ├ wg 2
//                 |  64 x kTokens     | ─┘          kBlocks feature blocks per multiplying warpgroup (2 drawn)
//                 +-------------------+
//
// Per unit, block and group a multiplying warpgroup (a) loads its nibbles, 16 bytes a thread, (b) widens them to e4m3 in
// registers, (c) runs wgmma into a fresh accumulator, (d) promotes it:  acc += (512 s) * (part - (z / 512) * group_sum).
//
//   (b) The bytes 0x00..0x0f are exactly 0..15 times 2^-9 in e4m3, so widening is a mask and a shift: 3 instructions for
//       8 weights. The raw unsigned codes also toggle fewer bits in the multiplier than centred ones, which the power cap repays.
//   (d) takes the zero points out with the sum of the quantized activations over the group, which the quantizing kernel
//       writes beside them, and keeps only 128 products in the tensor core's short accumulator.
//
// BETWEEN BLOCKS the grid is persistent, one block per multiprocessor. The first `stream_tiles` tiles are cut evenly along
// (tile, K unit) over all blocks, so that no block idles in a last wave; the remaining tiles, a multiple of the grid, go whole:
//
//    block:     0        1        2       3          a block that starts inside a tile leaves an f32 partial in the workspace;
//            |-------|-------|-------|-------|       the block that holds a tile's first unit adds the partials of the blocks
//    tiles:  [    0    ][    1    ][    2    ]       after it, in order: the sum is the same on every run
//
// PACKED WEIGHTS. Features in blocks of 64 (b), K in units of 128 (u, the last padded with zeros); unit (b, u) starts at byte
// (b * units + u) * kUnitBytes, with G = 128 / group_size groups in a unit:
//
//    [ codes, 4096 bytes ][ scales, G x 64 f16 ][ zero points, G x 32 bytes ]
//
//    code (feature n, input k) of the unit, n = 16 w + 8 h + r, k = 64 j + 32 i + 16 c + 4 t + e:
//        byte  2048 j + 16 (32 w + 4 r + t) + 8 i + 4 c + e,   nibble h (0 low, 1 high)
//          n: w 0..3 | h 0..1 | r 0..7          thread 32 w + 4 r + t loads bytes 16 thread .. +15 of half j
//          k: j 0..1 | i 0..1 | c 0..1 | t 0..3 | e 0..3
//    scale (group g of the unit, feature n):       f16 at 4096 + 128 g + 4 (8 w + r) + 2 h
//    zero point (group g, feature n):              byte 4096 + 128 G + 32 g + 8 w + r, nibble h
//
// So one 32-bit word of codes holds, masked, a whole fragment register of row r (low nibbles) and of row r + 8 (high).
#pragma once
#include <peregrine/bulk_copy.cuh>
#include <peregrine/fp8.cuh>
#include <peregrine/mbarrier.cuh>
#include <peregrine/sync.cuh>
#include <peregrine/wgmma.cuh>

namespace w4a8 {

using namespace peregrine;

constexpr int kUnit = 128;          // K per stage: one row of the 128-byte swizzle
constexpr int kBlockFeatures = 64;  // rows of one wgmma
constexpr int kMultipliers = 2;     // multiplying warpgroups
constexpr int kThreads = 128 * (1 + kMultipliers);
constexpr float kCodeUnit = 512.0f;  // a code's e4m3 value times this is the code

// What a launch needs to know; plain data, the same for every variant.
struct Problem {
    const uint8_t* weights;      // packed as above
    const float* token_scales;   // xs[m * token_scale_stride]
    const float* bias;           // [features] or null
    void* output;                // [tokens, features], bf16 or f16
    float* partials;             // workspace, see Variant::kPartialFloats
    uint32_t* flags;             // workspace, kMultipliers per block, zero before and after every launch
    int32_t tokens, features, units;
    int32_t stream_tiles;        // tiles cut along K; the rest is a multiple of the grid
    int32_t panel_tiles;         // token tiles that run side by side before the features advance
    int32_t token_scale_stride;  // 1 per token, 0 per tensor
    int32_t output_f16;          // 0: bf16
    int32_t weights_stream_once; // 1: evict first
};

template <int kTokens_, int kBlocks_, int kGroup_, int kStages_, int kInFlight_>
struct Variant {
    static constexpr int kTokens = kTokens_;      // tokens of a tile
    static constexpr int kBlocks = kBlocks_;      // feature blocks per multiplying warpgroup
    static constexpr int kGroup = kGroup_;        // group_size of the scales
    static constexpr int kStages = kStages_;
    static constexpr int kInFlight = kInFlight_;  // blocks whose products run together: one accumulator set each
    static constexpr int kGroups = kUnit / kGroup;
    static constexpr int kSteps = kGroup / 32;    // wgmma steps per group
    static constexpr int kValues = kTokens / 2;   // accumulators per thread and block
    static constexpr int kTileBlocks = kBlocks * kMultipliers;

    // The next codes are loaded while the products run if registers allow, else when the widened codes are no longer needed.
    static constexpr bool kLoadEarly = (kBlocks + kInFlight) * kValues <= 128;

    static constexpr int kCodeBytes = kBlockFeatures * kUnit / 2;
    static constexpr int kUnitBytes = kCodeBytes + kGroups * (2 * kBlockFeatures + kBlockFeatures / 2);
    static constexpr int kXBytes = kTokens * kUnit;
    static constexpr int kWeightBytes = kTileBlocks * kUnitBytes;
    static constexpr int kSumBytes = kGroups * kTokens * 4;
    static constexpr int kSumOffset = (kXBytes + kWeightBytes + 127) / 128 * 128;
    static constexpr int kStageBytes = (kSumOffset + kSumBytes + 1023) / 1024 * 1024;
    static constexpr int kBarrierBytes = 1024;
    static constexpr int kSharedBytes = kBarrierBytes + kStages * kStageBytes;
    static constexpr int kPartialFloats = kTileBlocks * kBlockFeatures * kTokens;  // per block of the grid

    static_assert(kGroup == 64 || kGroup == 128, "scales come in groups of 64 or 128");
    static_assert(kTokens % 8 == 0 && kTokens <= 256);
    static_assert(kBlocks % kInFlight == 0);
    static_assert(kUnitBytes % 16 == 0, "bulk copies move multiples of 16 bytes");
    static_assert(kXBytes % 1024 == 0, "the swizzle repeats every 1024 bytes");
    static_assert(kSharedBytes <= 227 * 1024 && kStages >= 2);
    static_assert(2 * kStages * 8 <= kBarrierBytes);
};

// A run of units of one tile.
struct Segment {
    int tile, first_unit, end_unit;
};

// Where a tile lies. Tiles are numbered in panels of `panel_tiles` token tiles; inside a panel tokens vary fastest, so that
// blocks that run together share weights in L2, and a panel's activations stay there.
struct Place {
    int feature_tile, token_tile;
};

template <class V>
__device__ __forceinline__ int feature_tiles(const Problem& p) {
    return (p.features + kBlockFeatures * V::kTileBlocks - 1) / (kBlockFeatures * V::kTileBlocks);
}
template <class V>
__device__ __forceinline__ int token_tiles(const Problem& p) {
    return (p.tokens + V::kTokens - 1) / V::kTokens;
}

template <class V>
__device__ __forceinline__ Place locate(const Problem& p, int tile) {
    const int panel_size = p.panel_tiles * feature_tiles<V>(p);
    const int panel = tile / panel_size;
    const int in_panel = tile - panel * panel_size;
    const int width = min(p.panel_tiles, token_tiles<V>(p) - panel * p.panel_tiles);
    const int feature_tile = in_panel / width;
    return {feature_tile, panel * p.panel_tiles + in_panel - feature_tile * width};
}

// First unit of a block's share of the streamed tiles, counted over all of them.
__device__ __forceinline__ int stream_begin(const Problem& p, uint32_t block) {
    return static_cast<int>(static_cast<uint64_t>(p.stream_tiles) * p.units * block / gridDim.x);
}

// The segments of this block, in order: its share of the streamed tiles, then whole tiles. Producer and multipliers walk the same.
template <class V>
struct Schedule {
    int position, stream_end, next_whole;

    __device__ __forceinline__ explicit Schedule(const Problem& p)
        : position(stream_begin(p, blockIdx.x)),
          stream_end(stream_begin(p, blockIdx.x + 1)),
          next_whole(p.stream_tiles + blockIdx.x) {}

    __device__ __forceinline__ bool next(const Problem& p, Segment& s) {
        if (position < stream_end) {
            s.tile = position / p.units;
            s.first_unit = position - s.tile * p.units;
            s.end_unit = min(p.units, s.first_unit + stream_end - position);
            position += s.end_unit - s.first_unit;
            return true;
        }
        s = {next_whole, 0, p.units};
        next_whole += gridDim.x;
        return s.tile < feature_tiles<V>(p) * token_tiles<V>(p);
    }
};

struct Ring {
    uint64_t* full;
    uint64_t* empty;
    uint8_t* stages;
};

// ---- The copying warp --------------------------------------------------------------------------------------------------

// Lane i issues the copy of feature block i.
template <class V>
__device__ __forceinline__ void load_weights(const Ring& ring, const Problem& p, const Place& place, int unit, int stage, int lane) {
    uint64_t* full = ring.full + stage;
    if (lane == 0) barrier_expect_bytes(full, V::kXBytes + V::kWeightBytes + V::kSumBytes);
    if (lane >= V::kTileBlocks) return;
    // A tile past the last feature multiplies the last block again and does not store it.
    const int block = min(place.feature_tile * V::kTileBlocks + lane, p.features / kBlockFeatures - 1);
    bulk_load(ring.stages + stage * V::kStageBytes + V::kXBytes + lane * V::kUnitBytes,
              p.weights + (static_cast<int64_t>(block) * p.units + unit) * V::kUnitBytes, V::kUnitBytes, full,
              p.weights_stream_once ? CachePolicy::evict_first : CachePolicy::normal);
}

template <class V>
__device__ __forceinline__ void load_activations(const Ring& ring, const CUtensorMap* x, const CUtensorMap* sums,
                                                 const Place& place, int unit, int stage, int lane) {
    uint64_t* full = ring.full + stage;
    uint8_t* target = ring.stages + stage * V::kStageBytes;
    const int token = place.token_tile * V::kTokens;
    if (lane == 0) tensor_load_2d(target, x, unit * kUnit, token, full, CachePolicy::evict_last);
    if (lane == 1) tensor_load_2d(target + V::kSumOffset, sums, token, unit * V::kGroups, full, CachePolicy::evict_last);
}

// Weights do not depend on the kernel before this one: the first stages' weights are on their way before it has finished.
template <class V>
__device__ __forceinline__ void produce(const Ring& ring, const CUtensorMap* x, const CUtensorMap* sums, const Problem& p) {
    const int lane = threadIdx.x;
    Segment s;
    int early = 0;
    for (Schedule<V> schedule(p); early < V::kStages && schedule.next(p, s);) {
        const Place place = locate<V>(p, s.tile);
        for (int unit = s.first_unit; unit < s.end_unit && early < V::kStages; ++unit, ++early) {
            load_weights<V>(ring, p, place, unit, early, lane);
        }
    }
    grid_wait_predecessor();
    int stage = 0, phase = 1;
    for (Schedule<V> schedule(p); schedule.next(p, s);) {
        const Place place = locate<V>(p, s.tile);
        for (int unit = s.first_unit; unit < s.end_unit; ++unit) {
            if (--early < 0) {
                barrier_wait(ring.empty + stage, phase);
                load_weights<V>(ring, p, place, unit, stage, lane);
            }
            load_activations<V>(ring, x, sums, place, unit, stage, lane);
            if (++stage == V::kStages) {
                stage = 0;
                phase ^= 1;
            }
        }
    }
}

// ---- The multiplying warpgroups ------------------------------------------------------------------------------------------

// Where a thread stands in its warpgroup and in the fragment layouts of wgmma.cuh.
struct Lane {
    int multiplier, thread, warp, row, column;
    __device__ __forceinline__ Lane() {
        multiplier = warp_uniform(threadIdx.x / 128) - 1;
        thread = threadIdx.x % 128;
        warp = thread / 32;
        row = thread % 32 / 4;
        column = thread % 4;
    }
};

template <class V>
using Accumulators = float[V::kBlocks][V::kValues];

// 16 bytes of codes are two wgmma steps; low nibbles are fragment rows r, high ones rows r + 8.
__device__ __forceinline__ void widen(const uint32_t low_k, const uint32_t high_k, uint32_t (&a)[4]) {
    a[0] = low_k & 0x0f0f0f0fu;
    a[1] = (low_k >> 4) & 0x0f0f0f0fu;
    a[2] = high_k & 0x0f0f0f0fu;
    a[3] = (high_k >> 4) & 0x0f0f0f0fu;
}

// Codes of kInFlight blocks of one unit, as they lie in shared memory.
template <class V>
struct Codes {
    uint4 half[V::kInFlight][2];
    __device__ __forceinline__ void load(const uint8_t* blocks, int thread) {
#pragma unroll
        for (int i = 0; i < V::kInFlight; ++i) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                half[i][j] = *reinterpret_cast<const uint4*>(blocks + i * V::kUnitBytes + j * 2048 + thread * 16);
            }
        }
    }
};

// acc += (512 s) (part - (z / 512) group_sum) for one group of kInFlight blocks.
template <class V>
__device__ __forceinline__ void promote(float (&acc)[V::kInFlight][V::kValues], const float (&part)[V::kInFlight][V::kValues],
                                        const uint8_t* blocks, const float* sums, int group, const Lane& lane) {
    float scale[V::kInFlight][2], zero[V::kInFlight][2];
#pragma unroll
    for (int i = 0; i < V::kInFlight; ++i) {
        const uint8_t* parameters = blocks + i * V::kUnitBytes + V::kCodeBytes;
        const int row = lane.warp * 8 + lane.row;
        const uint32_t scales = *reinterpret_cast<const uint32_t*>(parameters + group * 128 + row * 4);
        const uint32_t zeros = parameters[V::kGroups * 128 + group * 32 + row];
        scale[i][0] = kCodeUnit * f32_from_f16(static_cast<uint16_t>(scales));
        scale[i][1] = kCodeUnit * f32_from_f16(static_cast<uint16_t>(scales >> 16));
        // A zero point is a code too: as an e4m3 byte it already carries the factor 2^-9.
        const float2 pair = f32x2_from_e4m3x2(static_cast<uint16_t>((zeros & 0x0f) | (zeros & 0xf0) << 4));
        zero[i][0] = pair.x;
        zero[i][1] = pair.y;
    }
#pragma unroll
    for (int j = 0; j < V::kTokens / 8; ++j) {
        const float2 sum = *reinterpret_cast<const float2*>(sums + group * V::kTokens + 8 * j + 2 * lane.column);
#pragma unroll
        for (int i = 0; i < V::kInFlight; ++i) {
            acc[i][4 * j + 0] = fmaf(scale[i][0], fmaf(-zero[i][0], sum.x, part[i][4 * j + 0]), acc[i][4 * j + 0]);
            acc[i][4 * j + 1] = fmaf(scale[i][0], fmaf(-zero[i][0], sum.y, part[i][4 * j + 1]), acc[i][4 * j + 1]);
            acc[i][4 * j + 2] = fmaf(scale[i][1], fmaf(-zero[i][1], sum.x, part[i][4 * j + 2]), acc[i][4 * j + 2]);
            acc[i][4 * j + 3] = fmaf(scale[i][1], fmaf(-zero[i][1], sum.y, part[i][4 * j + 3]), acc[i][4 * j + 3]);
        }
    }
}

// Accumulates the units of one segment. While the products of some blocks run, the codes of the next are loaded.
template <class V>
__device__ __forceinline__ void multiply(Accumulators<V>& acc, const Ring& ring, int units, int& stage, int& phase,
                                         const Lane& lane) {
    constexpr int kBatches = V::kBlocks / V::kInFlight;
    const int first_block = V::kXBytes + lane.multiplier * V::kBlocks * V::kUnitBytes;
    Codes<V> codes;
    barrier_wait(ring.full + stage, phase);
    codes.load(ring.stages + stage * V::kStageBytes + first_block, lane.thread);
    for (; units > 0; --units) {
        const uint8_t* base = ring.stages + stage * V::kStageBytes;
        const float* sums = reinterpret_cast<const float*>(base + V::kSumOffset);
        const uint64_t x = wgmma_descriptor<Swizzle::bytes_128>(base);
        uint64_t* release = ring.empty + stage;
        if (++stage == V::kStages) {
            stage = 0;
            phase ^= 1;
        }
#pragma unroll
        for (int batch = 0; batch < kBatches; ++batch) {
            const uint8_t* blocks = base + first_block + batch * V::kInFlight * V::kUnitBytes;
            float(&batch_acc)[V::kInFlight][V::kValues] =
                *reinterpret_cast<float(*)[V::kInFlight][V::kValues]>(&acc[batch * V::kInFlight]);
#pragma unroll
            for (int group = 0; group < V::kGroups; ++group) {
                float part[V::kInFlight][V::kValues];
                uint32_t a[V::kInFlight][V::kSteps][4];
#pragma unroll
                for (int i = 0; i < V::kInFlight; ++i) {
#pragma unroll
                    for (int step = 0; step < V::kSteps; ++step) {
                        const uint4 half = codes.half[i][(group * V::kSteps + step) / 2];
                        widen(step % 2 ? half.z : half.x, step % 2 ? half.w : half.y, a[i][step]);
                        wgmma_pin(a[i][step]);
                    }
                }
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < V::kInFlight; ++i) {
#pragma unroll
                    for (int step = 0; step < V::kSteps; ++step) {
                        Wgmma<V::kTokens>::e4m3(part[i], a[i][step], x + 2 * (group * V::kSteps + step), step > 0);
                    }
                }
                wgmma_commit();
                const auto load_next = [&] {
                    if (group < V::kGroups - 1) return;
                    if (batch < kBatches - 1) {
                        codes.load(blocks + V::kInFlight * V::kUnitBytes, lane.thread);
                    } else if (units > 1) {
                        barrier_wait(ring.full + stage, phase);
                        codes.load(ring.stages + stage * V::kStageBytes + first_block, lane.thread);
                    }
                };
                if (V::kLoadEarly) load_next();
                wgmma_wait<0>();
                if (!V::kLoadEarly) load_next();
                promote<V>(batch_acc, part, blocks, sums, group, lane);
            }
        }
        __syncwarp();
        if (lane.thread % 32 == 0) barrier_arrive(release);
    }
}

// ---- Between blocks ------------------------------------------------------------------------------------------------------

template <class V>
__device__ __forceinline__ float4* partial_slot(const Problem& p, uint32_t block, const Lane& lane) {
    constexpr int kVectors = V::kBlocks * V::kValues / 4;
    return reinterpret_cast<float4*>(p.partials) + (block * kMultipliers + lane.multiplier) * kVectors * 128 + lane.thread;
}

template <class V>
__device__ __forceinline__ void leave_partial(const Accumulators<V>& acc, const Problem& p, const Lane& lane) {
    float4* slot = partial_slot<V>(p, blockIdx.x, lane);
    const float4* values = reinterpret_cast<const float4*>(&acc[0][0]);
#pragma unroll
    for (int i = 0; i < V::kBlocks * V::kValues / 4; ++i) __stcg(slot + i * 128, values[i]);
    named_barrier_sync(1 + lane.multiplier, 128);
    if (lane.thread == 0) flag_release(p.flags + blockIdx.x * kMultipliers + lane.multiplier, 1);
}

// Adds, in the order of the blocks, what the blocks after this one have of the tile. They began with it, so they are done early.
template <class V>
__device__ __forceinline__ void add_partials(Accumulators<V>& acc, const Problem& p, int tile, const Lane& lane) {
    const int tile_end = (tile + 1) * p.units;
    for (uint32_t block = blockIdx.x + 1; block < gridDim.x && stream_begin(p, block) < tile_end; ++block) {
        if (stream_begin(p, block) == stream_begin(p, block + 1)) continue;
        uint32_t* flag = p.flags + block * kMultipliers + lane.multiplier;
        if (lane.thread == 0) {
            while (flag_acquire(flag) == 0) __nanosleep(32);
            *flag = 0;
        }
        named_barrier_sync(1 + lane.multiplier, 128);
        const float4* slot = partial_slot<V>(p, block, lane);
        float4* values = reinterpret_cast<float4*>(&acc[0][0]);
#pragma unroll
        for (int i = 0; i < V::kBlocks * V::kValues / 4; ++i) {
            const float4 other = __ldcg(slot + i * 128);
            values[i].x += other.x;
            values[i].y += other.y;
            values[i].z += other.z;
            values[i].w += other.w;
        }
    }
}

// ---- The epilogue --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t transpose_8x8(uint32_t fragment) {
    uint32_t transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(fragment));
    return transposed;
}

// D has features as rows, Y has them innermost: 8x8 blocks are transposed in registers, then neighbouring lanes trade words so
// that the four lanes of a token store its 16 features as one 32-byte sector.
template <class V>
__device__ __forceinline__ void store_tile(const Accumulators<V>& acc, const Problem& p, const Place& place, const Lane& lane) {
    const bool odd = lane.column % 2;
#pragma unroll
    for (int i = 0; i < V::kBlocks; ++i) {
        const int feature = ((place.feature_tile * kMultipliers + lane.multiplier) * V::kBlocks + i) * kBlockFeatures + lane.warp * 16;
        if (feature >= p.features) return;
        const float bias_low = p.bias ? p.bias[feature + lane.row] : 0.0f;
        const float bias_high = p.bias ? p.bias[feature + lane.row + 8] : 0.0f;
#pragma unroll
        for (int j = 0; j < V::kTokens / 8; ++j) {
            const int first = place.token_tile * V::kTokens + 8 * j;
            if (first >= p.tokens) break;
            const int own = first + 2 * lane.column;
            const float scale_0 = own < p.tokens ? p.token_scales[own * p.token_scale_stride] : 0.0f;
            const float scale_1 = own + 1 < p.tokens ? p.token_scales[(own + 1) * p.token_scale_stride] : 0.0f;
            const float low_0 = fmaf(acc[i][4 * j + 0], scale_0, bias_low), low_1 = fmaf(acc[i][4 * j + 1], scale_1, bias_low);
            const float high_0 = fmaf(acc[i][4 * j + 2], scale_0, bias_high), high_1 = fmaf(acc[i][4 * j + 3], scale_1, bias_high);
            const uint32_t low = transpose_8x8(p.output_f16 ? f16x2_from_f32(low_0, low_1) : bf16x2_from_f32(low_0, low_1));
            const uint32_t high = transpose_8x8(p.output_f16 ? f16x2_from_f32(high_0, high_1) : bf16x2_from_f32(high_0, high_1));
            const uint32_t traded = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
            const int token = first + lane.row;
            if (token < p.tokens) {
                uint16_t* row = static_cast<uint16_t*>(p.output) + static_cast<size_t>(token) * p.features + feature;
                const uint2 words = odd ? make_uint2(traded, high) : make_uint2(low, traded);
                *reinterpret_cast<uint2*>(row + 8 * (lane.column % 2) + 4 * (lane.column / 2)) = words;
            }
        }
    }
}

template <class V>
__device__ void consume(const Ring& ring, const Problem& p) {
    const Lane lane;
    Schedule<V> schedule(p);
    Segment s;
    int stage = 0, phase = 0;
    grid_wait_predecessor();
    while (schedule.next(p, s)) {
        Accumulators<V> acc = {};
        multiply<V>(acc, ring, s.end_unit - s.first_unit, stage, phase, lane);
        if (s.first_unit > 0) {
            leave_partial<V>(acc, p, lane);
        } else {
            if (s.end_unit < p.units) add_partials<V>(acc, p, s.tile, lane);
            store_tile<V>(acc, p, locate<V>(p, s.tile), lane);
        }
    }
}

template <class V>
__device__ __forceinline__ void run(const CUtensorMap* x, const CUtensorMap* sums, const Problem& p) {
    extern __shared__ __align__(1024) uint8_t shared[];
    const Ring ring = {reinterpret_cast<uint64_t*>(shared), reinterpret_cast<uint64_t*>(shared) + V::kStages,
                       shared + V::kBarrierBytes};
    if (threadIdx.x == 0) {
        prefetch_tensor_map(x);
        prefetch_tensor_map(sums);
        for (int i = 0; i < V::kStages; ++i) {
            barrier_init(ring.full + i, 1);
            barrier_init(ring.empty + i, 4 * kMultipliers);
        }
        barrier_init_fence();
    }
    __syncthreads();
    grid_release_successor();
    if (warp_uniform(threadIdx.x / 128) == 0) {
        registers_shrink<40>();
        if (threadIdx.x < 32) produce<V>(ring, x, sums, p);
    } else {
        registers_grow<232>();
        consume<V>(ring, p);
    }
}

}  // namespace w4a8
