// Hopper's own instructions (sm_90a) under plain names: barriers in shared memory, the copy engine, early starts, registers; and
// values of 16 bits. Products of its matrix unit are in wgmma.cuh.

#pragma once

#include "mma.cuh"

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// Elements of a tile's row; bytes of it.
constexpr int COLUMN = 64;
constexpr int ROW_BYTES = 128;

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

// Waits until the phase of a parity is over; what that makes visible is what this block has written (`barrier_wait`), or all
// blocks of its cluster.
#define BARRIER_WAIT(name, visible)                                                                       \
    __device__ __forceinline__ void name(uint32_t barrier, uint32_t parity) {                             \
        asm volatile(                                                                                     \
            "{\n"                                                                                         \
            ".reg .pred done;\n"                                                                          \
            "again:\n"                                                                                    \
            "mbarrier.try_wait.parity" visible ".shared::cta.b64 done, [%0], %1;\n"                       \
            "@!done bra again;\n"                                                                         \
            "}\n" ::"r"(barrier),                                                                         \
            "r"(parity)                                                                                   \
            : "memory");                                                                                  \
    }
BARRIER_WAIT(barrier_wait, "")
BARRIER_WAIT(barrier_wait_cluster, ".acquire.cluster")

// Whether the phase of a parity is over; if it is, what `barrier_wait` makes visible is.
__device__ __forceinline__ bool barrier_passed(uint32_t barrier, uint32_t parity) {
    uint32_t passed;
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}\n"
        : "=r"(passed)
        : "r"(barrier), "r"(parity)
        : "memory");
    return passed;
}

// Orders ordinary reads and writes of shared memory before what the tensor cores or the copy engine do with it next.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of some warps of the block; 0 is the one of __syncthreads.
__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The same, and whether any of them says so.
__device__ __forceinline__ bool named_barrier_any(int id, int threads, bool says) {
    uint32_t any;
    asm volatile(
        "{\n"
        ".reg .pred mine, all;\n"
        "setp.ne.u32 mine, %1, 0;\n"
        "bar.red.or.pred all, %2, %3, mine;\n"
        "selp.u32 %0, 1, 0, all;\n"
        "}\n"
        : "=r"(any)
        : "r"(static_cast<uint32_t>(says)), "r"(id), "r"(threads)
        : "memory");
    return any;
}

// Four 8 x 8 of 16 bits, of each a lane has two neighbours, to rows of 16 bytes: lane l says where row l % 8 of number l / 8 goes.
__device__ __forceinline__ void stmatrix(uint32_t address, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
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

// With a policy for the L2 cache: `read_once`, `read_again`.
__device__ __forceinline__ void copy_box(
    uint32_t to, const CUtensorMap* map, uint32_t barrier, int c0, int c1, int c2, int c3, uint64_t policy
) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy)
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

// Bytes as they lie, a multiple of 16 from a multiple of 16 on.
__device__ __forceinline__ void copy_bytes(uint32_t to, const void* from, int bytes, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

// For what is read once: it does not displace the rest of the L2 cache.
__device__ __forceinline__ uint64_t read_once() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// For all else.
__device__ __forceinline__ uint64_t read_again() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// --- Registers ------------------------------------------------------------------------------------------------------

template <int COUNT>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
