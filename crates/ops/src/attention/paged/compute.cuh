// The warpgroups that compute.

#pragma once

#include "scores.cuh"
#include "types.cuh"

namespace paged {

// A warpgroup: scores, softmax and outputs of a row block (or of some value channels of it).
template <class S>
__device__ __forceinline__ void Kernel<S>::compute(unsigned char* memory) const {
    constexpr int WIDTH = S::E / S::VALUE_GROUPS, SCORES = S::KEYS / 2;
    const int group = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP, lane = thread % 32;
    const int row_group = S::ROW_GROUPS > 1 ? group / S::VALUE_GROUPS : 0, column = group % S::VALUE_GROUPS * WIDTH;
    const int row = thread / 32 * 16 + lane / 4;
    const uint32_t query_rows = queries + row_group * S::Q_BYTES;
    const uint32_t value_offset = column / COLUMN * S::COLUMN_BYTES;
    const Block rows(p, block + row_group);
    const int tokens[2] = {rows.token_of(p, row), rows.token_of(p, row + 8)};
    Ring<RING> keys, values;
    if constexpr (!S::SHARED) values.advance();
    Ring<2> target;
    uint32_t q_parity = 0, join_parity = 0;
    float o[WIDTH / 2], s[SCORES], m[2] = {}, l[2], shrink[2], slopes[2];
    uint32_t weights[S::KEYS / 16][4];

    const int tile_keys = this->tile_keys();
    const uint32_t factor_offset = (S::D_COLUMNS + row_group) * S::COLUMN_BYTES;
    // Where this lane finds the factors of 16 rows of a tile, for `ldmatrix_t`.
    auto factors_at = [&](uint32_t factors, int from) {
        const int at = from + lane / 16 * 8 + lane % 8, unit = thread / 32 * 2 + lane / 8 % 2;
        const int heads = p.group >= 64 ? unit : unit * 8 % p.group / 8;
        return factors + at * ROW_BYTES + ((heads ^ (at & 7)) << 4);
    };
    // Scores of terms to scores of keys: each of a key's columns has its sum.
    auto sum_terms = [&](uint32_t factors) {
#pragma unroll
        for (int from = 0; from < S::KEYS; from += 16) {
            uint32_t a[4];
            ldmatrix_t(a, factors_at(factors, from));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int j = from / 2 + 2 * i;
                s[j] *= low_half(a[i]), s[j + 1] *= high_half(a[i]);
                if (p.rank_shift > 0) s[j] = s[j + 1] = s[j] + s[j + 1];
            }
        }
        if (p.rank_shift == 2) {
#pragma unroll
            for (int j = 0; j < SCORES; j += 2) s[j] = s[j + 1] = s[j] + __shfl_xor_sync(~0u, s[j], 1);
        }
        __syncwarp();
    };
    // Of the next keys, and of the next values: where they are, and whether. Both are asked for long before they are needed: the
    // shuffle that makes an address uniform, and the barrier's answer, wait behind whatever else wants shared memory.
    uint32_t keys_at, values_at;
    bool keys_there, values_there;
    auto keys_barrier = [&] { return S::ROTATE ? turned(target.slot) : full(keys.slot); };
    auto keys_parity = [&] { return S::ROTATE ? target.parity : keys.parity; };
    auto look = [&] {
        keys_at = uniform(S::ROTATE ? copy(target.slot) : tile(keys.slot));
        values_at = uniform(tile(values.slot) + value_offset);
        keys_there = barrier_passed(keys_barrier(), keys_parity());
        values_there = barrier_passed(full(values.slot), values.parity);
    };
    // The slot of values that are being multiplied.
    int taken = 0;
    // Starts S = Q K^T of the next tile.
    auto start_scores = [&] {
        if (!keys_there) barrier_wait(keys_barrier(), keys_parity());
        const Factor k(keys_at), q(S::ROW_GROUPS > 1 ? uniform(query_rows) : query_rows);
        settle(s);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < S::D / 16; step++) {
            const uint32_t bytes = step % 4 * 32;
            const Factor queries = q.moved(step / 4 * (64 * ROW_BYTES) + bytes);
            wgmma<0, 0, Element>(s, queries, k.moved(step / 4 * S::COLUMN_BYTES + bytes), step > 0);
        }
        wgmma_commit();
    };
    // Scores are there: as far as they go, the tile is no longer needed.
    auto end_scores = [&] {
        settle(s);
        if constexpr (S::FACTORS) sum_terms(tile(keys.slot) + factor_offset);
        if constexpr (S::ROTATE) {
            if (lane == 0) barrier_arrive(unturned(target.slot));
            target.advance();
        } else if constexpr (!S::SHARED) {
            if (lane < TELLING) barrier_arrive(empty(keys.slot));
            keys.advance();
        }
        keys.advance();
    };
    // Starts O += P V.
    auto start_outputs = [&] {
        if (!values_there) barrier_wait(full(values.slot), values.parity);
        const Factor v(values_at, S::COLUMN_BYTES);
        taken = values.slot;
        values.advance();
        if constexpr (!S::SHARED) values.advance();
        settle(o);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < S::KEYS / 16; step++) wgmma<1, Element>(o, weights[step], v.moved(step * 16 * ROW_BYTES), 1);
        wgmma_commit();
    };
    auto end_outputs = [&] {
        settle(o);
        if (lane < TELLING) barrier_arrive(empty(taken));
    };
    // Whether maxima were moved: `shrink` is what the sums before are worth from then on.
    bool moved = false;
    auto change = [&](int number, int seen) {
        const int far = seen - 1 - number * tile_keys - (S::FACTORS ? 0 : lane % 4 * 2);
        change_scores(p, s, far, tokens, slopes, [&](int j) {
            return S::FACTORS ? (lane % 4 * 2 + j / 4 * 8 + j % 2) >> shift() : j / 4 * 8 + j % 2;
        });
    };
    // Scores to weights, not yet packed.
    auto softmax = [&] {
        float top[2], base[2];
        largest_scores(s, top);
#pragma unroll
        for (int r = 0; r < 2; r++) top[r] *= p.scale;
        // Seldom but at the beginning: until then the four lanes of a row need not compare theirs.
        moved = __any_sync(~0u, top[0] > m[0] + SLACK || top[1] > m[1] + SLACK);
        if (__builtin_expect(moved, false)) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
                top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
                const bool move = top[r] > m[r] + SLACK;
                shrink[r] = move ? power2(m[r] - top[r]) : 1.0f;
                m[r] = move ? top[r] : m[r];
                l[r] *= shrink[r];
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) base[r] = m[r] == -INFINITY ? 0.0f : m[r];
#pragma unroll
        for (int j = 0; j < SCORES; j++) {
            s[j] = power2(s[j] * p.scale - base[j / 2 % 2]);
            l[j / 2 % 2] += s[j];
        }
        // Never so. Without a branch here the compiler waits for O first and computes all of this while nothing multiplies.
        if (fminf(l[0], l[1]) < 0.0f) asm volatile("nanosleep.u32 0;");
    };
    auto pack_weights = [&] {
        if (__builtin_expect(moved, false)) {
#pragma unroll
            for (int j = 0; j < WIDTH / 2; j++) o[j] *= shrink[j / 2 % 2];
        }
        if constexpr (S::FACTORS) {
            barrier_wait(full(values.slot), values.parity);
#pragma unroll
            for (int from = 0; from < S::KEYS; from += 16) {
                uint32_t a[4];
                ldmatrix_t(a, factors_at(tile(values.slot) + factor_offset, from));
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float low = s[from / 2 + 2 * i], high = s[from / 2 + 2 * i + 1];
                    // Factors of keys that are not seen may be anything.
                    weights[from / 16][i] = pack(
                        low == 0.0f ? 0.0f : low * low_half(a[i]), high == 0.0f ? 0.0f : high * high_half(a[i])
                    );
                }
            }
        } else {
#pragma unroll
            for (int j = 0; j < SCORES / 2; j++) weights[j / 4][j % 4] = pack_as<Element>(s[2 * j], s[2 * j + 1]);
        }
    };
    // The value rows of the keys `from` .. `to` of the next tile become zero.
    auto clear_values = [&](int from, int to) {
        const int rows = from << shift(), end = to << shift();
        barrier_wait(full(values.slot), values.parity);
        unsigned char* at = memory + (tile(values.slot) + value_offset - shared_address(memory));
        const int units = (end - rows) * (ROW_BYTES / 16);
        for (int unit = thread; unit < units * (WIDTH / COLUMN); unit += WARPGROUP) {
            const int offset = unit / units * S::COLUMN_BYTES + rows * ROW_BYTES + unit % units * 16;
            *reinterpret_cast<uint4*>(at + offset) = make_uint4(0, 0, 0, 0);
        }
        fence_async();
        named_barrier(1 + group, WARPGROUP);
    };

    // Where value groups share a row block, they also share this.
    auto queries_to_f16 = [&] {
        constexpr int SHARERS = S::VALUE_GROUPS * WARPGROUP;
        uint4* at = reinterpret_cast<uint4*>(memory + (query_rows - shared_address(memory)));
        for (int i = threadIdx.x % SHARERS; i < S::Q_BYTES / 16; i += SHARERS) {
            uint4 eight = at[i];
            uint32_t* pair = reinterpret_cast<uint32_t*>(&eight);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float2 two = unpack_as<bf16>(pair[j]);
                pair[j] = pack_as<f16>(fminf(fmaxf(two.x, -F16_MAX), F16_MAX), fminf(fmaxf(two.y, -F16_MAX), F16_MAX));
            }
            at[i] = eight;
        }
        fence_async();
        if constexpr (S::VALUE_GROUPS == 1) named_barrier(1 + group, WARPGROUP);
        else named_barrier(1 + S::GROUPS, S::GROUPS * WARPGROUP);
    };

    if (p.cluster > 1) cluster_wait();
    Items items(p, share, rank);
    // Whatever the next kernel asks for is asked for earlier then, and memory is busy to the end. Where there are few tiles, that
    // would keep this one waiting: then it starts when all of them have been asked for.
    if (items.more() && items.item.z - items.item.y > LONG) let_next_kernel_start();
    for (; items.more(); items.next()) {
        const int4 item = items.item;
        const int length = p.lengths[divide(item.x, p.kv_heads)];
        // Keys that the first token sees, and the tiles whose scores are taken as they are.
        const int seen = length - p.tokens + 1;
        int plain = max(length - p.window + tile_keys - 1, 0) / tile_keys, plain_end = p.slopes ? 0 : max(seen, 0) / tile_keys;
        keep(plain), keep(plain_end);
        m[0] = m[1] = -INFINITY;
        l[0] = l[1] = 0.0f;
#pragma unroll
        for (int j = 0; j < WIDTH / 2; j++) o[j] = 0.0f;
        if (p.slopes) {
            // For scores that are yet to be scaled.
            const int head = item.x % p.kv_heads * p.group;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                slopes[r] = p.slopes[min(head + rows.head_of(p, row + 8 * r), p.heads - 1)] * (LOG2_E / p.scale);
            }
        }
        barrier_wait(asked(), q_parity);
        q_parity ^= 1;
        if constexpr (S::FP8) queries_to_f16();
        if (item.y < item.z) {
            look();
            start_scores();
            wgmma_wait<0>();
            end_scores();
            const int unseen = seen - p.window - item.y * tile_keys;
            if (unseen > 0) clear_values(0, unseen);
            for (int number = item.y;; number++) {
                look();
                if (__builtin_expect(number < plain || number >= plain_end, false)) change(number, seen);
                softmax();
                if constexpr (S::AHEAD) {
                    wgmma_wait<0>();
                    if (number > item.y) end_outputs();
                }
                pack_weights();
                if (number + 1 == item.z) break;
                if constexpr (S::AHEAD) {
                    start_scores();
                    start_outputs();
                    wgmma_wait<1>();
                } else {
                    start_outputs();
                    wgmma_wait<0>();
                    end_outputs();
                    start_scores();
                    wgmma_wait<0>();
                }
                end_scores();
            }
        }
        // The queries are free for the next item.
        if (lane == 0) barrier_arrive(answered());
        if (item.y < item.z) {
            if (item.z * tile_keys > length) clear_values(length - (item.z - 1) * tile_keys, tile_keys);
            start_outputs();
            wgmma_wait<0>();
            end_outputs();
        }
        finish(item, o, m, l, group, memory, rows, join_parity);
        join_parity ^= 1;
    }
    merge(group, rows);
}

}  // namespace paged
