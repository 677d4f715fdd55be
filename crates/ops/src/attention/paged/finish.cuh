// What becomes of the sums of an item: the output, or a part of it that is added to others' parts.
//
// A part lies in memory as it lies in registers: slab i holds the accumulators 4 i .. 4 i + 3 of all 128 threads, that is
// 8 channels of 64 rows, 2 KB that are written and read without gaps.
//
// This code runs once or twice in a launch, so that its instructions come from afar: it is kept short.

#pragma once

#include "types.cuh"

namespace paged {

// Tells all CTAs that what this warpgroup wrote before the barrier it has just passed is there.
__device__ __forceinline__ unsigned int release(unsigned int* counter) {
    unsigned int before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

__device__ __forceinline__ unsigned int acquire(const unsigned int* counter) {
    unsigned int value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
}

// Two neighbouring channels of a row of the output.
template <bool F32>
__device__ __forceinline__ void put(void* out, int64_t at, float low, float high) {
    if constexpr (F32) {
        *reinterpret_cast<float2*>(static_cast<float*>(out) + at) = make_float2(low, high);
    } else {
        *reinterpret_cast<uint32_t*>(static_cast<bf16*>(out) + at) = pack(low, high);
    }
}

template <class S>
template <int COUNT>
__device__ __forceinline__ void Kernel<S>::finish(
    const int4& item, const float (&o)[COUNT], const float (&m)[2], const float (&l)[2], int group, const Block& rows
) const {
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32, row = thread / 32 * 16 + lane / 4;
    const int row_block = block + group / S::VALUE_GROUPS, value_group = group % S::VALUE_GROUPS;
    if (row_block >= p.row_blocks) return;
    float sum[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] = l[r] + __shfl_xor_sync(~0u, l[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    }
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
        fence_async_everywhere();
        named_barrier(1 + group, WARPGROUP);
        if (thread == 0) release(written(item.w, group));
        return;
    }
    const int column = value_group * 2 * COUNT + lane % 4 * 2;
    const int64_t first = task_query(p, item.x);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (row + 8 * r >= rows.rows) continue;
        const int64_t query = first + rows.query_of(p, row + 8 * r);
        const float factor = sum[r] > 0.0f ? 1.0f / sum[r] : 0.0f;
        if (p.lse && column == 0) p.lse[query] = sum[r] > 0.0f ? (m[r] + log2f(sum[r]) - shift()) * LN_2 : -INFINITY;
        const int64_t at = query * p.value_width + column;
        auto write = [&](auto f32) {
#pragma unroll
            for (int i = 0; i < COUNT / 4; i++) {
                if (column + 8 * i >= p.value_width) break;
                const float* pair = o + 4 * i + 2 * r;
                put<decltype(f32)::value>(p.out, at + 8 * i, pair[0] * factor, pair[1] * factor);
            }
        };
        if (p.out_f32) write(Flag<true>()); else write(Flag<false>());
    }
}

// A lane's accumulators of a unit, two channels each of two rows whose outputs lie at `places`.
template <class S>
__device__ __forceinline__ void Kernel<S>::write_unit(
    int unit, int value_group, int row, const int64_t (&places)[2], const float (&sum)[4], const Block& rows
) const {
    const int channel = value_group * (S::E / S::VALUE_GROUPS) + unit / 4 * 8 + threadIdx.x % 4 * 2;
    if (channel >= p.value_width) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (row + 8 * r >= rows.rows) break;
        const int64_t at = places[r] + channel;
        if (p.out_f32) put<true>(p.out, at, sum[2 * r], sum[2 * r + 1]);
        else put<false>(p.out, at, sum[2 * r], sum[2 * r + 1]);
    }
}

// One unit of many parts.
template <class S>
__device__ __forceinline__ void Kernel<S>::add_many(
    int unit, int64_t number, int64_t step, int parts, const float2* weights, float4* others, const int64_t* places,
    int value_group, const Block& rows
) const {
    constexpr int UNITS = S::E / S::VALUE_GROUPS / 8 * 4;
    const int thread = threadIdx.x % WARPGROUP, warp = thread / 32, lane = thread % 32, local = lane / 4;
    const float4* from = p.part_out + (number * UNITS + unit) * 32 + lane;
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 16
    for (int part = warp; part < parts; part += 4) {
        const float4 value = __ldcg(from + part * (step * UNITS * 32));
        const float first = weights[part * 16 + local].x, second = weights[part * 16 + local + 8].x;
        sum.x += first * value.x, sum.y += first * value.y, sum.z += second * value.z, sum.w += second * value.w;
    }
    if (warp > 0) others[(warp - 1) * 32 + lane] = sum;
    named_barrier(1 + threadIdx.x / WARPGROUP, WARPGROUP);
    if (warp == 0) {
        for (int other = 0; other < 3; other++) {
            const float4 more = others[other * 32 + lane];
            sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
        }
        const int row = unit % 4 * 16 + local;
        const int64_t place[2] = {places[row], places[row + 8]};
        const float four[4] = {sum.x, sum.y, sum.z, sum.w};
        write_unit(unit, value_group, row, place, four, rows);
    }
    named_barrier(1 + threadIdx.x / WARPGROUP, WARPGROUP);
}

