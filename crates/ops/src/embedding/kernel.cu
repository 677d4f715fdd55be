// Token embedding: rows of a table by token id, and the sum of gradients by id.
//
// Shapes: ids [tokens]; table, d_table [vocabulary, width]; out, d_out [tokens, width]. Table and activations have element
// types of their own.
//
// The backward pass adds up all tokens of one id in one block, in the order of the tokens, so that the sums are the same
// every time. The host sorts the tokens by id: `order` holds the tokens, those of the i-th id at starts[i] .. starts[i + 1].
#include "common.cuh"

template <typename From, typename To, int N>
__device__ void forward(const uint32_t* ids, Matrix<const From> table, Matrix<To> out, int tokens, int width) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    FOR_ROWS(r, tokens) {
        const From* row = table.row(ids[r]);
        FOR_COLS(c, width, N) {
            float v[N];
            load(row + c, v);
            store(out.row(r) + c, v);
        }
    }
}

template <typename From, typename To, int N>
__device__ void backward(const uint32_t* ids, const uint32_t* starts, const uint32_t* order, Matrix<const From> d_out,
                         Matrix<To> d_table, int width) {
    constexpr int AHEAD = 4;
    To* row = d_table.row(ids[blockIdx.x]);
    const uint32_t start = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    FOR_COLS(c, width, N) {
        float sum[N];
        load(row + c, sum);
        for (uint32_t at = start; at < end; at += AHEAD) {
            float v[AHEAD][N];
#pragma unroll
            for (int j = 0; j < AHEAD; j++)
                if (at + j < end) load(d_out.row(order[at + j]) + c, v[j]);
#pragma unroll
            for (int j = 0; j < AHEAD; j++)
                if (at + j < end)
#pragma unroll
                    for (int i = 0; i < N; i++) sum[i] += v[j][i];
        }
        store(row + c, sum);
    }
}

#define KERNELS(name, From, To, N)                                                                                       \
    extern "C" __global__ void forward_##name(const uint32_t* ids, Matrix<const From> table, Matrix<To> out, int tokens, \
                                              int width) {                                                               \
        forward<From, To, N>(ids, table, out, tokens, width);                                                            \
    }                                                                                                                    \
    extern "C" __global__ void backward_##name(const uint32_t* ids, const uint32_t* starts, const uint32_t* order,       \
                                               Matrix<const From> d_out, Matrix<To> d_table, int width) {                \
        backward<From, To, N>(ids, starts, order, d_out, d_table, width);                                                \
    }
KERNELS(f32_f32, float, float, 1)
KERNELS(f32_bf16, float, bf16, 1)
KERNELS(bf16_f32, bf16, float, 1)
KERNELS(bf16_bf16, bf16, bf16, 1)
KERNELS(f32_f32_wide, float, float, 8)
KERNELS(f32_bf16_wide, float, bf16, 8)
KERNELS(bf16_f32_wide, bf16, float, 8)
KERNELS(bf16_bf16_wide, bf16, bf16, 8)
