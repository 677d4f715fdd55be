// Filters and draws among few tokens, which one block sorts.
#pragma once
#include "cluster.cuh"

// Tokens at most.
constexpr int FEW = 1024;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// The likeliest tokens: weight and complement of the number as one word, likelier first and then the smaller number first when
// they are in descending order.
struct Few {
    unsigned long long *list, *warps;
    double *sums, *told;
    int count;

    // The words in descending order; those behind `count` are 0 and stay behind.
    __device__ __forceinline__ void sort() {
        int size = 2;
        while (size < count) size *= 2;
        for (int i = count + threadIdx.x; i < size; i += blockDim.x) list[i] = 0;
        __syncthreads();
        for (int run = 2; run <= size; run *= 2) {
            for (int apart = run / 2; apart > 0; apart /= 2) {
                for (int pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
                    const int low = (pair & ~(apart - 1)) * 2 | (pair & (apart - 1)), high = low | apart;
                    const unsigned long long a = list[low], b = list[high];
                    if ((a < b) == ((low & run) == 0)) {
                        list[low] = b;
                        list[high] = a;
                    }
                }
                __syncthreads();
            }
        }
    }

    __device__ __forceinline__ uint32_t smallest(uint32_t x) {
        x = __reduce_min_sync(~0u, x);
        __syncthreads();
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
        __syncthreads();
        for (int warp = 0; warp < blockDim.x / 32; warp++) x = min(x, static_cast<uint32_t>(warps[warp]));
        return x;
    }

    // Calls `body(i, sum)` for each i below `count`, `sum` that of `weight(j)` for all j up to i; the sum of all.
    template <typename W, typename B>
    __device__ __forceinline__ double each(W weight, B body) {
        const int per = (count + blockDim.x - 1) / blockDim.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int first = min(int(threadIdx.x) * per, count), end = min(first + per, count);
        double own = 0, earlier = 0, all = 0;
        for (int i = first; i < end; i++) own += weight(i);
        double sum = own;
#pragma unroll
        for (int step = 1; step < 32; step <<= 1) {
            const double other = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += other;
        }
        __syncthreads();
        if (lane == 31) sums[warp] = sum;
        __syncthreads();
        for (int other = 0; other < blockDim.x / 32; other++) {
            if (other == warp) earlier = all;
            all += sums[other];
        }
        const double before = __shfl_up_sync(~0u, sum, 1);
        if (lane > 0) earlier += before;
        for (int i = first; i < end; i++) {
            earlier += weight(i);
            body(i, earlier);
        }
        return all;
    }

    // The token for `point`. `limit`: how many top-k keeps, if it does; `total`: the sum of all weights otherwise.
    __device__ __forceinline__ uint32_t draw(uint32_t limit, double total, float top_p, uint32_t least, double point) {
        const bool nucleus = top_p < 1.f;
        sort();
        const auto likely = [&](int i) { return double(__uint_as_float(static_cast<uint32_t>(list[i] >> 32))); };
        if (limit > 0) {
            count = min(count, limit);
            total = each(likely, [](int, double) {});
        }
        const double wanted = double(top_p) * total;
        uint32_t kept = count;
        each(likely, [&](int i, double sum) {
            if (nucleus && sum >= wanted) kept = min(kept, uint32_t(i + 1));
            if (list[i] >> 32 < least) kept = min(kept, uint32_t(i));
        });
        count = smallest(kept);
        if (nucleus) return at(likely, point, [&](int i) { return ~static_cast<uint32_t>(list[i]); });
        // In the order of the tokens, their numbers being the upper halves' complements now.
        for (int i = threadIdx.x; i < count; i += blockDim.x) list[i] = list[i] << 32 | list[i] >> 32;
        sort();
        const auto weight = [&](int i) { return double(__uint_as_float(static_cast<uint32_t>(list[i]))); };
        return at(weight, point, [&](int i) { return ~static_cast<uint32_t>(list[i] >> 32); });
    }

    // The first at which the sum of weights passes the share `point` of all.
    template <typename W, typename T>
    __device__ __forceinline__ uint32_t at(W weight, double point, T token) {
        __syncthreads();
        each(weight, [&](int i, double sum) {
            if (i + 1 == count) *told = sum;
        });
        __syncthreads();
        const double mark = point * *told;
        uint32_t found = count - 1;
        each(weight, [&](int i, double sum) {
            if (sum > mark) found = min(found, uint32_t(i));
        });
        return token(smallest(found));
    }
};
#endif