// Adds up this CTA's share of the outputs of tasks of which it has a part: of its first item, its last, or both.
//
// Its share are some units, 8 channels of 16 rows, 512 bytes of every part. Of a few parts, the copy engine brings them to
// where tiles were while the weights of all rows are computed. Of many, it would take longer to ask for so many small
// pieces than to read them: then units come one by one, and each warp adds up every fourth part.
template <class S>
__device__ __forceinline__ void Kernel<S>::merge(int group, unsigned char* memory, const Block& rows) const {
    constexpr int UNIT = 64, UNIT_BYTES = UNIT * sizeof(float2), UNITS = S::E / S::VALUE_GROUPS / 8 * 4, MANY = 16;
    constexpr int ROOM = S::SLOTS * S::SLOT_BYTES / S::GROUPS / UNIT_BYTES;
    const int row_block = block + group / S::VALUE_GROUPS, value_group = group % S::VALUE_GROUPS;
    const int thread = threadIdx.x % WARPGROUP, warp = thread / 32, lane = thread % 32;
    if (row_block >= p.row_blocks) return;
    const uint32_t arrived = barrier(6 + 2 * RING + group), base = slots + group * ROOM * UNIT_BYTES;
    // Of each row where its output lies; sums of the other warps; of each part and row its maximum and sum, then its weight.
    int64_t* places = reinterpret_cast<int64_t*>(memory + (base - shared_address(memory)));
    float4* others = reinterpret_cast<float4*>(places + UNIT);
    float2* weights = reinterpret_cast<float2*>(others + 3 * 32);
    uint32_t parity = 0;
    const int4 bounds = p.shares[2 * share + 1];
#pragma unroll 1
    for (int i = bounds.x; i < bounds.y; i = i + 1 < bounds.y ? bounds.y - 1 : bounds.y) {
        const int4 item = p.items[i];
        if (item.w < 0) continue;
        const int4 cut = p.cuts[item.w];
        const int parts = cut.z, part = share - cut.w, end = UNITS * (part + 1) / parts;
        const bool many = parts > MANY;
        const int together = many ? 1 : (ROOM - 4 - parts) / parts;
        const int64_t number = part_of(cut.y, row_block, value_group), step = part_of(1, 0, 0);
        const int64_t first_query = task_query(p, item.x);
        unsigned int* counter = written(item.w, group);
        if (thread < 32) {
            while (acquire(counter) < parts) {}
            fence_async_everywhere();
        }
        named_barrier(1 + group, WARPGROUP);
        if (thread < rows.rows) places[thread] = (first_query + rows.query_of(p, thread)) * p.value_width;
#pragma unroll 1
        for (int first = UNITS * part / parts; first < end; first += together) {
            const int count = min(together, end - first);
            const uint32_t values = base + (4 + parts) * UNIT_BYTES;
            if (!many && thread < 32) {
                if (thread == 0) barrier_expect(arrived, parts * count * UNIT_BYTES);
                __syncwarp();
                if (thread < parts) {
                    const float4* source = p.part_out + ((number + thread * step) * UNITS + first) * (UNIT_BYTES / 16);
                    copy_bytes(values + thread * count * UNIT_BYTES, source, count * UNIT_BYTES, arrived);
                }
            }
            // Several threads a row: all 64 rows for a few parts, the unit's 16 for many.
            const int shift = many ? 3 : 1, sharers = 1 << shift, of = many ? 16 : 64;
            const int local = thread >> shift, row = many ? first % 4 * 16 + local : local;
            float top = -INFINITY, total = 0.0f;
#pragma unroll 8
            for (int from = thread % sharers; from < parts; from += sharers) {
                const float2 sum = __ldcg(p.part_sums + (number + from * step) * 64 + row);
                weights[from * of + local] = sum;
                top = fmaxf(top, sum.x);
            }
            for (int s = 1; s < sharers; s *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, s));
            for (int from = thread % sharers; from < parts; from += sharers) {
                const float2 sum = weights[from * of + local];
                const float weight = sum.x == -INFINITY ? 0.0f : power2(sum.x - top);
                total += sum.y * weight;
                weights[from * of + local].x = weight;
            }
            for (int s = 1; s < sharers; s *= 2) total += __shfl_xor_sync(~0u, total, s);
            const float factor = total > 0.0f ? 1.0f / total : 0.0f;
            for (int from = thread % sharers; from < parts; from += sharers) weights[from * of + local].x *= factor;
            if (p.lse && first < 4 && thread % sharers == 0 && value_group == 0 && row < rows.rows) {
                const int64_t query = first_query + rows.query_of(p, row);
                p.lse[query] = total > 0.0f ? (top + log2f(total) - this->shift()) * LN_2 : -INFINITY;
            }
            named_barrier(1 + group, WARPGROUP);
            if (!many) {
                barrier_wait(arrived, parity);
                parity ^= 1;
            }
            if (many) {
                add_many(first, number, step, parts, weights, others, places, value_group, rows);
                continue;
            }
            // A warp has the units of the rows that it also computed.
            const int own = warp * 16 + lane / 4;
            const float4* here = reinterpret_cast<const float4*>(memory + (values - shared_address(memory))) + lane;
            if (own < rows.rows) {
                const int64_t place[2] = {places[own], places[min(own + 8, rows.rows - 1)]};
#pragma unroll 1
                for (int unit = first + ((warp - first) & 3); unit < first + count; unit += 4) {
                    float sum[4] = {};
#pragma unroll 2
                    for (int from = 0; from < parts; from++) {
                        const float4 value = here[(from * count + unit - first) * 32];
                        const float low = weights[from * 64 + own].x, high = weights[from * 64 + own + 8].x;
                        sum[0] += low * value.x, sum[1] += low * value.y;
                        sum[2] += high * value.z, sum[3] += high * value.w;
                    }
                    write_unit(unit, value_group, own, place, sum, rows);
                }
            }
            fence_async();
            named_barrier(1 + group, WARPGROUP);
        }
        // The last to have seen all parts makes the counter zero for the next launch.
        if (thread == 0 && atomicAdd(counter, 1) == 2 * parts - 1) *counter = 0;
    }
}

}  // namespace paged
