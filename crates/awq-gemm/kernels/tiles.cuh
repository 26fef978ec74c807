// How output tiles of packed INT4 weights are shared out over a persistent grid, and how blocks that share a tile meet.
//
//    block:     0        1        2       3          The first `stream_tiles` tiles are cut evenly along (tile, K unit) over
//            |-------|-------|-------|-------|       all blocks; the rest, a multiple of the grid, go whole. A block that
//    tiles:  [    0    ][    1    ][    2    ]       starts inside a tile leaves an f32 partial in the workspace; the block
//                                                    that holds the tile's first unit adds the partials of those after it,
//                                                    in their order: the sum is the same on every run.
//
// How a block knows that a partial has come: large ones have a flag. Small ones (V::kByValue) are awaited themselves: a word
// of the workspace is kAbsent until its value is there, and again once that has been read. Then a hand-over is one store and
// one load of L2, where a flag takes a store, a fence, a store and two loads, a microsecond more at the end of every product.
//
// The packed order (blocks of 64 features, stripes of 8 blocks, units of 128 along K, windows of 8 groups) is drawn in
// src/pack.rs.
//
// V, a variant: kTokens of a tile, kMultipliers warpgroups with kBlocks feature blocks each, kValues = kTokens / 2, kByValue, kResident blocks
// that a multiprocessor has room for. kFew: only launched with a single tile of tokens, and not in clusters; a block then finds its work without
// divisions of 64 bits, which stood between its start and its first copies.
#pragma once
#include <cstdint>

#include <peregrine/bulk_copy.cuh>
#include <peregrine/sync.cuh>

namespace packed {

using namespace peregrine;

constexpr int kUnit = 128;
constexpr int kBlockFeatures = 64;  // rows of one wgmma
constexpr int kStripe = 8;
constexpr int kWindow = 8;
constexpr int kCodeBytes = kBlockFeatures * kUnit / 2;                       // of a block's unit
constexpr int kScaleBytes = kWindow * kBlockFeatures * 2;                    // of a block's window
constexpr int kParameterBytes = kScaleBytes + kWindow * kBlockFeatures / 2;  // and its zero points

// The product as the schedule sees it: a launch's description P is one, or has members of these names.
struct Work {
    float* partials;              // workspace: tile features x tile tokens for each block of the grid; where they are awaited
                                  // by value, kAbsent before and after every launch
    uint32_t* flags;              // workspace: kMultipliers for each block of the grid; zero before and after every launch
    int32_t tokens, features;     // features in multiples of 64
    int32_t units, windows;       // ceil(K / 128), ceil(groups / 8)
    int32_t stream_tiles;         // tiles cut along K, counted from the first; the rest is a multiple of the clusters
    int32_t panel_tiles;          // token tiles that run side by side before the features advance
    int32_t share, extra;         // stream_tiles * units = share * grid + extra, for kFew
};

// A run of units of one tile.
struct Segment {
    int tile, first_unit, end_unit;
};

// Clusters: kCluster blocks that lie side by side share the tokens of neighbouring feature tiles and walk in step. What is said
// of blocks here holds for clusters, whose tiles are as many times as wide; each block does its own part of one.
template <class V>
__device__ __forceinline__ int cluster_rank() {
    return static_cast<int>(blockIdx.x % V::kCluster);
}
template <class V>
__device__ __forceinline__ uint32_t cluster_index() {
    return blockIdx.x / V::kCluster;
}
template <class V>
__device__ __forceinline__ uint32_t clusters() {
    return gridDim.x / V::kCluster;
}

// Where a block's part of a tile lies. Tiles are numbered in panels of `panel_tiles` token tiles; inside a panel tokens vary fastest, so that
// blocks that run together share weights in L2, and a panel's activations stay there.
struct Place {
    int feature_tile, token_tile;
};

template <class V, class P>
__device__ __forceinline__ int feature_tiles(const P& p) {
    constexpr int kFeatures = kBlockFeatures * V::kTileBlocks * V::kCluster;
    return (p.features + kFeatures - 1) / kFeatures;
}
template <class V, class P>
__device__ __forceinline__ int token_tiles(const P& p) {
    return (p.tokens + V::kTokens - 1) / V::kTokens;
}

template <class V, class P>
__device__ __forceinline__ Place locate(const P& p, int tile) {
    if constexpr (V::kFew) return {tile, 0};
    const int panel_size = p.panel_tiles * feature_tiles<V>(p);
    const int panel = tile / panel_size;
    const int in_panel = tile - panel * panel_size;
    const int width = min(p.panel_tiles, token_tiles<V>(p) - panel * p.panel_tiles);
    const int feature_tile = in_panel / width;
    return {feature_tile * V::kCluster + cluster_rank<V>(), panel * p.panel_tiles + in_panel - feature_tile * width};
}

// First unit of a cluster's share of the streamed tiles, counted over all of them.
template <class V, class P>
__device__ __forceinline__ int stream_begin(const P& p, uint32_t cluster) {
    if constexpr (V::kFew) return p.share * static_cast<int>(cluster) + min(static_cast<int>(cluster), p.extra);
    return static_cast<int>(static_cast<uint64_t>(p.stream_tiles) * p.units * cluster / clusters<V>());
}

// The segments of this block, in order: its share of the streamed tiles, then whole tiles. Every role walks the same.
template <class V>
struct Schedule {
    int position, stream_end, next_whole;

