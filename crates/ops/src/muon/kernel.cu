// The elementwise passes of Muon: momentum before the orthogonalisation, the update after it.
//
// All are vectors of `count` elements. The matrices that are multiplied in between are bf16, as in Muon's own code.
#include "common.cuh"

#define FOR_ALL(i, count) \
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < (count); i += int64_t(gridDim.x) * blockDim.x)

// m += gain (g - m), update = (1 - momentum) g + momentum m
extern "C" __global__ void momentum(const float* grad, float* m, float* update, float grad_scale, float gain, float momentum,
                                    int64_t count) {
    FOR_ALL(i, count) {
        const float g = grad_scale * grad[i], mean = fmaf(gain, g - m[i], m[i]);
        m[i] = mean;
        update[i] = fmaf(momentum, mean - g, g);
    }
}

// out = x / (sqrt(squares) + eps)
extern "C" __global__ void normalise(const float* x, const double* squares, double eps, bf16* out, int64_t count) {
    const float factor = float(1. / (sqrt(*squares) + eps));
    FOR_ALL(i, count) out[i] = __float2bfloat16_rn(factor * x[i]);
}

// param = keep param - rate update
extern "C" __global__ void apply(float* param, const bf16* update, float keep, float rate, int64_t count) {
    FOR_ALL(i, count) param[i] = fmaf(-rate, __bfloat162float(update[i]), keep * param[i]);
}
