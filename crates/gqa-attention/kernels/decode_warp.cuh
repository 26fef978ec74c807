// What a warp does with a page: scores, weights, the weighted sum of values; and what it carries from page to page.
#pragma once
#include <cstdint>

#include "decode_load.cuh"
#include "decode_tile.cuh"

namespace peregrine {

// Where a warp of a worker stands, and what it carries from page to page of a piece.
template <class Tile>
struct WarpState {
    using Element = typename Tile::Element;
    static constexpr int column_blocks = Tile::column_blocks, dim_blocks = Tile::dim_blocks, row_blocks = Tile::row_blocks;

    int lane, first_column, first_token, token_warp;
    uint32_t query[column_blocks][dim_blocks][2];
    float o[dim_blocks][column_blocks][4], sum[column_blocks][4], reference[column_blocks][2];
    float scale;

    __device__ __forceinline__ explicit WarpState(int thread) {
        const int warp = thread / 32;
        lane = thread % 32, token_warp = warp / Tile::column_warps;
        first_column = warp % Tile::column_warps * (8 * column_blocks), first_token = token_warp * (16 * row_blocks);
    }
    static constexpr int page_step = Tile::page_bytes;  // of `keys_of` and `values_of`
    // The lane's address in the first tile of keys, of values, for load_matrices.
    __device__ __forceinline__ uint32_t keys_of(uint32_t ring) const {
        return ring + first_token * 16 + lane / 16 * (16 * page_tokens) + lane % 16 * 16;
    }
    __device__ __forceinline__ uint32_t values_of(uint32_t tile) const {
        return tile + first_token * (Tile::head_dim * Element::bytes) +
               (Tile::fp8 ? lane * 16 : lane / 16 * (16 * Tile::head_dim) + lane % 16 * 16);
    }
    __device__ __forceinline__ float load_queries(const DecodeArgs& args, const typename Tile::Piece& piece, const uint16_t* ahead) {
        return peregrine::load_queries<Tile>(args, piece, ahead, first_column, lane, query);
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < column_blocks; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sum[j][i] = 0.0f;
#pragma unroll
                for (int m = 0; m < dim_blocks; ++m) o[m][j][i] = 0.0f;
            }
            reference[j][0] = reference[j][1] = no_reference;
        }
    }
    // Of a thread's i-th result of column block j; of row block r.
    __device__ __forceinline__ int column(int j, int i) const { return first_column + 8 * j + 2 * (lane % 4) + i % 2; }
    __device__ __forceinline__ int token(int r, int i) const {
        return first_token + 16 * r + (Tile::fp8 ? 2 * (lane / 4) + i / 2 : lane / 4 + i / 2 * 8);
    }

    // A page: `keys` and `values` are the lane's addresses in its tiles, tokens all_low .. all_high are seen by every column,
    // any_low .. any_high by some.
    __device__ __forceinline__ void add_page(const DecodeArgs& args, const typename Tile::Piece& piece, int position, uint32_t keys,
                                             uint32_t values, int all_low, int all_high, int any_low, int any_high) {
        float s[row_blocks][column_blocks][4];
        scores(keys, s);
        if (args.alibi_slopes) add_alibi(args, piece, position, s);
        if (position < all_low || position + page_tokens > all_high) mask(args, piece, position, s);
        follow(s);
        uint32_t weights[row_blocks][column_blocks][2];
        weigh(s, weights);
        if (position < any_low || position + page_tokens > any_high)
            add_values<true>(values, weights, any_low - position, any_high - position);
        else
            add_values<false>(values, weights, 0, 0);
    }

    // S^T of a page, `keys` the lane's address in the tile.
    __device__ __forceinline__ void scores(uint32_t keys, float (&s)[row_blocks][column_blocks][4]) const {
        // A lone chain of products is two: each waits for the one before it.
        constexpr int chains = row_blocks * column_blocks == 1 ? 2 : 1;
        float part[chains][row_blocks][column_blocks][4] = {};
#pragma unroll
        for (int r = 0; r < row_blocks; ++r)
#pragma unroll
            for (int k = 0; k < dim_blocks; k += Element::operands) {
                uint32_t words[4], a[Element::operands][4];
                load_matrices(words, keys + r * 256 + k / Element::operands * (2 * 16 * page_tokens));
                Element::widen(words, a);
#pragma unroll
                for (int i = 0; i < Element::operands; ++i)
#pragma unroll
                    for (int j = 0; j < column_blocks; ++j)
                        Element::mma(part[(k / Element::operands) % chains][r][j], a[i], query[j][k + i]);
            }
#pragma unroll
        for (int r = 0; r < row_blocks; ++r)
#pragma unroll
            for (int j = 0; j < column_blocks; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) s[r][j][i] = chains == 2 ? part[0][r][j][i] + part[chains - 1][r][j][i] : part[0][r][j][i];
    }

    // Query token of a column, and its head.
    __device__ __forceinline__ int query_token(const DecodeArgs& args, const typename Tile::Piece& piece, int n) const {
        return token_of(args, piece.query_len, query_column(args, piece, n));
    }
    __device__ __forceinline__ int query_column(const DecodeArgs& args, const typename Tile::Piece& piece, int n) const {
        const int columns = piece.query_len * static_cast<int>(args.group_size);
        return min(static_cast<int>(piece.column_tile * Tile::columns) + n, columns - 1);
    }

    // Scores of tokens that a column does not see become -inf.
    __device__ __forceinline__ void mask(const DecodeArgs& args, const typename Tile::Piece& piece, int position,
                                         float (&s)[row_blocks][column_blocks][4]) const {
#pragma unroll
        for (int j = 0; j < column_blocks; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int high = piece.context_len - piece.query_len + query_token(args, piece, column(j, e)) + 1;
                const int low = args.window ? high - static_cast<int>(args.window) : 0;
#pragma unroll
                for (int r = 0; r < row_blocks; ++r)
#pragma unroll
                    for (int i = e; i < 4; i += 2) {
                        const int seen = position + token(r, i);
                        if (seen < low || seen >= high) s[r][j][i] = minus_infinity;
                    }
            }
    }

    // In units of a product of Q and K. Counted from the query's own bias: that leaves small numbers in the maxima.
    __device__ __forceinline__ void add_alibi(const DecodeArgs& args, const typename Tile::Piece& piece, int position,
                                              float (&s)[row_blocks][column_blocks][4]) const {
        const float slope_unit = args.softmax_scale * log2_e / scale;
#pragma unroll
        for (int j = 0; j < column_blocks; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int own = query_token(args, piece, column(j, e));
                const float slope = args.alibi_slopes[(piece.head - own) * args.group_size + query_column(args, piece, column(j, e))];
                const float own_bias = alibi_bias(slope, piece.context_len - piece.query_len + own);
#pragma unroll
                for (int r = 0; r < row_blocks; ++r)
#pragma unroll
                    for (int i = e; i < 4; i += 2) s[r][j][i] += (alibi_bias(slope, position + token(r, i)) - own_bias) * slope_unit;
            }
    }

    // References follow the maxima where one of them has grown out of what P has room for, and what was summed under the old
    // ones is scaled.
    __device__ __forceinline__ void follow(const float (&s)[row_blocks][column_blocks][4]) {
        float top[column_blocks][2];
        bool grown = false;
#pragma unroll
        for (int j = 0; j < column_blocks; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                top[j][e] = fmaxf(s[0][j][e], s[0][j][e + 2]);
#pragma unroll
                for (int r = 1; r < row_blocks; ++r) top[j][e] = fmaxf(top[j][e], fmaxf(s[r][j][e], s[r][j][e + 2]));
                grown |= fmaf(top[j][e], scale, -reference[j][e]) > Tile::slack;
            }
        if (!__any_sync(~0u, grown)) return;
#pragma unroll
        for (int j = 0; j < column_blocks; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
#pragma unroll
                for (int distance = 4; distance < 32; distance *= 2)
                    top[j][e] = fmaxf(top[j][e], __shfl_xor_sync(~0u, top[j][e], distance));
                const float next = fmaxf(reference[j][e], top[j][e] * scale), decay = exp2_approx(reference[j][e] - next);
                reference[j][e] = next;
                sum[j][e] *= decay, sum[j][e + 2] *= decay;
#pragma unroll
                for (int m = 0; m < dim_blocks; ++m) o[m][j][e] *= decay, o[m][j][e + 2] *= decay;
            }
    }

    // P^T under the references, as operand B.
    __device__ __forceinline__ void weigh(const float (&s)[row_blocks][column_blocks][4],
                                          uint32_t (&weights)[row_blocks][column_blocks][2]) const {
#pragma unroll
        for (int j = 0; j < column_blocks; ++j) {
            const float bias[2] = {Tile::shift - reference[j][0], Tile::shift - reference[j][1]};
#pragma unroll
            for (int r = 0; r < row_blocks; ++r) {
                float p[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) p[i] = exp2_approx(fmaf(s[r][j][i], scale, bias[i % 2]));
                Element::transpose(p, weights[r][j]);
            }
        }
    }

    // O^T += V^T . P^T and the sums of P, `values` the lane's address in the tile. Slots of the last page that hold no token
    // may hold anything, NaN included, and 0 x NaN would reach every column: they are masked where `low` or `high`
    // cuts the page.
    template <bool cut>
    __device__ __forceinline__ void add_values(uint32_t values, const uint32_t (&p)[row_blocks][column_blocks][2], int low, int high) {
        constexpr int load_bytes = Tile::fp8 ? 512 : 256;  // of `operands` blocks of 16 dims
        const uint32_t ones[4] = {Element::ones, Element::ones, Element::ones, Element::ones};
#pragma unroll
        for (int r = 0; r < row_blocks; ++r) {
            uint32_t mask[2] = {};
            if constexpr (cut) {
#pragma unroll
                for (int half = 0; half < 2; ++half)
#pragma unroll
                    for (int i = 0; i < 4 / Element::bytes; ++i) {
                        const int token = first_token + 16 * r + (Tile::fp8 ? 4 * (lane % 4) : 8 * half + 2 * (lane % 4)) + i;
                        if (token >= low && token < high) mask[half] |= (Tile::fp8 ? 0xffu : 0xffffu) << (8 * Element::bytes * i);
                    }
            }
#pragma unroll
            for (int m = 0; m < dim_blocks; m += Element::operands) {
                uint32_t words[4], a[Element::operands][4];
                load_matrices(words, values + r * (16 * Tile::head_dim * Element::bytes) + m / Element::operands * load_bytes);
                if constexpr (cut) words[0] &= mask[0], words[1] &= mask[0], words[2] &= mask[1], words[3] &= mask[1];
                Element::widen(words, a);
#pragma unroll
                for (int i = 0; i < Element::operands; ++i)
#pragma unroll
                    for (int j = 0; j < column_blocks; ++j) Element::mma(o[m + i][j], a[i], p[r][j]);
            }
#pragma unroll
            for (int j = 0; j < column_blocks; ++j) Element::mma(sum[j], ones, p[r][j]);
        }
    }

    // To the warp's columns of a partial result.
    __device__ __forceinline__ void store(float* rows, float value_scale) const {
#pragma unroll
        for (int j = 0; j < column_blocks; ++j) {
            if (first_column + 8 * j >= Tile::columns) continue;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float* row = rows + column(j, i) * Tile::row;
#pragma unroll
                for (int m = 0; m < dim_blocks; ++m) row[16 * m + lane / 4 + i / 2 * 8] = o[m][j][i] * value_scale;
                if (i < 2 && lane < 4)
                    *reinterpret_cast<float2*>(row + Tile::head_dim) = make_float2(reference[j][i], sum[j][i]);
            }
        }
    }
};

}  // namespace peregrine
