// Hopper's own instructions (sm_90a) under plain names: barriers in shared memory, the copy engine, warpgroup products.
//
// Shared-memory tiles hold 16-bit elements in columns of 64, one column of tiles after the other: [column][row][64], a row
// of a column being 128 bytes whose eight 16-byte units are permuted by the row's number (the copy engine's 128-byte
// swizzle). One such tile serves as a right factor in both directions: transposed, when its rows are the columns of the
// product (scores: rows are keys), and as it lies, when its rows are what is summed over (outputs: rows are values).

#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

namespace hopper {

using bf16 = __nv_bfloat16;
using f16 = __half;

template <class A, class B>
struct SameType {
    static constexpr bool value = false;
};
template <class A>
struct SameType<A, A> {
    static constexpr bool value = true;
};

// Elements of a tile's row; bytes of it.
constexpr int COLUMN = 64;
constexpr int ROW_BYTES = 128;

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- Barriers in shared memory, named by their shared address -------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Orders ordinary reads and writes before what the tensor cores or the copy engine do with that memory next: with shared
// memory, or with all, which takes longer.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void fence_async_everywhere() { asm volatile("fence.proxy.async;" ::: "memory"); }

// A barrier of some warps of the block; 0 is the one of __syncthreads.
__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- The copy engine ------------------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void copy_box(
    uint32_t to, const CUtensorMap* map, uint32_t barrier, int c0, int c1, int c2, int c3
) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}

__device__ __forceinline__ void copy_box(
    uint32_t to, const CUtensorMap* map, uint32_t barrier, int c0, int c1, int c2
) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}

__device__ __forceinline__ void copy_bytes(uint32_t to, const void* from, int bytes, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

// --- Overlap with the kernel before -----------------------------------------------------------------------------------

__device__ __forceinline__ void wait_for_previous_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_next_kernel_start() { asm volatile("griddepcontrol.launch_dependents;"); }

// --- Registers ------------------------------------------------------------------------------------------------------

template <int COUNT>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// --- Products of a warpgroup ----------------------------------------------------------------------------------------

// Where a factor lies in shared memory. Moving it by some bytes is an addition.
struct Factor {
    uint32_t low, high;

    __device__ __forceinline__ Factor moved(uint32_t bytes) const { return {low + (bytes >> 4), high}; }
};

// The same value in all lanes, known to be so: addresses from it need no vector registers.
__device__ __forceinline__ uint32_t uniform(uint32_t value) { return __shfl_sync(~0u, value, 0); }

// For products whose sum runs along the 64 columns of a tile (scores).
__device__ __forceinline__ Factor by_row(uint32_t address) { return {(address >> 4) | (1u << 16), 64u | (1u << 30)}; }

// For products whose sum runs down its rows (outputs); `column_bytes` from one column of tiles to the next.
__device__ __forceinline__ Factor by_column(uint32_t address, uint32_t column_bytes) {
    return {(address >> 4) | (column_bytes >> 4 << 16), 64u | (1u << 30)};
}

__device__ __forceinline__ void product_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `PENDING` committed groups of products are unfinished.
template <int PENDING>
__device__ __forceinline__ void product_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving reads and writes of accumulators across the products that own them.
template <int COUNT>
__device__ __forceinline__ void pin(float (&values)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(values[i])::"memory");
}

#define KF_F8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define KF_F32(d, i) KF_F8(d, i), KF_F8(d, i + 8), KF_F8(d, i + 16), KF_F8(d, i + 24)
#define KF_R16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define KF_R32 KF_R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define KF_R64 \
    KF_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define KF_R128 \
    KF_R64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
    "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
    "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define KF_ROWS(n, type, registers, a0, a1, b0, b1, p0, ...)                                                            \
    asm volatile("{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, " p0 ", 0;\nmov.b64 a, {" a0 ", " a1 "};\n"          \
                 "mov.b64 b, {" b0 ", " b1 "};\nwgmma.mma_async.sync.aligned.m64" n "k16.f32." type "." type             \
                 " {" registers "}, a, b, p, 1, 1, 0, 0;\n}\n"                                                          \
                 : __VA_ARGS__                                                                                          \
                 : "r"(a.low), "r"(a.high), "r"(b.low), "r"(b.high), "r"(static_cast<int>(add)))
