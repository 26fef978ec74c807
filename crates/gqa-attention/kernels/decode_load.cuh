// The loading warp of a worker: K and V tiles by bulk copies into a ring, and what the worker is to know of each piece. Queries
// go straight from memory into the worker's operands.
#pragma once
#include <cstdint>

#include <peregrine/bulk_copy.cuh>
#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

#include "decode_tile.cuh"

namespace peregrine {

// Where the query of a column lies, `own` of its pass.
template <class Tile>
__device__ __forceinline__ const uint16_t* query_row(const DecodeArgs& args, const typename Tile::Piece& piece, const uint16_t* ahead,
                                                     int own, int column, bool there) {
    if (Tile::queries_ahead && piece.queries_ahead) return ahead + own * Tile::head_dim;
    const uint32_t token = there ? token_of(args, piece.query_len, column) : 0;
    const uint32_t query_head = (piece.head - token) * args.group_size + column;
    const uint64_t row = (piece.query_start + token) * static_cast<uint64_t>(args.kv_heads * args.group_size) + query_head;
    return args.query + row * Tile::head_dim;
}

// A warp's columns of a piece's queries as operands B, for each 16 dims. For e4m3 they are f16 under a power of two that puts the
// largest just below 2^15 (bf16 has 8 bits, f16 11: only what is 2^-30 of the largest loses any). Returns its inverse.
template <class Tile>
__device__ __forceinline__ float load_queries(const DecodeArgs& args, const typename Tile::Piece& piece, const uint16_t* ahead,
                                              int first_column, int lane, uint32_t (&query)[Tile::column_blocks][Tile::dim_blocks][2]) {
    const int columns = piece.query_len * args.group_size;
#pragma unroll
    for (int j = 0; j < Tile::column_blocks; ++j) {
        const int own = first_column + 8 * j + lane / 4, column = piece.column_tile * Tile::columns + own;
        const bool there = own < Tile::columns && column < columns;
        const uint16_t* source = query_row<Tile>(args, piece, ahead, own, column, there) + lane % 4 * (Tile::fp8 ? 4 : 2);
#pragma unroll
        for (int k = 0; k < Tile::dim_blocks; ++k) {
            uint2 raw = make_uint2(0, 0);
            if constexpr (Tile::fp8) {
                if (there) raw = *reinterpret_cast<const uint2*>(source + 16 * k);
            } else {
                if (there) raw.x = *reinterpret_cast<const uint32_t*>(source + 16 * k);
                if (there) raw.y = *reinterpret_cast<const uint32_t*>(source + 16 * k + 8);
            }
            query[j][k][0] = raw.x, query[j][k][1] = raw.y;
        }
    }
    if constexpr (!Tile::fp8) return 1.0f;
    uint32_t top = 0;  // magnitudes of bf16 compare as integers
#pragma unroll
    for (int j = 0; j < Tile::column_blocks; ++j)
#pragma unroll
        for (int k = 0; k < Tile::dim_blocks; ++k)
            top = __vmaxu2(top, __vmaxu2(query[j][k][0] & 0x7fff7fffu, query[j][k][1] & 0x7fff7fffu));
    const uint32_t exponent = max(__reduce_max_sync(~0u, max(top >> 16, top & 0xffffu)) >> 7, 15u);
    const float factor = __uint_as_float((127 + 127 + 14 - exponent) << 23);
#pragma unroll
    for (int j = 0; j < Tile::column_blocks; ++j)
#pragma unroll
        for (int k = 0; k < Tile::dim_blocks; ++k)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float2 pair = f32x2_from_bf16x2(query[j][k][i]);
                query[j][k][i] = f16x2_from_f32(pair.x * factor, pair.y * factor);
            }
    return __uint_as_float((exponent - 14) << 23);
}

