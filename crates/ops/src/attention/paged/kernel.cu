// Attention of a few new tokens per sequence over a paged cache: decoding at the speed of memory on Hopper (sm_90a).
//
// Purpose. Many query heads look at few wide rows (MFA: 64 heads x 256 on one; absorbed MLA: on one of 576), so a step of
// decoding is one read of the cache. 64 heads do 64 multiply-adds per byte read, a quarter of what the tensor cores could
// do in that time (half, when keys and values are the same bytes): the kernel is built to keep loads in flight and to
// hide everything else under them.
//
// Shapes. q [sequences * tokens, heads, d], cache planes [pages, page, kv heads, d or e] with any strides, page table
// [sequences, pages of a sequence], lengths [sequences] with the new tokens counted, out [sequences * tokens, heads, e],
// lse [sequences * tokens, heads]. Token t of T sees the first length - T + t + 1 keys.
//
// Work. Heads of one kv head and tokens are packed into blocks of 64 rows. A task is a sequence and a kv head; the plan
// (plan.cuh) cuts the tiles of all tasks into equal shares, one per CTA. A task that lies in one share is written out at
// once; the parts of others go to `part_out`, normalised, and combine.cuh weighs them by their log-sum-exp.
//
// Pipeline. One CTA per multiprocessor. One warp has the copy engine fill a ring of slots, a page (or the part of it that
// is in the tile) at a time; another fetches the queries of the next item. A warpgroup per row block starts S = Q K^T of a
// tile and O += P V of the tile before it, and turns S into weights P while the latter runs. S, P and O stay in
// registers. A slot is free again as soon as the product that read it is done.
// With keys as values (SHARED) a tile is read once and serves both products. With ROTATE one more warpgroup writes a
// rotated copy of each tile for the scores while the copy engine fills later slots.
//
// Rows of a tile at or past the length may hold anything, NaN included: scores there are replaced, value rows zeroed.

#include "combine.cuh"
#include "hopper.cuh"
#include "plan.cuh"

using namespace hopper;

namespace paged {

// What a launch has to say; `PagedParams` in cuda.rs is the same struct.
struct Params {
    const int* page_table;
    const int* lengths;
    // From the plan: the items of each share (shares + 1 bounds), the items.
    const int* bounds;
    const int4* items;
    // [positions, pairs].
    const float* cosines;
    const float* sines;
    void* out;
    float* lse;
    float* part_out;
    float* part_lse;
    int max_pages;
    int page_shift;
    int pages;
    int tokens;
    int heads;
    int kv_heads;
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
constexpr int SHARED_MEMORY = 227 * 1024;
constexpr int BARRIER_BYTES = 512;
// How far, in powers of two, scores may exceed the maximum they are measured from before it is moved: moving it costs a
// pass over O, and a factor of 256 costs no precision.
constexpr float SLACK = 8.0f;

template <int D_, int E_, int KEYS_, bool SHARED_, bool ROTATE_, int ROW_GROUPS_, int VALUE_GROUPS_>
struct Shape {
    // Channels of a key and of a value, keys of a tile.
    static constexpr int D = D_, E = E_, KEYS = KEYS_;
    static constexpr bool SHARED = SHARED_, ROTATE = ROTATE_;
    // Row blocks side by side in a CTA; warpgroups that share the value channels of a row block.
    static constexpr int ROW_GROUPS = ROW_GROUPS_, VALUE_GROUPS = VALUE_GROUPS_;
    static constexpr int GROUPS = ROW_GROUPS * VALUE_GROUPS;
    static constexpr int THREADS = (GROUPS + 1 + ROTATE) * WARPGROUP;
    static constexpr int D_COLUMNS = D / COLUMN, E_COLUMNS = E / COLUMN;
    static constexpr int COLUMN_BYTES = KEYS * ROW_BYTES;
    static constexpr int Q_BYTES = D_COLUMNS * 64 * ROW_BYTES;
    static constexpr int SLOT_BYTES = (D > E ? D : E) * KEYS * 2;
    static constexpr int ROTATED = ROTATE ? 2 : 0;
    static constexpr int SLOTS =
        (SHARED_MEMORY - BARRIER_BYTES - ROW_GROUPS * Q_BYTES - ROTATED * SLOT_BYTES) / SLOT_BYTES;
    static constexpr int BYTES = ROW_GROUPS * Q_BYTES + (SLOTS + ROTATED) * SLOT_BYTES + BARRIER_BYTES;
    // Whether the scores of the next tile are computed while the values of this one are summed: holds two tiles at once.
    static constexpr bool AHEAD = SLOTS >= 3;
    static_assert(SLOTS >= 2 && (2 * SLOTS + 2 * ROTATED + 2) * 8 <= BARRIER_BYTES, "shared memory");
    static_assert(!ROTATE || SHARED, "rotation on read is for keys that are values too");
};

// A row of a row block: its token and head, and whether there is such a query.
struct Row {
    int token, head;
    bool valid;

