// Wide groups over FP8 pages: products of the whole warpgroup, with the columns of Q and P in two e4m3 terms.
//
//   wgmma     S[64, 64 tokens] = Q . K^T,   O[64, head_dim] += P . V. Rows g and g + 8 of a warp's 16 are the two terms of one
//             column, so a product's 64 rows are 32 columns, both terms of a score come to one thread, and so do those of O.
//             K and V are operands as they lie in the page, and no thread widens them:
//
//                 warp w, lane 4g + q      columns    8w + g
//                                          tokens     16b + 4q .. 4q + 3, b = 0 .. 3   (KvLayout's order of K's rows)
//                                          dims       8d + 2q, 8d + 2q + 1
//
//             Those are the tokens that a thread holds of operand A, so P goes on as it comes.
//
//   numbers   A query under a power of two, its largest just below 2^8, is two terms: bf16's 8 bits exactly, but for what is
//             below 2^-17 of the largest. P, up to 2^8.5, is p = first + second / 16: within 2^-9, and what is below 2^-20 of a
//             row's largest is lost. Sums of P are f32. Products leave the tensor core's short accumulators after each page.
#pragma once
#include <cstdint>

#include <peregrine/core_matrix.cuh>
#include <peregrine/sync.cuh>

#include "decode_output.cuh"
#include "decode_warp.cuh"

namespace peregrine {

template <class Tile>
struct GroupState : WarpState<Tile> {
    using Warp = WarpState<Tile>;
    using Warp::first_column, Warp::lane, Warp::scale;
    static constexpr int terms = Tile::head_dim / 32;  // products along a query
    static constexpr int dims = Tile::head_dim / 8;    // blocks of 8 dims

    static_assert(!Tile::warpgroup || (Tile::fp8 && Tile::column_warps == 4 && Tile::column_blocks == 1 && Tile::head_dim == 64));

    uint32_t terms_of[terms][4];
    float o[dims][2], sum, top;  // of the column; top: its reference
    int thread;

    __device__ __forceinline__ explicit GroupState(int thread_) : Warp(thread_), thread(thread_) {}

    static constexpr int page_step = Tile::page_bytes / 16;  // descriptors count 16 bytes
    __device__ __forceinline__ uint32_t keys_of(uint32_t ring) const { return warp_uniform(core_matrix_tile(ring, page_tokens)); }

    __device__ __forceinline__ uint32_t values_of(uint32_t tile) const { return warp_uniform(core_matrix_tile(tile, Tile::head_dim)); }

    __device__ __forceinline__ void clear() {
        sum = 0.0f, top = no_reference;
#pragma unroll
        for (int d = 0; d < dims; ++d) o[d][0] = o[d][1] = 0.0f;
    }

    __device__ __forceinline__ float load_queries(const DecodeArgs& args, const typename Tile::Piece& piece, const uint16_t* ahead) {
        const int columns = piece.query_len * args.group_size;
        const int own = first_column + lane / 4, column = piece.column_tile * Tile::columns + own;
        const bool there = column < columns;
        const uint16_t* source = query_row<Tile>(args, piece, ahead, own, column, there) + lane % 4 * 4;
        uint2 raw[2 * terms];
        uint32_t largest = 0;  // magnitudes of bf16 compare as integers
#pragma unroll
        for (int k = 0; k < 2 * terms; ++k) raw[k] = there ? *reinterpret_cast<const uint2*>(source + 16 * k) : make_uint2(0, 0);
#pragma unroll
        for (int k = 0; k < 2 * terms; ++k)
            largest = __vmaxu2(largest, __vmaxu2(raw[k].x & 0x7fff7fffu, raw[k].y & 0x7fff7fffu));
        largest = max(largest >> 16, largest & 0xffffu);
        largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = max(largest, __shfl_xor_sync(~0u, largest, 2));
        const uint32_t exponent = max(largest >> 7, 15u);
        const float factor = __uint_as_float((127 + 127 + 7 - exponent) << 23);
#pragma unroll
        for (int k = 0; k < 2 * terms; ++k) {
            const float2 low = f32x2_from_bf16x2(raw[k].x), high = f32x2_from_bf16x2(raw[k].y);
            const float x[4] = {low.x * factor, low.y * factor, high.x * factor, high.y * factor};
            const uint32_t first = e4m3x4_from_f32(x[0], x[1], x[2], x[3]);
            const float2 a = f32x2_from_e4m3x2(static_cast<uint16_t>(first)), b = f32x2_from_e4m3x2(static_cast<uint16_t>(first >> 16));
            terms_of[k / 2][k % 2 * 2] = first;
            terms_of[k / 2][k % 2 * 2 + 1] = e4m3x4_from_f32(x[0] - a.x, x[1] - a.y, x[2] - b.x, x[3] - b.y);
        }
        return __uint_as_float((exponent - 7) << 23);
    }

