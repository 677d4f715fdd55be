// Keys of naive multi-head latent attention: out[t, h, :] = [nope[t, h, :] | shared[t, :]].
//
// Shapes: nope [tokens, cols] with head h's own part at h * stride; shared [tokens, P]; out [tokens, M * (N + P)]. The
// gradient of the shared part is summed over the heads by the thread that has its column.
#include "common.cuh"

template <typename T>
__device__ void forward(Matrix<const T> nope, int stride, Matrix<const T> shared, Matrix<T> out, int tokens, int heads,
                        int own, int common) {
    const int width = own + common;
    FOR_ROWS(r, tokens) FOR_COLS(i, heads * width, 1) {
        const int h = i / width, c = i % width;
        out.row(r)[i] = c < own ? nope.row(r)[h * stride + c] : shared.row(r)[c - own];
    }
}

template <typename T>
__device__ void backward(Matrix<const T> d_out, Matrix<T> d_nope, int stride, Matrix<T> d_shared, int accumulate,
                         int tokens, int heads, int own, int common) {
    const int width = own + common;
    FOR_ROWS(r, tokens) FOR_COLS(i, heads * own + common, 1) {
        if (i < heads * own) {
            const int h = i / own, c = i % own;
            d_nope.row(r)[h * stride + c] = d_out.row(r)[h * width + c];
        } else {
            const int c = i - heads * own;
            float sum = accumulate ? to_f32(d_shared.row(r)[c]) : 0.f;
            for (int h = 0; h < heads; h++) sum += to_f32(d_out.row(r)[h * width + own + c]);
            d_shared.row(r)[c] = from_f32<T>(sum);
        }
    }
}

#define KERNELS(name, T)                                                                                              \
    extern "C" __global__ void forward_##name(Matrix<const T> nope, int stride, Matrix<const T> shared, Matrix<T> out, \
                                              int tokens, int heads, int own, int common) {                           \
        forward<T>(nope, stride, shared, out, tokens, heads, own, common);                                            \
    }                                                                                                                 \
    extern "C" __global__ void backward_##name(Matrix<const T> d_out, Matrix<T> d_nope, int stride, Matrix<T> d_shared, \
                                               int accumulate, int tokens, int heads, int own, int common) {          \
        backward<T>(d_out, d_nope, stride, d_shared, accumulate, tokens, heads, own, common);                         \
    }
KERNELS(f32, float)
KERNELS(bf16, bf16)
