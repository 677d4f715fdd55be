// A CTA: who finds what where in shared memory, and what its warps do.

#pragma once

#include "clusters.cuh"
#include "form.cuh"
#include "hopper.cuh"
#include "params.cuh"
#include "wgmma.cuh"

namespace paged {

constexpr float LN_2 = 0.6931471805599453f, LOG2_E = 1.4426950408889634f;
// How far, in powers of two, scores may exceed the maximum they are measured from before it is moved: moving it costs a
// pass over O, and a factor of 256 costs no precision.
constexpr float SLACK = 8.0f;
constexpr float F16_MAX = 65504.0f;
// Tiles of a first item from which the next kernel may start at once.
constexpr int LONG = 48;
// CTAs of a cluster at most.
constexpr int CLUSTER = 16;
// Lanes of a warp that say that a slot is free: one, for all it met at a barrier or a __syncwarp. Racecheck does not see what one
// lane says for others.
#ifdef KEYFOLD_RACECHECK
constexpr int TELLING = 32;
#else
constexpr int TELLING = 1;
#endif
// `RECENT` in mod.rs: rows at the end of a sequence that the kernel before this one may have written.
constexpr int RECENT = 8;

// Where the walk through a ring of slots stands.
template <int SLOTS>
struct Ring {
    int slot = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        if (++slot == SLOTS) {
            slot = 0;
            parity ^= 1;
        }
    }
};

// Has a value computed here, once: in the loop over tiles the compiler would do it again from parameters.
__device__ __forceinline__ void keep(int& value) { asm volatile("" : "+r"(value)); }

template <bool FIRST, class A, class B>
struct Choice {
    using type = A;
};
template <class A, class B>
struct Choice<false, A, B> {
    using type = B;
};

template <bool VALUE>
struct Flag {
    static constexpr bool value = VALUE;
};

template <class S>
struct Kernel {
    using Element = typename Choice<S::FP8, f16, bf16>::type;
    static constexpr int RING = S::SLOTS;
    const Params& p;
    uint32_t queries, slots, rotated, raw, barriers;
    // Row blocks of this CTA start at `block`; it is number `rank` of those that have the share `share`.
    int block, share, rank;

    // Terms of a key, as a power of two, and keys of a tile.
    __device__ __forceinline__ int shift() const { return S::FACTORS ? p.rank_shift : 0; }
    __device__ __forceinline__ int tile_keys() const { return S::KEYS >> shift(); }

    __device__ __forceinline__ Kernel(const Params& params, uint32_t memory) : p(params) {
        queries = memory;
        slots = queries + S::ROW_GROUPS * S::Q_BYTES;
        rotated = slots + S::SLOTS * S::SLOT_BYTES;
        raw = rotated + S::ROTATED * S::SLOT_BYTES + 2 * S::WEIGHT_BYTES;
        barriers = raw + S::RAW * S::RAW_BYTES;
        const int columns = (p.row_blocks + S::ROW_GROUPS - 1) / S::ROW_GROUPS;
        const int number = divide(blockIdx.x, p.cluster);
        share = divide(number, columns);
        block = (number - share * columns) * S::ROW_GROUPS;
        rank = blockIdx.x - number * p.cluster;
    }

    __device__ __forceinline__ uint32_t barrier(int number) const { return barriers + 8 * number; }
    __device__ __forceinline__ uint32_t asked() const { return barrier(0); }
    __device__ __forceinline__ uint32_t answered() const { return barrier(1); }
    __device__ __forceinline__ uint32_t empty(int slot) const { return barrier(2 + slot); }
    __device__ __forceinline__ uint32_t full(int slot) const { return barrier(2 + RING + slot); }
    __device__ __forceinline__ uint32_t turned(int copy) const { return barrier(2 + 2 * RING + copy); }
    __device__ __forceinline__ uint32_t unturned(int copy) const { return barrier(4 + 2 * RING + copy); }
    __device__ __forceinline__ uint32_t raw_empty(int slot) const { return barrier(6 + 2 * RING + S::GROUPS + slot); }
    __device__ __forceinline__ uint32_t raw_full(int slot) const { return raw_empty(S::RAW + slot); }
    // Of a cluster: the tiles of an item are no longer needed, parts are there, and their memory is free for tiles.
    __device__ __forceinline__ uint32_t met() const { return raw_empty(2 * S::RAW); }
    __device__ __forceinline__ uint32_t received(int group) const { return barrier(6 + 2 * RING + group); }
    __device__ __forceinline__ uint32_t joined() const { return raw_empty(2 * S::RAW + 1); }
    __device__ __forceinline__ uint32_t raw_tile(int slot) const { return raw + slot * S::RAW_BYTES; }
    // Scales of the tile that is rotated into a copy, [key][column of 64] f16. Not by the tile's number: the last of an item and the
    // first of the next may both be even.
    __device__ __forceinline__ uint32_t factors(int copy) const { return sums(S::GROUPS - 1) - (2 - copy) * S::FACTOR_BYTES; }
    // Of each row of a warpgroup the maximum of its scores and the sum of their powers of two.
    __device__ __forceinline__ uint32_t sums(int group) const { return barriers + S::KEPT_BYTES - (group + 1) * SUM_BYTES; }
    // Scales of the tile in a slot, a byte a key; weights of a tile, and of the next.
    __device__ __forceinline__ uint32_t scales(int slot) const {
        return barriers + (S::BARRIERS * 8 + 15) / 16 * 16 + slot * S::SCALE_BYTES;
    }
    __device__ __forceinline__ uint32_t weights(int number) const { return rotated + number % 2 * S::WEIGHT_BYTES; }
    __device__ __forceinline__ uint32_t tile(int slot) const { return slots + slot * S::SLOT_BYTES; }
    __device__ __forceinline__ uint32_t copy(int number) const { return rotated + number * S::SLOT_BYTES; }

