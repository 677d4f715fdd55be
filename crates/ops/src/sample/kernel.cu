// The likeliest token of each row of logits.
//
// Shapes: logits [rows, vocabulary]; tokens [rows]. A block a row. Value and number are compared as one 64-bit key, larger
// values first and smaller numbers first among equals, so that the order of the comparisons does not matter.
#include "common.cuh"

// Ascending like the values; NaN counts as the smallest.
__device__ __forceinline__ unsigned long long key_of(float value, int token) {
    const uint32_t bits = __float_as_uint(value);
    const uint32_t ordered = value != value ? 0 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (static_cast<unsigned long long>(ordered) << 32) | ~static_cast<uint32_t>(token);
}

__device__ __forceinline__ unsigned long long warp_most(unsigned long long x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) {
        const unsigned long long other = __shfl_xor_sync(0xffffffffu, x, lane);
        x = other > x ? other : x;
    }
    return x;
}

extern "C" __global__ void greedy(Matrix<const float> logits, uint32_t* tokens, int vocabulary) {
    __shared__ unsigned long long warps[32];
    const float* row = logits.row(blockIdx.x);
    // Negative infinity of token 0: what is left where nothing is larger.
    unsigned long long most = key_of(-INFINITY, 0);
    // Several loads under way at a time: one block has to hide all their latency.
    constexpr int AHEAD = 16;
    for (int first = threadIdx.x; first < vocabulary; first += AHEAD * blockDim.x) {
        float values[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int token = first + i * blockDim.x;
            values[i] = token < vocabulary ? row[token] : -INFINITY;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const unsigned long long key = key_of(values[i], first + i * blockDim.x);
            if (first + i * blockDim.x < vocabulary && key > most) most = key;
        }
    }
    most = warp_most(most);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = most;
    __syncthreads();
    if (threadIdx.x < 32) {
        most = warp_most(threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : 0);
        if (threadIdx.x == 0) tokens[blockIdx.x] = ~static_cast<uint32_t>(most);
    }
}
