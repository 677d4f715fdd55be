// The activations of gated MLPs.
#pragma once
#include "common.cuh"

// 0: SiLU, 1: GELU (tanh).
__device__ __forceinline__ float activate(int activation, float x) {
    const float g = activation == 0 ? x : 1.5957691216057307f * x * fmaf(0.044715f * x, x, 1.f);
    return x / (1.f + __expf(-g));
}
