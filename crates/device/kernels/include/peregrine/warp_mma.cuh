// Products of one warp: 16 x 8 results, 16 along the sum, f32 accumulators. Slower than a warpgroup's (about 6 clocks of a
// scheduler's tensor core each), but 8 columns waste nothing, and no warp waits for another.
//
// Lane 4g + q of a warp holds
//
//     a[0] row g      k 2q, 2q+1        a[2] row g      k 2q+8, 2q+9        b[0] k 2q, 2q+1     column g
//     a[1] row g + 8  k 2q, 2q+1        a[3] row g + 8  k 2q+8, 2q+9        b[1] k 2q+8, 2q+9   column g
//     d[0], d[1] row g, columns 2q, 2q+1         d[2], d[3] row g + 8
#pragma once
#include <cstdint>

#include "mbarrier.cuh"

namespace peregrine {

// d += a . b
__device__ __forceinline__ void warp_mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void warp_mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 rows of 16 bytes: lane 8m + r passes the address of row r of matrix m; lane 4g + q gets bytes
// 4q .. 4q + 3 of row g of each.
__device__ __forceinline__ void load_matrices(uint32_t (&matrix)[4], SharedAddress row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(row.value)
                 : "memory");
}

// Transposes an 8 x 8 matrix of 16-bit elements, two neighbours of row g in lane 4g + q.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t pair) {
    uint32_t transposed;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
    return transposed;
}

}  // namespace peregrine
