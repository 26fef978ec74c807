// Splits fused [q | k | v] rows, turns queries and keys, puts keys and values into their pages.
//
// The grid's x is the tokens, its y shares a token's work out where tokens are few: a thread takes every so many units. A unit
// of queries and keys is two vectors of 8 dims of one head, those that turn into each other:
//
//     head   [ .. 8 dims: low .. | .. 8 dims: high .. ]      high = low + head_dim / 2
//
//     q  ─► turn ─► bf16, where the row of queries has it
//     k  ─► turn ─► / scale ─► a chunk of dims of the page's K tile
//
// The angles are the token's, the same in all heads: each block computes sine and cosine once, in shared memory.
//
// The chunks of the V tile run along tokens: 16 bytes are one dim of 16 (e4m3) or 8 (bf16) tokens. The first new token of a chunk
// takes along the others', a thread for every two dims, so that a prompt's chunks are written whole:
//
//     rows      t    t+1   ...   t+15                    chunk of dim d     [ t | t+1 | .. | t+15 ]
//     v dims   d d+1 d d+1 ... d d+1     ─► / scale ─►    chunk of dim d+1   [ t | t+1 | .. | t+15 ]
//
// A part of a chunk is written token by token, and memory is slow at single bytes: neighbouring threads exchange one of their
// dims, so that they write to the same 32 bytes at a time.
#pragma once
#include <cstdint>
#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

