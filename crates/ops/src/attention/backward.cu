// Gradients of causal attention of whole sequences, blockwise: probabilities are computed again from the log-sum-exp
// (FlashAttention-2, arXiv 2307.08691, algorithm 2).
//
//   P = 2^(scores - lse), dV = P^T dO, dP = dO V^T, dS = P (dP - delta), dQ = scale dS K, dK = scale dS^T Q
//   with delta = the sum over channels of dO O, one per query and head (`delta` below)
//
// A block of 8 warps takes BN keys of one kv head and walks over the BM = 64 queries at a time that see them, of all query
// heads that share it (or of a part of these, where there would be too few blocks): dK and dV stay in registers, however
// many query heads there are. Keys, values, and two stages of queries and output gradients are in shared memory.
// Products are computed on transposes (S^T = K Q^T), so that P^T and dS^T are written to shared memory as the operands of
// dV, dK and dQ. Warps lie 4 along the keys by 2 along the queries, then the channels; 2 by 4 for dQ.
//
// The blocks of a kv head and part follow one another, and a part is few query heads: queries, output gradients and sums of
// dQ of all blocks at work at a time fit into the L2 cache. (With many heads a part, the same kernel waited for memory: it
// moved 4.7 GB where 0.5 were needed.)
//
// dQ is summed up over key blocks in f32 with atomic adds, each lane's four accumulators adjacent: the order of these
// sums, and so the last bits, may differ between runs. `finish` gives the sums their places and type.
#include "backward.cuh"

constexpr int WARPS = 8, THREADS = WARPS * 32;

