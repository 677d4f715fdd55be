// Rotary position embedding: rotates pairs of channels of each head by the angle of the row's position.
//
// Shapes: x, out [tokens, cols], the rotated channels of head h at h * stride + offset .. + width; cos, sin [positions,
// width / 2], f32. The pair (a, b) becomes (a cos - b sin, b cos + a sin), with the sine negated for the inverse. `out` may
// be `x`: a thread writes only what it has read.
#include "common.cuh"

struct Heads {
    int count, stride, offset, width;
};

// Row t is at position t % seq, past + t, or at[t]; what is not used is 0.
struct Positions {
    const uint32_t* at;
    int seq;
    int past;

    __device__ __forceinline__ int64_t of(int row) const {
        if (at) return at[row];
        return seq ? row % seq : past + row;
    }
};

template <typename T, int N>
__device__ void rotate_halves(Matrix<const T> x, Matrix<T> out, Heads heads, const float* cos, const float* sin,
                              Positions positions, float sign, int tokens) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    const int half = heads.width / 2, steps = half / N;
    FOR_ROWS(r, tokens) FOR_COLS(i, heads.count * steps, 1) {
        const int h = i / steps, p = i % steps * N, c = h * heads.stride + heads.offset + p;
        const int64_t angle = positions.of(r) * half + p;
        float a[N], b[N];
        load(x.row(r) + c, a);
        load(x.row(r) + c + half, b);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float cosine = cos[angle + j], sine = sign * sin[angle + j], first = a[j];
            a[j] = first * cosine - b[j] * sine;
            b[j] = b[j] * cosine + first * sine;
        }
        store(out.row(r) + c, a);
        store(out.row(r) + c + half, b);
    }
}

// N channels, or two where that is one.
template <typename T, int N>
__device__ void rotate_pairs(Matrix<const T> x, Matrix<T> out, Heads heads, const float* cos, const float* sin,
                             Positions positions, float sign, int tokens) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    const int half = heads.width / 2, steps = heads.width / N;
    FOR_ROWS(r, tokens) FOR_COLS(i, heads.count * steps, 1) {
        const int h = i / steps, p = i % steps * N, c = h * heads.stride + heads.offset + p;
        const int64_t angle = positions.of(r) * half + p / 2;
        float v[N];
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = to_f32(x.row(r)[c + j]);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            const float cosine = cos[angle + j / 2], sine = sign * sin[angle + j / 2], first = v[j];
            v[j] = first * cosine - v[j + 1] * sine;
            v[j + 1] = v[j + 1] * cosine + first * sine;
        }
#pragma unroll
        for (int j = 0; j < N; j++) out.row(r)[c + j] = from_f32<T>(v[j]);
    }
}

#define KERNELS(name, T, N)                                                                                           \
    extern "C" __global__ void halves_##name(Matrix<const T> x, Matrix<T> out, Heads heads, const float* cos,         \
                                             const float* sin, Positions positions, float sign, int tokens) {         \
        rotate_halves<T, N>(x, out, heads, cos, sin, positions, sign, tokens);                                        \
    }                                                                                                                 \
    extern "C" __global__ void pairs_##name(Matrix<const T> x, Matrix<T> out, Heads heads, const float* cos,          \
                                            const float* sin, Positions positions, float sign, int tokens) {          \
        rotate_pairs<T, 2>(x, out, heads, cos, sin, positions, sign, tokens);                                         \
    }
FORMS(KERNELS)
