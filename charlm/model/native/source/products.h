// Matrix products of a few rows with many columns, the shape of a recurrent step: Y (rows, N) = A (rows, K) · W (K, N).
//
// W is packed once per optimizer step into panels of 32 columns, in the order in which the product reads it: [panel][K][32].
// With bf16 operands, two neighbours in K share a 32-bit word: [panel][K/2][32][2]. In both precisions a panel consists of rows
// of 32 words (K or K/2 of them), and the same loop computes both; only the multiplication of two words differs.
//
// Every element of Y is one sum over K in a fixed order. Results do not depend on the number of threads or on which rows are
// computed together.

#pragma once

#include "vectors.h"

#if defined(__AMX_BF16__) || defined(CHARLM_EMULATE_AMX)
#include "amx.h"
#endif

namespace charlm {

template <class E>
constexpr long words(long K) {
    return K * (long)sizeof(E) / 4;
}

// acc + a·w for one word of a row of A and one word of each column of W.
template <class E>
static inline Vector multiply_add(Vector acc, Words a, Words w);

template <>
inline Vector multiply_add<float>(Vector acc, Words a, Words w) {
    return as_floats(a) * as_floats(w) + acc;
}

template <>
inline Vector multiply_add<bf16>(Vector acc, Words a, Words w) {
#if defined(__AVX512BF16__)
    return (Vector)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)w);
#else
    acc = as_floats(a << 16) * as_floats(w << 16) + acc;
    return as_floats(a & 0xffff0000u) * as_floats(w & 0xffff0000u) + acc;
#endif
}

// Maximum number of rows that are computed together: the sums of all of them fit the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MAX_ROWS = 12;
#else
constexpr int MAX_ROWS = 6;
#endif

// The layout of A. BY_ROW: row after row, `step` words apart. BY_POSITION (weight gradients): the words of all rows for one k
// are contiguous, and those of the next k follow `step` words later.
enum Layout { BY_ROW, BY_POSITION };

