// Conversions between e4m3, bf16, f16 and f32, in pairs and quadruples as the hardware has them.
//
// e4m3 (the "fn" kind): sign, 4 exponent bits of bias 7, 3 mantissa bits; largest 448, no infinity, 0x7f is NaN. Bytes
// 0x00..0x0f are exactly 0..15 times 2^-9: the subnormals and the first normals are one linear ramp.
#pragma once
#include <cstdint>

namespace peregrine {

constexpr float e4m3_max = 448.0f;

// Two f32 to two e4m3, round to nearest even, saturating at +-448; `low` lands in bits 0..7.
__device__ __forceinline__ uint16_t e4m3x2_from_f32(float low, float high) {
    uint16_t packed;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
    return packed;
}
__device__ __forceinline__ uint32_t e4m3x4_from_f32(float a, float b, float c, float d) {
    return static_cast<uint32_t>(e4m3x2_from_f32(a, b)) | (static_cast<uint32_t>(e4m3x2_from_f32(c, d)) << 16);
}

// Two e4m3 to two f16: exact, f16 holds every e4m3 value. The only direct widening the hardware has.
__device__ __forceinline__ uint32_t f16x2_from_e4m3x2(uint16_t packed) {
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(packed));
    return halves;
}

__device__ __forceinline__ float f32_from_f16(uint16_t half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}
// bf16 is the upper half of an f32.
__device__ __forceinline__ float f32_from_bf16(uint16_t value) {
    return __uint_as_float(static_cast<uint32_t>(value) << 16);
}

__device__ __forceinline__ float2 f32x2_from_e4m3x2(uint16_t packed) {
    const uint32_t halves = f16x2_from_e4m3x2(packed);
    return make_float2(f32_from_f16(static_cast<uint16_t>(halves)), f32_from_f16(static_cast<uint16_t>(halves >> 16)));
}

// Two f32 to one 32-bit word, round to nearest even; `low` lands in bits 0..15.
__device__ __forceinline__ uint32_t bf16x2_from_f32(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
__device__ __forceinline__ uint32_t f16x2_from_f32(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// Four e4m3 to four bf16 (two words), exact: bf16 has more exponent and more mantissa.
__device__ __forceinline__ uint2 bf16x4_from_e4m3x4(uint32_t packed) {
    const float2 low = f32x2_from_e4m3x2(static_cast<uint16_t>(packed));
    const float2 high = f32x2_from_e4m3x2(static_cast<uint16_t>(packed >> 16));
    return make_uint2(bf16x2_from_f32(low.x, low.y), bf16x2_from_f32(high.x, high.y));
}

}  // namespace peregrine
