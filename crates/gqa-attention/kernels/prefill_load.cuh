// What prefill attention reads: tiles of rows, their pages into a ring by bulk copies, and a warpgroup's queries as operands.
// See prefill.cuh.
#pragma once
#include <cstdint>

#include <peregrine/bulk_copy.cuh>
#include <peregrine/fp8.cuh>
#include <peregrine/mbarrier.cuh>
#include <peregrine/sync.cuh>

#include "prefill_tile.cuh"

namespace peregrine {

// A place in the ring, which all walk in the same order.
template <int stages>
struct RingPlace {
    uint32_t slot = 0, parity = 0;
    __device__ __forceinline__ void advance() {
        if (++slot == stages) slot = 0, parity ^= 1;
    }
};

template <class Tile>
__device__ __forceinline__ void copy_pages(const DecodeArgs& args, typename Tile::Shared& shared, uint32_t sequence, uint32_t head,
                                           PageRange pages, RingPlace<Tile::stages>& at) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t* table = args.block_table + static_cast<uint64_t>(sequence) * args.max_pages;
    const uint32_t keys = shared_address(shared.keys), values = shared_address(shared.values);
    const uint32_t keys_full = shared_address(shared.keys_full), values_full = shared_address(shared.values_full);
    const uint32_t keys_empty = shared_address(shared.keys_empty), values_empty = shared_address(shared.values_empty);
    const auto reserve = [&](uint32_t full, uint32_t empty) {
        barrier_wait(empty + 8 * at.slot, at.parity);
        barrier_expect_bytes(full + 8 * at.slot, Tile::tile_bytes);
    };
    const int count = pages.end - pages.begin;
    uint32_t mine = 0;  // a lane's page of the next 32
    for (int i = 0; i < count; ++i) {
        if (i % 32 == 0) mine = static_cast<int>(lane) < count - i ? table[pages.end - 1 - i - lane] : 0;
        const uint64_t page = __shfl_sync(~0u, mine, i % 32);
        if (lane == 0) {
            const uint8_t* source = args.pages + (page * args.kv_heads + head) * (2 * Tile::tile_bytes);
            reserve(keys_full, keys_empty);
            bulk_load(keys + at.slot * Tile::tile_bytes, source, Tile::tile_bytes, keys_full + 8 * at.slot, CachePolicy::normal);
            reserve(values_full, values_empty);
            constexpr int copies = Tile::fp8 ? Tile::value_chunks : 1;
#pragma unroll
            for (int i = 0; i < copies; ++i)
                bulk_load(values + at.slot * Tile::value_bytes + i * (Tile::value_bytes / copies),
                          source + Tile::tile_bytes + i * (Tile::tile_bytes / copies), Tile::tile_bytes / copies,
                          values_full + 8 * at.slot, CachePolicy::normal);
        }
        at.advance();
    }
}

// The consumers load a tile's queries when they come to it, and wait for them: let them lie in the L2 by then.
template <class Tile>
__device__ __forceinline__ void prefetch_queries(const DecodeArgs& args, const Chunk& chunk, uint32_t head) {
    const uint32_t group = args.group_size, bytes = group * Tile::head_dim * 2;
    const uint32_t last = (min(chunk.row + Tile::rows, chunk.rows) - 1) / group;
    for (uint32_t token = chunk.row / group + threadIdx.x % 32; token <= last; token += 32) {
        const uint64_t place = static_cast<uint64_t>(chunk.query_start + token) * args.kv_heads + head;
        bulk_prefetch_l2(args.query + place * group * Tile::head_dim, bytes);
    }
}

