// The MLP's activation of each row with the quantization behind: a row by the blocks of a cluster, one a slice, so that it stays
// in registers between its activation and its codes however long it is.
//
//     slices       [ warp 0 | warp 1 ]  [ warp 0 | warp 1 ]      each warp sends its largest magnitude to every block of
//                      └────────┬───────────┘                    its cluster
//     slots        [ s0 w0 | s0 w1 | s1 w0 | s1 w1 ]             of each block; an mbarrier there counts the bytes
//
// (The cluster's own barrier would order all that threads wrote and read before: a fence of a microsecond.)
//
// Where GELU is what a multiprocessor's issue slots are spent on, `gelu_rows` takes a third of its instructions:
//
//  - Where a row's largest x is at least 0.3, it has the largest gelu too, as gelu grows from there on and is nowhere below
//    -0.17. So the maximum is known before any gelu, the row is held as it came (bf16, twice as much a thread), and an
//    activation is made when its code is.
//  - A bf16 has so few magnitudes that the tails of all that matter are a table of 14 KB. Blocks make it while the kernel
//    before still runs, and go from row to row.
#pragma once
#include <peregrine/mbarrier.cuh>

#include "activation.cuh"

namespace layers {

constexpr uint32_t max_cluster = 8;
constexpr uint32_t max_warps = 16;  // of a block

// The cluster that a block belongs to, and all of them.
__device__ __forceinline__ uint32_t cluster_number() {
    uint32_t number;
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(number));
    return number;
}
__device__ __forceinline__ uint32_t cluster_count() {
    uint32_t count;
    asm("mov.u32 %0, %%nclusterid.x;" : "=r"(count));
    return count;
}

// Writes a word in block `rank` of the cluster, at this block's address of `slot`; it counts as 4 bytes on the barrier there.
__device__ __forceinline__ void send(uint32_t* slot, uint64_t* barrier, uint32_t rank, uint32_t word) {
    asm volatile(
        "{\n .reg .b32 remote_slot, remote_barrier;\n"
        " mapa.shared::cluster.u32 remote_slot, %0, %2;\n"
        " mapa.shared::cluster.u32 remote_barrier, %1, %2;\n"
        " st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [remote_slot], %3, [remote_barrier];\n}" ::"r"(
            peregrine::shared_address(slot)),
        "r"(peregrine::shared_address(barrier)), "r"(rank), "r"(word)
        : "memory");
}

// How the blocks of a cluster agree on a maximum, `rounds` times or, where there are two, over and over: a block that sends for
// the next but one has heard from all others for the next, so nobody reads what it overwrites.
template <int rounds>
struct Meeting {
    uint32_t slots[rounds][max_cluster * max_warps];
    uint64_t arrived[rounds];

    __device__ __forceinline__ void expect(uint32_t round, uint32_t slices) {
        if (threadIdx.x == 0) peregrine::barrier_expect_bytes(&arrived[round], slices * (blockDim.x / 32) * sizeof(uint32_t));
    }

    // In all threads; `ready` before the first maximum, when all of the cluster have begun.
    __device__ __forceinline__ void begin(uint32_t slices) {
        if (slices == 1) return;
        if (threadIdx.x == 0) {
            for (int round = 0; round < rounds; ++round) peregrine::barrier_init(&arrived[round], 1);
            peregrine::barrier_init_fence();
        }
        for (int round = 0; round < rounds; ++round) expect(round, slices);
        __syncwarp();
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    }
    __device__ __forceinline__ void ready(uint32_t slices) const {
        if (slices > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }

    // The largest of all threads' magnitudes in all slices. Magnitudes are in the order of their bits.
    __device__ __forceinline__ float maximum(uint32_t turn, uint32_t slices, float magnitude) {
        const uint32_t lane = threadIdx.x % 32, warps = blockDim.x / 32, round = turn % rounds;
        const uint32_t own = peregrine::cluster_block_rank() * warps + threadIdx.x / 32;
        const uint32_t bits = __reduce_max_sync(whole_warp, __float_as_uint(magnitude));
        if (slices > 1) {
            if (lane < slices) send(&slots[round][own], &arrived[round], lane, bits);
            peregrine::barrier_wait(&arrived[round], turn / rounds % 2);
            if (rounds > 1) expect(round, slices);
        } else {
            if (lane == 0) slots[round][own] = bits;
            __syncthreads();
        }
        uint32_t largest = 0;
        for (uint32_t i = lane; i < slices * warps; i += 32) largest = max(largest, slots[round][i]);
        return __uint_as_float(__reduce_max_sync(whole_warp, largest));
    }
};

template <Activation activation>
__device__ __forceinline__ void activate_quantize(const ActivationInput& input, uint8_t* codes, float* scales,
                                                  float* group_sums, uint32_t group_lanes) {
    __shared__ Meeting<1> meeting;
    meeting.begin(input.slices);
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    const uint32_t token = cluster_number(), slice = peregrine::cluster_block_rank();
    const uint32_t first = slice * (blockDim.x * thread_vectors);
    Vector y[thread_vectors];
    activated<activation>(input, token, first, y, [&] { meeting.ready(input.slices); });

    float largest = 0.0f;
#pragma unroll
    for (const Vector& v : y) largest = fmaxf(largest, absmax(v));
    const float scale = scale_of(meeting.maximum(0, input.slices, largest));
    const float reciprocal = __frcp_rn(scale);
    if (slice == 0 && threadIdx.x == 0) scales[token] = scale;

    const uint32_t vectors = input.features / vector_features;
    const QuantizedRow row = quantized_row(codes, group_sums, group_lanes, token, vectors);
    store_quantized(row, first + vector_of(0), vectors, reciprocal, [&](int i) { return y[i]; });
}

// ---- GELU from row to row ---------------------------------------------------------------------------------------

// normal_tail of the bf16 magnitudes from 2^-24, below which it is one half to the last place, to 16, from where on it is 0.
struct TailTable {
    static constexpr uint32_t first = (127 - 24) << 7, last = (127 + 4) << 7;
    float tails[last - first + 1];

