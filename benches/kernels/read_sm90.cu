// Reads all of a buffer and keeps nothing: the rate that any kernel's reads are held against.

#include <cstdint>

namespace {

// 128 bytes of every thread on their way at once: 32 MB on 132 multiprocessors of 2048 threads.
constexpr int kLoads = 8;

__device__ uint4 load_streaming(const uint4* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

}  // namespace

// `count` vectors of 16 bytes. `result` is written only where all of them together are one number that random data does
// not give: the reads have to be done to know.
extern "C" __global__ void __launch_bounds__(1024) read_all(const uint4* data, uint64_t count, uint32_t* result) {
  const uint64_t threads = uint64_t{gridDim.x} * blockDim.x;
  uint32_t sum = 0;
  for (uint64_t first = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; first < count; first += kLoads * threads) {
    uint4 values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const uint64_t at = first + i * threads;
      values[i] = at < count ? load_streaming(data + at) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      sum ^= values[i].x ^ values[i].y ^ values[i].z ^ values[i].w;
    }
  }
  if (sum == 0x9e3779b9u && threadIdx.x == blockDim.x - 1) {
    *result = sum;
  }
}
