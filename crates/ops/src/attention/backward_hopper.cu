// The backward pass of backward.cu for Hopper's matrix unit and copy engine, for heads of up to 128 channels.
//
// A block has 128 keys of one kv head and walks over blocks of 64 queries. Of its four warpgroups, two have 64 keys each:
// P^T and dS^T come out of the products of keys with queries in the registers, as the products dV += P^T dO and dK += dS^T Q
// take them. A third computes dQ = dS K, which sums over all keys of the block, from the dS that the two leave in shared memory,
// and adds it to the sums in memory. One warp of the last loads queries and output gradients, three stages ahead.
#include "backward_hopper.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int STAGES = 3, KEY_GROUPS = 2, KEYS = KEY_GROUPS * BN;
// Barriers of all but the last warpgroup, in pairs.
constexpr int DS_FULL = 1, DS_EMPTY = DS_FULL + 2, WORKING = 3 * GROUP;

// Shared memory, in bytes: a tile of keys and one of values for each warpgroup that has keys.
template <int D, int E>
struct Places {
    static constexpr int Q_STAGE = BM * D * 2, O_STAGE = BM * E * 2, K_TILE = BN * D * 2, V_TILE = BN * E * 2;
    uint32_t k, v, q, d_o, ds, rows, barriers;

    __device__ __forceinline__ explicit Places(uint32_t start)
        : k(start), v(k + KEY_GROUPS * K_TILE), q(v + KEY_GROUPS * V_TILE), d_o(q + STAGES * Q_STAGE), ds(d_o + STAGES * O_STAGE),
          rows(ds + 2 * KEY_GROUPS * P_BYTES), barriers(rows + 2 * STAGES * BM * 4) {}
    // lse of a stage, or delta.
    __device__ __forceinline__ uint32_t sums(int stage, int which) const { return rows + (which * STAGES + stage) * BM * 4; }
    __device__ __forceinline__ uint32_t loaded() const { return barriers; }
    __device__ __forceinline__ uint32_t full(int stage, int which) const { return barriers + 8 + (which * STAGES + stage) * 8; }
    __device__ __forceinline__ uint32_t empty(int stage) const { return barriers + 8 + (2 * STAGES + stage) * 8; }
};

// What all roles know.
struct Job {
    int batch, kv_head, part, first_key;
    int64_t token;

    __device__ __forceinline__ Job(const Inputs& in, const Shape& shape) {
        const int blocks = (shape.seq + KEYS - 1) / KEYS, unit = blockIdx.x / blocks;
        part = unit % in.parts;
        kv_head = unit / in.parts % shape.kv_heads;
        batch = unit / in.parts / shape.kv_heads;
        first_key = blockIdx.x % blocks * KEYS;
        token = int64_t(batch) * shape.seq;
    }
    __device__ __forceinline__ Walk walk(const Inputs& in, const Shape& shape) const {
        return Walk(shape, in.parts, batch, kv_head, part, first_key, KEYS);
    }
};

// One warp.
template <int D, int E>
__device__ __forceinline__ void load_all(const Inputs& in, const Shape& shape, const Maps& maps, const Job& job,
                                         const Places<D, E>& at) {
    const int lane = threadIdx.x % 32;
    auto load_tile = [&](uint32_t to, const CUtensorMap* map, uint32_t barrier, int columns, int head, int row) {
        for (int c = 0; c < columns; c++) copy_box(to + c * 64 * 128, map, barrier, c * 64, head, row, job.batch);
    };
    if (lane == 0) {
        barrier_expect(at.loaded(), KEYS * (D + E) * 2);
        for (int g = 0; g < KEY_GROUPS; g++) {
            load_tile(at.k + g * at.K_TILE, maps.k, at.loaded(), D / 64, job.kv_head, job.first_key + g * BN);
            load_tile(at.v + g * at.V_TILE, maps.v, at.loaded(), E / 64, job.kv_head, job.first_key + g * BN);
        }
    }
    Ring<STAGES> ring;
    for (Walk walk = job.walk(in, shape); !walk.done(); walk.next(), ring.next()) {
        const int first = walk.block * BM;
        const int64_t row = int64_t(job.batch * shape.heads + walk.head) * shape.seq;
        barrier_wait(at.empty(ring.stage), ring.parity ^ 1);
        auto load = [&](int which, uint32_t to, const CUtensorMap* map, int columns, const float* sums) {
            const uint32_t full = at.full(ring.stage, which);
            if (lane == 0) {
                barrier_expect(full, columns * BM * 128);
                load_tile(to, map, full, columns, walk.head, first);
            }
            load_sums(at.sums(ring.stage, which), sums + row, first, shape.seq, full);
            __syncwarp();
        };
        load(QUERIES, at.q + ring.stage * at.Q_STAGE, maps.q, D / 64, in.lse);
        load(OUTPUTS, at.d_o + ring.stage * at.O_STAGE, maps.d_out, E / 64, in.delta);
    }
}

