// Dropout: zeroes random elements and scales up the rest. The key alone determines which elements are zeroed, so the backward
// pass recomputes the mask and none is stored. charlm/model/dropout.py defines the random sequence.

#pragma once

#include "threads.h"
#include "vectors.h"

namespace charlm {

struct Dropping {
    int64_t bf16, threads;
    int64_t count, row;      // rows of `row` elements, such as the streams of a process at one time step
    int64_t stride, offset;  // element j of row t has position t·stride + offset + j in the random sequence
    uint64_t key;
    int64_t threshold;  // probability of a zero, times 65,536
    double scale;
    const void* values;  // (count,)
    void* out;           // (count,); may be `values`
};

// SplitMix64 (Steele et al. 2014): the n-th number after `key`. Each of its four quarters decides about one of four neighbours.
static inline uint64_t random_word(uint64_t key, uint64_t n) {
    uint64_t z = key + (n + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

template <class E>
static void drop_part(const Dropping& d, long first, long end) {
    constexpr long BLOCK = 256;
    float factors[BLOCK + 4];
    const float scale = (float)d.scale;
    const E* values = (const E*)d.values;
    E* out = (E*)d.out;
    for (long at = first; at < end; at += BLOCK) {
        const long position = at / d.row * d.stride + d.offset + at % d.row, shift = position % 4;
        const long count = end - at < BLOCK ? end - at : BLOCK;
        for (long n = 0; n <= BLOCK / 4; n++) {
            const uint64_t word = random_word(d.key, position / 4 + n);
            for (int quarter = 0; quarter < 4; quarter++)
                factors[4 * n + quarter] = (int64_t)(word >> (16 * quarter) & 0xffff) >= d.threshold ? scale : 0;
        }
        long i = 0;
        for (; i + LANES <= count; i += LANES) store(out + at + i, load(values + at + i) * load(factors + shift + i));
        if (i < count) {
            E last[LANES] = {};
            memcpy(last, values + at + i, (count - i) * sizeof(E));
            store(last, load(last) * load(factors + shift + i));
            memcpy(out + at + i, last, (count - i) * sizeof(E));
        }
    }
}

template <class E>
static void drop(const Dropping& d) {
    const long rows = d.count / d.row, parts = (d.row + 8191) / 8192;  // a part never crosses the end of a row
#pragma omp parallel for num_threads(d.threads) collapse(2) schedule(static) if (d.threads > 1)
    for (long row = 0; row < rows; row++)
        for (long n = 0; n < parts; n++) {
            const long first = row * d.row + n * 8192, end = (row + 1) * d.row;
            drop_part<E>(d, first, first + 8192 < end ? first + 8192 : end);
        }
}

}  // namespace charlm
