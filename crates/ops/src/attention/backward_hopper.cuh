// What the backward kernels for Hopper share: roles of warpgroups, rings of stages, products of tiles of 64 rows.
#pragma once
#include "backward.cuh"
#include "hopper.cuh"
#include "wgmma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Keys of a tile, threads of a warpgroup, bytes of a tile of P^T or dS^T.
constexpr int BN = 64, GROUP = 128, P_BYTES = BN * BM * 2;
// What comes in stages.
constexpr int QUERIES = 0, OUTPUTS = 1;

struct Maps {
    const CUtensorMap *q, *k, *v, *d_out;
};

// Of the barriers of some warpgroups: `THREADS` in all arrive or wait.
template <int THREADS>
__device__ __forceinline__ void arrive(int id) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}
template <int THREADS>
__device__ __forceinline__ void sync(int id) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}

// A place in a ring, and how often it was passed.
template <int STAGES>
struct Ring {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// One warp: lse or delta of a block of queries, which arrive at the barrier `full` as one arrival a lane. Zeros beyond the end,
// as `load_rows` has them.
__device__ __forceinline__ void load_sums(uint32_t to, const float* sums, int first, int seq, uint32_t full) {
#pragma unroll
    for (int i = threadIdx.x % 32; i < BM; i += 32) {
        const bool real = first + i < seq;
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to + i * 4), "l"(sums + (real ? first + i : 0)),
                     "r"(real ? 4 : 0));
    }
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(full) : "memory");
}

__device__ __forceinline__ float2 load_pair(uint32_t from) {
    float2 both;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(both.x), "=f"(both.y) : "r"(from));
    return both;
}

// d = a b^T, 64 x 64, of two tiles of 64 rows.
template <int COLUMNS>
__device__ __forceinline__ void rows_by_rows(float (&d)[8][4], uint32_t a, uint32_t b) {
#pragma unroll
    for (int kk = 0; kk < COLUMNS / 16; kk++)
        wgmma<0, 0>(d, Factor(a + kk / 4 * 64 * 128 + kk % 4 * 32), Factor(b + kk / 4 * 64 * 128 + kk % 4 * 32), kk > 0);
    wgmma_commit();
}

// Columns that one product takes.
template <int COLUMNS>
constexpr int SPAN = COLUMNS % 128 == 0 ? 128 : 64;

// d += a b, 64 x COLUMNS, of a 64 x 64 matrix in registers and a tile of 64 rows.
template <int COLUMNS>
__device__ __forceinline__ void add_product(float (&d)[COLUMNS / SPAN<COLUMNS>][SPAN<COLUMNS> / 8][4], const uint32_t (&a)[4][4],
                                            uint32_t b) {
#pragma unroll
    for (int kk = 0; kk < 4; kk++)
#pragma unroll
        for (int n = 0; n < COLUMNS / SPAN<COLUMNS>; n++)
            wgmma<1>(d[n], a[kk], Factor(b + n * SPAN<COLUMNS> * 128 + kk * 2048, 64 * 128), 1);
    wgmma_commit();
}

// P^T from S^T, 64 keys from `first_key` on by 64 queries, with lse at `sums`.
__device__ __forceinline__ void to_probabilities(uint32_t (&p)[4][4], const float (&s)[8][4], const Score& score, const Shape& shape,
                                                 int64_t token, int first_query, int first_key, uint32_t sums) {
    const int lane = threadIdx.x % 32, key = first_key + threadIdx.x / 32 % 4 * 16 + lane / 4;
    auto powers_at = [&](int n) {
        const float2 both = load_pair(sums + (n * 8 + lane % 4 * 2) * 4);
        return make_float2(both.x * LOG2E, both.y * LOG2E);
    };
    if (first_key + BN > first_query || shape.starts || shape.slopes) {
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const int query = first_query + n * 8 + lane % 4 * 2;
            const float2 lse = powers_at(n);
            int start0 = 0, start1 = 0;
            if (shape.starts) {
                start0 = query < shape.seq ? shape.starts[token + query] : 0;
                start1 = query + 1 < shape.seq ? shape.starts[token + query + 1] : 0;
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float2 both =
                    probabilities(score, s[n][2 * half], s[n][2 * half + 1], lse, query, key + half * 8, true, start0, start1);
                p[n / 2][n % 2 * 2 + half] = pack(both.x, both.y);
            }
        }
    } else {
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const float2 lse = powers_at(n);
#pragma unroll
            for (int half = 0; half < 2; half++)
                p[n / 2][n % 2 * 2 + half] = pack(power2(fmaf(s[n][2 * half], score.scale, -lse.x)),
                                                  power2(fmaf(s[n][2 * half + 1], score.scale, -lse.y)));
        }
    }
}

// dS^T from P^T, in its place, and dP^T, with delta at `sums`; as a tile of keys, too.
__device__ __forceinline__ void to_score_gradients(uint32_t (&p)[4][4], const float (&dp)[8][4], uint32_t sums, uint32_t tile) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const float2 delta = load_pair(sums + (n * 8 + lane % 4 * 2) * 4);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t& both = p[n / 2][n % 2 * 2 + half];
            const float2 two = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(both));
            both = pack(two.x * (dp[n][2 * half] - delta.x), two.y * (dp[n][2 * half + 1] - delta.y));
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(tile + at_blocked<BN>(row + half * 8, n) + lane % 4 * 4), "r"(both)
                         : "memory");
        }
    }
}

// One 64-column part of dQ, 64 queries by 128 keys: dS^T as two tiles of keys that follow one another, and K as two tiles.
__device__ __forceinline__ void queries_part(float (&dq)[8][4], uint32_t ds, uint32_t keys, uint32_t more_keys) {
    // The tiles of dS have keys as rows: both operands are read transposed.
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < 8; kk++)
        wgmma<1, 1>(dq, Factor(ds + kk * 2048), Factor((kk < 4 ? keys : more_keys) + kk % 4 * 2048), kk > 0);
    wgmma_commit();
    wgmma_wait<0>();
    settle(dq);
}

// Gradients of 64 keys or values from `first_key` on, to the sums of all parts or to their place.
template <int COLUMNS>
__device__ __forceinline__ void write_out(const float (&d)[COLUMNS / SPAN<COLUMNS>][SPAN<COLUMNS> / 8][4], float* sums,
                                          const Heads& heads, bool adds, float factor, const Shape& shape, int batch, int kv_head,
                                          int first_key) {
    const int lane = threadIdx.x % 32, row = first_key + threadIdx.x / 32 % 4 * 16, row_tiles = (shape.seq + 15) / 16;
    const int64_t token = int64_t(batch) * shape.seq;
    constexpr int EACH = SPAN<COLUMNS> / 8;
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
        const float(&c)[4] = d[n / EACH][n % EACH];
        if (!sums)
            put(heads, adds, factor, token, shape.seq, kv_head, row + lane / 4, n * 8 + lane % 4 * 2, c);
        else if (row / 16 < row_tiles)
            add_atomically(tile_of(sums, batch * shape.kv_heads + kv_head, row_tiles, row / 16, COLUMNS, n), c);
    }
}

#endif
