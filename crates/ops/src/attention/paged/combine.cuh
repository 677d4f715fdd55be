// The parts of tasks that were cut, weighed by their log-sum-exp and added.
//
// Bound by the L2 cache, where the parts still lie: about one block of 64 rows per CTA of the attention kernel, whatever
// the batch. It starts while that kernel still runs and waits for its end, so that its launch costs nothing.

#pragma once

#include "hopper.cuh"

namespace paged {

constexpr float LN_2 = 0.6931471805599453f;

// `PagedCombine` in cuda.rs is the same struct.
struct Combine {
    // From the plan: how many tasks were cut; for each {task, first slot, parts}.
    const int* count;
    const int* cuts;
    const float* part_out;
    const float* part_lse;
    void* out;
    float* lse;
    int tokens;
    int heads;
    int kv_heads;
    int row_blocks;
    int head_blocks;
    int block_tokens;
    int value_width;
    // Channels of a row of `part_out`.
    int part_width;
    int out_f32;
};

// Grid: (cuts at most, row blocks, 64 / (8 / WARPS) rows x segments of 128 channels). A block has 8 warps; WARPS of them
// share the parts of a row's segment.
template <int WARPS>
__device__ __forceinline__ void combine(const Combine& p) {
    using namespace hopper;
    constexpr int UNITS = 8 / WARPS, CHANNELS = 128;
    __shared__ float4 sums[8][32];
    __shared__ float totals[8];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int segments = (p.value_width + CHANNELS - 1) / CHANNELS;
    const int unit = blockIdx.z * UNITS + warp / WARPS;
    const int row = unit / segments, channel = unit % segments * CHANNELS + lane * 4, block = blockIdx.y;
    const int group = p.heads / p.kv_heads;
    int token = block / p.head_blocks * p.block_tokens, head;
    bool valid = row < 64;
    if (group >= 64) {
        head = block % p.head_blocks * 64 + row;
        valid = valid && head < group;
    } else {
        token += row / group;
        head = row % group;
        valid = valid && row < group * p.block_tokens && token < p.tokens;
    }
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (static_cast<int>(blockIdx.x) >= *p.count) return;
    const int task = p.cuts[3 * blockIdx.x], slot = p.cuts[3 * blockIdx.x + 1], parts = p.cuts[3 * blockIdx.x + 2];
    const int64_t stride = static_cast<int64_t>(p.row_blocks) * 64;
    const int64_t first = slot * stride + block * 64 + row;

    float top = -INFINITY, total = 0.0f;
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    if (valid) {
        for (int part = lane; part < parts; part += 32) top = fmaxf(top, p.part_lse[first + part * stride]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
    const float base = top == -INFINITY ? 0.0f : top;
    if (valid) {
        const bool inside = channel < p.part_width;
#pragma unroll 8
        for (int part = warp % WARPS; part < parts; part += WARPS) {
            const int64_t at = first + part * stride;
            const float weight = exp2_fast(p.part_lse[at] - base);
            float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
            if (inside) value = __ldcg(reinterpret_cast<const float4*>(p.part_out + at * p.part_width + channel));
            total += weight;
            sum.x += weight * value.x, sum.y += weight * value.y, sum.z += weight * value.z, sum.w += weight * value.w;
        }
    }
    if constexpr (WARPS > 1) {
        sums[warp][lane] = sum;
        if (lane == 0) totals[warp] = total;
        __syncthreads();
        if (warp % WARPS != 0) return;
        for (int other = 1; other < WARPS; other++) {
            const float4 more = sums[warp + other][lane];
            sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
            total += totals[warp + other];
        }
    }
    if (!valid) return;
    const float factor = total > 0.0f ? 1.0f / total : 0.0f;
    const int64_t query =
        (static_cast<int64_t>(task / p.kv_heads) * p.tokens + token) * p.heads + task % p.kv_heads * group + head;
    if (channel == 0) p.lse[query] = total > 0.0f ? (top + log2f(total)) * LN_2 : -INFINITY;
    if (channel >= p.value_width) return;
    const int64_t to = query * p.value_width + channel;
    sum.x *= factor, sum.y *= factor, sum.z *= factor, sum.w *= factor;
    if (p.out_f32) {
        *reinterpret_cast<float4*>(static_cast<float*>(p.out) + to) = sum;
    } else {
        *reinterpret_cast<uint2*>(static_cast<bf16*>(p.out) + to) = make_uint2(pack(sum.x, sum.y), pack(sum.z, sum.w));
    }
}

}  // namespace paged

#define PAGED_COMBINE(name, warps)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) name(const __grid_constant__ paged::Combine params) {            \
        paged::combine<warps>(params);                                                                                 \
    }

PAGED_COMBINE(paged_combine_1, 1)
PAGED_COMBINE(paged_combine_2, 2)
PAGED_COMBINE(paged_combine_4, 4)
PAGED_COMBINE(paged_combine_8, 8)
