// What the warpgroups of direct.cuh do before the first tile of an item, and after the last.

#pragma once

#include "fp8.cuh"
#include "types.cuh"

namespace paged {

// Queries to two terms of e4m3: the first in registers, as a product's operand, the second in shared memory where they were.
// `factor`: what scores of this lane's rows are to be multiplied by, scaled and for powers of two. Both warpgroups do so.
template <class S>
template <int STEPS>
__device__ __forceinline__ void
Kernel<S>::split_queries(unsigned char* memory, uint32_t (&high)[STEPS][4], float (&factor)[2]) const {
    const int group = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP, lane = thread % 32;
    const int row = thread / 32 * 16 + lane / 4, pair = lane % 4 * 2;
    const unsigned char* at = memory + row * ROW_BYTES;
    // Four channels from `channel` on of this lane's first row or second; both have the same places.
    auto four = [&](int channel, int r) {
        const int unit = channel % COLUMN / 8 ^ (row & 7);
        return *reinterpret_cast<const uint2*>(
            at + channel / COLUMN * (64 * ROW_BYTES) + r * 8 * ROW_BYTES + unit * 16 + channel % 8 * 2
        );
    };
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float largest = 0.0f;
#pragma unroll
        for (int channel = 0; channel < S::D; channel += 16) {
            const uint2 x = four(channel + 2 * pair, r);
            const float2 a = unpack_as<bf16>(x.x), b = unpack_as<bf16>(x.y);
            largest = fmaxf(largest, fmaxf(fmaxf(fabsf(a.x), fabsf(a.y)), fmaxf(fabsf(b.x), fabsf(b.y))));
        }
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        const int exponent = min(max(fitting_exponent(largest), -100), 100);
        inverse[r] = power_of_two(-exponent), factor[r] = p.scale * power_of_two(exponent);
    }
    uint32_t low[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint2 x = four(32 * step + i / 2 * 16 + 2 * pair, i % 2);
            uint32_t first[2], second[2];
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float2 two = unpack_as<bf16>(k == 0 ? x.x : x.y);
                two.x *= inverse[i % 2], two.y *= inverse[i % 2];
                first[k] = __nv_cvt_float2_to_fp8x2(two, __NV_SATFINITE, __NV_E4M3);
                const float2 rounded = __half22float2(from_e4m3(first[k]));
                second[k] = __nv_cvt_float2_to_fp8x2(
                    make_float2(two.x - rounded.x, two.y - rounded.y), __NV_SATFINITE, __NV_E4M3
                );
            }
            high[step][i] = first[0] | first[1] << 16, low[step][i] = second[0] | second[1] << 16;
        }
    }
    // What is left of the queries takes their place. Both warpgroups have the same.
    named_barrier(1 + S::GROUPS, S::GROUPS * WARPGROUP);
    if (group == 0) {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int unit = step % 4 * 2 + i / 2 ^ row & 7;
                unsigned char* to = memory + step / 4 * (64 * ROW_BYTES) + (row + i % 2 * 8) * ROW_BYTES + unit * 16 + 2 * pair;
                *reinterpret_cast<uint32_t*>(to) = low[step][i];
            }
        }
        fence_async();
    }
    named_barrier(1 + S::GROUPS, S::GROUPS * WARPGROUP);
}

// Sums O^T, times `unit`, as finish.cuh wants them: of each row its channels. They go through where weights were.
template <class S>
template <int BLOCKS>
__device__ __forceinline__ void
Kernel<S>::turn_sums(unsigned char* memory, const float (&o)[BLOCKS][32], float unit, float (&sum)[BLOCKS * 32]) const {
    const int group = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP, warp = thread / 32, lane = thread % 32;
    const int row = warp * 16 + lane / 4, pair = lane % 4 * 2;
    float2* const at = reinterpret_cast<float2*>(memory + (weights(group) - queries));
    // Heads that are written at once, or read, lie in different banks.
    auto place = [&](int head, int two) { return head * 32 + (two ^ ((head / 2 ^ head % 2 * 2) & 3) * 4); };
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        if (b > 0) named_barrier(1 + group, WARPGROUP);
#pragma unroll
        for (int j = 0; j < 16; j++) {
            const int i = j / 2 * 4 + j % 2;
            at[place(j / 2 * 8 + pair + j % 2, warp * 8 + lane / 4)] = make_float2(o[b][i] * unit, o[b][i + 2] * unit);
        }
        named_barrier(1 + group, WARPGROUP);
#pragma unroll
        for (int j = 0; j < 16; j++) {
            const float2 two = at[place(row + j % 2 * 8, j / 2 * 4 + lane % 4)];
            const int i = (b * 8 + j / 2) * 4 + j % 2 * 2;
            sum[i] = two.x, sum[i + 1] = two.y;
        }
    }
}

}  // namespace paged
