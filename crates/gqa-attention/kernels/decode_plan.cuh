// What decode attention is asked for, and how the work is shared out: see decode.cuh for the drawing.
//
// All tiles (64 tokens, one page) of all items (sequence, kv_head, column tile) lie end to end on one line of places. Every
// block sums the line by itself from context_lens, so that a replayed graph follows lengths that change; nothing is planned
// on the host.
#pragma once
#include <cstdint>

#include <peregrine/sync.cuh>

namespace peregrine {

constexpr int page_tokens = 64;

struct DecodeArgs {
    const uint16_t* query;         // bf16 [tokens, query_heads, head_dim]
    const uint8_t* pages;          // [page][kv_head][K tile | V tile], device::KvLayout
    const uint32_t* block_table;   // [batch, max_pages]
    const uint32_t* context_lens;  // [batch], the query tokens included
    const uint32_t* query_starts;  // [batch + 1], or null: sequence b owns query tokens b * query_len ...
    const float* k_scale;          // [kv_heads], or null: 1
    const float* v_scale;          // [kv_heads], or null: 1
    const float* alibi_slopes;     // [query_heads], values of bf16; or null
    uint16_t* output;              // bf16, as query
    float* lse;                    // [tokens, query_heads], natural logarithm; or null
    uint32_t* finished;            // [gridDim.x], prefill's counters: zero before the first launch, every launch leaves zeros
    float* parts;                  // workspace, gridDim.x * columns * head_dim * 3 / 2: every launch leaves `absent` (decode_join.cuh)
    float* first_pieces;           // workspace, gridDim.x * workers * columns * (head_dim + 4)
    uint32_t batch, query_len, kv_heads, group_size;
    uint32_t max_pages;  // row stride of block_table
    uint32_t window;     // a token sees this many last tokens, itself included; 0: all
    float softmax_scale;
    // Not 0: lengths, tables and all pages before that of a sequence's first query token are older than the kernel before.
    uint32_t settled;
};
static_assert(sizeof(DecodeArgs) == 136);

struct Sequence {
    int context_len, query_start, query_len;
    uint32_t first_page, tiles, items, lead, column_tiles;
    // An item takes `lead` places more than it has tiles, in front of them: what its queries and its output cost. Blocks
    // with many short items then get fewer tiles than blocks with a long one. None in small batches, where all items are cut.
    __device__ __forceinline__ uint32_t places() const { return (tiles + lead) * items; }
};

// What memory says of a sequence.
struct Lengths {
    int context_len, query_start, query_len;
};
__device__ __forceinline__ Lengths load_lengths(const DecodeArgs& args, uint32_t index) {
    Lengths l{static_cast<int>(args.context_lens[index]), static_cast<int>(index * args.query_len), static_cast<int>(args.query_len)};
    if (args.query_starts) {
        l.query_start = args.query_starts[index];
        l.query_len = args.query_starts[index + 1] - l.query_start;
    }
    return l;
}

template <int columns>
__device__ __forceinline__ Sequence sequence_of(const DecodeArgs& args, Lengths l) {
    Sequence s;
    s.context_len = l.context_len, s.query_start = l.query_start, s.query_len = l.query_len;
    const int oldest = s.context_len - s.query_len + 1 - static_cast<int>(args.window);
    s.first_page = args.window && oldest > 0 ? oldest / page_tokens : 0;
    const uint32_t pages = (s.context_len + page_tokens - 1) / page_tokens;
    s.tiles = pages > s.first_page ? pages - s.first_page : 1;  // an empty sequence keeps one tile, all masked: zeros
    s.column_tiles = (static_cast<uint32_t>(s.query_len) * args.group_size + columns - 1) / columns;
    s.items = args.kv_heads * s.column_tiles;
    s.lead = args.batch > 16 ? 2 : 0;
    return s;
}

// Query token of a column; columns are (token, head of the group).
__device__ __forceinline__ int token_of(const DecodeArgs& args, int query_len, int column) {
    return query_len == 1 ? 0 : column / static_cast<int>(args.group_size);
}

// Walks the line forward.
template <int columns>
struct Walk {
    Sequence seq;
    uint32_t sequence, place, item, item_tile;  // place: the sequence's first; item_tile: the place of the item's first tile

