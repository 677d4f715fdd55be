// Tiles in shared memory and the bf16 matrix unit, as every GPU from Ampere on has it (mma.sync m16n8k16).
//
// A tile is rows of COLS bf16 elements (a multiple of 64) without gaps, in chunks of 8 elements. Chunk c of row r lies at
// chunk place c ^ (r % 8) of its group of 8, so that the 8 rows that one ldmatrix phase reads lie in different banks.
//
// Fragments of one m16n8k16 product, by lane l of a warp (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//   A (16 x 16): a[0] row l/4, a[1] row l/4 + 8, a[2] and a[3] the same 8 columns on; columns 2 (l%4), + 1
//   B (16 x 8):  b[0] column l/4, rows 2 (l%4), + 1; b[1] the same 8 rows on
//   C (16 x 8):  c[0], c[1] row l/4, columns 2 (l%4), + 1; c[2], c[3] the same 8 rows on
#pragma once
#include "common.cuh"

#include <cuda_fp16.h>

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// 16 bytes at a shared address.
__device__ __forceinline__ uint4 load_shared(uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}
__device__ __forceinline__ void store_shared(uint32_t address, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// 16 bytes from global to shared memory, or zeros.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool real) {
    const int bytes = real ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int LEFT>
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT)); }

// Byte offset of chunk `chunk` of row `row`.
template <int COLS>
__device__ __forceinline__ uint32_t at(int row, int chunk) {
    return uint32_t(row * COLS + ((chunk & ~7) | ((chunk ^ row) & 7)) * 8) * 2;
}

__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
__device__ __forceinline__ void ldmatrix_t(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}

// A (rows row.. + 15, columns 16 k.. + 15) of a tile.
template <int COLS>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t tile, int row, int k) {
    const int l = threadIdx.x % 32;
    ldmatrix(a, tile + at<COLS>(row + l % 16, 2 * k + l / 16));
}
// A as the transpose of a tile: its rows are the tile's columns 16 m.. + 15, its columns the tile's rows k.. + 15.
template <int COLS>
__device__ __forceinline__ void load_a_t(uint32_t (&a)[4], uint32_t tile, int m, int k) {
    const int l = threadIdx.x % 32;
    ldmatrix_t(a, tile + at<COLS>(k + l / 16 * 8 + l % 8, 2 * m + l / 8 % 2));
}
// Two B's side by side whose columns are the tile's rows n.. + 15, and whose rows its columns 16 k.. + 15.
template <int COLS>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], uint32_t tile, int n, int k) {
    const int l = threadIdx.x % 32;
    ldmatrix(b, tile + at<COLS>(n + l / 16 * 8 + l % 8, 2 * k + l / 8 % 2));
}
// Two B's side by side that are rows k.. + 15 and columns 16 n.. + 15 of the tile.
template <int COLS>
__device__ __forceinline__ void load_b_t(uint32_t (&b)[4], uint32_t tile, int n, int k) {
    const int l = threadIdx.x % 32;
    ldmatrix_t(b, tile + at<COLS>(k + l % 16, 2 * n + l / 16));
}

// c += a b
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(both);
}

using f16 = __half;

template <class T>
struct IsBf16 {
    static constexpr bool value = false;
};
template <>
struct IsBf16<bf16> {
    static constexpr bool value = true;
};

// Two values of type T side by side, and back.
template <class T>
__device__ __forceinline__ uint32_t pack_as(float low, float high) {
    if constexpr (IsBf16<T>::value) {
        return pack(low, high);
    } else {
        const __half2 both = __floats2half2_rn(low, high);
        return reinterpret_cast<const uint32_t&>(both);
    }
}
__device__ __forceinline__ float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
template <class T>
__device__ __forceinline__ float2 unpack_as(uint32_t pair) {
    if constexpr (IsBf16<T>::value) return make_float2(low_half(pair), high_half(pair));
    else return __half22float2(reinterpret_cast<const __half2&>(pair));
}

// Of two values of type T side by side: a * b, a * b + c and, below, a * b - c, rounded once.
template <class T>
__device__ __forceinline__ uint32_t multiply_as(uint32_t a, uint32_t b) {
    uint32_t d;
    if constexpr (IsBf16<T>::value) asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    else asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
template <class T>
__device__ __forceinline__ uint32_t add_product_as(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    if constexpr (IsBf16<T>::value) asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    else asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
// PTX's fma.bf16x2 takes no sign of c, the machine's does: without `.rn` ptxas may make one instruction of product and difference, and
// does.
template <class T>
__device__ __forceinline__ uint32_t subtract_from_product_as(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    if constexpr (IsBf16<T>::value) {
        asm("{.reg .b32 t; mul.bf16x2 t, %1, %2; sub.bf16x2 %0, t, %3;}" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    } else {
        asm("{.reg .b32 t; neg.f16x2 t, %3; fma.rn.f16x2 %0, %1, %2, t;}" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    }
    return d;
}

// 2^x by the special function unit.
__device__ __forceinline__ float power2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Adds four values to adjacent f32 in global memory.
__device__ __forceinline__ void add_atomically(float* to, const float (&v)[4]) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
                 : "memory");
#else
#pragma unroll
    for (int i = 0; i < 4; i++) atomicAdd(to + i, v[i]);
#endif
}
