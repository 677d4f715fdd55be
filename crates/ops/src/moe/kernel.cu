// The weighted sum of what experts answer, and its gradients.
//
// Shapes: y, dy [rows, hidden], a row per token of one expert; weights, d_weights [tokens, k]; out, d_out [tokens, hidden];
// token and slot of each row in `tokens` and `slots`. A token has at most one row of an expert, so that no two warps meet.
#include "common.cuh"

template <typename T, int N>
__device__ void scatter(const uint32_t* tokens, const uint32_t* slots, Matrix<const T> y, Matrix<const T> weights,
                        Matrix<T> out, int rows, int hidden) {
    FOR_ROWS(r, rows) {
        const float weight = to_f32(weights.row(tokens[r])[slots[r]]);
        T* to = out.row(tokens[r]);
        FOR_COLS(c, hidden, N) {
            float v[N], sum[N];
            load(y.row(r) + c, v);
            load(to + c, sum);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] = fmaf(weight, v[i], sum[i]);
            store(to + c, sum);
        }
    }
}

template <typename T, int N>
__device__ void backward(const uint32_t* tokens, const uint32_t* slots, Matrix<const T> y, Matrix<const T> weights,
                         Matrix<const T> d_out, Matrix<T> dy, Matrix<T> d_weights, int rows, int hidden) {
    const int lane = threadIdx.x % 32, r = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (r >= rows) return;
    const uint32_t token = tokens[r], slot = slots[r];
    const float weight = to_f32(weights.row(token)[slot]);
    float dot = 0.f;
    for (int c = lane * N; c < hidden; c += 32 * N) {
        float v[N], d[N];
        load(y.row(r) + c, v);
        load(d_out.row(token) + c, d);
#pragma unroll
        for (int i = 0; i < N; i++) {
            dot = fmaf(v[i], d[i], dot);
            d[i] *= weight;
        }
        store(dy.row(r) + c, d);
    }
    dot = warp_sum(dot);
    if (lane == 0) d_weights.row(token)[slot] = from_f32<T>(dot);
}

#define KERNELS(name, T, N)                                                                                             \
    extern "C" __global__ void scatter_##name(const uint32_t* tokens, const uint32_t* slots, Matrix<const T> y,         \
                                              Matrix<const T> weights, Matrix<T> out, int rows, int hidden) {           \
        scatter<T, N>(tokens, slots, y, weights, out, rows, hidden);                                                    \
    }                                                                                                                   \
    extern "C" __global__ void backward_##name(const uint32_t* tokens, const uint32_t* slots, Matrix<const T> y,        \
                                               Matrix<const T> weights, Matrix<const T> d_out, Matrix<T> dy,            \
                                               Matrix<T> d_weights, int rows, int hidden) {                             \
        backward<T, N>(tokens, slots, y, weights, d_out, dy, d_weights, rows, hidden);                                  \
    }
FORMS(KERNELS)