    __device__ __forceinline__ void fill() {
        for (uint32_t bits = first + threadIdx.x; bits <= last; bits += blockDim.x) {
            tails[bits - first] = normal_tail(__uint_as_float(bits << 16));
        }
    }
    // Of two neighbouring bf16.
    __device__ __forceinline__ float2 of_pair(uint32_t pair) const {
        constexpr uint32_t both = 0x10001u;
        const uint32_t magnitudes = __vminu2(__vmaxu2(pair & 0x7fff7fffu, first * both), last * both);
        const uint32_t offsets = (magnitudes - first * both) * sizeof(float);
        const char* bytes = reinterpret_cast<const char*>(tails);
        return make_float2(*reinterpret_cast<const float*>(bytes + (offsets & 0xffffu)),
                           *reinterpret_cast<const float*>(bytes + (offsets >> 16)));
    }
    __device__ __forceinline__ Vector gelu_of(uint4 packed) const {
        const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
        Vector v = from_bf16(packed);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 tail = of_pair(words[i]);
            v.x[2 * i] = gelu_of_tail(v.x[2 * i], tail.x);
            v.x[2 * i + 1] = gelu_of_tail(v.x[2 * i + 1], tail.y);
        }
        return v;
    }
};

__device__ __forceinline__ uint32_t max_bf16x2(uint32_t a, uint32_t b) {
    uint32_t largest;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(largest) : "r"(a), "r"(b));
    return largest;
}

constexpr int long_vectors = 2 * thread_vectors;  // of a thread

// The largest magnitude among the gelus of a warp's vectors, or in each lane that of its own.
__device__ __forceinline__ float gelu_absmax(const TailTable& table, const uint4 (&x)[long_vectors]) {
    uint32_t most = 0;  // NaN and what is below zero leave it
#pragma unroll
    for (const uint4& v : x) most = max_bf16x2(most, max_bf16x2(max_bf16x2(v.x, v.y), max_bf16x2(v.z, v.w)));
    const uint32_t largest = __reduce_max_sync(whole_warp, max(most >> 16, most & 0xffffu)) << 16;
    if (largest >= __float_as_uint(0.3f) && largest < __float_as_uint(INFINITY)) return gelu(__uint_as_float(largest));
    float magnitude = 0.0f;
#pragma unroll
    for (const uint4& v : x) magnitude = fmaxf(magnitude, absmax(table.gelu_of(v)));
    return magnitude;
}

__device__ __forceinline__ void gelu_rows(const ActivationInput& input, uint32_t tokens, uint8_t* codes, float* scales,
                                          float* group_sums, uint32_t group_lanes) {
    __shared__ Meeting<2> meeting;
    __shared__ TailTable table;
    meeting.begin(input.slices);
    table.fill();
    __syncthreads();
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    const uint32_t slice = peregrine::cluster_block_rank();
    const uint32_t first = slice * (blockDim.x * long_vectors) + vector_of<long_vectors>(0);
    const uint32_t vectors = input.features / vector_features;
    uint32_t turn = 0;
    for (uint32_t token = cluster_number(); token < tokens; token += cluster_count(), ++turn) {
        const uint16_t* from = input.rows + static_cast<size_t>(token) * input.features;
        uint4 x[long_vectors];
#pragma unroll
        for (int i = 0; i < long_vectors; ++i) {
            const uint32_t vector = first + 32 * i;
            x[i] = vector < vectors ? load_packed(from, vector) : uint4{};
        }
        if (turn == 0) meeting.ready(input.slices);
        const float scale = scale_of(meeting.maximum(turn, input.slices, gelu_absmax(table, x)));
        const float reciprocal = __frcp_rn(scale);
        if (slice == 0 && threadIdx.x == 0) scales[token] = scale;
        const QuantizedRow row = quantized_row(codes, group_sums, group_lanes, token, vectors);
#pragma unroll
        for (int part = 0; part < long_vectors; part += thread_vectors) {
            store_quantized(row, first + 32 * part, vectors, reciprocal, [&](int i) { return table.gelu_of(x[part + i]); });
        }
    }
}

}  // namespace layers
