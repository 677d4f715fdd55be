// A block's part of a row, and what the blocks of a row's cluster tell each other.
#pragma once
#include "cluster.cuh"

// What the blocks of a cluster tell each other, one entry for each, and the threads of a block.
struct Shared {
    unsigned long long best[MOST_BLOCKS], bad[MOST_BLOCKS], candidates[MOST_BLOCKS], ties[MOST_BLOCKS], sums[MOST_BLOCKS];
    double total[MOST_BLOCKS], likely[MOST_BLOCKS];
    // From the first block: bits of the weight that is looked for, a weight, and a number of tokens that have it among `equal`.
    uint32_t prefix, weight, number, equal;
    unsigned long long warps[32];
    double warp_sums[32];
    uint32_t found, last;
    double before;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// A block's part of the vocabulary.
struct Slice {
    Shared& shared;
    // Logits, and then the weights of the tokens from `start` on.
    float* weights;
    int blocks, rank, start, length, each;

    __device__ __forceinline__ Slice(float* weights, Shared& shared, int vocabulary, int slice)
        : shared(shared), weights(weights) {
        blocks = cluster_size();
        rank = cluster_rank();
        start = min(rank * slice, vocabulary);
        length = min(slice, vocabulary - start);
        // Neighbouring tokens of a thread; an odd number, so that no two threads of a warp use one bank.
        each = (slice + blockDim.x - 1) / blockDim.x | 1;
    }

    // Bits of this thread's i-th weight; 0 beyond the slice.
    __device__ __forceinline__ uint32_t key(int i) const {
        const int at = threadIdx.x * each + i;
        return at < length ? __float_as_uint(weights[at]) : 0;
    }

    __device__ __forceinline__ uint32_t token(int i) const { return start + threadIdx.x * each + i; }

    // This block's value, to all blocks, which know it after the next `cluster_sync`.
    template <typename T>
    __device__ __forceinline__ void tell(const T* of_blocks, T x) {
        if (threadIdx.x < blocks) store_remote(of_blocks + rank, threadIdx.x, x);
    }

    __device__ __forceinline__ void tell_largest(const unsigned long long* of_blocks, unsigned long long x) {
#pragma unroll
        for (int lane = 16; lane > 0; lane >>= 1) x = max(x, __shfl_xor_sync(~0u, x, lane));
        __syncthreads();
        if (threadIdx.x % 32 == 0) shared.warps[threadIdx.x / 32] = x;
        __syncthreads();
        for (int warp = 0; warp < blockDim.x / 32; warp++) x = max(x, shared.warps[warp]);
        tell(of_blocks, x);
    }

    // The sum of the values of the threads before this one; `all`: of all threads of the block.
    template <typename T>
    __device__ __forceinline__ T before(T x, T* warps, T& all) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        T sum = x;
#pragma unroll
        for (int step = 1; step < 32; step <<= 1) {
            const T other = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += other;
        }
        __syncthreads();
        if (lane == 31) warps[warp] = sum;
        __syncthreads();
        T earlier = 0;
        all = 0;
        for (int other = 0; other < blockDim.x / 32; other++) {
            if (other == warp) earlier = all;
            all += warps[other];
        }
        const T exclusive = __shfl_up_sync(~0u, sum, 1);
        return earlier + (lane == 0 ? T(0) : exclusive);
    }

    // As `before`, over the blocks before this one as well; `all`: of the cluster. The blocks meet.
    __device__ __forceinline__ unsigned long long before_all(unsigned long long x, const unsigned long long* of_blocks,
                                                             unsigned long long& all) {
        unsigned long long here;
        unsigned long long sum = before(x, shared.warps, here);
        tell(of_blocks, here);
        cluster_sync();
        all = 0;
        for (int block = 0; block < blocks; block++) {
            if (block < rank) sum += of_blocks[block];
            all += of_blocks[block];
        }
        return sum;
    }
};
#endif
