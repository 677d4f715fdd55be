// Attention of a few new tokens per sequence over a paged cache: decoding at the speed of memory on Hopper (sm_90a).
//
// Purpose. Many query heads look at few wide rows (MFA: 64 heads x 256 on one; absorbed MLA: on one of 576), so a step of
// decoding is one read of the cache. 64 heads do 64 multiply-adds per byte read, a quarter of what the tensor cores could
// do in that time (half, when keys and values are the same bytes): the kernel is built to keep loads in flight and to
// hide everything else under them.
//
// Shapes. q [sequences * tokens, heads, d], cache planes [pages, page, kv heads, d or e] with any strides, page table
// [sequences, pages of a sequence], lengths [sequences] with the new tokens counted, out [sequences * tokens, heads, e],
// lse [sequences * tokens, heads]. Token t of T sees the first length - T + t + 1 keys, or the last `window` of these.
//
// Work. Heads of one kv head and tokens are packed into blocks of 64 rows. A task is a sequence and a kv head; the plan
// (plan.cuh) cuts the tiles of all tasks into equal shares, one per CTA or cluster of CTAs. A task that lies in one share is written out at
// once. CTAs that share a task add up their parts (finish.cuh): those of a cluster in each other's shared memory, clusters and
// lone CTAs through the L2 cache, where they wait for each other. All of them run at once: there are no more than find room,
// and the next kernel may only start when they have.
//
// Pipeline. One CTA per multiprocessor. One warp has the copy engine fill a ring of slots, a page (or the part of it that
// is in the tile) at a time; another fetches the queries of the next item. A warpgroup per row block starts S = Q K^T of a
// tile and O += P V of the tile before it, and turns S into weights P while the latter runs. S, P and O stay in
// registers. A slot is free again as soon as the product that read it is done.
// With 8 bits (FP8) tiles come into a ring of their own, and a warpgroup makes them f16 in the slots: exactly, scales included.
// Queries and weights are f16 then. Heads of 256 channels are multiplied as they lie there (DIRECT, direct.cuh).
// With keys as values (SHARED) a tile is read once and serves both products. With ROTATE one more warpgroup writes a
// rotated copy of each tile for the scores while the copy engine fills later slots.
//
// With factors (FACTORS: tensor-product attention, arXiv 2501.06425) a key is a sum of R terms a[r, head] b[r], and so is a
// value; rows b are shared by all heads. A row of a tile is a b, so a key has R rows (1, 2 or 4); behind its channels lie its
// factors a for the 64 heads of each row block, as more columns. Scores of rows times a are added up to those of keys, weights
// times a are those of rows. Each of a key's R columns holds its weight, so the weights' sum is R times too large: that is the
// 1 / R of the values.
//
// Early start. The kernel before this one may still run when it begins (programmatic dependent launch): what it makes are the
// queries and the last few rows of each sequence (RECENT), so that older tiles are asked for without waiting for it.
//
// Rows of a tile at or past the length, or before all windows, may hold anything, NaN included: scores there are replaced,
// value rows zeroed.

#include "advance.cuh"
#include "compute.cuh"
#include "convert.cuh"
#include "direct.cuh"
#include "finish.cuh"
#include "load.cuh"
#include "plan.cuh"
#include "rotate.cuh"

namespace paged {

// From what all threads start with.
template <class S, int COUNT>
__device__ __forceinline__ void set_registers() {
    if constexpr (S::BUDGETED && COUNT > S::BEGINNING) take_registers<COUNT>();
    if constexpr (S::BUDGETED && COUNT < S::BEGINNING) give_registers<COUNT>();
}

template <class S>
__device__ __forceinline__ void
run(const CUtensorMap* q_map, const CUtensorMap* k_map, const CUtensorMap* v_map, const Params& p,
    const CUtensorMap* k_factors = nullptr, const CUtensorMap* v_factors = nullptr) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const Kernel<S> kernel(p, shared_address(memory));
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), group = warp / 4;
    if (threadIdx.x == 0) kernel.prepare();
    if (S::ROTATE && 2 * p.pairs < S::D) {
        // Channels past the pairs stay zero.
        for (int i = threadIdx.x; i < S::ROTATED * S::SLOT_BYTES / 16; i += S::THREADS) {
            uint4* to = reinterpret_cast<uint4*>(memory + S::ROW_GROUPS * S::Q_BYTES + S::SLOTS * S::SLOT_BYTES);
            to[i] = make_uint4(0, 0, 0, 0);
        }
        fence_async();
    }
    __syncthreads();
    // Those that compute wait until all barriers of the cluster can be used.
    if (p.cluster > 1) cluster_arrive();
    if (group == S::GROUPS) {
        set_registers<S, S::LOADING>();
        if (warp % 4 == 0) {
            if (threadIdx.x % 32 == 0) prefetch_map(q_map), prefetch_map(k_map), prefetch_map(v_map);
            kernel.load_tiles(k_map, v_map, k_factors, v_factors);
        } else if (warp % 4 == 1 && threadIdx.x % 32 == 0) {
            kernel.load_all_queries(q_map);
        }
        if constexpr (S::CROWDED) {
            if (warp % 4 >= 2) kernel.convert_tiles(memory, threadIdx.x % S::CONVERTING_THREADS);
        }
    } else if (group > S::GROUPS) {
        set_registers<S, S::CONVERTING>();
        if constexpr (S::ROTATE) kernel.rotate_tiles(memory);
        else if constexpr (S::FP8) kernel.convert_tiles(memory, threadIdx.x % S::CONVERTING_THREADS);
    } else {
        set_registers<S, S::COMPUTING>();
        wait_for_previous_kernel();
        if constexpr (S::DIRECT) kernel.compute_direct(memory);
        else kernel.compute(memory);
    }
}

}  // namespace paged

