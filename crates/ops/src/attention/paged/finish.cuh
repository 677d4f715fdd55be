// What becomes of the sums of an item: the output, or a part of it that is added to others' parts.
//
// Sums lie in registers as slabs: slab i holds the accumulators 4 i .. 4 i + 3 of all 128 threads, that is 8 channels of 64
// rows, of which each warp has 16. So they are sent, kept and added up too, 2 KB without gaps, and a warp only ever needs
// what warps of its number have made.
//
// The CTAs of a cluster have an item together (join): each adds up some slabs, which all send it, weighted, into the memory
// where its tiles were. Clusters (or lone CTAs) that have parts of a task write them to memory, where they stay in the L2 cache; of each
// slab one waits for all parts and adds them up (merge).
//
// This code runs once or twice in a launch, so that its instructions come from afar: it is kept short.

#pragma once

#include "types.cuh"

namespace paged {

// Tells all CTAs that what this warp wrote is there.
__device__ __forceinline__ void release(unsigned int* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ __forceinline__ unsigned int acquire(const unsigned int* counter) {
    unsigned int value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
}

// Two neighbouring channels of a row of the output.
__device__ __forceinline__ void put(unsigned char* at, bool f32, float low, float high) {
    if (f32) *reinterpret_cast<float2*>(at) = make_float2(low, high);
    else *reinterpret_cast<uint32_t*>(at) = pack(low, high);
}

// How much sums measured from the maximum `from` count beside others measured from `top`.
__device__ __forceinline__ float weight_of(float from, float top) { return from == -INFINITY ? 0.0f : power2(from - top); }

// This lane's rows of an item: their numbers among the queries, where not less than `rows.rows` those of the last.
template <class S>
__device__ __forceinline__ void Kernel<S>::queries_of(const int4& item, int row, const Block& rows, int64_t (&queries)[2]) const {
    const int64_t first = task_query(p, item.x);
#pragma unroll
    for (int r = 0; r < 2; r++) queries[r] = first + rows.query_of(p, min(row + 8 * r, max(rows.rows, 1) - 1));
}

// Where a channel of a query's output lies.
template <class S>
__device__ __forceinline__ unsigned char* Kernel<S>::place(int64_t query, int channel) const {
    return static_cast<unsigned char*>(p.out) + (query * p.value_width + channel) * (p.out_f32 ? 4 : 2);
}

// The log-sum-exp of a row.
template <class S>
__device__ __forceinline__ void Kernel<S>::write_lse(int64_t query, float top, float total) const {
    p.lse[query] = total > 0.0f ? (top + log2f(total) - shift()) * LN_2 : -INFINITY;
}

// A lane's accumulators of a slab, two channels each of two rows.
template <class S>
__device__ __forceinline__ void Kernel<S>::write_slab(
    int slab, int value_group, int row, const int64_t (&queries)[2], const float (&sum)[4], const Block& rows
) const {
    const int channel = value_group * (S::E / S::VALUE_GROUPS) + slab * 8 + threadIdx.x % 4 * 2;
    if (channel >= p.value_width) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (row + 8 * r >= rows.rows) break;
        put(place(queries[r], channel), p.out_f32, sum[2 * r], sum[2 * r + 1]);
    }
}

// Slabs that this CTA of a cluster adds up: from the first on, before the end.
template <class S>
__device__ __forceinline__ int2 Kernel<S>::own_slabs() const {
    constexpr int SLABS = S::E / S::VALUE_GROUPS / 8;
    return make_int2(divide(SLABS * rank + p.cluster - 1, p.cluster), divide(SLABS * (rank + 1) + p.cluster - 1, p.cluster));
}

template <class S>
template <int COUNT>
__device__ __forceinline__ void Kernel<S>::finish(
    const int4& item, const float (&o)[COUNT], const float (&m)[2], const float (&l)[2], int group, unsigned char* memory,
    const Block& rows, uint32_t parity
) const {
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32, row = thread / 32 * 16 + lane / 4;
    const int row_block = block + group / S::VALUE_GROUPS, value_group = group % S::VALUE_GROUPS;
    float sum[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] = l[r] + __shfl_xor_sync(~0u, l[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    }
    if (p.cluster > 1) return join(item, o, m, sum, group, memory, rows, parity);
    if (row_block >= p.row_blocks) return;
    if (item.w >= 0) {
        const int4 cut = p.cuts[item.w];
        const int64_t part = part_of(cut.y + share - cut.w, row_block, value_group);
        if (row < rows.rows) {
            float4* to = p.part_out + part * (COUNT / 4) * WARPGROUP + thread;
#pragma unroll
            for (int i = 0; i < COUNT / 4; i++) {
                to[i * WARPGROUP] = make_float4(o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]);
            }
            if (lane % 4 < 2) {
                p.part_sums[part * 64 + row + lane % 4 * 8] =
                    lane % 4 == 0 ? make_float2(m[0], sum[0]) : make_float2(m[1], sum[1]);
            }
        }
        __syncwarp();
        if (lane == 0) release(written(item.w, group, thread / 32));
        return;
    }
    const int column = value_group * 2 * COUNT + lane % 4 * 2;
    int64_t queries[2];
    queries_of(item, row, rows, queries);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (row + 8 * r >= rows.rows) continue;
        const float factor = sum[r] > 0.0f ? 1.0f / sum[r] : 0.0f;
        if (p.lse && column == 0) write_lse(queries[r], m[r], sum[r]);
        unsigned char* at = place(queries[r], column);
        const int step = p.out_f32 ? 32 : 16;
#pragma unroll
        for (int i = 0; i < COUNT / 4; i++, at += step) {
            if (column + 8 * i < p.value_width) put(at, p.out_f32, o[4 * i + 2 * r] * factor, o[4 * i + 2 * r + 1] * factor);
        }
    }
}

