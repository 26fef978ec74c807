// Decode attention over a paged KV cache: a few query tokens a sequence, every head of a group at once.
//
//   work      sequences x kv_heads x column tiles = items; an item is a run of tiles of 64 tokens, one page each.
//             All tiles of all items, end to end, are one line, cut evenly whatever the lengths:
//
//     items     |------ 0 ------|-- 1 --|------------------ 2 ------------------|-- 3 --| ...
//     blocks    |     block 0     |     block 1     |     block 2     |     block 3     | ...   one to a multiprocessor
//     workers   | w0  | w1  | w2  | w0  | w1  | w2  | ...                          four warps and a loading warp each
//
//             But a lone sequence's items have blocks of their own, so that none has two to join.
//
//   warp      S^T[its tokens, its columns] = K . Q^T,   P^T = 2^(S^T - reference),   O^T[head_dim, its columns] += V^T . P^T
//             columns = query tokens x heads of the group, padded to a multiple of 8. The four warps of a worker share each page,
//             and nothing else: every warp has its own O, references and sums of its columns, so none waits for another.
//
//                         columns   few: all four take all columns    more: two and two     many: each a quarter
//               tokens  0 .. 15     | warp 0 |                        | warp 0 | warp 1 |   | w 0 | w 1 | w 2 | w 3 |
//                      16 .. 31     | warp 1 |                        |        |        |   |     |     |     |     |
//                      32 .. 47     | warp 2 |                        | warp 2 | warp 3 |   |     |     |     |     |
//                      48 .. 63     | warp 3 |                        |        |        |   |     |     |     |     |
//
//             Products are those of single warps (warp_mma.cuh): K and V, 16 x 16, are operand A, as they lie in a page (one bulk
//             copy, device::KvLayout); e4m3 widens to f16 without loss. Q and P are operand B, in registers.
//
//     loading warp   page table -> | K | V | K | V | ... ring ...      pieces
//     warps                          S = K.Q -> P, transposed in registers -> O += V.P
//
//   join      What the warps of a worker hold of an item is joined by the worker, if its piece covers the item. Other pieces leave
//             (O, reference, sum): the block joins what its workers hold of an item, and hands its part to the block where the
//             item ends (decode_join.cuh). The split, and with it the last bits of the output, depends on the whole
//             batch; for one batch every launch gives the same bits.
//
//   start     Where the caller says that the batch is settled, the line is summed and pages are loaded while the kernel before still
//             runs; only pages with new tokens, and queries, wait for it.
//
//   numbers   Q in f16 under a power of two (exact but for what is 2^-30 of the largest), or bf16; P in f16 or bf16; all sums in
//             f32. A column's reference follows its maximum only when that has grown by 2^slack: P has room for it.
//
//   wide      Groups of 17 to 32 heads of 64 dims over e4m3 are arithmetic's, not memory's: for them four warps multiply
//             as one (decode_group.cuh), and a fourth worker fills the schedulers; loading warps give it registers.
#pragma once
#include <cstdint>
#include <type_traits>

#include "decode_group.cuh"
#include "decode_join.cuh"
#include "decode_load.cuh"
#include "decode_plan.cuh"
#include "decode_tile.cuh"
#include "decode_warp.cuh"

