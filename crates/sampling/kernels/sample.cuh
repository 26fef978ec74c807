// A token for each row of logits, by all the options of `Params`. A block treats a row:
//
//     logits ─► finite? largest ─► [log-softmax] ─► [penalties, bias] ─► largest ─► [top-k] ─► [top-p] ─► [min-p] ─► draw
//
// Nothing is sorted. Logits as keys (unsigned integers in the same order) have a threshold: kept are keys above it, and of
// those equal to it the ids up to a cutoff. Top-k and top-p find it digit by digit, from histograms over 2048 buckets, of
// counts for top-k and of weights for top-p:
//
//     key:  [ 11 bits | 11 bits | 10 bits ]     a pass each over the keys that agree with the digits found so far
//
// The draw walks the kept weights in the order of ids: each warp sums a 32nd of the row, the one where the running sum passes
// the target is cut into 32 again, until one warp's lanes hold what is left.
//
// Weights exp((logit - largest) / temperature) are computed in f64 and rounded to whole multiples of 2^-scale_bits, so that their
// sums are the same in whatever order threads meet them: 2^scale_bits times the vocabulary fits 62 bits.
#pragma once
#include <cstdint>
#include <peregrine/sync.cuh>

namespace sampling {

constexpr uint32_t kNoToken = 0xffffffffu;
constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kBuckets = 2048;
constexpr int kSliceTokens = 8192;  // of the vocabulary, whose occurrences are counted at a time
constexpr float kLargest = 3.402823466e38f;
constexpr uint32_t kNan = 0x7fc00000u;
constexpr uint64_t kNotFinite = ~0ull;  // above the key of any finite logit
constexpr uint32_t kAtOnce = 6;

// Options of a row, as `RowParams` of batch.rs.
struct RowParams {
    uint64_t seed, draw;
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t top_k;
    uint32_t logprob;  // 1: wanted
};

// Lists of all rows, one behind the other: row r has entries offsets[r] .. offsets[r + 1].
struct Batch {
    float* logits;                     // [rows, vocab_size]; changed while penalties and bias count, then put back
    float* saved;                      // [history_len + bias_len]: the logits of listed tokens as they were
    const RowParams* params;           // [rows]
    const uint32_t* history;           // token ids
    const uint32_t* history_offsets;   // [rows + 1]
    const uint32_t* prompt_lens;       // [rows]: how many of the history are the prompt's
    const uint32_t* bias_tokens;       // token ids
    const float* bias_values;
    const uint32_t* bias_offsets;      // [rows + 1]
    uint32_t* tokens;                  // [rows]
    float* logprobs;                   // [rows]
    uint32_t vocab_size, history_len, bias_len, scale_bits;
};

struct Shared {
    unsigned long long sums[kWarps];
    union {
        struct {
            uint32_t low[kBuckets], high[kBuckets];
        } buckets;
        uint32_t counts[kSliceTokens];  // bit 31: occurs; below: how often in the text
    };
};

// Shared memory adds 32 bits at a time (64 would be a loop of compare and swap): the carry goes to the upper half.
__device__ __forceinline__ void add_to_bucket(Shared& shared, uint32_t bucket, uint64_t amount) {
    const uint32_t low = static_cast<uint32_t>(amount);
    const uint32_t carry = atomicAdd(&shared.buckets.low[bucket], low) > ~low;
    const uint32_t high = static_cast<uint32_t>(amount >> 32) + carry;
    if (high > 0) atomicAdd(&shared.buckets.high[bucket], high);
}
__device__ __forceinline__ uint64_t bucket_sum(const Shared& shared, uint32_t bucket) {
    return static_cast<uint64_t>(shared.buckets.high[bucket]) << 32 | shared.buckets.low[bucket];
}

__device__ __forceinline__ uint32_t key_of(float logit) {
    const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 becomes the 0 it equals
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// ---- Over the block -----------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint64_t block_max(uint64_t value, Shared& shared) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            const uint64_t other = __shfl_xor_sync(0xffffffffu, value, distance);
            value = other > value ? other : value;
        }
        if (step == 1) break;
        if (lane == 0) shared.sums[threadIdx.x / 32] = value;
        __syncthreads();
        value = shared.sums[lane];
    }
    __syncthreads();
    return value;
}

__device__ __forceinline__ uint64_t warp_scan(uint64_t value) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const uint64_t lower = __shfl_up_sync(0xffffffffu, value, distance);
        if (lane >= distance) value += lower;
    }
    return value;
}

struct Found {
    uint32_t index;   // the first one at which the running sum of values exceeds the target
    uint64_t before;  // the running sum up to it
};

