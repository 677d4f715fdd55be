// Causal attention of whole sequences, forward: O = softmax(scale Q K^T) V and the log-sum-exp of the scores, blockwise
// with an online softmax (FlashAttention-2, arXiv 2307.08691); scores never exist as a whole.
//
// A block of WARPS warps takes BM queries of one head; a warp has 16 MT of them, all keys, and their outputs, so that the
// softmax stays inside a warp. Queries stay in shared memory; keys and values come in blocks of BN, values while the scores
// are computed, the next keys while the values are summed up. Narrow heads take two 16-row tiles a warp, which halves how
// often keys and values are read from shared memory; wide heads have no registers for that.
//
// The blocks of a head follow one another, so that those at work at a time share keys and values in the L2 cache; those with
// most keys come first.
#include "shape.cuh"

template <int D, int E, int WARPS, int MT, int BN>
__device__ __forceinline__ void forward(const Heads& q, const Heads& k, const Heads& v, const Heads& out, float* lse,
                                        const Shape& shape) {
    constexpr int BM = WARPS * 16 * MT, THREADS = WARPS * 32;
    constexpr int NT = BN / 8, ET = E / 8;
    extern __shared__ __align__(128) bf16 shared[];
    bf16* const q_tile = shared;
    const uint32_t sq = shared_address(q_tile), sk = sq + BM * (D > E ? D : E) * 2, sv = sk + BN * D * 2;

    const int parts_of_seq = (shape.seq + BM - 1) / BM, unit = blockIdx.x / parts_of_seq;
    const int head = unit % shape.heads, batch = unit / shape.heads;
    const int kv_head = head / (shape.heads / shape.kv_heads);
    const int first_query = (parts_of_seq - 1 - blockIdx.x % parts_of_seq) * BM;
    const int past = shape.past, keys = past + shape.seq;
    const int64_t token = int64_t(batch) * shape.seq, key_token = int64_t(batch) * keys;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_row = warp * 16 * MT;
    const Score score(shape, head);

    int first_key = 0;
    if (shape.starts) {
        const int parts = (shape.seq + 63) / 64;
        uint32_t least = 0xffffffffu;
        for (int i = first_query / 64; i < min((first_query + BM) / 64, parts); i++)
            least = min(least, shape.least[batch * parts + i]);
        first_key = least / BN * BN;
    }
    const int last_query = min(first_query + BM, shape.seq) - 1;

    load_tile<BM, D, THREADS>(sq, q, token, head, first_query, shape.seq);
    load_tile<BN, D, THREADS>(sk, k, key_token, kv_head, first_key, keys);
    commit_copies();

    float o[MT][ET][4] = {};
    float top[MT][2], sum[MT][2] = {};
    int start[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            top[m][half] = -INFINITY;
            const int row = first_query + warp_row + m * 16 + half * 8 + lane / 4;
            start[m][half] = shape.starts && row < shape.seq ? shape.starts[token + row] : 0;
        }

    for (int key = first_key; key <= past + last_query; key += BN) {
        wait_copies<0>();
        __syncthreads();
        load_tile<BN, E, THREADS>(sv, v, key_token, kv_head, key, keys);
        commit_copies();

        float s[MT][NT][4] = {};
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++) {
            uint32_t a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++) load_a<D>(a[m], sq, warp_row + m * 16, kk);
#pragma unroll
            for (int n = 0; n < NT / 2; n++) {
                uint32_t b[4];
                load_b<D>(b, sk, n * 16, kk);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(s[m][2 * n], a[m], b[0], b[1]);
                    mma(s[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }

        const bool masked = key + BN > past + first_query + warp_row || shape.starts;
        uint32_t p[MT][NT][2];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int query = past + first_query + warp_row + m * 16 + half * 8 + lane / 4;
                float most = top[m][half];
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float& x = s[m][n][2 * half + i];
                        const int column = key + n * 8 + lane % 4 * 2 + i;
                        x = score.of(x, query, column);
                        if (masked && (column > query || column < start[m][half])) x = -INFINITY;
                        most = fmaxf(most, x);
                    }
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                // A row that has seen no key yet keeps its zeros.
                const float base = most == -INFINITY ? 0.f : most;
                const float keep = power2(top[m][half] - base);
                top[m][half] = most;
                float part = 0.f;
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    const float x = power2(s[m][n][2 * half] - base), y = power2(s[m][n][2 * half + 1] - base);
                    part += x + y;
                    p[m][n][half] = pack(x, y);
                }
                sum[m][half] = sum[m][half] * keep + part;
#pragma unroll
                for (int n = 0; n < ET; n++) {
                    o[m][n][2 * half] *= keep;
                    o[m][n][2 * half + 1] *= keep;
                }
            }

        wait_copies<0>();
        __syncthreads();
        if (key + BN <= past + last_query) load_tile<BN, D, THREADS>(sk, k, key_token, kv_head, key + BN, keys);
        commit_copies();

#pragma unroll
        for (int kk = 0; kk < BN / 16; kk++) {
            uint32_t a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++) {
                a[m][0] = p[m][2 * kk][0];
                a[m][1] = p[m][2 * kk][1];
                a[m][2] = p[m][2 * kk + 1][0];
                a[m][3] = p[m][2 * kk + 1][1];
            }
#pragma unroll
            for (int n = 0; n < ET / 2; n++) {
                uint32_t b[4];
                load_b_t<E>(b, sv, n, kk * 16);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(o[m][2 * n], a[m], b[0], b[1]);
                    mma(o[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
    wait_copies<0>();

    // A warp's outputs take the place of its queries, which no other warp reads: rows leave 16 bytes at a time.
    __syncthreads();
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[m][half];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const int row = warp_row + m * 16 + half * 8 + lane / 4, query = first_query + row;
            if (lane % 4 == 0 && query < shape.seq)
                lse[int64_t(batch * shape.heads + head) * shape.seq + query] = (top[m][half] + log2f(total)) / LOG2E;
            const float over = 1.f / total;
#pragma unroll
            for (int n = 0; n < ET; n++) {
                const uint32_t both = pack(o[m][n][2 * half] * over, o[m][n][2 * half + 1] * over);
                *reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(q_tile) + at<E>(row, n) + lane % 4 * 4) = both;
            }
        }
    __syncwarp();
    for (int i = lane; i < 16 * MT * (E / 8); i += 32) {
        const int row = warp_row + i / (E / 8), chunk = i % (E / 8), query = first_query + row;
        if (query < shape.seq && chunk * 8 < out.width)
            *reinterpret_cast<uint4*>(out.at(token + query, head) + chunk * 8) =
                *reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(q_tile) + at<E>(row, chunk));
    }
}

#define KERNEL(D, E, WARPS, MT, BLOCKS)                                                                        \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)                                           \
        forward_##D##_##E(const __grid_constant__ Heads q, const __grid_constant__ Heads k,                    \
                          const __grid_constant__ Heads v, const __grid_constant__ Heads out, float* lse,      \
                          const __grid_constant__ Shape shape) {                                               \
        forward<D, E, WARPS, MT, 64>(q, k, v, out, lse, shape);                                                \
    }
// As `FORWARD` in cuda.rs has them.
KERNEL(64, 64, 4, 2, 2)
KERNEL(128, 64, 4, 2, 2)
KERNEL(128, 128, 4, 2, 2)
KERNEL(192, 128, 8, 1, 1)
KERNEL(192, 192, 8, 1, 1)
KERNEL(256, 256, 8, 1, 1)