// Adds up what the CTAs of a cluster have of an item. What comes of it is the output, or the cluster's part of it.
template <class S>
template <int COUNT>
__device__ __forceinline__ void Kernel<S>::join(
    const int4& item, const float (&o)[COUNT], const float (&m)[2], const float (&sum)[2], int group, unsigned char* memory,
    const Block& rows, uint32_t parity
) const {
    constexpr int SLABS = COUNT / 4, SLAB_BYTES = 2048;
    const int thread = threadIdx.x % WARPGROUP, warp = thread / 32, lane = thread % 32, row = warp * 16 + lane / 4;
    const int row_block = block + group / S::VALUE_GROUPS, value_group = group % S::VALUE_GROUPS, ctas = p.cluster;
    const int2 own = own_slabs();
    // Of each row its maximum and sum; parts [own slab][CTA].
    const uint32_t sums = this->sums(group), parts = slots + group * S::JOIN_BYTES, arrived = received(group);
    if (thread == 0) barrier_expect(arrived, (rows.rows + 15) / 16 * ctas * (own.y - own.x) * (SLAB_BYTES / 4));
    // Rows of tiles that another warpgroup reads its parts from may have been cleared by plain writes.
    if constexpr (S::GROUPS > 1) named_barrier(1 + S::GROUPS, S::GROUPS * WARPGROUP);
    // One lane writes what its warp has, and tells all CTAs: they may read it, and write to where this warp's tiles were.
    float4* to = reinterpret_cast<float4*>(memory + (sums - shared_address(memory))) + warp * 8;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float4 two;
        two.x = __shfl_sync(~0u, m[i / 4], i % 4 * 8), two.y = __shfl_sync(~0u, sum[i / 4], i % 4 * 8);
        two.z = __shfl_sync(~0u, m[i / 4], i % 4 * 8 + 4), two.w = __shfl_sync(~0u, sum[i / 4], i % 4 * 8 + 4);
        if (lane == 0) to[i] = two;
    }
    if (lane == 0) {
        for (int cta = 0; cta < ctas; cta++) barrier_arrive_at(peer(met(), cta));
    }
    barrier_wait_cluster(met(), parity);

    // Four lanes have a row; each looks at every fourth CTA. Only warps that then send do so: a CTA may end, or go on to its next
    // item, when it has all parts.
    const bool busy = warp * 16 < rows.rows;
    float2 theirs[2][CLUSTER / 4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int i = 0; i < CLUSTER / 4; i++) {
            const int cta = 4 * i + lane % 4;
            theirs[r][i] = make_float2(-INFINITY, 0.0f);
            if (busy && cta < ctas) theirs[r][i] = peer_float2(peer(sums + (row + 8 * r) * sizeof(float2), cta));
        }
    }
    const bool whole = item.w < 0;
    float top[2], total[2], scale[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        top[r] = -INFINITY, total[r] = 0.0f;
#pragma unroll
        for (int i = 0; i < CLUSTER / 4; i++) top[r] = fmaxf(top[r], theirs[r][i].x);
        for (int s = 1; s < 4; s *= 2) top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], s));