    template <class P>
    __device__ __forceinline__ explicit Schedule(const P& p)
        : position(warp_uniform(stream_begin<V>(p, cluster_index<V>()))),
          stream_end(warp_uniform(stream_begin<V>(p, cluster_index<V>() + 1))),
          next_whole(p.stream_tiles + cluster_index<V>()) {}

    template <class P>
    __device__ __forceinline__ bool next(const P& p, Segment& s) {
        if (position < stream_end) {
            s.tile = warp_uniform(V::kFew ? static_cast<uint32_t>(position) / static_cast<uint32_t>(p.units) : position / p.units);
            s.first_unit = position - s.tile * p.units;
            s.end_unit = min(p.units, s.first_unit + stream_end - position);
            position += s.end_unit - s.first_unit;
            return true;
        }
        s = {next_whole, 0, p.units};
        next_whole += clusters<V>();
        if constexpr (V::kFew) return s.tile < feature_tiles<V>(p);
        return s.tile < feature_tiles<V>(p) * token_tiles<V>(p);
    }
};

// First unit after the window of `unit`, or the segment's end.
template <class V>
__device__ __forceinline__ int window_end(const Segment& s, int unit) {
    return min(s.end_unit, unit / V::kWindowUnits * V::kWindowUnits + V::kWindowUnits);
}

// Where chunk `index` of `count` along K lies among chunks of the same kind, for feature block `lane` of a tile. A tile past
// the last feature multiplies the last block again and does not store it.
template <class V, class P>
__device__ __forceinline__ int chunk(const P& p, const Place& place, int lane, int index, int count) {
    const int blocks = p.features / kBlockFeatures;
    const int block = min(place.feature_tile * V::kTileBlocks + lane, blocks - 1);
    const int stripe = block / kStripe * kStripe;
    return stripe * count + index * min(kStripe, blocks - stripe) + block - stripe;
}

// Where a tile's weights lie: its blocks of one stripe are side by side, so that one bulk copy takes what they have of a unit or window. A
// tile that straddles two stripes takes two. What a tile has past the last feature is not copied, and not stored either. One thread copies: a bulk
// copy takes its addresses from uniform registers, so lanes would issue theirs one after the other, in a loop.
template <class V>
struct Runs {
    static constexpr bool kTwo = kStripe % V::kTileBlocks != 0;
    int stripe, offset, width, blocks;            // stripe's first block, the tile's first in it, the stripe's blocks, the run's
    int next_width = 0, next_blocks = 0;          // of the stripe after it

    template <class P>
    __device__ __forceinline__ Runs(const P& p, const Place& place) {
        const int all = p.features / kBlockFeatures, first = place.feature_tile * V::kTileBlocks;
        stripe = first / kStripe * kStripe;
        offset = first - stripe;
        width = min(kStripe, all - stripe);
        blocks = min(V::kTileBlocks, width - offset);
        if constexpr (kTwo) {
            next_width = min(kStripe, all - stripe - kStripe);
            next_blocks = max(0, min(V::kTileBlocks - blocks, next_width));
        }
    }
    __device__ __forceinline__ int tile_blocks() const { return blocks + next_blocks; }

