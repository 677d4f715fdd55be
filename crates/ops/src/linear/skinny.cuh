// What skinny.cu is made of: copies, what becomes of sums, and norms on the way.
#pragma once
#include "clusters.cuh"
#include "hopper.cuh"
#include "product.cuh"
#include "wgmma.cuh"

// How a block keeps its tiles; `Tiles` in skinny.rs is the same struct.
struct Tiles {
    int stages;          // in shared memory
    int lead;            // of the weight, still to be asked for when the next kernel may start
    int flight;          // of the weight, under way at most
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Summed columns of a tile: rows of 128 bytes.
constexpr int STEP = 64;
// Bytes before the tiles: barriers, of which the last is for the parts of other blocks.
constexpr int HEAD = 1024, ARRIVED = HEAD - 8;

__device__ __forceinline__ void copy_tile(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(column), "r"(row)
        : "memory");
}

// As above, of what is read once.
__device__ __forceinline__ void copy_tile(uint32_t to, const CUtensorMap* map, uint32_t barrier, int column, int row, uint64_t once) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(column), "r"(row), "l"(once)
        : "memory");
}

// Shared memory of this block to that of another.
__device__ __forceinline__ void copy_to_peer(uint32_t to, uint32_t from, int bytes, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "r"(from),
        "r"(bytes), "r"(barrier)
        : "memory");
}

__device__ __forceinline__ float4 load_four(uint32_t address) {
    const uint4 v = load_shared(address);
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}

__device__ __forceinline__ void store_one(uint32_t address, float v) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
}

// What outputs `at` .. `at` + 3 of token `t` are added to.
__device__ __forceinline__ void load_there(const Product& p, int t, int at, float (&there)[4]) {
    const bool whole = p.wide && at + 4 <= p.out_width;
    const int64_t to = t * p.out_stride + at;
#pragma unroll
    for (int i = 0; i < 4; i++) there[i] = 0.f;
    if (p.accumulate) {
        if (p.out_f32) {
            const float* out = static_cast<const float*>(p.out) + to;
            if (whole) return load(out, there);
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (at + i < p.out_width) there[i] = out[i];
        } else {
            const bf16* out = static_cast<const bf16*>(p.out) + to;
            if (whole) return load(out, there);
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (at + i < p.out_width) there[i] = to_f32(out[i]);
        }
    }
}

// Outputs `at` .. `at` + 3 of token `t`: their sums, those of what gates are multiplied with, and what they are added to.
__device__ __forceinline__ void finish(const Product& p, int t, int at, float (&y)[4], float (&up)[4], const float (&there)[4]) {
    const bool whole = p.wide && at + 4 <= p.out_width;
    const int64_t to = t * p.out_stride + at;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (p.bias && at + i < p.out_width) {
            y[i] += p.bias[at + i];
            if (p.activation >= 0) up[i] += p.bias[p.out_width + at + i];
        }
        if (p.activation >= 0) y[i] = activate(p.activation, y[i]) * up[i];
        y[i] += there[i];
    }
    if (p.out_f32) {
        float* out = static_cast<float*>(p.out) + to;
        if (whole) return store(out, y);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (at + i < p.out_width) out[i] = y[i];
    } else {
        bf16* out = static_cast<bf16*>(p.out) + to;
        if (whole) return store(out, y);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (at + i < p.out_width) out[i] = from_f32<bf16>(y[i]);
    }
}

// Multiplies 64 columns of x with their gains and adds up the squares of the rows, of which a thread has every THREADS-th
// 16 bytes.
template <int TOKENS, int THREADS, int UNITS>
__device__ __forceinline__ void scale_tile(uint32_t tile, uint32_t gains, float (&squares)[UNITS]) {
    const uint32_t from = gains + threadIdx.x % 8 * 32;
    const float4 first = load_four(from), second = load_four(from + 16);
    const float gain[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
    for (int j = 0; j < UNITS; j++) {
        const int unit = threadIdx.x + j * THREADS, row = unit / 8, chunk = unit % 8;
        if (unit >= TOKENS * 8) break;
        const uint32_t address = tile + row * 128 + ((chunk ^ row) & 7) * 16;
        const uint4 four = load_shared(address);
        uint32_t v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float low = __uint_as_float(v[i] << 16), high = __uint_as_float(v[i] & 0xffff0000u);
            squares[j] = fmaf(low, low, fmaf(high, high, squares[j]));
            v[i] = pack(low * gain[2 * i], high * gain[2 * i + 1]);
        }
        store_shared(address, make_uint4(v[0], v[1], v[2], v[3]));
    }
}

#endif
