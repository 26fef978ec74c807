// The MLP's activation of each row.
//
//     row of `columns`:  [ gate | up ]  or  [ x ]
//                          \ slice 0 \ slice 1 \ ...         one block each, neighbouring blocks of the grid
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

// The upper tail of the normal distribution, P(normal > magnitude):
//
//     tail(x) = exp(-x^2 / 2) * t * polynomial(t),   t = 1 / (1 + 0.36 x)
//
// (the form of Abramowitz and Stegun 7.1.26; coefficients fitted for the least relative error, 2^-20.3 over all x >= 0).
__device__ __forceinline__ float normal_tail(float magnitude) {
    const float t = reciprocal_approximate(fmaf(0.36f, magnitude, 1.0f));
    float tail = 0x1.84d422p-5f;
    tail = fmaf(tail, t, -0x1.7304f4p-3f);
    tail = fmaf(tail, t, 0x1.767d46p-3f);
    tail = fmaf(tail, t, 0x1.9d81f4p-6f);
    tail = fmaf(tail, t, 0x1.1f2076p-3f);
    tail = fmaf(tail, t, 0x1.222b9ep-3f);
    tail = fmaf(tail, t, 0x1.26564cp-3f);
    return tail * (t * exp2_approximate(magnitude * magnitude * -0.721347520f));
}

// x * P(normal <= x) = max(x, 0) - |x| * tail(|x|). Unlike 1 + erf it keeps its relative accuracy far below zero, in half of
// erff's instructions.
__device__ __forceinline__ float gelu_of_tail(float x, float tail) { return fmaf(-fabsf(x), tail, fmaxf(x, 0.0f)); }
__device__ __forceinline__ float gelu(float x) { return gelu_of_tail(x, normal_tail(fabsf(x))); }

struct ActivationInput {
    const uint16_t* rows;
    const float* multiplier;  // or null
    uint32_t features;        // of the output
    uint32_t slices;          // blocks to a row
};

// The thread's vectors of its block's slice; zeros beyond the row. `first` is the slice's first vector. `between` is called when
// all of them have been asked for: a barrier there keeps the assembler from asking for some of them later.
template <Activation activation, class Between>
__device__ __forceinline__ void activated(const ActivationInput& input, uint32_t token, uint32_t first,
                                          Vector (&y)[thread_vectors], Between between) {
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
    between();
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        y[i] = from_bf16(x[i]);
        const Vector factor = from_bf16(up[i]);
#pragma unroll
        for (int j = 0; j < vector_features; ++j) {
            float& z = y[i].x[j];
            if constexpr (activation != Activation::identity) z = activation == Activation::gelu ? gelu(z) : silu(z);
            if (gated) z *= factor.x[j];
        }
    }
    if (input.multiplier == nullptr) return;
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        const uint32_t vector = first + vector_of(i);
        if (vector >= vectors) continue;
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
    activated<activation>(input, token, first, y, [] {});
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        const uint32_t vector = first + vector_of(i);
        if (vector < input.features / vector_features) {
            store(output + static_cast<size_t>(token) * input.features, vector, y[i]);
        }
    }
}

}  // namespace layers
