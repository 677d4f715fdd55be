// Rows to places: out[at[r]] = x[r], rounded to nearest, ties to even.
//
// Shapes: x [rows, cols]; at [rows]; out [places, cols]. Bound by memory; the wide forms move 8 elements at a time.
#include "common.cuh"

template <typename From, typename To, int N>
__device__ void scatter(Matrix<const From> x, const uint32_t* at, Matrix<To> out, int rows, int cols) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    FOR_ROWS(r, rows) {
        To* row = out.row(at[r]);
        FOR_COLS(c, cols, N) {
            float v[N];
            load(x.row(r) + c, v);
            store(row + c, v);
        }
    }
}

#define KERNELS(name, From, To)                                                                                       \
    extern "C" __global__ void name(Matrix<const From> x, const uint32_t* at, Matrix<To> out, int rows, int cols) {   \
        scatter<From, To, 1>(x, at, out, rows, cols);                                                                 \
    }                                                                                                                 \
    extern "C" __global__ void name##_wide(Matrix<const From> x, const uint32_t* at, Matrix<To> out, int rows,        \
                                           int cols) {                                                                \
        scatter<From, To, 8>(x, at, out, rows, cols);                                                                 \
    }
KERNELS(f32_to_f32, float, float)
KERNELS(f32_to_bf16, float, bf16)
KERNELS(bf16_to_f32, bf16, float)
KERNELS(bf16_to_bf16, bf16, bf16)
