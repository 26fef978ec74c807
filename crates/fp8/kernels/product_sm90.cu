// What follows a product that was summed without scales:
//
//   y[t][n] = sums[t][n] * (scale_x[t] * scale_w[n]) + bias[n]
//
// Block (i, t) takes 4 * threads columns of row t, a vector of 4 a thread. sums and y may be the same memory.
#include <cstdint>

#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

using namespace peregrine;

__device__ __forceinline__ float4 scaled(const float* sums, const float* x_scales, const float* weight_scales,
                                         const uint16_t* bias, uint32_t vector, uint32_t vectors) {
    const float4 sum = reinterpret_cast<const float4*>(sums)[size_t(blockIdx.y) * vectors + vector];
    const float4 weight = reinterpret_cast<const float4*>(weight_scales)[vector];
    const float x = x_scales[blockIdx.y];
    float4 add = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (bias != nullptr) {
        const ushort4 b = reinterpret_cast<const ushort4*>(bias)[vector];
        add = make_float4(f32_from_bf16(b.x), f32_from_bf16(b.y), f32_from_bf16(b.z), f32_from_bf16(b.w));
    }
    return make_float4(fmaf(sum.x, x * weight.x, add.x), fmaf(sum.y, x * weight.y, add.y),
                       fmaf(sum.z, x * weight.z, add.z), fmaf(sum.w, x * weight.w, add.w));
}

extern "C" __global__ void __launch_bounds__(256)
    scale_to_bf16(const float* sums, const float* x_scales, const float* weight_scales, const uint16_t* bias,
                  uint16_t* y, uint32_t out_features) {
    grid_wait_predecessor();
    const uint32_t vectors = out_features / 4, vector = blockIdx.x * blockDim.x + threadIdx.x;
    if (vector < vectors) {
        const float4 v = scaled(sums, x_scales, weight_scales, bias, vector, vectors);
        const uint2 packed = make_uint2(bf16x2_from_f32(v.x, v.y), bf16x2_from_f32(v.z, v.w));
        reinterpret_cast<uint2*>(y)[size_t(blockIdx.y) * vectors + vector] = packed;
    }
    grid_release_successor();
}

extern "C" __global__ void __launch_bounds__(256)
    scale_to_f32(const float* sums, const float* x_scales, const float* weight_scales, const uint16_t* bias, float* y,
                 uint32_t out_features) {
    grid_wait_predecessor();
    const uint32_t vectors = out_features / 4, vector = blockIdx.x * blockDim.x + threadIdx.x;
    if (vector < vectors) {
        const float4 v = scaled(sums, x_scales, weight_scales, bias, vector, vectors);
        reinterpret_cast<float4*>(y)[size_t(blockIdx.y) * vectors + vector] = v;
    }
    grid_release_successor();
}
