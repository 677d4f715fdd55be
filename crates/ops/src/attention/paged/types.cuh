// What the kernel is told, its shapes, and who finds what where in shared memory.

#pragma once

#include "clusters.cuh"
#include "hopper.cuh"
#include "wgmma.cuh"

namespace paged {

// What a launch has to say; `PagedParams` in cuda.rs is the same struct.
struct Params {
    const int* page_table;
    const int* lengths;
    // From the plan (plan.cuh): what each share does, all items, tasks that are cut.
    const int4* shares;
    const int4* items;
    const int4* cuts;
    // [cut, row block, value group, CTA of a cluster, warp], made zero by the plan: parts that are written.
    unsigned int* written;
    // [positions, pairs].
    const float* cosines;
    const float* sines;
    // Of a cache in 8 bits, [blocks, rows]: those of the first block; from one block's to the next.
    const uint8_t* scales;
    int64_t scale_stride;
    void* out;
    // Or none.
    float* lse;
    // [heads], what a key's distance takes from its score; or none.
    const float* slopes;
    // Parts of outputs, not yet divided; of each row the maximum of its scores and the sum of their powers of two.
    float4* part_out;
    float2* part_sums;
    int max_pages;
    int page_shift;
    int pages;
    int tokens;
    int heads;
    int kv_heads;
    // Query heads of a kv head.
    int group;
    float group_inverse;
    // CTAs that have a share together: a cluster.
    int cluster;
    // Row blocks of a task, and how heads and tokens make one.
    int row_blocks;
    int head_blocks;
    int block_tokens;
    // Channels of a value, pairs of a rotated key, rows of the rope table.
    int value_width;
    int pairs;
    int positions;
    // scale * log2(e).
    float scale;
    int out_f32;
    // Of the scales: the first of the first head's keys and values, how many a head has, and from one head to the next.
    int first_key_block;
    int first_value_block;
    int key_blocks;
    int value_blocks;
    int key_step;
    int value_step;
    // Keys that a token sees, its own included.
    int window;
    // Terms of a key (and of a value) as a power of two.
    int rank_shift;
};

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

constexpr int WARPGROUP = 128;
constexpr float LN_2 = 0.6931471805599453f, LOG2_E = 1.4426950408889634f;
constexpr int SHARED_MEMORY = 227 * 1024;
// At the end of what is kept for barriers and else what is small, for each warpgroup: `sums`.
constexpr int SUM_BYTES = 64 * sizeof(float2);
// How far, in powers of two, scores may exceed the maximum they are measured from before it is moved: moving it costs a
// pass over O, and a factor of 256 costs no precision.
constexpr float SLACK = 8.0f;
constexpr float F16_MAX = 65504.0f;
// Tiles of a first item from which the next kernel may start at once.
constexpr int LONG = 48;
// CTAs of a cluster at most.
constexpr int CLUSTER = 16;
// Lanes of a warp that say that a slot is free whose scales all of them have read (direct.cuh): one, after a __syncwarp, which
// racecheck does not see where the compiler makes nothing of it.
#ifdef KEYFOLD_RACECHECK
constexpr int TELLING = 32;
#else
constexpr int TELLING = 1;
#endif
// `RECENT` in mod.rs: rows at the end of a sequence that the kernel before this one may have written.
constexpr int RECENT = 8;

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

// Whole numbers below 2^21 (`DIVIDED` in cuda/batch.rs): a + 1 / 2 is at least half of 1 / b away from the next multiple of b.
__device__ __forceinline__ int divide(int a, int b) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(static_cast<float>(b)));
    return b == 1 ? a : static_cast<int>((a + 0.5f) * inverse);
}

// A block of up to 64 rows of a task: tokens, of each all heads of the group; of a group of 64 heads or more, 64 heads of
// one token.
struct Block {
    // The first token and head, and rows that are queries; they come first.
    int token, head, rows;

