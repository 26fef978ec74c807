// How tiles of at most 64 tokens come into shared memory (V::kFew): the same rings as in w4a8.cuh, filled with as little as can be in front
// of the first byte. At few tokens a product is a stream of weights of which a launch's start and end are a tenth and more:
//
//    kernel before      ... products ][ partials meet, store ]
//    this one           [ barriers, ring's weights ][ 4 units more into L2 ][ wait ][ activations ][ products ...
//
// Where a multiprocessor has room for two blocks (w4a8_sm90.cu) this one's starts where the last but one's ended. More than 4 units
// take from the kernel before what they give to this one.
#pragma once
#include <peregrine/bulk_copy.cuh>
#include <peregrine/mbarrier.cuh>
#include <peregrine/sync.cuh>

#include "w4a8_plan.cuh"

namespace w4a8 {

__device__ __forceinline__ CachePolicy weights_policy(const Problem& p) {
    return p.weights_stream_once ? CachePolicy::evict_first : CachePolicy::normal;
}

template <class V>
__device__ __forceinline__ void load_unit(const Stages<V>& stages, const Problem& p, const Runs<V>& runs, int unit) {
    barrier_expect_bytes(stages.full(), V::kXBytes + runs.tile_blocks() * kCodeBytes);
    runs.template load<kCodeBytes>(stages.data() + V::kXBytes, p.codes, unit, p.units, stages.full(), weights_policy(p));
}

template <class V>
__device__ __forceinline__ void load_window(const Windows<V>& windows, const Problem& p, const Runs<V>& runs, int window) {
    barrier_expect_bytes(windows.full(), runs.tile_blocks() * kParameterBytes);
    runs.template load<kParameterBytes>(windows.data() + V::kSumBytes, p.parameters, window, p.windows, windows.full(),
                                        weights_policy(p));
}

template <class V>
__device__ __forceinline__ Early copy_early(uint32_t shared, const Problem& p, int lane) {
    return packed::copy_early<V>(
        Stages<V>(shared), Windows<V>(shared), p, lane,
        [&](const Stages<V>& stages, const Runs<V>& runs, int unit) { load_unit<V>(stages, p, runs, unit); },
        [&](const Windows<V>& windows, const Runs<V>& runs, int window) { load_window<V>(windows, p, runs, window); });
}

// Codes of the units behind the ring, into L2.
template <class V>
__device__ __forceinline__ void prefetch_ahead(const Problem& p, int early_units, int lane) {
    Segment s;
    int at = 0;
    for (Schedule<V> schedule(p); at < V::kStages + V::kAhead && schedule.next(p, s);) {
        const Runs<V> runs(p, locate<V>(p, s.tile));
        for (int unit = s.first_unit; unit < s.end_unit && at < V::kStages + V::kAhead; ++unit, ++at) {
            if (at >= early_units && lane == 0) runs.template prefetch<kCodeBytes>(p.codes, unit, p.units);
        }
    }
}

template <class V>
__device__ __forceinline__ void copy_few(uint32_t shared, const CUtensorMap* x, const Problem& p, Early early, int lane) {
    if (V::kAhead > 0) prefetch_ahead<V>(p, early.units, lane);
    grid_wait_predecessor();
    Segment s;
    Stages<V> stages(shared);
    Windows<V> windows(shared);
    for (Schedule<V> schedule(p); schedule.next(p, s);) {
        const Runs<V> runs(p, locate<V>(p, s.tile));
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
            if (lane == 0) tensor_load_2d(stages.data(), x, unit * kUnit, 0, stages.full(), CachePolicy::evict_last);
        }
    }
}

}  // namespace w4a8