template <int D, int E>
__device__ __forceinline__ void keys(const Inputs& in, const Shape& shape, const Job& job, const Places<D, E>& at, int group) {
    // With the widest heads there are no registers for two unfinished products beside the gradients.
    constexpr bool EARLY = D + E < 256;
    const int first_key = job.first_key + group * BN;
    float dk[D / SPAN<D>][SPAN<D> / 8][4] = {}, dv[E / SPAN<E>][SPAN<E> / 8][4] = {};
    barrier_wait(at.loaded(), 0);
    Ring<STAGES> ring;
    int done = 0, before = 0;
    for (Walk walk = job.walk(in, shape); !walk.done(); walk.next(), done++) {
        const uint32_t q = at.q + ring.stage * at.Q_STAGE, d_o = at.d_o + ring.stage * at.O_STAGE;
        float s[8][4], dp[8][4];
        barrier_wait(at.full(ring.stage, QUERIES), ring.parity);
        barrier_wait(at.full(ring.stage, OUTPUTS), ring.parity);
        wgmma_fence();
        rows_by_rows<D>(s, at.k + group * at.K_TILE, q);
        if (EARLY) rows_by_rows<E>(dp, at.v + group * at.V_TILE, d_o);
        if (done > 0) {
            wgmma_wait<EARLY ? 2 : 1>();
            __syncwarp();
            if (threadIdx.x % 32 == 0) barrier_arrive(at.empty(before));
        }
        wgmma_wait<EARLY ? 1 : 0>();
        settle(s);
        uint32_t p[4][4];
        to_probabilities(p, s, Score(shape, walk.head), shape, job.token, walk.block * BM, first_key, at.sums(ring.stage, QUERIES));
        wgmma_fence();
        if (!EARLY) rows_by_rows<E>(dp, at.v + group * at.V_TILE, d_o);
        add_product<E>(dv, p, d_o);
        // P gives its registers to dS.
        wgmma_wait<0>();
        settle(dp);
#pragma unroll
        for (int n = 0; n < E / SPAN<E>; n++) settle(dv[n]);
        const int buffer = done & 1;
        if (done > 1) sync<WORKING>(DS_EMPTY + buffer);
        to_score_gradients(p, dp, at.sums(ring.stage, OUTPUTS), at.ds + (buffer * KEY_GROUPS + group) * P_BYTES);
        fence_async();
        arrive<WORKING>(DS_FULL + buffer);
        wgmma_fence();
        add_product<D>(dk, p, q);
        before = ring.stage;
        ring.next();
    }
    wgmma_wait<0>();
#pragma unroll
    for (int n = 0; n < D / SPAN<D>; n++) settle(dk[n]);
#pragma unroll
    for (int n = 0; n < E / SPAN<E>; n++) settle(dv[n]);
    const bool several = in.parts > 1;
    write_out<D>(dk, several ? in.dk_sums : nullptr, in.dk, in.dk_adds, shape.scale, shape, job.batch, job.kv_head, first_key);
    // Where value and key are one, so are their gradients, and this adds to what the same thread has just written.
    write_out<E>(dv, several ? in.dv_sums : nullptr, in.dv, in.dv_adds, 1.f, shape, job.batch, job.kv_head, first_key);
}

template <int D, int E>
__device__ __forceinline__ void queries(const Inputs& in, const Shape& shape, const Job& job, const Places<D, E>& at) {
    const int warp = threadIdx.x / 32 % 4;
    barrier_wait(at.loaded(), 0);
    int buffer = 0;
    for (Walk walk = job.walk(in, shape); !walk.done(); walk.next(), buffer ^= 1) {
        float* const sums = tile_of(in.dq_sums, job.batch * shape.heads + walk.head, 4 * walk.blocks, walk.block * 4 + warp, D, 0);
        const uint32_t ds = at.ds + buffer * KEY_GROUPS * P_BYTES;
        sync<WORKING>(DS_FULL + buffer);
#pragma unroll 1
        for (int part = 0; part < D / 64; part++) {
            float dq[8][4];
            queries_part(dq, ds, at.k + part * BN * 128, at.k + at.K_TILE + part * BN * 128);
            if (part == D / 64 - 1) arrive<WORKING>(DS_EMPTY + buffer);
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
        for (int stage = 0; stage < STAGES; stage++) {
            // The copy engine and the loading warp's lanes; the warps that have keys.
            for (int which : {QUERIES, OUTPUTS}) barrier_init(at.full(stage, which), 1 + 32);
            barrier_init(at.empty(stage), 4 * KEY_GROUPS);
        }
        barrier_init_fence();
    }
    __syncthreads();
    const Job job(in, shape);
    const int group = warpgroup();
    if (group < KEY_GROUPS) {
        take_registers<208>();
        keys<D, E>(in, shape, job, at, group);
    } else if (group == KEY_GROUPS) {
        give_registers<64>();
        queries<D, E>(in, shape, job, at);
    } else {
        give_registers<32>();
        if (threadIdx.x / 32 % 4 == 0) load_all<D, E>(in, shape, maps, job, at);
    }
}

#define BODY(D, E) backward<D, E>(inputs, shape, Maps{&q, &k, &v, &d_out})
#else
#define BODY(D, E)
#endif

#define KERNEL(D, E)                                                                                            \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                        \
        backward_##D##_##E(const __grid_constant__ Inputs inputs, const __grid_constant__ Shape shape,          \
                           const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,        \
                           const __grid_constant__ CUtensorMap v, const __grid_constant__ CUtensorMap d_out) {  \
        BODY(D, E);                                                                                             \
    }
// As `BACKWARD_HOPPER` in cuda.rs has them.
KERNEL(64, 64)
KERNEL(128, 64)
KERNEL(128, 128)
