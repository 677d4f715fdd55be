// Root-mean-square normalisation, forward and backward, with the residual sum before it in the same pass.
//
// Shapes: x, residual, sum, out, d_out, d_x [tokens, groups * width] (T elements); weight [width], rstd [tokens, groups],
// f32. A warp takes one group at a time; what it reads a second time comes from its multiprocessor's cache.
//
// The gradient of the weight is a sum over all groups: each warp of a fixed number keeps sums of its share in shared memory,
// its block adds them up, and `finish_weight` adds the blocks' sums, always in the same order.
#include "common.cuh"

struct Sizes {
    int tokens, groups, width;
};

template <typename T, int N>
__device__ void forward(Matrix<const T> x, Matrix<const T> residual, Matrix<T> sum, const float* weight, float eps,
                        Matrix<T> out, Matrix<float> rstd, Sizes s) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    const int lane = threadIdx.x % 32;
    const int64_t warp = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    if (warp >= int64_t(s.tokens) * s.groups) return;
    const int64_t token = warp / s.groups, group = warp % s.groups, start = group * s.width;
    const T* x_row = x.row(token) + start;
    float squares = 0.f;
    for (int c = lane * N; c < s.width; c += 32 * N) {
        float v[N];
        load(x_row + c, v);
        if (residual.data) {
            float r[N];
            load(residual.row(token) + start + c, r);
            // What is normalised is the sum as it is stored.
#pragma unroll
            for (int i = 0; i < N; i++) v[i] = to_f32(from_f32<T>(v[i] + r[i]));
            store(sum.row(token) + start + c, v);
        }
#pragma unroll
        for (int i = 0; i < N; i++) squares = fmaf(v[i], v[i], squares);
    }
    const float scale = rsqrtf(warp_sum(squares) / s.width + eps);
    if (lane == 0) rstd.row(token)[group] = scale;
    // A lane reads back what it wrote itself.
    const T* s_row = residual.data ? sum.row(token) + start : x_row;
    for (int c = lane * N; c < s.width; c += 32 * N) {
        float v[N];
        load(s_row + c, v);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] *= scale * weight[c + i];
        store(out.row(token) + start + c, v);
    }
}

// As `forward` for bf16, a block a group of up to 2 * 8 * 1024: rows of few tokens, which would leave most of the GPU idle.
__device__ void forward_block(Matrix<const bf16> x, Matrix<const bf16> residual, Matrix<bf16> sum, const float* weight,
                              float eps, Matrix<bf16> out, Matrix<float> rstd, Sizes s) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    constexpr int N = 8, STEPS = 2;
    const int64_t token = blockIdx.x / s.groups, group = blockIdx.x % s.groups, start = group * s.width;
    float v[STEPS][N], squares = 0.f;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const int c = (step * blockDim.x + threadIdx.x) * N;
        if (c >= s.width) break;
        load(x.row(token) + start + c, v[step]);
        if (residual.data) {
            float r[N];
            load(residual.row(token) + start + c, r);
#pragma unroll
            for (int i = 0; i < N; i++) v[step][i] = to_f32(from_f32<bf16>(v[step][i] + r[i]));
            store(sum.row(token) + start + c, v[step]);
        }
#pragma unroll
        for (int i = 0; i < N; i++) squares = fmaf(v[step][i], v[step][i], squares);
    }
    const float scale = rsqrtf(block_sum(squares) / s.width + eps);
    if (threadIdx.x == 0) rstd.row(token)[group] = scale;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const int c = (step * blockDim.x + threadIdx.x) * N;
        if (c >= s.width) break;
        float gain[N];
        load(weight + c, gain);
#pragma unroll
        for (int i = 0; i < N; i++) v[step][i] *= scale * gain[i];
        store(out.row(token) + start + c, v[step]);
    }
}

// partial [blocks, width].
template <typename T, int N>
__device__ void backward(Matrix<const T> d_out, Matrix<const T> x, const float* weight, Matrix<const float> rstd,
                         Matrix<T> d_x, int accumulate, float* partial, Sizes s) {
    extern __shared__ float sums[];
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    float* mine = sums + (threadIdx.x / 32) * s.width;
    for (int c = lane * N; c < s.width; c += 32 * N)
#pragma unroll
        for (int i = 0; i < N; i++) mine[c + i] = 0.f;
    const int64_t all = int64_t(s.tokens) * s.groups;
    for (int64_t at = int64_t(blockIdx.x) * warps + threadIdx.x / 32; at < all; at += int64_t(gridDim.x) * warps) {
        const int64_t token = at / s.groups, group = at % s.groups, start = group * s.width;
        const T *d_row = d_out.row(token) + start, *x_row = x.row(token) + start;
        const float scale = rstd.row(token)[group];
        float dot = 0.f;
        for (int c = lane * N; c < s.width; c += 32 * N) {
            float d[N], v[N];
            load(d_row + c, d);
            load(x_row + c, v);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float normed = v[i] * scale;
                dot = fmaf(d[i] * weight[c + i], normed, dot);
                mine[c + i] += d[i] * normed;
            }
        }
        const float mean = warp_sum(dot) / s.width;
        T* to = d_x.row(token) + start;
        for (int c = lane * N; c < s.width; c += 32 * N) {
            float d[N], v[N], before[N] = {};
            load(d_row + c, d);
            load(x_row + c, v);
            if (accumulate) load(to + c, before);
#pragma unroll
            for (int i = 0; i < N; i++) d[i] = before[i] + scale * (d[i] * weight[c + i] - v[i] * scale * mean);
            store(to + c, d);
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < s.width; c += blockDim.x) {
        float sum = 0.f;
        for (int i = 0; i < warps; i++) sum += sums[i * s.width + c];
        partial[int64_t(blockIdx.x) * s.width + c] = sum;
    }
}

