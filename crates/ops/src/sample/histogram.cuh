// Weights in descending order without sorting them.
//
// Weights are f32 from 0 to 1, so that their bits are ordered as they are. The one that is the n-th, or at which their running
// sum reaches a mark, is found by histograms of the upper 11, the next 10 and the last 9 bits: each block counts its slice, all
// add to the first block's, whose threads look for the place. All weights of a bucket have one exponent: their sum is a sum of
// whole numbers, exact in any order.
#pragma once
#include "slice.cuh"

constexpr int LEVELS = 3;
// Buckets of a level, and the first of the bits that tell them.
__host__ __device__ constexpr int buckets_of(int level) { return 2048 >> level; }
__host__ __device__ constexpr int shift_of(int level) { return level == 0 ? 19 : level == 1 ? 9 : 0; }
// Words of shared memory before the weights.
constexpr int HISTOGRAMS = 3 * (buckets_of(0) + buckets_of(1));

// A weight, how many tokens have it, and the number or the sum of weights above it.
struct Place {
    uint32_t weight, equal;
    double above, mass_above;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// A block's part with histograms.
struct Ranks : Slice {
    // By level (the last two share theirs): counts, and sums of the lower and the upper 12 bits of mantissas, so that 2^20 of
    // them fit.
    uint32_t* words[2];

    __device__ __forceinline__ Ranks(uint32_t* memory, Shared& shared, int vocabulary, int slice)
        : Slice(reinterpret_cast<float*>(memory + HISTOGRAMS), shared, vocabulary, slice) {
        words[0] = memory;
        words[1] = memory + 3 * buckets_of(0);
    }

    __device__ __forceinline__ void clear() {
        for (int i = threadIdx.x; i < HISTOGRAMS; i += blockDim.x) words[0][i] = 0;
    }

    // Counts those weights of the slice that begin with `prefix`, at this level, and are at least `least`, into the first
    // block's histogram, which is complete after the next `cluster_sync`.
    __device__ __forceinline__ void count(int level, uint32_t prefix, uint32_t least, bool counts, bool sums) {
        const int buckets = buckets_of(level), shift = shift_of(level), above = level == 0 ? 31 : shift_of(level - 1);
        uint32_t* histogram = words[level > 0];
        for (int i = 0; i < each; i++) {
            const uint32_t bits = key(i);
            const bool valid = bits >= least && bits >> above == prefix;
            const uint32_t lanes = __ballot_sync(~0u, valid);
            if (lanes == 0) continue;
            const uint32_t bucket = bits >> shift & (buckets - 1), mantissa = (bits & 0x7FFFFF) | 0x800000;
            const int leader = __ffs(lanes) - 1;
            uint32_t number = 1, low = mantissa & 0xFFF, high = mantissa >> 12;
            bool adds = valid;
            // Where all are alike they would wait for one another.
            const uint32_t like = __shfl_sync(~0u, bucket, leader);
            if (__all_sync(~0u, !valid || bucket == like)) {
                number = __popc(lanes);
                low = __reduce_add_sync(~0u, valid ? low : 0);
                high = __reduce_add_sync(~0u, valid ? high : 0);
                adds = threadIdx.x % 32 == leader;
            }
            if (adds && counts) atomicAdd(histogram + bucket, number);
            if (adds && sums) {
                atomicAdd(histogram + buckets + bucket, low);
                atomicAdd(histogram + 2 * buckets + bucket, high);
            }
        }
        __syncthreads();
        if (rank == 0) return;
        for (int i = threadIdx.x; i < 3 * buckets; i += blockDim.x) {
            if (histogram[i] != 0) add_remote(histogram + i, 0, histogram[i]);
            histogram[i] = 0;
        }
    }

    // Sum of the mantissas in a bucket.
    __device__ __forceinline__ double mantissas(int level, int bucket) const {
        const uint32_t *low = words[level > 0] + buckets_of(level) + bucket, *high = low + buckets_of(level);
        return double(*high) * 4096.0 + double(*low);
    }

    // Sum of the weights in a bucket.
    __device__ __forceinline__ double mass(int level, uint32_t prefix, int bucket) const {
        const int exponent = level == 0 ? bucket >> 4 : prefix >> (23 - shift_of(level - 1));
        return mantissas(level, bucket) * __longlong_as_double(int64_t(exponent - 150 + 1023) << 52);
    }

