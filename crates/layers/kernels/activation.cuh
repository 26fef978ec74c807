// The MLP's activation of each row, with the quantization behind.
//
//     row of `columns`:  [ gate | up ]  or  [ x ]
//                          \ slice 0 \ slice 1 \ ...         one block each, neighbouring blocks of the grid
//
// To quantize, the blocks of a row form a cluster and exchange their largest magnitudes through each other's shared
// memory, so that the row stays in registers between its activation and its codes however long it is.
#pragma once
#include "rows.cuh"

namespace layers {

enum class Activation { swiglu, gelu, silu, identity };

// The special-function unit's own 2^x and 1/x: right to about 2^-22, subnormal results become 0.
__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_approximate(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float silu(float x) {
    return x * reciprocal_approximate(1.0f + exp2_approximate(-1.44269504f * x));
}

// x * P(normal <= x) = max(x, 0) - |x| * tail(|x|), with the upper tail of the normal distribution
//
//     tail(x) = exp(-x^2 / 2) * t * polynomial(t),   t = 1 / (1 + 0.36 x)
//
// (the form of Abramowitz and Stegun 7.1.26; coefficients fitted for the least relative error, 2^-20.3 over all x >= 0).
// Unlike 1 + erf it keeps its relative accuracy far below zero, in half of erff's instructions.
__device__ __forceinline__ float gelu(float x) {
    const float magnitude = fabsf(x);
    const float t = reciprocal_approximate(fmaf(0.36f, magnitude, 1.0f));
    float tail = 0x1.84d422p-5f;
    tail = fmaf(tail, t, -0x1.7304f4p-3f);
    tail = fmaf(tail, t, 0x1.767d46p-3f);
    tail = fmaf(tail, t, 0x1.9d81f4p-6f);
    tail = fmaf(tail, t, 0x1.1f2076p-3f);
    tail = fmaf(tail, t, 0x1.222b9ep-3f);
    tail = fmaf(tail, t, 0x1.26564cp-3f);
    tail *= t * exp2_approximate(x * x * -0.721347520f);
    return fmaf(-magnitude, tail, fmaxf(x, 0.0f));
}

struct ActivationInput {
    const uint16_t* rows;
    const float* multiplier;  // or null
    uint32_t features;        // of the output
    uint32_t slices;          // blocks to a row
};

// The thread's vectors of its block's slice; zeros beyond the row. `first` is the slice's first vector.
template <Activation activation>
__device__ __forceinline__ void activated(const ActivationInput& input, uint32_t token, uint32_t first,
                                          Vector (&y)[thread_vectors]) {
    constexpr bool gated = activation == Activation::swiglu;
    const uint32_t vectors = input.features / vector_features;
    const uint16_t* row = input.rows + static_cast<size_t>(token) * input.features * (gated ? 2 : 1);
    uint4 x[thread_vectors], up[thread_vectors];
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        const uint32_t vector = first + vector_of(i);
        x[i] = vector < vectors ? load_packed(row, vector) : uint4{};
        up[i] = gated && vector < vectors ? load_packed(row + input.features, vector) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        const uint32_t vector = first + vector_of(i);
        y[i] = from_bf16(x[i]);
        const Vector factor = from_bf16(up[i]);
#pragma unroll
        for (int j = 0; j < vector_features; ++j) {
            float& z = y[i].x[j];
            if constexpr (activation != Activation::identity) z = activation == Activation::gelu ? gelu(z) : silu(z);
            if (gated) z *= factor.x[j];
        }
        if (input.multiplier == nullptr || vector >= vectors) continue;
        const Vector multiplier = load_f32(input.multiplier, vector);
#pragma unroll
        for (int j = 0; j < vector_features; ++j) y[i].x[j] *= multiplier.x[j];
    }
}

template <Activation activation>
__device__ __forceinline__ void activate(const ActivationInput& input, uint16_t* output) {
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    const uint32_t token = blockIdx.x / input.slices;
    const uint32_t first = blockIdx.x % input.slices * (blockDim.x * thread_vectors);
    Vector y[thread_vectors];
    activated<activation>(input, token, first, y);
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        const uint32_t vector = first + vector_of(i);
        if (vector < input.features / vector_features) {
            store(output + static_cast<size_t>(token) * input.features, vector, y[i]);
        }
    }
}

// What block `rank` of the cluster has where this block has `local`.
__device__ __forceinline__ float load_remote(const float* local, uint32_t rank) {
    float value;
    asm volatile(
        "{\n .reg .u32 remote;\n mapa.shared::cluster.u32 remote, %1, %2;\n ld.shared::cluster.f32 %0, [remote];\n}"
        : "=f"(value)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(local))), "r"(rank)
        : "memory");
    return value;
}

// No block leaves while another may still read its slot: it tells when it has read, and waits for the others as its last step.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The largest `value` among the cluster's blocks; `value` is the same in all threads of a block. With more blocks than one a
// cluster_wait must follow.
__device__ __forceinline__ float cluster_max(float value, uint32_t blocks) {
    __shared__ float slot;
    if (blocks == 1) return value;
    if (threadIdx.x == 0) slot = value;
    __syncwarp();
    peregrine::cluster_sync();
    const uint32_t lane = threadIdx.x % 32;
    const float largest = lane < blocks ? load_remote(&slot, lane) : 0.0f;
    __syncwarp();
    const float all = warp_reduce(largest, Max{});  // has read
    cluster_arrive();
    return all;
}

template <Activation activation>
__device__ __forceinline__ void activate_quantize(const ActivationInput& input, uint8_t* codes, float* scales,
                                                  float* group_sums, uint32_t group_lanes) {
    __shared__ float slots[32];
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    const uint32_t token = blockIdx.x / input.slices, slice = blockIdx.x % input.slices;
    const uint32_t first = slice * (blockDim.x * thread_vectors);
    Vector y[thread_vectors];
    activated<activation>(input, token, first, y);

    float largest = 0.0f;
#pragma unroll
    for (const Vector& v : y) largest = fmaxf(largest, absmax(v));
    const float scale = scale_of(cluster_max(block_reduce(largest, slots, Max{}), input.slices));
    const float reciprocal = __frcp_rn(scale);
    if (slice == 0 && threadIdx.x == 0) scales[token] = scale;

    const uint32_t vectors = input.features / vector_features;
    const QuantizedRow row = quantized_row(codes, group_sums, group_lanes, token, vectors);
    store_quantized(row, first, vectors, y, reciprocal);
    if (input.slices > 1) cluster_wait();
}

}  // namespace layers