// The same for widths of STEPS times 256 and bf16: a lane keeps its part of the row and its sums in registers, so that
// memory is read once and shared memory only at the end. partial as above.
template <int STEPS>
__device__ void backward_rows(Matrix<const bf16> d_out, Matrix<const bf16> x, const float* weight, Matrix<const float> rstd,
                              Matrix<bf16> d_x, int accumulate, float* partial, Sizes s) {
    extern __shared__ float sums[];
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    float mine[STEPS][8] = {};
    const int64_t all = int64_t(s.tokens) * s.groups;
    for (int64_t at = int64_t(blockIdx.x) * warps + threadIdx.x / 32; at < all; at += int64_t(gridDim.x) * warps) {
        const int64_t token = at / s.groups, start = at % s.groups * s.width + lane * 8;
        const bf16 *d_row = d_out.row(token) + start, *x_row = x.row(token) + start;
        bf16* to = d_x.row(token) + start;
        const float scale = rstd.row(token)[at % s.groups];
        Pack<bf16, 8> d[STEPS], v[STEPS], before[STEPS];
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            d[i] = *reinterpret_cast<const Pack<bf16, 8>*>(d_row + i * 256);
            v[i] = *reinterpret_cast<const Pack<bf16, 8>*>(x_row + i * 256);
            if (accumulate) before[i] = *reinterpret_cast<const Pack<bf16, 8>*>(to + i * 256);
        }
        float dot = 0.f;
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            float w[8];
            load(weight + i * 256 + lane * 8, w);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float along = to_f32(d[i].v[j]), normed = to_f32(v[i].v[j]) * scale;
                dot = fmaf(along * w[j], normed, dot);
                mine[i][j] = fmaf(along, normed, mine[i][j]);
            }
        }
        const float mean = warp_sum(dot) / s.width;
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            float w[8], result[8];
            load(weight + i * 256 + lane * 8, w);
#pragma unroll
            for (int j = 0; j < 8; j++)
                result[j] = (accumulate ? to_f32(before[i].v[j]) : 0.f) +
                            scale * (to_f32(d[i].v[j]) * w[j] - to_f32(v[i].v[j]) * scale * mean);
            store(to + i * 256, result);
        }
    }
#pragma unroll
    for (int i = 0; i < STEPS; i++) store(sums + (threadIdx.x / 32) * s.width + i * 256 + lane * 8, mine[i]);
    __syncthreads();
    for (int c = threadIdx.x; c < s.width; c += blockDim.x) {
        float sum = 0.f;
        for (int i = 0; i < warps; i++) sum += sums[i * s.width + c];
        partial[int64_t(blockIdx.x) * s.width + c] = sum;
    }
}

// d_weight [width] += the column sums of partial [parts, width]. Threads (32, 32): a column each, a 32nd of the parts.
extern "C" __global__ void __launch_bounds__(1024)
    finish_weight(const float* partial, int parts, float* d_weight, int width) {
    __shared__ float sums[32][33];
    const int c = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.f;
    if (c < width)
        for (int i = threadIdx.y; i < parts; i += 32) sum += partial[int64_t(i) * width + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < width) {
        for (int i = 1; i < 32; i++) sum += sums[i][threadIdx.x];
        d_weight[c] += sum;
    }
}

#define KERNELS(name, T, N)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        forward_##name(Matrix<const T> x, Matrix<const T> residual, Matrix<T> sum, const float* weight, float eps,     \
                       Matrix<T> out, Matrix<float> rstd, Sizes sizes) {                                               \
        forward<T, N>(x, residual, sum, weight, eps, out, rstd, sizes);                                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        backward_##name(Matrix<const T> d_out, Matrix<const T> x, const float* weight, Matrix<const float> rstd,       \
                        Matrix<T> d_x, int accumulate, float* partial, Sizes sizes) {                                  \
        backward<T, N>(d_out, x, weight, rstd, d_x, accumulate, partial, sizes);                                       \
    }
FORMS(KERNELS)

extern "C" __global__ void __launch_bounds__(1024)
    forward_rows(Matrix<const bf16> x, Matrix<const bf16> residual, Matrix<bf16> sum, const float* weight, float eps,
                 Matrix<bf16> out, Matrix<float> rstd, Sizes sizes) {
    forward_block(x, residual, sum, weight, eps, out, rstd, sizes);
}

#define BACKWARD_ROWS(STEPS)                                                                                           \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        backward_rows_##STEPS(Matrix<const bf16> d_out, Matrix<const bf16> x, const float* weight,                     \
                              Matrix<const float> rstd, Matrix<bf16> d_x, int accumulate, float* partial,              \
                              Sizes sizes) {                                                                           \
        backward_rows<STEPS>(d_out, x, weight, rstd, d_x, accumulate, partial, sizes);                                 \
    }
BACKWARD_ROWS(1)
BACKWARD_ROWS(2)
BACKWARD_ROWS(3)
BACKWARD_ROWS(4)
