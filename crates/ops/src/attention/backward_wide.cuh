// What the roles of backward_wide.cu share: barriers, exchange with the other block of the cluster, places in shared memory.
#pragma once
#include "backward_hopper.cuh"
#include "clusters.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int CLUSTER = 2, STAGES = 2;

// Barriers of two warpgroups, by number, and of the one that has dS.
enum Named { P_FULL = 1, KEYS_DONE, SUMS };

// A warp has read a stage: lane i tells block i of the cluster.
__device__ __forceinline__ void release(uint32_t barrier) {
    __syncwarp();
    if (threadIdx.x % 32 < CLUSTER)
        asm volatile(
            "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
            "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
            "r"(threadIdx.x % 32)
            : "memory");
}
// A box of 64 columns by 64 rows to the same place in all blocks of the cluster.
__device__ __forceinline__ void copy_to_all(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column, int head, int row,
                                            int batch) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(column), "r"(head), "r"(row), "r"(batch), "h"(uint16_t((1 << CLUSTER) - 1))
        : "memory");
}

// Bytes of shared memory to the other block's, whose barrier counts them.
__device__ __forceinline__ void copy_to_other(uint32_t to, uint32_t from, int bytes, uint32_t barrier) {
    asm volatile(
        "{\n.reg .b32 there, counts;\nmapa.shared::cluster.u32 there, %0, %4;\nmapa.shared::cluster.u32 counts, %3, %4;\n"
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [there], [%1], %2, [counts];\n}\n" ::"r"(to),
        "r"(from), "r"(bytes), "r"(barrier), "r"(cluster_rank() ^ 1)
        : "memory");
}

// Which of the 64-column parts of dQ a block computes, and whose of the other block's keys it has for that.
template <int D>
struct Share {
    static constexpr int PARTS = D / 64;
    // An odd number of parts changes sides from one block of queries to the next.
    static constexpr bool EVEN = PARTS % 2 == 0;
    static constexpr int KEPT = EVEN ? PARTS / 2 : PARTS;

    __device__ __forceinline__ static int kept_from(int rank) { return EVEN ? rank * KEPT : 0; }
    __device__ __forceinline__ static int begin(int side) { return side * ((PARTS + 1) / 2); }
    __device__ __forceinline__ static int end(int side) { return side ? PARTS : (PARTS + 1) / 2; }
};

// Shared memory, in bytes. P^T lies where dS^T comes to lie, and the other block's dS^T behind it.
template <int D, int E>
struct Places {
    static constexpr int Q_STAGE = BM * D * 2, O_STAGE = BM * E * 2;
    uint32_t k, v, other_k, q, d_o, ds, rows, barriers;

    __device__ __forceinline__ explicit Places(uint32_t start)
        : k(start), v(k + BN * D * 2), other_k(v + BN * E * 2), q(other_k + Share<D>::KEPT * BN * 128),
          d_o(q + STAGES * Q_STAGE), ds(d_o + STAGES * O_STAGE), rows(ds + 2 * P_BYTES),
          barriers(rows + 2 * STAGES * BM * 4) {}
    // lse of a stage, or delta.
    __device__ __forceinline__ uint32_t sums(int stage, int which) const { return rows + (which * STAGES + stage) * BM * 4; }
    __device__ __forceinline__ uint32_t loaded() const { return barriers; }
    __device__ __forceinline__ uint32_t ds_full() const { return barriers + 8; }
    __device__ __forceinline__ uint32_t ds_empty() const { return barriers + 16; }
    __device__ __forceinline__ uint32_t full(int stage, int which) const { return barriers + 24 + (which * STAGES + stage) * 8; }
    __device__ __forceinline__ uint32_t empty(int stage, int which) const { return full(stage, which) + 16 * STAGES; }
};

// What all roles know.
struct Job {
    int batch, kv_head, part, first_key, cluster_key;
    int64_t token;

    __device__ __forceinline__ Job(const Inputs& in, const Shape& shape) {
        const int clusters = (shape.seq + CLUSTER * BN - 1) / (CLUSTER * BN), cluster = blockIdx.x / CLUSTER;
        const int unit = cluster / clusters;
        part = unit % in.parts;
        kv_head = unit / in.parts % shape.kv_heads;
        batch = unit / in.parts / shape.kv_heads;
        cluster_key = cluster % clusters * CLUSTER * BN;
        first_key = cluster_key + int(blockIdx.x % CLUSTER) * BN;
        token = int64_t(batch) * shape.seq;
    }
    __device__ __forceinline__ Walk walk(const Inputs& in, const Shape& shape) const {
        return Walk(shape, in.parts, batch, kv_head, part, cluster_key, CLUSTER * BN);
    }
};

#endif
