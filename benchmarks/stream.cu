// What a Hopper GPU leaves for decoding attention: pages streamed into shared memory and multiplied, without anything else.
//
// nvcc -std=c++17 -O3 --expt-relaxed-constexpr -Icrates/ops/src/cuda -gencode=arch=compute_90a,code=sm_90a benchmarks/stream.cu
//     -o stream -ldl
// usage: stream [seconds of each line: 0.7]
//
// A tile is 64 keys and their values of 256 channels: 64 KB in bf16, 32 KB in 8 bits; 32,768 of them are read in random order or not,
// by one warp a multiprocessor through a ring of 96 KB. Products are those of 64 heads, of operands that lie still: scores 64 x 64 x 256,
// outputs 64 x 256 x 64, as f16, or as e4m3 with one term or two for what has 16 bits. Each line: microseconds of the first calls and
// of calls that follow for some time, bytes a second, watts (from NVML's energy counter), the clock that a block sees, why the GPU
// slows down (NVML's bits; 4 is the power limit), and cycles a tile.
#include "hopper.cuh"
#include "wgmma.cuh"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#define OK(call)                                                                  \
    do {                                                                          \
        const cudaError_t error = call;                                           \
        if (error != cudaSuccess) {                                               \
            printf("%s: %s\n", #call, cudaGetErrorString(error));                 \
            exit(1);                                                              \
        }                                                                         \
    } while (0)

// d += a b of e4m3, 64 x 32 by 32 x 64 with both described, or by 32 x 256 with a in registers.
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define R16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define R32 R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define R64 R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define R128 \
    R64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define E4M3(n, registers, a, b, add) \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " add ", 0;\nwgmma.mma_async.sync.aligned.m64" n "k32.f32.e4m3.e4m3 {" registers "}, " a ", " b ", p, 1, 1;\n}\n"
