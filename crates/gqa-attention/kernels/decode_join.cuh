// Partial results (O, reference, sum) of the pieces of an item become its output, always in the same order, so that a launch repeats
// itself bit for bit.
//
// Blocks hand parts over by the words themselves: where `absent` stands no part has come, and whoever takes one puts it back. That
// is one way through the memory, in which kilobytes of pages are queued up, where a counter behind a fence is three.
#pragma once
#include <cstdint>

#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

#include "decode_tile.cuh"

namespace peregrine {

// Stands in the workspace where no record has come. No result has these bits: the NaN of arithmetic is 0x7fffffff.
constexpr uint32_t absent = 0xffffffffu;

// What a block exchanges with others of an item that they share. Blocks of the item are counted from 0, in groups; the last of a
// group takes the parts of its group, the last of all takes those of the groups before and of its own:
//
//     0 --.   4 --.   8 --.       groups of 4 (or 12):  3 and 7 join and leave a part, 9 joins and writes the output
//     1 --|   5 --|       |
//     2 --|   6 --|       |       So a part goes two ways at the most, no block reads many, and everyone waits for earlier blocks
//     3 --'---7 --'-------9       only, which have started: somebody can always go on.
struct Exchange {
    float* parts = nullptr;                // of the item's block 0
    uint32_t own = 0, group = 1;
    int groups = 0, count = 0;             // parts to take: of groups, in all
    bool leaves = false;                   // a part, and no output

    __device__ __forceinline__ Exchange() {}
    __device__ __forceinline__ Exchange(float* parts, uint32_t own, uint32_t last) : parts(parts), own(own), leaves(own != last) {
        group = last < 20 ? 4 : 12;
        groups = leaves ? 0 : own / group;
        count = groups + (leaves && own % group != group - 1 ? 0 : own % group);
    }
    // The block whose part is the i-th.
    __device__ __forceinline__ uint32_t block(int i) const { return i < groups ? i * group + group - 1 : own / group * group + i - groups; }
};

// A weighted sum, under their common maximum, of partial results of four dims of one column.
struct Joined {
    float top = no_reference, sum = 0.0f;
    float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

    template <int count>
    __device__ __forceinline__ void add(const float4 (&value)[count], const float2 (&tail)[count]) {
        float next = top;
#pragma unroll
        for (int i = 0; i < count; ++i) next = fmaxf(next, tail[i].x);
        const float decay = exp2_approx(top - next);
        top = next;
        sum *= decay, o.x *= decay, o.y *= decay, o.z *= decay, o.w *= decay;
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const float weight = exp2_approx(tail[i].x - next);
            sum += weight * tail[i].y;
            o.x += weight * value[i].x, o.y += weight * value[i].y;
            o.z += weight * value[i].z, o.w += weight * value[i].w;
        }
    }
};

// A record of a part in the workspace: two times 16 bytes, o, then top and sum. The 128 bits of each are written and read as one
// word, so that its first float tells for all.
struct alignas(16) Half {
    float x, y, z, w;
    __device__ __forceinline__ bool has_come() const { return __float_as_uint(x) != absent; }
};
__device__ __forceinline__ void store_half(float* to, const Half& half) {
    asm volatile(
        "{\n .reg .b64 a, b;\n .reg .b128 v;\n mov.b64 a, {%1,%2};\n mov.b64 b, {%3,%4};\n mov.b128 v, {a,b};\n"
        " st.relaxed.gpu.global.b128 [%0], v;\n}" ::"l"(to),
        "f"(half.x), "f"(half.y), "f"(half.z), "f"(half.w)
        : "memory");
}
__device__ __forceinline__ Half load_half(const float* from) {
    Half half;
    asm volatile(
        "{\n .reg .b64 a, b;\n .reg .b128 v;\n ld.relaxed.gpu.global.b128 v, [%4];\n mov.b128 {a,b}, v;\n"
        " mov.b64 {%0,%1}, a;\n mov.b64 {%2,%3}, b;\n}"
        : "=f"(half.x), "=f"(half.y), "=f"(half.z), "=f"(half.w)
        : "l"(from)
        : "memory");
    return half;
}