// R rows × (C vectors of columns) of P panels, with all sums in registers.
template <class E, int R, int P, Layout LAYOUT = BY_ROW>
static inline void tile(const uint32_t* a, long a_step, const uint32_t* w, long w_step, long K, float* y, long y_step,
                        long y_panel, bool add) {
    constexpr int C = 2;
    for (long column = 0; column < PANEL; column += C * LANES) {
        Vector sums[R][P * C];
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 16
            for (int p = 0; p < P * C; p++) sums[r][p] = Vector{};
        for (long k = 0; k < K; k++) {
            Words weights[P * C];
#pragma GCC unroll 16
            for (int p = 0; p < P; p++)
#pragma GCC unroll 16
                for (int c = 0; c < C; c++)
                    weights[p * C + c] = as_bits(load((const float*)(w + p * w_step + k * PANEL + column + c * LANES)));
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                Words x = a[LAYOUT == BY_ROW ? r * a_step + k : k * a_step + r] - Words{};
#pragma GCC unroll 16
                for (int p = 0; p < P * C; p++) sums[r][p] = multiply_add<E>(sums[r][p], x, weights[p]);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 16
            for (int p = 0; p < P; p++)
#pragma GCC unroll 16
                for (int c = 0; c < C; c++) {
                    float* to = y + p * y_panel + r * y_step + column + c * LANES;
                    store(to, add ? load(to) + sums[r][p * C + c] : sums[r][p * C + c]);
                }
    }
}

template <class E, int R, Layout LAYOUT = BY_ROW>
static void rows_of_panel(long rows, const uint32_t* a, long a_step, const uint32_t* w, long K, float* y, long y_step,
                          bool add) {
    if constexpr (R > 0) {
        if (rows == R)
            tile<E, R, 1, LAYOUT>(a, a_step, w, 0, K, y, y_step, 0, add);
        else
            rows_of_panel<E, R - 1, LAYOUT>(rows, a, a_step, w, K, y, y_step, add);
    }
}

// One panel of Y (+)= A · W, with A in words and BY_POSITION.
template <class E>
static void product_by_position(long rows, const uint32_t* a, long a_step, const uint32_t* w, long K, float* y, long y_step,
                                bool add) {
    const long blocks = (rows + MAX_ROWS - 1) / MAX_ROWS;
    for (long block = 0; block < blocks; block++) {
        const long first = rows * block / blocks, count = rows * (block + 1) / blocks - first;
        rows_of_panel<E, MAX_ROWS, BY_POSITION>(count, a + first, a_step, w, K, y + first * y_step, y_step, add);
    }
}

// Y[:, panels] (+)= A · W[:, panels].
//
//   a       rows × K numbers, rows `a_step` numbers apart
//   w       `panels` packed panels
//   y       the element of row r, panel p, column j is y[r · y_step + p · y_panel + j]
template <class E>
static void product(long rows, const E* a, long a_step, const E* w, long panels, long K, float* y, long y_step, long y_panel,
                    bool add) {
#if defined(__AMX_BF16__) || defined(CHARLM_EMULATE_AMX)
    if constexpr (sizeof(E) == 2) {
        for (long p = 0; p < panels; p++) amx::product(rows, a, a_step, w + p * K * PANEL, K, y + p * y_panel, y_step, add);
        return;
    }
#endif
    const uint32_t *a_words = (const uint32_t*)a, *w_words = (const uint32_t*)w;
    const long K_words = words<E>(K), step = words<E>(a_step), panel = K_words * PANEL;
    if (rows == 1) {  // a single row has too few sums to keep the FMA units busy: compute four panels at once
        long p = 0;
        for (; p + 4 <= panels; p += 4)
            tile<E, 1, 4>(a_words, step, w_words + p * panel, panel, K_words, y + p * y_panel, y_step, y_panel, add);
        for (; p < panels; p++) tile<E, 1, 1>(a_words, step, w_words + p * panel, 0, K_words, y + p * y_panel, y_step, 0, add);
        return;
    }
    const long blocks = (rows + MAX_ROWS - 1) / MAX_ROWS;
    for (long p = 0; p < panels; p++)
        for (long block = 0; block < blocks; block++) {
            long first = rows * block / blocks, count = rows * (block + 1) / blocks - first;
            rows_of_panel<E, MAX_ROWS>(count, a_words + first * step, step, w_words + p * panel, K_words,
                                       y + p * y_panel + first * y_step, y_step, add);
        }
}

// `size` rounded up to whole panels.
static inline long padded(long size) { return (size + PANEL - 1) / PANEL * PANEL; }

// PANEL numbers as words of E: the first `count` of `from`, then zeros.
template <class E>
static inline void panel_words(const float* from, long count, uint32_t* to) {
    alignas(64) float numbers[PANEL];
    if (count < PANEL) {
        for (long j = 0; j < PANEL; j++) numbers[j] = j < count ? from[j] : 0;
        from = numbers;
    }
    for (long j = 0; j < PANEL; j += LANES) store((E*)to + j, load(from + j));
}

// Packs one panel for A · Wᵀ: the first `rows` of 32 rows of W with K columns, `step` numbers apart; the rest is zeros.
template <class E>
static void pack_transposed(const float* W, long step, long rows, long K, uint32_t* panel) {
    constexpr long BLOCK = words<E>(PANEL);
    alignas(64) uint32_t block[PANEL][BLOCK];
    for (long k = 0; k < K; k += PANEL) {
        for (long j = 0; j < PANEL; j++) panel_words<E>(j < rows ? W + j * step + k : W, j < rows ? K - k : 0, block[j]);
        for (long word = 0; word < BLOCK; word++)
            for (long j = 0; j < PANEL; j++) *panel++ = block[j][word];
    }
}

// Packs a part of one panel for A · W: the first `columns` of 32 columns of W with `rows` rows, `step` numbers apart; the rest,
// up to `depth` rows, is zeros.
template <class E>
static void pack_plain(const float* W, long step, long rows, long columns, long depth, uint32_t* panel) {
    alignas(64) float first[PANEL] = {}, second[PANEL] = {};
    for (long k = 0; k < depth; k += 4 / sizeof(E), panel += PANEL) {
        if (columns == PANEL && k + 1 < rows) {
            const float* row = W + k * step;
            for (long j = 0; j < PANEL; j += LANES)
                if constexpr (sizeof(E) == 4)
                    store((float*)panel + j, load(row + j));
                else
                    *(WordsAnywhere*)(panel + j) = pair(load(row + j), load(row + step + j));
            continue;
        }
        for (long j = 0; j < PANEL; j++) {
            first[j] = k < rows && j < columns ? W[k * step + j] : 0;
            second[j] = k + 1 < rows && j < columns ? W[(k + 1) * step + j] : 0;
        }
        for (long j = 0; j < PANEL; j += LANES)
            if constexpr (sizeof(E) == 4)
                store((float*)panel + j, load(first + j));
            else
                *(WordsAnywhere*)(panel + j) = pair(load(first + j), load(second + j));
    }
}

}  // namespace charlm
