// Partial results (O, reference, sum) of the pieces of an item become its output, always in the same order, so that a launch repeats
// itself bit for bit.
//
// Blocks hand parts over by the words themselves: where `absent` stands no part has come, and whoever takes one puts it back. That
// is one way through the memory, in which kilobytes of pages are queued up, where a counter behind a fence is three.
#pragma once
#include <cstdint>

#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

#include "decode_output.cuh"
#include "decode_tile.cuh"

namespace peregrine {

// Stands in the workspace where no record has come. No result has these bits: the NaN of arithmetic is 0x7fffffff.
constexpr uint32_t absent = 0xffffffffu;

// What a block exchanges with others of an item that they share. Blocks of the item are counted from 0, in groups; the last of a
// group takes the parts of its group, the last of all takes those of the groups before and of its own:
//
//     0 --.   4 --.   8 --.       groups of 4 (or 16):  3 and 7 join and leave a part, 9 joins and writes the output
//     1 --|   5 --|       |
//     2 --|   6 --|       |       So a part goes two ways at the most, no block reads many, and everyone waits for earlier blocks
//     3 --'---7 --'-------9       only, which have started: somebody can always go on.
struct Exchange {
    float* parts = nullptr;                // of the item's block 0
    uint32_t own = 0, shift = 0;           // groups of 2^shift blocks
    int near = 0, count = 0;               // parts to take: of the own group, in all
    bool leaves = false;                   // a part, and no output

    __device__ __forceinline__ Exchange() {}
    __device__ __forceinline__ Exchange(float* parts, uint32_t own, uint32_t last) : parts(parts), own(own), leaves(own != last) {
        shift = last < 20 ? 2 : 4;
        const uint32_t place = own & ((1u << shift) - 1);
        near = leaves && place != (1u << shift) - 1 ? 0 : place;
        count = near + (leaves ? 0 : own >> shift);
    }
    // The block whose part is the i-th: those that come first come first.
    __device__ __forceinline__ uint32_t block(int i) const {
        return i < near ? (own >> shift << shift) + i : ((i - near + 1) << shift) - 1;
    }
};

// A weighted sum, under their common maximum, of partial results of `fours` times four dims of one column.
template <int fours>
struct Joined {
    float top = no_reference, sum = 0.0f;
    float4 o[fours];

