// Where the output of a column lies, and what is written there.
#pragma once
#include <cstdint>

#include "decode_tile.cuh"

namespace peregrine {

// Columns of a piece's pass that are there.
template <class Tile>
__device__ __forceinline__ int columns_of(const DecodeArgs& args, const typename Tile::Piece& piece) {
    return min(piece.query_len * static_cast<int>(args.group_size) - static_cast<int>(piece.column_tile) * Tile::columns, Tile::columns);
}

struct OutputRow {
    uint64_t row;
    int head, position;  // of the query

    // n: of the pass.
    template <class Piece>
    __device__ __forceinline__ OutputRow(const DecodeArgs& args, const Piece& piece, int columns, int n) {
        const int column = piece.column_tile * columns + n, token = token_of(args, piece.query_len, column);
        head = (piece.head - token) * args.group_size + column;
        row = static_cast<uint64_t>(piece.query_start + token) * (args.kv_heads * args.group_size) + head;
        position = piece.context_len - piece.query_len + token;
    }
    // `top` and `sum` as in a partial result; P is 2^shift under its reference.
    __device__ __forceinline__ void write_log_sum_exp(const DecodeArgs& args, float top, float sum, float shift) const {
        // Biases were counted from the query's own; the definition counts from nothing.
        const float bias = args.alibi_slopes ? args.softmax_scale * alibi_bias(args.alibi_slopes[head], position) : 0.0f;
        args.lse[row] = sum > 0.0f ? (top + log2f(sum) - shift) * ln_2 + bias : minus_infinity;
    }
};
__device__ __forceinline__ float norm_of(float sum) { return sum > 0.0f ? __fdividef(1.0f, sum) : 0.0f; }

}  // namespace peregrine
