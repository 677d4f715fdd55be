// The backward pass of backward.cu for Hopper, for heads of more than 128 channels, whose gradients of 128 keys would take
// more registers than there are.
//
// Two blocks, a cluster, have 64 keys each and walk over the same blocks of 64 queries: each asks the copy engine for half of
// the queries and output gradients, which arrive in both. Of a block's four warpgroups, one has the probabilities and dV,
// one dS and dK, one dQ, and one warp of the last loads. Nothing waits for more than it needs:
//
//   scores: S^T = K Q^T, P^T in registers, to `sums` through shared memory; dV += P^T dO
//   sums:   dP^T = V dO^T, dS^T = P^T (dP^T - delta) in registers, to `queries` through shared memory; dK += dS^T Q
//   queries: dQ = dS K, added to the sums in memory
//
// These additions are what binds, not products: so each block computes half of the channels of dQ, for the keys of both, and
// the two exchange dS through their shared memories. 64 heads of 256 on one, 8192 tokens: 15.0 ms without that.
//
// Queries and output gradients have rings of two stages, each with its own barriers: `full` counts the copies, `empty` the
// warps of both blocks that have read.
#include "backward_wide.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// One warp.
template <int D, int E>
__device__ __forceinline__ void load_all(const Inputs& in, const Shape& shape, const Maps& maps, const Job& job,
                                         const Places<D, E>& at) {
    const int lane = threadIdx.x % 32, rank = cluster_rank();
    if (lane == 0) {
        barrier_expect(at.loaded(), BN * (D + E) * 2 + Share<D>::KEPT * BN * 128);
        for (int c = 0; c < D / 64; c++)
            copy_box(at.k + c * BN * 128, maps.k, at.loaded(), c * 64, job.kv_head, job.first_key, job.batch);
        for (int c = 0; c < E / 64; c++)
            copy_box(at.v + c * BN * 128, maps.v, at.loaded(), c * 64, job.kv_head, job.first_key, job.batch);
        for (int c = 0; c < Share<D>::KEPT; c++)
            copy_box(at.other_k + c * BN * 128, maps.k, at.loaded(), (Share<D>::kept_from(rank) + c) * 64, job.kv_head,
                             job.cluster_key + (rank ^ 1) * BN, job.batch);
    }
    Ring<STAGES> ring;
    for (Walk walk = job.walk(in, shape); !walk.done(); walk.next(), ring.next()) {
        const int first = walk.block * BM;
        auto load = [&](int which, uint32_t to, const CUtensorMap* map, int columns, const float* sums) {
            const uint32_t full = at.full(ring.stage, which);
            barrier_wait(at.empty(ring.stage, which), ring.parity ^ 1);
            if (lane == 0) {
                barrier_expect(full, columns * BM * 128);
                for (int c = rank; c < columns; c += CLUSTER)
                    copy_to_all(to + c * BM * 128, map, full, c * 64, walk.head, first, job.batch);
            }
            sums += int64_t(job.batch * shape.heads + walk.head) * shape.seq;
            load_sums(at.sums(ring.stage, which), sums, first, shape.seq, full);
            __syncwarp();
        };
        load(QUERIES, at.q + ring.stage * at.Q_STAGE, maps.q, D / 64, in.lse);
        load(OUTPUTS, at.d_o + ring.stage * at.O_STAGE, maps.d_out, E / 64, in.delta);
    }
}

template <int D, int E>
__device__ __forceinline__ void scores(const Inputs& in, const Shape& shape, const Job& job, const Places<D, E>& at) {
    const int thread = threadIdx.x % GROUP;
    float dv[E / SPAN<E>][SPAN<E> / 8][4] = {};
    barrier_wait(at.loaded(), 0);
    Ring<STAGES> ring;
    int done = 0;
    for (Walk walk = job.walk(in, shape); !walk.done(); walk.next(), ring.next(), done++) {
        const int first_query = walk.block * BM;
        float s[8][4];
        barrier_wait(at.full(ring.stage, QUERIES), ring.parity);
        wgmma_fence();
        rows_by_rows<D>(s, at.k, at.q + ring.stage * at.Q_STAGE);
        if (done > 0) {
            wgmma_wait<1>();
            release(at.empty(ring.stage ^ 1, OUTPUTS));
        }
        wgmma_wait<0>();
        settle(s);
#pragma unroll
        for (int n = 0; n < E / SPAN<E>; n++) settle(dv[n]);

        uint32_t p[4][4];
        to_probabilities(p, s, Score(shape, walk.head), shape, job.token, first_query, job.first_key, at.sums(ring.stage, QUERIES));
        if (done > 0) barrier_wait(at.ds_empty(), (done & 1) ^ 1);
#pragma unroll
        for (int i = 0; i < 4; i++)
            store_shared(at.ds + (i * GROUP + thread) * 16, make_uint4(p[i][0], p[i][1], p[i][2], p[i][3]));
        arrive<2 * GROUP>(P_FULL);
        barrier_wait(at.full(ring.stage, OUTPUTS), ring.parity);
        wgmma_fence();
        add_product<E>(dv, p, at.d_o + ring.stage * at.O_STAGE);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int n = 0; n < E / SPAN<E>; n++) settle(dv[n]);
    // Where value and key are one, so are their gradients: this adds to what the same thread of the other group has written.
    sync<2 * GROUP>(KEYS_DONE);
    write_out<E>(dv, in.parts > 1 ? in.dv_sums : nullptr, in.dv, in.dv_adds, 1.f, shape, job.batch,
                 job.kv_head, job.first_key);
}

