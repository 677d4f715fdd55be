// New tokens on their way into a cache: queries rotated in place, keys rotated (or not) and values into their rows.
//
// Shapes: q [tokens, heads * width], k [tokens, kv heads * width], v [tokens, value width]; keys [places, kv heads * width],
// values [places, value width], bf16 or 8 bits with scales (fp8.cuh); cos, sin [positions, width / 2], f32; pairs (a, b) are
// channels i and i + width / 2. A block is a token; a thread takes 8 pairs, or 8 channels that are only copied.
#include "common.cuh"
#include "fp8.cuh"

// `Append` in cuda.rs is the same struct.
struct Append {
    Matrix<bf16> q;
    Matrix<const bf16> k, v;
    Matrix<void> keys, values;
    // Of 8-bit rows: those of the first block of keys, and of values.
    uint8_t *key_scales, *value_scales;
    const float *cos, *sin;
    const uint32_t *positions, *rows;
    // Rows of the cache.
    int64_t places;
    int heads, kv_heads, width, value_width;
    int rotates, raw_keys;
    // Channels that have one scale in 8 bits, a block or a head.
    int key_sharing, value_sharing;
};

// Cosines and sines of 8 pairs.
struct Angles {
    float cosine[8], sine[8];

    __device__ __forceinline__ void read(const Append& p, int64_t at) {
        load(p.cos + at, cosine);
        load(p.sin + at, sine);
    }
    // The pairs from channel 0 of `from`, rotated.
    __device__ __forceinline__ void rotate(const bf16* from, int half, float (&a)[8], float (&b)[8]) const {
        load(from, a);
        load(from + half, b);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float first = a[i];
            a[i] = first * cosine[i] - b[i] * sine[i];
            b[i] = b[i] * cosine[i] + first * sine[i];
        }
    }
};

// A row of a plane. In 8 bits, eight lanes side by side store the channels of a block; `most` is the largest of those that share its
// scale.
template <bool FP8>
struct Row {
    void* plane;
    uint8_t* scales;
    int64_t places;   // from the scale of a block to that of the next

    __device__ __forceinline__ Row(const Matrix<void>& all, uint8_t* all_scales, int64_t all_places, int64_t row) {
        plane = static_cast<uint8_t*>(all.data) + row * all.stride * (FP8 ? 1 : sizeof(bf16));
        scales = all_scales + row;
        places = all_places;
    }
    __device__ __forceinline__ void put(int channel, const float (&x)[8], float most) const {
        if constexpr (FP8) {
            uint8_t* scale = scales + channel / SCALE_BLOCK * places;
            store_eight(x, scale_exponent(most), static_cast<uint8_t*>(plane) + channel, scale);
        } else {
            store(static_cast<bf16*>(plane) + channel, x);
        }
    }
    // The largest that `lanes` lanes side by side have.
    static __device__ __forceinline__ float most_of(const float (&x)[8], int lanes) {
        return FP8 ? largest_of(largest(x), lanes) : 0.f;
    }
};

// The next kernel may start at once: those that start early touch nothing before they wait that this one, or the one before it,
// writes. Nor does this one: places and angles are older than the queries.
template <bool FP8>
__device__ __forceinline__ void append_rows(const Append& p) {
    let_next_kernel_start();
    const int token = blockIdx.x, half = p.width / 2, steps = half / 8;
    const int64_t row = p.rows[token], angle = p.rotates ? int64_t(p.positions[token]) * half : 0;
    const Row<FP8> key(p.keys, p.key_scales, p.places, row), value(p.values, p.value_scales, p.places, row);
    // Values before keys: wider groups of lanes first, so that all are of one warp.
    const int queries = p.rotates ? p.heads * steps : 0, first_key = queries + p.value_width / 8;
    const int all = first_key + (p.raw_keys ? p.kv_heads * p.width / 8 : p.kv_heads * steps);
    const int step = gridDim.y * blockDim.x;
    const bool whole_keys = p.key_sharing > SCALE_BLOCK;
    int i = blockIdx.y * blockDim.x + threadIdx.x;
    Angles angles;
    // Of an item that is rotated; both kinds have a whole number of heads.
    const auto read_angles = [&] {
        const int j = i < queries ? i : i - first_key;
        if (i < queries || (!p.raw_keys && j >= 0 && i < all)) angles.read(p, angle + j % steps * 8);
    };
    read_angles();
    wait_for_previous_kernel();
    while (i < all) {
        float a[8], b[8];
        if (i < queries) {
            bf16* at = p.q.row(token) + i / steps * p.width + i % steps * 8;
            angles.rotate(at, half, a, b);
            store(at, a);
            store(at + half, b);
        } else if (i < first_key) {
            const int c = (i - queries) * 8;
            load(p.v.row(token) + c, a);
            value.put(c, a, Row<FP8>::most_of(a, p.value_sharing / 8));
        } else if (p.raw_keys) {
            const int c = (i - first_key) * 8;
            load(p.k.row(token) + c, a);
            key.put(c, a, Row<FP8>::most_of(a, p.key_sharing / 8));
        } else {
            const int j = i - first_key, at = j / steps * p.width + j % steps * 8;
            angles.rotate(p.k.row(token) + at, half, a, b);
            float most_a = Row<FP8>::most_of(a, whole_keys ? steps : 8);
            float most_b = Row<FP8>::most_of(b, whole_keys ? steps : 8);
            if (whole_keys) most_a = most_b = fmaxf(most_a, most_b);
            key.put(at, a, most_a);
            key.put(at + half, b, most_b);
        }
        i += step;
        read_angles();
    }
}

extern "C" __global__ void __launch_bounds__(256) append(const __grid_constant__ Append p) { append_rows<false>(p); }
extern "C" __global__ void __launch_bounds__(256) append_fp8(const __grid_constant__ Append p) { append_rows<true>(p); }
