// Prefill attention over a paged KV cache: many new tokens a sequence, causal, starting anywhere.
//
//   rows      (token, head of the group) pairs of one KV head, token by token: a group of 8 puts 24 tokens into a tile of 192
//             rows, so that only the last page of a tile, rarely two, needs the causal mask.
//   tile      64 rows to each of three or four consuming warpgroups, which walk the same pages, newest first.
//   block     one to a multiprocessor. A warp takes tiles, those of the latest tokens, the longest, first, and copies their pages
//             into a ring; each warpgroup goes from tile to tile by itself.
//
//   copying warp    tile, page table -> | K V | K V | ... ring ...
//   warpgroup       Q at hand;         S[64 rows, 64 tokens] = Q . K^T,    P = 2^(S - maximum),    O[64 rows, head_dim] += P . V
//
//       tensor cores   | S1 = Q.K1 | O += P0.V0 |      | S2 = Q.K2 | O += P1.V1 |
//       ALUs                       | P1 from S1        |           | P2 from S2 ...         and other warpgroups in between
//
//             P goes from accumulators to operand A within its thread: the order of K's rows (device::KvLayout) is what
//             e4m3 needs for that, too. Maxima are followed lazily: O is rescaled only where one has grown by more than P
//             has room for.
//
//   FP8 pages Q is two e4m3 terms under a scale for each row (high + low), so that only K and V are coarse; P is e4m3 with its
//             row maximum at 2^8 to 2^8.75; row sums are taken over the rounded P, by eight rows of ones that stand behind
//             those of V^T in shared memory, and so come out beside O. After every few pages, counted from the start of the
//             context, O is added to f32 numbers in shared memory and starts anew: the short accumulation of FP8 products
//             never reaches beyond.
#pragma once
#include <cstddef>
#include <cstdint>

#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

#include "prefill_load.cuh"
#include "prefill_tile.cuh"

namespace peregrine {

// Token of accumulator i of S, counted from its page.
template <class Tile>
__device__ __forceinline__ int score_token(int i) {
    const int column = threadIdx.x % 4;
    return Tile::fp8 ? i / 8 * 16 + 4 * column + i % 2 * 2 + i / 4 % 2 : i / 4 * 8 + 2 * column + i % 2;
}

// What a thread carries from step to step: its part of O, and for each of its two rows maximum, sum, and scale from S to base-2
// logarithms. Sums of bf16 pages are the thread's own part; those of FP8 pages are what has been promoted.
template <class Tile>
struct PrefillRows {
    float o[Tile::accumulators];
    float top[2], sum[2], scale[2], decay[2], fading[2];
    bool grown;  // decay is not 1 for some row of the warp

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < Tile::accumulators; ++i) o[i] = 0.0f;
#pragma unroll
        for (int r = 0; r < 2; ++r) top[r] = minus_infinity, sum[r] = 0.0f, fading[r] = 1.0f;
    }

    // S becomes P, unrounded.
    __device__ __forceinline__ void softmax(float (&s)[32]) {
        float most[2][2], bias[2], next[2];
        bool grows[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) most[r][0] = s[2 * r], most[r][1] = s[2 * r + 1];
#pragma unroll
        for (int i = 4; i < 32; ++i) most[i / 2 % 2][i % 2] = fmaxf(most[i / 2 % 2][i % 2], s[i]);
        const auto compare = [&] {
#pragma unroll
            for (int r = 0; r < 2; ++r) grows[r] = (next[r] - top[r]) * scale[r] > Tile::room;  // not where both are -inf
        };
        // Of the thread's own part of its rows: mostly that is all, and no lane has to wait for another's.
#pragma unroll
        for (int r = 0; r < 2; ++r) next[r] = fmaxf(most[r][0], most[r][1]);
        compare();
        grown = __any_sync(~0u, grows[0] || grows[1]);
        if (grown) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                next[r] = fmaxf(next[r], __shfl_xor_sync(~0u, next[r], 1));
                next[r] = fmaxf(next[r], __shfl_xor_sync(~0u, next[r], 2));
            }
            compare();
