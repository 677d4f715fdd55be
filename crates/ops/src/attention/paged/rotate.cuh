// The warpgroup that rotates: a copy of each tile with its keys turned by their positions.

#pragma once

#include "convert.cuh"

namespace paged {

// Cosines and sines of a thread: of 8 channel pairs for OWN keys of each tile, ROWS apart.
//
// The angles in the middle of its keys are in f32: from the table every few tiles, and a turn further with each in between (off by
// 1.5e-4 at most, a tenth of bf16's own rounding), where the table alone would be 1 KB for a key of 512 bytes. Keys lie in twos,
// as far before the middle as behind it, in 16 bits: of the four products that make cos(a +- b), and sin(a +- b), both share two.
template <class S>
struct Angles {
    using Element = typename Kernel<S>::Element;
    static constexpr int LANES = S::D / 16, ROWS = WARPGROUP / LANES, OWN = S::KEYS / ROWS, TWOS = OWN / 2, REFRESH = 16;
    static_assert(S::KEYS == 2 * TWOS * ROWS, "keys in twos");
    // Of the middle; from the first key to there, and from tile to tile.
    float cosine[8], sine[8], middle_cos[8], middle_sin[8], tile_cos[8], tile_sin[8];
    // From the middle to the keys of each two; the middle.
    uint32_t off_cos[TWOS][4], off_sin[TWOS][4], now_cos[4], now_sin[4];

    static __device__ __forceinline__ void add(float& cosine, float& sine, float by_cos, float by_sin) {
        const float c = cosine * by_cos - sine * by_sin;
        sine = sine * by_cos + cosine * by_sin, cosine = c;
    }
    static __device__ __forceinline__ void
    add_all(float (&cosine)[8], float (&sine)[8], const float (&by_cos)[8], const float (&by_sin)[8]) {
#pragma unroll
        for (int j = 0; j < 8; j++) add(cosine[j], sine[j], by_cos[j], by_sin[j]);
    }
    static __device__ __forceinline__ void
    pack_all(const float (&cosine)[8], const float (&sine)[8], uint32_t (&to_cos)[4], uint32_t (&to_sin)[4]) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            to_cos[j] = pack_as<Element>(cosine[2 * j], cosine[2 * j + 1]);
            to_sin[j] = pack_as<Element>(sine[2 * j], sine[2 * j + 1]);
        }
    }
    static __device__ __forceinline__ void read(const Params& p, const float* table, int position, int pair, float (&to)[8]) {
        position = min(position, p.positions - 1);
        const float4* from = reinterpret_cast<const float4*>(table + static_cast<int64_t>(position) * p.pairs + pair);
        const float4 low = __ldg(from), high = __ldg(from + 1);
        to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
        to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
    }
    // All steps from that of one position: a table may have fewer positions than a tile.
    __device__ __forceinline__ void begin(const Params& p, int pair) {
        float amplitude[8];
        read(p, p.cosines, 0, pair, amplitude);
        read(p, p.cosines, 1, pair, cosine);
        read(p, p.sines, 1, pair, sine);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            tile_cos[j] = cosine[j] / amplitude[j], tile_sin[j] = sine[j] / amplitude[j];
            for (int by = 2; by < ROWS; by *= 2) add(tile_cos[j], tile_sin[j], tile_cos[j], tile_sin[j]);
            middle_cos[j] = tile_cos[j], middle_sin[j] = tile_sin[j];
            add(tile_cos[j], tile_sin[j], tile_cos[j], tile_sin[j]);
        }
#pragma unroll
        for (int i = 0; i < TWOS; i++) {
            if (i > 0) add_all(middle_cos, middle_sin, tile_cos, tile_sin);
            pack_all(middle_cos, middle_sin, off_cos[i], off_sin[i]);
        }
