// The loading warp of a worker: K and V tiles by bulk copies into a ring, and the queries of the piece to come, which it
// also turns into a product's operand, so that the worker meets no memory latency between pieces.
#pragma once
#include <cstdint>

#include <peregrine/bulk_copy.cuh>
#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

#include "decode_tile.cuh"

namespace peregrine {

// Queries on their way from memory to one warp: `batch` chunks of 16 bytes of a piece's columns to a lane.
template <class Tile>
struct Queries {
    static constexpr int row_chunks = Tile::head_dim / 8, chunks = Tile::columns * row_chunks;
    // As many as fit the registers: past 512 threads a block they are few.
    static constexpr int batch = chunks <= (Tile::threads > 512 ? 128 : 256) ? chunks / 32 : 4, step = 32 * batch;
    uint4 raw[batch];

    __device__ __forceinline__ void load(const DecodeArgs& args, const typename Tile::Piece& piece, int base) {
        const int columns = piece.query_len * args.group_size;
        const uint64_t query_heads = args.kv_heads * args.group_size;
#pragma unroll
        for (int e = 0; e < batch; ++e) {
            const int chunk = base + 32 * e + threadIdx.x % 32;
            const int column = piece.column_tile * Tile::columns + chunk / row_chunks;
            raw[e] = make_uint4(0, 0, 0, 0);
            if (chunk < chunks && column < columns) {
                const uint32_t token = token_of(args, piece.query_len, column);
                const uint32_t query_head = (piece.head - token) * args.group_size + column;
                const uint64_t row = (piece.query_start + token) * query_heads + query_head;
                raw[e] = *reinterpret_cast<const uint4*>(args.query + row * Tile::head_dim + chunk % row_chunks * 8);
            }
        }
    }
};

__device__ __forceinline__ float2 f32x2_from_bf16x2(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// Two e4m3 terms of eight values: value = high + low to 2^-8 of itself or 2^-19 of the largest query, whichever is more.
__device__ __forceinline__ void split_e4m3(uint4 bf16, float inverse, uint2& high, uint2& low) {
    const uint32_t words[4] = {bf16.x, bf16.y, bf16.z, bf16.w};
    uint32_t h[4], l[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float2 f = f32x2_from_bf16x2(words[i]);
        f.x *= inverse, f.y *= inverse;
        h[i] = e4m3x2_from_f32(f.x, f.y);
        const float2 rounded = f32x2_from_e4m3x2(static_cast<uint16_t>(h[i]));
        l[i] = e4m3x2_from_f32(f.x - rounded.x, f.y - rounded.y);
    }
    high = make_uint2(h[0] | h[1] << 16, h[2] | h[3] << 16);
    low = make_uint2(l[0] | l[1] << 16, l[2] | l[3] << 16);
}

// A piece's queries as operand B: [chunk of 16 bytes][column][16 bytes], with masks, slopes and scale. The first batch of
// queries is there already; later ones are read again (from cache) once their largest value is known.
template <class Tile>
__device__ __forceinline__ void prepare(const DecodeArgs& args, typename Tile::Item& item, const typename Tile::Piece& piece,
                                        Queries<Tile>& queries) {
    using Q = Queries<Tile>;
    const int lane = threadIdx.x % 32, columns = piece.query_len * args.group_size;
    float scale = piece.scale, inverse = 1.0f;
    if constexpr (Tile::fp8) {
        float absmax = 1e-20f;
#pragma unroll 1
        for (int base = 0; base < Q::chunks; base += Q::step) {
            if (base) queries.load(args, piece, base);
#pragma unroll
            for (int e = 0; e < Q::batch; ++e) {
                const uint4 raw = queries.raw[e];
                const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 f = f32x2_from_bf16x2(words[i]);
                    absmax = fmaxf(absmax, fmaxf(fabsf(f.x), fabsf(f.y)));
                }
            }
        }
#pragma unroll
        for (int step = 16; step; step /= 2) absmax = fmaxf(absmax, __shfl_xor_sync(~0u, absmax, step));
        inverse = e4m3_max / absmax;
        scale *= absmax / e4m3_max;
    }
    scale = fmaxf(scale, 1e-30f);  // keeps a masked -inf from becoming NaN
#pragma unroll 1
    for (int base = 0; base < Q::chunks; base += Q::step) {
        if (base || (Tile::fp8 && Q::chunks > Q::step)) queries.load(args, piece, base);
#pragma unroll
        for (int e = 0; e < Q::batch; ++e) {
            const int chunk = base + 32 * e + lane, n = chunk / Q::row_chunks, d = chunk % Q::row_chunks * 8;
            if (chunk >= Q::chunks) break;
            uint8_t* target = item.query + d / Tile::chunk * (Tile::columns * 16) + n * 16;
            if constexpr (Tile::fp8) {
                uint2 high, low;
                split_e4m3(queries.raw[e], inverse, high, low);
                *reinterpret_cast<uint2*>(target + d % 16) = high;
                *reinterpret_cast<uint2*>(target + d % 16 + Tile::columns * Tile::head_dim) = low;
            } else {
                *reinterpret_cast<uint4*>(target) = queries.raw[e];
            }
        }
    }
    for (int n = lane; n < Tile::columns; n += 32) {
        const int column = min(static_cast<int>(piece.column_tile * Tile::columns) + n, columns - 1);
        const int token = token_of(args, piece.query_len, column);
        const int end = piece.context_len - piece.query_len + token + 1;
        item.visible[n] = make_int2(args.window ? max(0, end - static_cast<int>(args.window)) : 0, end);
        item.slope[n] = args.alibi_slopes ? args.alibi_slopes[(piece.head - token) * args.group_size + column] : 0.0f;
    }
    if (lane == 0) {
        item.piece = piece;
        item.piece.scale = scale;
    }
    fence_async_shared();
    __syncwarp();
}

// Everything a worker consumes, in the order of the line: for each piece its queries, and its tiles as K, V, K, V, ...
template <class Tile>
__device__ __forceinline__ void produce(const DecodeArgs& args, typename Tile::Shared& shared, const Split& split, int worker,
                                        uint32_t begin, uint32_t end) {
    if (begin == end) return;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t ring = shared_address(shared.ring[worker]), full = shared_address(shared.full[worker]);
    const uint32_t empty = shared_address(shared.empty[worker]), item_full = shared_address(shared.item_full[worker]);
    const uint32_t item_empty = shared_address(shared.item_empty[worker]);
    uint32_t slot = 0, parity = 1, item_slot = 0, item_parity = 1;
    Walk<Tile::columns> walk = shared.block.start[worker];
    for (uint32_t place = begin;;) {
        walk.seek(args, place);
        const Sequence& seq = walk.seq;
        const uint32_t from = max(place, walk.item_tile), stop = max(from, min(end, walk.item_tile + seq.tiles));
        const uint32_t column_tiles = seq.items / args.kv_heads, head = walk.item / column_tiles;
        typename Tile::Piece piece{};
        piece.item = walk.item_tile, piece.tiles = seq.tiles, piece.begin = from, piece.end = stop;
        piece.context_len = seq.context_len, piece.query_start = seq.query_start, piece.query_len = seq.query_len;
        piece.first_page = seq.first_page, piece.head = head, piece.column_tile = walk.item - head * column_tiles;
        piece.scale = args.softmax_scale * log2_e * (args.k_scale ? args.k_scale[head] : 1.0f);
        piece.v_scale = args.v_scale ? args.v_scale[head] : 1.0f;
        piece.last = stop + seq.lead >= end;
        Queries<Tile> queries;
        queries.load(args, piece, 0);

        const auto hand_over = [&] {
            barrier_wait(item_empty + 8 * item_slot, item_parity);
            piece.first_block = split.block_of(piece.item);
            piece.last_block = split.block_of(piece.item + piece.tiles - 1);
            prepare<Tile>(args, shared.block.worker[worker].item[item_slot], piece, queries);
            if (lane == 0) barrier_arrive(item_full + 8 * item_slot);
            if (++item_slot == Tile::items_ahead) item_slot = 0, item_parity ^= 1;
        };
        const uint32_t* pages =
            args.block_table + static_cast<uint64_t>(walk.sequence) * args.max_pages + seq.first_page - walk.item_tile;
        uint32_t mine = 0;  // a lane's page of the next 32
        for (uint32_t tile = from; tile < stop; ++tile) {
            const uint32_t i = (tile - from) % 32;
            if (i == 0) mine = lane < stop - tile && piece.context_len ? pages[tile + lane] : 0;
            const uint64_t page = __shfl_sync(~0u, mine, i);
            const uint8_t* source = args.pages + (page * args.kv_heads + head) * (2 * Tile::tile_bytes);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (lane == 0) {
                    barrier_wait(empty + 8 * slot, parity);
                    if (piece.context_len) {
                        barrier_expect_bytes(full + 8 * slot, Tile::tile_bytes);
                        bulk_load(ring + slot * Tile::tile_bytes, source + half * Tile::tile_bytes, Tile::tile_bytes,
                                  full + 8 * slot, CachePolicy::evict_first);
                    } else {
                        barrier_arrive(full + 8 * slot);
                    }
                }
                if (++slot == Tile::stages) slot = 0, parity ^= 1;
            }
            if (tile == from) hand_over();  // the first tile is under way: time for its queries
        }
        if (from == stop) hand_over();  // nothing but the place in front of an item: the worker is to hear of its end
        if (piece.last) return;
        place = stop;
    }
}

}  // namespace peregrine