    // In the first block: the first bucket in descending order with which `mark` is reached (`beyond`: passed) by numbers or
    // by sums, or the last that is not empty. What the buckets before it hold is added to `place`.
    __device__ __forceinline__ uint32_t pick(int level, uint32_t prefix, bool by_count, double mark, bool beyond, Place& place) {
        const int buckets = buckets_of(level), per = (buckets + blockDim.x - 1) / blockDim.x;
        const auto measure = [&](int at) {
            const int bucket = buckets - 1 - at;
            return by_count ? double(words[level > 0][bucket]) : mass(level, prefix, bucket);
        };
        if (threadIdx.x == 0) {
            shared.found = ~0u;
            shared.last = 0;
        }
        const int first = min(int(threadIdx.x) * per, buckets), end = min(first + per, buckets);
        double own = 0, all;
        for (int at = first; at < end; at++) own += measure(at);
        const double base = place.above + before(own, shared.warp_sums, all);
        double sum = base;
        for (int at = first; at < end; at++) {
            const double x = measure(at);
            if (x <= 0) continue;
            sum += x;
            if (beyond ? sum > mark : sum >= mark) {
                atomicMin(&shared.found, uint32_t(at));
                break;
            }
            atomicMax(&shared.last, uint32_t(at));
        }
        __syncthreads();
        const int at = min(shared.found, buckets) < buckets ? shared.found : shared.last;
        if (at >= first && at < end) {
            sum = base;
            for (int earlier = first; earlier < at; earlier++) sum += measure(earlier);
            shared.before = sum;
        }
        double likelier = 0;
        for (int earlier = first; by_count && earlier < min(end, at); earlier++)
            likelier += mass(level, prefix, buckets - 1 - earlier);
        before(likelier, shared.warp_sums, all);
        place.above = shared.before;
        place.mass_above = by_count ? place.mass_above + all : place.above;
        return buckets - 1 - at;
    }

    // The weight with which `mark` is reached or passed, known to the first block; its first histogram is complete.
    __device__ __forceinline__ Place find(bool by_count, double mark, bool beyond, bool sums) {
        Place place{0, 0, 0, 0};
        uint32_t prefix = 0;
        for (int level = 0; level < LEVELS; level++) {
            if (level > 0) {
                count(level, prefix, 1, by_count, sums);
                cluster_sync();
            }
            if (rank == 0) {
                const uint32_t bucket = pick(level, prefix, by_count, mark, beyond, place);
                prefix = prefix * buckets_of(level) + bucket;
                if (level + 1 == LEVELS) {
                    place.weight = prefix;
                    const double one = (prefix & 0x7FFFFF) | 0x800000;
                    place.equal = by_count ? words[1][bucket] : uint32_t(mantissas(level, bucket) / one + 0.5);
                }
                __syncthreads();
                for (int i = threadIdx.x; level > 0 && i < 3 * buckets_of(level); i += blockDim.x) words[1][i] = 0;
            }
            if (level + 1 < LEVELS) {
                if (rank == 0 && threadIdx.x < blocks) store_remote(&shared.prefix, threadIdx.x, prefix);
                cluster_sync();
                prefix = shared.prefix;
            }
        }
        return place;
    }

    // The last bucket that holds what is kept, the `limit` likeliest or else those that reach `mark` together; `number` says how
    // many tokens it and those above it hold. The blocks meet.
    __device__ __forceinline__ uint32_t last_bucket(uint32_t limit, double mark) {
        if (rank == 0) {
            Place place{0, 0, 0, 0};
            const uint32_t bucket = pick(0, 0, limit > 0, limit > 0 ? limit : mark, false, place);
            unsigned long long own = 0, all;
            for (int i = bucket + threadIdx.x; i < buckets_of(0); i += blockDim.x) own += words[0][i];
            before(own, shared.warps, all);
            if (threadIdx.x < blocks) {
                store_remote(&shared.prefix, threadIdx.x, bucket);
                store_remote(&shared.number, threadIdx.x, static_cast<uint32_t>(all));
            }
        }
        cluster_sync();
        return shared.prefix;
    }
};
#endif