template <int D, int E>
__device__ __forceinline__ void sums(const Inputs& in, const Shape& shape, const Job& job, const Places<D, E>& at) {
    const int thread = threadIdx.x % GROUP;
    float dk[D / SPAN<D>][SPAN<D> / 8][4] = {};
    barrier_wait(at.loaded(), 0);
    Ring<STAGES> ring;
    int done = 0;
    for (Walk walk = job.walk(in, shape); !walk.done(); walk.next(), ring.next(), done++) {
        float dp[8][4];
        barrier_wait(at.full(ring.stage, OUTPUTS), ring.parity);
        wgmma_fence();
        rows_by_rows<E>(dp, at.v, at.d_o + ring.stage * at.O_STAGE);
        if (done > 0) {
            wgmma_wait<1>();
            release(at.empty(ring.stage ^ 1, QUERIES));
        }
        wgmma_wait<0>();
        settle(dp);
#pragma unroll
        for (int n = 0; n < D / SPAN<D>; n++) settle(dk[n]);

        uint32_t ds[4][4];
        sync<2 * GROUP>(P_FULL);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint4 v = load_shared(at.ds + (i * GROUP + thread) * 16);
            ds[i][0] = v.x, ds[i][1] = v.y, ds[i][2] = v.z, ds[i][3] = v.w;
        }
        sync<GROUP>(SUMS);
        to_score_gradients(ds, dp, at.sums(ring.stage, OUTPUTS), at.ds);
        fence_async();
        sync<GROUP>(SUMS);
        if (thread == 0) {
            barrier_expect(at.ds_full(), P_BYTES);
            copy_to_other(at.ds + P_BYTES, at.ds, P_BYTES, at.ds_full());
        }
        release(at.empty(ring.stage, OUTPUTS));
        barrier_wait(at.full(ring.stage, QUERIES), ring.parity);
        wgmma_fence();
        add_product<D>(dk, ds, at.q + ring.stage * at.Q_STAGE);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int n = 0; n < D / SPAN<D>; n++) settle(dk[n]);
    write_out<D>(dk, in.parts > 1 ? in.dk_sums : nullptr, in.dk, in.dk_adds, shape.scale, shape, job.batch,
                 job.kv_head, job.first_key);
    __threadfence_block();
    arrive<2 * GROUP>(KEYS_DONE);
}

template <int D, int E>
__device__ __forceinline__ void queries(const Inputs& in, const Shape& shape, const Job& job, const Places<D, E>& at) {
    const int warp = threadIdx.x / 32 % 4, rank = cluster_rank();
    barrier_wait(at.loaded(), 0);
    int done = 0;
    for (Walk walk = job.walk(in, shape); !walk.done(); walk.next(), done++) {
        float* const sums = tile_of(in.dq_sums, job.batch * shape.heads + walk.head, 4 * walk.blocks, walk.block * 4 + warp, D, 0);
        const int side = Share<D>::EVEN ? rank : (rank ^ done) & 1, end = Share<D>::end(side);
        barrier_wait(at.ds_full(), done & 1);
        for (int part = Share<D>::begin(side); part < end; part++) {
            const uint32_t other = at.other_k + (part - Share<D>::kept_from(rank)) * BN * 128;
            float dq[8][4];
            queries_part(dq, at.ds, at.k + part * BN * 128, other);
            if (part == end - 1) release(at.ds_empty());
#pragma unroll
            for (int n = 0; n < 8; n++) add_atomically(sums + (part * 8 + n) * 128, dq[n]);
        }
    }
}

template <int D, int E>
__device__ __forceinline__ void backward(const Inputs& in, const Shape& shape, const Maps& maps) {
    extern __shared__ __align__(1024) char shared[];
    const Places<D, E> at(shared_address(shared));
    if (threadIdx.x == 0) {
        barrier_init(at.loaded(), 1);
        barrier_init(at.ds_full(), 1);
        barrier_init(at.ds_empty(), CLUSTER * 4);
        for (int stage = 0; stage < STAGES; stage++)
            for (int which : {QUERIES, OUTPUTS}) {
                // The copy engine and the loading warp's lanes; the warps of one group, or of two, in all blocks.
                barrier_init(at.full(stage, which), 1 + 32);
                barrier_init(at.empty(stage, which), CLUSTER * (which == QUERIES ? 4 : 8));
            }
        barrier_init_fence();
    }
    __syncthreads();
    cluster_sync();
    const Job job(in, shape);
    const int group = warpgroup();
    if (group == 0) {
        take_registers<208>();
        scores<D, E>(in, shape, job, at);
    } else if (group == 1) {
        take_registers<208>();
        sums<D, E>(in, shape, job, at);
    } else if (group == 2) {
        give_registers<64>();
        queries<D, E>(in, shape, job, at);
    } else {
        give_registers<32>();
        if (threadIdx.x / 32 % 4 == 0) load_all<D, E>(in, shape, maps, job, at);
    }
    // Nobody leaves while the other may write here.
    __syncwarp();
    cluster_sync();
}

#define BODY(D, E) backward<D, E>(inputs, shape, Maps{&q, &k, &v, &d_out})
#else
#define BODY(D, E)
#endif

#define KERNEL(D, E)                                                                                              \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                  \
        backward_##D##_##E(const __grid_constant__ Inputs inputs, const __grid_constant__ Shape shape,            \
                           const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,          \
                           const __grid_constant__ CUtensorMap v, const __grid_constant__ CUtensorMap d_out) {    \
        BODY(D, E);                                                                                               \
    }
// As `BACKWARD_WIDE` in cuda.rs has them.
KERNEL(192, 128)
KERNEL(192, 192)
KERNEL(256, 256)
