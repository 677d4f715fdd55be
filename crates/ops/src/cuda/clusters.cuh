// Blocks of a cluster that see each other's shared memory (Hopper and later).
#pragma once
#include "mma.cuh"

// This block's number in its cluster, and how many there are.
__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ int cluster_size() {
    int size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}

// Of all threads of a cluster; the second waits for the first of all others that have not exited.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}

// Where block `rank` of the cluster has what this one has at `address` of its shared memory.
__device__ __forceinline__ uint32_t peer(uint32_t address, int rank) {
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

// At a barrier of another block, at `there`: what this thread knows to be written is visible to those that wait at it.
__device__ __forceinline__ void barrier_arrive_at(uint32_t there) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}

// What lies in another block's shared memory.
__device__ __forceinline__ float2 peer_float2(uint32_t there) {
    float2 v;
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(there) : "memory");
    return v;
}

// Sends values to another block's shared memory, and counts their bytes at a barrier of that block.
__device__ __forceinline__ void send(uint32_t there, float4 v, uint32_t barrier) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there), "f"(v.x),
        "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
        : "memory");
}
