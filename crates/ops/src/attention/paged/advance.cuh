// From one step of decoding to the next: every sequence has one token more.
//
// Part of a recorded step, so that the host need not say where the next tokens go.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// lengths, positions, rows [sequences]; tables [sequences, max_pages]. The new token of a sequence of n is at position n, in
// row n of its pages. A sequence that fills its pages stays as it is: its owner stops in time.
extern "C" __global__ void paged_advance(int* lengths, const int* tables, uint32_t* positions, uint32_t* rows,
                                         int sequences, int max_pages, int page_shift) {
    const int sequence = blockIdx.x * blockDim.x + threadIdx.x;
    if (sequence >= sequences) return;
    const int length = lengths[sequence], page = length >> page_shift;
    if (page >= max_pages) return;
    lengths[sequence] = length + 1;
    positions[sequence] = length;
    rows[sequence] = (tables[int64_t(sequence) * max_pages + page] << page_shift) + (length & ((1 << page_shift) - 1));
}
