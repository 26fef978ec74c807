// W4A8's main loop with two accumulator sets: what a multiplying warpgroup does with a segment. w4a8.cuh has the drawings.
//
// Two accumulator sets take turns: a chain (w4a8_multiply.cuh) is issued before the one ahead of it is promoted. For a block of one
// unit, with four chains:
//
//    tensor cores   [ chain 0  set 0 ][ chain 1  set 1 ][ chain 2  set 0 ][ chain 3  set 1 ]
//    ALUs                             [acc += s part 0 ][acc += s part 1 ][acc += s part 2 ][widen next, acc += s part 3]
//    shared memory                                                        [next: wait, codes, scales]
//
// A warp issues 1,250 clocks of instructions a unit of 256 tokens, promotion a third of them, where its share of the tensor cores is
// 512. So what counts is their number, and what the assembler can put in a shadow:
//   - It moves a wait for products up over FMAs that do not feed a product behind it. The branch of the wait for the next stage
//     is what keeps the second last promotion above the last wait.
//   - A descriptor is cheap where its base is in a uniform register, but a value carried around the loop is not. So the loop is
//     two units long: the second one's base comes out of the first one's shadow.
#pragma once
#include "w4a8_multiply.cuh"

namespace w4a8 {

// Accumulates units first .. end of a tile.
template <class V>
__device__ __forceinline__ void multiply_ahead(Accumulators<V>& acc, Stages<V>& stages, Windows<V>& windows, const Segment& s,
                                               const Lane& lane) {
    constexpr int kChains = V::kBlockChains, kLast = kChains - 1;
    constexpr int kUnitScales = V::kGroups * 2 * kBlockFeatures;  // bytes
    static_assert(V::kChainSets == 2 && kChains % 2 == 0);
    const uint32_t parameters = V::kSumBytes + lane.multiplier * V::kBlocks * kParameterBytes;
    uint32_t scales_in_window = parameters + 4 * (8 * lane.warp + lane.row);
    uint32_t codes_in_stage = V::kXBytes + lane.multiplier * V::kBlocks * kCodeBytes + lane.thread * 16;
    // Else they are worked out anew from the thread's number at each use.
    asm volatile("" : "+r"(scales_in_window));
    asm volatile("" : "+r"(codes_in_stage));
    Codes codes[2];
    uint32_t pairs[V::kGroups];  // scales of the two rows, as f16
    Fragments a;
    float part[2][V::kChainValues];

    const auto load = [&](uint32_t from, uint32_t scales_from) {
#pragma unroll
        for (int half = 0; half < 2; ++half) codes[half].load(from, half);
#pragma unroll
        for (int group = 0; group < V::kGroups; ++group) pairs[group] = shared_load_32(scales_from + group * 2 * kBlockFeatures);
    };
    const auto widen = [&] {
#pragma unroll
        for (int half = 0; half < 2; ++half) codes[half].widen(a, half);
    };
    const auto descriptor = [&] { return warp_uniform(wgmma_descriptor_low<Swizzle::bytes_128>(stages.data())); };

    int unit = s.first_unit;
    windows.wait_full();
    uint32_t scales = windows.data() + scales_in_window + unit % V::kWindowUnits * kUnitScales;
    stages.wait_full();
    load(stages.data() + codes_in_stage, scales);
    widen();

    // One unit, whose activations x describes; returns the description of the next one's.
    const auto multiply_unit = [&](uint32_t x) {
        uint32_t x_next = 0;
        const uint32_t data = stages.data() + codes_in_stage, release = stages.empty();
        ++unit;
        // After the last unit its own stage serves once more, so that there is no branch while products are in flight.
        if (unit < s.end_unit) stages.advance();
#pragma unroll
        for (int block = 0; block < V::kBlocks; ++block) {
            const auto issue = [&](int chain) { issue_chain<V>(part[chain % 2], a, x, chain, [](int) {}); };
            issue(0);
            float scale[V::kGroups][2];
#pragma unroll
            for (int group = 0; group < V::kGroups; ++group) {
                scale[group][0] = f32_from_f16(static_cast<uint16_t>(pairs[group]));
                scale[group][1] = f32_from_f16(static_cast<uint16_t>(pairs[group] >> 16));
            }
            const auto add = [&](int chain) {
                promote<V>(acc[block] + chain % V::kSlices * V::kChainValues, part[chain % 2], scale[chain / V::kSlices]);
            };
#pragma unroll
            for (int chain = 0; chain < kLast; ++chain) {
                issue(chain + 1);
                wgmma_wait<1>();
                add(chain);
            }
            if (block + 1 == V::kBlocks) {
                stages.wait_full();
                x_next = descriptor();
                scales += kUnitScales;
                if (unit % V::kWindowUnits == 0 && unit < s.end_unit) {
                    Windows<V> following = windows;
                    following.advance();
                    following.wait_full();
                    scales = following.data() + scales_in_window;
                }
                load(stages.data() + codes_in_stage, scales);
            } else {
                load(data + (block + 1) * kCodeBytes, scales + (block + 1) * kParameterBytes);
            }
            wgmma_wait<0>();
            // To the compiler a fragment is dead once its last product is issued: a use after the wait keeps its registers.
#pragma unroll
            for (int step = 0; step < 4; ++step) wgmma_pin(a[step]);
            if (block + 1 == V::kBlocks && unit < s.end_unit) release_stage<V>(release, lane);
            widen();
            add(kLast);
        }
        return x_next;
    };
    const auto close_window = [&] {
        if (unit % V::kWindowUnits != 0 && unit != s.end_unit) return;
        const int first = max(s.first_unit, (unit - 1) / V::kWindowUnits * V::kWindowUnits);
        subtract_zero_points<V>(acc, windows.data(), windows.data() + parameters, first, unit, lane);
        // Again, so that what the next unit begins with needs no registers above; behind the last one, of that unit itself.
        load(stages.data() + codes_in_stage, scales);
        widen();
        barrier_arrive(windows.empty());
        windows.advance();
    };
    do {
        const uint32_t x = multiply_unit(descriptor());
        close_window();
        if (unit == s.end_unit) break;
        multiply_unit(x);
        close_window();
    } while (unit < s.end_unit);
    release_stage<V>(stages.empty(), lane);
    stages.advance();
}

}  // namespace w4a8
