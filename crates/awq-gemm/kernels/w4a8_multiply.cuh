// W4A8's main loop with one accumulator set: what a multiplying warpgroup does with a window of stages; and what both loops are made of
// (w4a8_ahead.cuh has the other). w4a8.cuh has the drawings.
//
// A CHAIN is the wgmma steps of one block, group and slice of tokens: it fills a fresh accumulator set, which is then promoted. For
// one block of one unit:
//
//    tensor cores   [ chain 0 ]                [ chain 1, steps 0 1 ][ steps 2 3 ]
//    ALUs                      [acc += s part0]                     [widen a 0 1 ][widen a 2 3][acc += s part1]
//    shared memory                             [next: wait, codes 0][ codes 1    ]
//
//    The gaps belong to the other warpgroups: each leaves the tensor cores alone while it promotes. Where time goes in the loop:
//      - A product whose descriptor is not ready waits 20 to 30 clocks for it, so slices are wide (64 tokens and more).
//      - The last chain is two groups: the fragments of the first half are overwritten while the second half runs.
//      - An FMA whose accumulator and addend lie in one bank of the register file (even or odd) takes twice as long beside
//        running products. Products fix part[i] to the parity of i; acc, which no product touches, keeps pairs the other way round.
//      - Zero points are chains too (acc += part), which is what leaves acc free to lie where it likes.
//    Nothing is in flight where the loop closes: the compiler would serialise all products (C7514, C7518).
#pragma once
#include <peregrine/fp8.cuh>
#include <peregrine/mbarrier.cuh>
#include <peregrine/shared.cuh>
#include <peregrine/sync.cuh>
#include <peregrine/wgmma.cuh>

#include "w4a8_output.cuh"
#include "w4a8_plan.cuh"

namespace w4a8 {

using Fragments = uint32_t[4][4];  // a block's unit as wgmma operands: [step][register]

// A thread's half of a block's unit of codes, two steps.
struct Codes {
    uint4 words;
    __device__ __forceinline__ void load(uint32_t from, int half) {
        words = shared_load_128(from + half * (kCodeBytes / 2));
    }
    __device__ __forceinline__ void widen(Fragments& a, int half) const {
        const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            uint32_t(&step)[4] = a[2 * half + i];
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                step[2 * c] = w[2 * i + c] & 0x0f0f0f0fu;
                step[2 * c + 1] = (w[2 * i + c] >> 4) & 0x0f0f0f0fu;
            }
            wgmma_pin(step);
        }
    }
};

// The products of one chain, of the activations that x describes. `behind` comes behind each step.
template <class V, class Behind>
__device__ __forceinline__ void issue_chain(float (&part)[V::kChainValues], const Fragments& a, uint32_t x, int chain,
                                            const Behind& behind) {
    const int group = chain / V::kSlices, slice = chain % V::kSlices;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < V::kSteps; ++step) {
        const int k = group * V::kSteps + step;
        const uint64_t tile = wgmma_descriptor_from_low<Swizzle::bytes_128>(x + slice * V::kSlice * kUnit / 16 + 2 * k);
        Wgmma<V::kSlice>::e4m3(part, a[k], tile, step > 0);
        behind(step);
    }
    wgmma_commit();
}

// acc += s * part for one chain, row by row: consecutive FMAs then share the scale's register read.
template <class V>
__device__ __forceinline__ void promote(float* sum, float (&part)[V::kChainValues], const float (&scale)[2]) {
    wgmma_pin(part);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int i = 2 * row; i < V::kChainValues; i += 4) {
            sum[i ^ 1] = fmaf(scale[row], part[i], sum[i ^ 1]);
            sum[(i + 1) ^ 1] = fmaf(scale[row], part[i + 1], sum[(i + 1) ^ 1]);
        }
    }
}

