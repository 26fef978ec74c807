// Shared-memory barriers (mbarrier): how a producer that copies asynchronously tells consumers that bytes have landed,
// and how consumers hand a buffer back.
//
//   ring of stages, each with two barriers        producer                        consumer
//     full[s]   1 arrival + the bytes announced     wait(empty[s], !phase)          wait(full[s], phase)
//     empty[s]  one arrival per consumer warp       expect_bytes(full[s], n)        ... read stage s ...
//                                                   copies complete on full[s]      arrive(empty[s])
//
// A barrier flips its phase each time all its arrivals (and announced bytes) are in. `parity` names a phase by its lowest bit:
// wait(b, 0) returns once the first phase is over; on a fresh barrier wait(b, 1) returns at once, which is why producers
// start with the opposite parity.
#pragma once
#include <cstdint>

namespace peregrine {

// PTX addresses shared memory by a 32-bit offset in its own window, not by a generic pointer. Hot loops keep the offset:
// each conversion of a pointer to dynamic shared memory reads a slow special register (the block's rank in its cluster).
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
struct SharedAddress {
    uint32_t value;
    __device__ __forceinline__ SharedAddress(uint32_t offset) : value(offset) {}
    __device__ __forceinline__ SharedAddress(const void* pointer) : value(shared_address(pointer)) {}
};

__device__ __forceinline__ void barrier_init(SharedAddress barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier.value), "r"(arrivals) : "memory");
}

// The copy engine is another proxy: without this it may not see the barriers that one thread has just initialised.
// A __syncthreads (or a cluster barrier, if other blocks signal them) must follow before anyone else uses them.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(SharedAddress barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier.value) : "memory");
}

// Arrives on the barrier at the same offset in another block of the cluster: says that this thread has read what the other
// will overwrite. It publishes no writes to other blocks: an explicit release at cluster scope would, and is compiled to a fence of
// all of the thread's memory accesses, a microsecond.
__device__ __forceinline__ void barrier_arrive_remote(SharedAddress barrier, uint32_t block_rank) {
    asm volatile(
        "{\n .reg .b32 remote;\n"
        " mapa.shared::cluster.u32 remote, %0, %1;\n"
        " mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier.value),
        "r"(block_rank)
        : "memory");
}

// One arrival that also announces how many bytes the phase must receive from bulk copies before it is complete.
__device__ __forceinline__ void barrier_expect_bytes(SharedAddress barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier.value), "r"(bytes)
                 : "memory");
}

// Announces bytes without arriving: for a producer that issues one stage's copies at several places.
__device__ __forceinline__ void barrier_expect_more_bytes(SharedAddress barrier, uint32_t bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier.value), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ bool barrier_test(SharedAddress barrier, uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n .reg .pred p;\n"
        " mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        " selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier.value), "r"(parity)
        : "memory");
    return done != 0;
}

// try_wait already sleeps in hardware for a while, so the loop around it rarely spins.
__device__ __forceinline__ void barrier_wait(SharedAddress barrier, uint32_t parity) {
    asm volatile(
        "{\n .reg .pred p;\n"
        "again:\n"
        " mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        " @p bra done;\n"
        " bra again;\n"
        "done:\n}" ::"r"(barrier.value),
        "r"(parity)
        : "memory");
}

}  // namespace peregrine
