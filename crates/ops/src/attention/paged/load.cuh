// The warps that bring tiles and queries into shared memory, and the warpgroup that rotates tiles there.

#pragma once

#include "convert.cuh"

namespace paged {

// One warp: every lane issues some of the boxes of a tile. Old tiles are asked for before it waits for the kernel that makes the
// last ones.
template <class S>
__device__ __forceinline__ void Kernel<S>::load_tiles(
    const CUtensorMap* k_map, const CUtensorMap* v_map, const CUtensorMap* k_factors, const CUtensorMap* v_factors
) const {
    const int lane = threadIdx.x % 32;
    const int page_rows = 1 << p.page_shift, tile_keys = this->tile_keys();
    const int rows = page_rows < tile_keys ? page_rows : tile_keys;
    const int parts = tile_keys / rows;
    Ring<S::FP8 ? S::RAW : RING> ring;
    Items items(p, share, rank);
    // Where a CTA has all row blocks of a task, tiles are read once: then what streams through the L2 cache does not drive code and
    // parts of outputs out of it. Not where neighbours share lines of the cache: the first would drive out what the second reads. Tiles
    // that are converted have no policy: it was slower when their rows shared lines, and was not tried since.
    const bool whole_lines = !S::FACTORS && 2 * p.pairs % COLUMN == 0 && p.value_width % COLUMN == 0;
    const uint64_t policy = whole_lines && p.row_blocks <= S::ROW_GROUPS ? read_once() : read_again();
    bool waited = false;
    auto wait = [&] {
        if (!waited) wait_for_previous_kernel();
        waited = true;
    };
    uint32_t joined_parity = 0;
    for (bool first_item = true; items.more(); items.next(), first_item = false) {
        if (p.cluster > 1 && !first_item) {
            // The sums of the item before lie where tiles are to come.
            barrier_wait(joined(), joined_parity);
            joined_parity ^= 1;
        }
        const int4 item = items.item;
        const int sequence = divide(item.x, p.kv_heads), head = item.x - sequence * p.kv_heads;
        const int* pages = p.page_table + static_cast<int64_t>(sequence) * p.max_pages;
        const int length = p.lengths[sequence];
        // A lane's part of the tile is the same for all of its boxes: 32 is a multiple of the number of parts.
        const int part = lane % parts;
        // The pages of 32 parts in order, one a lane: a read for each tile would take longer than to ask for it.
        auto pages_of = [&](int batch) {
            // Read before the length is known: most tiles are within it.
            const int key = item.y * tile_keys + (batch * 32 + lane) * rows;
            const int page = pages[min(key >> p.page_shift, p.max_pages - 1)];
            return key < length ? page : p.pages;
        };
        int batch = pages_of(0), next = pages_of(1);
        for (int tile = item.y; tile < item.z; tile++) {
            const int number = (tile - item.y) * parts;
            if (number > 0 && number % 32 == 0) batch = next, next = pages_of(number / 32 + 1);
            const int page = __shfl_sync(~0u, batch, number % 32 + part);
            const int first = (tile * tile_keys + part * rows) & (page_rows - 1);
            if ((tile + 1) * tile_keys > length - RECENT) wait();
            auto load = [&](const CUtensorMap* map, int columns, const CUtensorMap* factors, int scale_block) {
                const uint32_t free = S::FP8 ? raw_empty(ring.slot) : empty(ring.slot);
                const uint32_t there = S::FP8 ? raw_full(ring.slot) : full(ring.slot);
                const uint32_t slot = S::FP8 ? raw_tile(ring.slot) : this->tile(ring.slot);
                const uint32_t to = slot + (part * rows << shift()) * ROW_BYTES;
                barrier_wait(free, ring.parity ^ 1);
                if (lane == 0) barrier_expect(there, (columns + S::FACTOR_COLUMNS) * S::COLUMN_BYTES + S::SCALE_BYTES);
                __syncwarp();
                if constexpr (S::DIRECT) {
                    // Of pages that are none, any: such keys are not seen.
                    const int64_t row = static_cast<int64_t>(page < p.pages ? page : 0) * page_rows + first;
                    if (lane < parts) {
                        copy_bytes(this->scales(ring.slot) + part * rows, p.scales + scale_block * p.scale_stride + row, rows, there);
                    }
                }
                for (int box = lane; box < (columns + S::FACTOR_COLUMNS) * parts; box += 32) {
                    const int column = box / parts;
                    const bool factor = S::FACTORS && column >= columns;
                    // As `Block` has it.
                    const int first_head = factor ? (block + column - columns) % p.head_blocks * 64 : 0;
                    const uint32_t place = to + column * S::COLUMN_BYTES;
                    if constexpr (S::FP8) {
                        copy_box(place, map, there, column * S::TILE_COLUMN, head, first, page);
                    } else {
                        const int channel = factor ? first_head : column * S::TILE_COLUMN;
                        copy_box(place, factor ? factors : map, there, channel, head, first, page, policy);
                    }
                }
                ring.advance();
            };
            constexpr int KEY_COLUMNS = S::FP8 ? S::RAW_COLUMNS : S::D / S::TILE_COLUMN;
            constexpr int VALUE_COLUMNS = S::FP8 ? S::RAW_COLUMNS : S::E / S::TILE_COLUMN;
            load(k_map, KEY_COLUMNS, k_factors, p.first_key_block + head * p.key_step);
            if constexpr (!S::SHARED) load(v_map, VALUE_COLUMNS, v_factors, p.first_value_block + head * p.value_step);
        }
    }
    wait();
    let_next_kernel_start();
}

// One thread: the queries of a task.
template <class S>
__device__ __forceinline__ void Kernel<S>::load_queries(const CUtensorMap* q_map, int task) const {
    const int rows = p.group >= 64 ? 64 : p.group * p.block_tokens;
    const int sequence = divide(task, p.kv_heads), head = task - sequence * p.kv_heads;
    barrier_expect(asked(), S::ROW_GROUPS * S::D_COLUMNS * rows * ROW_BYTES);
    for (int g = 0; g < S::ROW_GROUPS; g++) {
        const Block first(p, block + g);
        const int from = head * p.group + first.head;
        for (int column = 0; column < S::D_COLUMNS; column++) {
            copy_box(
                queries + g * S::Q_BYTES + column * 64 * ROW_BYTES, q_map, asked(), column * COLUMN, from,
                sequence * p.tokens + first.token
            );
        }
    }
}

// One thread: the queries of all items, of each as soon as those before are no longer needed.
template <class S>
__device__ __forceinline__ void Kernel<S>::load_all_queries(const CUtensorMap* q_map) const {
    Items items(p, share, rank);
    wait_for_previous_kernel();
    for (uint32_t parity = 1; items.more(); items.next(), parity ^= 1) {
        barrier_wait(answered(), parity);
        load_queries(q_map, items.item.x);
    }
}

// A warpgroup: a copy of each tile with its keys turned by their positions.
//
// A thread has 8 channel pairs of every ROWS-th key, so its angles advance by the same amount from key to key and from tile to
// tile: the table is only read anew every few tiles, instead of 1 KB per key of 512 bytes. Between, the next cosine (and sine) is
// 2 cos(step) times this one less the one before; 64 of them in a row are off by 2e-4 at most, a tenth of bf16's own rounding.
template <class S>
__device__ __forceinline__ void Kernel<S>::rotate_tiles(unsigned char* memory) const {
    // A thread's keys of a tile: OWN of them, ROWS apart.
    constexpr int LANES = S::D / 16, ROWS = WARPGROUP / LANES, OWN = S::KEYS / ROWS, REFRESH = 8;
    static_assert(S::KEYS % ROWS == 0 && REFRESH * OWN <= 64, "angles in a row");
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
    float step_cos[8], step_sin[8], twice[8], cosine[8], sine[8], last_cos[8], last_sin[8];
    if (busy) {
        float amplitude[8];
        at(p.cosines, 0, amplitude);
        at(p.cosines, ROWS, step_cos);
        at(p.sines, ROWS, step_sin);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            step_cos[j] /= amplitude[j], step_sin[j] /= amplitude[j];
            twice[j] = 2.0f * step_cos[j];
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
                for (int j = 0; j < 8; j++) {
                    last_cos[j] = cosine[j] * step_cos[j] + sine[j] * step_sin[j];
                    last_sin[j] = sine[j] * step_cos[j] - cosine[j] * step_sin[j];
                }
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
            // The next of a row of cosines (or sines), of two channels.
            auto advance = [&](float (&now)[8], float (&last)[8], int j) {
#pragma unroll
                for (int k = j; k < j + 2; k++) {
                    const float next = twice[k] * now[k] - last[k];
                    last[k] = now[k], now[k] = next;
                }
            };
            // Two channels, and those they are paired with, turned; then the angles of the next key. In 16 bits, cosines and sines too,
            // with two roundings each: two thirds of the instructions that f32 takes.
            auto turn = [&](uint32_t& low, uint32_t& high, int j) {
                const uint32_t c = pack_as<Element>(cosine[j], cosine[j + 1]), s = pack_as<Element>(sine[j], sine[j + 1]);
                const uint32_t first = low, second = high;
                low = add_product_as<Element>(first, c, negate_both(multiply_as<Element>(second, s)));
                high = add_product_as<Element>(second, c, multiply_as<Element>(first, s));
                advance(cosine, last_cos, j);
                advance(sine, last_sin, j);
            };
            if (busy) {
                // All are read before the first is written: the compiler would not move reads before writes.
                Eight lows[OWN], highs[OWN];
#pragma unroll
                for (int i = 0; i < OWN; i++) {
                    lows[i] = read(pair, row + i * ROWS), highs[i] = read(pair + p.pairs, row + i * ROWS);
                }
#pragma unroll
                for (int i = 0; i < OWN; i++) {
                    const int key = row + i * ROWS;
                    uint4 low = widen(lows[i], pair, key), high = widen(highs[i], pair + p.pairs, key);
                    turn(low.x, high.x, 0), turn(low.y, high.y, 2), turn(low.z, high.z, 4), turn(low.w, high.w, 6);
                    *reinterpret_cast<uint4*>(to + offset(pair, key)) = low;
                    *reinterpret_cast<uint4*>(to + offset(pair + p.pairs, key)) = high;
                }
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
