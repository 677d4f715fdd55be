// The next token of each row of logits, drawn as `cpu.rs` draws it.
//
// Shapes: logits [rows, vocabulary]. A cluster of blocks a row, a slice of the vocabulary a block, whose weights
// e^((logit - max) / temperature) stay in shared memory. They have the very bits that the host computes, so that ties are the
// same. The vocabulary is not sorted (select.cuh).
#include "select.cuh"

// A row's wishes and what it remembers from token to token; the host lays it out (choices.rs).
struct Wishes {
    // NaN: nothing is wanted of this row. 0: the likeliest token.
    float temperature;
    // 0 keeps all.
    uint32_t top_k;
    float top_p, min_p, penalty;
    // Tokens drawn so far.
    uint32_t steps;
    // SplitMix64.
    uint64_t random;
    // A bit for each token that came, or none.
    uint32_t* seen;
};

// Ascending like the values; -0 is 0, as in comparisons.
__device__ __forceinline__ unsigned long long key_of(float value, int token) {
    const uint32_t bits = __float_as_uint(value == 0.f ? 0.f : value);
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (static_cast<unsigned long long>(ordered) << 32) | ~static_cast<uint32_t>(token);
}

__device__ __forceinline__ float value_of(unsigned long long key) {
    const uint32_t ordered = static_cast<uint32_t>(key >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// `exp` of simd.rs, operation by operation.
__device__ __forceinline__ float host_exp(float x) {
    const float rounded = __fmaf_rn(x, 1.44269504088896340736f, 12582912.f);
    const float n = __fsub_rn(rounded, 12582912.f);
    float r = __fmaf_rn(n, -(355.f / 512.f), x);
    r = __fmaf_rn(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = __fmaf_rn(p, r, 1.3981999e-3f);
    p = __fmaf_rn(p, r, 8.333452e-3f);
    p = __fmaf_rn(p, r, 4.1665796e-2f);
    p = __fmaf_rn(p, r, 1.6666665e-1f);
    p = __fmaf_rn(p, r, 0.5f);
    p = __fmaf_rn(p, __fmul_rn(r, r), __fadd_rn(r, 1.f));
    const float y = __uint_as_float(__float_as_uint(p) + (__float_as_uint(rounded) << 23));
    return x < -87.33654f ? 0.f : y;
}

// Uniform in 0..1, and the generator's next state.
__device__ __forceinline__ double uniform(uint64_t& state) {
    state += 0x9E3779B97F4A7C15ull;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return double(z >> 11) * (1.0 / 9007199254740992.0);
}

// Where a row's outcome goes: a token and 0, or the first token whose logit is no number and the bits of that logit, or ~0 and
// 0 where no token may come. `outcomes` has room for `slots` steps of all rows, used in turn.
struct Out {
    uint32_t *outcomes, *ids;
    int slots;

    __device__ __forceinline__ void write(Wishes* wishes, uint32_t steps, int row, int rows, uint32_t token,
                                          uint32_t bits) const {
        uint32_t* outcome = outcomes + (int64_t(steps % slots) * rows + row) * 2;
        outcome[0] = token;
        outcome[1] = bits;
        const bool drawn = bits == 0 && token != ~0u;
        // What is computed on with is a token even where none was drawn.
        if (ids != nullptr) ids[row] = drawn ? token : 0;
        if (drawn && wishes[row].seen != nullptr) wishes[row].seen[token / 32] |= 1u << (token % 32);
        wishes[row].steps = steps + 1;
    }
};

extern "C" __global__ void __launch_bounds__(1024) draw(Matrix<const float> logits, Wishes* all, Out out, int rows, int vocabulary, int slice) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    extern __shared__ __align__(16) uint32_t memory[];
    __shared__ Shared shared;
    Selection mine(memory, shared, vocabulary, slice);
    mine.clear();
    wait_for_previous_kernel();
    const int row = blockIdx.x / mine.blocks;
    const Wishes wishes = all[row];
    if (wishes.temperature != wishes.temperature) return;
    // Nobody's memory is written to before it is there.
    cluster_arrive();

    // The largest logit, and the first that is no number.
    const float* from = logits.row(row) + mine.start;
    const uint32_t* seen = wishes.penalty != 1.f ? wishes.seen : nullptr;
    unsigned long long best = 0, bad = 0;
    constexpr int AHEAD = 8;
    for (int first = threadIdx.x; first < mine.length; first += AHEAD * blockDim.x) {
        float values[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int at = first + i * blockDim.x;
            values[i] = at < mine.length ? from[at] : -INFINITY;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int at = first + i * blockDim.x, token = mine.start + at;
            if (at >= mine.length) break;
            float value = values[i];
            if (seen != nullptr && seen[token / 32] >> (token % 32) & 1)
                value = value < 0.f ? __fmul_rn(value, wishes.penalty) : __fdiv_rn(value, wishes.penalty);
            mine.weights[at] = value;
            if (!(value < INFINITY)) bad = max(bad, static_cast<unsigned long long>(~static_cast<uint32_t>(token)));
            if (value > -INFINITY) best = max(best, key_of(value, token));
        }
    }
    cluster_wait();
    mine.tell_largest(shared.best, best);
    mine.tell_largest(shared.bad, bad);
    cluster_sync();
    for (int block = 0; block < mine.blocks; block++) {
        best = max(best, shared.best[block]);
        bad = max(bad, shared.bad[block]);
    }
    const bool first_thread = mine.rank == 0 && threadIdx.x == 0;
    if (bad != 0 || best == 0) {
        if (first_thread) {
            const uint32_t token = ~static_cast<uint32_t>(bad);
            const uint32_t bits = bad != 0 ? __float_as_uint(logits.row(row)[token]) : 0;
            out.write(all, wishes.steps, row, rows, token, bits);
        }
        return;
    }
    if (wishes.temperature == 0.f) {
        if (first_thread) out.write(all, wishes.steps, row, rows, ~static_cast<uint32_t>(best), 0);
        return;
    }

    const float most = value_of(best);
    for (int at = threadIdx.x; at < mine.length; at += blockDim.x)
        mine.weights[at] = host_exp(__fdiv_rn(__fsub_rn(mine.weights[at], most), wishes.temperature));
    __syncthreads();
    uint64_t random = wishes.random;
    const double point = uniform(random);
    const Filters filters{wishes.top_k < uint32_t(vocabulary) ? wishes.top_k : 0, wishes.top_p, wishes.min_p};
    const uint32_t token = mine.draw(filters, point);
    if (token != ~0u) {
        out.write(all, wishes.steps, row, rows, token, 0);
        all[row].random = random;
    }
#endif
}
