// Products of one row, one after the other, in one kernel of Hopper: out = w x for each, read at the speed of memory.
//
// Shapes: of each product x [in] and w [out, in] bf16; out [out] bf16 or f32. `in` is a multiple of 8, rows begin at multiples of
// 16 bytes.
//
// Between kernels memory is idle while sums meet, results are written and the next kernel begins. Here warps of their own ask for
// weights, of the first product and then of the next, wherever the others are: as much of them as shared memory holds is under
// way or there before their inputs are.
//
// Each block has some whole rows of every weight, so that no sum has parts in two blocks. Inputs are so small that each block has all
// of them. What a product makes goes to the other blocks as words of 32 bits, the value (bf16) above the number of the launch: who
// reads a word sees by itself whether it has come, and nobody waits for all. Words are written in every launch, so those of the launch
// before have another number.
//
// A slot of a block's ring has a few rows of the weight, or parts of them, as they lie in memory: few copies, as each costs its thread
// about 100 cycles. Two teams of warps take rows in turn, and each warp has some of their columns. For the matrix units eight parts of rows
// side by side are a factor, each with words in turn as its upper and its lower half; the other factor has the inputs that belong to
// them as its columns. Of the results one in eight is wanted.
//
// Fused with it: what few.cu has.
//
// The code is kept short: loops that are unrolled further take longer (docs/lab.md).
//
// All blocks wait for each other, so that all must run at once: at most one a multiprocessor, and the next kernel only starts when
// they do. What kernels that start early touch before they wait was written long before (docs/cuda.md).
#include "hopper.cuh"
#include "product.cuh"

// Products of a chain at most.
constexpr int LONGEST = 8;

// `Link` in chain.rs is the same struct.
struct Link {
    Product p;
    const bf16* w;
    const bf16* x;
    // Instead of x, and beside out: words, or none.
    const uint32_t* x_words;
    uint32_t* out_words;
};

// `Chain` in chain.rs is the same struct.
struct Chain {
    Link links[LONGEST];
    // Launches of this chain that have ended, and blocks of this one.
    unsigned int *launches, *ended;
    int count;
    // Slots of the ring, and how many are under way at most.
    int slots, flight;
    // Bytes of the longest input.
    int input;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Threads that multiply, warps of a team, and warps that ask for weights (`THREADS` in chain.rs).
constexpr int THREADS = 512, TEAM = 8, TEAMS = THREADS / 32 / TEAM, LOADERS = 4;
// Columns and bytes of a slot, bytes of barriers: as in chain.rs.
constexpr int COLUMNS = 2048, SLOT = 16384, HEAD = 256;
// Rows whose sums are finished together, and eights of columns of an input that a thread takes at once.
constexpr int BATCH = 128, EIGHTS = 2;

// How a block walks through its rows of a weight.
struct Cut {
    // Parts that a row of a slot is cut into for the matrix units, as a power of two; rows of a slot.
    int shift, rows;
    // Columns of an input, with zeros up to those of whole parts.
    int padded;
    // Outputs of this block, and those of a slot.
    int first, end, step;

    __device__ __forceinline__ explicit Cut(const Product& p) {
        shift = p.in > 1024 ? 2 : p.in > 512 ? 1 : 0;
        rows = 16 >> shift;
        const int part = 512 << shift;
        padded = (p.in + part - 1) / part * part;
        first = static_cast<int64_t>(p.out_width) * blockIdx.x / gridDim.x;
        end = static_cast<int64_t>(p.out_width) * (blockIdx.x + 1) / gridDim.x;
        step = p.activation >= 0 ? rows / 2 : rows;
    }
};

struct Ring {
    int slots, slot = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ explicit Ring(const Chain& chain) : slots(chain.slots) {}
    __device__ __forceinline__ void advance() { skip(1); }
    __device__ __forceinline__ void skip(int count) {
        slot += count;
        if (slot >= slots) slot -= slots, parity ^= 1;
    }
};

// Shared memory: barriers, the input, slots.
struct Memory {
    uint32_t start, ring;

