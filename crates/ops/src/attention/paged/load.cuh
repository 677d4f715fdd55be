// The warps that bring tiles and queries into shared memory.

#pragma once

#include "types.cuh"

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

}  // namespace paged
