// Products of up to 64 rows on Hopper: out = x w^T, bound by reading the weight.
//
// Shapes: x [tokens, in] and w [out, in] bf16; out [tokens, out] bf16 or f32. `in` is a multiple of 8, rows begin at multiples
// of 16 bytes.
//
// The weight is the left factor of wgmma (64 outputs a warpgroup), the tokens are its columns. A block takes 64 outputs for
// each of its WARPGROUPS and a part of the summed columns; the blocks of a cluster have the parts of the same outputs, which
// they send each other for some of the tokens each and add up in the order of their ranks, so that sums come out the same every
// time.
//
// One warp asks the copy engine for tiles of the weight, as soon as there is room and whatever the kernel before does: memory is
// busy while that one ends, which matters more than anything a block does. Another warp waits for it and asks for tiles of x.
// The next kernel may start before this one has waited: what kernels that start early touch before they wait was written long
// before (docs/cuda.md).
//
// Fused with it: RMSNorm of x (the gain goes to the tiles of x, the scale, which is a sum over x, to the result), a bias, adding
// to what is there, and the gated activation of an MLP (half of a block's outputs are gates, the others what they multiply).
#include "skinny.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <int WARPGROUPS, int TOKENS>
__device__ __forceinline__ void skinny(const CUtensorMap& w_map, const CUtensorMap& x_map, const Product& p, const Tiles& kept) {
    constexpr int THREADS = WARPGROUPS * 128, OUTPUTS = WARPGROUPS * 64, HALF = OUTPUTS / 2;
    constexpr uint32_t W_BYTES = OUTPUTS * 128, TILE = W_BYTES + TOKENS * 128;
    // A token's sums of a part, then its sum of squares: PITCH floats, so that a warp writes to all banks.
    constexpr int PITCH = OUTPUTS + 4, ROW = PITCH * 4;
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t head = (shared_address(memory) + 1023) & ~1023u, ring = head + HEAD, gains = ring + kept.stages * TILE;
    auto weight_there = [&](int stage) { return head + stage * 8; };
    auto input_there = [&](int stage) { return head + (kept.stages + stage) * 8; };
    auto empty = [&](int stage) { return head + (2 * kept.stages + stage) * 8; };
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const int parts = cluster_size(), rank = cluster_rank(), block = blockIdx.x / parts;
    const bool gated = p.activation >= 0;
    const int tiles = (p.in + STEP - 1) / STEP, first = tiles * rank / parts, count = tiles * (rank + 1) / parts - first;
    // Each block of a cluster finishes some of the tokens.
    auto token_of = [&](int rank) { return p.tokens * rank / parts; };
    const int token = token_of(rank), tokens = token_of(rank + 1) - token;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kept.stages; stage++) {
            barrier_init(weight_there(stage), 1);
            barrier_init(input_there(stage), 1);
            barrier_init(empty(stage), WARPGROUPS * 4);
        }
        barrier_init(head + ARRIVED, 1);
        barrier_init_fence();
        if (parts > 1 && tokens > 0) barrier_expect(head + ARRIVED, (parts - 1) * tokens * ROW);
    }
    __syncthreads();
    if (parts > 1) cluster_arrive();
    if (warp == WARPGROUPS * 4) {
        if (lane == 0) {
            const int row = block * (gated ? HALF : OUTPUTS), second = row + (gated ? p.out_width : HALF);
            const uint64_t once = read_once();
            const int flight = min(kept.flight, kept.stages);
            for (int i = 0, stage = 0, round = 0, come = 0, come_round = 0; i < count; i++) {
                if (i == max(0, count - kept.lead)) let_next_kernel_start();
                if (round > 0) barrier_wait(empty(stage), round - 1 & 1);
                // What waits in line makes what is asked for next wait too: inputs, other blocks' parts.
                if (i >= flight) {
                    barrier_wait(weight_there(come), come_round & 1);
                    if (++come == kept.stages) come = 0, come_round++;
                }
                barrier_expect(weight_there(stage), W_BYTES);
                const uint32_t to = ring + stage * TILE;
                copy_tile(to, &w_map, weight_there(stage), (first + i) * STEP, row, once);
                copy_tile(to + W_BYTES / 2, &w_map, weight_there(stage), (first + i) * STEP, second, once);
                if (++stage == kept.stages) stage = 0, round++;
            }
            if (kept.lead <= 0) let_next_kernel_start();
        }
        __syncwarp();
        if (parts > 1) {
            cluster_wait();
            cluster_arrive();
        }
    } else if (warp == WARPGROUPS * 4 + 1) {
        if (lane == 0) {
            wait_for_previous_kernel();
            for (int i = 0, stage = 0, round = 0; i < count; i++) {
                if (round > 0) barrier_wait(empty(stage), round - 1 & 1);
                barrier_expect(input_there(stage), TOKENS * 128);
                copy_tile(ring + stage * TILE + W_BYTES, &x_map, input_there(stage), (first + i) * STEP, 0);
                if (++stage == kept.stages) stage = 0, round++;
            }
        }
        __syncwarp();
        if (parts > 1) {
            cluster_wait();
            cluster_arrive();
        }
    } else {
        const int group = warp / 4;
        if (p.gain) {
            for (int i = threadIdx.x; i < count * STEP; i += THREADS) {
                const int column = first * STEP + i;
                store_one(gains + i * 4, column < p.in ? p.gain[column] : 0.f);
            }
            named_barrier(1, THREADS);
        }
        wait_for_previous_kernel();
        constexpr int UNITS = (TOKENS * 8 + THREADS - 1) / THREADS;
        float d[TOKENS / 8][4] = {}, squares[UNITS] = {};
        for (int i = 0, stage = 0, round = 0, before = 0; i < count; i++) {
            const uint32_t tile = ring + stage * TILE, inputs = tile + W_BYTES;
            barrier_wait(input_there(stage), round & 1);
            if (p.gain) {
                scale_tile<TOKENS, THREADS>(inputs, gains + i * STEP * 4, squares);
                fence_async();
                named_barrier(1, THREADS);
            }
            barrier_wait(weight_there(stage), round & 1);
            settle(d);
            wgmma_fence();
            const Factor a(tile + group * 8192), b(inputs);
#pragma unroll
            for (int k = 0; k < 4; k++) wgmma<0, 0>(d, a.moved(32 * k), b.moved(32 * k), i | k);
            wgmma_commit();
            settle(d);
            if (i > 0) {
                wgmma_wait<1>();
                if (lane == 0) barrier_arrive(empty(before));
            }
            before = stage;
            if (++stage == kept.stages) stage = 0, round++;
        }
        wgmma_wait<0>();
        settle(d);
        // Everything asked for has come, and was used: sums take the place of tiles.
        named_barrier(1, THREADS);
        const uint32_t output = ring + (group * 64 + warp % 4 * 16 + lane / 4) * 4;
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) store_one(output + (n * 8 + lane % 4 * 2 + i % 2) * ROW + i / 2 * 32, d[n][i]);
        if (p.gain) {
#pragma unroll
            for (int j = 0; j < UNITS; j++) {
                float all = squares[j];
#pragma unroll
                for (int l = 1; l < 8; l *= 2) all += __shfl_xor_sync(~0u, all, l);
                const int unit = threadIdx.x + j * THREADS;
                if (unit < TOKENS * 8 && unit % 8 == 0) store_one(ring + unit / 8 * ROW + OUTPUTS * 4, all);
            }
        }
        if (parts > 1) fence_async();
        named_barrier(1, THREADS);
        // Where part `r` of the tokens that this block finishes lies.
        const int most = (p.tokens + parts - 1) / parts;
        const uint32_t received = gains + (p.gain ? (tiles + parts - 1) / parts * STEP * 4 : 0);
        auto part = [&](int r) { return r == rank ? ring + token * ROW : received + r * most * ROW; };
        constexpr int FOURS = OUTPUTS / 4;
        const int items = tokens * (gated ? FOURS / 2 : FOURS);
        auto place = [&](int item, int& t, int& four) {
            t = gated ? item / (FOURS / 2) : item / FOURS;
            four = item - t * (gated ? FOURS / 2 : FOURS);
            return block * (gated ? HALF : OUTPUTS) + four * 4;
        };
        int item = threadIdx.x, t, four;
        float there[4] = {};
        if (parts > 1) {
            cluster_wait();
            if (threadIdx.x < parts && threadIdx.x != rank) {
                const int to = threadIdx.x, theirs = token_of(to + 1) - token_of(to);
                if (theirs > 0)
                    copy_to_peer(peer(received + rank * most * ROW, to), ring + token_of(to) * ROW, theirs * ROW,
                                 peer(head + ARRIVED, to));
            }
            __syncwarp();
            if (item < items) {
                const int at = place(item, t, four);
                load_there(p, token + t, at, there);
            }
            if (tokens > 0) barrier_wait(head + ARRIVED, 0);
            __syncwarp();
            cluster_arrive();
        } else if (item < items) {
            const int at = place(item, t, four);
            load_there(p, t, at, there);
        }
        for (; item < items; item += THREADS) {
            const int at = place(item, t, four);
            if (at < p.out_width) {
                float y[4] = {}, up[4] = {}, all = 0.f;
                for (int r = 0; r < parts; r++) {
                    const uint32_t from = part(r) + t * ROW + four * 16;
                    const float4 v = load_four(from);
                    y[0] += v.x, y[1] += v.y, y[2] += v.z, y[3] += v.w;
                    if (gated) {
                        const float4 u = load_four(from + HALF * 4);
                        up[0] += u.x, up[1] += u.y, up[2] += u.z, up[3] += u.w;
                    }
                    if (p.gain) all += load_four(part(r) + t * ROW + OUTPUTS * 4).x;
                }
                if (p.gain) {
                    const float scale = rsqrtf(all / p.in + p.eps);
#pragma unroll
                    for (int i = 0; i < 4; i++) y[i] *= scale, up[i] *= scale;
                }
                if (item >= THREADS) load_there(p, token + t, at, there);
                finish(p, token + t, at, y, up, there);
            }
        }
    }
    // What others have of this block has come to them.
    __syncwarp();
    if (parts > 1) cluster_wait();
}

#define BODY(W, T) skinny<W, T>(w, x, p, tiles)
#else
#define BODY(W, T)
#endif

#define KERNEL(W, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(W * 128 + 64, 2) skinny_##W##_##T(                 \
        const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap x, const __grid_constant__ Product p, const __grid_constant__ Tiles tiles) { \
        BODY(W, T);                                                                                       \
    }
#define KERNELS(T) KERNEL(1, T) KERNEL(2, T)
KERNELS(8)
KERNELS(16)
KERNELS(32)
KERNELS(64)
