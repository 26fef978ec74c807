// What a W4A16 launch is told, what a variant fixes at compile time, and where a block's buffers lie. w4a16.cuh has the drawings.
#pragma once
#include <cstdint>

#include <peregrine/fp8.cuh>
#include <peregrine/mbarrier.cuh>
#include <peregrine/wgmma.cuh>

#include "tiles.cuh"

namespace w4a16 {

using namespace packed;

// The same for every variant; passed by value.
struct Problem {
    const uint8_t* codes;       // packed
    const uint8_t* parameters;  // packed scales and zero points
    const float* bias;          // [features] or null
    void* output;               // [tokens, features], bf16 or f16
    Work work;
    int32_t output_f16;           // 0: bf16
    int32_t weights_stream_once;  // 1: evict the weights first from L2
};

// The two types of activations. kLow and kHigh take codes in bits 0..3 and 4..7 of both halves of a word to q * kStep.
//
// Raw codes are q times the type's smallest number. In bf16 that is 2^-133, and sums of products would be no f32: there
// activations come times 2^64, which is exact below 2^63. kRawStep is what is left of both factors in a sum. Subnormal operands
// cost accuracy: products are lined up by exponents, and a subnormal's is that of the smallest normal number, 2^7 steps in bf16
// and 2^10 in f16. With 25 bits below, bf16 loses 2^-18 of a step's largest activation at most, a quarter of what the bounds of
// the tests have room for; f16 would lose 2^-15, which is too much.
struct Bf16 {
    static constexpr uint32_t kLow = 0x7f007f00u, kHigh = 0x7d007d00u;  // 2^127 and 2^123; the smallest number is 2^-133
    static constexpr float kStep = 0x1p-6f, kRawStep = 0x1p-69f;
    static constexpr bool kRawCodes = true;
    static __device__ __forceinline__ uint32_t raised(uint32_t pair) { return multiply_add(pair, 0x5f805f80u, 0x80008000u); }
    static __device__ __forceinline__ float2 floats(uint32_t pair) {
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    }
    static __device__ __forceinline__ uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
        uint32_t d;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
        return d;
    }
    template <int kSlice, int kValues>
    static __device__ __forceinline__ void multiply(float (&d)[kValues], const uint32_t (&a)[4], uint64_t b, int accumulate) {
        Wgmma<kSlice>::bf16(d, a, b, accumulate);
    }
};
struct F16 {
    static constexpr uint32_t kLow = 0x78007800u, kHigh = 0x68006800u;  // 2^15 and 2^11; the smallest number is 2^-24
    static constexpr float kStep = 0x1p-9f, kRawStep = 0x1p-24f;
    static constexpr bool kRawCodes = false;
    static __device__ __forceinline__ uint32_t raised(uint32_t pair) { return pair; }
    static __device__ __forceinline__ float2 floats(uint32_t pair) {
        return make_float2(f32_from_f16(static_cast<uint16_t>(pair)), f32_from_f16(static_cast<uint16_t>(pair >> 16)));
    }
    static __device__ __forceinline__ uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
        uint32_t d;
        asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
        return d;
    }
    template <int kSlice, int kValues>
    static __device__ __forceinline__ void multiply(float (&d)[kValues], const uint32_t (&a)[4], uint64_t b, int accumulate) {
        Wgmma<kSlice>::f16(d, a, b, accumulate);
    }
};

template <class Type_, int kGroup_, int kTokens_, int kMultipliers_, int kBlocks_, int kSlice_, int kStages_, int kPiece_,
          int kFragmentSets_>
struct Variant {
    using Type = Type_;
    static constexpr int kGroup = kGroup_;              // group_size of the scales
    static constexpr int kTokens = kTokens_;            // tokens of a tile
    static constexpr int kMultipliers = kMultipliers_;  // multiplying warpgroups
    static constexpr int kBlocks = kBlocks_;            // feature blocks of each
    static constexpr int kSlice = kSlice_;              // tokens of one product chain
    static constexpr int kStages = kStages_;
    static constexpr int kPiece = kPiece_;                // steps of 16 along K that are widened together
    static constexpr int kFragmentSets = kFragmentSets_;  // 2: a piece is widened while the products of another run
    static constexpr int kThreads = 128 * (1 + kMultipliers);
    static constexpr int kTileBlocks = kBlocks * kMultipliers;

    static constexpr int kGroups = kUnit / kGroup;  // per unit
    static constexpr int kSteps = kGroup / 16;      // wgmma steps of a group
    static constexpr int kPieces = kSteps / kPiece;
    static constexpr int kSlices = kTokens / kSlice;
    static constexpr int kChainValues = kSlice / 2;  // accumulators a thread holds for a chain
    static constexpr int kValues = kTokens / 2;      // and for a block
    static constexpr int kCluster = 1, kResident = 1;
    static constexpr bool kFew = kTokens <= 64;      // one tile of tokens
    static constexpr bool kByValue = kTokens <= 32;  // how partials are awaited (tiles.cuh)
    static constexpr bool kRaw = Type::kRawCodes && kTokens <= 16;  // codes go into the multiplier as they are
    static constexpr float kUnitOfSums = kRaw ? Type::kRawStep : Type::kStep;

