// The forms of the kernel: what they are made for, and how they divide a CTA's threads, registers and shared memory.

#pragma once

#include "hopper.cuh"

namespace paged {

constexpr int WARPGROUP = 128;
constexpr int SHARED_MEMORY = 227 * 1024;
// At the end of what is kept for barriers and else what is small, for each warpgroup: `sums`.
constexpr int SUM_BYTES = 64 * sizeof(float2);

template <int D_, int E_, int KEYS_, bool SHARED_, bool ROTATE_, int ROW_GROUPS_, int VALUE_GROUPS_, int RAW_ = 0,
          bool FACTORS_ = false, bool DIRECT_ = false>
struct Shape {
    // Channels of a key and of a value, keys of a tile (with factors: rows, of which a key has a power of two).
    static constexpr int D = D_, E = E_, KEYS = KEYS_;
    static constexpr bool SHARED = SHARED_, ROTATE = ROTATE_, FACTORS = FACTORS_;
    // Row blocks side by side in a CTA; warpgroups that share the value channels of a row block.
    static constexpr int ROW_GROUPS = ROW_GROUPS_, VALUE_GROUPS = VALUE_GROUPS_;
    static constexpr int GROUPS = ROW_GROUPS * VALUE_GROUPS;
    // Slots for tiles as they come, where the cache is in 8 bits and is converted: then all else computes with f16, which holds
    // these exactly.
    static constexpr int RAW = RAW_;
    static constexpr bool FP8 = RAW > 0;
    // Whether tiles in 8 bits are multiplied as they come (direct.cuh).
    static constexpr bool DIRECT = DIRECT_;
    // Threads that make 8 bits f16: the warpgroup that rotates, another like it, or, beside two warpgroups that compute, two warps
    // of those that load.
    static constexpr bool CROWDED = FP8 && GROUPS > 1;
    static constexpr int CONVERTING_THREADS = CROWDED ? WARPGROUP / 2 : WARPGROUP;
    static constexpr int WORKERS = ROTATE || (FP8 && !CROWDED) ? 1 : 0, WARPGROUPS = GROUPS + 1 + WORKERS;
    static constexpr int THREADS = WARPGROUPS * WARPGROUP;
    // Registers that a thread begins with, and then has if it computes, loads, or rotates and converts; of two warpgroups all have
    // what they want.
    static constexpr int BEGINNING = 65536 / THREADS / 8 * 8;
    static constexpr bool BUDGETED = WARPGROUPS > 2;
    static constexpr int COMPUTING = CROWDED ? 208 : FACTORS ? 232 : 240;
    static constexpr int LOADING = CROWDED ? 88 : FACTORS ? 40 : GROUPS > 1 ? 24 : 48;
    static constexpr int CONVERTING = 216;
    static_assert(
        !BUDGETED || GROUPS * COMPUTING + LOADING + WORKERS * CONVERTING <= WARPGROUPS * BEGINNING,
        "a warpgroup would wait forever for registers"
    );
    static constexpr int D_COLUMNS = D / COLUMN, E_COLUMNS = E / COLUMN;
    static constexpr int COLUMN_BYTES = KEYS * ROW_BYTES;
    static constexpr int Q_BYTES = D_COLUMNS * 64 * ROW_BYTES;
    // Columns of factors, one a row block.
    static constexpr int FACTOR_COLUMNS = FACTORS ? ROW_GROUPS : 0;
    // Elements of a tile's row of 128 bytes.
    static constexpr int TILE_COLUMN = DIRECT || FP8 ? ROW_BYTES : COLUMN;
    static constexpr int SLOT_BYTES = ((D > E ? D : E) + FACTOR_COLUMNS * COLUMN) * KEYS * (DIRECT ? 1 : 2);
    // Of a tile in 8 bits: columns of 128.
    static constexpr int RAW_COLUMNS = ((D > E ? D : E) + ROW_BYTES - 1) / ROW_BYTES, RAW_BYTES = RAW_COLUMNS * COLUMN_BYTES;
    static constexpr int ROTATED = ROTATE ? 2 : 0;
    // Of barriers, and of what else is small.
    static constexpr int KEPT_BYTES = DIRECT ? 3072 : 2048;
    // Of a tile's weights where warpgroups exchange them, and of two tiles'.
    static constexpr int WEIGHT_BYTES = DIRECT ? 64 * KEYS * 2 : 0;
    static constexpr int OTHER_BYTES =
        KEPT_BYTES + ROW_GROUPS * Q_BYTES + ROTATED * SLOT_BYTES + RAW * RAW_BYTES + 2 * WEIGHT_BYTES;
    static constexpr int SLOTS = (SHARED_MEMORY - OTHER_BYTES) / SLOT_BYTES;
    // Of the barriers' memory: scales of two tiles, where all threads need those of all keys.
    static constexpr int FACTOR_BYTES = FP8 && ROTATE ? KEYS * D_COLUMNS * 2 : 0;
    // Whether the scores of the next tile are computed while the values of this one are summed: holds two tiles at once.
    static constexpr bool AHEAD = SLOTS >= 3;
    // Where a warpgroup receives what the CTAs of a cluster send it: `joins` in form.rs.
    static constexpr int JOIN_BYTES = (SLOTS * SLOT_BYTES + (ROTATE ? 0 : RAW * RAW_BYTES)) / GROUPS / 1024 * 1024;
    static constexpr int BARRIERS = 2 * SLOTS + 2 * RAW + GROUPS + 8;
    // Of a slot's keys or values, where they lie beside the tiles.
    static constexpr int SCALE_BYTES = DIRECT ? KEYS : 0;
    static_assert(
        SLOTS >= 2 && (BARRIERS * 8 + 15) / 16 * 16 + SLOTS * SCALE_BYTES + 2 * FACTOR_BYTES + GROUPS * SUM_BYTES <= KEPT_BYTES,
        "shared memory"
    );
    static_assert(!DIRECT || (D == 256 && E == 256 && KEYS == 128 && VALUE_GROUPS == 2 && GROUPS == 2 && !ROTATE && !FACTORS), "direct.cuh");
    static_assert(!ROTATE || SHARED, "rotation on read is for keys that are values too");
    static_assert(!FACTORS || (D == E && !SHARED && VALUE_GROUPS == 1), "factors have planes of their own");
};

}  // namespace paged