// Joins `count` partial results of a piece's item, four dims of a column at a time, and the parts of other blocks: into `partial`, or
// this block's part, or, where neither is wanted, into the output. rows(i) is where partial result i lies, or null; the first is there.
// turn: quads of four dims that a thread takes at a time.
template <class Tile, int turn, bool exchange, class Rows>
__device__ __forceinline__ void join(const DecodeArgs& args, const typename Tile::Piece& piece, const Rows& rows, int count,
                                     const Exchange& others, float* partial, int thread, int threads) {
    constexpr int row_quads = Tile::head_dim / 4, batch = 8 / turn;  // results of a quad at a time
    const int columns =
        min(piece.query_len * static_cast<int>(args.group_size) - static_cast<int>(piece.column_tile) * Tile::columns, Tile::columns);
    const int quads = columns * row_quads;
    const float* const some = rows(0);
#pragma unroll 1
    for (int base = thread; base < quads; base += turn * threads) {
        Joined joined[turn];
        int offset[turn], tail_offset[turn];
#pragma unroll
        for (int k = 0; k < turn; ++k) {
            const int i = min(base + k * threads, quads - 1), n = i / row_quads, d = i % row_quads * 4;
            offset[k] = n * Tile::row + d, tail_offset[k] = n * Tile::row + Tile::head_dim;
        }
#pragma unroll 1
        for (int first = 0; first < count; first += batch) {
            // No branches, so that the reads go out together: absent ones are read where the first lies, and weigh nothing.
            float4 value[turn][batch];
            float2 tail[turn][batch];
#pragma unroll
            for (int part = 0; part < batch; ++part) {
                const float* row = rows(min(first + part, count - 1));
                const bool there = first + part < count && row != nullptr;
                row = there ? row : some;
#pragma unroll
                for (int k = 0; k < turn; ++k) {
                    value[k][part] = *reinterpret_cast<const float4*>(row + offset[k]);
                    tail[k][part] = *reinterpret_cast<const float2*>(row + tail_offset[k]);
                    if (!there) tail[k][part].x = minus_infinity;
                }
            }
#pragma unroll
            for (int k = 0; k < turn; ++k) joined[k].add(value[k], tail[k]);
        }
        if constexpr (exchange) {
#pragma unroll 1
            for (int first = 0; first < others.count; first += batch) {
                Half o[turn][batch], rest[turn][batch];
                const auto record = [&](int k, int part) {
                    return others.parts + static_cast<uint64_t>(others.block(first + part)) * Tile::part_floats + (base + k * threads) * 8;
                };
                const auto wanted = [&](int k, int part) { return base + k * threads < quads && first + part < others.count; };
#pragma unroll
                for (int k = 0; k < turn; ++k)
#pragma unroll
                    for (int part = 0; part < batch; ++part) {
                        const float unknown = __uint_as_float(wanted(k, part) ? absent : 0u);
                        o[k][part] = {unknown}, rest[k][part] = {wanted(k, part) ? unknown : minus_infinity};
                    }
                // All that have not come are looked at together.
                for (bool waits = true; waits;) {
                    waits = false;
#pragma unroll
                    for (int k = 0; k < turn; ++k)
#pragma unroll
                        for (int part = 0; part < batch; ++part)
                            if (!o[k][part].has_come() || !rest[k][part].has_come())
                                o[k][part] = load_half(record(k, part)), rest[k][part] = load_half(record(k, part) + 4);
#pragma unroll
                    for (int k = 0; k < turn; ++k)
#pragma unroll
                        for (int part = 0; part < batch; ++part) waits |= !o[k][part].has_come() || !rest[k][part].has_come();
                }
#pragma unroll
                for (int k = 0; k < turn; ++k) {
                    float4 value[batch];
                    float2 tail[batch];
#pragma unroll
                    for (int part = 0; part < batch; ++part) {
                        value[part] = make_float4(o[k][part].x, o[k][part].y, o[k][part].z, o[k][part].w);
                        tail[part] = make_float2(rest[k][part].x, rest[k][part].y);
                        if (!wanted(k, part)) continue;
                        const uint4 nothing = make_uint4(absent, absent, absent, absent);
                        uint4* taken = reinterpret_cast<uint4*>(record(k, part));
                        taken[0] = nothing, taken[1] = nothing;
                    }
                    joined[k].add(value, tail);
                }
            }
        }
#pragma unroll
        for (int k = 0; k < turn; ++k) {
            const int i = base + k * threads, n = i / row_quads, d = i % row_quads * 4;
            if (i >= quads) break;
            const float4 o = joined[k].o;
            const float top = joined[k].top, sum = joined[k].sum;
            if (partial) {
                *reinterpret_cast<float4*>(partial + n * Tile::row + d) = o;
                if (d == 0) *reinterpret_cast<float2*>(partial + n * Tile::row + Tile::head_dim) = make_float2(top, sum);
                continue;
            }
            if (exchange && others.leaves) {
                float* const record = others.parts + static_cast<uint64_t>(others.own) * Tile::part_floats + i * 8;
                store_half(record, {o.x, o.y, o.z, o.w});
                store_half(record + 4, {top, sum, 0.0f, 0.0f});
                continue;
            }
            const int column = piece.column_tile * Tile::columns + n, token = token_of(args, piece.query_len, column);
            const int head = (piece.head - token) * args.group_size + column;
            const uint64_t row = static_cast<uint64_t>(piece.query_start + token) * (args.kv_heads * args.group_size) + head;
            const float norm = sum > 0.0f ? __fdividef(1.0f, sum) : 0.0f;
            *reinterpret_cast<uint2*>(args.output + row * Tile::head_dim + d) =
                make_uint2(bf16x2_from_f32(o.x * norm, o.y * norm), bf16x2_from_f32(o.z * norm, o.w * norm));
            if (args.lse && d == 0) {
                // Biases were counted from the query's own; the definition counts from nothing.
                const int position = piece.context_len - piece.query_len + token;
                const float shift = args.alibi_slopes ? args.softmax_scale * alibi_bias(args.alibi_slopes[head], position) : 0.0f;
                args.lse[row] = sum > 0.0f ? (top + log2f(sum) - Tile::shift) * ln_2 + shift : minus_infinity;
            }
        }
    }
}

