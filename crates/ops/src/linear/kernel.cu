// The bias of a linear map: added to every row, and its gradient, the sum of the rows.
//
// Shapes: y, dy [rows, cols]; bias, d_bias [cols], f32. The sums of rows are taken in two steps, so that they come in the
// same order every time: a block adds up its share of the rows for 32 columns, then one thread a column adds the shares.
#include "common.cuh"

template <typename T>
__device__ void add_bias(const float* bias, Matrix<T> y, int accumulate, int rows, int cols) {
    FOR_ROWS(r, rows) FOR_COLS(c, cols, 1) {
        T* at = y.row(r) + c;
        *at = from_f32<T>(bias[c] + (accumulate ? to_f32(*at) : 0.f));
    }
}

// partial [gridDim.y, cols]. Threads (32, 8): a column each, eight rows at a time.
template <typename T>
__device__ void sum_rows(Matrix<const T> dy, float* partial, int rows, int cols) {
    __shared__ float sums[8][33];
    const int c = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.f;
    if (c < cols)
        for (int r = blockIdx.y * 8 + threadIdx.y; r < rows; r += gridDim.y * 8) sum += to_f32(dy.row(r)[c]);
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < cols) {
        for (int i = 1; i < 8; i++) sum += sums[i][threadIdx.x];
        partial[int64_t(blockIdx.y) * cols + c] = sum;
    }
}

extern "C" __global__ void finish_sums(const float* partial, int parts, float* out, int accumulate, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    float sum = accumulate ? out[c] : 0.f;
    for (int i = 0; i < parts; i++) sum += partial[int64_t(i) * cols + c];
    out[c] = sum;
}

#define KERNELS(name, T)                                                                                            \
    extern "C" __global__ void add_bias_##name(const float* bias, Matrix<T> y, int accumulate, int rows, int cols) { \
        add_bias<T>(bias, y, accumulate, rows, cols);                                                               \
    }                                                                                                               \
    extern "C" __global__ void sum_rows_##name(Matrix<const T> dy, float* partial, int rows, int cols) {            \
        sum_rows<T>(dy, partial, rows, cols);                                                                       \
    }
KERNELS(f32, float)
KERNELS(bf16, bf16)