#define KF_COLUMNS(n, type, registers, a4, b0, b1, ...)                                                                 \
    asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.eq.b32 p, 0, 0;\nmov.b64 b, {" b0 ", " b1 "};\n"                  \
                 "wgmma.mma_async.sync.aligned.m64" n "k16.f32." type "." type " {" registers "}, {" a4                  \
                 "}, b, p, 1, 1, 1;\n}\n"                                                                               \
                 : __VA_ARGS__                                                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "r"(b.high))

// out (+)= a * b^T, all from shared memory, 16 terms of the sum: out is 64 x (2 * COUNT). T is bf16 or f16.
template <class T = bf16, int COUNT>
__device__ __forceinline__ void product_rows(float (&d)[COUNT], Factor a, Factor b, bool add) {
    static_assert(COUNT == 16 || COUNT == 32 || COUNT == 64, "32, 64 or 128 keys");
    constexpr bool F16 = !SameType<T, bf16>::value;
#define KF_N16(type)                                                                                                    \
    KF_ROWS("n32", type, KF_R16, "%16", "%17", "%18", "%19", "%20", KF_F8(d, 0), KF_F8(d, 8))
#define KF_N32(type) KF_ROWS("n64", type, KF_R32, "%32", "%33", "%34", "%35", "%36", KF_F32(d, 0))
#define KF_N64(type) KF_ROWS("n128", type, KF_R64, "%64", "%65", "%66", "%67", "%68", KF_F32(d, 0), KF_F32(d, 32))
    if constexpr (COUNT == 16 && F16) KF_N16("f16");
    else if constexpr (COUNT == 16) KF_N16("bf16");
    else if constexpr (COUNT == 32 && F16) KF_N32("f16");
    else if constexpr (COUNT == 32) KF_N32("bf16");
    else if constexpr (F16) KF_N64("f16");
    else KF_N64("bf16");
#undef KF_N16
#undef KF_N32
#undef KF_N64
}

// out += a * b: a from registers, b from shared memory, 16 terms of the sum: out is 64 x (2 * COUNT). T is bf16 or f16.
template <class T = bf16, int COUNT>
__device__ __forceinline__ void product_columns(float (&d)[COUNT], const uint32_t (&a)[4], Factor b) {
    static_assert(COUNT == 32 || COUNT == 64 || COUNT == 128, "64, 128 or 256 channels");
    constexpr bool F16 = !SameType<T, bf16>::value;
#define KF_N32(type) KF_COLUMNS("n64", type, KF_R32, "%32,%33,%34,%35", "%36", "%37", KF_F32(d, 0))
#define KF_N64(type) KF_COLUMNS("n128", type, KF_R64, "%64,%65,%66,%67", "%68", "%69", KF_F32(d, 0), KF_F32(d, 32))
#define KF_N128(type)                                                                                                   \
    KF_COLUMNS("n256", type, KF_R128, "%128,%129,%130,%131", "%132", "%133", KF_F32(d, 0), KF_F32(d, 32), KF_F32(d, 64), \
               KF_F32(d, 96))
    if constexpr (COUNT == 32 && F16) KF_N32("f16");
    else if constexpr (COUNT == 32) KF_N32("bf16");
    else if constexpr (COUNT == 64 && F16) KF_N64("f16");
    else if constexpr (COUNT == 64) KF_N64("bf16");
    else if constexpr (F16) KF_N128("f16");
    else KF_N128("bf16");
#undef KF_N32
#undef KF_N64
#undef KF_N128
}

#undef KF_F8
#undef KF_F32
#undef KF_R16
#undef KF_R32
#undef KF_R64
#undef KF_R128
#undef KF_ROWS
#undef KF_COLUMNS

// Two values of type T side by side.
template <class T = bf16>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    if constexpr (SameType<T, bf16>::value) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return reinterpret_cast<const uint32_t&>(pair);
    } else {
        const __half2 pair = __floats2half2_rn(low, high);
        return reinterpret_cast<const uint32_t&>(pair);
    }
}
template <class T>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
    if constexpr (SameType<T, bf16>::value) {
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u));
    } else {
        return __half22float2(reinterpret_cast<const __half2&>(pair));
    }
}

// The two halves of a word, as `pack` has them.
__device__ __forceinline__ float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

// Four 8 x 8 blocks of 16-bit elements, turned: lane l tells where row l % 8 of block l / 8 lies and gets of each block the
// rows 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
__device__ __forceinline__ void load_turned(uint32_t (&to)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace hopper
