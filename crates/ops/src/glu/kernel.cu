// The gated activation of an MLP, forward and backward: out = activation(gate) * up.
//
// Shapes: gate_up, d_gate_up [tokens, 2 * width], gate first; out, d_out [tokens, width]. Bound by memory: a thread reads N
// of each half. d_gate_up may be gate_up: a thread writes only what it has read.
#include "common.cuh"

enum Activation { SILU = 0, GELU_TANH = 1 };

// x * sigmoid(g(x)) and its slope, sigmoid(g) + x * sigmoid(g) * (1 - sigmoid(g)) * g'.
__device__ __forceinline__ float activate(int activation, float x, float* slope) {
    float g = x, dg = 1.f;
    if (activation == GELU_TANH) {
        const float scale = 1.5957691216057307f, cube = 0.044715f;
        g = scale * x * fmaf(cube * x, x, 1.f);
        dg = scale * fmaf(3.f * cube * x, x, 1.f);
    }
    const float s = 1.f / (1.f + __expf(-g));
    *slope = s * fmaf(x * (1.f - s), dg, 1.f);
    return x * s;
}

template <typename T, int N>
__device__ void forward(int activation, Matrix<const T> gate_up, Matrix<T> out, int tokens, int width) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    FOR_ROWS(r, tokens) FOR_COLS_SPREAD(c, width, N) {
        float gate[N], up[N], slope;
        load(gate_up.row(r) + c, gate);
        load(gate_up.row(r) + width + c, up);
#pragma unroll
        for (int i = 0; i < N; i++) up[i] *= activate(activation, gate[i], &slope);
        store(out.row(r) + c, up);
    }
}

template <typename T, int N>
__device__ void backward(int activation, Matrix<const T> gate_up, Matrix<const T> d_out, Matrix<T> d_gate_up, int tokens,
                         int width) {
    FOR_ROWS(r, tokens) FOR_COLS(c, width, N) {
        float gate[N], up[N], d[N];
        load(gate_up.row(r) + c, gate);
        load(gate_up.row(r) + width + c, up);
        load(d_out.row(r) + c, d);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float slope;
            const float value = activate(activation, gate[i], &slope);
            gate[i] = d[i] * up[i] * slope;
            up[i] = d[i] * value;
        }
        store(d_gate_up.row(r) + c, gate);
        store(d_gate_up.row(r) + width + c, up);
    }
}

#define KERNELS(name, T, N)                                                                                       \
    extern "C" __global__ void forward_##name(int activation, Matrix<const T> gate_up, Matrix<T> out, int tokens, \
                                              int width) {                                                        \
        forward<T, N>(activation, gate_up, out, tokens, width);                                                   \
    }                                                                                                             \
    extern "C" __global__ void backward_##name(int activation, Matrix<const T> gate_up, Matrix<const T> d_out,    \
                                               Matrix<T> d_gate_up, int tokens, int width) {                      \
        backward<T, N>(activation, gate_up, d_out, d_gate_up, tokens, width);                                     \
    }
FORMS(KERNELS)