#pragma unroll
            for (int r = 0; r < 2; ++r) {  // each row by itself: its bits hang on no other row
                decay[r] = grows[r] ? exp2_approx((top[r] - next[r]) * scale[r]) : 1.0f;
                top[r] = grows[r] ? next[r] : top[r];
                if constexpr (!Tile::fp8) sum[r] *= decay[r];
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) bias[r] = (top[r] == minus_infinity ? 0.0f : top[r] * scale[r]) - Tile::shift;
        float part[2][2] = {};
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            const int r = i / 2 % 2;
            s[i] = exp2_approx(s[i] * scale[r] - bias[r]);
            if constexpr (!Tile::fp8) part[r][i % 2] += s[i];
        }
        if constexpr (!Tile::fp8) sum[0] += part[0][0] + part[0][1], sum[1] += part[1][0] + part[1][1];
    }

    // After the product that was under way during softmax: brings O to the maxima of the next one.
    __device__ __forceinline__ void rescale() {
        if (!grown) return;
#pragma unroll
        for (int i = 0; i < Tile::accumulators; ++i) o[i] *= decay[i / 2 % 2];
        if constexpr (Tile::fp8) {
#pragma unroll
            for (int r = 0; r < 2; ++r) fading[r] *= decay[r];
        }
    }
    // Of the rounded P since the last promotion (FP8).
    __device__ __forceinline__ float& recent(int r) { return o[Tile::accumulators - 4 + 2 * r]; }

    // Adds what is in shared memory, `fading` with the maxima since, to O and the sums (FP8).
    __device__ __forceinline__ void add(const float4* promoted) {
#pragma unroll
        for (int i = 0; i < Tile::promoted_quads; ++i) {
            const float4 before = promoted[128 * i];
            o[4 * i] += before.x * fading[0], o[4 * i + 1] += before.y * fading[0];
            o[4 * i + 2] += before.z * fading[1], o[4 * i + 3] += before.w * fading[1];
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) recent(r) += sum[r] * fading[r];
    }
    // The next product then overwrites O and the sums.
    __device__ __forceinline__ void promote(float4* promoted, bool first) {
        if (!first) add(promoted);
#pragma unroll
        for (int i = 0; i < Tile::promoted_quads; ++i)
            promoted[128 * i] = make_float4(o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]);
#pragma unroll
        for (int r = 0; r < 2; ++r) sum[r] = recent(r), fading[r] = 1.0f;
    }
};

// P as operand A.
template <class Tile>
__device__ __forceinline__ void pack(const float (&s)[32], uint32_t (&weights)[Tile::value_steps][4]) {
#pragma unroll
    for (int k = 0; k < Tile::value_steps; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (Tile::fp8) {
                const int at = 16 * k + i / 2 * 8 + i % 2 * 2;
                weights[k][i] = e4m3x4_from_f32(s[at], s[at + 4], s[at + 1], s[at + 5]);
            } else {
                const int at = 8 * k + 2 * i;
                weights[k][i] = bf16x2_from_f32(s[at], s[at + 1]);
            }
        }
}

// A warpgroup's walk through the ring, over all its tiles.
template <class Tile>
struct Consumer {
    using Element = typename Tile::Element;
    using Shared = typename Tile::Shared;
    const DecodeArgs& args;
    Shared& shared;
    const int warpgroup;
    Chunk chunk;
    uint32_t base, keys, values, query, keys_full, values_full, keys_empty, values_empty, clear_parity = 0;
    RingPlace<Tile::stages> key_place, value_place;

    __device__ __forceinline__ Consumer(const DecodeArgs& args, Shared& shared)
        : args(args), shared(shared), warpgroup(warp_uniform(threadIdx.x / 128)), base(shared_address(&shared)) {}

    // What lives through the loop over tiles comes out of it in vector registers. Made uniform again, it and what follows from
    // it stay in uniform ones for the whole of a tile; products then need no step between.
    __device__ __forceinline__ void begin(const TileNote& tile) {
        chunk.context_len = warp_uniform(tile.context_len), chunk.query_start = warp_uniform(tile.query_start);
        chunk.query_len = warp_uniform(tile.query_len), chunk.row = warp_uniform(tile.row);
        chunk.rows = chunk.query_len * static_cast<int>(args.group_size);
        key_place.slot = warp_uniform(key_place.slot), key_place.parity = warp_uniform(key_place.parity);
        value_place.slot = warp_uniform(value_place.slot), value_place.parity = warp_uniform(value_place.parity);
        clear_parity = warp_uniform(clear_parity);
        base = warp_uniform(base);
        keys = core_matrix_tile(base + offsetof(Shared, keys), page_tokens);
        values = core_matrix_tile(base + offsetof(Shared, values), Tile::value_rows);
        query = core_matrix_tile(base + offsetof(Shared, query) + warpgroup * sizeof(Shared::query[0]), 64);
        keys_full = base + offsetof(Shared, keys_full), keys_empty = base + offsetof(Shared, keys_empty);
        values_full = base + offsetof(Shared, values_full), values_empty = base + offsetof(Shared, values_empty);
    }

