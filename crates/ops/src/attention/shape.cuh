// What the attention kernels are told, and how they load their tiles.
//
// Letters: B batch, S tokens of a sequence, M query heads, G kv heads, D width of queries and keys, E width of values.
// Head h of token t lies in row t from column h * head stride on; addresses and strides are multiples of 16 bytes, widths
// of 8 elements. The tiles are wider where no kernel was made for a width: the rest is zeros, which change no product.
#pragma once
#include "mma.cuh"

constexpr float LOG2E = 1.4426950408889634f;

struct Heads {
    bf16* data;
    int64_t row;   // elements from a token to the next
    int head;      // from a head to the next
    int width;

    __device__ __forceinline__ bf16* at(int64_t token, int h) const { return data + token * row + int64_t(h) * head; }
};

struct Shape {
    int batch, seq, heads, kv_heads;
    int past;                    // keys of each sequence before its first query's own: there are past + S of them
    float scale;
    const float* slopes;         // [M], ALiBi; or none
    const uint32_t* starts;      // [B * S], the first key that a token sees; or none: 0
    const uint32_t* least;       // [B, S / 64 rounded up], the least of 64 tokens' starts; with starts
};

// Scores count in powers of 2: 2^(score) = e^(scale * q k - slope * distance).
struct Score {
    float scale, slope;

    __device__ __forceinline__ Score(const Shape& shape, int head)
        : scale(shape.scale * LOG2E), slope(shape.slopes ? shape.slopes[head] * LOG2E : 0.f) {}
    __device__ __forceinline__ float of(float dot, int query, int key) const {
        // A conversion costs as much as an exponential.
        return slope == 0.f ? dot * scale : fmaf(dot, scale, -slope * float(query - key));
    }
};

// Rows first.. + ROWS of a head into a tile of COLS columns, chunk c of row r at byte `place(r, c)`; what lies beyond `rows`
// or the width is zero.
template <int ROWS, int COLS, int THREADS, typename Place>
__device__ __forceinline__ void load_chunks(uint32_t tile, const Heads& heads, int64_t token, int head, int first, int rows,
                                            Place place) {
    constexpr int CHUNKS = COLS / 8;
    static_assert(ROWS * CHUNKS % THREADS == 0, "whole rounds");
    const bf16* base = heads.at(token, head);
    if constexpr (THREADS % CHUNKS == 0) {
        // A thread keeps its column: only the row moves on.
        constexpr int STEP = THREADS / CHUNKS;
        const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        const bf16* from = base + int64_t(first + row) * heads.row + chunk * 8;
        const int64_t step = STEP * heads.row;
        const int left = chunk * 8 < heads.width ? rows - first - row : 0;
#pragma unroll
        for (int i = 0; i < ROWS / STEP; i++) {
            const bool real = i * STEP < left;
            copy_async(tile + place(row + i * STEP, chunk), real ? from : base, real);
            from += step;
        }
    } else {
#pragma unroll
        for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
            const int index = i * THREADS + threadIdx.x, row = index / CHUNKS, chunk = index % CHUNKS;
            const bool real = first + row < rows && chunk * 8 < heads.width;
            copy_async(tile + place(row, chunk), base + (real ? (first + row) * heads.row + chunk * 8 : 0), real);
        }
    }
}

template <int ROWS, int COLS, int THREADS>
__device__ __forceinline__ void load_tile(uint32_t tile, const Heads& heads, int64_t token, int head, int first, int rows) {
    load_chunks<ROWS, COLS, THREADS>(tile, heads, token, head, first, rows, at<COLS>);
}