namespace kv_cache {

constexpr uint32_t page_size = 64;
constexpr uint32_t vector_dims = 8;
constexpr uint32_t max_angles = 128;  // head_dim / 2

struct Shape {
    uint32_t sequences;
    uint32_t max_pages;         // entries of a row of block_tables
    uint32_t pages;             // of the pool
    uint32_t query_heads;
    uint32_t kv_heads;
    uint32_t head_dim;          // a multiple of 16, at most 256
    uint32_t angles;            // head_dim / 2, or 0 where nothing turns
    uint32_t frequency_stride;  // from one sequence's frequencies to the next one's; 0 where all share them
};

struct Arguments {
    const uint16_t* qkv;
    const float* inverse_frequencies;
    const uint32_t* block_tables;
    const uint32_t* context_lens;
    const uint32_t* query_offsets;
    const float* key_scales;
    const float* value_scales;
    uint16_t* queries;
    void* pool;
};

struct Place {
    bool valid;
    uint32_t sequence;
    uint32_t position;
    uint32_t page;
    uint32_t rows_before;  // of the sequence, in this batch
    uint32_t rows_from;    // the row itself and those behind it
};

// Where the token of `row` goes. Nothing read here can lead outside the pool: a row behind the last sequence's, a table that
// is too short and a page that is not there leave the token out.
__device__ __forceinline__ Place find_place(const Arguments& arguments, const Shape& shape, uint32_t row) {
    const uint32_t* offsets = arguments.query_offsets;
    // The last sequence that starts at or before the row. In a pure decode step it is the row's own number.
    uint32_t low = 0;
    uint32_t high = shape.sequences;
    if (row < high && offsets[row] == row && offsets[row + 1] == row + 1) {
        low = row;
        high = row + 1;
    }
    while (high > low + 1) {
        const uint32_t middle = (low + high) / 2;
        (offsets[middle] <= row ? low : high) = middle;
    }
    if (low >= shape.sequences) return {};
    const uint32_t first = offsets[low];
    const uint32_t end = offsets[low + 1];
    const uint32_t context = arguments.context_lens[low];
    if (row < first || row >= end || end > gridDim.x || context < end - row) return {};
    const uint32_t position = context - (end - row);
    const uint32_t number = position / page_size;
    if (number >= shape.max_pages) return {};
    const uint32_t page = arguments.block_tables[static_cast<size_t>(low) * shape.max_pages + number];
    return {page < shape.pages, low, position, page, row - first, end - row};
}

struct Vector {
    float x[vector_dims];
};

__device__ __forceinline__ Vector widen(uint4 packed) {
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
    Vector v;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        v.x[2 * i] = __uint_as_float(words[i] << 16);
        v.x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
    return v;
}

__device__ __forceinline__ uint4 to_bf16(const Vector& v) {
    return make_uint4(peregrine::bf16x2_from_f32(v.x[0], v.x[1]), peregrine::bf16x2_from_f32(v.x[2], v.x[3]),
                      peregrine::bf16x2_from_f32(v.x[4], v.x[5]), peregrine::bf16x2_from_f32(v.x[6], v.x[7]));
}

__device__ __forceinline__ uint2 to_e4m3(const Vector& v) {
    return make_uint2(peregrine::e4m3x4_from_f32(v.x[0], v.x[1], v.x[2], v.x[3]),
                      peregrine::e4m3x4_from_f32(v.x[4], v.x[5], v.x[6], v.x[7]));
}

// The two kinds of pages: how 8 dims of a key lie in the K tile, and how a chunk of tokens is packed (device::KvLayout).
struct Bf16Page {
    using Stored = uint16_t;
    static constexpr uint32_t chunk = 8;
    static __device__ __forceinline__ void store_key(Stored* tile, uint32_t token, uint32_t dim, const Vector& v) {
        *reinterpret_cast<uint4*>(tile + (dim / 8 * page_size + token) * 8) = to_bf16(v);
    }
    static __device__ __forceinline__ Stored round(float x) {
        return static_cast<Stored>(peregrine::bf16x2_from_f32(x, 0.0f));
    }
    static __device__ __forceinline__ uint4 pack(const float (&x)[chunk]) {
        return make_uint4(peregrine::bf16x2_from_f32(x[0], x[1]), peregrine::bf16x2_from_f32(x[2], x[3]),
                          peregrine::bf16x2_from_f32(x[4], x[5]), peregrine::bf16x2_from_f32(x[6], x[7]));
    }
};

struct E4m3Page {
    using Stored = uint8_t;
    static constexpr uint32_t chunk = 16;
    static __device__ __forceinline__ void store_key(Stored* tile, uint32_t token, uint32_t dim, const Vector& v) {
        // Of every 16 tokens first the even ones, then the odd.
        const uint32_t row = (token & 48) | (token & 1) << 3 | (token & 15) >> 1;
        *reinterpret_cast<uint2*>(tile + (dim / 16 * page_size + row) * 16 + dim % 16) = to_e4m3(v);
    }
    static __device__ __forceinline__ Stored round(float x) {
        return static_cast<Stored>(peregrine::e4m3x2_from_f32(x, 0.0f));
    }
    static __device__ __forceinline__ uint4 pack(const float (&x)[chunk]) {
        return make_uint4(peregrine::e4m3x4_from_f32(x[0], x[1], x[2], x[3]),
                          peregrine::e4m3x4_from_f32(x[4], x[5], x[6], x[7]),
                          peregrine::e4m3x4_from_f32(x[8], x[9], x[10], x[11]),
                          peregrine::e4m3x4_from_f32(x[12], x[13], x[14], x[15]));
    }
};

// Two dims of a value head, for all new tokens of the chunk that the row's token opens. Called by whole warps, lane l with a
// unit of l's parity.
template <typename Page>
__device__ __forceinline__ void append_values(const Arguments& arguments, const Shape& shape, const Place& place,
                                              uint32_t unit) {
    const uint32_t pairs = shape.head_dim / 2;
    const uint32_t in_chunk = place.position % Page::chunk;
    const bool opens = in_chunk == 0 || place.rows_before == 0;
    const bool inside = unit < shape.kv_heads * pairs;
    const uint32_t lanes = __ballot_sync(0xffffffffu, inside);
    if (!inside || !opens) return;
    const uint32_t count = min(Page::chunk - in_chunk, place.rows_from);
    const uint32_t kv_head = unit / pairs;
    const uint32_t dim = unit % pairs * 2;
    const uint32_t head = shape.query_heads + shape.kv_heads + kv_head;
    const size_t features = static_cast<size_t>(shape.query_heads + 2 * shape.kv_heads) * shape.head_dim;
    const uint16_t* from = arguments.qkv + blockIdx.x * features + head * shape.head_dim + dim;
    const float scale = arguments.value_scales[kv_head];
    const uint32_t tile_elements = page_size * shape.head_dim;
    const size_t block = static_cast<size_t>(place.page) * shape.kv_heads + kv_head;
    auto* values = static_cast<typename Page::Stored*>(arguments.pool) + (block * 2 + 1) * tile_elements;
    const uint32_t chunk = place.position % page_size / Page::chunk;
    auto* to = values + (chunk * shape.head_dim + dim) * Page::chunk + in_chunk;
    if (count < Page::chunk) {
        // Even threads write dims 0 and 2 of their and their neighbour's four, odd ones 1 and 3.
        const bool odd = unit % 2;
        to -= odd ? Page::chunk : 0;
        for (uint32_t i = 0; i < count; ++i) {
            const uint32_t pair = *reinterpret_cast<const uint32_t*>(from + i * features);
            const uint32_t low = Page::round(__uint_as_float(pair << 16) / scale);
            const uint32_t high = Page::round(__uint_as_float(pair & 0xffff0000u) / scale);
            const uint32_t other = __shfl_xor_sync(lanes, odd ? low : high, 1);
            to[i] = static_cast<typename Page::Stored>(odd ? other : low);
            to[i + 2 * Page::chunk] = static_cast<typename Page::Stored>(odd ? high : other);
        }
        return;
    }
    float even[Page::chunk], odd[Page::chunk];
#pragma unroll
    for (uint32_t i = 0; i < Page::chunk; ++i) {
        const uint32_t pair = *reinterpret_cast<const uint32_t*>(from + i * features);
        even[i] = __uint_as_float(pair << 16) / scale;
        odd[i] = __uint_as_float(pair & 0xffff0000u) / scale;
    }
    reinterpret_cast<uint4*>(to)[0] = Page::pack(even);
    reinterpret_cast<uint4*>(to)[1] = Page::pack(odd);
}

// The vectors of a unit of queries or keys, as they lie in memory.
struct Raw {
    uint4 low, high;
};

template <typename Page>
__device__ __forceinline__ void turn_and_store(const Arguments& arguments, const Shape& shape, const Place& place,
                                               const float2 (&turns)[max_angles], const Raw& raw, uint32_t head, uint32_t dim) {
    Vector low = widen(raw.low);
    Vector high = widen(raw.high);
    const uint32_t half = shape.head_dim / 2;
    if (shape.angles > 0) {
#pragma unroll
        for (uint32_t i = 0; i < vector_dims; ++i) {
            const float2 turn = turns[dim + i];
            const float x = low.x[i];
            low.x[i] = x * turn.x - high.x[i] * turn.y;
            high.x[i] = high.x[i] * turn.x + x * turn.y;
        }
    }
    if (head < shape.query_heads) {
        uint16_t* to = arguments.queries + (static_cast<size_t>(blockIdx.x) * shape.query_heads + head) * shape.head_dim + dim;
        *reinterpret_cast<uint4*>(to) = to_bf16(low);
        *reinterpret_cast<uint4*>(to + half) = to_bf16(high);
        return;
    }
    const uint32_t kv_head = head - shape.query_heads;
    const float scale = arguments.key_scales[kv_head];
#pragma unroll
    for (uint32_t i = 0; i < vector_dims; ++i) {
        low.x[i] /= scale;
        high.x[i] /= scale;
    }
    const size_t block = static_cast<size_t>(place.page) * shape.kv_heads + kv_head;
    auto* keys = static_cast<typename Page::Stored*>(arguments.pool) + block * 2 * page_size * shape.head_dim;
    const uint32_t token = place.position % page_size;
    Page::store_key(keys, token, dim, low);
    Page::store_key(keys, token, dim + half, high);
}

template <typename Page>
__device__ __forceinline__ void rope_append(const Arguments& arguments, const Shape& shape) {
    __shared__ float2 turns[max_angles];  // cosine, sine
    const uint32_t head_vectors = shape.head_dim / (2 * vector_dims);
    const uint32_t turning_heads = shape.query_heads + shape.kv_heads;
    const uint32_t turning = turning_heads * head_vectors;
    // Values begin with a warp of their own.
    const uint32_t first_values = (turning + 31) / 32 * 32;
    const uint32_t units = first_values + (shape.kv_heads * (shape.head_dim / 2) + 31) / 32 * 32;
    const uint32_t stride = gridDim.y * blockDim.x;
    const uint16_t* row = arguments.qkv + static_cast<size_t>(blockIdx.x) * (turning_heads + shape.kv_heads) * shape.head_dim;
    const auto load = [&](uint32_t unit) {
        const uint16_t* from = row + unit / head_vectors * shape.head_dim + unit % head_vectors * vector_dims;
        Raw raw{};
        if (unit < turning) {
            raw.low = *reinterpret_cast<const uint4*>(from);
            raw.high = *reinterpret_cast<const uint4*>(from + shape.head_dim / 2);
        }
        return raw;
    };
    uint32_t unit = blockIdx.y * blockDim.x + threadIdx.x;
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    // The row is on its way while the place of its token is looked up; later, the next unit while one is at work.
    Raw raw = load(unit);
    const Place place = find_place(arguments, shape, blockIdx.x);
    if (!place.valid) return;
    const float* frequencies = arguments.inverse_frequencies + static_cast<size_t>(place.sequence) * shape.frequency_stride;
    for (uint32_t i = threadIdx.x; i < shape.angles; i += blockDim.x) {
        float sine, cosine;
        sincosf(__fmul_rn(static_cast<float>(place.position), frequencies[i]), &sine, &cosine);
        turns[i] = make_float2(cosine, sine);
    }
    __syncthreads();
    for (; unit < units; unit += stride) {
        const Raw next = load(unit + stride);
        if (unit < turning) {
            turn_and_store<Page>(arguments, shape, place, turns, raw, unit / head_vectors, unit % head_vectors * vector_dims);
        } else if (unit >= first_values) {
            append_values<Page>(arguments, shape, place, unit - first_values);
        }
        raw = next;
    }
}

}  // namespace kv_cache
