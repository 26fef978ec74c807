// Shapes and shared memory of one decode kernel.
#pragma once
#include <cstdint>

#include <peregrine/core_matrix.cuh>
#include <peregrine/fp8.cuh>

#include "decode_plan.cuh"

namespace peregrine {

constexpr int shared_memory_limit = 232448;
constexpr float log2_e = 1.4426950408889634f;
constexpr float ln_2 = 0.6931471805599453f;
constexpr float minus_infinity = -__builtin_huge_valf();

// One instruction, relative error 2^-22; exp2_approx(-inf) is 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// device::alibi_bias: slope, position and product rounded to bf16 as in Falcon's training. `slope` is a value of bf16.
__device__ __forceinline__ float round_to_bf16(float x) { return __uint_as_float(bf16x2_from_f32(0.0f, x)); }
__device__ __forceinline__ float alibi_bias(float slope, int position) {
    return round_to_bf16(slope * round_to_bf16(static_cast<float>(position)));
}

// Element types of the pages: bytes, the bit pattern of ones that fills an operand word, and their products.
struct E4m3 {
    static constexpr int bytes = 1;
    static constexpr uint32_t ones = 0x38383838u;
    template <int columns, class A>
    static __device__ __forceinline__ void product(float (&d)[columns / 2], const A& a, uint64_t b, int accumulate) {
        Wgmma<columns>::e4m3(d, a, b, accumulate);
    }
};
struct Bf16 {
    static constexpr int bytes = 2;
    static constexpr uint32_t ones = 0x3f803f80u;
    template <int columns, class A>
    static __device__ __forceinline__ void product(float (&d)[columns / 2], const A& a, uint64_t b, int accumulate) {
        Wgmma<columns>::bf16(d, a, b, accumulate);
    }
};

// columns: query tokens x heads of a group, in one pass. workers: warpgroups to a block. step_pages: pages that a worker takes
// at a time.
template <class Element_, int head_dim_, int columns_, int workers_, int step_pages_>
struct DecodeTile {
    using Element = Element_;
    static constexpr int head_dim = head_dim_, columns = columns_, workers = workers_, step_pages = step_pages_;
    static constexpr bool fp8 = Element::bytes == 1;
    static constexpr int chunk = 16 / Element::bytes;  // elements of 16 bytes
    static constexpr int tile_bytes = page_tokens * head_dim * Element::bytes;
    static constexpr int threads = workers * (128 + 32);
    // A partial result: for each column O, then its maximum and its sum. The padding spreads columns over the banks.
    static constexpr int row = head_dim + 4, partial_floats = columns * row;
    static constexpr int blocks = head_dim / 64;  // of 64 rows of O^T
    static constexpr int round = blocks * columns / 2 <= 32 ? blocks : (columns >= 64 ? 1 : 64 / columns);
    static constexpr int values = columns / 4;  // columns that one thread holds of a fragment
    // Padded to what halves three times, and what is left then: the columns whose maximum one lane keeps.
    static constexpr int padded = values < 8 ? values : (values + 7) / 8 * 8, owned = padded < 8 ? 1 : padded / 8;
    static constexpr int items_ahead = head_dim == 256 || columns * head_dim > 4096 ? 1 : 2;
    // P is scaled so that the maximum is 2^shift: e4m3 then reaches 2^-17 below it.
    static constexpr float shift = fp8 ? 8.0f : 0.0f;

    static_assert(head_dim == 64 || head_dim == 128 || head_dim == 256);
    static_assert(columns % 8 == 0 && columns <= 72 && blocks % round == 0);

    // A worker's share of one item.
    struct Piece {
        uint32_t item, tiles, begin, end;  // places of the item's first tile, and of this piece; absent: begin == end
        int context_len, query_start, query_len;
        uint32_t first_page, head, column_tile;
        float scale, v_scale;              // scale: from a product of K and Q to base-2 logarithm units
        uint32_t first_block, last_block;  // that hold tiles of the item
        bool last;                         // of its worker
        const float* rows;                 // its partial result
    };
    // A piece with its queries, prepared by the loading warp while the worker is still at the piece before.
    struct Item {
        alignas(128) uint8_t query[columns * head_dim * 2];  // operand B of K . Q^T; e4m3: high terms, then low terms
        int2 visible[columns];                               // first token that a column sees, and the one after the last
        float slope[columns];                                // of ALiBi, raw
        Piece piece;
    };
    struct Worker {
        Item item[items_ahead];
        alignas(128) uint8_t weights[step_pages][columns * page_tokens * Element::bytes];  // operand B of V^T . P^T
        alignas(16) float partial[partial_floats];
        float warp_max[4][columns], bias[4][columns], decay[4][columns];
    };
    struct Block {
        Worker worker[workers];
        Piece piece[2 * workers];         // what workers leave: a first piece, and a last one
        const float* rows[2 * workers];   // of the pieces that are there, in order
        Walk<columns> start[workers];
        uint32_t warp_sum[threads / 32];
        uint32_t parts[2];                // of the items that other blocks share, where this block joins them; or 0
    };
    static constexpr int fit = (shared_memory_limit - static_cast<int>(sizeof(Block)) - 1024) / (workers * tile_bytes);
    static constexpr int stages = fit > 16 ? 16 : fit;  // K and V tiles in a worker's ring
    static_assert(stages >= 3 * step_pages);
    struct Shared {
        alignas(128) uint8_t ring[workers][stages][tile_bytes];
        Block block;
        alignas(8) uint64_t full[workers][stages], empty[workers][stages];
        alignas(8) uint64_t item_full[workers][items_ahead], item_empty[workers][items_ahead];
    };
    static_assert(sizeof(Shared) <= shared_memory_limit);
};

}  // namespace peregrine
