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

__device__ __forceinline__ uint32_t f16x2_multiply(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
__device__ __forceinline__ uint32_t f16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
// Four f16 to four e4m3, round to nearest even, saturating.
__device__ __forceinline__ uint32_t e4m3x4_from_f16x4(uint32_t low, uint32_t high) {
    uint16_t a, b;
    asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(a) : "r"(low));
    asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(b) : "r"(high));
    return static_cast<uint32_t>(a) | static_cast<uint32_t>(b) << 16;
}

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
// warps, how many share out the columns; the others share out a page's tokens. warpgroup: products are those of decode_group.cuh.
template <class Element_, int head_dim_, int columns_, int workers_, int column_warps_, bool warpgroup_>
struct DecodeTile {
    using Element = Element_;
    static constexpr int head_dim = head_dim_, columns = columns_, workers = workers_, column_warps = column_warps_;
    static constexpr bool fp8 = Element::bytes == 1, warpgroup = warpgroup_;
    static constexpr int tile_bytes = page_tokens * head_dim * Element::bytes, page_bytes = 2 * tile_bytes;
    static constexpr int threads = workers * (128 + 32);
    static constexpr int token_warps = 4 / column_warps;
    static constexpr int row_blocks = column_warps;  // of 16 tokens of a page, to a warp
    static constexpr int column_blocks = (columns / 8 + column_warps - 1) / column_warps;  // of 8 columns, to a warp
    static constexpr int dim_blocks = head_dim / 16;
    // A partial result: for each column O, then its reference (about its maximum) and its sum. The padding spreads columns
    // over the banks.
    static constexpr int row = head_dim + 4, partial_floats = columns * row;
    // P is 2^shift under its reference, and 2^(shift + slack) at the most: 2^14 of f16's 65,504, 2^8.5 of e4m3's 448.
    static constexpr float shift = warpgroup ? 6.0f : Element::shift, slack = warpgroup ? 2.5f : 6.0f;
    static constexpr int items_ahead = 2;
    static constexpr bool queries_ahead = columns <= 32 && columns * head_dim <= 2048;  // by copies, where a sequence has one
    // What a block leaves of an item that later blocks go on with: O, and top and sum for each four dims of a column.
    static constexpr int part_floats = columns * (head_dim / 4) * 6;
    // So many fours of dims a thread takes at a time that joins with others.
    template <int among>
    static constexpr int fours = columns * (head_dim / 4) > 2 * among ? 4 : columns * (head_dim / 4) > among ? 2 : 1;

    static_assert(head_dim == 64 || head_dim == 128 || head_dim == 256);
    static_assert(columns % 8 == 0 && columns <= 72 && 4 % column_warps == 0);

    // A worker's share of one item, found by the loading warp while the worker is still at the piece before.
    struct Piece {
        uint32_t item, tiles, begin, end;  // places of the item's first tile, and of this piece; absent: begin == end
        int context_len, query_start, query_len;
        uint32_t first_page, head, column_tile;
        uint32_t first_block, last_block;  // that hold tiles of the item
        bool last;                         // of its worker
        bool queries_ahead;                // lie in shared memory
    };
    // Where a block's shared memory has no room for first pieces, they go to the workspace.
    static constexpr bool first_in_shared =
        workers * ((token_warps + 1) * partial_floats * 4 + (queries_ahead ? items_ahead * columns * head_dim * 2 : 0) +
                   2 * page_bytes + 512) + 4096 <= shared_memory_limit;
    struct Worker {
        alignas(16) uint16_t queries[items_ahead][queries_ahead ? columns * head_dim : 8];
        Piece ahead[items_ahead];
        alignas(16) float partial[token_warps][partial_floats];
        alignas(16) float first[first_in_shared ? partial_floats : 4];
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
        alignas(16) uint64_t done;               // all workers' threads
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
