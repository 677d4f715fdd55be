// Hopper's matrix unit (wgmma): four warps multiply 64 rows at once, from shared memory, while they do something else.
//
// A tile is ROWS rows in blocks of 64 columns, each block ROWS x 128 bytes: chunk c (8 elements) of row r lies in block c / 8,
// at chunk place c ^ (r % 8). That is the layout "128-byte swizzle" of the PTX ISA ("Matrix descriptor"), whose atoms are
// 8 rows: tiles begin at multiples of 1024 bytes. A tile can be read with its rows as the matrix's (columns are the summed
// dimension), or transposed (rows are the summed dimension). The 16 summed columns after those at hand are 32 bytes on
// within a block, the 16 summed rows 2048 bytes on.
//
// Accumulators d[n][.] are those of mma.sync's 16 x 8 products, warp w of the four having rows 16 w .. + 15. Products run
// until `wgmma_wait`; `settle` keeps the compiler from touching accumulators before.
#pragma once
#include "mma.cuh"

template <int ROWS>
__device__ __forceinline__ uint32_t at_blocked(int row, int chunk) {
    return uint32_t(chunk / 8 * ROWS * 128 + row * 128 + ((chunk ^ row) & 7) * 16);
}

// Where a factor lies in shared memory; `blocks`: bytes from a block of 64 columns to the next, for tiles read transposed. Moving it
// by some bytes changes one half.
struct Factor {
    uint32_t low, high;

    __device__ __forceinline__ Factor(uint32_t address, uint32_t blocks = 0)
        : low((address & 0x3ffff) >> 4 | blocks >> 4 << 16), high(1024 >> 4 | 1 << 30) {}
    __device__ __forceinline__ Factor moved(uint32_t bytes) const {
        Factor there = *this;
        there.low += bytes >> 4;
        return there;
    }
    __device__ __forceinline__ operator uint64_t() const { return uint64_t(high) << 32 | low; }
};

// The same value in all lanes, known to be so: addresses from it need no vector registers.
__device__ __forceinline__ uint32_t uniform(uint32_t value) { return __shfl_sync(~0u, value, 0); }

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
// The number of the thread's warpgroup, known to be the same for the whole warp: descriptors are computed once for all.
__device__ __forceinline__ int warpgroup() { return __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); }

template <int COUNT>
__device__ __forceinline__ void settle(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
__device__ __forceinline__ void settle(float (&d)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) asm volatile("" : "+f"(d[i][j])::"memory");
}

// d (+)= a b for 64 x 16 by 16 x N; a and b described, or a in registers; added to d unless `add` is 0. T is bf16 or f16; d has
// half of N values a thread.
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define R4 "%0, %1, %2, %3"
#define R8 R4 ", %4, %5, %6, %7"
#define R16 R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define R32 R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define R40 R32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define R48 R40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define R64 R48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define R128 \
    R64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// The numbers of the operands behind those of d.
#define DESCRIBED(n, type, registers, a_at, b_at, add_at, ta_at, tb_at, ...)                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_at ", 0;\nwgmma.mma_async.sync.aligned.m64" n "k16.f32." type   \
                 "." type " {" registers "}, " a_at ", " b_at ", p, 1, 1, " ta_at ", " tb_at ";\n}\n"                      \
                 : __VA_ARGS__                                                                                           \
                 : "l"(a), "l"(b), "r"(add), "n"(TRANSPOSE_A), "n"(TRANSPOSE_B))
#define FROM_REGISTERS(n, type, registers, a_at, b_at, add_at, tb_at, ...)                                                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_at ", 0;\nwgmma.mma_async.sync.aligned.m64" n "k16.f32." type   \
                 "." type " {" registers "}, {" a_at "}, " b_at ", p, 1, 1, " tb_at ";\n}\n"                              \
                 : __VA_ARGS__                                                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSE_B))