template <int D, int E, int BN>
__device__ __forceinline__ void backward(const Inputs& in, const Shape& shape) {
    constexpr int KR = BN / 4, KT = KR / 16;          // keys of a warp, in tiles
    constexpr int DT = D / 16, ET = E / 16;           // 8-column tiles of a warp in dK and dV
    constexpr int QT = D / 32;                        // the same in dQ
    extern __shared__ __align__(128) char shared[];
    const uint32_t sk = shared_address(shared), sv = sk + BN * D * 2, sq = sv + BN * E * 2, sdo = sq + 2 * BM * D * 2;
    const uint32_t sp = sdo + 2 * BM * E * 2, sds = sp + BN * BM * 2;
    char* const p_tile = shared + (sp - sk);
    float* const rows = reinterpret_cast<float*>(shared + (sds - sk) + BN * BM * 2);   // [2 stages][lse, delta][BM]

    const int parts_of_seq = (shape.seq + BN - 1) / BN, unit = blockIdx.x / parts_of_seq;
    const int part = unit % in.parts, kv_head = unit / in.parts % shape.kv_heads, batch = unit / in.parts / shape.kv_heads;
    const int first_key = blockIdx.x % parts_of_seq * BN;
    const int64_t token = int64_t(batch) * shape.seq;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int wk = warp % 4, w2 = warp / 4;            // along the keys; along the queries, then the channels

    auto load = [&](int stage, const Walk& walk) {
        const int first = walk.block * BM;
        load_tile<BM, D, THREADS>(sq + stage * BM * D * 2, in.q, token, walk.head, first, shape.seq);
        load_tile<BM, E, THREADS>(sdo + stage * BM * E * 2, in.d_out, token, walk.head, first, shape.seq);
        load_rows(shared_address(rows + stage * 2 * BM), in, shape, batch, walk);
    };

    load_tile<BN, D, THREADS>(sk, in.k, token, kv_head, first_key, shape.seq);
    load_tile<BN, E, THREADS>(sv, in.v, token, kv_head, first_key, shape.seq);
    float dk[KT][DT][4] = {}, dv[KT][ET][4] = {};
    Walk walk(shape, in.parts, batch, kv_head, part, first_key, BN);
    int stage = 0;
    if (!walk.done()) load(0, walk);
    commit_copies();

    while (!walk.done()) {
        Walk after = walk;
        after.next();
        wait_copies<0>();
        __syncthreads();
        if (!after.done()) load(stage ^ 1, after);
        commit_copies();

        const uint32_t q = sq + stage * BM * D * 2, d_o = sdo + stage * BM * E * 2;
        const float* lse = rows + stage * 2 * BM;
        const Score score(shape, walk.head);
        const int first_query = walk.block * BM;
        {
            float s[KT][4][4] = {}, dp[KT][4][4] = {};
#pragma unroll
            for (int kk = 0; kk < D / 16; kk++) {
                uint32_t a[KT][4], b[2][4];
#pragma unroll
                for (int t = 0; t < KT; t++) load_a<D>(a[t], sk, wk * KR + t * 16, kk);
#pragma unroll
                for (int n = 0; n < 2; n++) load_b<D>(b[n], q, w2 * 32 + n * 16, kk);
#pragma unroll
                for (int t = 0; t < KT; t++)
#pragma unroll
                    for (int n = 0; n < 4; n++) mma(s[t][n], a[t], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
            }
#pragma unroll
            for (int kk = 0; kk < E / 16; kk++) {
                uint32_t a[KT][4], b[2][4];
#pragma unroll
                for (int t = 0; t < KT; t++) load_a<E>(a[t], sv, wk * KR + t * 16, kk);
#pragma unroll
                for (int n = 0; n < 2; n++) load_b<E>(b[n], d_o, w2 * 32 + n * 16, kk);
#pragma unroll
                for (int t = 0; t < KT; t++)
#pragma unroll
                    for (int n = 0; n < 4; n++) mma(dp[t][n], a[t], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
            }
            const bool masked = first_key + BN > first_query || shape.starts;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int column = w2 * 32 + n * 8 + lane % 4 * 2;
                const float2 sums = powers(lse + column);
                const float2 delta = *reinterpret_cast<const float2*>(lse + BM + column);
                const int query = first_query + column;
                int start0 = 0, start1 = 0;
                if (shape.starts) {
                    start0 = query < shape.seq ? shape.starts[token + query] : 0;
                    start1 = query + 1 < shape.seq ? shape.starts[token + query + 1] : 0;
                }
#pragma unroll
                for (int t = 0; t < KT; t++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const int row = wk * KR + t * 16 + half * 8 + lane / 4, key = first_key + row;
                        const float2 p = probabilities(score, s[t][n][2 * half], s[t][n][2 * half + 1], sums, query, key,
                                                       masked, start0, start1);
                        const float ds0 = p.x * (dp[t][n][2 * half] - delta.x), ds1 = p.y * (dp[t][n][2 * half + 1] - delta.y);
                        const uint32_t place = at<BM>(row, w2 * 4 + n) + lane % 4 * 4;
                        *reinterpret_cast<uint32_t*>(p_tile + place) = pack(p.x, p.y);
                        *reinterpret_cast<uint32_t*>(p_tile + BN * BM * 2 + place) = pack(ds0, ds1);
                    }
            }
        }
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < BM / 16; kk++) {
            uint32_t a[KT][4];
#pragma unroll
            for (int t = 0; t < KT; t++) load_a<BM>(a[t], sp, wk * KR + t * 16, kk);
#pragma unroll
            for (int n = 0; n < ET / 2; n++) {
                uint32_t b[4];
                load_b_t<E>(b, d_o, w2 * (E / 32) + n, kk * 16);
#pragma unroll
                for (int t = 0; t < KT; t++) {
                    mma(dv[t][2 * n], a[t], b[0], b[1]);
                    mma(dv[t][2 * n + 1], a[t], b[2], b[3]);
                }
            }
        }
#pragma unroll
        for (int kk = 0; kk < BM / 16; kk++) {
            uint32_t a[KT][4];
#pragma unroll
            for (int t = 0; t < KT; t++) load_a<BM>(a[t], sds, wk * KR + t * 16, kk);
#pragma unroll
            for (int n = 0; n < DT / 2; n++) {
                uint32_t b[4];
                load_b_t<D>(b, q, w2 * (D / 32) + n, kk * 16);
#pragma unroll
                for (int t = 0; t < KT; t++) {
                    mma(dk[t][2 * n], a[t], b[0], b[1]);
                    mma(dk[t][2 * n + 1], a[t], b[2], b[3]);
                }
            }
        }
        {
            // 32 queries by D / 4 channels a warp.
            const int wm = warp % 2, wn = warp / 2;
            float dq[2][QT][4] = {};
#pragma unroll
            for (int kk = 0; kk < BN / 16; kk++) {
                uint32_t a[2][4];
#pragma unroll
                for (int t = 0; t < 2; t++) load_a_t<BM>(a[t], sds, wm * 2 + t, kk * 16);
#pragma unroll
                for (int n = 0; n < QT / 2; n++) {
                    uint32_t b[4];
                    load_b_t<D>(b, sk, wn * (D / 64) + n, kk * 16);
#pragma unroll
                    for (int t = 0; t < 2; t++) {
                        mma(dq[t][2 * n], a[t], b[0], b[1]);
                        mma(dq[t][2 * n + 1], a[t], b[2], b[3]);
                    }
                }
            }
#pragma unroll
            for (int t = 0; t < 2; t++)
#pragma unroll
                for (int n = 0; n < QT; n++)
                    add_atomically(tile_of(in.dq_sums, batch * shape.heads + walk.head, 4 * walk.blocks,
                                           walk.block * 4 + wm * 2 + t, D, wn * QT + n),
                                   dq[t][n]);
        }
        stage ^= 1;
        walk = after;
    }
    wait_copies<0>();

    const int row_tiles = (shape.seq + 15) / 16, kv = batch * shape.kv_heads + kv_head;
    if (in.parts > 1) {
#pragma unroll
        for (int t = 0; t < KT; t++) {
            const int row_tile = (first_key + wk * KR) / 16 + t;
            if (row_tile >= row_tiles) continue;
#pragma unroll
            for (int n = 0; n < DT; n++)
                add_atomically(tile_of(in.dk_sums, kv, row_tiles, row_tile, D, w2 * DT + n), dk[t][n]);
#pragma unroll
            for (int n = 0; n < ET; n++)
                add_atomically(tile_of(in.dv_sums, kv, row_tiles, row_tile, E, w2 * ET + n), dv[t][n]);
        }
        return;
    }
#pragma unroll
    for (int t = 0; t < KT; t++)
#pragma unroll
        for (int n = 0; n < DT; n++) 
            put(in.dk, in.dk_adds, shape.scale, token, shape.seq, kv_head, first_key + wk * KR + t * 16 + lane / 4,
                w2 * (D / 2) + n * 8 + lane % 4 * 2, dk[t][n]);
    // Where value and key are one, so are their gradients, and this adds to what was just written.
    __syncthreads();
#pragma unroll
    for (int t = 0; t < KT; t++)
#pragma unroll
        for (int n = 0; n < ET; n++) 
            put(in.dv, in.dv_adds, 1.f, token, shape.seq, kv_head, first_key + wk * KR + t * 16 + lane / 4,
                w2 * (E / 2) + n * 8 + lane % 4 * 2, dv[t][n]);
}

