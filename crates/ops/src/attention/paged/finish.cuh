// What becomes of the sums of an item: the output, or a part of it that is added to others' parts.
//
// A part lies in memory as it lies in registers: slab i holds the accumulators 4 i .. 4 i + 3 of all 128 threads, that is
// 8 channels of 64 rows, 2 KB that are written and read without gaps.

#pragma once

#include "types.cuh"

namespace paged {

// Tells all CTAs that what this warpgroup wrote before the barrier it has just passed is there.
__device__ __forceinline__ unsigned int release(unsigned int* counter) {
    unsigned int before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

__device__ __forceinline__ unsigned int acquire(const unsigned int* counter) {
    unsigned int value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
}

// Which of all queries a row of a task's row block is.
__device__ __forceinline__ int64_t query_of(const Params& p, int task, const Row& row) {
    const int head = task % p.kv_heads * (p.heads / p.kv_heads) + row.head;
    return (static_cast<int64_t>(task / p.kv_heads) * p.tokens + row.token) * p.heads + head;
}

// Four words of four neighbouring lanes, transposed: lane q then holds word q of all four.
__device__ __forceinline__ void transpose(uint32_t (&words)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t other = __shfl_xor_sync(~0u, odd ? words[i] : words[i + 1], 1);
        (odd ? words[i] : words[i + 1]) = other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t other = __shfl_xor_sync(~0u, upper ? words[i] : words[i + 2], 2);
        (upper ? words[i] : words[i + 2]) = other;
    }
}

template <class S>
template <int COUNT>
__device__ __forceinline__ void Kernel<S>::finish(
    const int4& item, const float (&o)[COUNT], const float (&m)[2], const float (&l)[2], int group
) const {
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32, row = thread / 32 * 16 + lane / 4;
    const int row_block = block + group / S::VALUE_GROUPS, value_group = group % S::VALUE_GROUPS;
    if (row_block >= p.row_blocks) return;
    const int rows = Row::count(p, row_block), column = value_group * 2 * COUNT;
    float factor[2], lse[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = l[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        factor[r] = sum > 0.0f ? 1.0f / sum : 0.0f;
        lse[r] = sum > 0.0f ? m[r] + log2f(sum) : -INFINITY;
    }
    if (item.w >= 0) {
        const int4 cut = p.cuts[item.w];
        const int64_t part = part_of(cut.y + share - cut.w, row_block, value_group);
        float4* to = reinterpret_cast<float4*>(p.part_out) + part * (COUNT / 4) * WARPGROUP + thread;
        if (row < rows) {
#pragma unroll
            for (int i = 0; i < COUNT / 4; i++) {
                const float* four = o + 4 * i;
                to[i * WARPGROUP] =
                    make_float4(four[0] * factor[0], four[1] * factor[0], four[2] * factor[1], four[3] * factor[1]);
            }
            if (lane % 4 == 0) p.part_lse[part * 64 + row] = lse[0], p.part_lse[part * 64 + row + 8] = lse[1];
        }
        named_barrier(1 + group, WARPGROUP);
        if (thread == 0) release(written(item.w, group));
        return;
    }
    const bool wide = !p.out_f32 && p.value_width % 8 == 0;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const Row at(p, row_block, row + 8 * r);
        const int64_t query = query_of(p, item.x, at);
        if (at.valid && lane % 4 == 0 && column == 0) p.lse[query] = lse[r] * LN_2;
        if (wide) {
            // A lane gathers 8 channels of a row from its three neighbours: 16 bytes a store.
#pragma unroll
            for (int i = 0; i < COUNT / 4; i += 4) {
                uint32_t words[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float* pair = o + 4 * (i + j) + 2 * r;
                    words[j] = pack(pair[0] * factor[r], pair[1] * factor[r]);
                }
                transpose(words);
                const int channel = column + 8 * (i + lane % 4);
                if (at.valid && channel < p.value_width) {
                    bf16* to = static_cast<bf16*>(p.out) + query * p.value_width + channel;
                    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
                }
            }
        } else if (at.valid) {
#pragma unroll
            for (int i = 0; i < COUNT / 4; i++) {
                const float* pair = o + 4 * i + 2 * r;
                const int channel = column + 8 * i + lane % 4 * 2;
                settle(item.x, row_block, row + 8 * r, channel, pair[0] * factor[r], pair[1] * factor[r]);
            }
        }
    }
}

// Two channels of a row of the output.
template <class S>
__device__ __forceinline__ void
Kernel<S>::settle(int task, int row_block, int row, int channel, float low, float high) const {
    const Row at(p, row_block, row);
    if (!at.valid || channel >= p.value_width) return;
    const int64_t to = query_of(p, task, at) * p.value_width + channel;
    if (p.out_f32) {
        *reinterpret_cast<float2*>(static_cast<float*>(p.out) + to) = make_float2(low, high);
    } else {
        *reinterpret_cast<uint32_t*>(static_cast<bf16*>(p.out) + to) = pack(low, high);
    }
}

// Adds up this CTA's share of the outputs of tasks of which it has a part: of its first item, its last, or both.
//
// With few parts a CTA has some slabs of all rows, a warp the rows that it also computed. With many, it has some quarters
// of slabs (16 rows), and its warps add up some of the parts each.
template <class S>
__device__ __forceinline__ void Kernel<S>::merge(int group, float4* memory) const {
    constexpr int SLABS = S::E / S::VALUE_GROUPS / 8, TOGETHER = 8;
    const int row_block = block + group / S::VALUE_GROUPS, value_group = group % S::VALUE_GROUPS;
    const int thread = threadIdx.x % WARPGROUP, warp = thread / 32, lane = thread % 32;
    if (row_block >= p.row_blocks) return;
    const int rows = Row::count(p, row_block), column = value_group * SLABS * 8 + lane % 4 * 2;
    const int4 bounds = p.shares[2 * share + 1];
    for (int i = bounds.x; i < bounds.y; i = i + 1 < bounds.y ? bounds.y - 1 : bounds.y) {
        const int4 item = p.items[i];
        if (item.w < 0) continue;
        const int4 cut = p.cuts[item.w];
        const int parts = cut.z, part = share - cut.w;
        unsigned int* counter = written(item.w, group);
        if (thread == 0) {
            while (acquire(counter) < parts) {}
        }
        named_barrier(1 + group, WARPGROUP);
        const int64_t base = part_of(cut.y, row_block, value_group), step = part_of(1, 0, 0);
        // The log-sum-exp of a part of a row, and the accumulators of a slab.
        auto lse = [&](int from, int row) { return __ldcg(p.part_lse + (base + from * step) * 64 + row); };
        auto slab = [&](int from, int number, int of) {
            const float4* at = reinterpret_cast<const float4*>(p.part_out) + (base + from * step) * SLABS * WARPGROUP;
            return __ldcg(at + number * WARPGROUP + of);
        };
        auto weigh = [&](float sum, float top) { return top == -INFINITY ? 0.0f : exp2_fast(sum - top); };
        if (parts <= SLABS) {
            const int row = warp * 16 + lane / 4;
            if (row < rows) {
                float top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
#pragma unroll 4
                for (int from = 0; from < parts; from++) {
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const float other = lse(from, row + 8 * r), higher = fmaxf(top[r], other);
                        total[r] = total[r] * weigh(top[r], higher) + weigh(other, higher);
                        top[r] = higher;
                    }
                }
                const float scale[2] = {total[0] > 0 ? 1 / total[0] : 0, total[1] > 0 ? 1 / total[1] : 0};
                const int end = SLABS * (part + 1) / parts;
                for (int first = SLABS * part / parts; first < end; first += TOGETHER) {
                    float sum[TOGETHER][4] = {};
#pragma unroll 2
                    for (int from = 0; from < parts; from++) {
                        const float low = weigh(lse(from, row), top[0]) * scale[0];
                        const float high = weigh(lse(from, row + 8), top[1]) * scale[1];
#pragma unroll
                        for (int u = 0; u < TOGETHER; u++) {
                            const float4 value = slab(from, min(first + u, end - 1), thread);
                            sum[u][0] += low * value.x, sum[u][1] += low * value.y;
                            sum[u][2] += high * value.z, sum[u][3] += high * value.w;
                        }
                    }
#pragma unroll
                    for (int u = 0; u < TOGETHER; u++) {
                        if (first + u >= end) break;
                        const int channel = column + 8 * (first + u);
                        settle(item.x, row_block, row, channel, sum[u][0], sum[u][1]);
                        settle(item.x, row_block, row + 8, channel, sum[u][2], sum[u][3]);
                    }
                }
                if (part == 0 && lane % 4 == 0 && value_group == 0) {
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const Row at(p, row_block, row + 8 * r);
                        const float sum = total[r] > 0.0f ? (top[r] + log2f(total[r])) * LN_2 : -INFINITY;
                        if (at.valid) p.lse[query_of(p, item.x, at)] = sum;
                    }
                }
            }
        } else {
            const int quarters = SLABS * 4, end = quarters * (part + 1) / parts;
            for (int quarter = quarters * part / parts; quarter < end; quarter++) {
                const int row = quarter % 4 * 16 + lane / 4, number = quarter / 4, of = quarter % 4 * 32 + lane;
                if (quarter % 4 * 16 >= rows) continue;
                float top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f}, sum[4] = {};
#pragma unroll 8
                for (int from = warp; from < parts; from += 4) {
                    const float4 value = slab(from, number, of);
                    float weight[2], keep[2];
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const float other = lse(from, row + 8 * r), higher = fmaxf(top[r], other);
                        keep[r] = weigh(top[r], higher), weight[r] = weigh(other, higher);
                        total[r] = total[r] * keep[r] + weight[r];
                        top[r] = higher;
                    }
                    sum[0] = sum[0] * keep[0] + weight[0] * value.x, sum[1] = sum[1] * keep[0] + weight[0] * value.y;
                    sum[2] = sum[2] * keep[1] + weight[1] * value.z, sum[3] = sum[3] * keep[1] + weight[1] * value.w;
                }
                float4* sums = memory;
                float4* tops = memory + S::GROUPS * WARPGROUP;
                sums[thread] = make_float4(sum[0], sum[1], sum[2], sum[3]);
                tops[thread] = make_float4(top[0], top[1], total[0], total[1]);
                named_barrier(1 + group, WARPGROUP);
                if (warp == 0) {
                    for (int other = 1; other < 4; other++) {
                        const float4 more = sums[other * 32 + lane], with = tops[other * 32 + lane];
                        const float others[2] = {with.x, with.y}, totals[2] = {with.z, with.w};
                        float weight[2], keep[2];
#pragma unroll
                        for (int r = 0; r < 2; r++) {
                            const float higher = fmaxf(top[r], others[r]);
                            keep[r] = weigh(top[r], higher), weight[r] = weigh(others[r], higher);
                            total[r] = total[r] * keep[r] + totals[r] * weight[r];
                            top[r] = higher;
                        }
                        sum[0] = sum[0] * keep[0] + weight[0] * more.x, sum[1] = sum[1] * keep[0] + weight[0] * more.y;
                        sum[2] = sum[2] * keep[1] + weight[1] * more.z, sum[3] = sum[3] * keep[1] + weight[1] * more.w;
                    }
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const float scale = total[r] > 0.0f ? 1.0f / total[r] : 0.0f;
                        const int channel = column + 8 * number;
                        settle(item.x, row_block, row + 8 * r, channel, sum[2 * r] * scale, sum[2 * r + 1] * scale);
                        const Row at(p, row_block, row + 8 * r);
                        const float whole = total[r] > 0.0f ? (top[r] + log2f(total[r])) * LN_2 : -INFINITY;
                        if (channel == 0 && at.valid) p.lse[query_of(p, item.x, at)] = whole;
                    }
                }
                named_barrier(1 + group, WARPGROUP);
            }
        }
        // The last to have seen all parts makes the counter zero for the next launch.
        if (thread == 0 && atomicAdd(counter, 1) == 2 * parts - 1) *counter = 0;
    }
}

}  // namespace paged