    __device__ __forceinline__ Memory(const Chain& chain, uint32_t start) : start(start), ring(start + HEAD + chain.input) {}
    __device__ __forceinline__ uint32_t full(int slot) const { return start + slot * 16; }
    __device__ __forceinline__ uint32_t empty(int slot) const { return start + slot * 16 + 8; }
    __device__ __forceinline__ uint32_t input() const { return start + HEAD; }
    __device__ __forceinline__ uint32_t slot(int slot) const { return ring + slot * SLOT; }
};

__device__ __forceinline__ void copy_once(uint32_t to, const void* from, int bytes, uint32_t barrier, uint64_t once) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier), "l"(once)
        : "memory");
}

__device__ __forceinline__ uint2 load_two(uint32_t address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
    return v;
}

__device__ __forceinline__ uint32_t load_word(const uint32_t* from) {
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}
__device__ __forceinline__ uint4 load_words(const uint32_t* from) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}
__device__ __forceinline__ void store_word(uint32_t* to, uint32_t v) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

// One thread of loading warp `own`: asks for every LOADERS-th slot of the weights of all products. One thread alone would not
// keep memory busy.
__device__ __forceinline__ void load_weights(const Chain& chain, const Memory& memory, int own) {
    const uint64_t once = read_once();
    Ring ring(chain), come(chain);
    int number = 0;
    for (int i = 0; i < chain.count; i++) {
        const Link& link = chain.links[i];
        const Product& p = link.p;
        const Cut cut(p);
        const int in = p.in, halves = p.activation >= 0 ? 2 : 1;
        const bf16* rows = link.w + static_cast<int64_t>(cut.first) * in;
        const int64_t apart = static_cast<int64_t>(p.out_width) * in;
#pragma unroll 1
        for (int output = cut.first; output < cut.end; output += cut.step, rows += cut.step * in) {
            const int outputs = min(cut.step, cut.end - output);
#pragma unroll 1
            for (int from = 0; from < in; from += COLUMNS, number++, ring.advance()) {
                const bool late = number >= chain.flight;
                if (number % LOADERS == own) {
                    const int width = min(COLUMNS, in - from);
                    const uint32_t there = memory.full(ring.slot);
                    uint32_t to = memory.slot(ring.slot);
                    barrier_wait(memory.empty(ring.slot), ring.parity ^ 1);
                    // What waits in line makes what others ask for wait too: inputs.
                    if (late) barrier_wait(memory.full(come.slot), come.parity);
                    barrier_expect(there, outputs * halves * width * 2);
                    // Gates are followed by what they multiply.
#pragma unroll 1
                    for (int half = 0; half < halves; half++, to += cut.step * width * 2) {
                        const bf16* run = rows + half * apart + from;
                        // Whole rows follow each other in memory.
                        if (width == in) {
                            copy_once(to, run, outputs * width * 2, there, once);
                        } else {
#pragma unroll 1
                            for (int r = 0; r < outputs; r++, run += in) copy_once(to + r * width * 2, run, width * 2, there, once);
                        }
                    }
                }
                if (late) come.advance();
            }
        }
    }
}

