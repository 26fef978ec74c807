// The random weights of synthetic.rs. A thread makes eight elements, from four random numbers of 64 bits.
#include <cstdint>

#include <peregrine/fp8.cuh>
#include <peregrine/random.cuh>

using namespace peregrine;

constexpr int elements_per_thread = 8;

// Elements 2 i and 2 i + 1 before they are scaled.
__device__ __forceinline__ float2 pair(uint64_t seed, uint64_t index) {
    const uint64_t bits = random_bits(seed, index);
    return make_float2(static_cast<float>(near_normal(static_cast<uint32_t>(bits))),
                       static_cast<float>(near_normal(static_cast<uint32_t>(bits >> 32))));
}

// Stores the whole vector, or what of it lies before `len`.
template <class T, class Vector>
__device__ __forceinline__ void store(T* out, uint64_t first, uint64_t len, Vector vector) {
    static_assert(sizeof(Vector) == elements_per_thread * sizeof(T));
    if (first + elements_per_thread <= len) {
        *reinterpret_cast<Vector*>(out + first) = vector;
        return;
    }
    const T* const elements = reinterpret_cast<const T*>(&vector);
    for (int i = 0; first + i < len; ++i) out[first + i] = elements[i];
}

extern "C" __global__ void __launch_bounds__(256)
    synthetic_bf16(uint16_t* weights, uint64_t len, uint64_t seed, float scale) {
    const uint64_t first = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * elements_per_thread;
    if (first >= len) return;
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 x = pair(seed, first / 2 + i);
        words[i] = bf16x2_from_f32(x.x * scale, x.y * scale);
    }
    store(weights, first, len, make_uint4(words[0], words[1], words[2], words[3]));
}

extern "C" __global__ void __launch_bounds__(256)
    synthetic_e4m3(uint8_t* codes, uint64_t len, uint64_t seed, float scale) {
    const uint64_t first = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * elements_per_thread;
    if (first >= len) return;
    uint32_t words[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float2 low = pair(seed, first / 2 + 2 * i), high = pair(seed, first / 2 + 2 * i + 1);
        words[i] = e4m3x4_from_f32(low.x * scale, low.y * scale, high.x * scale, high.y * scale);
    }
    store(codes, first, len, make_uint2(words[0], words[1]));
}
