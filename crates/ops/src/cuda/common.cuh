// What the kernels share: matrices of token rows, vectors of elements, sums over warps and blocks.
//
// A kernel's arguments are passed as the host lays them out (crates/ops/src/cuda/launch.rs): `Matrix` is an address and a
// stride in elements. Offsets into matrices are 64 bits wide, sizes 32.
#pragma once
#include <cuda_bf16.h>
#include <cstdint>

using bf16 = __nv_bfloat16;

// Element (r, c) lies at data[r * stride + c].
template <typename T>
struct Matrix {
    T* data;
    int64_t stride;

    __device__ __forceinline__ T* row(int64_t r) const { return data + r * stride; }
};

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
template <typename T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }

// N adjacent elements, moved by one instruction where they fill 4, 8 or 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T v[N];
};

// Elements of a 16-byte access.
template <typename T>
constexpr int WIDE = 16 / sizeof(T);

template <typename T, int N>
__device__ __forceinline__ void load(const T* from, float (&to)[N]) {
    // 16 bytes at most per instruction.
    constexpr int STEP = N * sizeof(T) > 16 ? 16 / sizeof(T) : N;
#pragma unroll
    for (int i = 0; i < N; i += STEP) {
        const Pack<T, STEP> pack = *reinterpret_cast<const Pack<T, STEP>*>(from + i);
#pragma unroll
        for (int j = 0; j < STEP; j++) to[i + j] = to_f32(pack.v[j]);
    }
}

template <typename T, int N>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
    constexpr int STEP = N * sizeof(T) > 16 ? 16 / sizeof(T) : N;
#pragma unroll
    for (int i = 0; i < N; i += STEP) {
        Pack<T, STEP> pack;
#pragma unroll
        for (int j = 0; j < STEP; j++) pack.v[j] = from_f32<T>(from[i + j]);
        *reinterpret_cast<Pack<T, STEP>*>(to + i) = pack;
    }
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// The sum over a block of up to 32 whole warps, for every thread of it.
template <typename F>
__device__ __forceinline__ F block_sum(F x) {
    __shared__ F partial[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? partial[lane] : F(0));
}

// The four forms of an elementwise kernel: element type, and elements of one access.
// `FORMS(body)` makes body_f32, body_f32_wide, body_bf16, body_bf16_wide from a macro body(name, T, N).
#define FORMS(body)          \
    body(f32, float, 1)      \
    body(f32_wide, float, 4) \
    body(bf16, bf16, 1)      \
    body(bf16_wide, bf16, 8)

// A kernel that is launched early (`Launch::early`) runs while the one before it ends: before it reads or writes anything that
// another kernel does, it waits for that to be done. One that lets the next start says so as soon as it likes: the next waits
// for its end all the same, but is on the multiprocessors by then.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Rows of a block whose threads are laid out (x: columns, y: rows); see `Launch::rows`.
#define FOR_ROWS(r, rows) \
    for (int r = blockIdx.x * blockDim.y + threadIdx.y; r < (rows); r += gridDim.x * blockDim.y)
// Columns shared by the blocks of a row; see `Launch::spread`.
#define FOR_COLS_SPREAD(c, cols, N)                                                      \
    for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * (N); c < (cols); c += gridDim.y * blockDim.x * (N))
#define FOR_COLS(c, cols, N) for (int c = threadIdx.x * (N); c < (cols); c += blockDim.x * (N))
