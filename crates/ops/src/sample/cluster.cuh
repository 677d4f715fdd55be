// Blocks of a cluster that see each other's shared memory (Hopper and later).
#pragma once
#include "common.cuh"

// Blocks of a cluster at most.
constexpr int MOST_BLOCKS = 8;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ int cluster_blocks() {
    int blocks;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    return blocks;
}

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}

// Where `here`, a place in this block's shared memory, lies in that of block `rank`.
__device__ __forceinline__ uint32_t remote(const void* here, int rank) {
    uint32_t there;
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(here));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

__device__ __forceinline__ void store_remote(const uint32_t* here, int rank, uint32_t x) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote(here, rank)), "r"(x) : "memory");
}

__device__ __forceinline__ void store_remote(const unsigned long long* here, int rank, unsigned long long x) {
    asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(remote(here, rank)), "l"(x) : "memory");
}

__device__ __forceinline__ void store_remote(const double* here, int rank, double x) {
    asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(remote(here, rank)), "d"(x) : "memory");
}

__device__ __forceinline__ void add_remote(const uint32_t* here, int rank, uint32_t x) {
    asm volatile("red.relaxed.cluster.shared::cluster.add.u32 [%0], %1;" ::"r"(remote(here, rank)), "r"(x) : "memory");
}
#endif
