// What a W4A8 launch is told, what a variant fixes at compile time, and which work a block does. w4a8.cuh has the drawings.
#pragma once
#include <cstdint>

#include <peregrine/mbarrier.cuh>
#include <peregrine/sync.cuh>

#include "tiles.cuh"

namespace w4a8 {

using namespace packed;

constexpr int kSumRowBytes = 4 * kWindow;                   // a token's group sums of a window: a row of the 32-byte swizzle

// The same for every variant; passed by value.
struct Problem {
    const uint8_t* codes;         // packed, see w4a8.cuh
    const uint8_t* parameters;    // packed scales and zero points, see w4a8.cuh
    const float* group_sums;      // [tokens, groups] sums of the e4m3 values of x over each group
    const float* token_scales;    // xs[m * token_scale_stride]
    const float* bias;            // [features] or null
    void* output;                 // [tokens, features], bf16 or f16
    float* partials;              // workspace: Variant::kPartialFloats for each block of the grid (tiles.cuh)
    uint32_t* flags;              // workspace: kMultipliers for each block of the grid; zero before and after every launch
    int32_t tokens, features;     // features in multiples of 64
    int32_t units, groups, windows;  // ceil(K / 128), K / group_size, ceil(groups / 8)
    int32_t stream_tiles;         // tiles cut along K, counted from the first; the rest is a multiple of the clusters
    int32_t panel_tiles;          // token tiles that run side by side before the features advance
    int32_t token_scale_stride;   // 1 per token, 0 per tensor
    int32_t output_f16;           // 0: bf16
    int32_t weights_stream_once;  // 1: evict the weights first from L2
    int32_t share, extra;         // stream_tiles * units = share * grid + extra, for Variant::kFew
};

template <int kTokens_, int kMultipliers_, int kBlocks_, int kSlice_, int kGroup_, int kStages_, int kChainSets_,
          int kCluster_ = 1, int kResident_ = 1>
struct Variant {
    static constexpr int kTokens = kTokens_;            // tokens of a tile
    static constexpr int kMultipliers = kMultipliers_;  // multiplying warpgroups
    static constexpr int kBlocks = kBlocks_;            // feature blocks of each
    static constexpr int kSlice = kSlice_;              // tokens of one product chain
    static constexpr int kGroup = kGroup_;              // group_size of the scales
    static constexpr int kStages = kStages_;
    static constexpr int kChainSets = kChainSets_;  // 2: a chain is issued before the one ahead of it is promoted
    static constexpr int kCluster = kCluster_;      // blocks side by side that share their activations
    static constexpr int kResident = kResident_;    // blocks that a multiprocessor has room for
    static constexpr int kThreads = 128 * (1 + kMultipliers);
    static constexpr int kTileBlocks = kBlocks * kMultipliers;
    static constexpr bool kFew = kTokens <= 64 && kCluster == 1;  // one tile of tokens
    // Units that a block brings into L2 behind its ring, where it starts while the kernel before it ends: what memory has time for till then.
    static constexpr int kAhead = kResident > 1 ? 4 : 0;

    // A chain is one block x group x slice: the wgmma steps that share an accumulator set before they are promoted.
    static constexpr int kGroups = kUnit / kGroup;   // per unit
    static constexpr int kSteps = kGroup / 32;       // wgmma steps of a chain
    static constexpr int kSlices = kTokens / kSlice;
    static constexpr int kBlockChains = kGroups * kSlices;
    static constexpr int kChainValues = kSlice / 2;  // accumulators a thread holds for a chain
    static constexpr int kValues = kTokens / 2;      // and for a block

    static constexpr int kWindowUnits = kWindow / kGroups;
    static constexpr int kXBytes = kTokens * kUnit;
    static constexpr int kStageBytes = kXBytes + kTileBlocks * kCodeBytes;
    static constexpr int kSumBytes = kTokens * kSumRowBytes;
    static constexpr int kWindowStride = (kSumBytes + kTileBlocks * kParameterBytes + 1023) / 1024 * 1024;
    static constexpr int kWindowOffset = 1024;  // after the barriers
    static constexpr int kStageOffset = kWindowOffset + 2 * kWindowStride;
    static constexpr int kSharedBytes = kStageOffset + kStages * kStageBytes;
    static constexpr int kPartialFloats = kTileBlocks * kBlockFeatures * kTokens;
    static constexpr bool kByValue = kTokens <= 32;

    // Registers: the launch gives every thread the same; the copying warpgroup hands its share over. One of two blocks that lie
    // beside each other has a warpgroup more (w4a8_sm90.cu).
    static constexpr int kEntryRegisters = 65536 / (kResident * kThreads + (kResident > 1 ? 128 : 0)) / 8 * 8;
    static constexpr int kCopierRegisters = 32;
    static constexpr int kMultiplierRegisters =
        ((kMultipliers + 1) * kEntryRegisters - kCopierRegisters) / kMultipliers / 8 * 8;
    // Token scales are on their way while blocks meet, where there are registers to spare.
    static constexpr bool kScalesEarly = kByValue || (kFew && kMultiplierRegisters >= 160);

    static_assert(kGroup == 64 || kGroup == 128, "scales come in groups of 64 or 128");
    static_assert(kTokens % 8 == 0 && kTokens <= 256 && kTokens % kSlice == 0);
    static_assert(kTokens % (8 * kCluster) == 0, "each block of a cluster loads whole swizzle patterns");
    static_assert(kXBytes % 1024 == 0, "the swizzle repeats every 1024 bytes");
    static_assert(kResident * (kSharedBytes + 1024) <= 228 * 1024 && kStages >= 2);
    static_assert((2 * kStages + 4) * 8 <= kWindowOffset);
};

// A cyclic buffer in shared memory and one walker's position in it: `kSlots` pairs of barriers, slots `kBytes` apart.
template <int kSlots, int kBytes>
struct Ring {
    uint32_t barriers, slots;
    int slot = 0, phase = 0;

    __device__ __forceinline__ Ring(uint32_t barriers, uint32_t slots) : barriers(barriers), slots(slots) {}
    __device__ __forceinline__ uint32_t full() const { return barriers + 8 * slot; }
    __device__ __forceinline__ uint32_t empty() const { return barriers + 8 * (kSlots + slot); }
    __device__ __forceinline__ uint32_t data() const { return slots + slot * kBytes; }
    __device__ __forceinline__ void wait_full() const { barrier_wait(full(), phase); }
    __device__ __forceinline__ void wait_empty() const { barrier_wait(empty(), phase ^ 1); }
    __device__ __forceinline__ void advance() {
        if (++slot == kSlots) {
            slot = 0;
            phase ^= 1;
        }
    }
};

template <class V>
struct Stages : Ring<V::kStages, V::kStageBytes> {
    __device__ __forceinline__ explicit Stages(uint32_t shared)
        : Ring<V::kStages, V::kStageBytes>(shared, shared + V::kStageOffset) {}
};
template <class V>
struct Windows : Ring<2, V::kWindowStride> {
    __device__ __forceinline__ explicit Windows(uint32_t shared)
        : Ring<2, V::kWindowStride>(shared + 16 * V::kStages, shared + V::kWindowOffset) {}
};

}  // namespace w4a8