    // Slots of the last page that hold no token may hold anything, NaN included: 0 x NaN would reach every row. All consumers
    // come here once a tile that sees it, from wherever they await it.
    __device__ __forceinline__ void clear_values(uint32_t slot, int high) {
        constexpr int threads = 128 * Tile::consumers, chunk_tokens = 16 / Element::bytes;
        for (int i = threadIdx.x; i < Tile::tile_bytes / 16; i += threads) {
            const int token = i / Tile::head_dim * chunk_tokens;
            if (token + chunk_tokens <= high) continue;
            uint8_t* chunk = shared.values[slot] + 16 * (i + i / Tile::head_dim * (Tile::value_rows - Tile::head_dim));
#pragma unroll
            for (int byte = 0; byte < 16; ++byte)
                if (token + byte / Element::bytes >= high) chunk[byte] = 0;
        }
        fence_async_shared();
        barrier_arrive(&shared.cleared);
        barrier_wait(&shared.cleared, clear_parity);
        clear_parity ^= 1;
    }
    __device__ __forceinline__ void await_keys() const { barrier_wait(keys_full + 8 * key_place.slot, key_place.parity); }
    __device__ __forceinline__ void await_values(int page) {
        barrier_wait(values_full + 8 * value_place.slot, value_place.parity);
        if ((page + 1) * page_tokens > chunk.context_len) clear_values(value_place.slot, chunk.context_len - page * page_tokens);
    }
    __device__ __forceinline__ void release_keys() {
        if (threadIdx.x % 32 == 0) barrier_arrive(keys_empty + 8 * key_place.slot);
        key_place.advance();
    }
    __device__ __forceinline__ void release_values() {
        if (threadIdx.x % 32 == 0) barrier_arrive(values_empty + 8 * value_place.slot);
        value_place.advance();
    }

    // Pages that other warpgroups of the block see and this one does not.
    __device__ __forceinline__ void skip(int page, int count) {
        for (; count > 0; --count, --page) {
            await_keys();
            await_values(page);
            __syncwarp();
            release_keys();
            release_values();
        }
    }

    // Issues S = Q . K^T of a page that is there.
    __device__ __forceinline__ void score(const QueryFragments<Tile>& q, float (&s)[32]) const {
        const uint32_t tile = keys + key_place.slot * (Tile::tile_bytes / 16);
        wgmma_pin(s);
        wgmma_fence();
#pragma unroll
        for (int term = 0; term < Tile::terms; ++term)
#pragma unroll
            for (int k = 0; k < Tile::query_steps; ++k) {
                const uint64_t b = core_matrix_descriptor(tile + k * (2 * page_tokens));
                const int step = term * Tile::shared_steps + k - Tile::register_steps;
                if (k < Tile::register_steps) Element::template product<64>(s, q.term[term][k], b, term + k != 0);
                else Element::template product<64>(s, core_matrix_descriptor(query + step * (Tile::step_bytes / 16)), b, term + k != 0);
            }
        wgmma_commit();
    }

    // Issues O += P . V of a page that is there, with the sums of P's rows where V has rows of ones; `accumulate` 0 overwrites.
    __device__ __forceinline__ void weigh(uint32_t (&weights)[Tile::value_steps][4], float (&o)[Tile::accumulators],
                                          int accumulate) const {
        const uint32_t tile = values + value_place.slot * (Tile::value_bytes / 16);
        wgmma_pin(o);
#pragma unroll
        for (int k = 0; k < Tile::value_steps; ++k) wgmma_pin(weights[k]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < Tile::value_steps; ++k)
            Element::template product<Tile::value_rows>(o, weights[k], core_matrix_descriptor(tile + k * (2 * Tile::value_rows)),
                                                        k == 0 ? accumulate : 1);
        wgmma_commit();
    }
};

