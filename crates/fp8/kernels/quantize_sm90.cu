// Entry points of fp8_quantize. Rows are shared out one block a token, 32 to 1024 threads, in whole warps; features are a multiple of 8, rows start at multiples of 16 bytes. See quantize.cuh for how a row is split.
#include "quantize.cuh"

using namespace peregrine;

struct Tensor {
    const uint16_t* x;
    uint8_t* codes;
    float* scales;
    float* group_sums;  // or null
    uint32_t features, group_shift;  // groups of 2^group_shift

    __device__ __forceinline__ const uint4* row(uint32_t token) const {
        return reinterpret_cast<const uint4*>(x + size_t(token) * features);
    }
    __device__ __forceinline__ OutputRow output(uint32_t token) const {
        const size_t first = size_t(token) * features;
        return {reinterpret_cast<uint2*>(codes + first), group_sums == nullptr ? nullptr : group_sums + (first >> group_shift),
                features / vector_elements, group_shift - 3};
    }
};

// Rows of at most `count` vectors a thread. `given`: the scales are there already; else they are max |x[t]| / 448, and are
// written.
template <int count, bool given>
__device__ __forceinline__ void quantize_held(const Tensor& tensor) {
    grid_wait_predecessor();
    grid_release_successor();
    const uint32_t token = blockIdx.x;
    Held<count> held;
    held.load(tensor.row(token), tensor.features / vector_elements);
    const float scale = given ? tensor.scales[token] : scale_from_absmax(block_max(held.absmax()));
    if (!given && threadIdx.x == 0) tensor.scales[token] = scale;
    const Divisor by = divisor(scale);
    const OutputRow output = tensor.output(token);
    constexpr Quotients usual = given ? Quotients::ordinary : Quotients::bounded;
    if (!by.ordinary) {
        held.template store<Quotients::any>(by, output);
        return;
    }
    if constexpr (count >= 4) {
        if (output.group_sums != nullptr && output.steps == 4) {
            held.template store_by_128<usual>(by, output);
            return;
        }
    }
    held.template store<usual>(by, output);
}

// Rows of any length, one a block.
template <bool given>
__device__ __forceinline__ void quantize_long(const Tensor& tensor) {
    grid_wait_predecessor();
    grid_release_successor();
    const uint32_t token = blockIdx.x;
    const uint4* row = tensor.row(token);
    const float scale = given ? tensor.scales[token] : scale_from_absmax(absmax_of_row(row, tensor.features / vector_elements));
    if (!given && threadIdx.x == 0) tensor.scales[token] = scale;
    const Divisor by = divisor(scale);
    if (by.ordinary) {
        store_row<Quotients::ordinary>(row, by, tensor.output(token));
    } else {
        store_row<Quotients::any>(row, by, tensor.output(token));
    }
}

// Registers for five blocks on a multiprocessor, or, where wide rows leave more to hold, for three of 256 or two of 448 threads.
#define QUANTIZE(NAME, THREADS, BLOCKS, BODY)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                  \
        NAME(const uint16_t* x, uint8_t* codes, float* scales, float* group_sums, uint32_t features,               \
             uint32_t group_shift) {                                                                               \
        BODY({x, codes, scales, group_sums, features, group_shift});                                               \
    }
QUANTIZE(quantize_per_token_1, 256, 4, (quantize_held<1, false>))
QUANTIZE(quantize_per_token_4, 256, 5, (quantize_held<4, false>))
QUANTIZE(quantize_per_token_8, 448, 2, (quantize_held<8, false>))
QUANTIZE(quantize_per_token_long, 1024, 1, quantize_long<false>)
QUANTIZE(quantize_by_scales_1, 256, 4, (quantize_held<1, true>))
QUANTIZE(quantize_by_scales_4, 256, 5, (quantize_held<4, true>))
QUANTIZE(quantize_by_scales_long, 1024, 1, quantize_long<true>)

// scales[t] = max |x[t]|: the first step of a scale for the whole tensor.
extern "C" __global__ void __launch_bounds__(1024) absmax_per_token(const uint16_t* x, float* scales, uint32_t features) {
    grid_wait_predecessor();
    const size_t first = size_t(blockIdx.x) * features;
    const float absmax = absmax_of_row(reinterpret_cast<const uint4*>(x + first), features / vector_elements);
    if (threadIdx.x == 0) scales[blockIdx.x] = absmax;
    grid_release_successor();
}

// The second step, one block: all scales become max(scales) / 448.
extern "C" __global__ void __launch_bounds__(1024) scale_of_tensor(float* scales, uint32_t tokens) {
    grid_wait_predecessor();
    float absmax = 0.0f;
    for (uint32_t token = threadIdx.x; token < tokens; token += blockDim.x) absmax = fmaxf(absmax, scales[token]);
    // block_max has a barrier between all reads of scales and the first write.
    const float scale = scale_from_absmax(block_max(absmax));
    for (uint32_t token = threadIdx.x; token < tokens; token += blockDim.x) scales[token] = scale;
    grid_release_successor();
}

// A given scale, for each token.
extern "C" __global__ void __launch_bounds__(1024) fill_scales(float* scales, uint32_t tokens, float scale) {
    grid_wait_predecessor();
    const uint32_t token = blockIdx.x * blockDim.x + threadIdx.x;
    if (token < tokens) scales[token] = scale;
    grid_release_successor();
}