    __device__ __forceinline__ void seek(const DecodeArgs& args, uint32_t to) {
        while (to - place >= seq.places()) {
            place += seq.places();
            seq = sequence_of<columns>(args, load_lengths(args, ++sequence));
        }
        item = (to - place) / (seq.tiles + seq.lead);
        item_tile = place + item * (seq.tiles + seq.lead) + seq.lead;
    }
};

// `total` places over `blocks` blocks: the first `longer` of them take each + 1, the others `each`. Or, where `item` says how many
// places an item has, equal items over `blocks` blocks each.
struct Split {
    uint32_t total, blocks, each, longer, item;
    __device__ __forceinline__ uint32_t begin(uint32_t block) const {
        if (item) return min(block / blocks * item + block % blocks * item / blocks, total);
        return block < blocks ? block * each + min(block, longer) : total;
    }
    __device__ __forceinline__ uint32_t block_of(uint32_t place) const {
        if (item) return place / item * blocks + ((place % item + 1) * blocks - 1) / item;
        const uint32_t bend = longer * (each + 1);
        return place < bend ? place / (each + 1) : longer + (place - bend) / each;
    }
};

// The items of a lone sequence: each on blocks of its own, as few as leave no worker more pages than all of them would.
template <int workers>
__device__ __forceinline__ Split split_alone(const Sequence& seq, uint32_t grid) {
    const uint32_t room = grid / seq.items, pages = (seq.tiles + workers * room - 1) / (workers * room);
    return Split{seq.tiles * seq.items, (seq.tiles + workers * pages - 1) / (workers * pages), 0, 0, seq.tiles};
}

// A worker's places of the line, and where they start.
template <int columns>
struct Share {
    Split split;
    uint32_t begin, end;
    Walk<columns> walk;
};

// What a block reads first is on its way to the L2 while the line is summed: the block table, from about where equal lengths would put
// the block, and the scales. Only a hint, so it may precede what is waited for.
__device__ __forceinline__ void prefetch_first(const DecodeArgs& args) {
    constexpr uint32_t line = 128 / sizeof(uint32_t);
    const uint32_t lane = threadIdx.x % 32;
    const float sequence = __fdividef(static_cast<float>(blockIdx.x) * static_cast<float>(args.batch), static_cast<float>(gridDim.x));
    const uint64_t entries = static_cast<uint64_t>(args.batch) * args.max_pages;
    const uint64_t entry = static_cast<uint64_t>(sequence) * args.max_pages + lane * line;
    if (entry < entries) asm volatile("prefetch.global.L2 [%0];" ::"l"(args.block_table + entry));
    if (lane == 0 && args.k_scale) asm volatile("prefetch.global.L2 [%0];" ::"l"(args.k_scale));
    if (lane == 0 && args.v_scale) asm volatile("prefetch.global.L2 [%0];" ::"l"(args.v_scale));
}

// The loading warps sum the line, a strip of sequences to a lane: all of them together, or, up to 32 sequences, each for itself.
// `warp_sum` and `start` are shared by the block's loading warps.
template <int columns, int workers>
__device__ __forceinline__ Share<columns> plan(const DecodeArgs& args, uint32_t worker, uint32_t barrier,
                                               uint32_t (&warp_sum)[workers], Walk<columns> (&start)[workers]) {
    constexpr uint32_t lanes = 32 * workers;
    const uint32_t lane = threadIdx.x % 32;
    Share<columns> share;
    Split& split = share.split;
    if (args.batch == 1) {
        const Sequence lone = sequence_of<columns>(args, load_lengths(args, 0));
        if (lone.items - 1 < gridDim.x) {
            split = split_alone<workers>(lone, gridDim.x);
            const uint32_t begin = split.begin(blockIdx.x), places = split.begin(blockIdx.x + 1) - begin;
            share.begin = begin + worker * places / workers, share.end = begin + (worker + 1) * places / workers;
            share.walk = Walk<columns>{lone, 0, 0, 0, 0};
            return share;
        }
    }
    const bool together = args.batch > 32;
    const uint32_t strip = together ? (args.batch + lanes - 1) / lanes : 1;
    const uint32_t low = min((together ? worker * 32 + lane : lane) * strip, args.batch), high = min(low + strip, args.batch);
    uint32_t sum = 0;
    Lengths first{};
    constexpr uint32_t batch = 8;  // loads that go out together
#pragma unroll 1
    for (uint32_t b = low; b < high; b += batch) {
        Lengths lengths[batch];
#pragma unroll
        for (uint32_t i = 0; i < batch; ++i) lengths[i] = load_lengths(args, min(b + i, args.batch - 1));
        if (b == low) first = lengths[0];
#pragma unroll
        for (uint32_t i = 0; i < batch; ++i)
            if (b + i < high) sum += sequence_of<columns>(args, lengths[i]).places();
    }
    uint32_t scan = sum;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const uint32_t other = __shfl_up_sync(~0u, scan, step);
        if (lane >= step) scan += other;
    }
    uint32_t total = __shfl_sync(~0u, scan, 31), before = 0;
    if (together) {
        if (lane == 31) warp_sum[worker] = scan;
        named_barrier_sync(barrier, lanes);
        total = 0;
#pragma unroll
        for (int w = 0; w < workers; ++w) {
            const uint32_t part = warp_sum[w];
            if (w < worker) before += part;
            total += part;
        }
    }
    split.item = 0, split.total = total, split.blocks = max(1u, min(gridDim.x, (total + workers - 1) / workers));
    split.each = total / split.blocks, split.longer = total - split.each * split.blocks;
    const uint32_t begin = split.begin(blockIdx.x), places = split.begin(blockIdx.x + 1) - begin;
    const auto worker_begin = [&](uint32_t w) { return begin + w * places / workers; };
    share.begin = worker_begin(worker), share.end = worker_begin(worker + 1);
    // The sequence that place `from` is in, by the lane that has it.
    const uint32_t inclusive = before + scan, exclusive = inclusive - sum;
    if (together) {
        for (int w = 0; w < workers; ++w) {
            const uint32_t from = worker_begin(w);
            if (from >= exclusive && from < inclusive) start[w].sequence = low, start[w].place = exclusive;
        }
        named_barrier_sync(barrier, lanes);
        // Within that lane's strip: a sequence to a lane.
        uint32_t index = start[worker].sequence, place = start[worker].place;
        for (bool found = false; !found && share.begin < total; index += 32) {
            const Lengths lengths = load_lengths(args, min(index + lane, args.batch - 1));
            const Sequence seq = sequence_of<columns>(args, lengths);
            uint32_t end = index + lane < args.batch ? seq.places() : 0;
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                const uint32_t other = __shfl_up_sync(~0u, end, step);
                if (lane >= step) end += other;
            }
            const uint32_t behind = __ballot_sync(~0u, share.begin < place + end);
            found = behind != 0;
            if (found && lane == __ffs(behind) - 1) start[worker] = Walk<columns>{seq, index + lane, place + end - seq.places(), 0, 0};
            place += __shfl_sync(~0u, end, 31);
        }
        __syncwarp();
        share.walk = start[worker];
    } else {
        const int holder = max(__ffs(__ballot_sync(~0u, share.begin < inclusive)) - 1, 0);
        const Lengths lengths{__shfl_sync(~0u, first.context_len, holder), __shfl_sync(~0u, first.query_start, holder),
                              __shfl_sync(~0u, first.query_len, holder)};
        share.walk = Walk<columns>{sequence_of<columns>(args, lengths), static_cast<uint32_t>(holder),
                                   __shfl_sync(~0u, exclusive, holder), 0, 0};
    }
    return share;
}

}  // namespace peregrine
