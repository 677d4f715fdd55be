// Scores in registers: what distances do to them, and the largest.

#pragma once

#include "params.cuh"

namespace paged {

// Scores that distances change: those of keys that a token does not see, and all where there are slopes. `far` is how far a
// thread's first key lies before the first token, `key_of` which key score j is of from there.
template <int SCORES, class KeyOf>
__device__ __forceinline__ void
change_scores(const Params& p, float (&s)[SCORES], int far, const int (&tokens)[2], const float (&slopes)[2], KeyOf key_of) {
    if (p.slopes) {
#pragma unroll
        for (int j = 0; j < SCORES; j++) {
            s[j] = fmaf(-slopes[j / 2 % 2], static_cast<float>(far + tokens[j / 2 % 2]) - key_of(j), s[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < SCORES; j++) {
        // Later keys are at negative distances: beyond any window, too.
        const unsigned int distance = far + tokens[j / 2 % 2] - key_of(j);
        if (distance >= static_cast<unsigned int>(p.window)) s[j] = -INFINITY;
    }
}

// The largest of a thread's scores of each of its two rows, in chains that do not wait for each other.
template <int SCORES>
__device__ __forceinline__ void largest_scores(const float (&s)[SCORES], float (&top)[2]) {
    constexpr int CHAINS = 4;
    float tops[2][CHAINS];
#pragma unroll
    for (int j = 0; j < SCORES; j++) {
        float& chain = tops[j / 2 % 2][j / 4 % CHAINS];
        chain = j < 4 * CHAINS && j % 2 == 0 ? s[j] : fmaxf(chain, s[j]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) top[r] = fmaxf(fmaxf(tops[r][0], tops[r][1]), fmaxf(tops[r][2], tops[r][3]));
}

}  // namespace paged
