// What the backward kernels of all generations share.
#pragma once
#include "shape.cuh"

struct Inputs {
    Heads q, k, v, d_out, dk, dv;
    const float *lse, *delta;             // [B * M, S]
    float *dq_sums, *dk_sums, *dv_sums;   // those of dk and dv only with several parts
    int dk_adds, dv_adds;
    int parts;                            // that the query heads of a kv head are divided into
};

// Queries of a stage.
constexpr int BM = 64;

// The place of an accumulator's four values in sums [head, rows / 16, columns / 8, lane, 4].
__device__ __forceinline__ float* tile_of(float* sums, int64_t head, int64_t row_tiles, int row_tile, int columns, int n) {
    return sums + ((head * row_tiles + row_tile) * (columns / 8) + n) * 128 + threadIdx.x % 32 * 4;
}

// Walks over the blocks of queries, of all heads of a part, that see the keys first_key .. + keys.
struct Walk {
    int head, end, block, first_block, blocks;
    uint32_t keys_end;
    const uint32_t* least;

    __device__ __forceinline__ Walk(const Shape& shape, int parts, int batch, int kv_head, int part, int first_key, int keys) {
        const int group = shape.heads / shape.kv_heads;
        head = kv_head * group + group * part / parts;
        end = kv_head * group + group * (part + 1) / parts;
        blocks = (shape.seq + BM - 1) / BM;
        first_block = first_key / BM;
        keys_end = first_key + keys;
        least = shape.starts ? shape.least + int64_t(batch) * blocks : nullptr;
        block = first_block - 1;
        next();
    }
    __device__ __forceinline__ bool done() const { return head >= end; }
    __device__ __forceinline__ void next() {
        do {
            if (++block == blocks) {
                block = first_block;
                head++;
            }
        } while (head < end && least && least[block] >= keys_end);
    }
};

// lse, then delta, of a block of queries. Those beyond the end are zeros like their queries and output gradients, so that
// they add nothing to any sum, whatever their probabilities.
__device__ __forceinline__ void load_rows(uint32_t rows, const Inputs& in, const Shape& shape, int batch, const Walk& walk) {
    if (threadIdx.x < 2 * BM) {
        const int query = walk.block * BM + threadIdx.x % BM;
        const float* from = (threadIdx.x < BM ? in.lse : in.delta) + int64_t(batch * shape.heads + walk.head) * shape.seq;
        const bool real = query < shape.seq;
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(rows + threadIdx.x * 4),
                     "l"(from + (real ? query : 0)), "r"(real ? 4 : 0));
    }
}

// Two neighbouring values of lse, in powers of 2.
__device__ __forceinline__ float2 powers(const float* lse) {
    const float2 both = *reinterpret_cast<const float2*>(lse);
    return make_float2(both.x * LOG2E, both.y * LOG2E);
}

// The probabilities of a key under two neighbouring queries, from their dot products and lse in powers of 2.
__device__ __forceinline__ float2 probabilities(const Score& score, float dot0, float dot1, float2 lse, int query, int key,
                                                bool masked, int start0, int start1) {
    float2 p = make_float2(power2(score.of(dot0, query, key) - lse.x), power2(score.of(dot1, query + 1, key) - lse.y));
    if (masked) {
        if (key > query || key < start0) p.x = 0.f;
        if (key > query + 1 || key < start1) p.y = 0.f;
    }
    return p;
}

// Two rows of an accumulator, rows `key` and `key + 8` of a kv head, columns column, + 1.
__device__ __forceinline__ void put(const Heads& heads, bool adds, float factor, int64_t token, int seq, int kv_head, int key,
                                    int column, const float (&c)[4]) {
    if (column >= heads.width) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (key + half * 8 >= seq) continue;
        __nv_bfloat162* to = reinterpret_cast<__nv_bfloat162*>(heads.at(token + key + half * 8, kv_head) + column);
        float2 value = make_float2(factor * c[2 * half], factor * c[2 * half + 1]);
        if (adds) {
            const float2 before = __bfloat1622float2(*to);
            value.x += before.x;
            value.y += before.y;
        }
        *to = __floats2bfloat162_rn(value.x, value.y);
    }
}