// Hands a stage back to every block that loads into it. All lanes tell their own block, whose codes they have read: a warp's 32 arrivals
// cost no more than one's, and compute-sanitizer's racecheck follows a barrier by the threads that arrive.
template <class V>
__device__ __forceinline__ void release_stage(uint32_t empty, const Lane& lane) {
    barrier_arrive(empty);
    if constexpr (V::kCluster > 1) {
        const uint32_t warp_lane = lane.thread % 32;
        if (warp_lane < V::kCluster && warp_lane != cluster_rank<V>()) barrier_arrive_remote(empty, warp_lane);
    }
}

// Accumulates units first .. end of one window, whose parameters are those of the warpgroup's blocks.
template <class V>
__device__ __forceinline__ void multiply(Accumulators<V>& acc, Stages<V>& stages, uint32_t parameters, int first, int end,
                                         const Lane& lane) {
    constexpr int kLast = V::kBlockChains - 1;
    static_assert(V::kChainSets == 1);
    const uint32_t blocks = V::kXBytes + lane.multiplier * V::kBlocks * kCodeBytes + lane.thread * 16;
    const uint32_t scales = parameters + 4 * (8 * lane.warp + lane.row);
    Codes codes;
    uint32_t pairs[V::kGroups];  // scales of the two rows, as f16
    Fragments a;
    float part[V::kChainValues];
    float scale[V::kGroups][2];

    const auto load_scales = [&](int unit, int block) {
#pragma unroll
        for (int group = 0; group < V::kGroups; ++group) {
            const int in_window = (unit * V::kGroups + group) % kWindow;
            pairs[group] = shared_load_32(scales + block * kParameterBytes + in_window * 2 * kBlockFeatures);
        }
    };
    stages.wait_full();
    codes.load(stages.data() + blocks, 0);
    load_scales(first, 0);
    codes.widen(a, 0);
    codes.load(stages.data() + blocks, 1);
    uint32_t low = wgmma_descriptor_low<Swizzle::bytes_128>(stages.data());
    codes.widen(a, 1);
    int unit = first;
    do {
        const uint32_t data = stages.data(), release = stages.empty();
        const uint32_t x = warp_uniform(low);
        ++unit;
        // After the last unit its own stage serves once more, so that there is no branch while products are in flight.
        if (unit < end) stages.advance();
#pragma unroll
        for (int block = 0; block < V::kBlocks; ++block) {
            const auto issue = [&](int chain) {
                issue_chain<V>(part, a, x, chain, [&](int step) {
                    if (chain == kLast && step == V::kSteps / 2 - 1) wgmma_commit();
                });
            };
            const auto add = [&](int chain) {
                promote<V>(acc[block] + chain % V::kSlices * V::kChainValues, part, scale[chain / V::kSlices]);
            };
#pragma unroll
            for (int group = 0; group < V::kGroups; ++group) {
                scale[group][0] = f32_from_f16(static_cast<uint16_t>(pairs[group]));
                scale[group][1] = f32_from_f16(static_cast<uint16_t>(pairs[group] >> 16));
            }
            issue(0);
#pragma unroll
            for (int chain = 0; chain < kLast; ++chain) {
                wgmma_wait<0>();
                add(chain);
                issue(chain + 1);
            }
            // The next block's codes and scales, in the shadow of the last chain.
            uint32_t next = data + blocks + (block + 1) * kCodeBytes;
            if (block + 1 == V::kBlocks) {
                stages.wait_full();
                next = stages.data() + blocks;
                low = wgmma_descriptor_low<Swizzle::bytes_128>(stages.data());
            }
            codes.load(next, 0);
            if (block + 1 == V::kBlocks) load_scales(unit, 0);
            else load_scales(unit - 1, block + 1);
            wgmma_wait<1>();
            // To the compiler a fragment is dead once its last product is issued: a use after the wait keeps its registers.
            wgmma_pin(a[0]);
            wgmma_pin(a[1]);
            codes.widen(a, 0);
            codes.load(next, 1);
            wgmma_wait<0>();
            wgmma_pin(a[2]);
            wgmma_pin(a[3]);
            if (block + 1 == V::kBlocks) release_stage<V>(release, lane);
            codes.widen(a, 1);
            add(kLast);
        }
    } while (unit < end);
    stages.advance();
}

