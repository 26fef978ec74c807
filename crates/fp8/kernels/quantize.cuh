// Quantization of rows of bf16 to e4m3, a row at a time by one block.
//
//   row     [ 8 bf16 | 8 bf16 | ... ]   16-byte vectors; thread i takes vectors i, i + threads, i + 2 threads, ...
//   pass 1  largest magnitude: thread -> warp -> block            (left out where the scale is given)
//   pass 2  codes: 8 bytes a vector; a group of 8 .. 256 elements is 1 .. 32 neighbouring vectors, taken by as many
//           neighbouring lanes of one warp, which add up its codes by shuffles
//
// Rows of up to 4 vectors a thread are held in registers, and blocks go from row to row: while one row is computed the
// next one is on its way. Longer rows are read twice, the second time from the caches.
//
// Bound by memory: 2 bytes read and 1 written an element. Codes are e4m3(x / scale) with the quotient rounded as
// IEEE 754 says, as on the host.
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

// Two calls in a row use different halves of the shared memory (`turn` 0 and 1): a barrier lies between two uses of one half.
__device__ __forceinline__ float block_max(float value, uint32_t turn = 0) {
    __shared__ float halves[2][32];
    float(&of_warp)[32] = halves[turn];
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

// Magnitudes of two bf16 are compared as they are; max passes over NaN, as the host's maximum does.
__device__ __forceinline__ uint32_t max_magnitudes(uint32_t largest, const uint4& v) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        asm("max.bf16x2 %0, %0, %1;" : "+r"(largest) : "r"(words[i] & 0x7fff7fffu));
    }
    return largest;
}

__device__ __forceinline__ float larger_half(uint32_t pair) {
    const float2 halves = f32x2_from_bf16x2(pair);
    return fmaxf(halves.x, halves.y);
}

__device__ __forceinline__ float absmax_of_row(const uint4* row, uint32_t vectors) {
    uint32_t largest = 0;
#pragma unroll 4
    for (uint32_t vector = threadIdx.x; vector < vectors; vector += blockDim.x) largest = max_magnitudes(largest, row[vector]);
    return block_max(larger_half(largest));
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

// What is known of the quotients: nothing; that the divisor is ordinary; that they are finite too where x is, as those by
// a scale from the row's own ordinary maximum are.
enum class Quotients { any, ordinary, bounded };

// Without the sign, where it is zero.
template <Quotients quotients>
__device__ __forceinline__ float quotient(float x, const Divisor& by) {
    if (quotients == Quotients::any) return __fdiv_rn(x, by.scale);
    const float q0 = x * by.reciprocal;
    const float q1 = fmaf(fmaf(-q0, by.scale, x), by.reciprocal, q0);
    const float q2 = fmaf(fmaf(-q1, by.scale, x), by.reciprocal, q1);
    return quotients == Quotients::bounded || isfinite(q0) ? q2 : q0;
}

// Four elements to four codes, whose sum is added to `sum`.
template <Quotients quotients>
__device__ __forceinline__ uint32_t quantize_four(uint32_t low, uint32_t high, const Divisor& by, float& sum) {
    const float2 a = f32x2_from_bf16x2(low), b = f32x2_from_bf16x2(high);
    const uint32_t codes = e4m3x4_from_f32(quotient<quotients>(a.x, by), quotient<quotients>(a.y, by),
                                           quotient<quotients>(b.x, by), quotient<quotients>(b.y, by));
    const float2 c = f32x2_from_e4m3x2(static_cast<uint16_t>(codes));
    const float2 d = f32x2_from_e4m3x2(static_cast<uint16_t>(codes >> 16));
    sum += (c.x + c.y) + (d.x + d.y);
    // The scale is positive: each code has x's sign, also where it is zero.
    return codes | (__byte_perm(low, high, 0x7531) & 0x80808080u);
}

// Groups of 128 are known to the compiler, others are not.
constexpr uint32_t steps_of_128 = 4;

// The sum of a group over 2^steps neighbouring lanes, rounded once, from each lane's sum of 8 codes. Codes are multiples of
// 2^-9 of at most 448, so f32 holds sums of up to 64 exactly; that of 128 is one addition more, and 256 go as integers.
__device__ __forceinline__ float group_sum(float sum, uint32_t steps) {
    if (steps > 0) sum += __shfl_xor_sync(whole_warp, sum, 1);
    if (steps > 1) sum += __shfl_xor_sync(whole_warp, sum, 2);
    if (steps > 2) sum += __shfl_xor_sync(whole_warp, sum, 4);
    if (steps == 4) sum += __shfl_xor_sync(whole_warp, sum, 8);
    if (steps == 5) {
        int32_t units = __float2int_rn(sum * 512.0f);
        units += __shfl_xor_sync(whole_warp, units, 8);
        units += __shfl_xor_sync(whole_warp, units, 16);
        const bool nan = __any_sync(whole_warp, isnan(sum));
        sum = nan ? __int_as_float(0x7fffffff) : __int2float_rn(units) * 0x1p-9f;
    }
    return sum;
}

// Where a row's results go.
struct OutputRow {
    uint2* codes;
    float* group_sums;  // or null
    uint32_t vectors, steps;  // a group is 2^steps vectors
};

// One vector of every lane of a warp; `inside` where it has one.
template <Quotients quotients, bool by_128>
__device__ __forceinline__ void store_vector(const uint4& v, uint32_t vector, bool inside, const Divisor& by, const OutputRow& row) {
    float sum = 0.0f;
    uint2 packed;
    packed.x = quantize_four<quotients>(v.x, v.y, by, sum);
    packed.y = quantize_four<quotients>(v.z, v.w, by, sum);
    if (inside) row.codes[vector] = packed;
    if (!by_128 && row.group_sums == nullptr) return;
    const uint32_t steps = by_128 ? steps_of_128 : row.steps;
    sum = group_sum(sum, steps);
    if (inside && (vector & ((1u << steps) - 1)) == 0) row.group_sums[vector >> steps] = sum;
}

// A row by one block, read from memory.
template <Quotients quotients>
__device__ __forceinline__ void store_row(const uint4* x, const Divisor& by, const OutputRow& row) {
    // Whole warps go round together, so that the shuffles find all lanes.
    for (uint32_t first = threadIdx.x & ~31u; first < row.vectors; first += blockDim.x) {
        const uint32_t vector = first + threadIdx.x % 32;
        const bool inside = vector < row.vectors;
        store_vector<quotients, false>(inside ? x[vector] : make_uint4(0, 0, 0, 0), vector, inside, by, row);
    }
}

// A thread's part of a row.
template <int count>
struct Held {
    uint4 vectors[count];

    __device__ __forceinline__ void load(const uint4* x, uint32_t row_vectors) {
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const uint32_t vector = threadIdx.x + i * blockDim.x;
            vectors[i] = vector < row_vectors ? __ldcs(x + vector) : make_uint4(0, 0, 0, 0);
        }
    }

    __device__ __forceinline__ float absmax() const {
        uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < count; ++i) largest = max_magnitudes(largest, vectors[i]);
        return larger_half(largest);
    }

    template <Quotients quotients, bool by_128>
    __device__ __forceinline__ void store(const Divisor& by, const OutputRow& row) const {
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const uint32_t vector = threadIdx.x + i * blockDim.x;
            store_vector<quotients, by_128>(vectors[i], vector, vector < row.vectors, by, row);
        }
    }
};

}  // namespace peregrine