    // Scores of the column: [b][j] is that of token 16b + 4q + j.
    __device__ __forceinline__ void scores(uint32_t keys, float (&s)[4][4]) {
        float both[32];
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < terms; ++k)
            Wgmma<page_tokens>::e4m3(both, terms_of[k], core_matrix_descriptor(keys + k * (2 * page_tokens)), k != 0);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_pin(both);
#pragma unroll
        for (int b = 0; b < 4; ++b)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int at = 4 * (2 * b + j % 2) + j / 2;
                s[b][j] = both[at] + both[at + 2];
            }
    }

    __device__ __forceinline__ int own_column() const { return first_column + lane / 4; }
    __device__ __forceinline__ int token(int b, int j) const { return 16 * b + 4 * (lane % 4) + j; }

    __device__ __forceinline__ void mask(const DecodeArgs& args, const typename Tile::Piece& piece, int position, float (&s)[4][4]) const {
        const int high = piece.context_len - piece.query_len + Warp::query_token(args, piece, own_column()) + 1;
        const int low = args.window ? high - static_cast<int>(args.window) : 0;
#pragma unroll
        for (int b = 0; b < 4; ++b)
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (position + token(b, j) < low || position + token(b, j) >= high) s[b][j] = minus_infinity;
    }

    __device__ __forceinline__ void add_alibi(const DecodeArgs& args, const typename Tile::Piece& piece, int position,
                                              float (&s)[4][4]) const {
        const float slope_unit = __fdividef(args.softmax_scale * log2_e, scale);
        const int own = Warp::query_token(args, piece, own_column());
        const float slope = args.alibi_slopes[(piece.head - own) * args.group_size + Warp::query_column(args, piece, own_column())];
        const float own_bias = alibi_bias(slope, piece.context_len - piece.query_len + own);
#pragma unroll
        for (int b = 0; b < 4; ++b)
#pragma unroll
            for (int j = 0; j < 4; ++j) s[b][j] += (alibi_bias(slope, position + token(b, j)) - own_bias) * slope_unit;
    }

    __device__ __forceinline__ void follow(const float (&s)[4][4]) {
        float most[4];
#pragma unroll
        for (int b = 0; b < 4; ++b) most[b] = fmaxf(fmaxf(s[b][0], s[b][1]), fmaxf(s[b][2], s[b][3]));
        float largest = fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]));
        if (!__any_sync(~0u, fmaf(largest, scale, -top) > Tile::slack)) return;
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        const float next = fmaxf(top, largest * scale);
        const float decay = exp2_approx(top - next);
        top = next;
        sum *= decay;