    __device__ __forceinline__ Row(const Params& p, int block, int row) {
        const int group = p.heads / p.kv_heads;
        const int first = (block / p.head_blocks) * p.block_tokens;
        if (group >= 64) {
            token = first;
            head = (block % p.head_blocks) * 64 + row;
            valid = block < p.row_blocks && head < group;
        } else {
            token = first + row / group;
            head = row % group;
            valid = block < p.row_blocks && row < group * p.block_tokens && token < p.tokens;
        }
    }
};

template <class S>
struct Kernel {
    static constexpr int RING = S::SLOTS;
    const Params& p;
    uint32_t queries, slots, rotated, barriers;
    // Row blocks of this CTA start at `block`; it has the share `share`.
    int block, share;

    __device__ __forceinline__ Kernel(const Params& params, uint32_t memory) : p(params) {
        queries = memory;
        slots = queries + S::ROW_GROUPS * S::Q_BYTES;
        rotated = slots + S::SLOTS * S::SLOT_BYTES;
        barriers = rotated + S::ROTATED * S::SLOT_BYTES;
        const int columns = (p.row_blocks + S::ROW_GROUPS - 1) / S::ROW_GROUPS;
        block = (blockIdx.x % columns) * S::ROW_GROUPS;
        share = blockIdx.x / columns;
    }

    __device__ __forceinline__ uint32_t full(int slot) const { return barriers + 8 * slot; }
    __device__ __forceinline__ uint32_t empty(int slot) const { return barriers + 8 * (RING + slot); }
    __device__ __forceinline__ uint32_t turned(int copy) const { return barriers + 8 * (2 * RING + copy); }
    __device__ __forceinline__ uint32_t unturned(int copy) const { return barriers + 8 * (2 * RING + 2 + copy); }
    __device__ __forceinline__ uint32_t asked() const { return barriers + 8 * (2 * RING + 4); }
    __device__ __forceinline__ uint32_t answered() const { return barriers + 8 * (2 * RING + 5); }
    __device__ __forceinline__ uint32_t tile(int slot) const { return slots + slot * S::SLOT_BYTES; }
    __device__ __forceinline__ uint32_t copy(int number) const { return rotated + number * S::SLOT_BYTES; }

    __device__ __forceinline__ void prepare() const {
        for (int slot = 0; slot < RING; slot++) {
            barrier_init(full(slot), 1);
            barrier_init(empty(slot), S::GROUPS * 4);
        }
        for (int number = 0; number < S::ROTATED; number++) {
            barrier_init(turned(number), WARPGROUP);
            barrier_init(unturned(number), S::GROUPS * 4);
        }
        barrier_init(asked(), 1);
        barrier_init(answered(), S::GROUPS * 4);
        barrier_init_fence();
    }

