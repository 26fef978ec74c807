// Decode attention over a paged KV cache: a few query tokens a sequence, every head of a group at once.
//
//   work      sequences x kv_heads x column tiles = items; an item is a run of tiles of 64 tokens, one page each.
//             All tiles of all items, end to end, are one line, cut evenly whatever the lengths:
//
//     items     |------ 0 ------|-- 1 --|------------------ 2 ------------------|-- 3 --| ...
//     blocks    |     block 0     |     block 1     |     block 2     |     block 3     | ...   one to a multiprocessor
//     workers   | w0  | w1  | w2  | w0  | w1  | w2  | ...                       a warpgroup and a loading warp each
//
//   worker    S^T[64 tokens, columns] = K . Q^T,   P^T = 2^(S^T - maximum),   O^T[head_dim, columns] += V^T . P^T
//             columns = query tokens x heads of the group, padded to a multiple of 8. Tokens fill the 64 rows of the tensor
//             core, so that a group of 8 wastes nothing. The pages are stored so that one bulk copy lands in the layout
//             the tensor core reads (device::KvLayout): no tile passes through registers.
//
//     loading warp   page table -> | K | V | K | V | ... ring ...      queries of the next piece -> operand
//     worker                         S = K.Q -> maximum over 4 warps -> P to shared memory -> O += V.P
//
//   join      A piece that covers its item is written out by its worker. Other pieces leave (O, maximum, sum): the block
//             joins what its workers hold of an item, the last block to finish an item joins what the blocks left in
//             the workspace, and resets their counter (decode_join.cuh). The split, and with it the last bits of the
//             output, depends on the whole batch; for one batch every launch gives the same bits.
//
//   FP8 pages Q is two e4m3 terms under one scale (high + low), so that only K and V are coarse; P is e4m3 with its column
//             maximum at 2^8; row sums are taken over the rounded P, by a product with ones; and the products of a step
//             (64 or 128 tokens) are promoted to f32 registers, beyond which the short accumulation of FP8 products
//             never reaches.
#pragma once
#include <cstdint>

#include "decode_join.cuh"
#include "decode_load.cuh"
#include "decode_plan.cuh"
#include "decode_tile.cuh"

