// Eight-bit rows of a cache: see fp8/mod.rs. Elements are e4m3; a scale of 64 columns is a power of two, its byte the exponent
// plus 127.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

constexpr int SCALE_BLOCK = 64, LEAST_EXPONENT = -24, MOST_EXPONENT = 7;

// The least exponent of a power of two by which `most`, not negative, has to be divided to fit 448 = 1.75 * 2^8.
__device__ __forceinline__ int fitting_exponent(float most) {
    const uint32_t bits = __float_as_uint(most);
    return static_cast<int>(bits >> 23) - 127 - 8 + ((bits & 0x7fffffu) > 0x600000u ? 1 : 0);
}

// The exponent of the scale of a block whose largest absolute value is `most`.
__device__ __forceinline__ int scale_exponent(float most) { return min(max(fitting_exponent(most), LEAST_EXPONENT), MOST_EXPONENT); }

__device__ __forceinline__ float power_of_two(int exponent) { return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23); }

// The scales of two bytes as f16, which holds all that there are. That of a zero, which no scale is, is zero.
__device__ __forceinline__ __half2 half_powers_of_two(uint32_t first, uint32_t second) {
    return __floats2half2_rn(__uint_as_float(first << 23), __uint_as_float(second << 23));
}

// 8 elements, already divided by their scale.
__device__ __forceinline__ uint2 to_e4m3(const float (&x)[8]) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[i] = __nv_cvt_float2_to_fp8x2(make_float2(x[2 * i], x[2 * i + 1]), __NV_SATFINITE, __NV_E4M3);
    }
    return make_uint2(words[0] | words[1] << 16, words[2] | words[3] << 16);
}

// Two elements as f16, which holds all values of e4m3.
__device__ __forceinline__ __half2 from_e4m3(uint32_t pair) {
    const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
    return __half2(raw);
}

__device__ __forceinline__ float largest(const float (&x)[8]) {
    float most = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) most = fmaxf(most, fabsf(x[i]));
    return most;
}

// The largest that any of `lanes` lanes side by side has, a power of two of them.
__device__ __forceinline__ float largest_of(float most, int lanes) {
    uint32_t lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    const uint32_t group = ~0u >> (32 - lanes) << (lane & (32 - lanes));
    for (int step = 1; step < lanes; step *= 2) most = fmaxf(most, __shfl_xor_sync(group, most, step));
    return most;
}

// 8 elements of a block, and, by the first of the eight lanes side by side that have it, the exponent of its scale.
__device__ __forceinline__ void store_eight(const float (&x)[8], int exponent, uint8_t* values, uint8_t* scale) {
    uint32_t lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    const float inverse = power_of_two(-exponent);
    float scaled[8];
#pragma unroll
    for (int i = 0; i < 8; i++) scaled[i] = x[i] * inverse;
    *reinterpret_cast<uint2*>(values) = to_e4m3(scaled);
    if (lane % 8 == 0) *scale = static_cast<uint8_t>(exponent + 127);
}
