// The backward pass of backward.cu for Hopper's matrix unit, for heads of up to 128 channels.
//
// A block of two warpgroups takes 128 keys of one kv head, 64 each, and walks over blocks of 64 queries, two stages of which
// are in shared memory with their output gradients. P^T and dS^T come out of the products of keys with queries in the
// registers, as the products dV += P^T dO and dK += dS^T Q take them; only dQ = dS K, which sums over all keys of the block,
// needs dS in shared memory. There each warpgroup computes half of the channels; for 64 channels, which make no halves,
// the share of its own keys.
#include "backward.cuh"
#include "wgmma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int BN = 128, THREADS = 256;

template <int ROWS, int COLS>
__device__ __forceinline__ void load_blocked(uint32_t tile, const Heads& heads, int64_t token, int head, int first, int rows) {
    load_chunks<ROWS, COLS, THREADS>(tile, heads, token, head, first, rows, at_blocked<ROWS>);
}

template <int D, int E>
__device__ __forceinline__ void backward(const Inputs& in, const Shape& shape) {
    extern __shared__ __align__(1024) char shared[];
    const uint32_t sk = shared_address(shared), sv = sk + BN * D * 2, sq = sv + BN * E * 2, sdo = sq + 2 * BM * D * 2;
    const uint32_t sds = sdo + 2 * BM * E * 2;
    char* const ds_tile = shared + (sds - sk);
    float* const rows = reinterpret_cast<float*>(ds_tile + BN * BM * 2);   // [2 stages][lse, delta][BM]

    const int parts_of_seq = (shape.seq + BN - 1) / BN, unit = blockIdx.x / parts_of_seq;
    const int part = unit % in.parts, kv_head = unit / in.parts % shape.kv_heads, batch = unit / in.parts / shape.kv_heads;
    const int first_key = blockIdx.x % parts_of_seq * BN;
    const int64_t token = int64_t(batch) * shape.seq;
    const int group = warpgroup(), lane = threadIdx.x % 32;
    const int warp_row = threadIdx.x / 32 * 16;   // of the keys

    auto load = [&](int stage, const Walk& walk) {
        const int first = walk.block * BM;
        load_blocked<BM, D>(sq + stage * BM * D * 2, in.q, token, walk.head, first, shape.seq);
        load_blocked<BM, E>(sdo + stage * BM * E * 2, in.d_out, token, walk.head, first, shape.seq);
        load_rows(shared_address(rows + stage * 2 * BM), in, shape, batch, walk);
    };

    load_blocked<BN, D>(sk, in.k, token, kv_head, first_key, shape.seq);
    load_blocked<BN, E>(sv, in.v, token, kv_head, first_key, shape.seq);
    float dk[D / 8][4] = {}, dv[E / 8][4] = {};
    Walk walk(shape, in.parts, batch, kv_head, part, first_key, BN);
    int stage = 0;
    if (!walk.done()) load(0, walk);
    commit_copies();
    wait_copies<0>();
    fence_for_products();

    while (!walk.done()) {
        Walk after = walk;
        after.next();
        __syncthreads();

        const uint32_t q = sq + stage * BM * D * 2, d_o = sdo + stage * BM * E * 2;
        const float* lse = rows + stage * 2 * BM;
        const Score score(shape, walk.head);
        const int first_query = walk.block * BM;
        float s[8][4], dp[8][4];
        wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++)
            wgmma<0, 0>(s, tile_descriptor(sk + kk / 4 * BN * 128 + group * 64 * 128 + kk % 4 * 32, 0),
                        tile_descriptor(q + kk / 4 * BM * 128 + kk % 4 * 32, 0), kk > 0);
        wgmma_commit();
#pragma unroll
        for (int kk = 0; kk < E / 16; kk++)
            wgmma<0, 0>(dp, tile_descriptor(sv + kk / 4 * BN * 128 + group * 64 * 128 + kk % 4 * 32, 0),
                        tile_descriptor(d_o + kk / 4 * BM * 128 + kk % 4 * 32, 0), kk > 0);
        wgmma_commit();
        if (!after.done()) load(stage ^ 1, after);
        commit_copies();
        wgmma_wait<1>();
        settle(s);

        const bool masked = first_key + BN > first_query || shape.starts;
        uint32_t p[4][4], ds[4][4];
        if (masked || shape.slopes) {
#pragma unroll
            for (int n = 0; n < 8; n++) {
                const int column = n * 8 + lane % 4 * 2, query = first_query + column;
                const float2 sums = powers(lse + column);
                int start0 = 0, start1 = 0;
                if (shape.starts) {
                    start0 = query < shape.seq ? shape.starts[token + query] : 0;
                    start1 = query + 1 < shape.seq ? shape.starts[token + query + 1] : 0;
                }
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int key = first_key + warp_row + half * 8 + lane / 4;
                    const float2 both = probabilities(score, s[n][2 * half], s[n][2 * half + 1], sums, query, key, true, start0, start1);
                    s[n][2 * half] = both.x;
                    s[n][2 * half + 1] = both.y;
                }
            }
        } else {
#pragma unroll
            for (int n = 0; n < 8; n++) {
                const float2 sums = powers(lse + n * 8 + lane % 4 * 2);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    s[n][2 * half] = power2(fmaf(s[n][2 * half], score.scale, -sums.x));
                    s[n][2 * half + 1] = power2(fmaf(s[n][2 * half + 1], score.scale, -sums.y));
                }
            }
        }
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) p[n / 2][n % 2 * 2 + half] = pack(s[n][2 * half], s[n][2 * half + 1]);
        wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < BM / 16; kk++) wgmma<1>(dv, p[kk], tile_descriptor(d_o + kk * 2048, BM * 128), 1);
        wgmma_commit();
        wgmma_wait<1>();
        settle(dp);
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const float2 delta = *reinterpret_cast<const float2*>(lse + BM + n * 8 + lane % 4 * 2);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t both =
                    pack(s[n][2 * half] * (dp[n][2 * half] - delta.x), s[n][2 * half + 1] * (dp[n][2 * half + 1] - delta.y));
                ds[n / 2][n % 2 * 2 + half] = both;
                *reinterpret_cast<uint32_t*>(ds_tile + at_blocked<BN>(warp_row + half * 8 + lane / 4, n) + lane % 4 * 4) = both;
            }
        }
        fence_for_products();
        wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < BM / 16; kk++) wgmma<1>(dk, ds[kk], tile_descriptor(q + kk * 2048, BM * 128), 1);
        wgmma_commit();
        __syncthreads();
        {
            // The tile of dS has keys as rows: both operands are read transposed.
            constexpr bool HALVES = D == 128;
            constexpr int STEPS = HALVES ? BN / 16 : BN / 32;
            const uint32_t a = sds + (HALVES ? 0 : group * STEPS * 2048);
            const uint32_t b = sk + (HALVES ? group * BN * 128 : group * STEPS * 2048);
            float dq[8][4];
            wgmma_fence();
#pragma unroll
            for (int kk = 0; kk < STEPS; kk++)
                wgmma<1, 1>(dq, tile_descriptor(a + kk * 2048, 0), tile_descriptor(b + kk * 2048, 0), kk > 0);
            wgmma_commit();
            wgmma_wait<0>();
            settle(dq);
            settle(dk);
            settle(dv);
            // Before the atomic adds, for which a fence would wait.
            wait_copies<0>();
            fence_for_products();
            const int row_tile = walk.block * 4 + warp_row / 16 % 4;
#pragma unroll
            for (int n = 0; n < 8; n++)
                add_atomically(tile_of(in.dq_sums, batch * shape.heads + walk.head, 4 * walk.blocks, row_tile, D,
                                       (HALVES ? group * 8 : 0) + n),
                               dq[n]);
        }
        stage ^= 1;
        walk = after;
    }

    const int row_tiles = (shape.seq + 15) / 16, kv = batch * shape.kv_heads + kv_head;
    if (in.parts > 1) {
        const int row_tile = (first_key + warp_row) / 16;
        if (row_tile >= row_tiles) return;
#pragma unroll
        for (int n = 0; n < D / 8; n++) add_atomically(tile_of(in.dk_sums, kv, row_tiles, row_tile, D, n), dk[n]);
#pragma unroll
        for (int n = 0; n < E / 8; n++) add_atomically(tile_of(in.dv_sums, kv, row_tiles, row_tile, E, n), dv[n]);
        return;
    }
    const int key = first_key + warp_row + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        put(in.dk, in.dk_adds, shape.scale, token, shape.seq, kv_head, key, n * 8 + column, dk[n]);
    // Where value and key are one, so are their gradients, and this adds to what the same thread has just written.
#pragma unroll
    for (int n = 0; n < E / 8; n++) put(in.dv, in.dv_adds, 1.f, token, shape.seq, kv_head, key, n * 8 + column, dv[n]);
}

#define BODY(D, E) backward<D, E>(inputs, shape)
#else
#define BODY(D, E)
#endif

#define KERNEL(D, E)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                  \
        backward_##D##_##E(const __grid_constant__ Inputs inputs, const __grid_constant__ Shape shape) {  \
        BODY(D, E);                                                                                       \
    }
// As `BACKWARD_HOPPER` in cuda.rs has them.
KERNEL(64, 64)
KERNEL(128, 64)
KERNEL(128, 128)