template <int TRANSPOSE_A, int TRANSPOSE_B, class T = bf16, int COUNT>
__device__ __forceinline__ void wgmma(float (&d)[COUNT], uint64_t a, uint64_t b, int add) {
    static_assert(COUNT == 4 || COUNT == 8 || COUNT == 16 || COUNT == 32 || COUNT == 40 || COUNT == 48 || COUNT == 64, "products of other widths");
    constexpr bool F16 = !IsBf16<T>::value;
    if constexpr (COUNT == 4) DESCRIBED("n8", "bf16", R4, "%4", "%5", "%6", "%7", "%8", D4(0));
    else if constexpr (COUNT == 8) DESCRIBED("n16", "bf16", R8, "%8", "%9", "%10", "%11", "%12", D4(0), D4(4));
    else if constexpr (COUNT == 16 && F16) DESCRIBED("n32", "f16", R16, "%16", "%17", "%18", "%19", "%20", D16(0));
    else if constexpr (COUNT == 16) DESCRIBED("n32", "bf16", R16, "%16", "%17", "%18", "%19", "%20", D16(0));
    else if constexpr (COUNT == 32 && F16) DESCRIBED("n64", "f16", R32, "%32", "%33", "%34", "%35", "%36", D16(0), D16(16));
    else if constexpr (COUNT == 32) DESCRIBED("n64", "bf16", R32, "%32", "%33", "%34", "%35", "%36", D16(0), D16(16));
    else if constexpr (COUNT == 40) DESCRIBED("n80", "bf16", R40, "%40", "%41", "%42", "%43", "%44", D16(0), D16(16), D4(32), D4(36));
    else if constexpr (COUNT == 48) DESCRIBED("n96", "bf16", R48, "%48", "%49", "%50", "%51", "%52", D16(0), D16(16), D16(32));
    else if constexpr (COUNT == 64 && F16) DESCRIBED("n128", "f16", R64, "%64", "%65", "%66", "%67", "%68", D16(0), D16(16), D16(32), D16(48));
    else if constexpr (COUNT == 64) DESCRIBED("n128", "bf16", R64, "%64", "%65", "%66", "%67", "%68", D16(0), D16(16), D16(32), D16(48));
}

template <int TRANSPOSE_B, class T = bf16, int COUNT>
__device__ __forceinline__ void wgmma(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b, int add) {
    static_assert(COUNT == 32 || COUNT == 64 || COUNT == 128, "products of other widths");
    constexpr bool F16 = !IsBf16<T>::value;
    if constexpr (COUNT == 32 && F16) FROM_REGISTERS("n64", "f16", R32, "%32, %33, %34, %35", "%36", "%37", "%38", D16(0), D16(16));
    else if constexpr (COUNT == 32) FROM_REGISTERS("n64", "bf16", R32, "%32, %33, %34, %35", "%36", "%37", "%38", D16(0), D16(16));
    else if constexpr (COUNT == 64 && F16) FROM_REGISTERS("n128", "f16", R64, "%64, %65, %66, %67", "%68", "%69", "%70", D16(0), D16(16), D16(32), D16(48));
    else if constexpr (COUNT == 64) FROM_REGISTERS("n128", "bf16", R64, "%64, %65, %66, %67", "%68", "%69", "%70", D16(0), D16(16), D16(32), D16(48));
    else if constexpr (COUNT == 128 && F16) FROM_REGISTERS("n256", "f16", R128, "%128, %129, %130, %131", "%132", "%133", "%134", D16(0), D16(16), D16(32), D16(48), D16(64), D16(80), D16(96), D16(112));
    else if constexpr (COUNT == 128) FROM_REGISTERS("n256", "bf16", R128, "%128, %129, %130, %131", "%132", "%133", "%134", D16(0), D16(16), D16(32), D16(48), D16(64), D16(80), D16(96), D16(112));
}

// Of e4m3, whose 64 x 32 are a product's: a in registers, b described with rows as the matrix's.
__device__ __forceinline__ void wgmma_e4m3(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" R32
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1;\n}\n"
                 : D16(0), D16(16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

// Added to d; both described.
__device__ __forceinline__ void wgmma_e4m3(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" R32
                 "}, %32, %33, p, 1, 1;\n}\n"
                 : D16(0), D16(16)
                 : "l"(a), "l"(b));
}

// The same for accumulators by eight columns.
template <int TRANSPOSE_A, int TRANSPOSE_B, int N>
__device__ __forceinline__ void wgmma(float (&d)[N][4], uint64_t a, uint64_t b, int add) {
    wgmma<TRANSPOSE_A, TRANSPOSE_B>(reinterpret_cast<float(&)[4 * N]>(d), a, b, add);
}
template <int TRANSPOSE_B, int N>
__device__ __forceinline__ void wgmma(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b, int add) {
    wgmma<TRANSPOSE_B>(reinterpret_cast<float(&)[4 * N]>(d), a, b, add);
}
#undef D4
#undef D16
#undef R4
#undef R8
#undef R16
#undef R32
#undef R40
#undef R48
#undef R64
#undef R128
#undef DESCRIBED
#undef FROM_REGISTERS