    // One warp: every lane issues some of the boxes of a tile.
    __device__ __forceinline__ void load_tiles(const CUtensorMap* k_map, const CUtensorMap* v_map) const {
        const int lane = threadIdx.x % 32;
        const uint64_t policy = evict_first();
        const int page_rows = 1 << p.page_shift;
        const int rows = page_rows < S::KEYS ? page_rows : S::KEYS;
        const int parts = S::KEYS / rows;
        Ring<RING> ring;
        for (int i = p.bounds[share]; i < p.bounds[share + 1]; i++) {
            const int4 item = p.items[i];
            const int sequence = item.x / p.kv_heads, head = item.x % p.kv_heads;
            const int* pages = p.page_table + static_cast<int64_t>(sequence) * p.max_pages;
            const int length = p.lengths[sequence];
            // A lane's part of the tile is the same for all of its boxes: 32 is a multiple of the number of parts.
            const int part = lane % parts;
            auto page_of = [&](int tile) {
                const int key = tile * S::KEYS + part * rows;
                return key < length ? pages[key >> p.page_shift] : p.pages;
            };
            int next = page_of(item.y);
            for (int tile = item.y; tile < item.z; tile++) {
                const int page = next;
                if (tile + 1 < item.z) next = page_of(tile + 1);
                const int first = (tile * S::KEYS + part * rows) & (page_rows - 1);
                auto load = [&](const CUtensorMap* map, int columns) {
                    barrier_wait(empty(ring.slot), ring.parity ^ 1);
                    if (lane == 0) barrier_expect(full(ring.slot), columns * S::COLUMN_BYTES);
                    __syncwarp();
                    for (int box = lane; box < columns * parts; box += 32) {
                        const int column = box / parts;
                        copy_box(
                            this->tile(ring.slot) + column * S::COLUMN_BYTES + part * rows * ROW_BYTES, map,
                            full(ring.slot), column * COLUMN, head, first, page, policy
                        );
                    }
                    ring.advance();
                };
                load(k_map, S::D_COLUMNS);
                if constexpr (!S::SHARED) load(v_map, S::E_COLUMNS);
            }
        }
    }

    // One thread: the queries of the next item as soon as those of the last are no longer needed.
    __device__ __forceinline__ void load_queries(const CUtensorMap* q_map) const {
        const int group = p.heads / p.kv_heads;
        const int rows = group >= 64 ? 64 : group * p.block_tokens;
        uint32_t parity = 1;
        for (int i = p.bounds[share]; i < p.bounds[share + 1]; i++) {
            const int task = p.items[i].x;
            const int sequence = task / p.kv_heads, head = task % p.kv_heads;
            barrier_wait(answered(), parity);
            parity ^= 1;
            barrier_expect(asked(), S::ROW_GROUPS * S::D_COLUMNS * rows * ROW_BYTES);
            for (int g = 0; g < S::ROW_GROUPS; g++) {
                const int token = (block + g) / p.head_blocks * p.block_tokens;
                const int from = head * group + (block + g) % p.head_blocks * 64;
                for (int column = 0; column < S::D_COLUMNS; column++) {
                    copy_box(
                        queries + g * S::Q_BYTES + column * 64 * ROW_BYTES, q_map, asked(), column * COLUMN, from,
                        sequence * p.tokens + token
                    );
                }
            }
        }
    }

