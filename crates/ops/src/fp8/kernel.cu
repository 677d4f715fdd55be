// Rows of a cache into 8 bits and out of them.
//
// Shapes: x, out [rows, cols]; at [rows]; values [places, cols] and scales [blocks, places], bytes of the same rows. Eight threads
// side by side have a block of 64 columns; of a last block that is not whole they have what there is. Blocks that share a scale are all
// looked at for each of them.
#include "common.cuh"
#include "fp8.cuh"

struct Places {
    Matrix<uint8_t> values;
    uint8_t* scales;   // that of the first block
    const uint32_t* at;
    int64_t count;   // of all places: from a block's scales to the next block's
    int rows, cols;
    int sharing;   // columns that have one scale, a multiple of a block
};

// 8 elements from column `c` on, with zeros behind the last.
template <typename T>
__device__ __forceinline__ void take(const T* row, int c, int cols, float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = c + i < cols ? to_f32(row[c + i]) : 0.f;
}

template <typename T>
__device__ __forceinline__ void store_rows(Matrix<const T> x, const Places& p) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    FOR_ROWS(r, p.rows) {
        const int64_t place = p.at[r];
        for (int c = threadIdx.x * 8; c < (p.cols + SCALE_BLOCK - 1) / SCALE_BLOCK * SCALE_BLOCK; c += blockDim.x * 8) {
            float v[8];
            const int first = c / p.sharing * p.sharing, end = min(first + p.sharing, p.cols);
            float most = 0.f;
            for (int at = first + c % SCALE_BLOCK; at < end; at += SCALE_BLOCK) {
                take(x.row(r), at, p.cols, v);
                most = fmaxf(most, largest(v));
            }
            const int exponent = scale_exponent(largest_of(most, 8));
            take(x.row(r), c, p.cols, v);
            uint8_t* values = p.values.row(place) + c;
            uint8_t* scale = p.scales + c / SCALE_BLOCK * p.count + place;
            if (p.values.stride % 8 == 0 && c / SCALE_BLOCK * SCALE_BLOCK + SCALE_BLOCK <= p.cols) {
                store_eight(v, exponent, values, scale);
                continue;
            }
            __align__(8) uint8_t bytes[8];
            store_eight(v, exponent, bytes, scale);
            for (int i = 0; i < 8 && c + i < p.cols; i++) values[i] = bytes[i];
        }
    }
}

template <typename T>
__device__ __forceinline__ void load_rows(const Places& p, Matrix<T> out) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    FOR_ROWS(r, p.rows) {
        const int64_t place = p.at[r];
        FOR_COLS(c, p.cols, 8) {
            const uint8_t* values = p.values.row(place) + c;
            const int exponent = p.scales[c / SCALE_BLOCK * p.count + place] - 127;
            const float scale = power_of_two(min(max(exponent, LEAST_EXPONENT), MOST_EXPONENT));
            for (int i = 0; i < 8 && c + i < p.cols; i++) {
                out.row(r)[c + i] = from_f32<T>(__low2float(from_e4m3(values[i])) * scale);
            }
        }
    }
}

extern "C" __global__ void fp8_store_f32(Matrix<const float> x, const Places p) { store_rows(x, p); }
extern "C" __global__ void fp8_store_bf16(Matrix<const bf16> x, const Places p) { store_rows(x, p); }
extern "C" __global__ void fp8_load_f32(const Places p, Matrix<float> out) { load_rows(p, out); }
extern "C" __global__ void fp8_load_bf16(const Places p, Matrix<bf16> out) { load_rows(p, out); }
