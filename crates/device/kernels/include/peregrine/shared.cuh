// Ordinary loads and stores of shared memory by 32-bit address (see shared_address in mbarrier.cuh for why not by pointer).
// Volatile keeps them behind the barrier waits that precede them.
#pragma once
#include <cstdint>

#include "mbarrier.cuh"

namespace peregrine {

__device__ __forceinline__ uint4 shared_load_128(SharedAddress from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from.value));
    return v;
}
__device__ __forceinline__ uint2 shared_load_64(SharedAddress from) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from.value));
    return v;
}
__device__ __forceinline__ uint32_t shared_load_32(SharedAddress from) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(from.value));
    return v;
}
__device__ __forceinline__ uint32_t shared_load_8(SharedAddress from) {
    uint32_t v;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(from.value));
    return v;
}
__device__ __forceinline__ void shared_store_32(SharedAddress to, uint32_t value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to.value), "r"(value) : "memory");
}
__device__ __forceinline__ void shared_store_128(SharedAddress to, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to.value), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

}  // namespace peregrine
