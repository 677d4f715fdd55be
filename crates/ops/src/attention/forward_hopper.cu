// The forward pass of forward.cu for Hopper's matrix unit.
//
// A block of two warpgroups takes 128 queries of one head, 64 each, and walks over the keys, BN at a time, with two stages
// of keys and of values in shared memory. Within a warpgroup the products of one block of keys with the queries are
// computed while the probabilities of the block before are multiplied with its values, and the softmax of the new scores
// runs beside the latter (FlashAttention-3, arXiv 2407.08608, section 3.2).
#include "shape.cuh"
#include "wgmma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int BM = 128, THREADS = 256;

template <int ROWS, int COLS>
__device__ __forceinline__ void load_blocked(uint32_t tile, const Heads& heads, int64_t token, int head, int first, int rows) {
    load_chunks<ROWS, COLS, THREADS>(tile, heads, token, head, first, rows, at_blocked<ROWS>);
}

template <int D, int E, int BN>
__device__ __forceinline__ void forward(const Heads& q, const Heads& k, const Heads& v, const Heads& out, float* lse,
                                        const Shape& shape) {
    constexpr int NT = BN / 8, ET = E / 8;
    // Columns of the values that one product takes.
    constexpr int EN = E % 128 == 0 ? 128 : 64;
    extern __shared__ __align__(1024) char shared[];
    const uint32_t sq = shared_address(shared), sk = sq + BM * D * 2, sv = sk + 2 * BN * D * 2;

    const int parts_of_seq = (shape.seq + BM - 1) / BM, unit = blockIdx.x / parts_of_seq;
    const int head = unit % shape.heads, batch = unit / shape.heads;
    const int kv_head = head / (shape.heads / shape.kv_heads);
    const int first_query = (parts_of_seq - 1 - blockIdx.x % parts_of_seq) * BM;
    const int past = shape.past, keys = past + shape.seq;
    const int64_t token = int64_t(batch) * shape.seq, key_token = int64_t(batch) * keys;
    const int group = warpgroup(), warp_row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const Score score(shape, head);

    int first_key = 0;
    if (shape.starts) {
        const int parts = (shape.seq + 63) / 64;
        uint32_t least = 0xffffffffu;
        for (int i = first_query / 64; i < min((first_query + BM) / 64, parts); i++)
            least = min(least, shape.least[batch * parts + i]);
        first_key = least / BN * BN;
    }
    const int last_query = min(first_query + BM, shape.seq) - 1, blocks = (past + last_query - first_key) / BN + 1;

    auto load_k = [&](int j) {
        load_blocked<BN, D>(sk + j % 2 * BN * D * 2, k, key_token, kv_head, first_key + j * BN, keys);
    };
    auto load_v = [&](int j) {
        load_blocked<BN, E>(sv + j % 2 * BN * E * 2, v, key_token, kv_head, first_key + j * BN, keys);
    };
    load_blocked<BM, D>(sq, q, token, head, first_query, shape.seq);
    load_k(0);
    commit_copies();
    load_v(0);
    if (blocks > 1) load_k(1);
    commit_copies();

    float o[E / EN][EN / 8][4] = {}, s[NT][4];
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {}, keep[2];
    int start[2];
    uint32_t p[NT / 2][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = first_query + warp_row + half * 8 + lane / 4;
        start[half] = shape.starts && row < shape.seq ? shape.starts[token + row] : 0;
    }

    auto scores = [&](int j) {
        const uint32_t tile = sk + j % 2 * BN * D * 2;
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++) {
            const uint64_t a = tile_descriptor(sq + kk / 4 * BM * 128 + group * 64 * 128 + kk % 4 * 32, 0);
            wgmma<0, 0>(s, a, tile_descriptor(tile + kk / 4 * BN * 128 + kk % 4 * 32, 0), kk > 0);
        }
        wgmma_commit();
    };
    auto values = [&](int j) {
        const uint32_t tile = sv + j % 2 * BN * E * 2;
#pragma unroll
        for (int kk = 0; kk < BN / 16; kk++)
#pragma unroll
            for (int n = 0; n < E / EN; n++)
                wgmma<1>(o[n], p[kk], tile_descriptor(tile + n * (EN / 64) * BN * 128 + kk * 2048, BN * 128), 1);
        wgmma_commit();
    };
    // Scores to probabilities, in place, and what the sums so far are to be multiplied with.
    auto softmax = [&](int j) {
        const int key = first_key + j * BN;
        const bool masked = key + BN > past + first_query + warp_row || shape.starts;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = past + first_query + warp_row + half * 8 + lane / 4;
            float most = top[half];
            // With a positive scale the largest product is the largest score, and the scale is part of the exponent.
            const bool plain = !masked && !shape.slopes && score.scale > 0.f;
            float raw = -INFINITY;
            if (plain) {
#pragma unroll
                for (int n = 0; n < NT; n++) raw = fmaxf(raw, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
                most = fmaxf(most, raw * score.scale);
            } else {
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float& x = s[n][2 * half + i];
                        const int column = key + n * 8 + lane % 4 * 2 + i;
                        x = score.of(x, query, column);
                        if (column > query || column < start[half]) x = -INFINITY;
                        most = fmaxf(most, x);
                    }
            }
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            const float base = most == -INFINITY ? 0.f : most, scale = plain ? score.scale : 1.f;
            keep[half] = power2(top[half] - base);
            top[half] = most;
            float part = 0.f;
#pragma unroll
            for (int n = 0; n < NT; n++) {
                s[n][2 * half] = power2(fmaf(s[n][2 * half], scale, -base));
                s[n][2 * half + 1] = power2(fmaf(s[n][2 * half + 1], scale, -base));
                part += s[n][2 * half] + s[n][2 * half + 1];
            }
            sum[half] = sum[half] * keep[half] + part;
        }
    };
    auto pack_probabilities = [&] {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            p[n / 2][n % 2 * 2] = pack(s[n][0], s[n][1]);
            p[n / 2][n % 2 * 2 + 1] = pack(s[n][2], s[n][3]);
        }
    };

    wait_copies<1>();
    fence_for_products();
    __syncthreads();
    wgmma_fence();
    scores(0);
    wgmma_wait<0>();
    settle(s);
    softmax(0);
    pack_probabilities();
    for (int j = 0; j + 1 < blocks; j++) {
        // Keys j + 1 and values j are there; keys j and values j - 1 have been used by all.
        wait_copies<0>();
        fence_for_products();
        __syncthreads();
        wgmma_fence();
        scores(j + 1);
        values(j);
        if (j + 2 < blocks) load_k(j + 2);
        load_v(j + 1);
        commit_copies();
        wgmma_wait<1>();
        settle(s);
        softmax(j + 1);
        wgmma_wait<0>();
#pragma unroll
        for (int n = 0; n < E / EN; n++) settle(o[n]);
#pragma unroll
        for (int n = 0; n < E / EN; n++)
#pragma unroll
            for (int i = 0; i < EN / 8; i++) {
                o[n][i][0] *= keep[0];
                o[n][i][1] *= keep[0];
                o[n][i][2] *= keep[1];
                o[n][i][3] *= keep[1];
            }
        pack_probabilities();
    }
    wait_copies<0>();
    fence_for_products();
    __syncthreads();
    wgmma_fence();
    values(blocks - 1);
    wgmma_wait<0>();
