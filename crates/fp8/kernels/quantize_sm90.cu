// Entry points of fp8_quantize. Rows are shared out one block a token, 32 to 1024 threads, in whole warps; features are a
// multiple of 8, rows start at multiples of 16 bytes. See quantize.cuh for how a row is split.
#include "quantize.cuh"

using namespace peregrine;

struct TokenRow {
    const uint4* x;
    uint2* codes;
    float* group_sums;
    uint32_t vectors;
};

__device__ __forceinline__ TokenRow row_of_block(const uint16_t* x, uint8_t* codes, float* group_sums,
                                                 uint32_t features, uint32_t group_size) {
    const size_t first = size_t(blockIdx.x) * features;
    return {reinterpret_cast<const uint4*>(x + first), reinterpret_cast<uint2*>(codes + first),
            group_sums == nullptr ? nullptr : group_sums + first / group_size, features / vector_elements};
}

// scales[t] = max |x[t]| / 448, then codes and group sums by it.
extern "C" __global__ void __launch_bounds__(1024)
    quantize_per_token(const uint16_t* x, uint8_t* codes, float* scales, float* group_sums, uint32_t features,
                       uint32_t group_size) {
    grid_wait_predecessor();
    const TokenRow row = row_of_block(x, codes, group_sums, features, group_size);
    const float scale = scale_from_absmax(absmax_of_row(row.x, row.vectors));
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
    store_row(row.x, scale, row.codes, row.group_sums, row.vectors, group_size);
    grid_release_successor();
}

// The same by scales that are there already.
extern "C" __global__ void __launch_bounds__(1024)
    quantize_by_scales(const uint16_t* x, uint8_t* codes, const float* scales, float* group_sums, uint32_t features,
                       uint32_t group_size) {
    grid_wait_predecessor();
    const TokenRow row = row_of_block(x, codes, group_sums, features, group_size);
    store_row(row.x, scales[blockIdx.x], row.codes, row.group_sums, row.vectors, group_size);
    grid_release_successor();
}

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
