// The warpgroups that compute where a cache in 8 bits is multiplied as it lies there: nothing is written back as 16 bits.
//
// Two warpgroups have a row block together. Of the scores each has those of its half of a tile's keys. A query is the sum of two
// values of e4m3, its rounding, in registers, and what that leaves, in shared memory: 8 significant bits, as many as bf16 has. Of the sums
// of values each has half of the channels, as O^T = V^T P^T: then values are the operand that comes from registers, and become f16 on
// their way there. Weights go through shared memory, as both need all of them, in f16 with the values' scales. Scales are measured
// from the largest that was met, as scores are.

#pragma once

#include "direct_edges.cuh"
#include "scores.cuh"

namespace paged {

// Of two neighbouring keys, from a shared address on: their scales' bytes, in halves of 16 bits.
__device__ __forceinline__ uint32_t load_scales(uint32_t address) {
    uint16_t two;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(two) : "r"(address) : "memory");
    return __byte_perm(two, 0, 0x4140);
}

// Weights begin at 2^START for the largest score, which others may exceed by 2^ROOM before it is measured anew, and are multiplied by
// 2^LIFT for the values' largest scale: together what f16 holds.
constexpr float START = 3.0f, ROOM = 8.0f;
constexpr int LIFT = 4;

template <class S>
__device__ __forceinline__ void Kernel<S>::compute_direct(unsigned char* memory) const {
    constexpr int HALF = S::KEYS / 2, SCORES = HALF / 2, WIDTH = S::E / 2, BLOCKS = WIDTH / 64, STEPS = S::D / 32, PARTS = 2 * BLOCKS;
    const int group = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP, warp = thread / 32, lane = thread % 32;
    const int row = warp * 16 + lane / 4, pair = lane % 4 * 2;
    const Block rows(p, block);
    const int tokens[2] = {rows.token_of(p, row), rows.token_of(p, row + 8)};
    Ring<RING> keys, values;
    if constexpr (!S::SHARED) values.advance();
    uint32_t high[STEPS][4];
    float o[BLOCKS][32], s[SCORES], m[2], l[2], factor[2], slopes[2];
    // Scales of two values each, those of keys that nobody sees being zero; the largest that was met, or zero.
    uint32_t value_scales[SCORES / 4];
    int most = 0;
    // Where this lane finds scales of a tile, and its first values, and where it puts weights; of shared memory, where the next
    // tile's weights go, and what is left of the queries.
    int scale_offset = group * HALF + pair;
    int value_offset = group * WIDTH / ROW_BYTES * S::COLUMN_BYTES + lane * ROW_BYTES +
        (((group * WIDTH + 16 * warp) % ROW_BYTES / 16 ^ lane & 7) << 4);
    int weight_offset = (group * 64 + warp * 16 + lane % 16) * ROW_BYTES + ((lane / 16 ^ lane & 7) << 4);
    keep(scale_offset), keep(value_offset), keep(weight_offset);
    uint32_t weights_at = weights(0);
    const uint32_t both_weights = weights(0) + weights(1), left_at = uniform(queries);
    uint32_t q_parity = 0, join_parity = 0;
    auto meet = [&] { named_barrier(1 + S::GROUPS, S::GROUPS * WARPGROUP); };
    auto meet_group = [&] { named_barrier(1 + group, WARPGROUP); };
    // Where all threads find what one has: maxima of rows and of scales, and what sums of heads are worth from then on.
    float* const tops[2] = {
        reinterpret_cast<float*>(memory + (sums(0) - queries)), reinterpret_cast<float*>(memory + (sums(1) - queries))
    };
    float* const shrinks = tops[0] + 64;
    int* const mosts = reinterpret_cast<int*>(tops[1] + 64);

    // Of the next keys, asked for before they are needed: where they are, and whether.
    uint32_t keys_at;
    bool keys_there;
    auto look = [&] {
        keys_at = uniform(tile(keys.slot) + group * HALF * ROW_BYTES);
        keys_there = barrier_passed(full(keys.slot), keys.parity);
    };
    // Starts S = Q K^T of this warpgroup's half of the next tile.
    auto start_scores = [&] {
        if (!keys_there) barrier_wait(full(keys.slot), keys.parity);
        const Factor k(keys_at), left(left_at);
        settle(s);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const Factor k_step = k.moved(step / 4 * S::COLUMN_BYTES + step % 4 * 32);
            wgmma_e4m3(s, high[step], k_step, step > 0);
            wgmma_e4m3(s, left.moved(step / 4 * (64 * ROW_BYTES) + step % 4 * 32), k_step);
        }
        wgmma_commit();
    };
    // Scores are there: with the keys' scales the tile is no longer needed for them.
    auto end_scores = [&] {
        settle(s);
        const uint32_t at = scales(keys.slot) + scale_offset;
#pragma unroll
        for (int j = 0; j < SCORES; j += 4) {
            const uint32_t two = load_scales(at + 2 * j);
            const float a = __uint_as_float(two << 23), b = __uint_as_float(two << 7 & 0x7f800000);
            s[j] *= a, s[j + 1] *= b, s[j + 2] *= a, s[j + 3] *= b;
        }
        if constexpr (!S::SHARED) {
            __syncwarp();
            if (lane < TELLING) barrier_arrive(empty(keys.slot));
            keys.advance();
        }
        keys.advance();
    };
    // O^T += V^T P^T in parts: 64 channels and half of a tile's keys. First their values are read, then they become f16, then multiplied.
    constexpr int READY = PARTS - 1;
    uint32_t raw[2][4], a[READY][4][4];
    // The slot of the values that were read last.
    int taken = 0;
    auto read_values = [&](int part) {
        const uint32_t at = tile(values.slot) + value_offset ^ part / 2 * 64;
#pragma unroll
        for (int i = 0; i < 2; i++) ldmatrix_t(raw[i], at + (part % 2 * 2 + i) * 32 * ROW_BYTES);
        if (part == PARTS - 1) {
            taken = values.slot;
            values.advance();
            if constexpr (!S::SHARED) values.advance();
        }
    };
    auto convert_values = [&](int part) {
        uint32_t(&to)[4][4] = a[part % READY];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            // Of two keys two channels each: rows r and r + 8 of the product are channels 2 r and 2 r + 1.
            const uint32_t sorted = __byte_perm(raw[i / 4][i % 4], 0, 0x3120);
            const __half2 first = from_e4m3(sorted & 0xffff), second = from_e4m3(sorted >> 16);
            to[i / 2][i % 2 * 2] = reinterpret_cast<const uint32_t&>(first);
            to[i / 2][i % 2 * 2 + 1] = reinterpret_cast<const uint32_t&>(second);
        }
        if (part == PARTS - 1) {
            __syncwarp();
            if (lane < TELLING) barrier_arrive(empty(taken));
        }
    };
    auto start_outputs = [&](int part, const Factor& weights) {
        if (part == 0) {
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) settle(o[b]);
        }
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; step++) {
            wgmma<0, f16>(o[part / 2], a[part % READY][step], weights.moved(part % 2 * (64 * ROW_BYTES) + step * 32), 1);
        }
        wgmma_commit();
    };
    auto end_outputs = [&] {
        wgmma_wait<0>();
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) settle(o[b]);
    };
    // Maxima of rows, or of scales, that are too small: moved for both warpgroups.
    auto move = [&](float (&top)[2], uint32_t largest) {
        int own = max(largest & 0xffff, largest >> 16);
        own = max(own, __shfl_xor_sync(~0u, own, 1));
        own = max(own, __shfl_xor_sync(~0u, own, 2));
        if (thread == 0) mosts[group] = own;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
            if (lane % 4 == 0) tops[group][row + 8 * r] = top[r];
        }
        meet();
        const int before = most;
        most = max(most, max(mosts[0], mosts[1]));
        const float worth = before > 0 ? power_of_two(before - most) : 0.0f;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float highest = fmaxf(tops[0][row + 8 * r], tops[1][row + 8 * r]) - START;
            const bool moves = highest > m[r] + ROOM;
            const float shrink = moves ? power2(m[r] - highest) : 1.0f;
            m[r] = moves ? highest : m[r];
            l[r] *= shrink;
            if (group == 0 && lane % 4 == 0) shrinks[row + 8 * r] = shrink * worth;
        }
    };
    // Sums before the move, when they are all there and all threads have met.
    auto shrink_outputs = [&] {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float2 two = *reinterpret_cast<const float2*>(shrinks + 8 * j + pair);
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
                o[b][4 * j] *= two.x, o[b][4 * j + 1] *= two.y, o[b][4 * j + 2] *= two.x, o[b][4 * j + 3] *= two.y;
            }
        }
    };
    // Whether maxima were moved for the scores at hand.
    auto measure = [&](int tile, bool plain, int seen, int length) {
        barrier_wait(full(values.slot), values.parity);
        const uint32_t at = scales(values.slot) + scale_offset;
#pragma unroll
        for (int j = 0; j < SCORES / 4; j++) value_scales[j] = load_scales(at + 8 * j);
        if (__builtin_expect(!plain, false)) {
            const int far = seen - 1 - tile * S::KEYS - group * HALF - pair;
            change_scores(p, s, far, tokens, slopes, [](int j) { return j / 4 * 8 + j % 2; });
            const int first = seen - p.window - tile * S::KEYS, end = length - tile * S::KEYS;
#pragma unroll
            for (int j = 0; j < SCORES / 4; j++) {
                const int key = group * HALF + 8 * j + pair;
                if (key < first || key >= end) value_scales[j] &= 0xffff0000;
                if (key + 1 < first || key + 1 >= end) value_scales[j] &= 0xffff;
            }
        }
        float top[2];
        largest_scores(s, top);
#pragma unroll
        for (int r = 0; r < 2; r++) top[r] *= factor[r];
        uint32_t largest = value_scales[0];
#pragma unroll
        for (int j = 1; j < SCORES / 4; j++) largest = __vmaxu2(largest, value_scales[j]);
        const bool exceeds = top[0] > m[0] + (START + ROOM) || top[1] > m[1] + (START + ROOM) || (largest & 0xffff) > most ||
            largest >> 16 > most;
        const bool moves = named_barrier_any(1 + S::GROUPS, S::GROUPS * WARPGROUP, exceeds);
        if (__builtin_expect(moves, false)) move(top, largest);
        return moves;
    };
    // Half of the scores to weights, in shared memory for both warpgroups.
    auto weigh = [&](int half) {
        const uint32_t lift = (15 + LIFT - most & 0xffff) * 0x10001;
        float base[2];
#pragma unroll
        for (int r = 0; r < 2; r++) base[r] = m[r] == -INFINITY ? 0.0f : m[r];
#pragma unroll
        for (int j = half * (SCORES / 8); j < (half + 1) * (SCORES / 8); j += 2) {
            uint32_t packed[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float(&two)[2] = reinterpret_cast<float(&)[2]>(s[4 * (j + i / 2) + i % 2 * 2]);
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    two[k] = power2(fmaf(two[k], factor[i % 2], -base[i % 2]));
                    l[i % 2] += two[k];
                }
                // Exponents of f16; what is less than that holds counts nothing beside the largest.
                const uint32_t scale = __viaddmax_s16x2_relu(value_scales[j + i / 2], lift, 0) << 10;
                const __half2 scaled = __hmul2(__floats2half2_rn(two[0], two[1]), reinterpret_cast<const __half2&>(scale));
                packed[i] = reinterpret_cast<const uint32_t&>(scaled);
            }
            stmatrix(weights_at + weight_offset ^ j << 4, packed);
        }
    };
    // The value rows of the keys `from` .. `to` of the next tile become zero, in this warpgroup's channels.
    auto clear_values = [&](int from, int to) {
        constexpr int UNITS = WIDTH / 16;
        barrier_wait(full(values.slot), values.parity);
        unsigned char* at = memory + (tile(values.slot) - queries) + group * WIDTH / ROW_BYTES * S::COLUMN_BYTES;
        for (int i = from * UNITS + thread; i < to * UNITS; i += WARPGROUP) {
            const int key = i / UNITS, unit = group * WIDTH % ROW_BYTES / 16 + i % UNITS;
            *reinterpret_cast<uint4*>(at + key * ROW_BYTES + ((unit ^ key & 7) << 4)) = make_uint4(0, 0, 0, 0);
        }
        fence_async();
        meet_group();
    };
    if (p.cluster > 1) cluster_wait();
    Items items(p, share, rank);
    // As in compute.cuh, of tiles twice as long.
    if (items.more() && items.item.z - items.item.y > LONG / 2) let_next_kernel_start();
    for (; items.more(); items.next()) {
        const int4 item = items.item;
        const int length = p.lengths[divide(item.x, p.kv_heads)];
        // As in compute.cuh.
        const int seen = length - p.tokens + 1;
        const int plain = max(length - p.window + S::KEYS - 1, 0) / S::KEYS, plain_end = p.slopes ? 0 : max(seen, 0) / S::KEYS;
        m[0] = m[1] = -INFINITY;
        l[0] = l[1] = 0.0f;
        most = 0;
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
#pragma unroll
            for (int j = 0; j < 32; j++) o[b][j] = 0.0f;
        }
        barrier_wait(asked(), q_parity);
        q_parity ^= 1;
        split_queries(memory, high, factor);
        if (p.slopes) {
            const int head = item.x % p.kv_heads * p.group;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                slopes[r] = p.slopes[min(head + rows.head_of(p, row + 8 * r), p.heads - 1)] * (LOG2_E / factor[r]);
            }
        }
        auto measure_tile = [&](int tile) { return measure(tile, tile >= plain && tile < plain_end, seen, length); };
        if (item.y < item.z) {
            look();
            start_scores();
            wgmma_wait<0>();
            end_scores();
            measure_tile(item.y);
            weigh(0), weigh(1);
            fence_async();
            look();
            meet();
            const int unseen = seen - p.window - item.y * S::KEYS;
            if (unseen > 0) clear_values(0, min(unseen, S::KEYS));
            for (int tile = item.y;; tile++) {
                const Factor weights(uniform(weights_at));
                weights_at = both_weights - weights_at;
                if (tile + 1 == item.z) {
                    if (item.z * S::KEYS > length) clear_values(length - tile * S::KEYS, S::KEYS);
#pragma unroll
                    for (int part = 0; part < PARTS; part++) {
                        if (part == READY) wgmma_wait<READY - 1>();
                        read_values(part), convert_values(part);
                        start_outputs(part, weights);
                    }
                    end_outputs();
                    break;
                }
                start_scores();
                // Whatever is computed stands between products, so that these follow each other.
#pragma unroll
                for (int part = 0; part < READY; part++) read_values(part), convert_values(part);
                read_values(READY);
                wgmma_wait<0>();
                start_outputs(0, weights);
                end_scores();
                start_outputs(1, weights);
                const bool moved = measure_tile(tile + 1);
                start_outputs(2, weights);
                wgmma_wait<2>();
                convert_values(READY);
                weigh(0);
                start_outputs(READY, weights);
                weigh(1);
                fence_async();
                look();
                end_outputs();
                meet();
                if (__builtin_expect(moved, false)) shrink_outputs();
            }
        }
        // The queries are free for the next item.
        if (lane == 0) barrier_arrive(answered());
        // Of each row both halves of the keys; what the lanes have is added up later.
#pragma unroll
        for (int r = 0; r < 2; r++) {
            l[r] += __shfl_xor_sync(~0u, l[r], 1);
            l[r] += __shfl_xor_sync(~0u, l[r], 2);
            if (lane % 4 == 0) tops[group][row + 8 * r] = l[r];
        }
        meet();
#pragma unroll
        for (int r = 0; r < 2; r++) l[r] = lane % 4 == 0 ? tops[0][row + 8 * r] + tops[1][row + 8 * r] : 0.0f;
        float sum[WIDTH / 2];
        turn_sums(memory, o, most > 0 ? power_of_two(most - 127 - LIFT) : 0.0f, sum);
        finish(item, sum, m, l, group, memory, rows, join_parity);
        join_parity ^= 1;
    }
    merge(group, rows);
}

}  // namespace paged