#pragma unroll
    for (int n = 0; n < E / EN; n++) settle(o[n]);

    // Outputs take the place of the queries: rows leave 16 bytes at a time.
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = sum[half];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        const int row = warp_row + half * 8 + lane / 4, query = first_query + row;
        if (lane % 4 == 0 && query < shape.seq)
            lse[int64_t(batch * shape.heads + head) * shape.seq + query] = (top[half] + log2f(total)) / LOG2E;
        const float over = 1.f / total;
#pragma unroll
        for (int n = 0; n < ET; n++) {
            const float(&c)[4] = o[n / (EN / 8)][n % (EN / 8)];
            *reinterpret_cast<uint32_t*>(shared + at_blocked<BM>(row, n) + lane % 4 * 4) =
                pack(c[2 * half] * over, c[2 * half + 1] * over);
        }
    }
    __syncwarp();
    for (int i = lane; i < 16 * ET; i += 32) {
        const int row = warp_row + i / ET, chunk = i % ET, query = first_query + row;
        if (query < shape.seq && chunk * 8 < out.width)
            *reinterpret_cast<uint4*>(out.at(token + query, head) + chunk * 8) =
                *reinterpret_cast<const uint4*>(shared + at_blocked<BM>(row, chunk));
    }
}

#define BODY(D, E, BN) forward<D, E, BN>(q, k, v, out, lse, shape)
#else
#define BODY(D, E, BN)
#endif

#define KERNEL(D, E, BN)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                   \
        forward_##D##_##E(const __grid_constant__ Heads q, const __grid_constant__ Heads k,                \
                          const __grid_constant__ Heads v, const __grid_constant__ Heads out, float* lse,  \
                          const __grid_constant__ Shape shape) {                                           \
        BODY(D, E, BN);                                                                                    \
    }
// As `FORWARD_HOPPER` in cuda.rs has them.
KERNEL(64, 64, 128)
KERNEL(128, 64, 128)
KERNEL(128, 128, 128)
KERNEL(192, 128, 64)
KERNEL(192, 192, 64)
KERNEL(256, 256, 64)
