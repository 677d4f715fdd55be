// Heads as a sum of tensor products of two factors: out[t, h, :] = 1/R sum_r a[t, r, h] b[t, r, :].
//
// Shapes: a, d_a [tokens, R * M], b, d_b [tokens, R * D], out, d_out [tokens, M * D]. A block takes a token: the factors are
// small and stay in its cache, what counts is that the heads are written or read once. The backward pass keeps d_out's row
// in shared memory, because the gradient of `a` walks it along the rows and that of `b` along the columns.
#include "common.cuh"

struct Sizes {
    int rank, heads, width;
};

template <typename T>
__device__ void combine(Matrix<const T> a, Matrix<const T> b, Matrix<T> out, Sizes s) {
    const T *a_row = a.row(blockIdx.x), *b_row = b.row(blockIdx.x);
    for (int i = threadIdx.x; i < s.heads * s.width; i += blockDim.x) {
        const int h = i / s.width, c = i % s.width;
        float sum = 0.f;
        for (int r = 0; r < s.rank; r++) sum = fmaf(to_f32(a_row[r * s.heads + h]), to_f32(b_row[r * s.width + c]), sum);
        out.row(blockIdx.x)[i] = from_f32<T>(sum / s.rank);
    }
}

template <typename T>
__device__ void backward(Matrix<const T> d_out, Matrix<const T> a, Matrix<const T> b, Matrix<T> d_a, Matrix<T> d_b,
                         int accumulate, Sizes s) {
    extern __shared__ float d[];
    const T *a_row = a.row(blockIdx.x), *b_row = b.row(blockIdx.x), *d_row = d_out.row(blockIdx.x);
    T *da_row = d_a.row(blockIdx.x), *db_row = d_b.row(blockIdx.x);
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < s.heads * s.width; i += blockDim.x) d[i] = to_f32(d_row[i]) / s.rank;
    __syncthreads();
    for (int i = threadIdx.x / 32; i < s.rank * s.heads; i += blockDim.x / 32) {
        const int r = i / s.heads, h = i % s.heads;
        float sum = 0.f;
        for (int c = lane; c < s.width; c += 32) sum = fmaf(d[h * s.width + c], to_f32(b_row[r * s.width + c]), sum);
        sum = warp_sum(sum);
        if (lane == 0) da_row[i] = from_f32<T>(sum + (accumulate ? to_f32(da_row[i]) : 0.f));
    }
    for (int i = threadIdx.x; i < s.rank * s.width; i += blockDim.x) {
        const int r = i / s.width, c = i % s.width;
        float sum = accumulate ? to_f32(db_row[i]) : 0.f;
        for (int h = 0; h < s.heads; h++) sum = fmaf(d[h * s.width + c], to_f32(a_row[r * s.heads + h]), sum);
        db_row[i] = from_f32<T>(sum);
    }
}

#define KERNELS(name, T)                                                                                            \
    extern "C" __global__ void combine_##name(Matrix<const T> a, Matrix<const T> b, Matrix<T> out, Sizes sizes) {   \
        combine<T>(a, b, out, sizes);                                                                               \
    }                                                                                                               \
    extern "C" __global__ void backward_##name(Matrix<const T> d_out, Matrix<const T> a, Matrix<const T> b,         \
                                               Matrix<T> d_a, Matrix<T> d_b, int accumulate, Sizes sizes) {         \
        backward<T>(d_out, a, b, d_a, d_b, accumulate, sizes);                                                      \
    }
KERNELS(f32, float)
KERNELS(bf16, bf16)
