// Partial results (O, maximum, sum) of the pieces of an item become its output, always in the order of the line, so that a
// launch repeats itself bit for bit.
#pragma once
#include <cstdint>

#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

#include "decode_tile.cuh"

namespace peregrine {

// Several partial results of four dims of one column, as a weighted sum under their common maximum.
struct Joined {
    float top = no_reference, sum = 0.0f;
    float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

    // Partial results first, first + stride, ... below count, `batch` of them read at a time. rows(i) is where result i lies, or
    // null; the first is there. No branches: absent ones are read where the first lies and weigh nothing.
    template <class Tile, int batch, class Rows>
    __device__ __forceinline__ void add(const Rows& rows, int offset, int tail_offset, int first, int stride, int count) {
        const float* const some = rows(0);
#pragma unroll 1
        for (int base = first; base < count; base += batch * stride) {
            float4 value[batch];
            float2 tail[batch];
            float next = top;
#pragma unroll
            for (int part = 0; part < batch; ++part) {
                const int index = base + part * stride;
                const float* row = rows(min(index, count - 1));
                const bool there = index < count && row != nullptr;
                row = there ? row : some;
                value[part] = *reinterpret_cast<const float4*>(row + offset);
                tail[part] = *reinterpret_cast<const float2*>(row + tail_offset);
                if (!there) tail[part].x = minus_infinity;
            }
#pragma unroll
            for (int part = 0; part < batch; ++part) next = fmaxf(next, tail[part].x);
            const float decay = exp2_approx(top - next);
            top = next;
            sum *= decay, o.x *= decay, o.y *= decay, o.z *= decay, o.w *= decay;
#pragma unroll
            for (int part = 0; part < batch; ++part) {
                const float weight = exp2_approx(tail[part].x - next);
                sum += weight * tail[part].y;
                o.x += weight * value[part].x, o.y += weight * value[part].y;
                o.z += weight * value[part].z, o.w += weight * value[part].w;
            }
        }
    }

