// Random numbers by counting, bit for bit those of random.rs.
#pragma once
#include <cstdint>

namespace peregrine {

// 64 random bits: number `index` of sequence `seed`, as SplitMix64 mixes them.
__device__ __forceinline__ uint64_t random_bits(uint64_t seed, uint64_t index) {
    uint64_t x = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// A whole number, near normally distributed around 0: the sum of the four bytes less its mean.
__device__ __forceinline__ int near_normal(uint32_t bits) {
    return static_cast<int>(__vsadu4(bits, 0u)) - 510;
}

}  // namespace peregrine
