// Asynchronous bulk copies between global and shared memory (the tensor memory accelerator).
//
// One thread issues a copy of kilobytes; the engine moves it and reports the bytes on an mbarrier (loads) or in a bulk group
// (stores). Plain copies move contiguous bytes: addresses and sizes in multiples of 16. Tensor copies move a box of a tensor
// described by a CUtensorMap: coordinates are in elements, innermost first; what lies outside the tensor is read as zero
// and never written, so ragged edges need no code. With the 128-byte swizzle, 16-byte chunk c of row r lands at chunk
// c ^ (r % 8), which is the layout wgmma reads without bank conflicts; such buffers are aligned to 1024 bytes.
#pragma once
#include <cstdint>
#include <cuda.h>

#include "mbarrier.cuh"

namespace peregrine {

// L2 eviction priorities, in the encoding that createpolicy.fractional writes for a fraction of 1.
enum class CachePolicy : uint64_t {
    normal = 0x1000000000000000ull,
    evict_first = 0x12F0000000000000ull,  // streamed once: weights at small batch
    evict_last = 0x14F0000000000000ull,   // read by every block: activations
};

// The descriptor is a __grid_constant__ kernel parameter; fetching it early hides its first miss.
__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(map)) : "memory");
}

__device__ __forceinline__ void bulk_load(SharedAddress shared, const void* global, uint32_t bytes, SharedAddress barrier,
                                          CachePolicy policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared.value),
        "l"(global), "r"(bytes), "r"(barrier.value), "l"(static_cast<uint64_t>(policy))
        : "memory");
}

__device__ __forceinline__ void bulk_prefetch_l2(const void* global, uint32_t bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void tensor_load_2d(SharedAddress shared, const CUtensorMap* map, int32_t x, int32_t y,
                                               SharedAddress barrier, CachePolicy policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared.value),
        "l"(reinterpret_cast<uint64_t>(map)), "r"(x), "r"(y), "r"(barrier.value),
        "l"(static_cast<uint64_t>(policy))
        : "memory");
}

__device__ __forceinline__ void tensor_load_3d(SharedAddress shared, const CUtensorMap* map, int32_t x, int32_t y, int32_t z,
                                               SharedAddress barrier, CachePolicy policy) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared.value),
        "l"(reinterpret_cast<uint64_t>(map)), "r"(x), "r"(y), "r"(z), "r"(barrier.value),
        "l"(static_cast<uint64_t>(policy))
        : "memory");
}

__device__ __forceinline__ void tensor_load_4d(SharedAddress shared, const CUtensorMap* map, int32_t x, int32_t y, int32_t z,
                                               int32_t w, SharedAddress barrier, CachePolicy policy) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(shared.value),
        "l"(reinterpret_cast<uint64_t>(map)), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier.value),
        "l"(static_cast<uint64_t>(policy))
        : "memory");
}

// The same box into every block of the cluster named in block_mask, at the same shared offset; each of them gets the bytes
// reported on its own barrier at the same offset. One read of L2 then serves the whole cluster.
__device__ __forceinline__ void tensor_load_2d_multicast(SharedAddress shared, const CUtensorMap* map, int32_t x, int32_t y,
                                                         SharedAddress barrier, uint16_t block_mask, CachePolicy policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint"
        " [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(shared.value),
        "l"(reinterpret_cast<uint64_t>(map)), "r"(x), "r"(y), "r"(barrier.value), "h"(block_mask),
        "l"(static_cast<uint64_t>(policy))
        : "memory");
}

__device__ __forceinline__ void tensor_store_2d(const CUtensorMap* map, SharedAddress shared, int32_t x, int32_t y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(
                     reinterpret_cast<uint64_t>(map)),
                 "r"(x), "r"(y), "r"(shared.value)
                 : "memory");
}

__device__ __forceinline__ void bulk_store(void* global, SharedAddress shared, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
                 "r"(shared.value), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void bulk_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Returns when at most `pending` groups of the calling thread still *read* shared memory, so that it may be overwritten.
template <int pending>
__device__ __forceinline__ void bulk_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

// Returns when at most `pending` groups of the calling thread are not yet visible in global memory.
template <int pending>
__device__ __forceinline__ void bulk_store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace peregrine