#pragma unroll
        for (int i = 0; i < CLUSTER / 4; i++) total[r] += theirs[r][i].y * weight_of(theirs[r][i].x, top[r]);
        for (int s = 1; s < 4; s *= 2) total[r] += __shfl_xor_sync(~0u, total[r], s);
        scale[r] = weight_of(m[r], top[r]);
        if (whole) scale[r] = total[r] > 0.0f ? scale[r] / total[r] : 0.0f;
    }
    if (busy) {
        // As `own_slabs` has it: slab i is that of CTA i * ctas / SLABS.
        const uint32_t here = parts + rank * SLAB_BYTES + thread * sizeof(float4);
        uint32_t to = peer(here, 0), tell = peer(arrived, 0);
        int owner = 0, passed = 0;
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++) {
            if (passed >= SLABS) {
                passed -= SLABS, owner++;
                to = peer(here, owner), tell = peer(arrived, owner);
            }
            const float4 four = make_float4(
                o[4 * slab] * scale[0], o[4 * slab + 1] * scale[0], o[4 * slab + 2] * scale[1], o[4 * slab + 3] * scale[1]
            );
            send(to, four, tell);
            to += ctas * SLAB_BYTES, passed += ctas;
        }
    }
    const int4 cut = whole ? make_int4(0, 0, 0, 0) : p.cuts[item.w];
    const int64_t part = part_of(cut.y + share - cut.w, row_block, value_group);
    int64_t queries[2];
    queries_of(item, row, rows, queries);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (lane % 4 > 0 || row + 8 * r >= rows.rows) continue;
        if (!whole) p.part_sums[(part * ctas + rank) * 64 + row + 8 * r] = make_float2(top[r], total[r]);
        else if (p.lse && rank == 0 && value_group == 0) write_lse(queries[r], top[r], total[r]);
    }
    barrier_wait_cluster(arrived, parity);
    if (busy) {
        constexpr int AT_ONCE = 2;
        const float4* from = reinterpret_cast<const float4*>(memory + (parts - shared_address(memory))) + thread;
#pragma unroll 1
        for (int slab = own.x; slab < own.y; slab += AT_ONCE, from += AT_ONCE * ctas * WARPGROUP) {
            float four[AT_ONCE][4] = {};
            // Where there is no other one, the same again.
            const int next = slab + 1 < own.y ? ctas : 0;
#pragma unroll 4
            for (int cta = 0; cta < ctas; cta++) {
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++) {
                    const float4 theirs = from[(j * next + cta) * WARPGROUP];
                    four[j][0] += theirs.x, four[j][1] += theirs.y, four[j][2] += theirs.z, four[j][3] += theirs.w;
                }
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                if (slab + j >= own.y) break;
                const float (&sum)[4] = four[j];
                if (whole) write_slab(slab + j, value_group, row, queries, sum, rows);
                else p.part_out[(part * SLABS + slab + j) * WARPGROUP + thread] = make_float4(sum[0], sum[1], sum[2], sum[3]);
            }
        }
    }
    fence_async();
    __syncwarp();
    if (lane == 0) {
        barrier_arrive(joined());
        if (!whole && row_block < p.row_blocks) release(written(item.w, group, warp));
    }
}

