// Which weights a filter keeps, and which token a random number draws.
//
// Weights are f32 from 0 to 1, so that their bits are ordered as they are. The one that is the n-th in descending order, or at
// which their running sum reaches a mark, is found by histograms of the upper 11, the next 10 and the last 9 bits: each block
// counts its slice, all add to the first block's, whose threads look for the place. All weights of a bucket have one exponent:
// their sum is a sum of whole numbers, exact in any order. Where the upper bits leave few tokens, those are sorted (few.cuh).
#pragma once
#include "few.cuh"

constexpr int LEVELS = 3;
// Buckets of a level, and the first of the bits that tell them.
__host__ __device__ constexpr int buckets_of(int level) { return 2048 >> level; }
__host__ __device__ constexpr int shift_of(int level) { return level == 0 ? 19 : level == 1 ? 9 : 0; }
// The weight of the likeliest token.
constexpr uint32_t ONE = 0x3F800000u;
// Weights in token order are added up as multiples of 2^-44: exact in any order, for up to 2^19 tokens.
constexpr double FIXED = 17592186044416.0;

// A row's filters; `top_k` 0 keeps all.
struct Filters {
    uint32_t top_k;
    float top_p, min_p;
};

// A weight, how many tokens have it, and the number or the sum of weights above it.
struct Place {
    uint32_t weight, equal;
    double above, mass_above;
};

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
    // By level of histograms: counts, and sums of the lower and the upper 12 bits of mantissas, so that 2^20 of them fit.
    uint32_t* words[2];
    float* weights;
    int blocks, rank, start, length, each;

    __device__ __forceinline__ Slice(uint8_t* memory, Shared& shared, int vocabulary, int slice) : shared(shared) {
        blocks = cluster_blocks();
        rank = cluster_rank();
        start = min(rank * slice, vocabulary);
        length = min(slice, vocabulary - start);
        words[0] = reinterpret_cast<uint32_t*>(memory);
        words[1] = words[0] + 3 * buckets_of(0);
        weights = reinterpret_cast<float*>(words[1] + 3 * buckets_of(1));
        // Neighbouring tokens of a thread; an odd number, so that no two threads of a warp use one bank.
        each = (slice + blockDim.x - 1) / blockDim.x | 1;
    }

    __device__ __forceinline__ void clear() {
        for (int i = threadIdx.x; i < 3 * (buckets_of(0) + buckets_of(1)); i += blockDim.x) words[0][i] = 0;
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

    // The tokens whose weights are at least `from` and `least`, to the first block.
    __device__ __forceinline__ void gather(uint32_t from, uint32_t least) {
        from = max(from, least);
        unsigned long long own = 0, all;
        for (int i = 0; i < each; i++) own += key(i) >= from;
        unsigned long long at = before_all(own, shared.ties, all);
        auto* list = reinterpret_cast<unsigned long long*>(words[1]);
        for (int i = 0; i < each; i++) {
            const uint32_t bits = key(i);
            if (bits >= from) store_remote(list + at++, 0, static_cast<unsigned long long>(bits) << 32 | ~token(i));
        }
        cluster_sync();
    }

    // From the first block to all.
    __device__ __forceinline__ void announce(uint32_t weight, uint32_t number, uint32_t equal) {
        if (rank == 0 && threadIdx.x < blocks) {
            store_remote(&shared.weight, threadIdx.x, weight);
            store_remote(&shared.number, threadIdx.x, number);
            store_remote(&shared.equal, threadIdx.x, equal);
        }
        cluster_sync();
    }

    // Of the tokens with this weight, `equal` in all, the one with so many before it: to the thread that has it, ~0 to others.
    __device__ __forceinline__ uint32_t nth(uint32_t weight, uint32_t number, uint32_t equal) {
        unsigned long long own = 0, earlier = 0, all;
        for (int i = 0; i < each; i++) own += key(i) == weight;
        if (equal > 1) earlier = before_all(own, shared.ties, all);
        if (number < earlier || number >= earlier + own) return ~0u;
        for (int i = 0; i < each; i++)
            if (key(i) == weight && earlier++ == number) return token(i);
        return ~0u;
    }

    // A token for the uniform number `point`: to the thread that has it, ~0 to all others of the cluster.
    __device__ __forceinline__ uint32_t draw(const Filters& filters, double point) {
        const bool nucleus = filters.top_p < 1.f;
        const uint32_t least = max(__float_as_uint(filters.min_p), 1u);
        bool limited = false;
        if (nucleus || filters.top_k > 0) {
            double total = 0, likely = 0, all;
            unsigned long long candidates = 0, number;
            for (int i = 0; i < each; i++) {
                const uint32_t bits = key(i);
                const double weight = __uint_as_float(bits);
                total += weight;
                if (bits >= least) likely += weight;
                candidates += bits > 0;
            }
            before(total, shared.warp_sums, all);
            tell(shared.total, all);
            before(likely, shared.warp_sums, all);
            tell(shared.likely, all);
            before(candidates, shared.warps, number);
            tell(shared.candidates, number);
            // Weights below this one are less in all than what the nucleus may lack: it has none of them.
            const double lacking = (1.0 - double(filters.top_p)) / (double(blocks) * each * blockDim.x);
            const uint32_t smallest = filters.top_k > 0 ? 1 : max(__float_as_uint(__double2float_rd(lacking)), 1u);
            count(0, 0, smallest, true, nucleus);
            cluster_sync();
            total = likely = 0;
            candidates = 0;
            for (int block = 0; block < blocks; block++) {
                total += shared.total[block];
                likely += shared.likely[block];
                candidates += shared.candidates[block];
            }
            limited = filters.top_k > 0 && candidates > filters.top_k;
            const uint32_t limit = limited ? filters.top_k : 0;
            if (limited || nucleus) {
                const uint32_t bucket = last_bucket(limit, double(filters.top_p) * total);
                if (shared.number <= FEW) {
                    gather(bucket << shift_of(0), smallest);
                    if (rank > 0) return ~0u;
                    Few few{reinterpret_cast<unsigned long long*>(words[1]), shared.warps, shared.warp_sums, &shared.before,
                            int(shared.number)};
                    const uint32_t token = few.draw(limit, total, filters.top_p, least, point);
                    return threadIdx.x == 0 ? token : ~0u;
                }
            }
            // Kept are the weights above that of `cut`, and the first `keep` tokens that have it.
            Place cut{0, 0, 0, 0};
            uint32_t keep = 0;
            double kept = total;
            if (limited) {
                cut = find(true, filters.top_k, false, nucleus);
                keep = filters.top_k - uint32_t(cut.above);
                kept = cut.mass_above + double(keep) * double(__uint_as_float(cut.weight));
            }
            if (nucleus) {
                const double wanted = double(filters.top_p) * kept;
                const Place place = find(false, wanted, false, true);
                // Rounding may lead beyond what top-k keeps.
                if (place.weight >= cut.weight) {
                    const double weight = __uint_as_float(place.weight);
                    uint32_t enough = min(max(ceil((wanted - place.above) / weight), 1.0), double(place.equal));
                    while (enough > 1 && place.above + double(enough - 1) * weight >= wanted) enough--;
                    while (enough < place.equal && place.above + double(enough) * weight < wanted) enough++;
                    keep = place.weight == cut.weight ? min(keep, enough) : enough;
                    cut = place;
                    kept = place.above + double(keep) * weight;
                }
                const double among = min(kept, likely), mark = min(point * among, among * (1 - 1e-15));
                Place drawn = find(false, mark, true, true);
                const double weight = __uint_as_float(drawn.weight);
                uint32_t index = min(max(floor((mark - drawn.above) / weight), 0.0), double(drawn.equal - 1));
                if (drawn.weight < cut.weight || (drawn.weight == cut.weight && index >= keep)) {
                    drawn = cut;
                    index = keep - 1;
                }
                if (drawn.weight < least) {
                    drawn = Place{ONE, 2, 0, 0};
                    index = 0;
                }
                announce(drawn.weight, index, drawn.equal);
                return nth(shared.weight, shared.number, shared.equal);
            }
            if (limited) announce(cut.weight, keep, cut.equal);
        }
        uint32_t cut = 0, keep = 0, equal = 0;
        if (limited) cut = shared.weight, keep = shared.number, equal = shared.equal;
        if (least > cut) cut = least - 1, keep = equal = 0;
        return in_order(point, cut, keep, equal);
    }

    // Of the tokens whose weight is above `cut`, and the first `keep` of the `equal` ones that have that weight, in the order
    // of their numbers: the one at which the sum of weights passes the share `point`.
    __device__ __forceinline__ uint32_t in_order(double point, uint32_t cut, uint32_t keep, uint32_t equal) {
        unsigned long long same = 0, all;
        if (keep < equal) {
            for (int i = 0; i < each; i++) same += key(i) == cut;
            same = before_all(same, shared.ties, all);
        }
        const auto share = [&](int i, unsigned long long& same) {
            const uint32_t bits = key(i);
            const bool kept = bits > cut || (bits == cut && same++ < keep);
            return kept ? static_cast<unsigned long long>(double(__uint_as_float(bits)) * FIXED) : 0ull;
        };
        unsigned long long own = 0, earlier = same;
        for (int i = 0; i < each; i++) own += share(i, earlier);
        unsigned long long sum = before_all(own, shared.sums, all);
        const unsigned long long mark = min(static_cast<unsigned long long>(point * double(all)), all - 1);
        if (mark < sum || mark >= sum + own) return ~0u;
        for (int i = 0; i < each; i++) {
            sum += share(i, same);
            if (mark < sum) return token(i);
        }
        return ~0u;
    }
};
#endif