// acc -= (s z / 512) X over the groups of units first .. end, which lie in one window, as chains of two steps of bf16: the high
// parts of s z, then the low ones. A thread's fragment has groups t and t + 4 (t its column) of rows r and r + 8.
template <class V>
__device__ __forceinline__ void subtract_zero_points(Accumulators<V>& acc, uint32_t window, uint32_t parameters, int first, int end,
                                                     const Lane& lane) {
    uint32_t a[V::kBlocks][2][4];
    const int row = 8 * lane.warp + lane.row;
    const int first_group = first % V::kWindowUnits * V::kGroups, end_group = first_group + (end - first) * V::kGroups;
#pragma unroll
    for (int block = 0; block < V::kBlocks; ++block) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int group = lane.column + 4 * half;
            const uint32_t own = parameters + block * kParameterBytes;
            const uint32_t scales = shared_load_32(own + group * 2 * kBlockFeatures + 4 * row);
            const uint32_t zeros = shared_load_8(own + kScaleBytes + group * kBlockFeatures / 2 + row);
            // A zero point is a code too: as an e4m3 byte it is z / 512.
            const float2 zero = f32x2_from_e4m3x2(static_cast<uint16_t>((zeros & 0x0f) | (zeros & 0xf0) << 4));
            const bool here = group >= first_group && group < end_group;
            const float terms[2] = {here ? -zero.x * f32_from_f16(static_cast<uint16_t>(scales)) : 0.0f,
                                    here ? -zero.y * f32_from_f16(static_cast<uint16_t>(scales >> 16)) : 0.0f};
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const uint32_t bits = __float_as_uint(terms[i]);
                const uint32_t rest = __float_as_uint(terms[i] - __uint_as_float(bits & 0xffff0000u));
                a[block][0][2 * half + i] = __byte_perm(bits, bits, 0x3232);
                a[block][1][2 * half + i] = __byte_perm(rest, rest, 0x3232);
            }
        }
        wgmma_pin(a[block][0]);
        wgmma_pin(a[block][1]);
    }
    const uint32_t sums = warp_uniform(wgmma_descriptor_low<Swizzle::bytes_32>(window));
    float part[V::kChainSets][V::kChainValues];
    constexpr int kChains = V::kBlocks * V::kSlices;
    const auto issue = [&](int chain) {
        const uint64_t tile = wgmma_descriptor_from_low<Swizzle::bytes_32>(sums + chain % V::kSlices * V::kSlice * kSumRowBytes / 16);
        wgmma_fence();
        Wgmma<V::kSlice>::bf16(part[chain % V::kChainSets], a[chain / V::kSlices][0], tile, 0);
        Wgmma<V::kSlice>::bf16(part[chain % V::kChainSets], a[chain / V::kSlices][1], tile, 1);
        wgmma_commit();
    };
    issue(0);
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
        if (V::kChainSets > 1 && chain + 1 < kChains) {
            issue(chain + 1);
            wgmma_wait<1>();
        } else {
            wgmma_wait<0>();
        }
        wgmma_pin(part[chain % V::kChainSets]);
        float* sum = acc[chain / V::kSlices] + chain % V::kSlices * V::kChainValues;
#pragma unroll
        for (int i = 0; i < V::kChainValues; ++i) sum[i ^ 1] += part[chain % V::kChainSets][i];
        if (V::kChainSets == 1 && chain + 1 < kChains) issue(chain + 1);
    }
#pragma unroll
    for (int block = 0; block < V::kBlocks; ++block) {
        wgmma_pin(a[block][0]);
        wgmma_pin(a[block][1]);
    }
}

}  // namespace w4a8
