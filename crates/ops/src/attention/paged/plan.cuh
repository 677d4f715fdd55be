// Who computes what: the tiles of all tasks cut into equal shares, from lengths that lie on the device.
//
// The same function as `Plan::new` in plan.rs, which says why shares are sized as they are; a test holds the two together.
// One block; run once per step for all layers, so that a captured step needs nothing from the host.

#pragma once

#include <cuda_runtime.h>

namespace paged {

// `PagedPlan` in cuda.rs is the same struct.
struct Plan {
    const int* lengths;
    // [shares][2]: the first item of a share; {its first item's number, the number behind its last}.
    int4* shares;
    // {task, first tile, tile behind the last, cut or -1}, those of a share one after the other.
    int4* items;
    // {task, slot of its first part, parts, share of its first part}.
    int4* cuts;
    // Made zero.
    unsigned int* written;
    int counters;
    int sequences;
    int kv_heads;
    int count;
    // Keys of a tile; keys that the new tokens of a sequence see between them, at most.
    int keys;
    int reach;
};

constexpr int PLANNERS = 1024;
// As in plan.rs.
constexpr int WHOLE = 2;

// Sums of all threads before this one; `all` is the sum of every thread.
__device__ __forceinline__ int3 sum_before(int3 value, int3& all) {
    __shared__ int3 warps[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int3 sum = value;
    for (int step = 1; step < 32; step *= 2) {
        const int x = __shfl_up_sync(~0u, sum.x, step), y = __shfl_up_sync(~0u, sum.y, step);
        const int z = __shfl_up_sync(~0u, sum.z, step);
        if (lane >= step) sum.x += x, sum.y += y, sum.z += z;
    }
    __syncthreads();
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    int3 before = {0, 0, 0};
    all = {0, 0, 0};
    for (int other = 0; other < PLANNERS / 32; other++) {
        if (other == warp) before = all;
        all.x += warps[other].x, all.y += warps[other].y, all.z += warps[other].z;
    }
    return {before.x + sum.x - value.x, before.y + sum.y - value.y, before.z + sum.z - value.z};
}

}  // namespace paged

extern "C" __global__ void __launch_bounds__(paged::PLANNERS) paged_plan(const paged::Plan p) {
    using namespace paged;
    __shared__ int longest;
    if (threadIdx.x == 0) longest = 1;
    __syncthreads();
    const int tasks = p.sequences * p.kv_heads;
    const int chunk = (tasks + PLANNERS - 1) / PLANNERS;
    const int first = min(static_cast<int>(threadIdx.x) * chunk, tasks), last = min(first + chunk, tasks);
    auto first_of = [&](int task) { return max(0, p.lengths[task / p.kv_heads] - p.reach) / p.keys; };
    // A sequence without keys still needs its output written.
    auto tiles_of = [&](int task) {
        return max(1, (p.lengths[task / p.kv_heads] + p.keys - 1) / p.keys - first_of(task));
    };
    int tiles = 0, most = 1;
    for (int task = first; task < last; task++) {
        const int some = tiles_of(task);
        tiles += some;
        most = max(most, some);
    }
    atomicMax(&longest, most);
    int3 all;
    sum_before({tiles, 0, 0}, all);
    const int even = max(1, (all.x + p.count - 1) / p.count);
    most = longest;
    bool apart = most >= even && tasks <= p.count;
    const int whole = apart ? (most + p.count / max(1, tasks) - 1) / (p.count / max(1, tasks))
                            : most * ((even + most - 1) / most);
    const bool good = whole * 16 <= even * 17 || whole <= even + WHOLE;
    const int share = good ? whole : even;
    apart = apart && good;
    // Where tasks begin: at the beginning of a share each, or one behind the other.
    auto room_of = [&](int some) { return apart ? (some + share - 1) / share * share : some; };
    int room = 0;
    for (int task = first; task < last; task++) room += room_of(tiles_of(task));
    const int start = sum_before({room, 0, 0}, all).x, total = all.x;

    int3 counts = {0, 0, 0};
    int at = start;
    for (int task = first; task < last; task++) {
        const int some = tiles_of(task), parts = (at + some - 1) / share - at / share + 1;
        counts.x += parts;
        if (parts > 1) counts.y += 1, counts.z += parts;
        at += room_of(some);
    }
    int3 index = sum_before(counts, all);
    at = start;
    for (int task = first; task < last; task++) {
        const int some = tiles_of(task), from = at / share, parts = (at + some - 1) / share - from + 1;
        const bool empty = p.lengths[task / p.kv_heads] <= 0;
        const int skipped = first_of(task) - at;
        if (parts > 1) p.cuts[index.y] = make_int4(task, index.z, parts, from);
        for (int part = 0; part < parts; part++) {
            const int begin = max(at, (from + part) * share), end = min(at + some, (from + part + 1) * share);
            const int4 item = make_int4(task, begin + skipped, empty ? 0 : end + skipped, parts > 1 ? index.y : -1);
            p.items[index.x] = item;
            // The item that begins a share, and the one that ends it.
            if (begin == (from + part) * share) {
                p.shares[2 * (from + part)] = item;
                p.shares[2 * (from + part) + 1].x = index.x;
            }
            if (end == (from + part + 1) * share || end == total || (apart && part == parts - 1)) p.shares[2 * (from + part) + 1].y = index.x + 1;
            index.x++;
        }
        if (parts > 1) index.y += 1, index.z += parts;
        at += room_of(some);
    }
    for (int i = threadIdx.x; i < p.count; i += PLANNERS) {
        if (i * share >= total) p.shares[2 * i + 1] = make_int4(0, 0, 0, 0);
    }
    for (int i = threadIdx.x; i < p.counters; i += PLANNERS) p.written[i] = 0;
}
