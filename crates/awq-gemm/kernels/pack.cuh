// INT4 weights on the device into the order of PackedWeights (pack.rs has the drawing): from a checkpoint's tensors, or random.
//
//   codes        a block of 256 threads an output chunk of 4096 bytes, 16 bytes a thread:
//                thread 128 j + 32 w + 4 r + t, word 2 i + c of its four:
//                rows 16 w + r (low nibbles) and 16 w + 8 + r (high) of the block, columns 64 j + 32 i + 16 c + 4 t + 0..3 of the unit
//   parameters   a block of 256 threads an output chunk of 1280 bytes, 5 bytes a thread:
//                thread 32 g + 8 w + r, the zero points and scales of the same two rows in group g of the window
//
// The output starts as zeros and values are OR-ed in, so that fused layers are packed part by part, each launch in its turn.
#pragma once
#include <cstdint>

#include <peregrine/random.cuh>

namespace pack {

constexpr int kBlock = 64;           // output features to a block
constexpr int kUnit = 128;           // input features to a unit
constexpr int kWindow = 8;           // groups to a window
constexpr int kStripe = 8;           // blocks to a stripe
constexpr int kThreads = 256;
constexpr int kCodeBytes = kBlock * kUnit / 2;
constexpr int kScaleBytes = kWindow * kBlock * 2;
constexpr int kParameterBytes = kScaleBytes + kWindow * kBlock / 2;

// `Problem` of launch/pack.rs.
struct Problem {
    uint8_t* codes;            // output
    uint8_t* parameters;       // output
    const uint32_t* words;     // the source's codes
    const uint16_t* scales;    // the source's scales, f16
    const uint32_t* zeros;     // the source's zero points; null where all are 8
    const int32_t* rows;       // which of the source's rows each row is, anything else where it has none; null: n is n
    uint64_t seed;
    int32_t blocks;            // of 64 output features
    int32_t in_features;
    int32_t groups;            // of the output
    int32_t source_rows;
    int32_t source_groups;
    int32_t repeat;            // output groups to a group of the source
    int32_t least_scale;       // bits of an f16
    int32_t symmetric;
};

// AutoAWQ: all three tensors have input features (or groups) as rows, output features eight to a word.
struct AutoAwq {
    // Where in its word an output feature's nibble lies: 0 4 1 5 2 6 3 7.
    static __device__ __forceinline__ uint32_t nibble(uint32_t word, int row) {
        const int place = (row >> 1 & 3) + 4 * (row & 1);
        return word >> (4 * place) & 0xf;
    }
    static __device__ __forceinline__ uint32_t code(const Problem& p, int row, int k) {
        return nibble(p.words[size_t(k) * (p.source_rows / 8) + row / 8], row);
    }
    static __device__ __forceinline__ uint32_t scale(const Problem& p, int row, int group) {
        return p.scales[size_t(group) * p.source_rows + row];
    }
    static __device__ __forceinline__ uint32_t zero(const Problem& p, int row, int group) {
        return nibble(p.zeros[size_t(group) * (p.source_rows / 8) + row / 8], row);
    }
};

// compressed-tensors: rows are output features; codes eight to a word along a row, zero points along a column.
struct PackQuantized {
    static __device__ __forceinline__ uint32_t code(const Problem& p, int row, int k) {
        const size_t words = (p.in_features + 7) / 8;
        return p.words[row * words + k / 8] >> (4 * (k % 8)) & 0xf;
    }
    static __device__ __forceinline__ uint32_t scale(const Problem& p, int row, int group) {
        return p.scales[size_t(row) * p.source_groups + group];
    }
    static __device__ __forceinline__ uint32_t zero(const Problem& p, int row, int group) {
        if (p.zeros == nullptr) return 8;
        return p.zeros[size_t(row / 8) * p.source_groups + group] >> (4 * (row % 8)) & 0xf;
    }
};

// The random weights of synthetic.rs.
struct Synthetic {
    static __device__ __forceinline__ uint32_t code(const Problem& p, int row, int k) {
        const uint64_t words = (p.in_features + 15) / 16;
        const uint64_t bits = peregrine::random_bits(p.seed, row * words + k / 16);
        const uint32_t code = static_cast<uint32_t>(bits >> (4 * (k % 16))) & 0xf;
        return p.symmetric && code == 0 ? 8 : code;
    }
    static __device__ __forceinline__ uint64_t parameters(const Problem& p, int row, int group) {
        return peregrine::random_bits(~p.seed, uint64_t(row) * p.source_groups + group);
    }
    static __device__ __forceinline__ uint32_t scale(const Problem& p, int row, int group) {
        return p.least_scale + (parameters(p, row, group) & 0xff);
    }
    static __device__ __forceinline__ uint32_t zero(const Problem& p, int row, int group) {
        return p.symmetric ? 8 : 7 + (parameters(p, row, group) >> 8 & 1);
    }
};

// The inverse of Layout::chunk: chunks of a stripe lie together, its blocks side by side for each unit or window.
struct Place {
    int block;
    int index;
};
__device__ __forceinline__ Place place(int chunk, int count, int blocks) {
    const int stripe = chunk / (kStripe * count) * kStripe;
    const int inside = chunk - stripe * count, width = min(kStripe, blocks - stripe);
    return {stripe + inside % width, inside / width};
}

// The source's row behind row n of the output, or -1.
__device__ __forceinline__ int source_row(const Problem& p, int n) {
    const int row = p.rows == nullptr ? n : p.rows[n];
    return row >= 0 && row < p.source_rows ? row : -1;
}

template <class Source>
__device__ __forceinline__ void pack_codes(const Problem& p) {
    const Place at = place(blockIdx.x, (p.in_features + kUnit - 1) / kUnit, p.blocks);
    const int thread = threadIdx.x, j = thread / 128, w = thread / 32 % 4, r = thread / 4 % 8, t = thread % 4;
    const int first = at.block * kBlock + 16 * w + r;
    const int low = source_row(p, first), high = source_row(p, first + 8);
    if (low < 0 && high < 0) return;
    uint4* const out = reinterpret_cast<uint4*>(p.codes + size_t(blockIdx.x) * kCodeBytes) + thread;
    uint32_t words[4] = {};
#pragma unroll
    for (int word = 0; word < 4; ++word) {
        const int k = at.index * kUnit + 64 * j + 16 * word + 4 * t;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (k + e >= p.in_features) continue;
            if (low >= 0) words[word] |= Source::code(p, low, k + e) << (8 * e);
            if (high >= 0) words[word] |= Source::code(p, high, k + e) << (8 * e + 4);
        }
    }
    const uint4 before = *out;
    *out = make_uint4(before.x | words[0], before.y | words[1], before.z | words[2], before.w | words[3]);
}

template <class Source>
__device__ __forceinline__ void pack_parameters(const Problem& p) {
    const Place at = place(blockIdx.x, (p.groups + kWindow - 1) / kWindow, p.blocks);
    const int thread = threadIdx.x, g = thread / 32, pair = thread % 32, w = pair / 8, r = pair % 8;
    const int group = at.index * kWindow + g;
    if (group >= p.groups) return;
    uint8_t* const chunk = p.parameters + size_t(blockIdx.x) * kParameterBytes;
    uint32_t scales = 0, zeros = 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = source_row(p, at.block * kBlock + 16 * w + 8 * h + r);
        if (row < 0) continue;
        scales |= Source::scale(p, row, group / p.repeat) << (16 * h);
        zeros |= Source::zero(p, row, group / p.repeat) << (4 * h);
    }
    reinterpret_cast<uint32_t*>(chunk)[thread] |= scales;
    chunk[kScaleBytes + thread] |= static_cast<uint8_t>(zeros);
}

}  // namespace pack
