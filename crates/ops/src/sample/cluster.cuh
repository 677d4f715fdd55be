// What the blocks of a row tell each other (Hopper and later).
#pragma once
#include "clusters.cuh"

// Blocks of a cluster at most.
constexpr int MOST_BLOCKS = 8;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// Where `here`, a place in this block's shared memory, lies in that of block `rank`.
__device__ __forceinline__ uint32_t remote(const void* here, int rank) { return peer(shared_address(here), rank); }

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
