// Quantization of one row of bf16 to e4m3 by one block.
//
//   row     [ 8 bf16 | 8 bf16 | ... ]   16-byte vectors; thread i takes vectors i, i + threads, i + 2 threads, ...
//   pass 1  largest magnitude: thread -> warp -> block            (left out where the scale is given)
//   pass 2  codes: 8 bytes a vector; a group of 8 .. 256 elements is 1 .. 32 neighbouring vectors, taken by as many
//           neighbouring lanes of one warp, which add up its codes by shuffles
//
// Bound by memory: 2 bytes read and 1 written an element; pass 2 finds the row in the caches. Codes are e4m3(x / scale)
// with the quotient rounded as IEEE 754 says, as on the host.
#pragma once
#include <cstdint>

#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

namespace peregrine {

constexpr int vector_elements = 8;
constexpr uint32_t whole_warp = 0xffffffffu;

__device__ __forceinline__ float2 f32x2_from_bf16x2(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

__device__ __forceinline__ float block_max(float value) {
    __shared__ float of_warp[32];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        value = fmaxf(value, __shfl_xor_sync(whole_warp, value, offset));
    }
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();
    value = lane < blockDim.x / 32 ? of_warp[lane] : 0.0f;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        value = fmaxf(value, __shfl_xor_sync(whole_warp, value, offset));
    }
    return value;
}

// fmaxf passes over NaN, as the host's maximum does.
__device__ __forceinline__ float absmax_of_row(const uint4* row, uint32_t vectors) {
    float absmax = 0.0f;
#pragma unroll 4
    for (uint32_t vector = threadIdx.x; vector < vectors; vector += blockDim.x) {
        const uint4 v = row[vector];
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 pair = f32x2_from_bf16x2(words[i]);
            absmax = fmaxf(absmax, fmaxf(fabsf(pair.x), fabsf(pair.y)));
        }
    }
    return block_max(absmax);
}

// A row of zeros, or of numbers as good as zero, is divided by one.
__device__ __forceinline__ float scale_from_absmax(float absmax) {
    const float scale = __fdiv_rn(absmax, e4m3_max);
    return scale < 0x1p-126f ? 1.0f : scale;
}

// Division by one scale, many times. The hardware has no division: __fdiv_rn takes a reciprocal and a range check an
// element from units of an eighth of the multipliers' rate. Here the reciprocal is taken once:
//
//   q0 = x r    q1 = q0 + r (x - q0 s)    q2 = q1 + r (x - q1 s)        each a fused multiply-add, r = 1 / s rounded
//
// q1 is within a unit in the last place, and then q2 is x / s correctly rounded (Markstein, IBM J. Res. Dev. 34, 1990),
// where no remainder underflows. `ordinary` says so of a scale: quotients of smaller x are below 2^-20, where every
// code is zero, of x's sign. Infinities and NaN leave through q0.
struct Divisor {
    float scale, reciprocal;
    bool ordinary;
};

__device__ __forceinline__ Divisor divisor(float scale) {
    return {scale, __frcp_rn(scale), scale > 0x1p-80f && scale < 0x1p80f};
}

template <bool ordinary>
__device__ __forceinline__ float quotient(float x, const Divisor& by) {
    if (!ordinary) return __fdiv_rn(x, by.scale);
    const float q0 = x * by.reciprocal;
    const float q1 = fmaf(fmaf(-q0, by.scale, x), by.reciprocal, q0);
    const float q2 = fmaf(fmaf(-q1, by.scale, x), by.reciprocal, q1);
    return isfinite(q0) ? copysignf(q2, x) : q0;
}

// Four elements to four codes; their sum in units of 2^-9, in which every e4m3 value is a whole number of at most
// 448 * 512, is added to `units`. A NaN counts as 0 there and is flagged.
template <bool ordinary>
__device__ __forceinline__ uint32_t quantize_four(uint32_t low, uint32_t high, const Divisor& by, int32_t& units,
                                                  bool& nan) {
    const float2 a = f32x2_from_bf16x2(low), b = f32x2_from_bf16x2(high);
    const uint32_t codes = e4m3x4_from_f32(quotient<ordinary>(a.x, by), quotient<ordinary>(a.y, by),
                                           quotient<ordinary>(b.x, by), quotient<ordinary>(b.y, by));
    const float2 c = f32x2_from_e4m3x2(static_cast<uint16_t>(codes));
    const float2 d = f32x2_from_e4m3x2(static_cast<uint16_t>(codes >> 16));
    const float sum = (c.x + c.y) + (d.x + d.y);  // exact: multiples of 2^-9 below 2^11
    nan |= isnan(sum);
    units += __float2int_rn(sum * 512.0f);
    return codes;
}

template <bool ordinary>
__device__ __forceinline__ void store_row_by(const uint4* row, const Divisor& by, uint2* codes, float* group_sums,
                                             uint32_t vectors, uint32_t group_size) {
    const uint32_t lanes = group_size / vector_elements;
    // Whole warps go round together, so that the shuffles below find all lanes.
    for (uint32_t first = threadIdx.x & ~31u; first < vectors; first += blockDim.x) {
        const uint32_t vector = first + threadIdx.x % 32;
        const bool inside = vector < vectors;
        const uint4 v = inside ? row[vector] : make_uint4(0, 0, 0, 0);
        int32_t units = 0;
        bool nan = false;
        uint2 packed;
        packed.x = quantize_four<ordinary>(v.x, v.y, by, units, nan);
        packed.y = quantize_four<ordinary>(v.z, v.w, by, units, nan);
        if (inside) codes[vector] = packed;
        if (group_sums == nullptr) continue;
        uint32_t any_nan = nan;
        for (uint32_t offset = 1; offset < lanes; offset *= 2) {
            units += __shfl_xor_sync(whole_warp, units, offset);
            any_nan |= __shfl_xor_sync(whole_warp, any_nan, offset);
        }
        if (inside && vector % lanes == 0) {
            // One rounding, of the exact sum.
            const float sum = __int2float_rn(units) * 0x1p-9f;
            group_sums[vector / lanes] = any_nan ? __int_as_float(0x7fffffff) : sum;
        }
    }
}

// Writes codes and, where group_sums is not null, the sums of each group of group_size codes (a power of two, 8 to 256).
__device__ __forceinline__ void store_row(const uint4* row, float scale, uint2* codes, float* group_sums,
                                          uint32_t vectors, uint32_t group_size) {
    const Divisor by = divisor(scale);
    if (by.ordinary) {
        store_row_by<true>(row, by, codes, group_sums, vectors, group_size);
    } else {
        store_row_by<false>(row, by, codes, group_sums, vectors, group_size);
    }
}

}  // namespace peregrine
