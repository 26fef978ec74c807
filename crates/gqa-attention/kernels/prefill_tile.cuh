// Shapes and shared memory of one prefill kernel, and how its blocks find their work.
#pragma once
#include <cstdint>

#include <peregrine/core_matrix.cuh>
#include <peregrine/fp8.cuh>

#include "attention_math.cuh"
#include "decode_plan.cuh"

namespace peregrine {

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

// 72 columns: a head_dim of 64 with the sums of P.
#define PEREGRINE_R36 PEREGRINE_R32 ",%32,%33,%34,%35"
#define PEREGRINE_D36 PEREGRINE_D32, PEREGRINE_D(32)
PEREGRINE_WGMMA(72, 36, "%36", "%37", "%38", "%39", "%40", "%41", "%42")
// 136 columns: a head_dim of 128 with the sums of P.
#define PEREGRINE_R68 PEREGRINE_R64 ",%64,%65,%66,%67"
#define PEREGRINE_D68 PEREGRINE_D64, PEREGRINE_D(64)
PEREGRINE_WGMMA(136, 68, "%68", "%69", "%70", "%71", "%72", "%73", "%74")

// The pages that some row of a run of rows sees.
struct PageRange {
    int begin, end;
};

// A tile's place: `row` is the first of its rows among the sequence's, of which there are `rows`. Row r is head r % group_size
// of the group, of the sequence's new token r / group_size.
struct Chunk {
    int context_len, query_start, query_len, row, rows;

    // Cache position of a row's token; negative where the sequence has fewer tokens than queries.
    __device__ __forceinline__ int position(const DecodeArgs& args, int row) const {
        return context_len - query_len + row / static_cast<int>(args.group_size);
    }
    __device__ __forceinline__ PageRange pages(const DecodeArgs& args, int first, int last) const {
        const int oldest = args.window ? position(args, first) - static_cast<int>(args.window) + 1 : 0;
        const int newest = position(args, last);
        if (newest < 0) return {0, 0};
        return {max(0, oldest) / page_tokens, newest / page_tokens + 1};
    }
};

// A tile as the copying warp hands it to the consumers. The last one has no rows.
struct alignas(16) TileNote {
    int context_len, query_start, query_len, row;
    int head, pages_begin, pages_end, padding;
};

// consumers: warpgroups that multiply, 64 rows each: the more, the better one's softmax hides behind the others' products, and
// the fewer registers each has. register_steps: products along a row of Q whose operand stays in registers; that of the others
// lies in shared memory. promoted_pages: how many pages the short accumulation of FP8 products sums up. Each product is cut to 13 bits below
// the sum so far, so what is lost grows with the square of that: emulated, values around 0, scores that spread by 2, 16384 tokens,
// it adds 0.3, 0.9, 1.4, 1.9 and 3.3% for 2, 4, 5, 6 and 8 pages to the error that rounding P makes.
template <class Element_, int head_dim_, int consumers_, int register_steps_, int promoted_pages_>
struct PrefillTile {
    using Element = Element_;
    static constexpr int head_dim = head_dim_, consumers = consumers_, register_steps = register_steps_, promoted_pages = promoted_pages_;
    static constexpr bool fp8 = Element::bytes == 1;
    static constexpr int rows = 64 * consumers, threads = 128 * (consumers + 1);
    static constexpr int tile_bytes = page_tokens * head_dim * Element::bytes;
    // Rows of the operand that V is: with FP8 eight of ones behind those of head_dim, which add up P.
    static constexpr int value_rows = head_dim + (fp8 ? 8 : 0), value_bytes = page_tokens * value_rows * Element::bytes;
    static constexpr int value_chunks = page_tokens * Element::bytes / 16;  // of the tile, and of its copy with FP8
    static constexpr int accumulators = value_rows / 2;                     // of O, and the sums of P behind them
    // Products along a row of Q, and along the tokens of a page; terms: Q as high + low.
    static constexpr int query_steps = head_dim * Element::bytes / 32, value_steps = page_tokens * Element::bytes / 32;
    static constexpr int terms = fp8 ? 2 : 1, shared_steps = query_steps - register_steps, step_bytes = 64 * 32;
    static constexpr int query_bytes = terms * shared_steps * step_bytes;  // of a warpgroup, in shared memory
    static constexpr int promoted_quads = fp8 ? head_dim / 8 : 0;          // of f32 that a thread keeps there
    static constexpr int fit =
        (shared_memory_limit - 1024 - consumers * (query_bytes + 128 * 16 * promoted_quads)) / (tile_bytes + value_bytes);
    static constexpr int stages = fit > 8 ? 8 : fit;  // pages in the ring
    // P is scaled so that the maximum is 2^shift: e4m3 then reaches 2^-17 below it.
    static constexpr float shift = fp8 ? 8.0f : 0.0f;
    // How far scores may rise above the maximum that P counts from: 2^room (2^8.75 fits e4m3, 2^8 leaves f32 all of its range).
    static constexpr float room = fp8 ? 0.75f : 8.0f;
    static constexpr int producer_registers = consumers == 2 ? 24 : 32;
    static constexpr int consumer_registers = consumers == 2 ? 240 : consumers == 3 ? 160 : 112;
    // What the warpgroups have in all is fixed at the launch: as many registers to each thread as threads leave it.
    static_assert(128 * (producer_registers + consumers * consumer_registers) <= threads * (65536 / threads / 8 * 8));