// delta [B * M, S]: half a warp takes a token's head, 128 channels at a time.
extern "C" __global__ void __launch_bounds__(256)
    delta(const __grid_constant__ Heads out, const __grid_constant__ Heads d_out, float* delta, int batch, int seq, int heads) {
    const int64_t unit = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 16;
    const bool real = unit < int64_t(batch) * seq * heads;
    const int64_t token = unit / heads;
    const int head = unit % heads, lane = threadIdx.x % 16;
    float sum = 0.f;
    for (int c = lane * 8; real && c < out.width; c += 128) {
        float a[8], b[8];
        load(out.at(token, head) + c, a);
        load(d_out.at(token, head) + c, b);
#pragma unroll
        for (int i = 0; i < 8; i++) sum = fmaf(a[i], b[i], sum);
    }
#pragma unroll
    for (int other = 8; other > 0; other >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, other);
    if (real && lane == 0) delta[(token / seq * heads + head) * seq + token % seq] = sum;
}

// to (+)= factor * sums: [B * heads, row tiles, columns / 8, lane, 4] as rows of bf16. A thread takes 8 columns of a row.
extern "C" __global__ void __launch_bounds__(256)
    finish(const float* sums, int row_tiles, int columns, float factor, const __grid_constant__ Heads to, int adds,
           int batch, int seq, int heads) {
    const int chunks = to.width / 8;
    const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= int64_t(batch) * heads * seq * chunks) return;
    const int chunk = index % chunks, head = index / chunks % heads;
    const int64_t token = index / chunks / heads;
    const int row = token % seq, half = row % 16 / 8;
    const float* from =
        sums + (((token / seq * heads + head) * row_tiles + row / 16) * (columns / 8) + chunk) * 128 + row % 8 * 16 + half * 2;
    float v[8], before[8] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 two = *reinterpret_cast<const float2*>(from + 4 * i);
        v[2 * i] = two.x;
        v[2 * i + 1] = two.y;
    }
    bf16* place = to.at(token, head) + chunk * 8;
    if (adds) load(place, before);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = fmaf(factor, v[i], before[i]);
    store(place, v);
}

#define KERNEL(D, E, BN)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                   \
        backward_##D##_##E(const __grid_constant__ Inputs inputs, const __grid_constant__ Shape shape) {       \
        backward<D, E, BN>(inputs, shape);                                                                     \
    }
// As `BACKWARD` in cuda.rs has them.
KERNEL(64, 64, 128)
KERNEL(128, 64, 128)
KERNEL(128, 128, 128)
KERNEL(192, 128, 64)
KERNEL(192, 192, 64)
KERNEL(256, 256, 64)
