// Shapes and shared memory of one decode kernel, and how its element becomes an operand.
#pragma once
#include <cstdint>

#include <peregrine/fp8.cuh>
#include <peregrine/warp_mma.cuh>

#include "attention_math.cuh"
#include "decode_plan.cuh"

namespace peregrine {

// A column's reference before its first token: below any score, and finite, so that differences from it are no NaN.
constexpr float no_reference = -1e30f;

// Element types of the pages. One load_matrices gives `operands` operands A of 16 x 16; a pair of P's rows becomes its operand B.
//
//   e4m3   A word holds four neighbours along the sum, two for each half of a product's 16: so operand B takes elements
//          4q .. 4q + 3 where the drawing in warp_mma.cuh has 2q, 2q+1, 2q+8, 2q+9. KvLayout has K's rows in the order of
//          tokens 0, 2, .. 14, 1, 3, .. 15, so that rows g and g + 8 of S^T are neighbouring tokens.
//   bf16   As the drawing has it.
struct E4m3 {
    static constexpr int bytes = 1, operands = 2;
    static constexpr uint32_t ones = 0x3c003c00u;  // f16: what a product sees
    // P is scaled by 2^shift: the smallest f16 is then 2^-32 of the largest P.
    static constexpr float shift = 8.0f;
    static __device__ __forceinline__ void widen(const uint32_t (&words)[4], uint32_t (&a)[2][4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            a[i / 2][i % 2] = f16x2_from_e4m3x2(static_cast<uint16_t>(words[i]));
            a[i / 2][i % 2 + 2] = f16x2_from_e4m3x2(static_cast<uint16_t>(words[i] >> 16));
        }
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        warp_mma_f16(d, a, b);
    }
    static __device__ __forceinline__ void transpose(const float (&p)[4], uint32_t (&b)[2]) {
        const uint32_t even = transpose_matrix(f16x2_from_f32(p[0], p[1])), odd = transpose_matrix(f16x2_from_f32(p[2], p[3]));
        b[0] = __byte_perm(even, odd, 0x5410), b[1] = __byte_perm(even, odd, 0x7632);
    }
};
struct Bf16 {
    static constexpr int bytes = 2, operands = 1;
    static constexpr uint32_t ones = 0x3f803f80u;
    static constexpr float shift = 0.0f;
    static __device__ __forceinline__ void widen(const uint32_t (&words)[4], uint32_t (&a)[1][4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[0][i] = words[i];
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        warp_mma_bf16(d, a, b);
    }
    static __device__ __forceinline__ void transpose(const float (&p)[4], uint32_t (&b)[2]) {
        b[0] = transpose_matrix(bf16x2_from_f32(p[0], p[1])), b[1] = transpose_matrix(bf16x2_from_f32(p[2], p[3]));
    }
};

// columns: query tokens x heads of a group, in one pass. workers: groups of four warps to a block. column_warps: of a worker's
// warps, how many share out the columns; the others share out a page's tokens.
template <class Element_, int head_dim_, int columns_, int workers_, int column_warps_>
struct DecodeTile {
    using Element = Element_;
    static constexpr int head_dim = head_dim_, columns = columns_, workers = workers_, column_warps = column_warps_;
    static constexpr bool fp8 = Element::bytes == 1;
    static constexpr int tile_bytes = page_tokens * head_dim * Element::bytes, page_bytes = 2 * tile_bytes;
    static constexpr int threads = workers * (128 + 32);
    static constexpr int token_warps = 4 / column_warps;
    static constexpr int row_blocks = column_warps;  // of 16 tokens of a page, to a warp
    static constexpr int column_blocks = (columns / 8 + column_warps - 1) / column_warps;  // of 8 columns, to a warp
    static constexpr int dim_blocks = head_dim / 16;
    // A partial result: for each column O, then its reference (about its maximum) and its sum. The padding spreads columns
    // over the banks.
    static constexpr int row = head_dim + 4, partial_floats = columns * row;
    static constexpr int items_ahead = 4;

    static_assert(head_dim == 64 || head_dim == 128 || head_dim == 256);
    static_assert(columns % 8 == 0 && columns <= 72 && 4 % column_warps == 0);

    // A worker's share of one item, found by the loading warp while the worker is still at the piece before.
    struct Piece {
        uint32_t item, tiles, begin, end;  // places of the item's first tile, and of this piece; absent: begin == end
        int context_len, query_start, query_len;
        uint32_t first_page, head, column_tile;
        uint32_t first_block, last_block;  // that hold tiles of the item
        bool last;                         // of its worker
    };
    struct Worker {
        Piece ahead[items_ahead];
        alignas(16) float partial[token_warps][partial_floats];
    };
    // Where the partial results of a worker's pieces lie, in the order of the line: a first piece's, and those of its warps for a
    // last one.
    static constexpr int slots = 1 + token_warps;
    struct Block {
        Worker worker[workers];
        Piece piece[2 * workers];                // what workers leave: a first piece, and a last one
        const float* partial[workers * slots];   // or null
        alignas(16) Walk<columns> start[workers];
        alignas(16) uint32_t warp_sum[workers];
        alignas(16) uint32_t parts[2];           // of the items that other blocks share, where this block joins them; or 0
    };
    static constexpr int fit = (shared_memory_limit - static_cast<int>(sizeof(Block)) - 1024) / (workers * page_bytes);
    static constexpr int stages = fit > 8 ? 8 : fit;  // pages in a worker's ring
    static_assert(stages >= 2);
    struct Shared {
        alignas(128) uint8_t ring[workers][stages][page_bytes];
        Block block;
        alignas(8) uint64_t full[workers][stages], empty[workers][stages];
        alignas(8) uint64_t item_full[workers][items_ahead], item_empty[workers][items_ahead];
    };
    static_assert(sizeof(Shared) <= shared_memory_limit);
};

}  // namespace peregrine
