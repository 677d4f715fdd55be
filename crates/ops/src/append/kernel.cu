// New tokens on their way into a cache: queries rotated in place, keys rotated (or not) and values into their rows.
//
// Shapes: q [tokens, heads * width], k [tokens, kv heads * width], v [tokens, value width]; keys [places, kv heads * width],
// values [places, value width]; cos, sin [positions, width / 2], f32; pairs (a, b) are channels i and i + width / 2. A block
// is a token; a thread takes 8 pairs, or 8 channels that are only copied.
#include "common.cuh"

// `Append` in cuda.rs is the same struct.
struct Append {
    Matrix<bf16> q;
    Matrix<const bf16> k, v;
    Matrix<bf16> keys, values;
    const float *cos, *sin;
    const uint32_t *positions, *rows;
    int heads, kv_heads, width, value_width;
    int rotates, raw_keys;
};

__device__ __forceinline__ void copy(const bf16* from, bf16* to) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
}

// 8 pairs from channel `c` of a head of `from` to the same of `to`.
__device__ __forceinline__ void rotate(const bf16* from, bf16* to, const float* cos, const float* sin, int half) {
    float a[8], b[8], cosine[8], sine[8];
    load(from, a);
    load(from + half, b);
    load(cos, cosine);
    load(sin, sine);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float first = a[i];
        a[i] = first * cosine[i] - b[i] * sine[i];
        b[i] = b[i] * cosine[i] + first * sine[i];
    }
    store(to, a);
    store(to + half, b);
}

extern "C" __global__ void __launch_bounds__(256) append(const __grid_constant__ Append p) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    const int token = blockIdx.x, half = p.width / 2, steps = half / 8;
    const int64_t row = p.rows[token], angle = p.rotates ? int64_t(p.positions[token]) * half : 0;
    const int queries = p.rotates ? p.heads * steps : 0;
    const int keys = p.raw_keys ? p.kv_heads * p.width / 8 : p.kv_heads * steps;
    const int all = queries + keys + p.value_width / 8;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < all; i += gridDim.y * blockDim.x) {
        if (i < queries) {
            const int c = i % steps * 8;
            bf16* at = p.q.row(token) + i / steps * p.width + c;
            rotate(at, at, p.cos + angle + c, p.sin + angle + c, half);
        } else if (i < queries + keys) {
            const int j = i - queries;
            if (p.raw_keys) {
                copy(p.k.row(token) + j * 8, p.keys.row(row) + j * 8);
            } else {
                const int c = j % steps * 8, at = j / steps * p.width + c;
                rotate(p.k.row(token) + at, p.keys.row(row) + at, p.cos + angle + c, p.sin + angle + c, half);
            }
        } else {
            const int c = (i - queries - keys) * 8;
            copy(p.v.row(token) + c, p.values.row(row) + c);
        }
    }
}
