// Products of one or two rows: out = x w^T, read at the speed of memory.
//
// Shapes: x [tokens, in] and w [out, in] bf16; out [tokens, out] bf16 or f32. `in` is a multiple of 8, rows begin at multiples
// of 16 bytes.
//
// A block of four warps takes ROWS rows of the weight; each warp a quarter of their columns, 256 at a time. All a block asks
// for first is the weight, before it waits for the kernel that makes x: where that leaves room on the multiprocessor, the next
// product's weights are under way while this one still runs; it may start at once, as behind skinny.cu.
//
// Fused with it: RMSNorm of x (the gain goes to x, the scale, which is a sum over x, to the result), a bias, adding to what is
// there, and the gated activation of an MLP (a block then has gate rows and the up rows that belong to them).
#include "product.cuh"

constexpr int WARPS = 4, ROWS = 4, STEP = WARPS * 256, AHEAD = 2;

// Output `at` of token `t`: its sum and, where it is a gate, that of what it is multiplied with.
__device__ __forceinline__ void finish(const Product& p, int t, int at, float y, float up) {
    if (p.bias) y += p.bias[at];
    if (p.activation >= 0) {
        if (p.bias) up += p.bias[p.out_width + at];
        y = activate(p.activation, y) * up;
    }
    const int64_t to = t * p.out_stride + at;
    if (p.out_f32) {
        float* out = static_cast<float*>(p.out);
        out[to] = p.accumulate ? out[to] + y : y;
    } else {
        bf16* out = static_cast<bf16*>(p.out);
        out[to] = from_f32<bf16>(p.accumulate ? to_f32(out[to]) + y : y);
    }
}

__device__ __forceinline__ void unpack(const uint4& from, float (&to)[8]) {
    const uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(words[i] << 16);
        to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ uint4 load_once(const bf16* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

template <int T>
__device__ __forceinline__ void few_rows(const Matrix<const bf16>& x_rows, const bf16* w_rows, const Product& p) {
    __shared__ float parts[WARPS][ROWS * T + T];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool gated = p.activation >= 0;
    const int width = p.out_width, per_block = gated ? ROWS / 2 : ROWS, first = blockIdx.x * per_block;
    let_next_kernel_start();
    const bf16* row[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int at = min(first + (gated ? r % 2 : r), width - 1);
        row[r] = w_rows + (int64_t(at) + (gated && r >= 2 ? width : 0)) * p.in;
    }
    float sum[ROWS][T] = {}, squares[T] = {};
    uint4 weights[AHEAD][ROWS];
    auto fetch = [&](int column) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const int c = column + a * STEP;
                weights[a][r] = c < p.in ? load_once(row[r] + c) : make_uint4(0, 0, 0, 0);
            }
    };
    int column = warp * 256 + lane * 8;
    fetch(column);
    wait_for_previous_kernel();
    for (; column < p.in; column += AHEAD * STEP) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int c = column + a * STEP;
            if (c >= p.in) break;
            float gain[8];
            if (p.gain) load(p.gain + c, gain);
            float w[ROWS][8];
#pragma unroll
            for (int r = 0; r < ROWS; r++) unpack(weights[a][r], w[r]);
#pragma unroll
            for (int t = 0; t < T; t++) {
                if (t >= p.tokens) break;
                float x[8];
                unpack(*reinterpret_cast<const uint4*>(x_rows.row(t) + c), x);
                if (p.gain) {
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        squares[t] = fmaf(x[i], x[i], squares[t]);
                        x[i] *= gain[i];
                    }
                }
#pragma unroll
                for (int r = 0; r < ROWS; r++)
#pragma unroll
                    for (int i = 0; i < 8; i++) sum[r][t] = fmaf(w[r][i], x[i], sum[r][t]);
            }
        }
        if (column + AHEAD * STEP < p.in) fetch(column + AHEAD * STEP);
    }
#pragma unroll
    for (int t = 0; t < T; t++) {
        if (t >= p.tokens) break;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float all = warp_sum(sum[r][t]);
            if (lane == 0) parts[warp][t * ROWS + r] = all;
        }
        if (p.gain) {
            const float all = warp_sum(squares[t]);
            if (lane == 0) parts[warp][ROWS * T + t] = all;
        }
    }
    __syncthreads();
    const int t = threadIdx.x / ROWS, r = threadIdx.x % ROWS, at = first + r;
    if (t >= p.tokens || r >= per_block || at >= width) return;
    auto total = [&](int index) {
        float all = 0.f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) all += parts[i][index];
        return all;
    };
    const float scale = p.gain ? rsqrtf(total(ROWS * T + t) / p.in + p.eps) : 1.f;
    finish(p, t, at, total(t * ROWS + r) * scale, gated ? total(t * ROWS + 2 + r) * scale : 0.f);
}

#define KERNEL(T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(128) few_rows_##T(                                        \
        const __grid_constant__ Matrix<const bf16> x, const bf16* w, const __grid_constant__ Product p) {  \
        few_rows<T>(x, w, p);                                                                              \
    }
KERNEL(1)
KERNEL(2)
