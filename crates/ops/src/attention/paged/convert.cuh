// Tiles of 8 bits become tiles of f16: the threads that do, and the scales they need.

#pragma once

#include "fp8.cuh"
#include "types.cuh"

namespace paged {

// Two channels of 8 bits, of the pair of bytes at `at` in `word`, as f16.
__device__ __forceinline__ uint32_t convert(uint32_t word, int at, __half2 factor) {
    const __half2 two = __hmul2(from_e4m3(word >> 16 * at & 0xffff), factor);
    return reinterpret_cast<const uint32_t&>(two);
}

// The scales of a thread's part of an item's tiles: of one key every SHARERS-th column of 128 channels.
//
// They come by plain reads, one behind the other (page, then scale): each is asked for a tile ahead.
template <class S>
struct Scales {
    static constexpr int SHARERS = S::CONVERTING_THREADS / S::KEYS;
    static constexpr int COLUMNS = (S::RAW_COLUMNS + SHARERS - 1) / SHARERS, PLANES = S::SHARED ? 1 : 2;
    const Params& p;
    const int* pages;
    int key, sharer, length, end, next_page;
    int first[2];
    // Exponents plus 127, two a column; of rows that are none, zero. Nothing is computed with them before they are needed: that
    // would wait for them.
    uint8_t next[PLANES][COLUMNS][2];
    __half2 factors[PLANES][COLUMNS];

    __device__ __forceinline__ Scales(const Params& params, const int4& item, int thread)
        : p(params), key(thread % S::KEYS), sharer(thread / S::KEYS), end(item.z) {
        const int sequence = divide(item.x, p.kv_heads), head = item.x - sequence * p.kv_heads;
        pages = p.page_table + static_cast<int64_t>(sequence) * p.max_pages;
        length = p.lengths[sequence];
        first[0] = p.first_key_block + head * p.key_step, first[1] = p.first_value_block + head * p.value_step;
        find(item.y);
        read(item.y);
        find(item.y + 1);
    }
    __device__ __forceinline__ void find(int tile) {
        if (tile < end) next_page = pages[min((tile * S::KEYS + key) >> p.page_shift, p.max_pages - 1)];
    }
    __device__ __forceinline__ void read(int tile) {
        if ((tile + 1) * S::KEYS > length - RECENT) wait_for_previous_kernel();
        const int at = tile * S::KEYS + key;
        const int64_t row = (static_cast<int64_t>(next_page) << p.page_shift) + (at & ((1 << p.page_shift) - 1));
        const uint8_t* of_row = p.scales + 2 * sharer * p.scale_stride + (at < length ? row : 0);
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++) {
            const uint8_t* of = of_row + first[plane] * p.scale_stride;
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                const int block = 2 * (sharer + c * SHARERS), all = plane == 0 ? p.key_blocks : p.value_blocks;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    next[plane][c][half] = at < length && block + half < all ? of[(2 * c * SHARERS + half) * p.scale_stride] : 0;
                }
            }
        }
    }
    // Makes the factors of `tile`, and asks for those of the next.
    __device__ __forceinline__ void take(int tile) {
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++) {
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) factors[plane][c] = half_powers_of_two(next[plane][c][0], next[plane][c][1]);
        }
        if (tile + 1 < end) read(tile + 1);
        find(tile + 2);
    }
};

struct NoScales {
    __device__ __forceinline__ NoScales(const Params&, const int4&, int) {}
};

// Reads what the copy engine wrote and writes what it would have written of 16 bits; both are permuted by the key's number, so
// that what eight neighbouring keys have at one place lies in different banks.
template <class S>
__device__ __forceinline__ void Kernel<S>::convert_tiles(unsigned char* memory, int thread) const {
    using Own = Scales<S>;
    const uint32_t base = shared_address(memory);
    Ring<S::RAW> from;
    Ring<RING> to;
    for (Items items(p, share, rank); items.more(); items.next()) {
        const int4 item = items.item;
        if (item.y >= item.z) continue;
        Own scales(p, item, thread);
        const int key = scales.key;
        for (int tile = item.y; tile < item.z; tile++) {
            scales.take(tile);
#pragma unroll
            for (int plane = 0; plane < Own::PLANES; plane++) {
                barrier_wait(raw_full(from.slot), from.parity);
                barrier_wait(empty(to.slot), to.parity ^ 1);
                const unsigned char* source = memory + (raw_tile(from.slot) - base) + key * ROW_BYTES;
                unsigned char* target = memory + (this->tile(to.slot) - base) + key * ROW_BYTES;
#pragma unroll
                for (int c = 0; c < Own::COLUMNS; c++) {
                    const int column = scales.sharer + c * Own::SHARERS;
                    if (column >= S::RAW_COLUMNS) break;
                    // Reads first, as many as there are registers for: the compiler would not move them before writes.
                    constexpr int TOGETHER = S::CROWDED ? 4 : 8;
                    uint4 units[8];
#pragma unroll
                    for (int unit = 0; unit < ROW_BYTES / 16; unit++) {
                        if (unit % TOGETHER == 0) {
#pragma unroll
                            for (int u = unit; u < unit + TOGETHER; u++) {
                                units[u] = *reinterpret_cast<const uint4*>(
                                    source + column * S::COLUMN_BYTES + ((u ^ (key & 7)) << 4)
                                );
                            }
                        }
                        const int half = column * 2 + unit / 4;
                        if (half >= S::D_COLUMNS) break;
                        const uint32_t four[4] = {units[unit].x, units[unit].y, units[unit].z, units[unit].w};
                        const __half2 both = scales.factors[plane][c];
                        const __half2 factor = unit < 4 ? __low2half2(both) : __high2half2(both);
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            const int place = (unit % 4 * 2 + i) ^ (key & 7);
                            *reinterpret_cast<uint4*>(target + half * S::COLUMN_BYTES + (place << 4)) = make_uint4(
                                convert(four[2 * i], 0, factor), convert(four[2 * i], 1, factor),
                                convert(four[2 * i + 1], 0, factor), convert(four[2 * i + 1], 1, factor)
                            );
                        }
                    }
                }
                fence_async();
                barrier_arrive(full(to.slot));
                barrier_arrive(raw_empty(from.slot));
                from.advance();
                to.advance();
            }
        }
    }
}

}  // namespace paged