__device__ __forceinline__ void multiply(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile(E4M3("n64", R32, "%32", "%33", "%34") : D16(0), D16(16) : "l"(a), "l"(b), "r"(1));
}
__device__ __forceinline__ void multiply(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(E4M3("n256", R128, "{%128, %129, %130, %131}", "%132", "%133")
                 : D16(0), D16(16), D16(32), D16(48), D16(64), D16(80), D16(96), D16(112)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

enum Math { NONE, F16, TWO_F16, ONE_F16, TWO_TWO, TWO_ONE, ONE_ONE };
enum Stream { STILL, INTERLEAVED, APART };

struct Args {
    const int* table;
    const uint32_t* noise;
    int pages;
    float* out;
    // Of each block its cycles and nanoseconds.
    long long* clocks;
    Stream stream;
};

constexpr int KEPT = 96 * 1024;

// `BYTES` of a row of keys, and of values.
template <Math MATH, int BYTES>
__global__ void __launch_bounds__(256, 1) stream(const __grid_constant__ CUtensorMap map, Args p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    constexpr int SLOT = 64 * BYTES, SLOTS = KEPT / SLOT, BOXES = BYTES / 128, COLUMN_ELEMENTS = BYTES >= 512 ? 64 : 128;
    const uint32_t base = shared_address(memory), fixed = base + SLOTS * SLOT, barriers = fixed + KEPT;
    const int group = threadIdx.x / 128, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    auto full = [&](int slot) { return barriers + 8 * slot; };
    auto empty = [&](int slot) { return barriers + 128 + 8 * slot; };
    for (int i = threadIdx.x; i < (SLOTS * SLOT + KEPT) / 4; i += 256) reinterpret_cast<uint32_t*>(memory)[i] = p.noise[i % 65536];
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < SLOTS; slot++) barrier_init(full(slot), 1), barrier_init(empty(slot), 4);
        barrier_init_fence();
    }
    fence_async();
    __syncthreads();
    const long long cycles = clock64();
    long long nanoseconds, end;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
    const int first = static_cast<long long>(p.pages) * blockIdx.x / gridDim.x;
    const int last = static_cast<long long>(p.pages) * (blockIdx.x + 1) / gridDim.x;
    if (group == 1) {
        if (warp != 4 || p.stream == STILL) return;
        const uint64_t policy = read_once();
        int slot = 0, parity = 1, batch = 0;
        for (int tile = first; tile < last; tile++) {
            if ((tile - first) % 32 == 0) batch = p.table[min(tile + lane, p.pages - 1)];
            const int page = __shfl_sync(~0u, batch, (tile - first) % 32);
            for (int half = 0; half < 2; half++) {
                barrier_wait(empty(slot), parity);
                if (lane == 0) barrier_expect(full(slot), SLOT);
                __syncwarp();
                if (lane < BOXES) {
                    const uint32_t to = base + slot * SLOT + lane * 8192;
                    if (p.stream == INTERLEAVED) copy_box(to, &map, full(slot), (half * BOXES + lane) * COLUMN_ELEMENTS, 0, 0, page);
                    else copy_box(to, &map, full(slot), lane * COLUMN_ELEMENTS, 0, half, page, policy);
                }
                if (++slot == SLOTS) slot = 0, parity ^= 1;
            }
        }
        return;
    }
    int slot = 0, parity = 0;
    float s[32], o[128], sum = 0;
    uint32_t weights[4];
    for (float& x : s) x = 0;
    for (float& x : o) x = 0;
    for (int i = 0; i < 4; i++) weights[i] = p.noise[threadIdx.x * 4 + i];
    const Factor q(fixed), k(fixed + 32768), v(fixed + 65536, 8192);
    for (int tile = first; tile < last; tile++) {
        int taken[2];
        for (int& of : taken) {
            if (p.stream != STILL) barrier_wait(full(slot), parity);
            of = slot;
            if (++slot == SLOTS) slot = 0, parity ^= 1;
        }
        if constexpr (MATH != NONE) {
            settle(s), settle(o);
            wgmma_fence();
            constexpr int SCORES = MATH == F16 ? 16 : MATH == ONE_F16 || MATH == ONE_ONE ? 8 : 16;
#pragma unroll
            for (int step = 0; step < SCORES; step++) {
                const Factor a = q.moved(step / 4 * 8192 + step % 4 * 32);
                if constexpr (MATH == F16) wgmma<0, 0, f16>(s, a, k.moved(step / 4 * 8192 + step % 4 * 32), 1);
                else multiply(s, a, k.moved(step % 8 / 4 * 8192 + step % 4 * 32));
            }
            wgmma_commit();
            constexpr int OUTPUTS = MATH <= ONE_F16 ? 4 : MATH == TWO_TWO ? 4 : 2;
#pragma unroll
            for (int step = 0; step < OUTPUTS; step++) {
                if constexpr (MATH <= ONE_F16) wgmma<1, f16>(o, weights, v.moved(step * 2048), 1);
                else multiply(o, weights, Factor(fixed + 65536).moved(step % 2 * 32));
            }
            wgmma_commit();
            wgmma_wait<0>();
            settle(s), settle(o);
        }
        if (lane == 0) barrier_arrive(empty(taken[0])), barrier_arrive(empty(taken[1]));
    }
    // So that nothing is left out.
    for (float x : s) sum += x;
    for (float x : o) sum += x;
    if (sum == 12345.678f) p.out[0] = sum;
    if (threadIdx.x == 0) {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(end));
        p.clocks[2 * blockIdx.x] = clock64() - cycles, p.clocks[2 * blockIdx.x + 1] = end - nanoseconds;
    }
}

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                            const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
using Counter = int (*)(void*, unsigned long long*);
using Clock = int (*)(void*, int, unsigned*);
Encode encode;
Counter energy, reasons;
Clock clock_of;
void* device;
double seconds_each = 0.7;