// Adds up the parts of every `step`-th of some slabs, some of both at a time: what is asked for takes long to come.
template <class S>
__device__ __forceinline__ void
Kernel<S>::add_parts(const int4& item, const int4& cut, int2 slabs, int step, int group, const Block& rows) const {
    constexpr int SLABS = S::E / S::VALUE_GROUPS / 8, AT_ONCE = 4, PARTS = 4;
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32, row = thread / 32 * 16 + lane / 4;
    const int value_group = group % S::VALUE_GROUPS;
    const int64_t first = part_of(cut.y, block + group / S::VALUE_GROUPS, value_group), next = part_of(1, 0, 0);
    int64_t queries[2];
    queries_of(item, row, rows, queries);
#pragma unroll 1
    for (int slab = slabs.x; slab < slabs.y; slab += AT_ONCE * step) {
        float top[2] = {-INFINITY, -INFINITY}, total[2] = {}, sum[AT_ONCE][4] = {};
#pragma unroll 1
        for (int from = 0; from < cut.z; from += PARTS) {
            float4 values[PARTS][AT_ONCE];
            float2 sums[PARTS][2];
#pragma unroll
            for (int i = 0; i < PARTS; i++) {
                const int64_t part = first + (from + i) * next;
                const bool there = from + i < cut.z;
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const float2* at = p.part_sums + (part * p.cluster + rank) * 64 + row + 8 * r;
                    sums[i][r] = there ? __ldcg(at) : make_float2(-INFINITY, 0.0f);
                }
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++) {
                    const int at = slab + j * step;
                    const float4 none = {0.0f, 0.0f, 0.0f, 0.0f};
                    values[i][j] = there && at < slabs.y ? __ldcg(p.part_out + (part * SLABS + at) * WARPGROUP + thread) : none;
                }
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float highest = top[r];
#pragma unroll
                for (int i = 0; i < PARTS; i++) highest = fmaxf(highest, sums[i][r].x);
                const float shrink = weight_of(top[r], highest);
                top[r] = highest, total[r] *= shrink;
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++) sum[j][2 * r] *= shrink, sum[j][2 * r + 1] *= shrink;
#pragma unroll
                for (int i = 0; i < PARTS; i++) {
                    const float weight = weight_of(sums[i][r].x, highest);
                    total[r] += weight * sums[i][r].y;
#pragma unroll
                    for (int j = 0; j < AT_ONCE; j++) {
                        sum[j][2 * r] += weight * (r == 0 ? values[i][j].x : values[i][j].z);
                        sum[j][2 * r + 1] += weight * (r == 0 ? values[i][j].y : values[i][j].w);
                    }
                }
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (p.lse && slab == 0 && value_group == 0 && lane % 4 == 0 && row + 8 * r < rows.rows) write_lse(queries[r], top[r], total[r]);
            const float factor = total[r] > 0.0f ? 1.0f / total[r] : 0.0f;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) sum[j][2 * r] *= factor, sum[j][2 * r + 1] *= factor;
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            if (slab + j * step < slabs.y) write_slab(slab + j * step, value_group, row, queries, sum[j], rows);
        }
    }
}

// A warp: adds up its share of the outputs of tasks of which its CTA has a part: of the first item, the last, or both.
template <class S>
__device__ __forceinline__ void Kernel<S>::merge(int group, const Block& rows) const {
    const int warp = threadIdx.x % WARPGROUP / 32, lane = threadIdx.x % 32;
    if (block + group / S::VALUE_GROUPS >= p.row_blocks || warp * 16 >= rows.rows) return;
    const int4 bounds = p.shares[2 * share + 1];
#pragma unroll 1
    for (int i = bounds.x; i < bounds.y; i = i + 1 < bounds.y ? bounds.y - 1 : bounds.y) {
        const int4 item = p.items[i];
        if (item.w < 0) continue;
        const int4 cut = p.cuts[item.w];
        int2 slabs = own_slabs();
        slabs.x += share - cut.w;
        if (slabs.x >= slabs.y) continue;
        // Each launch adds one for each part, and begins when those before have ended.
        if (lane == 0) {
            const unsigned int* counter = written(item.w, group, warp);
            while (acquire(counter) % cut.z != 0) {}
        }
        __syncwarp();
        add_parts(item, cut, slabs, cut.z, group, rows);
    }
}

}  // namespace paged