    // A warpgroup: a copy of each tile with its keys turned by their positions.
    //
    // A thread has 8 channel pairs of every ROWS-th key, so its angles advance by the same amount from key to key and
    // from tile to tile: the table is only read anew every few tiles, instead of 1 KB per key of 512 bytes.
    __device__ __forceinline__ void rotate_tiles(unsigned char* memory) const {
        constexpr int LANES = S::D / 16, ROWS = WARPGROUP / LANES, REFRESH = 8;
        const int thread = threadIdx.x % WARPGROUP;
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
        float turn_cos[8], turn_sin[8], cosine[8], sine[8];
        if (busy) {
            float amplitude[8];
            at(p.cosines, 0, amplitude);
            at(p.cosines, ROWS, turn_cos);
            at(p.sines, ROWS, turn_sin);
#pragma unroll
            for (int j = 0; j < 8; j++) turn_cos[j] /= amplitude[j], turn_sin[j] /= amplitude[j];
        }
        Ring<RING> ring;
        Ring<2> target;
        for (int i = p.bounds[share]; i < p.bounds[share + 1]; i++) {
            const int4 item = p.items[i];
            for (int tile = item.y; tile < item.z; tile++) {
                if (busy && (tile - item.y) % REFRESH == 0) {
                    at(p.cosines, tile * S::KEYS + row, cosine);
                    at(p.sines, tile * S::KEYS + row, sine);
                }
                barrier_wait(unturned(target.slot), target.parity ^ 1);
                barrier_wait(full(ring.slot), ring.parity);
                const unsigned char* from = memory + (this->tile(ring.slot) - base);
                unsigned char* to = memory + (copy(target.slot) - base);
                if (busy) {
#pragma unroll 4
                    for (int key = row; key < S::KEYS; key += ROWS) {
                        const uint32_t at_low = offset(pair, key), at_high = offset(pair + p.pairs, key);
                        const uint4 low = *reinterpret_cast<const uint4*>(from + at_low);
                        const uint4 high = *reinterpret_cast<const uint4*>(from + at_high);
                        uint4 new_low, new_high;
                        const uint32_t* x = reinterpret_cast<const uint32_t*>(&low);
                        const uint32_t* y = reinterpret_cast<const uint32_t*>(&high);
                        uint32_t* u = reinterpret_cast<uint32_t*>(&new_low);
                        uint32_t* v = reinterpret_cast<uint32_t*>(&new_high);
#pragma unroll
                        for (int j = 0; j < 4; j++) {
                            float out_x[2], out_y[2];
#pragma unroll
                            for (int k = 0; k < 2; k++) {
                                const float a = __uint_as_float(k == 0 ? x[j] << 16 : x[j] & 0xFFFF0000u);
                                const float b = __uint_as_float(k == 0 ? y[j] << 16 : y[j] & 0xFFFF0000u);
                                float &c = cosine[2 * j + k], &s = sine[2 * j + k];
                                out_x[k] = a * c - b * s;
                                out_y[k] = b * c + a * s;
                                const float turned = c * turn_cos[2 * j + k] - s * turn_sin[2 * j + k];
                                s = s * turn_cos[2 * j + k] + c * turn_sin[2 * j + k];
                                c = turned;
                            }
                            u[j] = pack(out_x[0], out_x[1]);
                            v[j] = pack(out_y[0], out_y[1]);
                        }
                        *reinterpret_cast<uint4*>(to + at_low) = new_low;
                        *reinterpret_cast<uint4*>(to + at_high) = new_high;
                    }
                }
                fence_async();
                barrier_arrive(turned(target.slot));
                ring.advance();
                target.advance();
            }
        }
    }