// Rows of `elements` of `size` bytes, from one row, plane, page to the next as many bytes.
CUtensorMap make(void* at, int size, long elements, long row, long plane, long page, long pages, CUtensorMapL2promotion promotion) {
    CUtensorMap map;
    const cuuint64_t dims[4] = {cuuint64_t(elements), 64, 2, cuuint64_t(pages)}, steps[3] = {cuuint64_t(row), cuuint64_t(plane), cuuint64_t(page)};
    const cuuint32_t box[4] = {cuuint32_t(128 / size), 64, 1, 1}, ones[4] = {1, 1, 1, 1};
    const CUresult made = encode(&map, size == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8, 4, at, dims, steps, box,
                                 ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (made != CUDA_SUCCESS) printf("describe to the copy engine: %d\n", made), exit(1);
    return map;
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <Math MATH, int BYTES>
void measure(const char* name, CUtensorMap map, Args args) {
    constexpr int BLOCKS = 132, MEMORY = 2 * KEPT + 256;
    const double bytes = 2.0 * args.pages * 64 * BYTES;
    OK(cudaFuncSetAttribute(stream<MATH, BYTES>, cudaFuncAttributeMaxDynamicSharedMemorySize, MEMORY));
    auto run = [&](int times) {
        for (int i = 0; i < times; i++) stream<MATH, BYTES><<<BLOCKS, 256, MEMORY>>>(map, args);
        OK(cudaDeviceSynchronize());
    };
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    run(3);
    double start = now();
    run(20);
    const double cold = (now() - start) / 20;
    const int third = std::max(20, static_cast<int>(seconds_each / cold)) / 3;
    unsigned long long before = 0, after = 0, why = 0;
    unsigned mhz = 0;
    run(third);
    energy(device, &before);
    start = now();
    run(third);
    reasons(device, &why), clock_of(device, 1, &mhz);
    run(third);
    energy(device, &after);
    const double all = now() - start, steady = all / (2 * third);
    std::vector<long long> clocks(2 * BLOCKS);
    OK(cudaMemcpy(clocks.data(), args.clocks, clocks.size() * sizeof(clocks[0]), cudaMemcpyDeviceToHost));
    double cycles = 0, nanoseconds = 0;
    for (int i = 0; i < BLOCKS; i++) cycles += clocks[2 * i], nanoseconds += clocks[2 * i + 1];
    printf("%-34s cold %6.1f steady %6.1f us  %5.0f GB/s  %4.0f W  clock %4.0f MHz (nvml %u) reasons %llx  cycles/tile %5.0f\n", name, cold * 1e6,
           steady * 1e6, bytes / steady / 1e9, (after - before) / all / 1e3, cycles / nanoseconds * 1e3, mhz, why, cycles / args.pages);
    fflush(stdout);
}

int main(int count, char** arguments) {
    if (count > 1) seconds_each = atof(arguments[1]);
    OK(cudaFree(0));
    void* function;
    cudaDriverEntryPointQueryResult found;
    OK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    encode = reinterpret_cast<Encode>(function);
    void* nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!nvml) printf("no NVML: %s\n", dlerror()), exit(1);
    reinterpret_cast<int (*)()>(dlsym(nvml, "nvmlInit_v2"))();
    reinterpret_cast<int (*)(unsigned, void**)>(dlsym(nvml, "nvmlDeviceGetHandleByIndex_v2"))(0, &device);
    energy = reinterpret_cast<Counter>(dlsym(nvml, "nvmlDeviceGetTotalEnergyConsumption"));
    reasons = reinterpret_cast<Counter>(dlsym(nvml, "nvmlDeviceGetCurrentClocksEventReasons"));
    clock_of = reinterpret_cast<Clock>(dlsym(nvml, "nvmlDeviceGetClockInfo"));

    constexpr int PAGES = 32768;
    constexpr size_t BYTES = static_cast<size_t>(PAGES) * 64 * 1024;
    uint64_t state = 88172645463325252ull;
    auto draw = [&] {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state;
    };
    // Finite both as f16 and as e4m3.
    std::vector<uint32_t> noise(1 << 20);
    for (uint32_t& x : noise) x = static_cast<uint32_t>(draw() >> 16) & 0xbbbfbbbf;
    unsigned char* data;
    OK(cudaMalloc(&data, BYTES));
    for (size_t at = 0; at < BYTES; at += noise.size() * 4) OK(cudaMemcpy(data + at, noise.data(), noise.size() * 4, cudaMemcpyHostToDevice));
    std::vector<int> in_order(PAGES), at_random;
    for (int i = 0; i < PAGES; i++) in_order[i] = i;
    at_random = in_order;
    for (int i = PAGES - 1; i > 0; i--) std::swap(at_random[i], at_random[draw() % (i + 1)]);
    int* tables;
    uint32_t* device_noise;
    float* out;
    long long* clocks;
    OK(cudaMalloc(&tables, 2 * PAGES * sizeof(int)));
    OK(cudaMalloc(&device_noise, 65536 * 4));
    OK(cudaMalloc(&out, 64));
    OK(cudaMalloc(&clocks, 264 * sizeof(long long)));
    OK(cudaMemcpy(tables, at_random.data(), PAGES * sizeof(int), cudaMemcpyHostToDevice));
    OK(cudaMemcpy(tables + PAGES, in_order.data(), PAGES * sizeof(int), cudaMemcpyHostToDevice));
    OK(cudaMemcpy(device_noise, noise.data(), 65536 * 4, cudaMemcpyHostToDevice));
    auto args = [&](Stream stream, bool random) { return Args{random ? tables : tables + PAGES, device_noise, PAGES, out, clocks, stream}; };

    constexpr auto none = CU_TENSOR_MAP_L2_PROMOTION_NONE, wide = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    const auto rows_of_1024 = [&](CUtensorMapL2promotion p) { return make(data, 2, 512, 1024, 512, 65536, PAGES, p); };
    const auto planes_16 = [&](CUtensorMapL2promotion p) { return make(data, 2, 256, 512, 32768, 65536, PAGES, p); };
    const auto rows_of = [&](long bytes, CUtensorMapL2promotion p) { return make(data, 1, 512, bytes, 256, 64 * bytes, PAGES, p); };
    const auto planes_8 = [&](CUtensorMapL2promotion p) { return make(data, 1, 256, 256, 16384, 32768, PAGES, p); };
    measure<NONE, 512>("bf16 interleaved random", rows_of_1024(none), args(INTERLEAVED, true));
    measure<NONE, 512>("bf16 interleaved in order", rows_of_1024(none), args(INTERLEAVED, false));
    measure<NONE, 512>("bf16 apart random once", planes_16(none), args(APART, true));
    measure<NONE, 512>("bf16 apart in order once", planes_16(none), args(APART, false));
    measure<NONE, 512>("bf16 interleaved random 256B", rows_of_1024(wide), args(INTERLEAVED, true));
    measure<NONE, 512>("bf16 apart random once 256B", planes_16(wide), args(APART, true));
    measure<NONE, 256>("8 bits rows of 528 random", rows_of(528, none), args(INTERLEAVED, true));
    measure<NONE, 256>("8 bits rows of 512 random", rows_of(512, none), args(INTERLEAVED, true));
    measure<NONE, 256>("8 bits apart random once", planes_8(none), args(APART, true));
    measure<NONE, 256>("8 bits rows of 528 random 256B", rows_of(528, wide), args(INTERLEAVED, true));
    measure<NONE, 256>("8 bits apart random once 256B", planes_8(wide), args(APART, true));
    measure<F16, 256>("f16 products alone", planes_8(none), args(STILL, true));
    measure<TWO_F16, 256>("e4m3 two, f16 alone", planes_8(none), args(STILL, true));
    measure<TWO_TWO, 256>("e4m3 two, two alone", planes_8(none), args(STILL, true));
    measure<TWO_ONE, 256>("e4m3 two, one alone", planes_8(none), args(STILL, true));
    measure<ONE_ONE, 256>("e4m3 one, one alone", planes_8(none), args(STILL, true));
    measure<F16, 512>("bf16 apart + f16 products", planes_16(none), args(APART, true));
    measure<F16, 256>("8 bits 528 + f16 products", rows_of(528, none), args(INTERLEAVED, true));
    measure<F16, 256>("8 bits apart + f16 products", planes_8(none), args(APART, true));
    measure<TWO_F16, 256>("8 bits apart + e4m3 two, f16", planes_8(none), args(APART, true));
    measure<ONE_F16, 256>("8 bits apart + e4m3 one, f16", planes_8(none), args(APART, true));
    measure<TWO_TWO, 256>("8 bits apart + e4m3 two, two", planes_8(none), args(APART, true));
    measure<TWO_ONE, 256>("8 bits apart + e4m3 two, one", planes_8(none), args(APART, true));
    measure<ONE_ONE, 256>("8 bits apart + e4m3 one, one", planes_8(none), args(APART, true));
    return 0;
}
