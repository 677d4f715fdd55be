// What the kernels for few rows have in common: what becomes of a product.
#pragma once
#include "common.cuh"

// `Product` in product.rs is the same struct.
struct Product {
    void* out;
    int64_t out_stride;
    const float* bias;   // [out], or none
    const float* gain;   // [in]: normalises x; or none
    float eps;
    int tokens;
    int in;
    int out_width;       // rows of w, or half of them where they are gated
    int accumulate;
    int out_f32;
    int activation;      // -1: none; 0: SiLU, 1: GELU (tanh)
    int wide;            // rows of out begin at multiples of 16 bytes
};

// 0: SiLU, 1: GELU (tanh).
__device__ __forceinline__ float activate(int activation, float x) {
    const float g = activation == 0 ? x : 1.5957691216057307f * x * fmaf(0.044715f * x, x, 1.f);
    return x / (1.f + __expf(-g));
}
