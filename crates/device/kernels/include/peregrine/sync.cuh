// Ordering among threads, warps, blocks, grids and memory proxies; register budgets of warp-specialised kernels.
#pragma once
#include <cstdint>

namespace peregrine {

// Shared memory written by ordinary stores becomes visible to wgmma and to the copy engine only after this fence in each
// writing thread, followed by a barrier.
__device__ __forceinline__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier among `threads` threads of the block (a multiple of 32) that leaves the others alone. Name 0 is __syncthreads.
__device__ __forceinline__ void named_barrier_sync(uint32_t name, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// Signals a named barrier without waiting at it: one half of an ordered hand-over between warpgroups.
__device__ __forceinline__ void named_barrier_arrive(uint32_t name, uint32_t threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// Registers move between warpgroups: a copying warpgroup needs few, an accumulating one many. Every warp of the warpgroup
// calls it; the kernel needs __launch_bounds__ so that the budget at entry is known. Multiples of 8 from 24 to 240.
template <uint32_t registers>
__device__ __forceinline__ void registers_grow() {
    static_assert(registers % 8 == 0 && registers >= 24 && registers <= 240);
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <uint32_t registers>
__device__ __forceinline__ void registers_shrink() {
    static_assert(registers % 8 == 0 && registers >= 24 && registers <= 240);
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// Tells the compiler that a value is the same in the whole warp: a reduction's result lies in a uniform register, so that what
// is computed from it (loop bounds, wgmma descriptors) stays in the uniform datapath instead of crossing over at each use.
__device__ __forceinline__ uint32_t warp_uniform(uint32_t value) { return __reduce_or_sync(0xffffffffu, value); }

// Programmatic dependent launch: a kernel launched with that attribute starts while its predecessor drains. Nothing the
// predecessor wrote may be read, and nothing it reads may be written, before grid_wait_predecessor. Both do nothing in
// an ordinary launch.
__device__ __forceinline__ void grid_wait_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void grid_release_successor() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

__device__ __forceinline__ uint32_t cluster_block_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// After barrier_init_fence: the barriers of all blocks of the cluster are ready for all. Orders nothing else, so it is cheap.
__device__ __forceinline__ void cluster_sync_barriers() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// cluster_sync where the threads of a warp may have come apart: at the end of a kernel whose warps have different roles.
__device__ __forceinline__ void cluster_sync_divergent() {
    asm volatile("barrier.cluster.arrive.release;\n barrier.cluster.wait.acquire;" ::: "memory");
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Flags in global memory between blocks: what a block wrote (and what a block barrier ordered before) is visible to whoever
// acquires the flag it released.
__device__ __forceinline__ void flag_release(uint32_t* flag, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t flag_acquire(const uint32_t* flag) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}
__device__ __forceinline__ uint32_t flag_add_acq_rel(uint32_t* flag, uint32_t value) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(flag), "r"(value) : "memory");
    return before;
}

}  // namespace peregrine
