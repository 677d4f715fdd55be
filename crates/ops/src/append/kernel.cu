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
    int heads, kv_heads, width, value_width;
    int rotates, raw_keys;
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

// A row of a plane. In 8 bits, eight lanes side by side store the channels of a block.
template <bool FP8>
struct Row {
    void* plane;
    uint8_t* scales;

    __device__ __forceinline__ Row(const Matrix<void>& all, uint8_t* all_scales, int64_t row) {
        plane = static_cast<uint8_t*>(all.data) + row * all.stride * (FP8 ? 1 : sizeof(bf16));
        scales = all_scales + row * all.stride;
    }
    __device__ __forceinline__ void put(int channel, const float (&x)[8]) const {
        if constexpr (FP8) store_block(x, static_cast<uint8_t*>(plane) + channel, scales + channel / SCALE_BLOCK);
        else store(static_cast<bf16*>(plane) + channel, x);
    }
};

// The next kernel may start at once: those that start early touch nothing before they wait that this one, or the one before it,
// writes. Nor does this one: places and angles are older than the queries.
template <bool FP8>
__device__ __forceinline__ void append_rows(const Append& p) {
    let_next_kernel_start();
    const int token = blockIdx.x, half = p.width / 2, steps = half / 8;
    const int64_t row = p.rows[token], angle = p.rotates ? int64_t(p.positions[token]) * half : 0;
    const Row<FP8> key(p.keys, p.key_scales, row), value(p.values, p.value_scales, row);
    const int queries = p.rotates ? p.heads * steps : 0;
    const int keys = p.raw_keys ? p.kv_heads * p.width / 8 : p.kv_heads * steps;
    const int all = queries + keys + p.value_width / 8, step = gridDim.y * blockDim.x;
    const int rotated = p.raw_keys ? queries : queries + keys;
    int i = blockIdx.y * blockDim.x + threadIdx.x;
    Angles angles;
    // Of queries and keys alike: both have a whole number of heads.
    if (i < rotated) angles.read(p, angle + i % steps * 8);
    wait_for_previous_kernel();
    while (i < all) {
        float a[8], b[8];
        if (i < queries) {
            bf16* at = p.q.row(token) + i / steps * p.width + i % steps * 8;
            angles.rotate(at, half, a, b);
            store(at, a);
            store(at + half, b);
        } else if (i < queries + keys) {
            const int j = i - queries;
            if (p.raw_keys) {
                load(p.k.row(token) + j * 8, a);
                key.put(j * 8, a);
            } else {
                const int at = j / steps * p.width + j % steps * 8;
                angles.rotate(p.k.row(token) + at, half, a, b);
                key.put(at, a);
                key.put(at + half, b);
            }
        } else {
            const int c = (i - queries - keys) * 8;
            load(p.v.row(token) + c, a);
            value.put(c, a);
        }
        i += step;
        if (i < rotated) angles.read(p, angle + i % steps * 8);
    }
}

extern "C" __global__ void __launch_bounds__(256) append(const __grid_constant__ Append p) { append_rows<false>(p); }
extern "C" __global__ void __launch_bounds__(256) append_fp8(const __grid_constant__ Append p) { append_rows<true>(p); }