#pragma unroll
        for (int d = 0; d < dims; ++d) o[d][0] *= decay, o[d][1] *= decay;
    }

    // Slots of a page that hold no token may hold anything, NaN included, and 0 x NaN would reach every dim: they become 0.
    __device__ __forceinline__ void clear_values(uint32_t values, int low, int high) const {
#pragma unroll
        for (int i = thread; i < page_tokens * Tile::head_dim / 16; i += 128) {
            const int first = i / Tile::head_dim * 16;  // 16 tokens of a dim
            uint32_t mask[4] = {};
#pragma unroll
            for (int t = 0; t < 16; ++t)
                if (first + t >= low && first + t < high) mask[t / 4] |= 0xffu << (8 * (t % 4));
            const uint32_t address = (values % (1u << 14) + i) * 16;  // of a descriptor
            asm volatile(
                "{\n .reg .b32 x<4>;\n ld.shared.v4.b32 {x0,x1,x2,x3}, [%0];\n and.b32 x0, x0, %1;\n and.b32 x1, x1, %2;\n"
                " and.b32 x2, x2, %3;\n and.b32 x3, x3, %4;\n st.shared.v4.b32 [%0], {x0,x1,x2,x3};\n}" ::"r"(address),
                "r"(mask[0]), "r"(mask[1]), "r"(mask[2]), "r"(mask[3])
                : "memory");
        }
        fence_async_shared();
        named_barrier_sync(1 + warp_uniform(threadIdx.x / 128), 128);
    }

    // P under the reference, its terms as operands A of the products over 32 tokens each.
    __device__ __forceinline__ void weigh(const float (&s)[4][4], uint32_t (&p)[2][4]) {
        const float bias = Tile::shift + 4.0f - top;  // 16 p
        float part[4];
#pragma unroll
        for (int b = 0; b < 4; ++b) {
            float x[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) x[j] = exp2_approx(fmaf(s[b][j], scale, bias)), part[j] = b ? part[j] + x[j] : x[j];
            const uint32_t low = f16x2_from_f32(x[0], x[1]), high = f16x2_from_f32(x[2], x[3]);
            const uint32_t first = e4m3x4_from_f16x4(f16x2_multiply(low, 0x2c002c00u), f16x2_multiply(high, 0x2c002c00u));  // 1 / 16
            p[b / 2][b % 2 * 2] = first;
            p[b / 2][b % 2 * 2 + 1] =
                e4m3x4_from_f16x4(f16x2_fma(f16x2_from_e4m3x2(static_cast<uint16_t>(first)), 0xcc00cc00u, low),  // -16
                                  f16x2_fma(f16x2_from_e4m3x2(static_cast<uint16_t>(first >> 16)), 0xcc00cc00u, high));
        }
        sum += (part[0] + part[1]) + (part[2] + part[3]);
    }

    // O += P . V
    __device__ __forceinline__ void add_values(uint32_t values, uint32_t (&p)[2][4]) {
        float both[32];
        wgmma_pin(p[0]);
        wgmma_pin(p[1]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 2; ++k)
            Wgmma<Tile::head_dim>::e4m3(both, p[k], core_matrix_descriptor(values + k * (2 * Tile::head_dim)), k != 0);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_pin(both);
#pragma unroll
        for (int d = 0; d < dims; ++d)
#pragma unroll
            for (int i = 0; i < 2; ++i) o[d][i] += fmaf(both[4 * d + 2 + i], 1.0f / 16, both[4 * d + i]);
    }

    __device__ __forceinline__ void add_page(const DecodeArgs& args, const typename Tile::Piece& piece, int position, uint32_t keys,
                                             uint32_t values, int all_low, int all_high, int any_low, int any_high) {
        float s[4][4];
        scores(keys, s);
        if (args.alibi_slopes) add_alibi(args, piece, position, s);
        if (position < all_low || position + page_tokens > all_high) mask(args, piece, position, s);
        follow(s);
        uint32_t p[2][4];
        weigh(s, p);
        if (position < any_low || position + page_tokens > any_high) clear_values(values, any_low - position, any_high - position);
        add_values(values, p);
    }

    __device__ __forceinline__ void store(float* rows, float value_scale) const {
        float* row = rows + own_column() * Tile::row;
#pragma unroll
        for (int d = 0; d < dims; ++d)
            *reinterpret_cast<float2*>(row + 8 * d + 2 * (lane % 4)) = make_float2(o[d][0] * value_scale, o[d][1] * value_scale);
        float all = sum + __shfl_xor_sync(~0u, sum, 1);
        all += __shfl_xor_sync(~0u, all, 2);
        if (lane % 4 == 0) *reinterpret_cast<float2*>(row + Tile::head_dim) = make_float2(top, all * (1.0f / 16));
    }

    // The output of an item that the worker has wholly.
    __device__ __forceinline__ void write(const DecodeArgs& args, const typename Tile::Piece& piece, float value_scale) const {
        float all = sum + __shfl_xor_sync(~0u, sum, 1);
        all += __shfl_xor_sync(~0u, all, 2);
        all *= 1.0f / 16;
        if (own_column() >= columns_of<Tile>(args, piece)) return;
        const OutputRow out(args, piece, Tile::columns, own_column());
        const float norm = norm_of(all);
        uint16_t* const row = args.output + out.row * Tile::head_dim + 2 * (lane % 4);
#pragma unroll
        for (int d = 0; d < dims; ++d)
            *reinterpret_cast<uint32_t*>(row + 8 * d) = bf16x2_from_f32(o[d][0] * value_scale * norm, o[d][1] * value_scale * norm);
        if (args.lse && lane % 4 == 0) out.write_log_sum_exp(args, top, all, Tile::shift);
    }
};

}  // namespace peregrine
