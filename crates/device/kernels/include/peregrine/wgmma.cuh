// Warpgroup matrix products of Hopper: D[64, N] += A[64, K] · B[K, N], accumulated in f32.
//
// Four consecutive warps (the first a multiple of 4) act as one; warp w owns rows 16w..16w+15 of D. The product runs
// asynchronously:
//
//     wgmma_fence()     registers of A and D written before are visible to the product
//     Wgmma<N>::...     any number of them, in order
//     wgmma_commit()    closes a group
//     wgmma_wait<n>()   returns when at most n groups still run; only then may A, B and D be touched
//
// Fragments of lane l (r = l / 4, t = l % 4) in warp w:
//
//     D: d[4j + 0..1] = D[16w + r][8j + 2t + 0..1]        d[4j + 2..3] = D[16w + r + 8][8j + 2t + 0..1]
//     A from registers, 32-bit words, each E = 4 (e4m3, K = 32) or 2 (bf16 and f16, K = 16) values along K:
//        a[0] = A[16w + r][E t ..]       a[1] = A[16w + r + 8][E t ..]
//        a[2] = A[16w + r][4E + E t ..]  a[3] = A[16w + r + 8][4E + E t ..]
//
// A and B in shared memory are named by descriptors. Both are K-major here (K contiguous, so B is stored [N][K]); the
// 16-bit types may also be MN-major, by template argument. e4m3 must be K-major.
#pragma once
#include <cstdint>

#include "mbarrier.cuh"