    __device__ __forceinline__ void compute(unsigned char* memory) const;
    template <int COUNT>
    __device__ __forceinline__ void
    finish(const int4& item, const float (&o)[COUNT], const float (&m)[2], const float (&l)[2], int block, int column) const;
};

// A warpgroup: scores, softmax and outputs of a row block (or of some value channels of it).
template <class S>
__device__ __forceinline__ void Kernel<S>::compute(unsigned char* memory) const {
    constexpr int WIDTH = S::E / S::VALUE_GROUPS, SCORES = S::KEYS / 2;
    const int group = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP, lane = thread % 32;
    const int row_group = group / S::VALUE_GROUPS, column = group % S::VALUE_GROUPS * WIDTH;
    const int row = thread / 32 * 16 + lane / 4;
    const uint32_t q = queries + row_group * S::Q_BYTES;
    const uint32_t value_offset = column / COLUMN * S::COLUMN_BYTES;
    const int tokens[2] = {Row(p, block + row_group, row).token, Row(p, block + row_group, row + 8).token};
    Ring<RING> keys, values;
    if constexpr (!S::SHARED) values.advance();
    Ring<2> target;
    uint32_t q_parity = 0;
    float o[WIDTH / 2], s[SCORES], m[2], l[2], shrink[2];
    uint32_t weights[S::KEYS / 16][4];

    // Starts S = Q K^T of the next tile.
    auto start_scores = [&] {
        uint32_t tile;
        if constexpr (S::ROTATE) {
            barrier_wait(turned(target.slot), target.parity);
            tile = copy(target.slot);
        } else {
            barrier_wait(full(keys.slot), keys.parity);
            tile = this->tile(keys.slot);
        }
        pin(s);
        product_fence();
#pragma unroll
        for (int k = 0; k < S::D / 16; k++) {
            const uint32_t step = k % 4 * 32;
            product_rows(
                s, tile_by_row(q + k / 4 * (64 * ROW_BYTES) + step),
                tile_by_row(tile + k / 4 * S::COLUMN_BYTES + step), k > 0
            );
        }
        product_commit();
    };
    // Scores are there: as far as they go, the tile is no longer needed.
    auto end_scores = [&] {
        pin(s);
        if constexpr (S::ROTATE) {
            if (lane == 0) barrier_arrive(unturned(target.slot));
            target.advance();
        } else if constexpr (!S::SHARED) {
            if (lane == 0) barrier_arrive(empty(keys.slot));
            keys.advance();
        }
        keys.advance();
    };
    // Starts O += P V.
    auto start_outputs = [&] {
        barrier_wait(full(values.slot), values.parity);
        const uint32_t v = this->tile(values.slot) + value_offset;
        pin(o);
        product_fence();
#pragma unroll
        for (int k = 0; k < S::KEYS / 16; k++) {
            product_columns(o, weights[k], tile_by_column(v + k * 16 * ROW_BYTES, S::COLUMN_BYTES));
        }
        product_commit();
    };
    auto end_outputs = [&] {
        pin(o);
        if (lane == 0) barrier_arrive(empty(values.slot));
        values.advance();
        if constexpr (!S::SHARED) values.advance();
    };
    // Scores to weights, not yet packed: `shrink` is what the sums before are worth from now on.
    auto softmax = [&](int tile, int seen) {
        if ((tile + 1) * S::KEYS > seen) {
            const int from = tile * S::KEYS + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < SCORES; j++) {
                if (from + j / 4 * 8 + j % 2 >= seen + tokens[j / 2 % 2]) s[j] = -INFINITY;
            }
        }
        float top[2] = {s[0], s[2]}, base[2];
#pragma unroll
        for (int j = 0; j < SCORES; j++) top[j / 2 % 2] = fmaxf(top[j / 2 % 2], s[j]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2)) * p.scale;
            const bool move = top[r] > m[r] + SLACK;
            shrink[r] = move ? exp2_fast(m[r] - top[r]) : 1.0f;
            m[r] = move ? top[r] : m[r];
            base[r] = m[r] == -INFINITY ? 0.0f : m[r];
            l[r] *= shrink[r];
        }
#pragma unroll
        for (int j = 0; j < SCORES; j++) {
            s[j] = exp2_fast(s[j] * p.scale - base[j / 2 % 2]);
            l[j / 2 % 2] += s[j];
        }
    };
    auto pack_weights = [&] {
        if (__any_sync(~0u, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
            for (int j = 0; j < WIDTH / 2; j++) o[j] *= shrink[j / 2 % 2];
        }
#pragma unroll
        for (int j = 0; j < SCORES / 2; j++) weights[j / 4][j % 4] = pack(s[2 * j], s[2 * j + 1]);
    };
    // Value rows of the last tile from `rows` on become zero.
    auto clear_values = [&](int rows) {
        barrier_wait(full(values.slot), values.parity);
        unsigned char* at = memory + (this->tile(values.slot) + value_offset - shared_address(memory));
        const int units = (S::KEYS - rows) * (ROW_BYTES / 16);
        for (int unit = thread; unit < units * (WIDTH / COLUMN); unit += WARPGROUP) {
            const int offset = unit / units * S::COLUMN_BYTES + rows * ROW_BYTES + unit % units * 16;
            *reinterpret_cast<uint4*>(at + offset) = make_uint4(0, 0, 0, 0);
        }
        fence_async();
        named_barrier(1 + group, WARPGROUP);
    };

    for (int i = p.bounds[share]; i < p.bounds[share + 1]; i++) {
        const int4 item = p.items[i];
        const int length = p.lengths[item.x / p.kv_heads];
        // Keys that the first token sees: tiles below need no mask.
        const int seen = length - p.tokens + 1;
        m[0] = m[1] = -INFINITY;
        l[0] = l[1] = 0.0f;
#pragma unroll
        for (int j = 0; j < WIDTH / 2; j++) o[j] = 0.0f;
        barrier_wait(asked(), q_parity);
        q_parity ^= 1;
        if (item.y < item.z) {
            start_scores();
            product_wait<0>();
            end_scores();
            softmax(item.y, seen);
            pack_weights();
            for (int tile = item.y + 1; tile < item.z; tile++) {
                if constexpr (S::AHEAD) {
                    start_scores();
                    start_outputs();
                    product_wait<1>();
                    end_scores();
                    softmax(tile, seen);
                    product_wait<0>();
                    end_outputs();
                } else {
                    start_outputs();
                    product_wait<0>();
                    end_outputs();
                    start_scores();
                    product_wait<0>();
                    end_scores();
                    softmax(tile, seen);
                }
                pack_weights();
            }
        }
        // The queries are free for the next item.
        if (lane == 0) barrier_arrive(answered());
        if (item.y < item.z) {
            if (item.z * S::KEYS > length) clear_values(length - (item.z - 1) * S::KEYS);
            start_outputs();
            product_wait<0>();
            end_outputs();
        }
        finish(item, o, m, l, block + row_group, column);
    }
}