// Waits for the input of a product and writes it to shared memory, multiplied with the gain of its norm; the sums of squares of
// each warp to `squares`.
__device__ __forceinline__ void
take_input(const Link& link, const Cut& cut, uint32_t number, uint32_t to, float (&squares)[THREADS / 32]) {
    const Product& p = link.p;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    constexpr int APART = THREADS * 8;
    float all = 0.f;
#pragma unroll 1
    for (int first = threadIdx.x * 8; first - lane * 8 < cut.padded; first += EIGHTS * APART) {
        bool mine[EIGHTS];
        float gain[EIGHTS][8];
        uint4 pairs[EIGHTS] = {};
#pragma unroll
        for (int j = 0; j < EIGHTS; j++) {
            mine[j] = first + j * APART < p.in;
            if (p.gain && mine[j]) load(p.gain + first + j * APART, gain[j]);
        }
        if (link.x_words) {
            const uint32_t* words = link.x_words + first;
            // Few ask again and again: what they ask for goes the way of the weights.
            if (lane == 0 && mine[0]) {
                while ((load_word(words) & 0xffff) != number) {}
            }
            __syncwarp();
            uint32_t missing;
            do {
                missing = 0;
                uint4 eight[EIGHTS][2];
#pragma unroll
                for (int j = 0; j < EIGHTS; j++)
                    if (mine[j]) eight[j][0] = load_words(words + j * APART), eight[j][1] = load_words(words + j * APART + 4);
#pragma unroll
                for (int j = 0; j < EIGHTS; j++) {
                    if (!mine[j]) continue;
                    const uint4 a = eight[j][0], b = eight[j][1];
                    missing |= (a.x ^ number) | (a.y ^ number) | (a.z ^ number) | (a.w ^ number);
                    missing |= (b.x ^ number) | (b.y ^ number) | (b.z ^ number) | (b.w ^ number);
                    pairs[j] = make_uint4(__byte_perm(a.x, a.y, 0x7632), __byte_perm(a.z, a.w, 0x7632),
                                          __byte_perm(b.x, b.y, 0x7632), __byte_perm(b.z, b.w, 0x7632));
                }
            } while (missing & 0xffff);
        } else {
#pragma unroll
            for (int j = 0; j < EIGHTS; j++)
                if (mine[j]) pairs[j] = __ldcg(reinterpret_cast<const uint4*>(link.x + first + j * APART));
        }
#pragma unroll
        for (int j = 0; j < EIGHTS; j++) {
            uint32_t v[4] = {pairs[j].x, pairs[j].y, pairs[j].z, pairs[j].w};
            if (p.gain && mine[j]) {
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const float low = low_half(v[k]), high = high_half(v[k]);
                    all = fmaf(low, low, fmaf(high, high, all));
                    v[k] = pack(low * gain[j][2 * k], high * gain[j][2 * k + 1]);
                }
            }
            // What a lane has of a factor lies side by side.
            if (first + j * APART < cut.padded) store_shared(to + (first + j * APART) * 2, make_uint4(v[0], v[2], v[1], v[3]));
        }
    }
    if (p.gain) {
        all = warp_sum(all);
        if (lane == 0) squares[warp] = all;
    }
    named_barrier(1, THREADS);
}

template <int COUNT>
__device__ __forceinline__ float total(const float (&of)[COUNT]) {
    float all = 0.f;
#pragma unroll
    for (int i = 0; i < COUNT; i++) all += of[i];
    return all;
}

