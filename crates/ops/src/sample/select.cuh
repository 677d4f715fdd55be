// Which tokens the filters keep, and which one a random number draws.
//
// What a filter keeps is a beginning of the order "likelier first, among equals the smaller number first": a weight, above which
// all are kept, and how many tokens of that very weight. Where few tokens can be kept, those are sorted (few.cuh).
#pragma once
#include "few.cuh"
#include "histogram.cuh"

// The weight of the likeliest token.
constexpr uint32_t ONE = 0x3F800000u;
// Weights in token order are added up as multiples of 2^-44: exact in any order, for up to 2^19 tokens.
constexpr double FIXED = 17592186044416.0;

// A row's filters; `top_k` 0 keeps all.
struct Filters {
    uint32_t top_k;
    float top_p, min_p;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
struct Selection : Ranks {
    using Ranks::Ranks;

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