namespace peregrine {

template <class Tile>
__device__ __forceinline__ void consume(const DecodeArgs& args, typename Tile::Shared& shared, uint32_t worker) {
    typename Tile::Worker& my = shared.block.worker[worker];
    const int thread = threadIdx.x % 128;
    std::conditional_t<Tile::warpgroup, GroupState<Tile>, WarpState<Tile>> state(thread);
    const uint32_t ring = shared_address(shared.ring[worker]);
    const uint32_t keys = state.keys_of(ring);
    const uint32_t values = state.values_of(ring + Tile::tile_bytes);
    const uint32_t full = shared_address(shared.full[worker]), empty = shared_address(shared.empty[worker]);
    const uint32_t item_full = shared_address(shared.item_full[worker]), item_empty = shared_address(shared.item_empty[worker]);
    uint32_t slot = 0, parity = 0, item_slot = 0, item_parity = 0;

    for (bool last = false; !last;) {
        barrier_wait(item_full + 8 * item_slot, item_parity);
        const typename Tile::Piece& piece = my.ahead[item_slot];
        last = piece.last;
        if (piece.begin == piece.end) break;
        const float value_scale = args.v_scale ? args.v_scale[piece.head] : 1.0f;
        const float key_scale = args.k_scale ? args.k_scale[piece.head] : 1.0f;
        const float query_scale = state.load_queries(args, piece, my.queries[item_slot]);
        // Not 0: a masked -inf would become NaN.
        state.scale = fmaxf(args.softmax_scale * log2_e * key_scale * query_scale, 1e-30f);
        state.clear();
        // Tokens that every column sees, and tokens that some column sees.
        int all_high = piece.context_len - piece.query_len + 1, any_high = piece.context_len;
        int all_low = args.window ? max(0, any_high - static_cast<int>(args.window)) : 0;
        int any_low = args.window ? max(0, all_high - static_cast<int>(args.window)) : 0;
        // Kept in registers: worked out again they are ten instructions a page.
        if constexpr (Tile::warpgroup) asm volatile("" : "+r"(all_low), "+r"(all_high), "+r"(any_low), "+r"(any_high));
        int position = (piece.first_page + piece.begin - piece.item) * page_tokens;

        for (int left = piece.end - piece.begin; left > 0; --left, position += page_tokens) {
            barrier_wait(full + 8 * slot, parity);
            state.add_page(args, piece, position, keys + slot * state.page_step, values + slot * state.page_step, all_low, all_high,
                           any_low, any_high);
            barrier_arrive(empty + 8 * slot);  // all threads: as cheap as one, and sanitizers follow it
            if (++slot == Tile::stages) slot = 0, parity ^= 1;
        }

        const bool complete = piece.end - piece.begin == piece.tiles;
        // A first piece that others follow is put aside; the warps' parts of a last one stay where they are.
        const auto aside = [&] {
            return Tile::first_in_shared ? my.first
                                         : args.first_pieces + static_cast<uint64_t>(blockIdx.x * Tile::workers + worker) *
                                                                   Tile::partial_floats;
        };
        if constexpr (Tile::warpgroup) {
            // A thread has all that there is of its numbers.
            if (complete)
                state.write(args, piece, value_scale);
            else
                state.store(last ? my.partial[0] : aside(), value_scale);
        } else {
            named_barrier_sync(1 + worker, 128);  // the partial results of the piece before are read
            state.store(my.partial[state.token_warp], value_scale);
            if (complete || !last) {
                named_barrier_sync(1 + worker, 128);
                const auto parts = [&](int i) { return my.partial[i]; };
                join<Tile, Tile::template fours<128>, false>(args, piece, parts, (1u << Tile::token_warps) - 1, Exchange{},
                                                            complete ? nullptr : aside(), thread, 128);
            }
        }
        if (!complete && thread < (last ? Tile::token_warps : 1)) {
            if (thread == 0) shared.block.piece[2 * worker + last] = piece;
            shared.block.partial[worker * Tile::slots + last + thread] = last ? my.partial[thread] : aside();
        }
        barrier_arrive(item_empty + 8 * item_slot);
        if (++item_slot == Tile::items_ahead) item_slot = 0, item_parity ^= 1;
    }
}

template <class Tile>
__device__ __forceinline__ void decode(const DecodeArgs& args) {
    extern __shared__ __align__(128) uint8_t memory[];
    typename Tile::Shared& shared = *reinterpret_cast<typename Tile::Shared*>(memory);
    // A worker's barriers by one thread, at addresses known here: an instruction each. Addresses that differ among threads
    // become a loop over them, of some 100 clocks each.
#pragma unroll
    for (int w = 0; w < Tile::workers; ++w)
        if (threadIdx.x == 128 * w) {
#pragma unroll
            for (int i = 0; i < Tile::stages; ++i) {
                barrier_init(&shared.full[w][i], 1);
                barrier_init(&shared.empty[w][i], 128);
            }
#pragma unroll
            for (int i = 0; i < Tile::items_ahead; ++i) {
                barrier_init(&shared.item_full[w][i], 1);
                barrier_init(&shared.item_empty[w][i], 128);
            }
            if (w == 0) barrier_init(&shared.block.done, Tile::workers * 128);
            barrier_init_fence();
        }
    if (threadIdx.x < 2 * Tile::workers) shared.block.piece[threadIdx.x].begin = shared.block.piece[threadIdx.x].end = 0;
    if (threadIdx.x < Tile::workers * Tile::slots) shared.block.partial[threadIdx.x] = nullptr;
    const bool loads = threadIdx.x >= Tile::workers * 128;
    const uint32_t worker = warp_uniform(loads ? (threadIdx.x - Tile::workers * 128) / 32 : threadIdx.x / 128);
    Share<Tile::columns> share;
    if (loads) {
        if (worker == 0) prefetch_first(args);
        if (!args.settled) grid_wait_predecessor();
        share = plan<Tile::columns, Tile::workers>(args, worker, 2 + Tile::workers, shared.block.warp_sum, shared.block.start);
    }
    __syncthreads();
    if (loads) {
        if constexpr (Tile::workers == 4) registers_shrink<64>();
        produce<Tile>(args, shared, worker, share);
    } else {
        if constexpr (Tile::workers == 4) registers_grow<104>();
        grid_wait_predecessor();
        grid_release_successor();
        consume<Tile>(args, shared, worker);
        finish<Tile>(args, shared.block);
    }
}

}  // namespace peregrine