    __device__ __forceinline__ Joined() {
#pragma unroll
        for (int k = 0; k < fours; ++k) o[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    template <int count>
    __device__ __forceinline__ void add(const float4 (&value)[fours][count], const float2 (&tail)[count]) {
        float next = top;
#pragma unroll
        for (int i = 0; i < count; ++i) next = fmaxf(next, tail[i].x);
        const float decay = exp2_approx(top - next);
        top = next;
        sum *= decay;
#pragma unroll
        for (int k = 0; k < fours; ++k) o[k].x *= decay, o[k].y *= decay, o[k].z *= decay, o[k].w *= decay;
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const float weight = exp2_approx(tail[i].x - next);
            sum += weight * tail[i].y;
#pragma unroll
            for (int k = 0; k < fours; ++k) {
                o[k].x += weight * value[k][i].x, o[k].y += weight * value[k][i].y;
                o[k].z += weight * value[k][i].z, o[k].w += weight * value[k][i].w;
            }
        }
    }
};

// A part in the workspace: for each four dims of a column 16 bytes of O, and behind all those 8 bytes each of top and sum. Both are
// written and read as one word, so that its first float tells for all, and nobody but one thread takes it.
struct alignas(16) Values {
    float x, y, z, w;
};
struct alignas(8) Tail {
    float top, sum;
};
__device__ __forceinline__ bool has_come(float first) { return __float_as_uint(first) != absent; }
__device__ __forceinline__ void leave(float* to, const Values& value) {
    asm volatile(
        "{\n .reg .b64 a, b;\n .reg .b128 v;\n mov.b64 a, {%1,%2};\n mov.b64 b, {%3,%4};\n mov.b128 v, {a,b};\n"
        " st.relaxed.gpu.global.b128 [%0], v;\n}" ::"l"(to),
        "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
        : "memory");
}
__device__ __forceinline__ void leave(float* to, const Tail& tail) {
    asm volatile("{\n .reg .b64 a;\n mov.b64 a, {%1,%2};\n st.relaxed.gpu.global.b64 [%0], a;\n}" ::"l"(to), "f"(tail.top), "f"(tail.sum)
                 : "memory");
}
// Where `wanted`, without a branch: loads of several parts go out together.
__device__ __forceinline__ void look(Values& value, const float* from, bool wanted) {
    asm volatile(
        "{\n .reg .pred p;\n .reg .b64 a, b;\n .reg .b128 v;\n setp.ne.u32 p, %5, 0;\n mov.b64 a, {%0,%1};\n mov.b64 b, {%2,%3};\n"
        " mov.b128 v, {a,b};\n @p ld.relaxed.gpu.global.b128 v, [%4];\n mov.b128 {a,b}, v;\n mov.b64 {%0,%1}, a;\n"
        " mov.b64 {%2,%3}, b;\n}"
        : "+f"(value.x), "+f"(value.y), "+f"(value.z), "+f"(value.w)
        : "l"(from), "r"(static_cast<uint32_t>(wanted))
        : "memory");
}
__device__ __forceinline__ void look(Tail& tail, const float* from, bool wanted) {
    asm volatile(
        "{\n .reg .pred p;\n .reg .b64 a;\n setp.ne.u32 p, %3, 0;\n mov.b64 a, {%0,%1};\n @p ld.relaxed.gpu.global.b64 a, [%2];\n"
        " mov.b64 {%0,%1}, a;\n}"
        : "+f"(tail.top), "+f"(tail.sum)
        : "l"(from), "r"(static_cast<uint32_t>(wanted))
        : "memory");
}

// Joins partial results of a piece's item and the parts of other blocks: into `partial`, or this block's part, or, where neither is
// wanted, into the output. rows(i) is where partial result i lies, for each bit of `there`. A thread takes `fours` times four
// dims of a column at a time.
template <class Tile, int fours, bool exchange, class Rows>
__device__ __forceinline__ void join(const DecodeArgs& args, const typename Tile::Piece& piece, const Rows& rows, uint32_t there,
                                     const Exchange& others, float* partial, int thread, int threads) {
    constexpr int quads = Tile::head_dim / 4, each = quads / fours;  // fours of dims of a column, and from one of a thread's to the next
    constexpr int batch = fours == 4 ? 2 : fours == 1 && Tile::token_warps == 4 ? 6 : 4;  // partial results at a time
    constexpr int part_batch = fours == 4 ? 1 : fours == 2 ? 2 : 4;                       // parts of others at a time
    const int columns = columns_of<Tile>(args, piece);
#pragma unroll 1
    for (int base = thread; base < columns * each; base += threads) {
        const int n = base / each, quad = base % each;
        const int own_values = (n * quads + quad) * 4, own_tail = Tile::columns * Tile::head_dim + own_values / 2;
        Joined<fours> joined;
        const float* row = nullptr;
#pragma unroll 1
        for (uint32_t left = there; left;) {
            // No branches, so that the reads go out together: what is too much is read again, and weighs nothing.
            float4 value[fours][batch];
            float2 tail[batch];
#pragma unroll
            for (int i = 0; i < batch; ++i) {
                const bool some = left != 0;
                row = some ? rows(__ffs(left) - 1) + n * Tile::row : row;
                left &= left - 1;
#pragma unroll
                for (int k = 0; k < fours; ++k) value[k][i] = *reinterpret_cast<const float4*>(row + 4 * (quad + k * each));
                tail[i] = *reinterpret_cast<const float2*>(row + Tile::head_dim);
                if (!some) tail[i].x = minus_infinity;
            }
            joined.add(value, tail);
        }
        if constexpr (exchange) {
            float* const record = others.parts + own_values;
            float* const tail_record = others.parts + own_tail;
#pragma unroll 1
            for (int first = 0; first < others.count; first += part_batch) {
                Values o[fours][part_batch];
                Tail rest[fours][part_batch];
                uint32_t of[part_batch], missing = 0;  // offset of a part; a bit for each part and k
#pragma unroll
                for (int part = 0; part < part_batch; ++part) {
                    of[part] = others.block(first + part) * Tile::part_floats;
#pragma unroll
                    for (int k = 0; k < fours; ++k) {
                        if (first + part < others.count) missing |= 1u << (part * fours + k);
                        o[k][part] = {}, rest[k][part] = {minus_infinity};
                    }
                }
                const uint32_t taken = missing;
                // All that have not come are looked at together.
                do {
#pragma unroll
                    for (int part = 0; part < part_batch; ++part)
#pragma unroll
                        for (int k = 0; k < fours; ++k) {
                            const bool wanted = missing >> (part * fours + k) & 1;
                            look(o[k][part], record + of[part] + k * each * 4, wanted);
                            look(rest[k][part], tail_record + of[part] + k * each * 2, wanted);
                        }
#pragma unroll
                    for (int part = 0; part < part_batch; ++part)
#pragma unroll
                        for (int k = 0; k < fours; ++k)
                            if (has_come(o[k][part].x) && has_come(rest[k][part].top)) missing &= ~(1u << (part * fours + k));
                } while (missing);
                float4 value[fours][part_batch];
                float2 tail[part_batch];
#pragma unroll
                for (int part = 0; part < part_batch; ++part) {
                    tail[part] = make_float2(rest[0][part].top, rest[0][part].sum);
#pragma unroll
                    for (int k = 0; k < fours; ++k) {
                        const Values& v = o[k][part];
                        value[k][part] = make_float4(v.x, v.y, v.z, v.w);
                        if (taken >> (part * fours + k) & 1) {
                            *reinterpret_cast<uint4*>(record + of[part] + k * each * 4) = make_uint4(absent, absent, absent, absent);
                            *reinterpret_cast<uint2*>(tail_record + of[part] + k * each * 2) = make_uint2(absent, absent);
                        }
                    }
                }
                joined.add(value, tail);
            }
        }
        const float top = joined.top, sum = joined.sum;
        if (partial) {
            float* const to = partial + n * Tile::row;
#pragma unroll
            for (int k = 0; k < fours; ++k) *reinterpret_cast<float4*>(to + 4 * (quad + k * each)) = joined.o[k];
            if (quad == 0) *reinterpret_cast<float2*>(to + Tile::head_dim) = make_float2(top, sum);
        } else if (exchange && others.leaves) {
            float* const to = others.parts + static_cast<uint64_t>(others.own) * Tile::part_floats;
#pragma unroll
            for (int k = 0; k < fours; ++k) {
                const float4 o = joined.o[k];
                leave(to + own_values + k * each * 4, Values{o.x, o.y, o.z, o.w});
                leave(to + own_tail + k * each * 2, Tail{top, sum});
            }
        } else {
            const OutputRow out(args, piece, Tile::columns, n);
            const float norm = norm_of(sum);
            uint16_t* const to = args.output + out.row * Tile::head_dim + 4 * quad;
#pragma unroll
            for (int k = 0; k < fours; ++k) {
                const float4 o = joined.o[k];
                *reinterpret_cast<uint2*>(to + 4 * k * each) =
                    make_uint2(bf16x2_from_f32(o.x * norm, o.y * norm), bf16x2_from_f32(o.z * norm, o.w * norm));
            }
            if (args.lse && quad == 0) out.write_log_sum_exp(args, top, sum, Tile::shift);
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
    static_assert(Tile::workers * Tile::slots < 32);
    const uint32_t rows_there = __ballot_sync(~0u, lane < Tile::workers * Tile::slots && block.partial[lane] != nullptr);
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
        const uint32_t wanted = rows_there & ((1u << to) - (1u << from));
        const auto rows = [&](int part) { return block.partial[part]; };
        if (alone)
            join<Tile, Tile::template fours<threads>, true>(args, piece, rows, wanted, others, nullptr, threadIdx.x, threads);
        else
            join<Tile, Tile::template fours<128>, true>(args, piece, rows, wanted, others, nullptr, threadIdx.x % 128, 128);
    }
}

}  // namespace peregrine