    __device__ __forceinline__ Block(const Params& p, int block) {
        const int tokens = divide(block, p.head_blocks);
        token = tokens * p.block_tokens;
        head = (block - tokens * p.head_blocks) * 64;
        rows = p.group >= 64 ? min(64, p.group - head) : min(p.block_tokens, p.tokens - token) * p.group;
        if (block >= p.row_blocks) rows = 0;
    }

    // Of row `row`: its token (and, below, its number among the queries of the task's sequence).
    __device__ __forceinline__ int token_of(const Params& p, int row) const {
        // Exact: the fraction is at least half a group away from a whole number.
        return p.group >= 64 ? token : token + static_cast<int>((row + 0.5f) * p.group_inverse);
    }
    // Of row `row`: its head among those of the task.
    __device__ __forceinline__ int head_of(const Params& p, int row) const {
        return p.group >= 64 ? head + row : row - (token_of(p, row) - token) * p.group;
    }
    __device__ __forceinline__ int query_of(const Params& p, int row) const {
        return token_of(p, row) * p.heads + head_of(p, row);
    }
};

// Scores that distances change: those of keys that a token does not see, and all where there are slopes. `far` is how far a
// thread's first key lies before the first token, `key_of` which key score j is of from there.
template <int SCORES, class KeyOf>
__device__ __forceinline__ void
change_scores(const Params& p, float (&s)[SCORES], int far, const int (&tokens)[2], const float (&slopes)[2], KeyOf key_of) {
    if (p.slopes) {
#pragma unroll
        for (int j = 0; j < SCORES; j++) {
            s[j] = fmaf(-slopes[j / 2 % 2], static_cast<float>(far + tokens[j / 2 % 2]) - key_of(j), s[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < SCORES; j++) {
        // Later keys are at negative distances: beyond any window, too.
        const unsigned int distance = far + tokens[j / 2 % 2] - key_of(j);
        if (distance >= static_cast<unsigned int>(p.window)) s[j] = -INFINITY;
    }
}

// The largest of a thread's scores of each of its two rows, in chains that do not wait for each other.
template <int SCORES>
__device__ __forceinline__ void largest_scores(const float (&s)[SCORES], float (&top)[2]) {
    constexpr int CHAINS = 4;
    float tops[2][CHAINS];
#pragma unroll
    for (int j = 0; j < SCORES; j++) {
        float& chain = tops[j / 2 % 2][j / 4 % CHAINS];
        chain = j < 4 * CHAINS && j % 2 == 0 ? s[j] : fmaxf(chain, s[j]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) top[r] = fmaxf(fmaxf(tops[r][0], tops[r][1]), fmaxf(tops[r][2], tops[r][3]));
}

// The first query of a task.
__device__ __forceinline__ int64_t task_query(const Params& p, int task) {
    const int sequence = divide(task, p.kv_heads);
    return static_cast<int64_t>(sequence) * p.tokens * p.heads + (task - sequence * p.kv_heads) * p.group;
}

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

// The items of a share, of each what this CTA of its cluster has: as many tiles as others, or one less. The first lies beside
// the bounds of the others: one read less before the first load.
struct Items {
    const int4* rest;
    int4 item;
    int at, end, rank, cluster;

    __device__ __forceinline__ Items(const Params& p, int share, int rank) : rest(p.items), rank(rank), cluster(p.cluster) {
        item = p.shares[2 * share];
        const int4 bounds = p.shares[2 * share + 1];
        at = bounds.x, end = bounds.y;
        take_own();
    }
    __device__ __forceinline__ bool more() const { return at < end; }
    __device__ __forceinline__ void next() {
        if (++at < end) item = rest[at];
        take_own();
    }
    __device__ __forceinline__ void take_own() {
        const int tiles = item.z - item.y;
        item.z = item.y + divide(tiles * (rank + 1), cluster);
        item.y += divide(tiles * rank, cluster);
    }
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
            barrier_init(empty(slot), S::GROUPS * 4 * (S::DIRECT ? TELLING : 1));
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
