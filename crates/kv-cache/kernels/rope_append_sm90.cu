// Entry points of rope_append.cuh: grid [tokens, blocks that share a row], 256 threads.
#include "rope_append.cuh"

#define ENTRY(NAME, PAGE)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        NAME(const uint16_t* qkv, const float* inverse_frequencies, const uint32_t* block_tables,                      \
             const uint32_t* context_lens, const uint32_t* query_offsets, const float* key_scales,                     \
             const float* value_scales, uint16_t* queries, void* pool, const __grid_constant__ kv_cache::Shape shape) { \
        kv_cache::rope_append<kv_cache::PAGE>({qkv, inverse_frequencies, block_tables, context_lens, query_offsets,    \
                                               key_scales, value_scales, queries, pool},                               \
                                              shape);                                                                  \
    }

ENTRY(rope_append_bf16, Bf16Page)
ENTRY(rope_append_e4m3, E4m3Page)