namespace peregrine {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Pins registers that a product will read or write, before wgmma_fence (or after wgmma_wait). What computes an A fragment is
// ordinary arithmetic that the compiler may sink below the fence; it then has to serialise the products (warning C7520).
// It does not keep an A fragment alive until the wait: where a branch lies between issue and wait, the assembler (13.0) has
// been seen to reuse the fragment's registers there. Write no fragments in between, unless the old ones have a later use.
template <int count>
__device__ __forceinline__ void wgmma_pin(uint32_t (&registers)[count]) {
#pragma unroll
    for (int i = 0; i < count; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}
template <int count>
__device__ __forceinline__ void wgmma_pin(float (&registers)[count]) {
#pragma unroll
    for (int i = 0; i < count; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// How rows of a tile lie in shared memory: `swizzle` bytes wide, 8 rows to a pattern that repeats every 8 * swizzle bytes.
enum class Swizzle : uint64_t { bytes_128 = 1, bytes_64 = 2, bytes_32 = 3 };

// Descriptor of a K-major tile whose rows are exactly one swizzle span wide and contiguous (what a tensor copy of that swizzle
// writes), aligned to 8 spans. The next K step of 32 bytes is descriptor + 2; 8 rows further is + (8 * span) / 16.
// For an MN-major 16-bit tile the same holds with K and rows exchanged: rows of K, one span of M or N wide; a tile wider
// than a span repeats after `repeat_bytes`.
//
//     bits  0..13 address / 16     16..29 repeat / 16     32..45 bytes between 8-row patterns / 16     62..63 swizzle
// Only the lower word depends on the address. A loop that keeps it uniform (warp_uniform in sync.cuh) and adds steps to it
// saves several instructions a product: products take descriptors from uniform registers.
template <Swizzle swizzle>
__device__ __forceinline__ uint32_t wgmma_descriptor_low(SharedAddress tile, uint32_t repeat_bytes = 16) {
    return ((tile.value & 0x3ffffu) >> 4) | ((repeat_bytes >> 4) << 16);
}
template <Swizzle swizzle>
__device__ __forceinline__ uint64_t wgmma_descriptor_from_low(uint32_t low) {
    constexpr uint32_t span = swizzle == Swizzle::bytes_128 ? 128 : swizzle == Swizzle::bytes_64 ? 64 : 32;
    constexpr uint32_t high = (8 * span >> 4) | (static_cast<uint32_t>(swizzle) << 30);
    return (static_cast<uint64_t>(high) << 32) | low;
}
template <Swizzle swizzle>
__device__ __forceinline__ uint64_t wgmma_descriptor(SharedAddress tile, uint32_t repeat_bytes = 16) {
    return wgmma_descriptor_from_low<swizzle>(wgmma_descriptor_low<swizzle>(tile, repeat_bytes));
}

// Wgmma<N> has, for each N in the table below (d: N / 2 accumulators; `accumulate` 0 overwrites D, 1 adds to it):
//     e4m3(d, a, b, accumulate)         A in 4 registers          e4m3(d, desc_a, b, accumulate)     A in shared memory
//     bf16<trans_b>(...), f16<trans_b>(...)                       bf16<trans_a, trans_b>(...), f16<trans_a, trans_b>(...)
template <int n>
struct Wgmma;

// Register lists "%0,...,%(count - 1)" and their operands; each list extends the one before.
#define PEREGRINE_R4 "%0,%1,%2,%3"
#define PEREGRINE_R8 PEREGRINE_R4 ",%4,%5,%6,%7"
#define PEREGRINE_R12 PEREGRINE_R8 ",%8,%9,%10,%11"
#define PEREGRINE_R16 PEREGRINE_R12 ",%12,%13,%14,%15"
#define PEREGRINE_R24 PEREGRINE_R16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define PEREGRINE_R32 PEREGRINE_R24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define PEREGRINE_R48 PEREGRINE_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define PEREGRINE_R64 PEREGRINE_R48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define PEREGRINE_R96 PEREGRINE_R64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
    ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define PEREGRINE_R128 PEREGRINE_R96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
    ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

#define PEREGRINE_D(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PEREGRINE_D4 PEREGRINE_D(0)
#define PEREGRINE_D8 PEREGRINE_D4, PEREGRINE_D(4)
#define PEREGRINE_D12 PEREGRINE_D8, PEREGRINE_D(8)
#define PEREGRINE_D16 PEREGRINE_D12, PEREGRINE_D(12)
#define PEREGRINE_D24 PEREGRINE_D16, PEREGRINE_D(16), PEREGRINE_D(20)
#define PEREGRINE_D32 PEREGRINE_D24, PEREGRINE_D(24), PEREGRINE_D(28)
#define PEREGRINE_D48 PEREGRINE_D32, PEREGRINE_D(32), PEREGRINE_D(36), PEREGRINE_D(40), PEREGRINE_D(44)
#define PEREGRINE_D64 PEREGRINE_D48, PEREGRINE_D(48), PEREGRINE_D(52), PEREGRINE_D(56), PEREGRINE_D(60)
#define PEREGRINE_D96 PEREGRINE_D64, PEREGRINE_D(64), PEREGRINE_D(68), PEREGRINE_D(72), PEREGRINE_D(76), \
    PEREGRINE_D(80), PEREGRINE_D(84), PEREGRINE_D(88), PEREGRINE_D(92)
#define PEREGRINE_D128 PEREGRINE_D96, PEREGRINE_D(96), PEREGRINE_D(100), PEREGRINE_D(104), PEREGRINE_D(108), \
    PEREGRINE_D(112), PEREGRINE_D(116), PEREGRINE_D(120), PEREGRINE_D(124)

// One product with A in registers (operands i0..i3), B's descriptor i4, the accumulate flag i5 and, for 16-bit types, whether
// B is MN-major i6. PTX wants the flag as a predicate.
#define PEREGRINE_WGMMA_RS(SHAPE, LIST, TAIL, OPERANDS, i0, i1, i2, i3, i4, i5, EXTRA)                                   \
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " i5 ", 0;\n wgmma.mma_async.sync.aligned." SHAPE " {" LIST "}, {"  \
                 i0 "," i1 "," i2 "," i3 "}, " i4 ", p, 1, 1" TAIL ";\n}"                                                \
                 : OPERANDS                                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate) EXTRA)

// The same with A's descriptor i0, B's i1, the flag i2.
#define PEREGRINE_WGMMA_SS(SHAPE, LIST, TAIL, OPERANDS, i0, i1, i2, EXTRA)                                               \
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " i2 ", 0;\n wgmma.mma_async.sync.aligned." SHAPE " {" LIST "}, "   \
                 i0 ", " i1 ", p, 1, 1" TAIL ";\n}"                                                                      \
                 : OPERANDS                                                                                              \
                 : "l"(a), "l"(b), "r"(accumulate) EXTRA)

#define PEREGRINE_COMMA ,
#define PEREGRINE_WGMMA_16BIT(NAME, N, C, i0, i1, i2, i3, i4, i5, i6)                                                    \
    template <int trans_b = 0>                                                                                           \
    static __device__ __forceinline__ void NAME(float (&d)[C], const uint32_t (&a)[4], uint64_t b, int accumulate) {     \
        PEREGRINE_WGMMA_RS("m64n" #N "k16.f32." #NAME "." #NAME, PEREGRINE_R##C, ", " i6, PEREGRINE_D##C, i0, i1, i2,   \
                           i3, i4, i5, PEREGRINE_COMMA "n"(trans_b));                                                    \
    }                                                                                                                    \
    template <int trans_a = 0, int trans_b = 0>                                                                          \
    static __device__ __forceinline__ void NAME(float (&d)[C], uint64_t a, uint64_t b, int accumulate) {                 \
        PEREGRINE_WGMMA_SS("m64n" #N "k16.f32." #NAME "." #NAME, PEREGRINE_R##C, ", " i3 ", " i4, PEREGRINE_D##C, i0,   \
                           i1, i2, PEREGRINE_COMMA "n"(trans_a) PEREGRINE_COMMA "n"(trans_b));                           \
    }

#define PEREGRINE_WGMMA(N, C, i0, i1, i2, i3, i4, i5, i6)                                                                \
    template <>                                                                                                          \
    struct Wgmma<N> {                                                                                                    \
        static constexpr int accumulators = C;                                                                           \
        static __device__ __forceinline__ void e4m3(float (&d)[C], const uint32_t (&a)[4], uint64_t b, int accumulate) { \
            PEREGRINE_WGMMA_RS("m64n" #N "k32.f32.e4m3.e4m3", PEREGRINE_R##C, "", PEREGRINE_D##C, i0, i1, i2, i3, i4,    \
                               i5, );                                                                                    \
        }                                                                                                                \
        static __device__ __forceinline__ void e4m3(float (&d)[C], uint64_t a, uint64_t b, int accumulate) {             \
            PEREGRINE_WGMMA_SS("m64n" #N "k32.f32.e4m3.e4m3", PEREGRINE_R##C, "", PEREGRINE_D##C, i0, i1, i2, );         \
        }                                                                                                                \
        PEREGRINE_WGMMA_16BIT(bf16, N, C, i0, i1, i2, i3, i4, i5, i6)                                                    \
        PEREGRINE_WGMMA_16BIT(f16, N, C, i0, i1, i2, i3, i4, i5, i6)                                                     \
    };

// N, accumulators, and the operand numbers that follow them.
PEREGRINE_WGMMA(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
PEREGRINE_WGMMA(16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
PEREGRINE_WGMMA(24, 12, "%12", "%13", "%14", "%15", "%16", "%17", "%18")
PEREGRINE_WGMMA(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
PEREGRINE_WGMMA(48, 24, "%24", "%25", "%26", "%27", "%28", "%29", "%30")
PEREGRINE_WGMMA(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
PEREGRINE_WGMMA(96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
PEREGRINE_WGMMA(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
PEREGRINE_WGMMA(192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
PEREGRINE_WGMMA(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

}  // namespace peregrine