    // f(the run's first block in the tile, its chunk, its blocks) for chunk `index` of `count` along K.
    template <class F>
    __device__ __forceinline__ void each(int index, int count, const F& f) const {
        f(0, stripe * count + index * width + offset, blocks);
        if constexpr (kTwo) {
            if (next_blocks > 0) f(blocks, (stripe + kStripe) * count + index * next_width, next_blocks);
        }
    }
    template <int kBytes>
    __device__ __forceinline__ void load(uint32_t to, const uint8_t* from, int index, int count, uint32_t barrier,
                                         CachePolicy policy) const {
        each(index, count, [&](int block, int chunk, int run) {
            bulk_load(to + block * kBytes, from + static_cast<int64_t>(chunk) * kBytes, run * kBytes, barrier, policy);
        });
    }
    template <int kBytes>
    __device__ __forceinline__ void prefetch(const uint8_t* from, int index, int count) const {
        each(index, count, [&](int, int chunk, int run) { bulk_prefetch_l2(from + static_cast<int64_t>(chunk) * kBytes, run * kBytes); });
    }
};

// What of its work a block has asked for before the kernel before it was done.
struct Early {
    int units = 0, windows = 0;
};

// Weights do not depend on the kernel before this one: they fill the empty buffers before that has finished, and before the block's
// other warps know of the barriers. All lanes of warp 0 walk; `load_unit(stages, runs, unit)` and `load_window(windows, runs, window)`
// are called in one of them.
template <class V, class Stages, class Windows, class P, class LoadUnit, class LoadWindow>
__device__ __forceinline__ Early copy_early(Stages stages, Windows windows, const P& p, int lane, const LoadUnit& load_unit,
                                            const LoadWindow& load_window) {
    Segment s;
    Early early;
    for (Schedule<V> schedule(p); early.units < V::kStages && schedule.next(p, s);) {
        const Runs<V> runs(p, locate<V>(p, s.tile));
        for (int unit = s.first_unit; unit < s.end_unit && early.units < V::kStages; ++unit, ++early.units) {
            if (unit == s.first_unit || unit % V::kWindowUnits == 0) {
                if (early.windows == 2) return early;
                if (lane == 0) load_window(windows, runs, unit / V::kWindowUnits);
                ++early.windows;
                windows.advance();
            }
            if (lane == 0) load_unit(stages, runs, unit);
            stages.advance();
        }
    }
    return early;
}

// Where a thread stands in its multiplying warpgroup and in the fragment layouts of wgmma.cuh. Warpgroup 0 copies.
struct Lane {
    int multiplier, thread, warp, row, column;
    __device__ __forceinline__ Lane()
        : multiplier(warp_uniform(threadIdx.x / 128) - 1),
          thread(threadIdx.x % 128),
          warp(thread / 32),
          row(thread % 32 / 4),
          column(thread % 4) {}
};

template <class V>
using Accumulators = float[V::kBlocks][V::kValues];

template <class V, class P>
__device__ __forceinline__ float4* partial_slot(const P& p, uint32_t block, const Lane& lane) {
    constexpr int kVectors = V::kBlocks * V::kValues / 4;
    return reinterpret_cast<float4*>(p.partials) + (block * V::kMultipliers + lane.multiplier) * kVectors * 128 + lane.thread;
}

// ---- Partials with flags --------------------------------------------------------------------------------------------------

template <class V, class P>
__device__ __forceinline__ void leave_flagged(const Accumulators<V>& acc, const P& p, const Lane& lane) {
    float4* slot = partial_slot<V>(p, blockIdx.x, lane);
    const float4* values = reinterpret_cast<const float4*>(&acc[0][0]);
#pragma unroll
    for (int i = 0; i < V::kBlocks * V::kValues / 4; ++i) __stcg(slot + i * 128, values[i]);
    named_barrier_sync(1 + lane.multiplier, 128);
    if (lane.thread == 0) flag_release(p.flags + blockIdx.x * V::kMultipliers + lane.multiplier, 1);
}

// They began with the tile, so they are done early.
template <class V, class P>
__device__ __forceinline__ void add_flagged(Accumulators<V>& acc, const P& p, int tile, const Lane& lane) {
    const int tile_end = (tile + 1) * p.units;
    const auto has_part = [&](uint32_t cluster) { return cluster < clusters<V>() && stream_begin<V>(p, cluster) < tile_end; };
    const auto block_of = [&](uint32_t cluster) { return cluster * V::kCluster + cluster_rank<V>(); };
    // Thread i awaits block i: many small partials cost one round trip, not one each.
    for (uint32_t cluster = cluster_index<V>() + 1 + lane.thread; has_part(cluster); cluster += 128) {
        uint32_t* flag = p.flags + block_of(cluster) * V::kMultipliers + lane.multiplier;
        while (flag_acquire(flag) == 0) __nanosleep(20);
        *flag = 0;
    }
    named_barrier_sync(1 + lane.multiplier, 128);
#pragma unroll 1
    for (uint32_t cluster = cluster_index<V>() + 1; has_part(cluster); ++cluster) {
        const float4* slot = partial_slot<V>(p, block_of(cluster), lane);
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

// ---- Partials that are awaited themselves -----------------------------------------------------------------------------------

constexpr uint32_t kAbsent = 0xffffffffu;  // a NaN; a partial that is this one is turned into another

__device__ __forceinline__ void store_relaxed(float4* to, uint4 v) {
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
__device__ __forceinline__ uint4 load_relaxed(const float4* from) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}
__device__ __forceinline__ bool absent(const uint4& v) {
    return v.x == kAbsent || v.y == kAbsent || v.z == kAbsent || v.w == kAbsent;
}

template <class V, class P>
__device__ __forceinline__ void leave_values(const Accumulators<V>& acc, const P& p, const Lane& lane) {
    float4* slot = partial_slot<V>(p, blockIdx.x, lane);
    const float* values = &acc[0][0];
    const auto word = [&](int i) { return min(__float_as_uint(values[i]), kAbsent - 1); };
#pragma unroll
    for (int i = 0; i < V::kBlocks * V::kValues / 4; ++i) {
        store_relaxed(slot + i * 128, make_uint4(word(4 * i), word(4 * i + 1), word(4 * i + 2), word(4 * i + 3)));
    }
}

// Parts are added in order, several on their way at once.
template <class V, class P>
__device__ __forceinline__ void add_values(Accumulators<V>& acc, const P& p, int parts, const Lane& lane) {
    static_assert(V::kCluster == 1);
    constexpr int kVectors = V::kBlocks * V::kValues / 4, kPiece = kVectors > 4 ? 2 : kVectors, kAtOnce = V::kResident > 1 ? 3 : 4;
    constexpr int kStride = V::kMultipliers * kVectors * 128;  // from a block's partial to the next one's
    static_assert(kVectors % kPiece == 0);
    float* values = &acc[0][0];
    float4* slot = partial_slot<V>(p, blockIdx.x + 1, lane);
#pragma unroll 1
    for (; parts > 0; parts -= kAtOnce, slot += kAtOnce * kStride) {
#pragma unroll
        for (int first = 0; first < kVectors; first += kPiece) {
            uint4 part[kAtOnce][kPiece];
            bool wait;
            do {
#pragma unroll
                for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
                    for (int i = 0; i < kPiece; ++i) {
                        part[j][i] = j < parts ? load_relaxed(slot + j * kStride + (first + i) * 128) : make_uint4(0, 0, 0, 0);
                    }
                }
                wait = false;
#pragma unroll
                for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
                    for (int i = 0; i < kPiece; ++i) wait |= absent(part[j][i]);
                }
            } while (wait);
#pragma unroll
            for (int j = 0; j < kAtOnce; ++j) {
                if (j >= parts) continue;
#pragma unroll
                for (int i = 0; i < kPiece; ++i) {
                    store_relaxed(slot + j * kStride + (first + i) * 128, make_uint4(kAbsent, kAbsent, kAbsent, kAbsent));
                    float* to = values + 4 * (first + i);
                    to[0] += __uint_as_float(part[j][i].x);
                    to[1] += __uint_as_float(part[j][i].y);
                    to[2] += __uint_as_float(part[j][i].z);
                    to[3] += __uint_as_float(part[j][i].w);
                }
            }
        }
    }
}

// How many blocks after this one have a part of the tile.
template <class V, class P>
__device__ __forceinline__ int parts_behind(const P& p, int tile) {
    static_assert(V::kFew);
    const int tile_end = (tile + 1) * p.units;
    uint32_t block = blockIdx.x + 1;
    while (block < gridDim.x && stream_begin<V>(p, block) < tile_end) ++block;
    return static_cast<int>(block - blockIdx.x) - 1;
}

// ---- Either -----------------------------------------------------------------------------------------------------------------

template <class V, class P>
__device__ __forceinline__ void leave_partial(const Accumulators<V>& acc, const P& p, const Lane& lane) {
    if constexpr (V::kByValue) leave_values<V>(acc, p, lane);
    else leave_flagged<V>(acc, p, lane);
}

// How many partials a segment awaits, if they are awaited by value: counted before the products, in the shadow of their loads.
template <class V, class P>
__device__ __forceinline__ int values_behind(const P& p, const Segment& s) {
    if constexpr (V::kByValue) {
        if (s.first_unit == 0 && s.end_unit < p.units) return parts_behind<V>(p, s.tile);
    }
    return 0;
}

template <class V, class P>
__device__ __forceinline__ void add_partials(Accumulators<V>& acc, const P& p, int tile, int values, const Lane& lane) {
    if constexpr (V::kByValue) add_values<V>(acc, p, values, lane);
    else add_flagged<V>(acc, p, tile, lane);
}

}  // namespace packed
