// The forward pass of forward.cu for Hopper's matrix unit and copy engine.
//
// A block has 128 queries of one head, 64 for each of two warpgroups; a warp of a third asks the copy engine for keys and
// values, BN at a time, two stages of each, whose barriers count copies (`full`) and warps that have read (`empty`). Within
// a warpgroup the products of one block of keys with the queries are computed while the probabilities of the block before
// are multiplied with its values; the two warpgroups take turns in asking for products, so that one's softmax runs beside
// the other's (FlashAttention-3, arXiv 2407.08608, sections 3.1 and 3.2).
#include "hopper.cuh"
#include "shape.cuh"
#include "wgmma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int BM = 128, GROUPS = 2, STAGES = 2, WARPS = 4 * GROUPS;

// Barriers of both warpgroups: whose turn it is. And one of each warpgroup's own.
constexpr int TURN = 1, ALONE = TURN + GROUPS;

template <int D, int E, int BN>
struct Places {
    static constexpr int K_STAGE = BN * D * 2, V_STAGE = BN * E * 2;
    uint32_t q, k, v, barriers;

    __device__ __forceinline__ explicit Places(uint32_t start)
        : q(start), k(q + BM * D * 2), v(k + STAGES * K_STAGE), barriers(v + STAGES * V_STAGE) {}
    __device__ __forceinline__ uint32_t asked() const { return barriers; }
    __device__ __forceinline__ uint32_t full(int which, int stage) const { return barriers + 8 + (which * STAGES + stage) * 8; }
    __device__ __forceinline__ uint32_t empty(int which, int stage) const { return full(which, stage) + 16 * STAGES; }
};
constexpr int KEYS = 0, VALUES = 1;

