// What a launch says, and what of it a CTA has to do.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace paged {

// What a launch has to say; `PagedParams` in cuda.rs is the same struct.
struct Params {
    const int* page_table;
    const int* lengths;
    // From the plan (plan.cuh): what each share does, all items, tasks that are cut.
    const int4* shares;
    const int4* items;
    const int4* cuts;
    // [cut, row block, value group, CTA of a cluster, warp], made zero by the plan: parts that are written.
    unsigned int* written;
    // [positions, pairs].
    const float* cosines;
    const float* sines;
    // Of a cache in 8 bits, [blocks, rows]: those of the first block; from one block's to the next.
    const uint8_t* scales;
    int64_t scale_stride;
    void* out;
    // Or none.
    float* lse;
    // [heads], what a key's distance takes from its score; or none.
    const float* slopes;
    // Parts of outputs, not yet divided; of each row the maximum of its scores and the sum of their powers of two.
    float4* part_out;
    float2* part_sums;
    int max_pages;
    int page_shift;
    int pages;
    int tokens;
    int heads;
    int kv_heads;
    // Query heads of a kv head.
    int group;
    float group_inverse;
    // CTAs that have a share together: a cluster.
    int cluster;
    // Row blocks of a task, and how heads and tokens make one.
    int row_blocks;
    int head_blocks;
    int block_tokens;
    // Channels of a value, pairs of a rotated key, rows of the rope table.
    int value_width;
    int pairs;
    int positions;
    // scale * log2(e).
    float scale;
    int out_f32;
    // Of the scales: the first of the first head's keys and values, how many a head has, and from one head to the next.
    int first_key_block;
    int first_value_block;
    int key_blocks;
    int value_blocks;
    int key_step;
    int value_step;
    // Keys that a token sees, its own included.
    int window;
    // Terms of a key (and of a value) as a power of two.
    int rank_shift;
};

// Whole numbers below 2^21 (`DIVIDED` in cuda/batch.rs): a + 1 / 2 is at least half of 1 / b away from the next multiple of b.
__device__ __forceinline__ int divide(int a, int b) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(static_cast<float>(b)));
    return b == 1 ? a : static_cast<int>((a + 0.5f) * inverse);
}

// A block of up to 64 rows of a task: tokens, of each all heads of the group; of a group of 64 heads or more, 64 heads of
// one token.
struct Block {
    // The first token and head, and rows that are queries; they come first.
    int token, head, rows;

    __device__ __forceinline__ Block(const Params& p, int block) {
        const int tokens = divide(block, p.head_blocks);
        token = tokens * p.block_tokens;
        head = (block - tokens * p.head_blocks) * 64;
        rows = p.group >= 64 ? min(64, p.group - head) : min(p.block_tokens, p.tokens - token) * p.group;
        if (block >= p.row_blocks) rows = 0;
    }

    // Of row `row`: its token (and, below, its number among the queries of the task's sequence).
    __device__ __forceinline__ int token_of(const Params& p, int row) const {
        // Exact: the fraction is at least half a group away from a whole number.
        return p.group >= 64 ? token : token + static_cast<int>((row + 0.5f) * p.group_inverse);
    }
    // Of row `row`: its head among those of the task.
    __device__ __forceinline__ int head_of(const Params& p, int row) const {
        return p.group >= 64 ? head + row : row - (token_of(p, row) - token) * p.group;
    }
    __device__ __forceinline__ int query_of(const Params& p, int row) const {
        return token_of(p, row) * p.heads + head_of(p, row);
    }
};

// The first query of a task.
__device__ __forceinline__ int64_t task_query(const Params& p, int task) {
    const int sequence = divide(task, p.kv_heads);
    return static_cast<int64_t>(sequence) * p.tokens * p.heads + (task - sequence * p.kv_heads) * p.group;
}

// The items of a share, of each what this CTA of its cluster has: as many tiles as others, or one less. The first lies beside
// the bounds of the others: one read less before the first load.
struct Items {
    const int4* rest;
    int4 item;
    int at, end, rank, cluster;

    __device__ __forceinline__ Items(const Params& p, int share, int rank) : rest(p.items), rank(rank), cluster(p.cluster) {
        item = p.shares[2 * share];
        const int4 bounds = p.shares[2 * share + 1];
        at = bounds.x, end = bounds.y;
        take_own();
    }
    __device__ __forceinline__ bool more() const { return at < end; }
    __device__ __forceinline__ void next() {
        if (++at < end) item = rest[at];
        take_own();
    }
    __device__ __forceinline__ void take_own() {
        const int tiles = item.z - item.y;
        item.z = item.y + divide(tiles * (rank + 1), cluster);
        item.y += divide(tiles * rank, cluster);
    }
};

}  // namespace paged