// Everything a worker consumes, in the order of the line: its pieces, and their pages. A last piece without tiles ends it.
template <class Tile>
__device__ __forceinline__ void produce(const DecodeArgs& args, typename Tile::Shared& shared, uint32_t worker,
                                        Share<Tile::columns>& share) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t ring = shared_address(shared.ring[worker]), full = shared_address(shared.full[worker]);
    const uint32_t empty = shared_address(shared.empty[worker]), item_full = shared_address(shared.item_full[worker]);
    const uint32_t item_empty = shared_address(shared.item_empty[worker]);
    uint32_t slot = 0, parity = 1, item_slot = 0, item_parity = 1;
    // Where the batch is settled, only pages that hold new tokens wait for the kernel before.
    bool waited = !args.settled, any = false;
    const uint32_t end = share.end;
    uint32_t place = share.begin;
    for (bool last = false; !last;) {
        typename Tile::Piece piece{};
        const uint32_t* pages = nullptr;
        uint32_t mine = 0;  // a lane's page of the next 32
        if (place < end) {
            share.walk.seek(args, place);
            const Sequence& seq = share.walk.seq;
            piece.item = share.walk.item_tile, piece.tiles = seq.tiles;
            piece.begin = max(place, piece.item), piece.end = max(piece.begin, min(end, piece.item + seq.tiles));
            pages = args.block_table + static_cast<uint64_t>(share.walk.sequence) * args.max_pages + seq.first_page;
            if (lane < piece.end - piece.begin && seq.context_len) mine = pages[piece.begin - piece.item + lane];
            piece.context_len = seq.context_len, piece.query_start = seq.query_start, piece.query_len = seq.query_len;
            piece.first_page = seq.first_page;
            piece.head = seq.column_tiles == 1 ? share.walk.item : share.walk.item / seq.column_tiles;
            piece.column_tile = share.walk.item - piece.head * seq.column_tiles;
            const uint32_t item_end = piece.item + piece.tiles;
            piece.first_block = place <= piece.item ? blockIdx.x : share.split.block_of(piece.item);
            piece.last_block = piece.end == item_end ? blockIdx.x : share.split.block_of(item_end - 1);
            last = piece.end + seq.lead >= end;
        } else {
            last = true;
        }
        piece.last = last;
        // The first queries are read by those who need them, as soon as they are there; later ones are copied while the
        // worker is at the piece before.
        piece.queries_ahead = Tile::queries_ahead && any && piece.query_len == 1;
        barrier_wait(item_empty + 8 * item_slot, item_parity);
        if (piece.queries_ahead && !waited) waited = true, grid_wait_predecessor();
        if (lane == 0) {
            shared.block.worker[worker].ahead[item_slot] = piece;
            if (piece.queries_ahead) {
                const uint32_t first = piece.column_tile * Tile::columns;
                const uint32_t bytes = min(args.group_size - first, static_cast<uint32_t>(Tile::columns)) * (2 * Tile::head_dim);
                const uint64_t row = (static_cast<uint64_t>(piece.query_start) * args.kv_heads + piece.head) * args.group_size;
                barrier_expect_bytes(item_full + 8 * item_slot, bytes);
                bulk_load(shared.block.worker[worker].queries[item_slot], args.query + (row + first) * Tile::head_dim, bytes,
                          item_full + 8 * item_slot, CachePolicy::normal);
            } else {
                barrier_arrive(item_full + 8 * item_slot);
            }
        }
        any = true;
        if (++item_slot == Tile::items_ahead) item_slot = 0, item_parity ^= 1;
        const uint8_t* const head = args.pages + piece.head * static_cast<uint64_t>(Tile::page_bytes);
        const uint64_t page_step = args.kv_heads * static_cast<uint64_t>(Tile::page_bytes);
        // The first tile that may hold a token written by the kernel before.
        const uint32_t fresh =
            piece.item + max(max(piece.context_len - piece.query_len, 0) / page_tokens - static_cast<int>(piece.first_page), 0);
        for (uint32_t tile = piece.begin; tile < piece.end; ++tile) {
            const uint32_t i = (tile - piece.begin) % 32;
            if (i == 0 && tile != piece.begin)
                mine = lane < piece.end - tile && piece.context_len ? pages[tile - piece.item + lane] : 0;
            const uint32_t page = __shfl_sync(~0u, mine, i);
            if (!waited && tile >= fresh) waited = true, grid_wait_predecessor();
            if (lane == 0) {
                barrier_wait(empty + 8 * slot, parity);
                if (piece.context_len) {
                    barrier_expect_bytes(full + 8 * slot, Tile::page_bytes);
                    bulk_load(ring + slot * Tile::page_bytes, head + page * page_step, Tile::page_bytes, full + 8 * slot,
                              CachePolicy::evict_first);
                } else {
                    barrier_arrive(full + 8 * slot);
                }
            }
            if (++slot == Tile::stages) slot = 0, parity ^= 1;
        }
        place = piece.end;
    }
}

}  // namespace peregrine