__device__ __forceinline__ void released(uint32_t barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

template <int D, int E, int BN>
__device__ __forceinline__ void forward(const Heads& out, float* lse, const Shape& shape, const CUtensorMap* q_map,
                                        const CUtensorMap* k_map, const CUtensorMap* v_map) {
    constexpr int NT = BN / 8, ET = E / 8;
    // Columns of the values that one product takes.
    constexpr int EN = E % 128 == 0 ? 128 : 64;
    extern __shared__ __align__(1024) char shared[];
    const Places<D, E, BN> at(shared_address(shared));

    const int parts_of_seq = (shape.seq + BM - 1) / BM, unit = blockIdx.x / parts_of_seq;
    const int head = unit % shape.heads, batch = unit / shape.heads;
    const int kv_head = head / (shape.heads / shape.kv_heads);
    const int first_query = (parts_of_seq - 1 - blockIdx.x % parts_of_seq) * BM;
    const int64_t token = int64_t(batch) * shape.seq;
    const int past = shape.past;
    int first_key = 0;
    if (shape.starts) {
        const int parts = (shape.seq + 63) / 64;
        uint32_t least = 0xffffffffu;
        for (int i = first_query / 64; i < min((first_query + BM) / 64, parts); i++)
            least = min(least, shape.least[batch * parts + i]);
        first_key = least / BN * BN;
    }
    const int last_query = min(first_query + BM, shape.seq) - 1, blocks = (past + last_query - first_key) / BN + 1;

    if (threadIdx.x == 0) {
        barrier_init(at.asked(), 1);
        for (int stage = 0; stage < STAGES; stage++)
            for (int which : {KEYS, VALUES}) {
                barrier_init(at.full(which, stage), 1);
                barrier_init(at.empty(which, stage), WARPS);
            }
        barrier_init_fence();
    }
    __syncthreads();
    const int group = warpgroup();

    if (group == GROUPS) {
        give_registers<24>();
        if (threadIdx.x != GROUPS * 128) return;
        barrier_expect(at.asked(), BM * D * 2);
        for (int c = 0; c < D / 64; c++)
            copy_box(at.q + c * BM * 128, q_map, at.asked(), c * 64, head, first_query, batch);
        for (int j = 0; j < blocks; j++) {
            const int stage = j % STAGES, parity = j / STAGES % 2, key = first_key + j * BN;
            barrier_wait(at.empty(KEYS, stage), parity ^ 1);
            barrier_expect(at.full(KEYS, stage), at.K_STAGE);
            for (int c = 0; c < D / 64; c++)
                copy_box(at.k + stage * at.K_STAGE + c * BN * 128, k_map, at.full(KEYS, stage), c * 64, kv_head, key, batch);
            barrier_wait(at.empty(VALUES, stage), parity ^ 1);
            barrier_expect(at.full(VALUES, stage), at.V_STAGE);
            for (int c = 0; c < E / 64; c++)
                copy_box(at.v + stage * at.V_STAGE + c * BN * 128, v_map, at.full(VALUES, stage), c * 64, kv_head, key, batch);
        }
        return;
    }

    take_registers<240>();
    const int warp_row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const Score score(shape, head);
    float o[E / EN][EN / 8][4] = {}, s[NT][4];
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {}, keep[2];
    int start[2];
    uint32_t p[NT / 2][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = first_query + warp_row + half * 8 + lane / 4;
        start[half] = shape.starts && row < shape.seq ? shape.starts[token + row] : 0;
    }

    auto my_turn = [&] { asm volatile("bar.sync %0, %1;" ::"r"(TURN + group), "n"(GROUPS * 128) : "memory"); };
    auto your_turn = [&] { asm volatile("bar.arrive %0, %1;" ::"r"(TURN + (group ^ 1)), "n"(GROUPS * 128) : "memory"); };
    auto scores = [&](int j) {
        const uint32_t tile = at.k + j % STAGES * at.K_STAGE;
        barrier_wait(at.full(KEYS, j % STAGES), j / STAGES % 2);
        wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++)
            wgmma<0, 0>(s, Factor(at.q + kk / 4 * BM * 128 + group * 64 * 128 + kk % 4 * 32),
                        Factor(tile + kk / 4 * BN * 128 + kk % 4 * 32), kk > 0);
        wgmma_commit();
    };
    auto values = [&](int j) {
        const uint32_t tile = at.v + j % STAGES * at.V_STAGE;
        barrier_wait(at.full(VALUES, j % STAGES), j / STAGES % 2);
        wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < BN / 16; kk++)
#pragma unroll
            for (int n = 0; n < E / EN; n++)
                wgmma<1>(o[n], p[kk], Factor(tile + n * (EN / 64) * BN * 128 + kk * 2048, BN * 128), 1);
        wgmma_commit();
    };
    // Scores to probabilities, in place, and what the sums so far are to be multiplied with.
    auto softmax = [&](int j) {
        const int key = first_key + j * BN;
        const bool masked = key + BN > past + first_query + warp_row || shape.starts;
        // With a positive scale the largest product is the largest score, and the scale is part of the exponent.
        const bool plain = !masked && !shape.slopes && score.scale > 0.f;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = past + first_query + warp_row + half * 8 + lane / 4;
            float most = top[half];
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

    if (group == 1) your_turn();
    barrier_wait(at.asked(), 0);
    my_turn();
    scores(0);
    your_turn();
    wgmma_wait<0>();
    settle(s);
    released(at.empty(KEYS, 0));
    softmax(0);
    pack_probabilities();
    for (int j = 0; j + 1 < blocks; j++) {
        my_turn();
        scores(j + 1);
        values(j);
        your_turn();
        wgmma_wait<1>();
        settle(s);
        released(at.empty(KEYS, (j + 1) % STAGES));
        softmax(j + 1);
        wgmma_wait<0>();
#pragma unroll
        for (int n = 0; n < E / EN; n++) settle(o[n]);
        released(at.empty(VALUES, j % STAGES));
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
    my_turn();
    values(blocks - 1);
    if (group == 0) your_turn();
    wgmma_wait<0>();
#pragma unroll
    for (int n = 0; n < E / EN; n++) settle(o[n]);

    // Outputs take the place of the warpgroup's queries: rows leave 16 bytes at a time.
    named_barrier(ALONE + group, 128);
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

#define BODY(D, E, BN) forward<D, E, BN>(out, lse, shape, &q, &k, &v)
#else
#define BODY(D, E, BN)
#endif

#define KERNEL(D, E, BN)                                                                                             \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                             \
        forward_##D##_##E(const __grid_constant__ Heads out, float* lse, const __grid_constant__ Shape shape,        \
                          const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,              \
                          const __grid_constant__ CUtensorMap v) {                                                   \
        BODY(D, E, BN);                                                                                              \
    }
// As `FORWARD_HOPPER` in cuda.rs has them.
KERNEL(64, 64, 128)
KERNEL(128, 64, 128)
KERNEL(128, 128, 128)
KERNEL(192, 128, 128)
KERNEL(192, 192, 96)
KERNEL(256, 256, 80)
