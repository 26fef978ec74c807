// The steps without a reduction: token ids to rows, residual additions, rotation of heads.
#include "rows.cuh"

// One block a token. An id beyond the vocabulary gives a row of NaN, which shows in everything behind it.
extern "C" __global__ void __launch_bounds__(256)
    embedding(const uint16_t* table, const uint32_t* tokens, uint32_t vocab_size, uint32_t features, uint16_t* output) {
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    const uint32_t token = tokens[blockIdx.x];
    const uint16_t* row = table + static_cast<size_t>(token) * features;
    uint4* out = reinterpret_cast<uint4*>(output + static_cast<size_t>(blockIdx.x) * features);
    constexpr uint32_t nan = 0x7fff7fffu;
    for (uint32_t vector = threadIdx.x; vector < features / layers::vector_features; vector += blockDim.x) {
        out[vector] = token < vocab_size ? layers::load_packed(row, vector) : make_uint4(nan, nan, nan, nan);
    }
}

// One vector a thread; `second` may be null.
extern "C" __global__ void __launch_bounds__(256)
    add_residual(const uint16_t* first, const uint16_t* second, size_t vectors, uint16_t* residual) {
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    const size_t index = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= vectors) return;
    const size_t start = index * layers::vector_features;
    layers::Vector delta = layers::from_bf16(layers::load_packed(first + start, 0));
    if (second != nullptr) {
        const layers::Vector other = layers::from_bf16(layers::load_packed(second + start, 0));
#pragma unroll
        for (int i = 0; i < layers::vector_features; ++i) delta.x[i] += other.x[i];
    }
    layers::Vector sum = layers::from_bf16(layers::load_packed(residual + start, 0));
#pragma unroll
    for (int i = 0; i < layers::vector_features; ++i) sum.x[i] += delta.x[i];
    layers::store(residual + start, 0, sum);
}

// Rotary embedding in place, one block a token: sines and cosines once for all heads, then each thread turns 8 pairs.
//
//     head = [ low: half | high: half | dims that stay ]         pair i = (low[i], high[i])
extern "C" __global__ void __launch_bounds__(256)
    rotate(const uint32_t* positions, const float* inverse_frequencies, uint32_t row_heads, uint32_t rotated_heads,
           uint32_t head_dim, uint32_t half, uint16_t* rows) {
    extern __shared__ float2 turns[];  // (cosine, sine) of each pair
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    const float position = static_cast<float>(positions[blockIdx.x]);
    for (uint32_t i = threadIdx.x; i < half; i += blockDim.x) {
        sincosf(position * inverse_frequencies[i], &turns[i].y, &turns[i].x);
    }
    __syncthreads();
    uint16_t* row = rows + static_cast<size_t>(blockIdx.x) * row_heads * head_dim;
    const uint32_t head_vectors = half / layers::vector_features;
    for (uint32_t index = threadIdx.x; index < rotated_heads * head_vectors; index += blockDim.x) {
        const uint32_t vector = index % head_vectors;
        uint16_t* head = row + index / head_vectors * head_dim;
        layers::Vector low = layers::from_bf16(layers::load_packed(head, vector));
        layers::Vector high = layers::from_bf16(layers::load_packed(head + half, vector));
#pragma unroll
        for (int i = 0; i < layers::vector_features; ++i) {
            const float2 turn = turns[vector * layers::vector_features + i];
            const float a = low.x[i], b = high.x[i];
            low.x[i] = a * turn.x - b * turn.y;
            high.x[i] = b * turn.x + a * turn.y;
        }
        layers::store(head, vector, low);
        layers::store(head + half, vector, high);
    }
}