// `target` is asked once, with the sum of all values, which must exceed what it answers.
template <class Value, class Target>
__device__ __forceinline__ Found find(uint32_t count, Shared& shared, Value value, Target target) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t first = 0;
    uint64_t before = 0, goal = 0;
    bool asked = false;
    do {
        const uint32_t part = (count + 1023) / 1024 * 32;
        const uint32_t end = first + min(count, (warp + 1) * part);
        uint64_t sum = 0;
        // Several loads in flight.
        for (uint32_t i = first + warp * part + lane; i < end; i += 32 * kAtOnce) {
#pragma unroll
            for (uint32_t j = 0; j < kAtOnce; ++j) {
                if (i + 32 * j < end) sum += value(i + 32 * j);
            }
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        if (lane == 0) shared.sums[warp] = sum;
        __syncthreads();
        sum = shared.sums[lane];
        const uint64_t running = warp_scan(sum);
        if (!asked) goal = target(__shfl_sync(0xffffffffu, running, 31));
        asked = true;
        const int at = max(__ffs(__ballot_sync(0xffffffffu, before + running > goal)) - 1, 0);
        before += __shfl_sync(0xffffffffu, running - sum, at);
        first += at * part;
        count = min(part, count - min(count, at * part));
        __syncthreads();
    } while (count > 32);
    const uint64_t own = lane < count ? value(first + lane) : 0;
    const uint64_t running = warp_scan(own);
    const int at = max(__ffs(__ballot_sync(0xffffffffu, before + running > goal)) - 1, 0);
    return {first + at, before + __shfl_sync(0xffffffffu, running - own, at)};
}

// ---- One row ------------------------------------------------------------------------------------------------------------

struct Weight {
    double largest, per_temperature, scale;
    __device__ __forceinline__ double exact(float logit) const { return exp((static_cast<double>(logit) - largest) * per_temperature); }
    __device__ __forceinline__ uint64_t operator()(float logit) const {
        return static_cast<uint64_t>(__double2ll_rn(exact(logit) * scale));
    }
};

// Kept are keys above `key`, and of those equal to it the ids up to `last_id`.
struct Threshold {
    uint32_t key = 0, last_id = 0xffffffffu;
    __device__ __forceinline__ bool keeps(uint32_t other, uint32_t id) const { return other > key || (other == key && id <= last_id); }
};

struct Row {
    const float* logits;  // not const __restrict__: they change between passes
    uint32_t vocab_size;
    Shared& shared;

    template <class Each>
    __device__ __forceinline__ void each(Each run) const {
        for (uint32_t first = threadIdx.x; first < vocab_size; first += kThreads * kAtOnce) {
            float loaded[kAtOnce];
#pragma unroll
            for (uint32_t i = 0; i < kAtOnce; ++i) {
                const uint32_t id = first + i * kThreads;
                loaded[i] = id < vocab_size ? logits[id] : 0.0f;
            }
#pragma unroll
            for (uint32_t i = 0; i < kAtOnce; ++i) {
                const uint32_t id = first + i * kThreads;
                if (id < vocab_size) run(id, loaded[i]);
            }
        }
    }

    // The largest key over the lowest id that has it, as one number; kNotFinite where a logit is not.
    __device__ __forceinline__ uint64_t largest() const {
        uint64_t best = 0;
        each([&](uint32_t id, float logit) {
            const bool finite = fabsf(logit) <= kLargest;
            const uint64_t ranked = finite ? static_cast<uint64_t>(key_of(logit)) << 32 | ~id : kNotFinite;
            best = ranked > best ? ranked : best;
        });
        return block_max(best, shared);
    }

    // Narrows `kept` to the fewest first ranks whose values reach what `need` answers to their sum. `value` gives that of one
    // kept token; equal keys have equal values.
    template <class Value, class Need>
    __device__ __forceinline__ void narrow(Threshold& kept, Value value, Need need) const {
        uint32_t key = 0;
        uint64_t above = 0, needed = 0, all_equal = 0;
        // Of the threshold's own key the kept ones are few by id: they are counted, and added as one.
        uint64_t equals = 0;
        if (kept.key > 0) {
            const auto is_equal = [&](uint32_t id) -> uint64_t { return key_of(logits[id]) == kept.key && id <= kept.last_id; };
            find(vocab_size, shared, is_equal, [&](uint64_t all) {
                equals = all;
                return 0;
            });
        }
#pragma unroll 1
        for (int pass = 0; pass < 3; ++pass) {
            const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, bits = pass == 2 ? 10 : 11;
            const uint32_t known = pass == 0 ? 0 : 0xffffffffu << (shift + bits), digits = (1u << bits) - 1;
            for (uint32_t i = threadIdx.x; i < kBuckets; i += kThreads) shared.buckets.low[i] = shared.buckets.high[i] = 0;
            __syncthreads();
            const auto add = [&](uint32_t other, uint64_t amount) {
                if ((other & known) == key && amount > 0) {
                    add_to_bucket(shared, kBuckets - 1 - (other >> shift & digits), amount);
                }
            };
            each([&](uint32_t, float logit) {
                const uint32_t other = key_of(logit);
                if (other > kept.key && (other & known) == key) add(other, value(logit));
            });
            if (threadIdx.x == 0 && equals > 0) add(kept.key, equals * value(logit_of(kept.key)));
            __syncthreads();
            const Found found = find(
                kBuckets, shared, [&](uint32_t i) -> uint64_t { return bucket_sum(shared, i); },
                [&](uint64_t all) {
                    if (pass == 0) needed = need(all);
                    return needed - 1 - above;
                });
            above += found.before;
            key |= (kBuckets - 1 - found.index) << shift;
            all_equal = bucket_sum(shared, found.index);
            __syncthreads();
        }
        // How many equal ones it takes, and, if not all, the id of the last of them.
        const uint64_t one = value(logit_of(key));
        if (needed - above + one > all_equal) {
            kept = {key, key == kept.key ? kept.last_id : 0xffffffffu};
            return;
        }
        const uint64_t count = (needed - above + one - 1) / one;
        const auto is_equal = [&](uint32_t id) -> uint64_t { return key_of(logits[id]) == key && kept.keeps(key, id); };
        const Found last = find(vocab_size, shared, is_equal, [&](uint64_t all) { return min(count, all) - 1; });
        kept = {key, last.index};
    }
};