namespace peregrine {

// Column maxima over the rows of a warp, by a halving exchange among the 8 lanes that hold the same columns. A lane ends with
// the maxima of Tile::owned of its columns, from owned_base on.
template <class Tile>
__device__ __forceinline__ int owned_base(int lane) {
    int base = 0, count = Tile::padded;
#pragma unroll
    for (int bit = 16; bit >= 4; bit /= 2)
        if (count > 1) count /= 2, base += lane & bit ? count : 0;
    return base;
}
template <class Tile>
__device__ __forceinline__ void column_max(float (&v)[Tile::padded], int lane) {
    int count = Tile::padded;
#pragma unroll
    for (int bit = 16; bit >= 4; bit /= 2) {
        if (count > 1) {
            count /= 2;
#pragma unroll
            for (int i = 0; i < count; ++i) {
                const float send = lane & bit ? v[i] : v[i + count], keep = lane & bit ? v[i + count] : v[i];
                v[i] = fmaxf(keep, __shfl_xor_sync(~0u, send, bit));
            }
        } else {
            v[0] = fmaxf(v[0], __shfl_xor_sync(~0u, v[0], bit));
        }
    }
}

// Column of a thread's k-th pair of rows in a fragment, and of its i-th accumulator.
__device__ __forceinline__ int pair_column(int k, int lane) { return 8 * (k / 2) + 2 * (lane % 4) + k % 2; }
__device__ __forceinline__ int fragment_column(int i, int lane) { return 8 * (i / 4) + 2 * (lane % 4) + i % 2; }

// Slots of the last page that hold no token may hold anything, NaN included: 0 x NaN would reach every column.
template <class Tile>
__device__ __forceinline__ void clear_values(uint8_t* tile, int low, int high) {
    for (int i = threadIdx.x % 128; i < Tile::tile_bytes / 16; i += 128) {
        const int token = i / Tile::head_dim * Tile::chunk;
        if (token >= low && token + Tile::chunk <= high) continue;
        uint8_t* chunk = tile + 16 * i;
#pragma unroll
        for (int byte = 0; byte < 16; ++byte) {
            const int t = token + byte / Tile::Element::bytes;
            if (t < low || t >= high) chunk[byte] = 0;
        }
    }
}

// P^T from a fragment to operand B: [chunk of 16 bytes of tokens][column][16 bytes]. For e4m3 a thread's two rows are
// neighbouring tokens (KvLayout orders K's rows so), one 16-bit element of the transposing store.
template <class Tile>
__device__ __forceinline__ void store_weights(uint32_t weights, const float (&p)[Tile::columns / 2], int warp, int lane) {
    constexpr int matrices = Tile::columns / 8 * (Tile::fp8 ? 1 : 2);
    constexpr int step = 4 * 128 / (Tile::fp8 ? 1 : 2);  // bytes from four matrices to the next four
    uint32_t packed[matrices], address;
    if constexpr (Tile::fp8) {
#pragma unroll
        for (int j = 0; j < matrices; ++j) packed[j] = e4m3x4_from_f32(p[4 * j], p[4 * j + 2], p[4 * j + 1], p[4 * j + 3]);
        address = weights + (warp * Tile::columns + lane) * 16;
    } else {
#pragma unroll
        for (int j = 0; j < matrices; ++j) packed[j] = bf16x2_from_f32(p[2 * j], p[2 * j + 1]);
        address = weights + ((2 * warp + lane / 8 % 2) * Tile::columns + lane / 16 * 8 + lane % 8) * 16;
    }
#pragma unroll
    for (int j = 0; j < matrices / 4; ++j)
        store_transposed(address + j * step, packed[4 * j], packed[4 * j + 1], packed[4 * j + 2], packed[4 * j + 3]);
    constexpr int done = matrices / 4 * 4;
    if constexpr (matrices % 4 == 2) store_transposed(address + done / 4 * step, packed[done], packed[done + 1]);
    if constexpr (matrices % 4 == 1) store_transposed(address + done / 4 * step, packed[done]);
    static_assert(matrices % 4 != 3);
}

// What a warpgroup carries from step to step of a piece: O and the sums of its columns (as fragments), and the maxima of the
// columns that the lane owns (every warp keeps them all).
template <class Tile>
struct Running {
    float o[Tile::blocks][Tile::columns / 2], sum[Tile::values], top[Tile::owned];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < Tile::blocks; ++m)
#pragma unroll
            for (int i = 0; i < Tile::columns / 2; ++i) o[m][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < Tile::values; ++k) sum[k] = 0.0f;
#pragma unroll
        for (int k = 0; k < Tile::owned; ++k) top[k] = minus_infinity;
    }

    // To rows of a partial result.
    __device__ __forceinline__ void store(float* rows, float scale, int owned, int warp, int lane) const {
#pragma unroll
        for (int m = 0; m < Tile::blocks; ++m)
#pragma unroll
            for (int i = 0; i < Tile::columns / 2; ++i)
                rows[fragment_column(i, lane) * Tile::row + 64 * m + 16 * warp + lane / 4 + i / 2 % 2 * 8] = o[m][i];
        if (warp != 0) return;
#pragma unroll
        for (int k = 0; k < Tile::owned; ++k)
            if (owned + k < Tile::values)
                rows[pair_column(owned + k, lane) * Tile::row + Tile::head_dim] =
                    top[k] == minus_infinity ? minus_infinity : top[k] * scale;
        if (lane >= 4) return;
#pragma unroll
        for (int k = 0; k < Tile::values; ++k) rows[pair_column(k, lane) * Tile::row + Tile::head_dim + 1] = sum[k];
    }
};

// The slots of a step's K or V tiles in the ring. A last step of fewer pages computes on its first page in place of the absent
// ones, and masks them: no branch around products.
template <class Tile>
struct StepSlots {
    uint32_t slot[Tile::step_pages], parity[Tile::step_pages];

