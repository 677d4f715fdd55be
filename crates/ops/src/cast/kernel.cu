// Copies between element types and layouts: out = x, rounded to nearest, ties to even.
//
// Shapes: x, out [rows, cols], each with its own stride. Bound by memory. The wide forms move 8 elements at a time, which
// is 16 bytes of bf16 and twice 16 bytes of f32.
#include "common.cuh"

template <typename From, typename To, int N>
__device__ void copy(Matrix<const From> x, Matrix<To> out, int rows, int cols) {
    FOR_ROWS(r, rows) FOR_COLS(c, cols, N) {
        float v[N];
        load(x.row(r) + c, v);
        store(out.row(r) + c, v);
    }
}

#define KERNELS(name, From, To)                                                                                    \
    extern "C" __global__ void name(Matrix<const From> x, Matrix<To> out, int rows, int cols) {                    \
        copy<From, To, 1>(x, out, rows, cols);                                                                     \
    }                                                                                                              \
    extern "C" __global__ void name##_wide(Matrix<const From> x, Matrix<To> out, int rows, int cols) {             \
        copy<From, To, 8>(x, out, rows, cols);                                                                     \
    }
KERNELS(f32_to_f32, float, float)
KERNELS(f32_to_bf16, float, bf16)
KERNELS(bf16_to_f32, bf16, float)
KERNELS(bf16_to_bf16, bf16, bf16)