__device__ __forceinline__ float bounded(float logit) { return fminf(fmaxf(logit, -kLargest), kLargest); }

// The lists of a row.
struct Lists {
    uint32_t history_begin, prompt_end, history_end, bias_begin, bias_end;
    __device__ __forceinline__ Lists(const Batch& batch, uint32_t row) {
        history_end = min(batch.history_offsets[row + 1], batch.history_len);
        history_begin = min(batch.history_offsets[row], history_end);
        prompt_end = history_begin + min(batch.prompt_lens[row], history_end - history_begin);
        bias_end = min(batch.bias_offsets[row + 1], batch.bias_len);
        bias_begin = min(batch.bias_offsets[row], bias_end);
    }

    // Hands out each listed token of the vocabulary with its place in `saved`.
    template <class Each>
    __device__ __forceinline__ void each(const Batch& batch, Each run) const {
        for (uint32_t i = history_begin + threadIdx.x; i < history_end; i += kThreads) {
            if (batch.history[i] < batch.vocab_size) run(batch.history[i], batch.saved + i);
        }
        for (uint32_t i = bias_begin + threadIdx.x; i < bias_end; i += kThreads) {
            if (batch.bias_tokens[i] < batch.vocab_size) run(batch.bias_tokens[i], batch.saved + batch.history_len + i);
        }
    }
};

// As `Sampler::adjust`, operation by operation (no multiplication is fused with an addition).
__device__ __forceinline__ void adjust(const Batch& batch, const RowParams& params, const Lists& lists, float* logits, Shared& shared) {
    const bool repeats = params.repetition_penalty != 1.0f;
    const bool counts = params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f;
    const uint32_t slices_end = (repeats || counts) && lists.history_begin < lists.history_end ? batch.vocab_size : 0;
    for (uint32_t first = 0; first < slices_end; first += kSliceTokens) {
        const uint32_t tokens = min(batch.vocab_size - first, static_cast<uint32_t>(kSliceTokens));
        for (uint32_t i = threadIdx.x; i < tokens; i += kThreads) shared.counts[i] = 0;
        __syncthreads();
        for (uint32_t i = lists.history_begin + threadIdx.x; i < lists.history_end; i += kThreads) {
            const uint32_t id = batch.history[i] - first;
            if (id >= tokens) continue;
            if (i >= lists.prompt_end) atomicAdd(&shared.counts[id], 1u);
            atomicOr(&shared.counts[id], 0x80000000u);
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < tokens; i += kThreads) {
            const uint32_t count = shared.counts[i], times = count & 0x7fffffffu;
            if (count == 0) continue;
            float logit = logits[first + i];
            if (repeats) {
                logit = bounded(logit < 0.0f ? __fmul_rn(logit, params.repetition_penalty)
                                             : __fdiv_rn(logit, params.repetition_penalty));
            }
            if (counts && times > 0) {
                const float weighted = __fmul_rn(static_cast<float>(times), params.frequency_penalty);
                logit = bounded(__fsub_rn(logit, __fadd_rn(params.presence_penalty, weighted)));
            }
            logits[first + i] = logit;
        }
        __syncthreads();
    }
    // One after the other: a token may stand in the list twice.
    if (threadIdx.x == 0) {
        for (uint32_t i = lists.bias_begin; i < lists.bias_end; ++i) {
            const uint32_t id = batch.bias_tokens[i];
            if (id < batch.vocab_size) logits[id] = bounded(__fadd_rn(logits[id], batch.bias_values[i]));
        }
    }
    __syncthreads();
}

