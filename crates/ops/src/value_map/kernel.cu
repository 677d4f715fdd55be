// MFA-KR's value from its key: out = k + alpha * n with one alpha per channel, or k + n without.
//
// Shapes: k, n, out, d_out, d_k, d_n [tokens, width]; alpha, d_alpha [width], f32. The gradient of alpha is a sum over
// tokens, taken in two steps in a fixed order: a block adds up its share of the rows for 32 columns, then the shares.
#include "common.cuh"

template <typename T, int N>
__device__ void forward(Matrix<const T> k, Matrix<const T> n, const float* alpha, Matrix<T> out, int tokens, int width) {
    FOR_ROWS(r, tokens) FOR_COLS(c, width, N) {
        float x[N], y[N];
        load(k.row(r) + c, x);
        load(n.row(r) + c, y);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = fmaf(alpha ? alpha[c + i] : 1.f, y[i], x[i]);
        store(out.row(r) + c, x);
    }
}

// Threads (32, 8): a column each, eight rows at a time. partial [gridDim.y, width], without a gate not used. d_n may be
// d_out or n: a thread writes only where it has read.
template <typename T>
__device__ void backward(Matrix<const T> d_out, Matrix<const T> n, const float* alpha, Matrix<T> d_k, int accumulate,
                         Matrix<T> d_n, float* partial, int tokens, int width) {
    __shared__ float sums[8][33];
    const int c = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.f;
    if (c < width)
        for (int r = blockIdx.y * 8 + threadIdx.y; r < tokens; r += gridDim.y * 8) {
            const float d = to_f32(d_out.row(r)[c]);
            if (alpha) sum = fmaf(to_f32(n.row(r)[c]), d, sum);
            T* to = d_k.row(r) + c;
            *to = from_f32<T>(accumulate ? to_f32(*to) + d : d);
            d_n.row(r)[c] = from_f32<T>(alpha ? alpha[c] * d : d);
        }
    if (!alpha) return;
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < width) {
        for (int i = 1; i < 8; i++) sum += sums[i][threadIdx.x];
        partial[int64_t(blockIdx.y) * width + c] = sum;
    }
}

extern "C" __global__ void finish_alpha(const float* partial, int parts, float* d_alpha, int width) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= width) return;
    float sum = d_alpha[c];
    for (int i = 0; i < parts; i++) sum += partial[int64_t(i) * width + c];
    d_alpha[c] = sum;
}

#define KERNELS(name, T, N)                                                                                          \
    extern "C" __global__ void forward_##name(Matrix<const T> k, Matrix<const T> n, const float* alpha, Matrix<T> out, \
                                              int tokens, int width) {                                               \
        forward<T, N>(k, n, alpha, out, tokens, width);                                                              \
    }
FORMS(KERNELS)

#define BACKWARD(name, T)                                                                                             \
    extern "C" __global__ void backward_##name(Matrix<const T> d_out, Matrix<const T> n, const float* alpha,          \
                                               Matrix<T> d_k, int accumulate, Matrix<T> d_n, float* partial,          \
                                               int tokens, int width) {                                               \
        backward<T>(d_out, n, alpha, d_k, accumulate, d_n, partial, tokens, width);                                   \
    }
BACKWARD(f32, float)
BACKWARD(bf16, bf16)
