// RMSNorm and LayerNorm of the rows of a residual stream, with the additions before and the quantization behind.
//
//     residual ─► + (delta0 + delta1) ─► round to bf16 ─┬─► back to memory
//                                                       └─► mean ─► variance ─► normalize ─► bf16, or e4m3 with a scale
//
// One block a row. The row is read once and stays in registers: its statistics are exact two-pass ones, of the rounded
// residual, so that the norm is a function of what is stored.
#pragma once
#include "rows.cuh"

namespace layers {

struct NormInput {
    uint16_t* residual;
    const uint16_t* delta0;  // read where there are deltas
    const uint16_t* delta1;  // read where there are two
    const float* weight;
    const float* bias;  // or null
    uint32_t features;
    float epsilon;
};

// The thread's vectors of block `blockIdx.x`'s row, normalized; zeros beyond the row.
template <bool centered, int deltas>
__device__ __forceinline__ void normalized(const NormInput& input, Vector (&y)[thread_vectors]) {
    __shared__ float slots[2][32];
    const uint32_t vectors = input.features / vector_features;
    const size_t start = static_cast<size_t>(blockIdx.x) * input.features;
    uint16_t* residual = input.residual + start;

    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        const uint32_t vector = vector_of(i);
        const bool inside = vector < vectors;
        y[i] = from_bf16(inside ? load_packed(residual, vector) : uint4{});
        if (deltas > 0) {
            Vector delta = from_bf16(inside ? load_packed(input.delta0 + start, vector) : uint4{});
            if (deltas > 1) {
                const Vector second = from_bf16(inside ? load_packed(input.delta1 + start, vector) : uint4{});
#pragma unroll
                for (int j = 0; j < vector_features; ++j) delta.x[j] += second.x[j];
            }
#pragma unroll
            for (int j = 0; j < vector_features; ++j) y[i].x[j] += delta.x[j];
            y[i] = from_bf16(to_bf16(y[i]));
        }
#pragma unroll
        for (float x : y[i].x) sum += x;
    }
    // Stores stay behind all loads, which can then be in flight together.
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        const uint32_t vector = vector_of(i);
        if (deltas > 0 && vector < vectors) store(residual, vector, y[i]);
    }

    const float count = static_cast<float>(input.features);
    const float mean = centered ? block_reduce(sum, slots[0], Sum{}) / count : 0.0f;
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        if (vector_of(i) >= vectors) continue;
#pragma unroll
        for (float& x : y[i].x) {
            x -= mean;
            squares = fmaf(x, x, squares);
        }
    }
    const float variance = block_reduce(squares, slots[1], Sum{}) / count;
    const float inverse_deviation = rsqrtf(variance + input.epsilon);
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        const uint32_t vector = vector_of(i);
        if (vector >= vectors) continue;
        const Vector weight = load_f32(input.weight, vector);
        const Vector bias = input.bias == nullptr ? Vector{} : load_f32(input.bias, vector);
#pragma unroll
        for (int j = 0; j < vector_features; ++j) {
            y[i].x[j] = fmaf(y[i].x[j] * inverse_deviation, weight.x[j], bias.x[j]);
        }
    }
}

template <bool centered, int deltas>
__device__ __forceinline__ void norm(const NormInput& input, uint16_t* output) {
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    Vector y[thread_vectors];
    normalized<centered, deltas>(input, y);
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        const uint32_t vector = vector_of(i);
        if (vector < input.features / vector_features) {
            store(output + static_cast<size_t>(blockIdx.x) * input.features, vector, y[i]);
        }
    }
}

template <bool centered, int deltas>
__device__ __forceinline__ void norm_quantize(const NormInput& input, uint8_t* codes, float* scales, float* group_sums,
                                              uint32_t group_lanes) {
    __shared__ float slots[32];
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    Vector y[thread_vectors];
    normalized<centered, deltas>(input, y);

    float largest = 0.0f;
#pragma unroll
    for (const Vector& v : y) largest = fmaxf(largest, absmax(v));
    const float scale = scale_of(block_reduce(largest, slots, Max{}));
    const float reciprocal = __frcp_rn(scale);
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;

    const uint32_t vectors = input.features / vector_features;
    const QuantizedRow row = quantized_row(codes, group_sums, group_lanes, blockIdx.x, vectors);
    store_quantized(row, vector_of(0), vectors, reciprocal, [&](int i) { return y[i]; });
}

}  // namespace layers
