// Numbers of attention: exponentials, ALiBi's bias, bf16.
#pragma once
#include <cstdint>

#include <peregrine/fp8.cuh>

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

__device__ __forceinline__ float2 f32x2_from_bf16x2(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

}  // namespace peregrine