// The copying warp: takes tiles one after the other, notes them for the consumers, copies their pages. It runs ahead of them as
// far as the ring has room, so that the next tile's first pages are there when the last one's output goes out.
//
// Tiles go from the latest tokens, which see most pages, to the first, all heads of a place in turn: so the last ones to be
// taken are short, and blocks end together. A block begins with the tile of its own number; those behind the grid's are
// handed out by a counter. The last block to find none left sets both counters back to zero.
template <class Tile>
__device__ __forceinline__ void copy_tiles(const DecodeArgs& args, typename Tile::Shared& shared) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t slots = first_slot<Tile::rows>(args, args.batch), tiles = slots * args.kv_heads;
    uint32_t* const taken = &args.finished[0];
    uint32_t* const blocks_done = &args.finished[1];
    RingPlace<Tile::stages> at;
    RingPlace<Tile::tile_slots> place;
    at.parity = place.parity = 1;
    const auto note = [&](const TileNote& tile) {
        if (lane == 0) {
            barrier_wait(&shared.tile_empty[place.slot], place.parity);
            shared.tiles[place.slot] = tile;
            barrier_arrive(&shared.tile_full[place.slot]);
        }
        place.advance();
    };
    uint32_t tile = blockIdx.x;
    while (tile < tiles) {
        uint32_t next = 0, sequence;
        const auto take = [&] {
            if (lane == 0) next = gridDim.x + atomicAdd(taken, 1);
        };
        const int head = tile % args.kv_heads;
        const Chunk chunk = find_chunk<Tile::rows>(args, slots - 1 - tile / args.kv_heads, sequence);
        const bool empty = chunk.row >= chunk.rows;
        const PageRange pages = empty ? PageRange{0, 0} : chunk.pages(args, chunk.row, min(chunk.row + Tile::rows, chunk.rows) - 1);
        // As late as can be: what a block has taken no other can. Pages in the ring hide how long the counter takes to answer.
        const bool brief = pages.end - pages.begin <= Tile::stages;
        if (brief) take();
        if (!empty) {
            note({chunk.context_len, chunk.query_start, chunk.query_len, chunk.row, head, pages.begin, pages.end, 0});
            prefetch_queries<Tile>(args, chunk, head);
            copy_pages<Tile>(args, shared, sequence, head, pages, at);
        }
        if (!brief) take();
        tile = __shfl_sync(~0u, next, 0);
    }
    note({});
    if (lane == 0 && flag_add_acq_rel(blocks_done, 1) == gridDim.x - 1) *taken = *blocks_done = 0;
}

// Q as operand A, and what it was multiplied by for that (e4m3).
template <class Tile>
struct QueryFragments {
    uint32_t term[Tile::terms][Tile::register_steps ? Tile::register_steps : 1][4];
    float scale[2];

    // `row`: the thread's two rows, bf16 [head_dim]. `query`: the warpgroup's operand in shared memory.
    __device__ __forceinline__ void load(const uint16_t* const (&row)[2], uint8_t* query) {
        const int column = threadIdx.x % 4;
        if constexpr (!Tile::fp8) {
#pragma unroll
            for (int k = 0; k < Tile::query_steps; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i) keep(query, 0, k, i, reinterpret_cast<const uint32_t*>(row[i % 2])[8 * k + i / 2 * 4 + column]);
            scale[0] = scale[1] = 1.0f;
        } else {
            uint2 raw[Tile::query_steps][4];
            float largest[2] = {1e-20f, 1e-20f};
#pragma unroll
            for (int k = 0; k < Tile::query_steps; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i) raw[k][i] = reinterpret_cast<const uint2*>(row[i % 2])[8 * k + i / 2 * 4 + column];
#pragma unroll
            for (int k = 0; k < Tile::query_steps; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 low = f32x2_from_bf16x2(raw[k][i].x), high = f32x2_from_bf16x2(raw[k][i].y);
                    const float most = fmaxf(fmaxf(fabsf(low.x), fabsf(low.y)), fmaxf(fabsf(high.x), fabsf(high.y)));
                    largest[i % 2] = fmaxf(largest[i % 2], most);
                }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 1));
                largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 2));
                scale[r] = largest[r] / e4m3_max;
            }
#pragma unroll
            for (int k = 0; k < Tile::query_steps; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    uint32_t high, low;
                    split(raw[k][i], e4m3_max / largest[i % 2], high, low);
                    keep(query, 0, k, i, high);
                    keep(query, 1, k, i, low);
                }
        }
        if constexpr (Tile::shared_steps > 0) {
            fence_async_shared();
            named_barrier_sync(2 + threadIdx.x / 128, 128);
        }
    }

    __device__ __forceinline__ void keep(uint8_t* query, int which, int k, int i, uint32_t word) {
        if (k < Tile::register_steps) {
            term[which][k][i] = word;
            return;
        }
        const int step = which * Tile::shared_steps + k - Tile::register_steps;
        const int row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + i % 2 * 8;
        *reinterpret_cast<uint32_t*>(query + step * Tile::step_bytes + (i / 2 * 64 + row) * 16 + threadIdx.x % 4 * 4) = word;
    }

    // Two e4m3 terms of four values.
    static __device__ __forceinline__ void split(uint2 bf16, float inverse, uint32_t& high, uint32_t& low) {
        const float2 a = f32x2_from_bf16x2(bf16.x), b = f32x2_from_bf16x2(bf16.y);
        const uint16_t first = e4m3x2_from_f32(a.x * inverse, a.y * inverse), second = e4m3x2_from_f32(b.x * inverse, b.y * inverse);
        const float2 c = f32x2_from_e4m3x2(first), d = f32x2_from_e4m3x2(second);
        high = first | static_cast<uint32_t>(second) << 16;
        low = e4m3x4_from_f32(a.x * inverse - c.x, a.y * inverse - c.y, b.x * inverse - d.x, b.y * inverse - d.y);
    }
};

}  // namespace peregrine