// Philox4x32-10, as philox.rs: the first 53 bits of number `draw` of the stream of `seed`.
__device__ __forceinline__ uint64_t uniform_bits(uint64_t seed, uint64_t draw) {
    uint32_t x0 = static_cast<uint32_t>(draw), x1 = static_cast<uint32_t>(draw >> 32), x2 = 0, x3 = 0;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = __umulhi(0xd2511f53u, x0), low0 = 0xd2511f53u * x0;
        const uint32_t high1 = __umulhi(0xcd9e8d57u, x2), low1 = 0xcd9e8d57u * x2;
        x0 = high1 ^ x1 ^ k0, x1 = low1, x2 = high0 ^ x3 ^ k1, x3 = low0;
        k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
    }
    return (static_cast<uint64_t>(x0) << 32 | x1) >> 11;
}

__device__ __forceinline__ uint32_t draw(const Row& row, const RowParams& params, uint64_t best, uint32_t scale_bits) {
    const float largest = logit_of(static_cast<uint32_t>(best >> 32));
    const double scale = static_cast<double>(1ull << scale_bits);
    const Weight weight{largest, 1.0 / static_cast<double>(params.temperature), scale};
    Threshold kept;
    if (params.top_k > 0 && params.top_k < row.vocab_size) {
        row.narrow(kept, [](float) -> uint64_t { return 1; }, [&](uint64_t) -> uint64_t { return params.top_k; });
    }
    if (params.top_p < 1.0f) {
        // Without a fraction: a sum of whole numbers reaches it where it reaches the next whole one.
        const auto share = [&](uint64_t all) -> uint64_t {
            const double needed = ceil(static_cast<double>(params.top_p) * static_cast<double>(all));
            return min(all, max(static_cast<uint64_t>(needed), static_cast<uint64_t>(1)));
        };
        row.narrow(kept, weight, share);
    }
    const double least = static_cast<double>(params.min_p);
    const auto value = [&](uint32_t id) -> uint64_t {
        const float logit = row.logits[id];
        if (!kept.keeps(key_of(logit), id)) return 0;
        const double exact = weight.exact(logit);
        return exact >= least ? static_cast<uint64_t>(__double2ll_rn(exact * scale)) : 0;
    };
    // A whole number passes uniform * all where it passes its whole part: the product of 53 and 62 bits, cut by 2^53.
    const uint64_t uniform = uniform_bits(params.seed, params.draw);
    const auto target = [&](uint64_t all) -> uint64_t { return __umul64hi(uniform << 11, all); };
    return find(row.vocab_size, row.shared, value, target).index;
}

__device__ __forceinline__ void sample(const Batch& batch) {
    __shared__ Shared shared;
    peregrine::grid_wait_predecessor();
    peregrine::grid_release_successor();
    const uint32_t index = blockIdx.x;
    const RowParams params = batch.params[index];
    float* logits = batch.logits + static_cast<size_t>(index) * batch.vocab_size;
    const Row row{logits, batch.vocab_size, shared};

    uint64_t best = row.largest();
    if (best == kNotFinite) {
        if (threadIdx.x == 0) {
            batch.tokens[index] = kNoToken;
            batch.logprobs[index] = __uint_as_float(kNan);
        }
        return;
    }
    const float own_largest = logit_of(static_cast<uint32_t>(best >> 32));
    double log_total = 0;
    if (params.logprob) {
        const double scale = static_cast<double>(1ull << batch.scale_bits);
        const Weight weight{own_largest, 1.0, scale};
        const auto take = [&](uint64_t all) -> uint64_t {
            log_total = log(static_cast<double>(all) / scale);
            return 0;
        };
        find(batch.vocab_size, shared, [&](uint32_t id) -> uint64_t { return weight(logits[id]); }, take);
    }

    const Lists lists(batch, index);
    const bool penalties = params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f;
    const bool adjusts = (penalties && lists.history_begin < lists.history_end) || lists.bias_begin < lists.bias_end;
    if (adjusts) {
        lists.each(batch, [&](uint32_t id, float* saved) { *saved = logits[id]; });
        __syncthreads();
        adjust(batch, params, lists, logits, shared);
        best = row.largest();
    }
    const uint32_t token =
        params.temperature == 0.0f ? ~static_cast<uint32_t>(best) : draw(row, params, best, batch.scale_bits);
    if (adjusts) {
        __syncthreads();
        lists.each(batch, [&](uint32_t id, float* saved) { logits[id] = *saved; });
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        batch.tokens[index] = token;
        const double logprob = static_cast<double>(logits[token]) - own_largest - log_total;
        batch.logprobs[index] = params.logprob ? static_cast<float>(logprob) : __uint_as_float(kNan);
    }
}

}  // namespace sampling
