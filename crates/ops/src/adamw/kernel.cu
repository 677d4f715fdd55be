// One AdamW step over a flat buffer, and the sum of squares of gradients.
//
// All are f32 vectors of `count` elements; `copy` is the bf16 form of the parameters that products use. 28 bytes move per
// parameter (30 with the copy): bound by memory, 16-byte accesses.
//
// The gradient's norm stays on the device: `norm` points to its square, and every thread works out the clipping factor for
// itself. Where the norm is not finite nothing is written, so that the host, which learns of it later, still has the
// weights of the step before.
#include "common.cuh"

struct Hyper {
    float decay;        // 1 - lr * weight_decay
    float rate;         // lr / (1 - beta1^step)
    float beta1_rest;   // 1 - beta1
    float beta2;
    float root;         // 1 / sqrt(1 - beta2^step)
    float eps;
    float grad_scale;
    float max_norm;     // not used without a norm
};

// Shares of `partial` [blocks]; the host passes each flat buffer's place in it.
template <int N>
__device__ void add_squares(const float* grad, int64_t count, double* partial) {
    double sum = 0.;
    for (int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < count; i += int64_t(gridDim.x) * blockDim.x * N) {
        float v[N], part = 0.f;
        load(grad + i, v);
#pragma unroll
        for (int j = 0; j < N; j++) part = fmaf(v[j], v[j], part);
        sum += part;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void squares(const float* grad, int64_t count, double* partial) { add_squares<1>(grad, count, partial); }
extern "C" __global__ void squares_wide(const float* grad, int64_t count, double* partial) { add_squares<4>(grad, count, partial); }

extern "C" __global__ void __launch_bounds__(1024) total(const double* partial, int count, double* sum) {
    double mine = 0.;
    for (int i = threadIdx.x; i < count; i += blockDim.x) mine += partial[i];
    mine = block_sum(mine);
    if (threadIdx.x == 0) *sum = mine;
}

template <int N>
__device__ void update(float* param, const float* grad, float* first, float* second, bf16* copy, int64_t count, Hyper h,
                     const double* norm) {
    float scale = h.grad_scale;
    if (norm) {
        const double length = sqrt(*norm);
        if (!isfinite(length)) return;
        // The epsilon is torch.nn.utils.clip_grad_norm_'s.
        scale *= float(fmin(double(h.max_norm) / (length + 1e-6), 1.));
    }
    for (int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < count; i += int64_t(gridDim.x) * blockDim.x * N) {
        float p[N], g[N], m[N], v[N];
        load(param + i, p);
        load(grad + i, g);
        load(first + i, m);
        load(second + i, v);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float x = scale * g[j];
            m[j] = fmaf(h.beta1_rest, x - m[j], m[j]);
            v[j] = fmaf(1.f - h.beta2, x * x, h.beta2 * v[j]);
            p[j] = fmaf(-h.rate, m[j] / fmaf(sqrtf(v[j]), h.root, h.eps), h.decay * p[j]);
        }
        store(param + i, p);
        store(first + i, m);
        store(second + i, v);
        if (copy) store(copy + i, p);
    }
}

extern "C" __global__ void step(float* param, const float* grad, float* first, float* second, bf16* copy, int64_t count,
                                Hyper hyper, const double* norm) {
    update<1>(param, grad, first, second, copy, count, hyper, norm);
}
extern "C" __global__ void step_wide(float* param, const float* grad, float* first, float* second, bf16* copy,
                                     int64_t count, Hyper hyper, const double* norm) {
    update<4>(param, grad, first, second, copy, count, hyper, norm);
}
