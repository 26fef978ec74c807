// The largest logit's token of each row; the lowest id among equals.
//
//     row:   [ head | 16-byte vectors ........................................ | tail ]
//              block 0 |  slice 0  |  slice 1  |  ...  one block each, a cluster | block 0
//
// A thread meets its tokens in the order of their ids, so a strict comparison keeps the lowest. Between threads, a logit and
// its id travel as one 64-bit key that grows with the logit and falls with the id: the maximum of keys is the answer,
// whatever the order of the reduction.
#pragma once
#include <cstdint>
#include <peregrine/fp8.cuh>
#include <peregrine/sync.cuh>

namespace sampling {

constexpr uint32_t no_token = 0xffffffffu;
constexpr uint64_t not_finite = ~0ull;

struct Bf16 {
    using Stored = uint16_t;
    static constexpr uint32_t per_vector = 8;
    static __device__ float widen(uint16_t x) { return peregrine::f32_from_bf16(x); }
    static __device__ void widen(uint4 v, float (&x)[8]) {
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[2 * i] = __uint_as_float(words[i] << 16);
            x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
};

struct F32 {
    using Stored = float;
    static constexpr uint32_t per_vector = 4;
    static __device__ float widen(float x) { return x; }
    static __device__ void widen(uint4 v, float (&x)[4]) {
        x[0] = __uint_as_float(v.x), x[1] = __uint_as_float(v.y);
        x[2] = __uint_as_float(v.z), x[3] = __uint_as_float(v.w);
    }
};

struct Best {
    float logit = -3.402823466e38f;
    uint32_t token = no_token;
    bool finite = true;

    // Callers meet tokens in rising order. The first may be the least finite number there is.
    __device__ __forceinline__ void meet(float x, uint32_t id) {
        finite &= fabsf(x) <= 3.402823466e38f;
        if (x > logit || token == no_token) logit = x, token = id;
    }

    // Integers order like floats once negative ones are turned over; adding 0 makes -0 the 0 it equals. No finite logit's
    // key comes near `not_finite`, and a thread without tokens has the least key, 0.
    __device__ __forceinline__ uint64_t key() const {
        if (!finite) return not_finite;
        if (token == no_token) return 0;
        const uint32_t bits = __float_as_uint(logit + 0.0f);
        const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
        return static_cast<uint64_t>(ordered) << 32 | ~token;
    }
};

__device__ __forceinline__ uint64_t max_key(uint64_t a, uint64_t b) { return a > b ? a : b; }

__device__ __forceinline__ uint64_t warp_max(uint64_t key) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        key = max_key(key, __shfl_xor_sync(0xffffffffu, key, distance));
    }
    return key;
}

// The largest key of the cluster, in every thread of its first block.
__device__ __forceinline__ uint64_t cluster_max(uint64_t key, uint32_t blocks) {
    __shared__ uint64_t slots[32];
    __shared__ uint64_t of_block;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    key = warp_max(key);
    if (lane == 0) slots[warp] = key;
    __syncthreads();
    key = warp_max(lane < blockDim.x / 32 ? slots[lane] : 0);
    if (blocks == 1) return key;
    if (threadIdx.x == 0) of_block = key;
    __syncwarp();
    peregrine::cluster_sync();
    uint64_t other = 0;
    if (lane < blocks) {
        const uint32_t local = static_cast<uint32_t>(__cvta_generic_to_shared(&of_block));
        asm volatile(
            "{\n .reg .u32 remote;\n mapa.shared::cluster.u32 remote, %1, %2;\n ld.shared::cluster.u64 %0, [remote];\n}"
            : "=l"(other)
            : "r"(local), "r"(lane)
            : "memory");
    }
    __syncwarp();
    // No block leaves while another may still read its slot.
    peregrine::cluster_sync();
    return warp_max(other);
}

template <class Type>
__device__ __forceinline__ void argmax(const typename Type::Stored* logits, uint32_t vocab_size, uint32_t slices,
                                       uint32_t* tokens) {
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    const uint32_t row = blockIdx.x / slices, slice = blockIdx.x % slices;
    const typename Type::Stored* start = logits + static_cast<size_t>(row) * vocab_size;

    const uint32_t past = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(start) % 16 / sizeof(*start));
    const uint32_t head = min(vocab_size, (Type::per_vector - past) % Type::per_vector);
    const uint32_t vectors = (vocab_size - head) / Type::per_vector;
    const uint32_t tail = head + vectors * Type::per_vector;

    Best best;
    if (slice == 0 && threadIdx.x < head) best.meet(Type::widen(start[threadIdx.x]), threadIdx.x);
    const uint4* body = reinterpret_cast<const uint4*>(start + head);
    // Four loads in flight a thread; blocks and threads interleave, so that a row's memory is asked for at once.
    const uint32_t stride = slices * blockDim.x;
    for (uint32_t first = slice * blockDim.x + threadIdx.x; first < vectors; first += 4 * stride) {
        uint4 packed[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint32_t vector = first + i * stride;
            packed[i] = vector < vectors ? body[vector] : uint4{};
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint32_t vector = first + i * stride;
            if (vector >= vectors) break;
            float x[Type::per_vector];
            Type::widen(packed[i], x);
#pragma unroll
            for (uint32_t j = 0; j < Type::per_vector; ++j) best.meet(x[j], head + vector * Type::per_vector + j);
        }
    }
    if (slice == 0 && threadIdx.x < vocab_size - tail) best.meet(Type::widen(start[tail + threadIdx.x]), tail + threadIdx.x);

    const uint64_t key = cluster_max(best.key(), slices);
    if (slice == 0 && threadIdx.x == 0) tokens[row] = key == not_finite ? no_token : ~static_cast<uint32_t>(key);
}

}  // namespace sampling