    // With what the lane at distance `lane` has.
    __device__ __forceinline__ void add_lane(int lane) {
        const float other = __shfl_xor_sync(~0u, top, lane), next = fmaxf(top, other);
        const float mine = exp2_approx(top - next), theirs = exp2_approx(other - next);
        const auto both = [&](float x) { return x * mine + __shfl_xor_sync(~0u, x, lane) * theirs; };
        top = next, sum = both(sum), o.x = both(o.x), o.y = both(o.y), o.z = both(o.z), o.w = both(o.w);
    }
};

// Joins `count` partial results of a piece's item, four dims of a column to a thread, into `partial` or, where that is null,
// into the output. rows(i) is where partial result i lies. All threads of the warps that take part call it.
template <class Tile, int batch, class Rows>
__device__ __forceinline__ void join(const DecodeArgs& args, const typename Tile::Piece& piece, const Rows& rows, int count,
                                     float* partial, int thread, int threads) {
    constexpr int row_quads = Tile::head_dim / 4;
    const int columns =
        min(piece.query_len * static_cast<int>(args.group_size) - static_cast<int>(piece.column_tile) * Tile::columns, Tile::columns);
    // Threads to spare take turns at the partial results: `ways` neighbouring lanes share four dims.
    const int quads = columns * row_quads, ways = count == 1 || 2 * quads > threads ? 1 : 4 * quads > threads ? 2 : 4;
#pragma unroll 1
    for (int base = 0; base < quads; base += threads / ways) {
        const int i = base + thread / ways, n = i / row_quads, d = i % row_quads * 4;
        Joined joined;
        if (i < quads) joined.add<Tile, batch>(rows, n * Tile::row + d, n * Tile::row + Tile::head_dim, thread % ways, ways, count);
        for (int lane = 1; lane < ways; lane *= 2) joined.add_lane(lane);
        if (i >= quads || thread % ways) continue;
        const float4 o = joined.o;
        if (partial) {
            *reinterpret_cast<float4*>(partial + n * Tile::row + d) = o;
            if (d == 0) *reinterpret_cast<float2*>(partial + n * Tile::row + Tile::head_dim) = make_float2(joined.top, joined.sum);
            continue;
        }
        const int column = piece.column_tile * Tile::columns + n, token = token_of(args, piece.query_len, column);
        const int head = (piece.head - token) * args.group_size + column;
        const uint64_t row = static_cast<uint64_t>(piece.query_start + token) * (args.kv_heads * args.group_size) + head;
        const float norm = joined.sum > 0.0f ? __fdividef(1.0f, joined.sum) : 0.0f;
        *reinterpret_cast<uint2*>(args.output + row * Tile::head_dim + d) =
            make_uint2(bf16x2_from_f32(o.x * norm, o.y * norm), bf16x2_from_f32(o.z * norm, o.w * norm));
        if (args.lse && d == 0) {
            // Biases were counted from the query's own; the definition counts from nothing.
            const int position = piece.context_len - piece.query_len + token;
            const float shift = args.alibi_slopes ? args.softmax_scale * alibi_bias(args.alibi_slopes[head], position) : 0.0f;
            args.lse[row] =
                joined.sum > 0.0f ? (joined.top + log2f(joined.sum) - Tile::Element::shift) * ln_2 + shift : minus_infinity;
        }
    }
}

// Joins the pieces that the block's workers left, item by item. An item that other blocks hold parts of (at most two: the
// block's first and its last) goes to the workspace, and the block that finishes it last joins the blocks' parts.
template <class Tile>
__device__ __forceinline__ void finish(const DecodeArgs& args, typename Tile::Block& block) {
    constexpr int threads = Tile::workers * 128, barrier = 1 + Tile::workers, pieces = 2 * Tile::workers;
    const int lane = threadIdx.x % 32;
    named_barrier_sync(barrier, threads);
    // Pieces in order: a bit for each that is there, and for each that starts another item than the piece before it.
    const bool there = lane < pieces && block.piece[lane].begin != block.piece[lane].end;
    const uint32_t present = __ballot_sync(~0u, there), earlier = present & ((1u << lane) - 1);
    const uint32_t starts =
        __ballot_sync(~0u, there && (!earlier || block.piece[31 - __clz(earlier)].item != block.piece[lane].item));
    // First piece of the item that began in an earlier block, and of the one that a later block ends.
    int open_before = -1, open_after = -1;
    const bool alone = __popc(starts) == 1;
#pragma unroll 1
    for (uint32_t left = starts; left; left &= left - 1) {
        const int first = __ffs(left) - 1;
        const uint32_t later = left & (left - 1), here = present & (later ? (later & -later) - 1 : ~0u);
        const int final = 31 - __clz(here);
        const typename Tile::Piece& piece = block.piece[first];
        const bool begins = piece.begin == piece.item;
        const bool whole = begins && block.piece[final].end == piece.item + piece.tiles;
        if (!whole) (begins ? open_after : open_before) = first;
        if (!alone && threadIdx.x / 128 != first / 2) continue;  // several items: a worker's warps each
        float* partial = whole ? nullptr : args.partials + static_cast<uint64_t>(2 * blockIdx.x + begins) * Tile::partial_floats;
        const int from = first / 2 * Tile::slots + first % 2, to = final / 2 * Tile::slots + (final % 2 ? Tile::slots : 1);
        const float* const* list = block.partial + from;
        join<Tile, 8>(args, piece, [&](int part) { return list[part]; }, to - from, partial,
                      alone ? threadIdx.x : threadIdx.x % 128, alone ? threads : 128);
    }
    if (open_before < 0 && open_after < 0) return;
    named_barrier_sync(barrier, threads);
    if (threadIdx.x == 0 || threadIdx.x == 32) {
        const int begins = threadIdx.x / 32, first = begins ? open_after : open_before;
        uint32_t parts = 0;
        if (first >= 0) {
            const uint32_t first_block = block.piece[first].first_block, others = block.piece[first].last_block - first_block;
            // After the barrier: the whole block's stores come before the count.
            if (flag_add_acq_rel(&args.finished[first_block], 1) == others) {
                args.finished[first_block] = 0;
                parts = others + 1;
            }
        }
        block.parts[begins] = parts;
    }
    named_barrier_sync(barrier, threads);
#pragma unroll 1
    for (int begins = 0; begins < 2; ++begins) {
        if (block.parts[begins] == 0) continue;
        const typename Tile::Piece& piece = block.piece[begins ? open_after : open_before];
        const float* parts = args.partials + static_cast<uint64_t>(2 * piece.first_block) * Tile::partial_floats;
        // A block's part of the item that began before it is its first; the block where it began left it as its second.
        const auto rows = [&](int part) { return parts + static_cast<uint64_t>(2 * part + (part == 0)) * Tile::partial_floats; };
        join<Tile, 10>(args, piece, rows, block.parts[begins], nullptr, threadIdx.x, threads);
    }
}

}  // namespace peregrine