    // The number of a part among all: what a warpgroup has summed of a row block.
    __device__ __forceinline__ int64_t part_of(int slot, int row_block, int value_group) const {
        return (static_cast<int64_t>(slot) * p.row_blocks + row_block) * S::VALUE_GROUPS + value_group;
    }
    __device__ __forceinline__ unsigned int* written(int cut, int group, int warp) const {
        const int64_t part = part_of(cut, block + group / S::VALUE_GROUPS, group % S::VALUE_GROUPS);
        return p.written + (part * p.cluster + rank) * 4 + warp;
    }

    __device__ __forceinline__ void prepare() const {
        for (int slot = 0; slot < RING; slot++) {
            barrier_init(full(slot), S::FP8 ? S::CONVERTING_THREADS : 1);
            barrier_init(empty(slot), S::GROUPS * 4 * TELLING);
        }
        for (int slot = 0; slot < S::RAW; slot++) {
            barrier_init(raw_full(slot), 1);
            barrier_init(raw_empty(slot), S::CONVERTING_THREADS);
        }
        for (int number = 0; number < S::ROTATED; number++) {
            barrier_init(turned(number), WARPGROUP);
            barrier_init(unturned(number), S::GROUPS * 4);
        }
        for (int group = 0; group < S::GROUPS; group++) barrier_init(received(group), 1);
        barrier_init(met(), S::GROUPS * 4 * p.cluster);
        barrier_init(joined(), S::GROUPS * 4);
        barrier_init(asked(), 1);
        barrier_init(answered(), S::GROUPS * 4);
        barrier_init_fence();
    }

    __device__ __forceinline__ void
    load_tiles(
        const CUtensorMap* k_map, const CUtensorMap* v_map, const CUtensorMap* k_factors,
        const CUtensorMap* v_factors
    ) const;
    __device__ __forceinline__ void load_queries(const CUtensorMap* q_map, int task) const;
    __device__ __forceinline__ void load_all_queries(const CUtensorMap* q_map) const;
    __device__ __forceinline__ void rotate_tiles(unsigned char* memory) const;
    __device__ __forceinline__ void convert_tiles(unsigned char* memory, int thread) const;
    __device__ __forceinline__ void compute(unsigned char* memory) const;
    __device__ __forceinline__ void compute_direct(unsigned char* memory) const;
    template <int STEPS>
    __device__ __forceinline__ void
    split_queries(unsigned char* memory, uint32_t (&high)[STEPS][4], float (&factor)[2]) const;
    template <int BLOCKS>
    __device__ __forceinline__ void
    turn_sums(unsigned char* memory, const float (&o)[BLOCKS][32], float unit, float (&sum)[BLOCKS * 32]) const;
    template <int COUNT>
    __device__ __forceinline__ void
    finish(const int4& item, const float (&o)[COUNT], const float (&m)[2], const float (&l)[2], int group, unsigned char* memory,
           const Block& rows, uint32_t parity) const;
    template <int COUNT>
    __device__ __forceinline__ void
    join(const int4& item, const float (&o)[COUNT], const float (&m)[2], const float (&sum)[2], int group, unsigned char* memory,
         const Block& rows, uint32_t parity) const;
    __device__ __forceinline__ int2 own_slabs() const;
    __device__ __forceinline__ void queries_of(const int4& item, int row, const Block& rows, int64_t (&queries)[2]) const;
    __device__ __forceinline__ unsigned char* place(int64_t query, int channel) const;
    __device__ __forceinline__ void write_lse(int64_t query, float top, float total) const;
    __device__ __forceinline__ void write_slab(
        int slab, int value_group, int row, const int64_t (&queries)[2], const float (&sum)[4], const Block& rows
    ) const;
    __device__ __forceinline__ void
    add_parts(const int4& item, const int4& cut, int2 slabs, int step, int group, const Block& rows) const;
    __device__ __forceinline__ void merge(int group, const Block& rows) const;
};

}  // namespace paged