// The warps that multiply.
__device__ __forceinline__ void multiply(const Chain& chain, const Memory& memory) {
    __shared__ __align__(16) float sums[BATCH][TEAM], squares[2][THREADS / 32];
    const int thread = threadIdx.x, lane = thread % 32, team = thread / 32 / TEAM, warp = thread / 32 % TEAM, row = lane / 4;
    Ring ring(chain);
    wait_for_previous_kernel();
    // The same for all blocks: it changes when the last of them ends.
    const uint32_t number = (__ldcg(chain.launches) + 1) & 0xffff;
#pragma unroll 1
    for (int i = 0; i < chain.count; i++) {
        const Link& link = chain.links[i];
        const Product& p = link.p;
        const Cut cut(p);
        if (cut.first == cut.end) continue;
        const bool gated = p.activation >= 0;
        take_input(link, cut, number, memory.input(), squares[i % 2]);
        // The first of 8 columns of this lane in a part; parts lie side by side by 32 columns, so that lanes read from different banks.
        auto column_of = [&](int part) { return part / 2 * 1024 + warp * (cut.shift > 0 ? 128 : 64) + part % 2 * 32 + lane % 4 * 8; };
        const int last = (1 << cut.shift) - 1, apart = cut.shift > 0 ? 64 : 32, in = p.in, segments = (in + COLUMNS - 1) / COLUMNS;
        // Of this lane's rows, and of its column of inputs.
        const int part = row & last, column = column_of(part);
        const uint32_t inputs = memory.input() + column_of(row / 2 & last) * 2 + row % 2 * 8;
        const int of_batch = gated ? BATCH / 2 : BATCH;
#pragma unroll 1
        for (int first = cut.first; first < cut.end; first += of_batch) {
            const int outputs = min(of_batch, cut.end - first);
            // The output that this thread will finish.
            const int output = first + thread;
            const bool finishes = thread < outputs;
            float there = 0.f, scale = 1.f, bias[2] = {};
            if (finishes) {
                if (p.accumulate) {
                    there = p.out_f32 ? __ldcg(static_cast<const float*>(p.out) + output)
                                      : to_f32(__ldcg(static_cast<const bf16*>(p.out) + output));
                }
                if (p.gain) scale = rsqrtf(total(squares[i % 2]) / in + p.eps);
                if (p.bias) bias[0] = p.bias[output], bias[1] = gated ? p.bias[p.out_width + output] : 0.f;
            }
#pragma unroll 1
            for (int set = 0; set * cut.step < outputs; set++) {
                if (set % TEAMS != team) {
                    ring.skip(segments);
                    continue;
                }
                // Of the first eight parts of a slot and of the others.
                float d[2][4] = {};
#pragma unroll 1
                for (int from = 0; from < in; from += COLUMNS) {
                    const int width = min(COLUMNS, in - from);
                    // Past the last column lanes read anything that is there: inputs are zero.
                    const uint32_t w = memory.slot(ring.slot) + (row >> cut.shift) * width * 2, lower = (8 >> cut.shift) * width * 2;
                    const uint32_t at[2] = {w + (column < width ? column * 2 : 0), w + (column + apart < width ? (column + apart) * 2 : 0)};
                    barrier_wait(memory.full(ring.slot), ring.parity);
                    uint4 a[2][2];
                    uint2 b[2];
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        a[k][0] = load_shared(at[k]), a[k][1] = load_shared(at[k] + lower);
                        b[k] = load_two(inputs + (from + k * apart) * 2);
                    }
                    // What the copy engine writes next follows these reads. All lanes say so: no slower than one for its warp.
                    fence_async();
                    barrier_arrive(memory.empty(ring.slot));
                    ring.advance();
#pragma unroll
                    for (int k = 0; k < 2; k++)
#pragma unroll
                        for (int half = 0; half < 2; half++) {
                            const uint32_t parts[4] = {a[k][half].x, a[k][half].y, a[k][half].z, a[k][half].w};
                            mma(d[half], parts, b[k].x, b[k].y);
                        }
                }
                const float upper = lane % 4 == part ? d[0][0] + d[0][3] : 0.f, lower = lane % 4 == part ? d[1][0] + d[1][3] : 0.f;
                // Even lanes come to have the first parts, odd lanes the others.
                float all = (lane % 2 ? lower : upper) + __shfl_xor_sync(~0u, lane % 2 ? upper : lower, 1);
#pragma unroll 1
                for (int bit = 2; bit <= 2 << cut.shift; bit *= 2) all += __shfl_xor_sync(~0u, all, bit);
                if (lane % 4 < 2 && part == 0) sums[set * cut.rows + ((row + lane % 2 * 8) >> cut.shift)][warp] = all;
            }
            named_barrier(1, THREADS);
            if (finishes) {
                const int at = gated ? thread / cut.step * cut.rows + thread % cut.step : thread;
                float y = fmaf(total(sums[at]), scale, bias[0]);
                if (gated) y = activate(p.activation, y) * fmaf(total(sums[at + cut.step]), scale, bias[1]);
                y += there;
                if (p.out_f32) {
                    static_cast<float*>(p.out)[output] = y;
                } else {
                    const bf16 rounded = from_f32<bf16>(y);
                    store_word(link.out_words + output, uint32_t(__bfloat16_as_ushort(rounded)) << 16 | number);
                    static_cast<bf16*>(p.out)[output] = rounded;
                }
            }
            // Sums are free for those of the next rows; those of the next product follow a wait for its input.
            if (first + of_batch < cut.end) named_barrier(1, THREADS);
        }
    }
    if (thread == 0 && atomicInc(chain.ended, gridDim.x - 1) == gridDim.x - 1) atomicAdd(chain.launches, 1u);
}

#endif

extern "C" __global__ void __launch_bounds__(640, 1) chain(const __grid_constant__ Chain chain) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(128) uint8_t dynamic[];
    const Memory memory(chain, shared_address(dynamic));
    let_next_kernel_start();
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < chain.slots; slot++) {
            barrier_init(memory.full(slot), 1);
            barrier_init(memory.empty(slot), TEAM * 32);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < THREADS) multiply(chain, memory);
    else if (threadIdx.x % 32 == 0) load_weights(chain, memory, (threadIdx.x - THREADS) / 32);
#endif
}