#pragma unroll
        for (int by = ROWS; by < S::KEYS; by *= 2) {
#pragma unroll
            for (int j = 0; j < 8; j++) add(tile_cos[j], tile_sin[j], tile_cos[j], tile_sin[j]);
        }
    }
    // Keys from `position` on.
    __device__ __forceinline__ void start(const Params& p, int position, int pair) {
        read(p, p.cosines, position, pair, cosine);
        read(p, p.sines, position, pair, sine);
        add_all(cosine, sine, middle_cos, middle_sin);
    }
    // What `turn` takes.
    __device__ __forceinline__ void take() { pack_all(cosine, sine, now_cos, now_sin); }
    // To the next tile.
    __device__ __forceinline__ void advance() { add_all(cosine, sine, tile_cos, tile_sin); }
    // Two channels x and those they are paired with, y.
    static __device__ __forceinline__ void turn(uint32_t& x, uint32_t& y, uint32_t c, uint32_t s) {
        const uint32_t from_y = multiply_as<Element>(y, s), from_x = multiply_as<Element>(x, s);
        x = subtract_from_product_as<Element>(x, c, from_y);
        y = add_product_as<Element>(y, c, from_x);
    }
    // The keys of two number i.
    __device__ __forceinline__ void turn(int i, uint4 (&low)[2], uint4 (&high)[2]) const {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t a_cos = now_cos[j], a_sin = now_sin[j], b_cos = off_cos[i][j], b_sin = off_sin[i][j];
            const uint32_t sines = multiply_as<Element>(a_sin, b_sin), mixed = multiply_as<Element>(a_cos, b_sin);
            turn(
                (&low[0].x)[j], (&high[0].x)[j], add_product_as<Element>(a_cos, b_cos, sines),
                subtract_from_product_as<Element>(a_sin, b_cos, mixed)
            );
            turn(
                (&low[1].x)[j], (&high[1].x)[j], subtract_from_product_as<Element>(a_cos, b_cos, sines),
                add_product_as<Element>(a_sin, b_cos, mixed)
            );
        }
    }
};

template <class S>
__device__ __forceinline__ void Kernel<S>::rotate_tiles(unsigned char* memory) const {
    using Own = Angles<S>;
    constexpr int ROWS = Own::ROWS, OWN = Own::OWN;
    const int thread = threadIdx.x - (S::GROUPS + 1) * WARPGROUP;
    const int row = thread / Own::LANES, pair = thread % Own::LANES * 8;
    const bool busy = pair < p.pairs;
    const uint32_t base = shared_address(memory);
    // Where 8 channels of a thread's key are in a tile.
    auto offset = [&](int channel, int own) {
        const int key = row + own * ROWS, unit = channel % COLUMN / 8;
        return channel / COLUMN * S::COLUMN_BYTES + key * ROW_BYTES + ((unit ^ (key & 7)) << 4);
    };
    Own angles;
    if (busy) angles.begin(p, pair);
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
            if (busy && (tile - item.y) % Own::REFRESH == 0) angles.start(p, tile * S::KEYS + row, pair);
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
            auto read = [&](int channel, int own) {
                if constexpr (S::FP8) {
                    const int key = row + own * ROWS, unit = channel % ROW_BYTES / 16;
                    return *reinterpret_cast<const Eight*>(
                        memory + (raw_tile(raw_ring.slot) - base) + channel / ROW_BYTES * S::COLUMN_BYTES + key * ROW_BYTES +
                        ((unit ^ (key & 7)) << 4) + channel % 16
                    );
                } else {
                    return *reinterpret_cast<const Eight*>(from + offset(channel, own));
                }
            };
            // As 16 bits, which the sums of values want, too.
            auto widen = [&](const Eight& eight, int channel, int own) {
                if constexpr (S::FP8) {
                    const __half* factor = reinterpret_cast<const __half*>(memory + (factors(target.slot) - base));
                    const __half2 scale = __half2half2(factor[(row + own * ROWS) * S::D_COLUMNS + channel / COLUMN]);
                    const uint4 halves = {
                        convert(eight.x, 0, scale), convert(eight.x, 1, scale), convert(eight.y, 0, scale), convert(eight.y, 1, scale)
                    };
                    *reinterpret_cast<uint4*>(from + offset(channel, own)) = halves;
                    return halves;
                } else {
                    return eight;
                }
            };
            if (busy) {
                // All are read before the first is written: the compiler would not move reads before writes.
                Eight lows[OWN], highs[OWN];
#pragma unroll
                for (int own = 0; own < OWN; own++) lows[own] = read(pair, own), highs[own] = read(pair + p.pairs, own);
                angles.take();
#pragma unroll
                for (int i = 0; i < Own::TWOS; i++) {
                    const int own[] = {Own::TWOS - 1 - i, Own::TWOS + i};
                    uint4 low[2], high[2];
#pragma unroll
                    for (int k = 0; k < 2; k++) low[k] = widen(lows[own[k]], pair, own[k]);
#pragma unroll
                    for (int k = 0; k < 2; k++) high[k] = widen(highs[own[k]], pair + p.pairs, own[k]);
                    angles.turn(i, low, high);
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        *reinterpret_cast<uint4*>(to + offset(pair, own[k])) = low[k];
                        *reinterpret_cast<uint4*>(to + offset(pair + p.pairs, own[k])) = high[k];
                    }
                }
                angles.advance();
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