    static constexpr int kWindowUnits = kWindow / kGroups;
    static constexpr int kBoxBytes = kTokens * 128;  // 64 along K of the tile's tokens
    static constexpr int kXBytes = 2 * kBoxBytes;
    static constexpr int kStageBytes = kXBytes + kTileBlocks * kCodeBytes;
    static constexpr int kWindowStride = kTileBlocks * kParameterBytes;
    static constexpr int kSumBytes = kRaw ? kGroups * kTokens * 4 : 0;  // group sums of a stage's activations
    static constexpr int kSumOffset = 512;                              // after the barriers
    static constexpr int kWindowOffset = (kSumOffset + kStages * kSumBytes + 1023) / 1024 * 1024;
    static constexpr int kStageOffset = kWindowOffset + (2 * kWindowStride + 1023) / 1024 * 1024;
    static constexpr int kSharedBytes = kStageOffset + kStages * kStageBytes;

    // Registers: the launch gives every thread the same; the copying warpgroup hands its share over.
    static constexpr int kEntryRegisters = 65536 / kThreads / 8 * 8;
    static constexpr int kCopierRegisters = kMultipliers > 2 ? 32 : 40;
    static constexpr int kMultiplierRegisters =
        ((kMultipliers + 1) * kEntryRegisters - kCopierRegisters) / kMultipliers / 8 * 8;

    static_assert(kGroup == 64 || kGroup == 128, "scales come in groups of 64 or 128");
    static_assert(kTokens % kSlice == 0 && kSteps % kPiece == 0);
    static_assert(kSlices == 1 || kPiece * kFragmentSets == kSteps, "later slices need all fragments of the group");
    static_assert(kBoxBytes % 1024 == 0, "the swizzle repeats every 1024 bytes");
    static_assert(kTileBlocks <= kStripe && kStripe % kTileBlocks == 0, "a tile lies in one stripe");
    static_assert(kSharedBytes <= 227 * 1024 && kStages >= 2);
    static_assert((3 * kStages + 4) * 8 <= kSumOffset);
};

// A ring of slots in shared memory and one walker's position in it. Each slot has a barrier for every hand-over.
template <int kSlots, int kBytes>
struct Ring {
    uint32_t slot, at;  // addresses of the slot's first barrier and of its data
    uint32_t phase = 0;

    __device__ __forceinline__ Ring(uint32_t barriers, uint32_t slots) : slot(barriers), at(slots) {}
    __device__ __forceinline__ uint32_t full() const { return slot; }                // by the copy engine
    __device__ __forceinline__ uint32_t empty() const { return slot + 8 * kSlots; }  // by the multipliers
    __device__ __forceinline__ uint32_t turned() const { return slot + 16 * kSlots; }
    __device__ __forceinline__ uint32_t data() const { return at; }
    __device__ __forceinline__ void wait_full() const { barrier_wait(full(), phase); }
    __device__ __forceinline__ void wait_turned() const { barrier_wait(turned(), phase); }
    __device__ __forceinline__ void wait_empty() const { barrier_wait(empty(), phase ^ 1); }
    // `last` is the address of the last slot's first barrier.
    __device__ __forceinline__ void advance(uint32_t last) {
        if (slot == last) {
            slot -= 8 * (kSlots - 1);
            at -= kBytes * (kSlots - 1);
            phase ^= 1;
        } else {
            slot += 8;
            at += kBytes;
        }
    }
};

template <class V>
struct Stages : Ring<V::kStages, V::kStageBytes> {
    uint32_t last;
    __device__ __forceinline__ explicit Stages(uint32_t shared)
        : Ring<V::kStages, V::kStageBytes>(shared, shared + V::kStageOffset), last(shared + 8 * (V::kStages - 1)) {}
    __device__ __forceinline__ void advance() { Ring<V::kStages, V::kStageBytes>::advance(last); }
    // Of the slot's activations, [group][token] f32.
    __device__ __forceinline__ uint32_t group_sums(uint32_t shared) const {
        return shared + V::kSumOffset + (this->slot - shared) / 8 * V::kSumBytes;
    }
};
template <class V>
struct Windows : Ring<2, V::kWindowStride> {
    uint32_t last;
    __device__ __forceinline__ explicit Windows(uint32_t shared)
        : Ring<2, V::kWindowStride>(shared + 24 * V::kStages, shared + V::kWindowOffset), last(this->slot + 8) {}
    __device__ __forceinline__ void advance() { Ring<2, V::kWindowStride>::advance(last); }
};

}  // namespace w4a16