template <class Tile>
__device__ __forceinline__ void consume_chunk(Consumer<Tile>& consumer, int head, PageRange block_pages) {
    const DecodeArgs& args = consumer.args;
    typename Tile::Shared& shared = consumer.shared;
    const Chunk& chunk = consumer.chunk;
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, group = args.group_size;
    const int warpgroup = consumer.warpgroup, first = chunk.row + 64 * warpgroup;
    if (first >= chunk.rows) return consumer.skip(block_pages.end - 1, block_pages.end - block_pages.begin);
    const int last = min(first + 64, chunk.rows) - 1;
    const PageRange pages = chunk.pages(args, first, last);

    // The thread's two rows among the sequence's. Rare branches work out again what hangs on them: registers are short.
    const auto row_of = [&](int r) {
        int row = min(first + 16 * warp + lane / 4 + 8 * r, last);
        asm volatile("" : "+r"(row));
        return row;
    };
    const auto place_of = [&](int row) {  // in [tokens, query_heads]
        return static_cast<uint64_t>(chunk.query_start + row / group) * (args.kv_heads * group) + head * group + row % group;
    };
    const uint16_t* const source[2] = {args.query + place_of(row_of(0)) * Tile::head_dim,
                                       args.query + place_of(row_of(1)) * Tile::head_dim};
    QueryFragments<Tile> q;
    q.load(source, shared.query[warpgroup]);
    PrefillRows<Tile> rows;
    rows.clear();
    const float unit = args.softmax_scale * log2_e;
#pragma unroll
    for (int r = 0; r < 2; ++r)  // the bound keeps a masked -inf from becoming NaN
        rows.scale[r] = fmaxf(unit * (args.k_scale ? args.k_scale[head] : 1.0f) * q.scale[r], 1e-30f);
    // Tokens that every row sees.
    const int window = args.window, all_high = chunk.position(args, first) + 1;
    const int all_low = window ? max(0, chunk.position(args, last) - window + 1) : 0;

    const auto adjust = [&](float (&s)[32], int page) {
        if (args.alibi_slopes) {
            float slope[2], own[2];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int row = row_of(r);
                slope[r] = args.alibi_slopes[head * group + row % group];
                own[r] = alibi_bias(slope[r], chunk.position(args, row));
            }
#pragma unroll
            for (int i = 0; i < 32; ++i) {
                const int r = i / 2 % 2, token = page * page_tokens + score_token<Tile>(i);
                // Counted from the query's own bias: that leaves small numbers in the maxima.
                s[i] += (alibi_bias(slope[r], token) - own[r]) * (unit / rows.scale[r]);
            }
        }
        if ((page + 1) * page_tokens > all_high || page * page_tokens < all_low) {
            const int position[2] = {chunk.position(args, row_of(0)), chunk.position(args, row_of(1))};
#pragma unroll
            for (int i = 0; i < 32; ++i) {
                const int r = i / 2 % 2, token = page * page_tokens + score_token<Tile>(i);
                if (token > position[r] || (window && token <= position[r] - window)) s[i] = minus_infinity;
            }
        }
    };

    consumer.skip(block_pages.end - 1, block_pages.end - pages.end);
    if (pages.begin < pages.end) {
        float s[32];
        float4* const promoted = &shared.promoted[warpgroup][0][Tile::fp8 ? threadIdx.x % 128 : 0];
        uint32_t weights[Tile::value_steps][4];
        consumer.await_keys();
        consumer.score(q, s);
        wgmma_wait<0>();
        wgmma_pin(s);
        consumer.release_keys();
        adjust(s, pages.end - 1);
        rows.softmax(s);
        pack<Tile>(s, weights);

        const auto finish = [&] {
            wgmma_wait<0>();
            wgmma_pin(rows.o);
            consumer.release_values();
        };
        int accumulate = 1, promotions = 0;

        if (pages.begin < pages.end - 1) consumer.await_keys();
        // O of the pages before, in shared memory, behind the products that do not touch it.
        const auto promote = [&] {
            if constexpr (Tile::fp8)
                if (!accumulate) rows.promote(promoted, promotions++ == 0);
        };
        for (int page = pages.end - 2; page >= pages.begin; --page) {
            consumer.score(q, s);
            promote();
            consumer.await_values(page + 1);
            consumer.weigh(weights, rows.o, accumulate);
            wgmma_wait<1>();
            wgmma_pin(s);
            consumer.release_keys();
            adjust(s, page);
            rows.softmax(s);
            wgmma_pin(s);
            // The branch inside keeps the assembler from moving the softmax behind the products' end.
            if (page > pages.begin) consumer.await_keys();
            finish();
            rows.rescale();
            pack<Tile>(s, weights);
            if constexpr (Tile::fp8) accumulate = (page + 1) % Tile::promoted_pages != 0;
        }
        promote();
        consumer.await_values(pages.begin);
        consumer.weigh(weights, rows.o, accumulate);
        finish();
        if constexpr (Tile::fp8) {
            if (promotions) rows.add(promoted);
#pragma unroll
            for (int r = 0; r < 2; ++r) rows.sum[r] = rows.recent(r);
        }
    }
    consumer.skip(pages.begin - 1, pages.begin - block_pages.begin);

    const float value_scale = args.v_scale ? args.v_scale[head] : 1.0f;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = rows.sum[r];
        if constexpr (!Tile::fp8) sum += __shfl_xor_sync(~0u, sum, 1), sum += __shfl_xor_sync(~0u, sum, 2);
        if (first + 16 * warp + lane / 4 + 8 * r > last) continue;
        const int row = row_of(r);
        const uint64_t place = place_of(row);
        const float norm = sum > 0.0f ? __fdividef(value_scale, sum) : 0.0f;
        uint32_t* output = reinterpret_cast<uint32_t*>(args.output + place * Tile::head_dim);
