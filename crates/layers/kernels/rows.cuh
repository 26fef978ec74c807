// What the row kernels share: eight bf16 at a time, reductions over a block, and the e4m3 end of a row.
//
// A thread holds up to 4 vectors of 8 features (8 where a kernel says so), a warp 128 (256) neighbouring ones:
//
//     vectors of warp 0            0 .. 31 | 32 .. 63 | 64 .. 95 | 96 .. 127
//     in lane order, as number           0 |        1 |        2 |         3   of the thread
//
// A warp's accesses are contiguous, a thread's vectors lie at constant distances (one address register serves them all), and
// a group of 8 * 2^k features is 2^k neighbouring lanes of one warp.
#pragma once
#include <cstdint>
#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

namespace layers {

constexpr uint32_t vector_features = 8;
constexpr uint32_t thread_vectors = 4;
constexpr uint32_t whole_warp = 0xffffffffu;

// The thread's vector number `i`, of `count`, in its block's piece of a row.
template <int count = thread_vectors>
__device__ __forceinline__ uint32_t vector_of(int i) {
    return threadIdx.x / 32 * (32 * count) + 32 * i + threadIdx.x % 32;
}

// ---- Eight features ---------------------------------------------------------------------------------------------

struct Vector {
    float x[vector_features];
};

__device__ __forceinline__ Vector from_bf16(uint4 packed) {
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

__device__ __forceinline__ uint4 load_packed(const uint16_t* row, uint32_t vector) {
    // Activations are read once: they leave L1 to the weights, which every row reads.
    return __ldcs(reinterpret_cast<const uint4*>(row) + vector);
}

__device__ __forceinline__ void store(uint16_t* row, uint32_t vector, const Vector& v) {
    reinterpret_cast<uint4*>(row)[vector] = to_bf16(v);
}

__device__ __forceinline__ Vector load_f32(const float* row, uint32_t vector) {
    const float4 low = reinterpret_cast<const float4*>(row)[2 * vector];
    const float4 high = reinterpret_cast<const float4*>(row)[2 * vector + 1];
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

__device__ __forceinline__ float absmax(const Vector& v) {
    float largest = 0.0f;
#pragma unroll
    for (float x : v.x) largest = fmaxf(largest, fabsf(x));
    return largest;
}

// ---- Reductions over a block ------------------------------------------------------------------------------------

struct Sum {
    __device__ float operator()(float a, float b) const { return a + b; }
};
struct Max {
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <class Op>
__device__ __forceinline__ float warp_reduce(float value, Op op) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value = op(value, __shfl_xor_sync(whole_warp, value, distance));
    }
    return value;
}

// Every thread gets the result. Each call needs 32 floats of shared memory of its own: no barrier is spent on giving
// them back. Both ops have 0 for an identity here, as a maximum is only taken of magnitudes.
template <class Op>
__device__ __forceinline__ float block_reduce(float value, float* slots, Op op) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    value = warp_reduce(value, op);
    if (lane == 0) slots[warp] = value;
    __syncthreads();
    return warp_reduce(lane < blockDim.x / 32 ? slots[lane] : 0.0f, op);
}

// ---- e4m3 rows --------------------------------------------------------------------------------------------------

// Where a quantized row goes; `group_lanes` is group_size / 8, or 0 for no group sums.
struct QuantizedRow {
    uint8_t* codes;
    float* group_sums;
    uint32_t group_lanes;
};

__device__ __forceinline__ QuantizedRow quantized_row(uint8_t* codes, float* group_sums, uint32_t group_lanes,
                                                      size_t token, uint32_t vectors) {
    const uint32_t groups = group_lanes == 0 ? 0 : vectors >> (__ffs(group_lanes) - 1);
    return {codes + token * vectors * vector_features, group_sums + token * groups, group_lanes};
}

// 1 for a row that is zero or as good as zero.
__device__ __forceinline__ float scale_of(float absmax) {
    const float scale = __fdiv_rn(absmax, peregrine::e4m3_max);
    return scale < 1.17549435e-38f ? 1.0f : scale;
}

// Codes of eight features; their sum is added to `sum`.
//
// A product with the reciprocal instead of a quotient: off by two places of f32, of which e4m3 keeps four bits.
__device__ __forceinline__ uint2 quantize(const Vector& v, float reciprocal, float& sum) {
    uint32_t packed[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float* x = v.x + 4 * half;
        packed[half] = peregrine::e4m3x4_from_f32(x[0] * reciprocal, x[1] * reciprocal, x[2] * reciprocal, x[3] * reciprocal);
        const float2 low = peregrine::f32x2_from_e4m3x2(static_cast<uint16_t>(packed[half]));
        const float2 high = peregrine::f32x2_from_e4m3x2(static_cast<uint16_t>(packed[half] >> 16));
        sum += (low.x + low.y) + (high.x + high.y);
    }
    return make_uint2(packed[0], packed[1]);
}

// One of two values of a lane and of its neighbour across `bit` of their numbers: lanes without the bit get the sum of both
// first ones, lanes with it of both second ones.
__device__ __forceinline__ float add_halves(float first, float second, uint32_t bit) {
    const bool upper = threadIdx.x & bit;
    const float sent = __shfl_xor_sync(whole_warp, upper ? first : second, bit);
    return (upper ? second : first) + sent;
}

// Codes and group sums of four vectors of a thread, `value(i)` the one at `first + 32 * i` of the row; those from `vectors` on
// lie beyond it and are zeros. Codes are multiples of 2^-9 of at most 448, so f32 holds sums of up to 64 exactly, and that of
// 128 is rounded once, in whichever order.
template <class Value>
__device__ __forceinline__ void store_quantized(const QuantizedRow& row, uint32_t first, uint32_t vectors, float reciprocal,
                                                Value value) {
    static_assert(thread_vectors == 4);
    float sums[thread_vectors] = {};
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        const uint32_t vector = first + 32 * i;
        const uint2 packed = quantize(value(i), reciprocal, sums[i]);
        if (vector < vectors) reinterpret_cast<uint2*>(row.codes)[vector] = packed;
    }
    if (row.group_lanes == 0) return;
    if (row.group_lanes == 16) {
        // Groups of 128: two exchanges leave a lane a quarter of its vector lane % 4, two more the whole; 5 shuffles for 16.
        float sum = add_halves(add_halves(sums[0], sums[1], 1), add_halves(sums[2], sums[3], 1), 2);
        sum += __shfl_xor_sync(whole_warp, sum, 4);
        sum += __shfl_xor_sync(whole_warp, sum, 8);
        const uint32_t vector = first + 32 * (threadIdx.x % 4);
        if (threadIdx.x % 16 < 4 && vector < vectors) row.group_sums[vector / 16] = sum;
        return;
    }
#pragma unroll
    for (int i = 0; i < thread_vectors; ++i) {
        const uint32_t vector = first + 32 * i;
        for (uint32_t distance = row.group_lanes / 2; distance > 0; distance /= 2) {
            sums[i] += __shfl_xor_sync(whole_warp, sums[i], distance);
        }
        if (vector < vectors && vector % row.group_lanes == 0) row.group_sums[vector / row.group_lanes] = sums[i];
    }
}

}  // namespace layers