// Joins the pieces that the block's workers left, item by item, and exchanges parts of items that other blocks share.
template <class Tile>
__device__ __forceinline__ void finish(const DecodeArgs& args, typename Tile::Block& block) {
    constexpr int threads = Tile::workers * 128, pieces = 2 * Tile::workers;
    const int lane = threadIdx.x % 32;
    // An mbarrier, since the loading warps have ended; and sanitizers follow it.
    barrier_arrive(&block.done);
    barrier_wait(&block.done, 0);
    // Pieces in order: a bit for each that is there, and for each that starts another item than the piece before it.
    const bool there = lane < pieces && block.piece[lane].begin != block.piece[lane].end;
    const uint32_t present = __ballot_sync(~0u, there), earlier = present & ((1u << lane) - 1);
    const uint32_t starts =
        __ballot_sync(~0u, there && (!earlier || block.piece[31 - __clz(earlier)].item != block.piece[lane].item));
    const bool alone = __popc(starts) == 1;
    uint32_t here = present;
    // The last first: what others wait for is never behind a wait.
#pragma unroll 1
    for (uint32_t left = starts; left;) {
        const int first = 31 - __clz(left), final = 31 - __clz(here);
        left ^= 1u << first, here &= (1u << first) - 1;
        if (!alone && threadIdx.x / 128 != first / 2) continue;  // several items: a worker's warps each
        const typename Tile::Piece& piece = block.piece[first];
        Exchange others;
        if (piece.begin != piece.item || block.piece[final].end != piece.item + piece.tiles)
            others = Exchange(args.parts + static_cast<uint64_t>(piece.first_block) * Tile::part_floats, blockIdx.x - piece.first_block,
                              piece.last_block - piece.first_block);
        const int from = first / 2 * Tile::slots + first % 2, to = final / 2 * Tile::slots + (final % 2 ? Tile::slots : 1);
        const float* const* list = block.partial + from;
        const auto rows = [&](int part) { return list[part]; };
        if (alone)
            join<Tile, Tile::template turn<threads>, true>(args, piece, rows, to - from, others, nullptr, threadIdx.x, threads);
        else
            join<Tile, Tile::template turn<128>, true>(args, piece, rows, to - from, others, nullptr, threadIdx.x % 128, 128);
    }
}

}  // namespace peregrine