    static constexpr int tile_slots = 4;
    struct Shared {
        alignas(128) uint8_t keys[stages][tile_bytes];
        alignas(128) uint8_t values[stages][value_bytes];
        alignas(128) uint8_t query[consumers][query_bytes ? query_bytes : 128];  // operand A: [step][2 chunks][64 rows][16 bytes]
        alignas(128) float4 promoted[consumers][promoted_quads ? promoted_quads : 1][promoted_quads ? 128 : 1];
        alignas(8) uint64_t keys_full[stages], keys_empty[stages], values_full[stages], values_empty[stages];
        uint64_t cleared;  // the slots behind the context, see clear_values
        uint64_t tile_full[tile_slots], tile_empty[tile_slots];
        TileNote tiles[tile_slots];  // what the copying warp has begun to copy, for the consumers
    };
    static_assert(sizeof(Shared) <= shared_memory_limit);
    static_assert(stages >= 3 && (head_dim == 64 || head_dim == 128));
};

// Tiles are numbered so that no one needs a prefix sum: those of sequence s start at floor(rows before it / tile rows) + s,
// which leaves room for ceil(its rows / tile rows). Some numbers name no tile.
template <int tile_rows>
__device__ __forceinline__ uint32_t first_slot(const DecodeArgs& args, uint32_t sequence) {
    return args.query_starts[sequence] * args.group_size / tile_rows + sequence;
}

// The last sequence whose tiles start at or before `slot`, by a search 32 wide. All lanes of a warp call it.
template <int tile_rows>
__device__ __forceinline__ Chunk find_chunk(const DecodeArgs& args, uint32_t slot, uint32_t& sequence) {
    uint32_t low = 0, count = args.batch;
    while (count > 1) {
        const uint32_t stride = (count + 31) / 32, probe = threadIdx.x % 32 * stride;
        const bool before = probe < count && first_slot<tile_rows>(args, low + probe) <= slot;
        const uint32_t skip = (__popc(__ballot_sync(~0u, before)) - 1) * stride;
        low += skip, count = min(stride, count - skip);
    }
    sequence = low;
    Chunk chunk;
    chunk.context_len = args.context_lens[low];
    chunk.query_start = args.query_starts[low];
    chunk.query_len = args.query_starts[low + 1] - chunk.query_start;
    chunk.rows = chunk.query_len * args.group_size;
    chunk.row = (slot - first_slot<tile_rows>(args, low)) * tile_rows;
    return chunk;
}

}  // namespace peregrine