// Writes the outcome of an item for one row block: to the output, or to its slot among the parts.
template <class S>
template <int COUNT>
__device__ __forceinline__ void Kernel<S>::finish(
    const int4& item, const float (&o)[COUNT], const float (&m)[2], const float (&l)[2], int block, int column
) const {
    const int lane = threadIdx.x % 32;
    const int sequence = item.x / p.kv_heads, head = item.x % p.kv_heads * (p.heads / p.kv_heads);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = l[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
        const float lse = sum > 0.0f ? m[r] + log2f(sum) : -INFINITY;
        const int row = threadIdx.x % WARPGROUP / 32 * 16 + lane / 4 + 8 * r;
        const Row at(p, block, row);
        if (!at.valid) continue;
        const bool first = lane % 4 == 0 && column == 0;
        if (item.w >= 0) {
            const int64_t part = (static_cast<int64_t>(item.w) * p.row_blocks + block) * 64 + row;
            float* to = p.part_out + part * S::E + column + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < COUNT / 4; j++) {
                const float2 pair = {o[4 * j + 2 * r] * factor, o[4 * j + 2 * r + 1] * factor};
                *reinterpret_cast<float2*>(to + 8 * j) = pair;
            }
            if (first) p.part_lse[part] = lse;
            continue;
        }
        const int64_t query = (static_cast<int64_t>(sequence) * p.tokens + at.token) * p.heads + head + at.head;
        const int64_t to = query * p.value_width + column + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < COUNT / 4; j++) {
            if (column + 8 * j >= p.value_width) break;
            const float low = o[4 * j + 2 * r] * factor, high = o[4 * j + 2 * r + 1] * factor;
            if (p.out_f32) {
                *reinterpret_cast<float2*>(static_cast<float*>(p.out) + to + 8 * j) = make_float2(low, high);
            } else {
                *reinterpret_cast<uint32_t*>(static_cast<bf16*>(p.out) + to + 8 * j) = pack(low, high);
            }
        }
        if (first) p.lse[query] = lse * LN_2;
    }
}