    __device__ __forceinline__ StepSlots(uint32_t first, uint32_t first_parity, int pages) {
#pragma unroll
        for (int p = 0; p < Tile::step_pages; ++p) {
            const uint32_t ahead = p < pages ? first + 2 * p : first;
            slot[p] = ahead < Tile::stages ? ahead : ahead - Tile::stages;
            parity[p] = ahead < Tile::stages ? first_parity : first_parity ^ 1;
        }
    }
    __device__ __forceinline__ void advance() {  // from K to V
#pragma unroll
        for (int p = 0; p < Tile::step_pages; ++p)
            if (++slot[p] == Tile::stages) slot[p] = 0, parity[p] ^= 1;
    }
    __device__ __forceinline__ void release(uint32_t empty, int pages) const {
#pragma unroll
        for (int p = 0; p < Tile::step_pages; ++p)
            if (p < pages) barrier_arrive(empty + 8 * slot[p]);
    }
};

template <class Tile>
__device__ __forceinline__ void consume(const DecodeArgs& args, typename Tile::Shared& shared, int worker, uint32_t begin,
                                        uint32_t end) {
    using Element = typename Tile::Element;
    constexpr int columns = Tile::columns, head_dim = Tile::head_dim, step_pages = Tile::step_pages, stages = Tile::stages;
    constexpr int query_steps = head_dim * Element::bytes / 32, value_steps = page_tokens * Element::bytes / 32;
    constexpr int row_step = Tile::fp8 ? 1 : 8;  // tokens from a thread's first row to its second
    typename Tile::Worker& my = shared.block.worker[worker];
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, owned = owned_base<Tile>(lane);
    const uint32_t keys = core_matrix_tile(shared.ring[worker], page_tokens), values = core_matrix_tile(shared.ring[worker], head_dim);
    const uint32_t full = shared_address(shared.full[worker]);
    const uint32_t empty = shared_address(shared.empty[worker]), weights = shared_address(my.weights);
    const uint32_t item_full = shared_address(shared.item_full[worker]), item_empty = shared_address(shared.item_empty[worker]);
    const uint32_t weights_operand = core_matrix_tile(weights, columns);
    uint32_t slot = 0, parity = 0, item_slot = 0, item_parity = 0;

    for (bool last = begin == end; !last;) {
        barrier_wait(item_full + 8 * item_slot, item_parity);
        const typename Tile::Item& item = my.item[item_slot];
        const typename Tile::Piece& piece = item.piece;
        if (piece.begin == piece.end) break;
        last = piece.last;
        const float scale = piece.scale;
        const uint32_t query_operand = core_matrix_tile(item.query, columns);
        // Tokens that every column sees, and tokens that some column sees.
        const int all_high = piece.context_len - piece.query_len + 1, any_high = piece.context_len;
        const int all_low = args.window ? max(0, any_high - static_cast<int>(args.window)) : 0;
        const int any_low = args.window ? max(0, all_high - static_cast<int>(args.window)) : 0;
        int position = (piece.first_page + piece.begin - piece.item) * page_tokens;
        int left = piece.end - piece.begin;
        Running<Tile> running;
        running.clear();

        for (; left > 0; left -= step_pages, position += step_pages * page_tokens) {
            const int pages = min(step_pages, left), step_end = position + pages * page_tokens;
            StepSlots<Tile> at(slot, parity, pages);

            float s[step_pages][columns / 2];
#pragma unroll
            for (int p = 0; p < step_pages; ++p) barrier_wait(full + 8 * at.slot[p], at.parity[p]);
            wgmma_fence();
#pragma unroll
            for (int term = 0; term < (Tile::fp8 ? 2 : 1); ++term)
#pragma unroll
                for (int k = 0; k < query_steps; ++k)
#pragma unroll
                    for (int p = 0; p < step_pages; ++p)
                        Element::template product<columns>(
                            s[p], core_matrix_descriptor(keys + at.slot[p] * (Tile::tile_bytes / 16) + k * (2 * page_tokens)),
                            core_matrix_descriptor(query_operand + term * (columns * head_dim / 16) + k * (2 * columns)), term + k != 0);
            wgmma_commit();
            wgmma_wait<0>();
            if (lane == 0) at.release(empty, pages);
            at.advance();

            const int row_token = position + 16 * warp + (Tile::fp8 ? 2 : 1) * (lane / 4);
            if (args.alibi_slopes) {
                const float slope_unit = args.softmax_scale * log2_e / scale;
#pragma unroll
                for (int i = 0; i < step_pages * columns / 2; ++i) {
                    const int p = i / (columns / 2), j = i % (columns / 2), n = fragment_column(j, lane);
                    const int token = row_token + p * page_tokens + j / 2 % 2 * row_step;
                    // Counted from the query's own bias: that leaves small numbers in the maxima.
                    const float own = alibi_bias(item.slope[n], item.visible[n].y - 1);
                    s[p][j] += (alibi_bias(item.slope[n], token) - own) * slope_unit;
                }
            }
            if (position < all_low || position + step_pages * page_tokens > min(all_high, step_end)) {
#pragma unroll
                for (int i = 0; i < step_pages * columns / 2; ++i) {
                    const int p = i / (columns / 2), j = i % (columns / 2);
                    const int2 visible = item.visible[fragment_column(j, lane)];
                    const int token = row_token + p * page_tokens + j / 2 % 2 * row_step;
                    if (token < visible.x || token >= min(visible.y, step_end)) s[p][j] = minus_infinity;
                }
            }

            float v[Tile::padded];
#pragma unroll
            for (int k = 0; k < Tile::padded; ++k) {
                const int i = k / 2 * 4 + k % 2;
                v[k] = k < Tile::values ? fmaxf(s[0][i], s[0][i + 2]) : minus_infinity;
                if (k >= Tile::values) continue;
#pragma unroll
                for (int p = 1; p < step_pages; ++p) v[k] = fmaxf(v[k], fmaxf(s[p][i], s[p][i + 2]));
            }
            column_max<Tile>(v, lane);
#pragma unroll
            for (int k = 0; k < Tile::owned; ++k)
                if (owned + k < Tile::values) my.warp_max[warp][pair_column(owned + k, lane)] = v[k];
            // Between two of these barriers every warp has read the maxima, the weights and the tiles of the step before.
            named_barrier_sync(1 + worker, 128);
#pragma unroll
            for (int k = 0; k < Tile::owned; ++k) {
                if (owned + k >= Tile::values) continue;
                const int n = pair_column(owned + k, lane);
                const float step_top = fmaxf(fmaxf(my.warp_max[0][n], my.warp_max[1][n]), fmaxf(my.warp_max[2][n], my.warp_max[3][n]));
                const float next = fmaxf(running.top[k], step_top), reference = next == minus_infinity ? 0.0f : next;
                my.bias[warp][n] = reference * scale - Tile::shift;
                my.decay[warp][n] = exp2_approx((running.top[k] - reference) * scale);
                running.top[k] = next;
            }
            __syncwarp();
#pragma unroll
            for (int j = 0; j < columns / 8; ++j) {
                const float2 bias = *reinterpret_cast<const float2*>(&my.bias[warp][8 * j + 2 * (lane % 4)]);
#pragma unroll
                for (int p = 0; p < step_pages; ++p)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        s[p][4 * j + i] = exp2_approx(s[p][4 * j + i] * scale - (i % 2 ? bias.y : bias.x));
            }
#pragma unroll
            for (int p = 0; p < step_pages; ++p)
                store_weights<Tile>(weights + p * static_cast<int>(sizeof(my.weights[0])), s[p], warp, lane);
#pragma unroll
            for (int p = 0; p < step_pages; ++p) {
                barrier_wait(full + 8 * at.slot[p], at.parity[p]);
                const int from = position + p * page_tokens;
                if (p < pages && (from < any_low || from + page_tokens > any_high))
                    clear_values<Tile>(shared.ring[worker][at.slot[p]], any_low - from, any_high - from);
            }
            fence_async_shared();
            named_barrier_sync(1 + worker, 128);

#pragma unroll
            for (int first = 0; first < Tile::blocks; first += Tile::round) {
                float product[Tile::round][columns / 2];
                wgmma_fence();
                if (first == 0) {  // sums of the rounded P, in every row, where S was
                    const uint32_t ones[4] = {Element::ones, Element::ones, Element::ones, Element::ones};
#pragma unroll
                    for (int k = 0; k < step_pages * value_steps; ++k)
                        Element::template product<columns>(s[0], ones, core_matrix_descriptor(weights_operand + k * (2 * columns)), k != 0);
                }
#pragma unroll
                for (int p = 0; p < step_pages; ++p)
#pragma unroll
                    for (int k = 0; k < value_steps; ++k)
#pragma unroll
                        for (int m = 0; m < Tile::round; ++m)
                            Element::template product<columns>(
                                product[m],
                                core_matrix_descriptor(values + at.slot[p] * (Tile::tile_bytes / 16) + (first + m) * 64 +
                                                       k * (2 * head_dim)),
                                core_matrix_descriptor(weights_operand + (p * value_steps + k) * (2 * columns)), p + k != 0);
                wgmma_commit();
                wgmma_wait<0>();
                if (first + Tile::round == Tile::blocks && lane == 0) at.release(empty, pages);
#pragma unroll
                for (int j = 0; j < columns / 8; ++j) {
                    const float2 decay = *reinterpret_cast<const float2*>(&my.decay[warp][8 * j + 2 * (lane % 4)]);
                    if (first == 0) {
                        running.sum[2 * j] = running.sum[2 * j] * decay.x + s[0][4 * j];
                        running.sum[2 * j + 1] = running.sum[2 * j + 1] * decay.y + s[0][4 * j + 1];
                    }
#pragma unroll
                    for (int i = 0; i < 4 * Tile::round; ++i) {
                        float& o = running.o[first + i / 4][4 * j + i % 4];
                        o = o * (i % 2 ? decay.y : decay.x) + product[i / 4][4 * j + i % 4];
                    }
                }
            }
            slot += 2 * pages;
            if (slot >= stages) slot -= stages, parity ^= 1;
        }

        const bool complete = piece.end - piece.begin == piece.tiles;
        // The last piece stays in shared memory; a first piece that others follow goes to the workspace.
        float* rows = complete || last ? my.partial
                                       : args.partials + static_cast<uint64_t>(2 * gridDim.x + blockIdx.x * Tile::workers + worker) *
                                                             Tile::partial_floats;
        running.store(rows, scale, owned, warp, lane);
        if (complete) {
            named_barrier_sync(1 + worker, 128);
            join<Tile, 1>(args, piece, [&](int) { return rows; }, 1, nullptr, thread, 128);
        } else if (thread == 0) {
            shared.block.piece[2 * worker + last] = piece;
            shared.block.piece[2 * worker + last].rows = rows;
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(item_empty + 8 * item_slot);
        if (++item_slot == Tile::items_ahead) item_slot = 0, item_parity ^= 1;
    }
}

template <class Tile>
__device__ __forceinline__ void decode(const DecodeArgs& args) {
    extern __shared__ __align__(128) uint8_t memory[];
    typename Tile::Shared& shared = *reinterpret_cast<typename Tile::Shared*>(memory);
    if (threadIdx.x < Tile::workers) {
        for (int i = 0; i < Tile::stages; ++i) {
            barrier_init(&shared.full[threadIdx.x][i], 1);
            barrier_init(&shared.empty[threadIdx.x][i], 4);
        }
        for (int i = 0; i < Tile::items_ahead; ++i) {
            barrier_init(&shared.item_full[threadIdx.x][i], 1);
            barrier_init(&shared.item_empty[threadIdx.x][i], 4);
        }
        barrier_init_fence();
    }
    if (threadIdx.x < 2 * Tile::workers) shared.block.piece[threadIdx.x].begin = shared.block.piece[threadIdx.x].end = 0;
    grid_wait_predecessor();
    const Split split = plan<Tile::columns, Tile::workers, Tile::threads>(args, shared.block.warp_sum, shared.block.start);
    grid_release_successor();
    const uint32_t begin = split.begin(blockIdx.x), places = split.begin(blockIdx.x + 1) - begin;
    if (places == 0) return;
    const bool loads = threadIdx.x >= Tile::workers * 128;
    const uint32_t worker = warp_uniform(loads ? (threadIdx.x - Tile::workers * 128) / 32 : threadIdx.x / 128);
    const uint32_t low = begin + worker * places / Tile::workers, high = begin + (worker + 1) * places / Tile::workers;
    if (loads) {
        if constexpr (Tile::workers == 4) registers_shrink<64>();  // four loading warps: a whole warpgroup
        produce<Tile>(args, shared, split, worker, low, high);
    } else {
        if constexpr (Tile::workers == 4) registers_grow<104>();
        consume<Tile>(args, shared, worker, low, high);
        finish<Tile>(args, shared.block);
    }
}

}  // namespace peregrine