#pragma unroll
        for (int j = 0; j < Tile::head_dim / 8; ++j)
            output[4 * j + lane % 4] = bf16x2_from_f32(rows.o[4 * j + 2 * r] * norm, rows.o[4 * j + 2 * r + 1] * norm);
        if (args.lse && lane % 4 == 0) {
            // Biases were counted from the query's own; the definition counts from nothing.
            const float own = args.alibi_slopes ? alibi_bias(args.alibi_slopes[head * group + row % group], chunk.position(args, row)) : 0.0f;
            args.lse[place] = sum > 0.0f ? (rows.top[r] * rows.scale[r] + log2f(sum) - Tile::shift) * ln_2 + args.softmax_scale * own
                                         : minus_infinity;
        }
    }
}

template <class Tile>
__device__ __forceinline__ void consume_tiles(const DecodeArgs& args, typename Tile::Shared& shared) {
    Consumer<Tile> consumer(args, shared);
    RingPlace<Tile::tile_slots> place;
    while (true) {
        barrier_wait(&shared.tile_full[place.slot], place.parity);
        const TileNote tile = shared.tiles[place.slot];
        barrier_arrive(&shared.tile_empty[place.slot]);
        place.advance();
        // By a vote: the assembler keeps uniform registers only where it sees that the whole warp leaves a loop.
        if (!__any_sync(~0u, tile.query_len)) return;
        consumer.begin(tile);
        named_barrier_sync(2 + consumer.warpgroup, 128);  // products of the last tile have read its queries
        consume_chunk(consumer, warp_uniform(tile.head), {static_cast<int>(warp_uniform(tile.pages_begin)), static_cast<int>(warp_uniform(tile.pages_end))});
    }
}

template <class Tile>
__device__ __forceinline__ void prefill(const DecodeArgs& args) {
    extern __shared__ __align__(128) uint8_t memory[];
    typename Tile::Shared& shared = *reinterpret_cast<typename Tile::Shared*>(memory);
    if (threadIdx.x == 0) {  // by one thread, at addresses known here: mbarrier.init of a thread's own becomes a loop over threads
#pragma unroll
        for (int i = 0; i < Tile::stages; ++i) {
            barrier_init(&shared.keys_full[i], 1);
            barrier_init(&shared.values_full[i], 1);
            barrier_init(&shared.keys_empty[i], 4 * Tile::consumers);
            barrier_init(&shared.values_empty[i], 4 * Tile::consumers);
        }
#pragma unroll
        for (int i = 0; i < Tile::tile_slots; ++i) {
            barrier_init(&shared.tile_full[i], 1);
            barrier_init(&shared.tile_empty[i], 128 * Tile::consumers);
        }
        barrier_init(&shared.cleared, 128 * Tile::consumers);
        barrier_init_fence();
    }
    if constexpr (Tile::fp8) {
        constexpr int words = 8 * 16 / 4, row_words = Tile::value_rows * 16 / 4;  // of a chunk: ones, all
        for (int i = threadIdx.x; i < Tile::stages * Tile::value_chunks * words; i += Tile::threads)
            reinterpret_cast<uint32_t*>(shared.values)[i / words * row_words + row_words - words + i % words] = Tile::Element::ones;
        fence_async_shared();
    }
    __syncthreads();
    grid_wait_predecessor();
    grid_release_successor();
    if (warp_uniform(threadIdx.x / 128) == Tile::consumers) {
        registers_shrink<Tile::producer_registers>();
        if (warp_uniform(threadIdx.x / 32) == 4 * Tile::consumers) copy_tiles<Tile>(args, shared);
    } else {
        registers_grow<Tile::consumer_registers>();
        consume_tiles<Tile>(args, shared);
    }
}

}  // namespace peregrine