template <class S>
__device__ __forceinline__ void
run(const CUtensorMap* q_map, const CUtensorMap* k_map, const CUtensorMap* v_map, const Params& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const Kernel<S> kernel(p, shared_address(memory));
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), group = warp / 4;
    if (threadIdx.x == 0) kernel.prepare();
    if constexpr (S::ROTATE) {
        // Channels past the pairs stay zero.
        for (int i = threadIdx.x; i < S::ROTATED * S::SLOT_BYTES / 16; i += S::THREADS) {
            uint4* to = reinterpret_cast<uint4*>(memory + S::ROW_GROUPS * S::Q_BYTES + S::SLOTS * S::SLOT_BYTES);
            to[i] = make_uint4(0, 0, 0, 0);
        }
    }
    __syncthreads();
    let_next_kernel_start();
    constexpr bool BUDGETED = S::THREADS > 2 * WARPGROUP;
    if (group == S::GROUPS) {
        if constexpr (BUDGETED) give_registers<S::GROUPS == 2 ? 24 : 40>();
        if (warp % 4 == 0) {
            if (threadIdx.x % 32 == 0) prefetch_map(k_map), prefetch_map(v_map);
            wait_for_previous_kernel();
            kernel.load_tiles(k_map, v_map);
        } else if (warp % 4 == 1 && threadIdx.x % 32 == 0) {
            prefetch_map(q_map);
            wait_for_previous_kernel();
            kernel.load_queries(q_map);
        }
    } else if (S::ROTATE && group == S::GROUPS + 1) {
        if constexpr (BUDGETED) take_registers<216>();
        wait_for_previous_kernel();
        kernel.rotate_tiles(memory);
    } else {
        if constexpr (BUDGETED) take_registers<240>();
        wait_for_previous_kernel();
        kernel.compute(memory);
    }
}

}  // namespace paged

#define PAGED_ATTENTION(name, ...)                                                                                      \
    extern "C" __global__ void __launch_bounds__(paged::Shape<__VA_ARGS__>::THREADS, 1) name(                          \
        const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,                                  \
        const __grid_constant__ CUtensorMap v, const __grid_constant__ paged::Params params                            \
    ) {                                                                                                                 \
        paged::run<paged::Shape<__VA_ARGS__>>(&q, &k, &v, params);                                                     \
    }

// Name: channels of a key, of a value; keys a tile, values among keys, rotation, row blocks a CTA, parts of the values.
PAGED_ATTENTION(paged_attention_64, 64, 64, 128, false, false, 1, 1)
PAGED_ATTENTION(paged_attention_64_shared, 64, 64, 128, true, false, 1, 1)
PAGED_ATTENTION(paged_attention_128, 128, 128, 128, false, false, 1, 1)
PAGED_ATTENTION(paged_attention_128_shared, 128, 128, 128, true, false, 1, 1)
PAGED_ATTENTION(paged_attention_128_rotate, 128, 128, 128, true, true, 1, 1)
PAGED_ATTENTION(paged_attention_256, 256, 256, 64, false, false, 1, 1)
PAGED_ATTENTION(paged_attention_256_shared, 256, 256, 64, true, false, 1, 1)
PAGED_ATTENTION(paged_attention_256_rotate, 256, 256, 64, true, true, 1, 1)
PAGED_ATTENTION(paged_attention_256_rows, 256, 256, 64, false, false, 2, 1)
PAGED_ATTENTION(paged_attention_256_shared_rows, 256, 256, 64, true, false, 2, 1)
PAGED_ATTENTION(paged_attention_576_shared, 576, 512, 64, true, false, 1, 2)
