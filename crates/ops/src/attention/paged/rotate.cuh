// The warpgroup that rotates: a copy of each tile with its keys turned by their positions.

#pragma once

#include "convert.cuh"

namespace paged {

// A thread has 8 channel pairs of every ROWS-th key. It knows the angles in the middle of its keys in f32: from the table every few
// tiles, and a turn further with each in between (off by 1.5e-4 at most, a tenth of bf16's own rounding), where the table alone would
// be 1 KB for a key of 512 bytes. Keys lie in twos, as far before the middle as behind it, in 16 bits: of the four products that make
// cos(a +- b), and sin(a +- b), both share two.
//
// How this is written decides where the compiler computes addresses: with angles in a struct of their own tiles of 8 bits take 5 %
// longer, and the places of a thread's keys in registers are no quicker.
template <class S>
__device__ __forceinline__ void Kernel<S>::rotate_tiles(unsigned char* memory) const {
    // A thread's keys of a tile: OWN of them, ROWS apart.
    constexpr int LANES = S::D / 16, ROWS = WARPGROUP / LANES, OWN = S::KEYS / ROWS, TWOS = OWN / 2, REFRESH = 16;
    static_assert(S::KEYS == 2 * TWOS * ROWS, "keys in twos");
    const int thread = threadIdx.x - (S::GROUPS + 1) * WARPGROUP;
    const int row = thread / LANES, pair = thread % LANES * 8;
    const bool busy = pair < p.pairs;
    const uint32_t base = shared_address(memory);
    auto offset = [&](int channel, int key) {
        const int unit = channel % COLUMN / 8;
        return channel / COLUMN * S::COLUMN_BYTES + key * ROW_BYTES + ((unit ^ (key & 7)) << 4);
    };
    auto at = [&](const float* table, int position, float (&to)[8]) {
        position = min(position, p.positions - 1);
        const float4* from = reinterpret_cast<const float4*>(table + static_cast<int64_t>(position) * p.pairs + pair);
        const float4 low = __ldg(from), high = __ldg(from + 1);
        to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
        to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
    };
    // Angles of the middle of a tile's keys; from the first key to there, and from tile to tile.
    float cosine[8], sine[8], middle_cos[8], middle_sin[8], tile_cos[8], tile_sin[8];
    // From the middle to the keys of each two.
    uint32_t off_cos[TWOS][4], off_sin[TWOS][4];
    auto add_angle = [](float& cosine, float& sine, float cos_by, float sin_by) {
        const float c = cosine * cos_by - sine * sin_by;
        sine = sine * cos_by + cosine * sin_by, cosine = c;
    };
    if (busy) {
        float amplitude[8];
        at(p.cosines, 0, amplitude);
        // All from the step of one position: a table may have fewer positions than a tile.
        at(p.cosines, 1, cosine);
        at(p.sines, 1, sine);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            cosine[j] /= amplitude[j], sine[j] /= amplitude[j];
            for (int by = 2; by < ROWS; by *= 2) add_angle(cosine[j], sine[j], cosine[j], sine[j]);
            middle_cos[j] = cosine[j], middle_sin[j] = sine[j];
            add_angle(cosine[j], sine[j], cosine[j], sine[j]);
        }
#pragma unroll
        for (int i = 0; i < TWOS; i++) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                if (i > 0) add_angle(middle_cos[j], middle_sin[j], cosine[j], sine[j]);
                if (j % 2 == 0) continue;
                off_cos[i][j / 2] = pack_as<Element>(middle_cos[j - 1], middle_cos[j]);
                off_sin[i][j / 2] = pack_as<Element>(middle_sin[j - 1], middle_sin[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            for (int by = ROWS; by < S::KEYS; by *= 2) add_angle(cosine[j], sine[j], cosine[j], sine[j]);
            tile_cos[j] = cosine[j], tile_sin[j] = sine[j];
        }
    }
    Ring<RING> ring;
    Ring<2> target;
    Ring<S::FP8 ? S::RAW : 1> raw_ring;
    for (Items items(p, share, rank); items.more(); items.next()) {
        const int4 item = items.item;
        if (item.y >= item.z) continue;
        typename Choice<S::FP8, Scales<S>, NoScales>::type scales(p, item, thread);
        for (int tile = item.y; tile < item.z; tile++) {
            if constexpr (S::FP8) {
                scales.take(tile);
                __half2* to = reinterpret_cast<__half2*>(memory + (factors(target.slot) - base));
                to[scales.key * (S::D_COLUMNS / 2) + scales.sharer] = scales.factors[0][0];
                named_barrier(2 + S::GROUPS, WARPGROUP);
            }
            if (busy && (tile - item.y) % REFRESH == 0) {
                at(p.cosines, tile * S::KEYS + row, cosine);
                at(p.sines, tile * S::KEYS + row, sine);
#pragma unroll
                for (int j = 0; j < 8; j++) add_angle(cosine[j], sine[j], middle_cos[j], middle_sin[j]);
            }
            barrier_wait(unturned(target.slot), target.parity ^ 1);
            if constexpr (S::FP8) {
                barrier_wait(raw_full(raw_ring.slot), raw_ring.parity);
                barrier_wait(empty(ring.slot), ring.parity ^ 1);
            } else {
                barrier_wait(full(ring.slot), ring.parity);
            }
            unsigned char* from = memory + (this->tile(ring.slot) - base);
            unsigned char* to = memory + (copy(target.slot) - base);
            // 8 channels of a key as they lie there: of 8 bits, or 16.
            using Eight = typename Choice<S::FP8, uint2, uint4>::type;
            auto read = [&](int channel, int key) {
                if constexpr (S::FP8) {
                    const int unit = channel % ROW_BYTES / 16;
                    return *reinterpret_cast<const Eight*>(
                        memory + (raw_tile(raw_ring.slot) - base) + channel / ROW_BYTES * S::COLUMN_BYTES + key * ROW_BYTES +
                        ((unit ^ (key & 7)) << 4) + channel % 16
                    );
                } else {
                    return *reinterpret_cast<const Eight*>(from + offset(channel, key));
                }
            };
            // As 16 bits, which the sums of values want, too.
            auto widen = [&](const Eight& eight, int channel, int key) {
                if constexpr (S::FP8) {
                    const __half* factor = reinterpret_cast<const __half*>(memory + (factors(target.slot) - base)) + key * S::D_COLUMNS;
                    const __half2 scale = __half2half2(factor[channel / COLUMN]);
                    const uint4 halves = {
                        convert(eight.x, 0, scale), convert(eight.x, 1, scale), convert(eight.y, 0, scale), convert(eight.y, 1, scale)
                    };
                    *reinterpret_cast<uint4*>(from + offset(channel, key)) = halves;
                    return halves;
                } else {
                    return eight;
                }
            };
            // Two channels, and those they are paired with, turned: in 16 bits, as are cosines and sines.
            auto turn = [&](uint4& low, uint4& high, int j, uint32_t c, uint32_t s) {
                uint32_t& x = (&low.x)[j];
                uint32_t& y = (&high.x)[j];
                const uint32_t from_y = multiply_as<Element>(y, s), from_x = multiply_as<Element>(x, s);
                x = subtract_from_product_as<Element>(x, c, from_y);
                y = add_product_as<Element>(y, c, from_x);
            };
            if (busy) {
                // All are read before the first is written: the compiler would not move reads before writes.
                Eight lows[OWN], highs[OWN];
#pragma unroll
                for (int i = 0; i < OWN; i++) {
                    lows[i] = read(pair, row + i * ROWS), highs[i] = read(pair + p.pairs, row + i * ROWS);
                }
                uint32_t now_cos[4], now_sin[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    now_cos[j] = pack_as<Element>(cosine[2 * j], cosine[2 * j + 1]);
                    now_sin[j] = pack_as<Element>(sine[2 * j], sine[2 * j + 1]);
                }
#pragma unroll
                for (int i = 0; i < TWOS; i++) {
                    const int before = TWOS - 1 - i, behind = TWOS + i;
                    auto key = [&](int own) { return row + own * ROWS; };
                    uint4 low[] = {widen(lows[before], pair, key(before)), widen(lows[behind], pair, key(behind))};
                    uint4 high[] = {
                        widen(highs[before], pair + p.pairs, key(before)), widen(highs[behind], pair + p.pairs, key(behind))
                    };
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const uint32_t c = off_cos[i][j], s = off_sin[i][j];
                        const uint32_t both_sines = multiply_as<Element>(now_sin[j], s), mixed = multiply_as<Element>(now_cos[j], s);
                        turn(
                            low[0], high[0], j, add_product_as<Element>(now_cos[j], c, both_sines),
                            subtract_from_product_as<Element>(now_sin[j], c, mixed)
                        );
                        turn(
                            low[1], high[1], j, subtract_from_product_as<Element>(now_cos[j], c, both_sines),
                            add_product_as<Element>(now_sin[j], c, mixed)
                        );
                    }
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        const int own = k == 0 ? before : behind;
                        *reinterpret_cast<uint4*>(to + offset(pair, key(own))) = low[k];
                        *reinterpret_cast<uint4*>(to + offset(pair + p.pairs, key(own))) = high[k];
                    }
                }
#pragma unroll
                for (int j = 0; j < 8; j++) add_angle(cosine[j], sine[j], tile_cos[j], tile_sin[j]);
            }
            fence_async();
            barrier_arrive(turned(target.slot));
            if constexpr (S::FP8) {
                barrier_arrive(full(ring.slot));
                barrier_arrive(raw_empty(raw_ring.slot));
                raw_ring.advance();
            }
            ring.advance();
            target.advance();
        }
    }
}

}  // namespace paged