// Only Hopper's own target has these instructions; elsewhere the kernels exist and are never launched.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define PAGED_RUN(...) paged::run<paged::Shape<__VA_ARGS__>>(&q, &k, &v, params);
#define PAGED_RUN_FACTORS(...) paged::run<paged::Shape<__VA_ARGS__>>(&q, &k, &v, params, &k_factors, &v_factors);
#else
#define PAGED_RUN(...)
#define PAGED_RUN_FACTORS(...)
#endif

#define PAGED_ATTENTION(name, ...)                                                                                      \
    extern "C" __global__ void __launch_bounds__(paged::Shape<__VA_ARGS__>::THREADS, 1) name(                          \
        const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,                                  \
        const __grid_constant__ CUtensorMap v, const __grid_constant__ paged::Params params                            \
    ) {                                                                                                                 \
        PAGED_RUN(__VA_ARGS__)                                                                                         \
    }

#define PAGED_FACTORS(name, ...)                                                                                        \
    extern "C" __global__ void __launch_bounds__(paged::Shape<__VA_ARGS__>::THREADS, 1) name(                          \
        const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,                                  \
        const __grid_constant__ CUtensorMap v, const __grid_constant__ paged::Params params,                           \
        const __grid_constant__ CUtensorMap k_factors, const __grid_constant__ CUtensorMap v_factors                   \
    ) {                                                                                                                 \
        PAGED_RUN_FACTORS(__VA_ARGS__)                                                                                 \
    }

// Name: channels of a key, of a value; keys a tile, values among keys, rotation, row blocks a CTA, parts of the values; slots
// for tiles in 8 bits, or factors, or tiles in 8 bits as they are.
PAGED_ATTENTION(paged_attention_64, 64, 64, 128, false, false, 1, 1)
PAGED_ATTENTION(paged_attention_64_shared, 64, 64, 128, true, false, 1, 1)
PAGED_ATTENTION(paged_attention_128, 128, 128, 128, false, false, 1, 1)
PAGED_ATTENTION(paged_attention_128_shared, 128, 128, 128, true, false, 1, 1)
PAGED_ATTENTION(paged_attention_128_rotate, 128, 128, 128, true, true, 1, 1)
PAGED_ATTENTION(paged_attention_256, 256, 256, 64, false, false, 1, 1)
PAGED_ATTENTION(paged_attention_256_shared, 256, 256, 64, true, false, 1, 1)
PAGED_ATTENTION(paged_attention_256_rotate, 256, 256, 64, true, true, 1, 1)
PAGED_ATTENTION(paged_attention_256_rows, 256, 256, 64, false, false, 2, 1)
PAGED_ATTENTION(paged_attention_256_shared_rows, 256, 256, 64, true, false, 2, 1)
PAGED_ATTENTION(paged_attention_576_shared, 576, 512, 64, true, false, 1, 2)
PAGED_ATTENTION(paged_attention_128_fp8, 128, 128, 128, false, false, 1, 1, 5)
PAGED_ATTENTION(paged_attention_128_shared_fp8, 128, 128, 128, true, false, 1, 1, 5)
PAGED_ATTENTION(paged_attention_128_rotate_fp8, 128, 128, 128, true, true, 1, 1, 3)
PAGED_ATTENTION(paged_attention_256_fp8, 256, 256, 64, false, false, 1, 1, 4)
PAGED_ATTENTION(paged_attention_256_shared_fp8, 256, 256, 64, true, false, 1, 1, 4)
PAGED_ATTENTION(paged_attention_256_rotate_fp8, 256, 256, 64, true, true, 1, 1, 2)
PAGED_ATTENTION(paged_attention_576_shared_fp8, 576, 512, 32, true, false, 1, 2, 4)
PAGED_ATTENTION(paged_attention_256_direct, 256, 256, 128, false, false, 1, 2, 0, false, true)
PAGED_ATTENTION(paged_attention_256_shared_direct, 256, 256, 128, true, false, 1, 2, 0, false, true)
PAGED_FACTORS(paged_attention_64_factors, 64, 64, 128, false, false, 1, 1, 0, true)
PAGED_FACTORS(paged_attention_128_factors, 128, 128, 64, false, false, 1, 1, 0, true)
PAGED_FACTORS(paged_attention_64_factors_rows, 64, 64, 64, false, false, 2, 1, 0, true)
PAGED_FACTORS(paged_attention_128_factors_rows, 128, 128, 64, false, false, 2, 1, 0, true)
