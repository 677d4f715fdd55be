// Softmax cross-entropy of rows of logits, in place: the gradient takes the logits' place.
//
// Shapes: logits [rows, vocabulary]; targets, weights, losses, hits [rows]. A block takes a row. It reads it twice: once for
// the maximum and the sum of exponentials (each thread keeps a running pair, rescaled when its maximum grows), once to turn
// it into the gradient; the second time it comes from the L2 cache.
#include "common.cuh"

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;
constexpr uint32_t IGNORE = 0xffffffffu;

// The largest logit, its first place, and the sum of exp(logit - largest).
struct Softmax {
    float max, sum;
    int place;

    __device__ __forceinline__ void join(float other_max, float other_sum, int other_place) {
        if (other_max > max || (other_max == max && other_place < place)) place = other_place;
        const float top = fmaxf(max, other_max);
        // A thread without logits has a maximum of -inf and a sum of 0; a NaN is not 0 and stays.
        sum = (sum == 0.f ? 0.f : sum * exp2f((max - top) * LOG2E)) +
              (other_sum == 0.f ? 0.f : other_sum * exp2f((other_max - top) * LOG2E));
        max = top;
    }
};

template <typename T, int N>
__device__ Softmax softmax_of(const T* row, int vocabulary) {
    Softmax mine = {-INFINITY, 0.f, 0x7fffffff};
    for (int c = threadIdx.x * N; c < vocabulary; c += blockDim.x * N) {
        float v[N];
        load(row + c, v);
        // One rescaling for N logits.
        float top = v[0];
        int place = 0;
#pragma unroll
        for (int i = 1; i < N; i++)
            if (v[i] > top) top = v[i], place = i;
        if (top > mine.max) {
            mine.sum *= exp2f((mine.max - top) * LOG2E);
            mine.max = top;
            mine.place = c + place;
        }
#pragma unroll
        for (int i = 0; i < N; i++) mine.sum += exp2f((v[i] - mine.max) * LOG2E);
    }
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) {
        const float max = __shfl_xor_sync(0xffffffffu, mine.max, lane), sum = __shfl_xor_sync(0xffffffffu, mine.sum, lane);
        mine.join(max, sum, __shfl_xor_sync(0xffffffffu, mine.place, lane));
    }
    __shared__ Softmax all[32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) all[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = all[0];
    for (int i = 1; i < blockDim.x / 32; i++) mine.join(all[i].max, all[i].sum, all[i].place);
    return mine;
}

// losses receives weight * loss.
template <typename T, int N>
__device__ void gradient(Matrix<T> logits, const uint32_t* targets, const float* weights, float scale, float* losses,
                         int vocabulary) {
    T* row = logits.row(blockIdx.x);
    const uint32_t target = targets[blockIdx.x];
    const float weight = target == IGNORE ? 0.f : weights ? weights[blockIdx.x] : 1.f;
    if (weight == 0.f) {
        const float zeros[N] = {};
        for (int c = threadIdx.x * N; c < vocabulary; c += blockDim.x * N) store(row + c, zeros);
        if (threadIdx.x == 0) losses[blockIdx.x] = 0.f;
        return;
    }
    const float at_target = to_f32(row[target]);
    const Softmax softmax = softmax_of<T, N>(row, vocabulary);
    if (threadIdx.x == 0) losses[blockIdx.x] = weight * (log2f(softmax.sum) * LN2 + softmax.max - at_target);
    const float factor = scale * weight, over = factor / softmax.sum;
    for (int c = threadIdx.x * N; c < vocabulary; c += blockDim.x * N) {
        float v[N];
        load(row + c, v);
#pragma unroll
        for (int i = 0; i < N; i++) {
            v[i] = exp2f((v[i] - softmax.max) * LOG2E) * over;
            if (c + i == target) v[i] -= factor;
        }
        store(row + c, v);
    }
}

// losses is not weighted; hits: 1 where the target is the first of the largest logits.
template <typename T, int N>
__device__ void evaluate(Matrix<const T> logits, const uint32_t* targets, const float* weights, float* losses,
                         float* hits, int vocabulary) {
    const T* row = logits.row(blockIdx.x);
    const uint32_t target = targets[blockIdx.x];
    const bool counts = target != IGNORE && (!weights || weights[blockIdx.x] != 0.f);
    const Softmax softmax = softmax_of<T, N>(row, vocabulary);
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = counts ? log2f(softmax.sum) * LN2 + softmax.max - to_f32(row[target]) : 0.f;
        hits[blockIdx.x] = counts && softmax.place == int(target) ? 1.f : 0.f;
    }
}

// The sum of `count` values in double precision, in a fixed order, by one block of 1024.
extern "C" __global__ void __launch_bounds__(1024) total(const float* values, int count, double* sum) {
    double mine = 0.;
    for (int i = threadIdx.x; i < count; i += blockDim.x) mine += values[i];
    mine = block_sum(mine);
    if (threadIdx.x == 0) *sum = mine;
}

#define KERNELS(name, T, N)                                                                                             \
    extern "C" __global__ void __launch_bounds__(512) gradient_##name(                                                  \
        Matrix<T> logits, const uint32_t* targets, const float* weights, float scale, float* losses, int vocabulary) {  \
        gradient<T, N>(logits, targets, weights, scale, losses, vocabulary);                                            \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(512)                                                                   \
        evaluate_##name(Matrix<const T> logits, const uint32_t* targets, const float* weights, float* losses,           \
                        float* hits, int vocabulary) {                                                                  \
        evaluate<T, N>(logits, targets, weights, losses, hits, vocabulary);                                             \
    }
FORMS(KERNELS)
