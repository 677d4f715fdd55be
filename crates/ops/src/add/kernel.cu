// Sums and multiples of matrices: out = a + b, out (+)= factor * x.
//
// Shapes: a, b, x, out [rows, cols], each with its own stride. One read and one write per element: bound by memory, so
// that all that matters is 16-byte accesses. `out` may be an operand: a thread writes only what it has read.
#include "common.cuh"

template <typename T, int N>
__device__ void add(Matrix<const T> a, Matrix<const T> b, Matrix<T> out, int rows, int cols) {
    FOR_ROWS(r, rows) FOR_COLS(c, cols, N) {
        float x[N], y[N];
        load(a.row(r) + c, x);
        load(b.row(r) + c, y);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] += y[i];
        store(out.row(r) + c, x);
    }
}

template <typename T, int N>
__device__ void scale(Matrix<const T> x, float factor, Matrix<T> out, int accumulate, int rows, int cols) {
    FOR_ROWS(r, rows) FOR_COLS(c, cols, N) {
        float v[N], before[N] = {};
        load(x.row(r) + c, v);
        if (accumulate) load(out.row(r) + c, before);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = fmaf(factor, v[i], before[i]);
        store(out.row(r) + c, v);
    }
}

#define KERNELS(name, T, N)                                                                                          \
    extern "C" __global__ void add_##name(Matrix<const T> a, Matrix<const T> b, Matrix<T> out, int rows, int cols) { \
        add<T, N>(a, b, out, rows, cols);                                                                            \
    }                                                                                                                \
    extern "C" __global__ void scale_##name(Matrix<const T> x, float factor, Matrix<T> out, int accumulate,         \
                                            int rows, int cols) {                                                    \
        scale<T, N>(x, factor, out, accumulate, rows, cols);                                                         \
    }
FORMS(KERNELS)
