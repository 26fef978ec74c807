// Quantization of rows of bf16 to e4m3, a row at a time by one block.
//
//   row     [ 8 bf16 | 8 bf16 | ... ]   16-byte vectors; thread i takes vectors i, i + threads, i + 2 threads, ...
//   pass 1  largest magnitude: thread -> warp -> block            (left out where the scale is given)
//   pass 2  codes: 8 bytes a vector; a group of 8 .. 256 elements is 1 .. 32 neighbouring vectors, taken by as many
//           neighbouring lanes of one warp, which add up its codes by shuffles
//
// Rows of up to 8 vectors a thread are held in registers; longer ones are read twice, the second time from the caches. A
// block a row, and several on a multiprocessor: while one waits for its row others compute. (Blocks that go from row to
// row, the next one on its way, were a tenth slower.)
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

// Of magnitudes, which are in the order of their bits.
__device__ __forceinline__ float block_max(float value) {
    __shared__ uint32_t of_warp[32];
    const uint32_t bits = __reduce_max_sync(whole_warp, __float_as_uint(value));
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) of_warp[warp] = bits;
    __syncthreads();
    return __uint_as_float(__reduce_max_sync(whole_warp, lane < blockDim.x / 32 ? of_warp[lane] : 0u));
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

// Division of bf16 by one scale, many times. The hardware has no division: __fdiv_rn takes a reciprocal and a range check an
// element from units of an eighth of the multipliers' rate. Here the reciprocal r is taken once, and split in two, the upper
// part in 16 bits, so that its product with the 8 bits of x is exact:
//
//   q0 = x upper + x lower    q1 = q0 + r (x - q0 s)        each but the exact product a fused multiply-add
//
// q0 is within a unit in the last place (upper + lower is 1 / s to 2^-38), and then q1 is x / s correctly rounded
// (Markstein, IBM J. Res. Dev. 34, 1990), where no remainder underflows. `ordinary` says so of a scale: quotients of smaller
// x are below 2^-20, where every code is zero, of x's sign. Infinities and NaN leave by x upper (lower may be zero or negative).
struct Divisor {
    float scale, reciprocal, upper, lower;
    bool ordinary;
};

__device__ __forceinline__ Divisor divisor(float scale) {
    const float reciprocal = __frcp_rn(scale);
    const float upper = __uint_as_float(__float_as_uint(reciprocal) & 0xffffff00u);
    const float lower = fmaf(-upper, scale, 1.0f) * reciprocal;
    return {scale, reciprocal, upper, lower, scale > 0x1p-80f && scale < 0x1p80f};
}

// What is known of the quotients: nothing; that the divisor is ordinary; that they are finite too where x is, as those by
// a scale from the row's own ordinary maximum are.
enum class Quotients { any, ordinary, bounded };

// Without the sign, where it is zero.
template <Quotients quotients>
__device__ __forceinline__ float quotient(float x, const Divisor& by) {
    if (quotients == Quotients::any) return __fdiv_rn(x, by.scale);
    const float q0 = fmaf(x, by.lower, x * by.upper);
    const float q1 = fmaf(fmaf(-q0, by.scale, x), by.reciprocal, q0);
    return quotients == Quotients::bounded || isfinite(q0) ? q1 : x * by.upper;
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
    uint32_t vectors, steps;  // a group is 2^steps vectors: 4 for 128 codes
};

// One vector of every lane of a warp, `inside` where it has one. Returns the sum of its codes.
template <Quotients quotients>
__device__ __forceinline__ float store_codes(const uint4& v, uint32_t vector, bool inside, const Divisor& by, const OutputRow& row) {
    float sum = 0.0f;
    uint2 packed;
    packed.x = quantize_four<quotients>(v.x, v.y, by, sum);
    packed.y = quantize_four<quotients>(v.z, v.w, by, sum);
    if (inside) row.codes[vector] = packed;
    return sum;
}

__device__ __forceinline__ void store_sum(float sum, uint32_t vector, bool inside, const OutputRow& row) {
    if (row.group_sums == nullptr) return;
    sum = group_sum(sum, row.steps);
    if (inside && (vector & ((1u << row.steps) - 1)) == 0) row.group_sums[vector >> row.steps] = sum;
}

// One of two values of a lane and of its neighbour across `bit` of their numbers: lanes without the bit get the sum of both
// first ones, lanes with it of both second ones.
__device__ __forceinline__ float add_halves(float first, float second, uint32_t bit) {
    const bool upper = threadIdx.x & bit;
    const float sent = __shfl_xor_sync(whole_warp, upper ? first : second, bit);
    return (upper ? second : first) + sent;
}

// A row by one block, read from memory.
template <Quotients quotients>
__device__ __forceinline__ void store_row(const uint4* x, const Divisor& by, const OutputRow& row) {
    // Whole warps go round together, so that the shuffles find all lanes.
    for (uint32_t first = threadIdx.x & ~31u; first < row.vectors; first += blockDim.x) {
        const uint32_t vector = first + threadIdx.x % 32;
        const bool inside = vector < row.vectors;
        const uint4 v = inside ? x[vector] : make_uint4(0, 0, 0, 0);
        store_sum(store_codes<quotients>(v, vector, inside, by, row), vector, inside, row);
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

    template <Quotients quotients>
    __device__ __forceinline__ void store(const Divisor& by, const OutputRow& row) const {
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const uint32_t vector = threadIdx.x + i * blockDim.x;
            const bool inside = vector < row.vectors;
            store_sum(store_codes<quotients>(vectors[i], vector, inside, by, row), vector, inside, row);
        }
    }

    // The same with groups of 128, 16 lanes each. Four sums at a time: two exchanges leave a lane a quarter of vector
    // lane % 4's sum, two more the whole of it; 5 shuffles instead of 16.
    template <Quotients quotients>
    __device__ __forceinline__ void store_by_128(const Divisor& by, const OutputRow& row) const {
        static_assert(count % 4 == 0);
#pragma unroll
        for (int first = 0; first < count; first += 4) {
            float sums[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t vector = threadIdx.x + (first + i) * blockDim.x;
                sums[i] = store_codes<quotients>(vectors[first + i], vector, vector < row.vectors, by, row);
            }
            float sum = add_halves(add_halves(sums[0], sums[1], 1), add_halves(sums[2], sums[3], 1), 2);
            sum += __shfl_xor_sync(whole_warp, sum, 4);
            sum += __shfl_xor_sync(whole_warp, sum, 8);  // 128 codes: the one addition that rounds
            const uint32_t vector = threadIdx.x + (first + threadIdx.x % 4) * blockDim.x;
            if (threadIdx.x % 16 < 4 && vector < row.vectors) row.group_sums[vector / 16] = sum;
        }
    }
};

}  // namespace peregrine
