// Matrix products that are divided between threads: the forward pass of a linear layer, and the gradient of its weights.
//
// The order of every sum depends on the shapes alone, so the results are bit-identical for any number of threads. Threads take
// work dynamically, in small pieces, so a thread that loses its core to another program delays only one piece.

#pragma once

#include "threads.h"

namespace charlm {

// Packs a float matrix (rows, columns) for products; see products.h. `rows` is divided into `gates` blocks. Each block and the
// columns are padded with zeros to whole panels: to P rows per block and Q columns.
struct Packing {
    int64_t bf16, threads;
    const float* matrix;
    int64_t rows, columns;
    int64_t gates;     // number of blocks of rows whose panels are interleaved; 1: none
    void* transposed;  // for A · Wᵀ, or null: [P/32][gates][Q][32]
    void* plain;       // for A · W, or null: [Q/32][gates · P][32]
};

template <class E>
static void pack(const Packing& p) {
    const long units = p.rows / p.gates, P = padded(units), Q = padded(p.columns);
    const long transposed = p.transposed ? p.gates * P / PANEL : 0, plain = p.plain ? Q / PANEL : 0;
#pragma omp parallel for num_threads(p.threads) schedule(static) if (p.threads > 1)
    for (long n = 0; n < transposed + plain; n++) {
        if (n < transposed) {
            const long unit = n / p.gates * PANEL, gate = n % p.gates;
            pack_transposed<E>(p.matrix + (gate * units + unit) * p.columns, p.columns, units - unit, p.columns,
                               (uint32_t*)((E*)p.transposed + n * Q * PANEL));
            continue;
        }
        const long column = (n - transposed) * PANEL, width = p.columns - column < PANEL ? p.columns - column : PANEL;
        E* panel = (E*)p.plain + (n - transposed) * p.gates * P * PANEL;
        for (long gate = 0; gate < p.gates; gate++)
            pack_plain<E>(p.matrix + gate * units * p.columns + column, p.columns, units, width, P,
                          (uint32_t*)(panel + gate * P * PANEL));
    }
}

// Y = A · W + bias, or Y = A · W + Y.
struct Linear {
    int64_t bf16, threads;
    int64_t rows, K, N;    // K and N are multiples of 32
    const void* a;         // (rows, K) of E
    int64_t a_step;        // from one row to the next
    int64_t gap_at, gap;   // `gap` numbers of each row of A are skipped before its number `gap_at`; gap_at = K: none
    const void* weights;   // packed: [N/32][K][32]
    const float* bias;     // (N,), or null
    const void* added;     // (rows, N) like `out`, added to the result; or null
    int64_t out_is_float;  // Y is float, else E
    void* out;             // (rows, N)
};

template <class E, class Out>
static void linear(const Linear& p) {
    constexpr long BLOCK = 96;  // rows computed with a panel while it is in the cache
    const long blocks = (p.rows + BLOCK - 1) / BLOCK, panels = p.N / PANEL;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
        Worker worker;
        alignas(64) float sums[BLOCK * PANEL];
#pragma omp for collapse(2) schedule(dynamic)
        for (long block = 0; block < blocks; block++)
            for (long panel = 0; panel < panels; panel++) {
                const long first = block * BLOCK, rows = p.rows - first < BLOCK ? p.rows - first : BLOCK;
                const E *a = (const E*)p.a + first * p.a_step, *w = (const E*)p.weights + panel * p.K * PANEL;
                product<E>(rows, a, p.a_step, w, 1, p.gap_at, sums, PANEL, 0, false);
                if (p.gap_at < p.K)
                    product<E>(rows, a + p.gap_at + p.gap, p.a_step, w + p.gap_at * PANEL, 1, p.K - p.gap_at, sums, PANEL, 0,
                               true);
                for (long r = 0; r < rows; r++)
                    for (long j = 0; j < PANEL; j += LANES) {
                        const long at = (first + r) * p.N + panel * PANEL + j;
                        Vector y = load(sums + r * PANEL + j);
                        if (p.bias) y = y + load(p.bias + panel * PANEL + j);
                        if (p.added) y = y + load((const Out*)p.added + at);
                        store((Out*)p.out + at, y);
                    }
            }
    }
}

template <class E>
static void linear(const Linear& p) {
    p.out_is_float ? linear<E, float>(p) : linear<E, E>(p);
}

// C = Aᵀ · B, summed over K positions: the gradient of a weight matrix (M, N) from its output gradients A and its inputs B.
struct WeightGradient {
    int64_t bf16, threads;  // bf16: the operands of the product
    int64_t K, M, N;        // M and N are multiples of 32
    int64_t rows;           // of C, at most M: further columns of A are padding
    int64_t a_is_float, b_is_float;
    const void* a;  // (K, M), rows `a_step` numbers apart
    int64_t a_step;
    const void* b;  // (K, N), rows `b_step` numbers apart
    int64_t b_step;
    void* packed;   // scratch memory: (M + N) · depth numbers of E
    int64_t depth;  // positions at a time, a multiple of 32
    float* out;     // (rows, N)
    float* sums;    // (M,): sums of A over K, the gradient of a bias, zero on entry; or null
};

constexpr long STRIP = 96;  // columns of A that are packed together

// Packs columns of A or B (K, …) as 32-bit words: [depth][columns], or for bf16 [depth/2][columns] with two neighbours in K per
// word. Positions from `count` on are filled with zeros.
template <class From, class E>
static void pack_positions(const From* from, long step, long columns, long count, long depth, uint32_t* words) {
    for (long k = 0; k < depth; k += sizeof(E) == 4 ? 1 : 2)
        for (long j = 0; j < columns; j += LANES) {
            Vector even = k < count ? load(from + k * step + j) : Vector{};
            if constexpr (sizeof(E) == 4)
                store((float*)words, even);
            else {
                Vector odd = k + 1 < count ? load(from + (k + 1) * step + j) : Vector{};
                *(WordsAnywhere*)words = pair(even, odd);
            }
            words += LANES;
        }
}

#if defined(__AMX_BF16__) || defined(CHARLM_EMULATE_AMX)
// Packs columns of A as rows of `depth` numbers, the layout of the AMX product.
template <class From>
static void transpose(const From* a, long a_step, long columns, long count, long depth, bf16* rows) {
    for (long j0 = 0; j0 < columns; j0 += PANEL)
        for (long k0 = 0; k0 < depth; k0 += PANEL) {
            alignas(64) float block[PANEL][PANEL], row[PANEL];
            for (long k = 0; k < PANEL; k++)
                for (long j = 0; j < PANEL; j += LANES)
                    store(&block[k][j], k0 + k < count ? load(a + (k0 + k) * a_step + j0 + j) : Vector{});
            for (long j = 0; j < PANEL; j++) {
                for (long k = 0; k < PANEL; k++) row[k] = block[k][j];
                for (long k = 0; k < PANEL; k += LANES) store(rows + (j0 + j) * depth + k0 + k, load(row + k));
            }
        }
}
#endif

template <class E, class A, class B>
static void weight_gradient(const WeightGradient& p) {
#if defined(__AMX_BF16__) || defined(CHARLM_EMULATE_AMX)
    constexpr bool transposed = sizeof(E) == 2;
#else
    constexpr bool transposed = false;
#endif
    const long strips = (p.M + STRIP - 1) / STRIP, panels = p.N / PANEL;
    E *rows = (E*)p.packed, *columns = rows + p.M * p.depth;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
        Worker worker;
        for (long k0 = 0; k0 < p.K; k0 += p.depth) {
            const long count = p.K - k0 < p.depth ? p.K - k0 : p.depth, depth = (count + 31) / 32 * 32;
            const A* a = (const A*)p.a + k0 * p.a_step;
            const B* b = (const B*)p.b + k0 * p.b_step;
#pragma omp for schedule(dynamic)
            for (long n = 0; n < strips + panels; n++) {
                const long first = n * STRIP, width = p.M - first < STRIP ? p.M - first : STRIP, panel = n - strips;
                if (n >= strips) {
                    pack_positions<B, E>(b + panel * PANEL, p.b_step, PANEL, count, depth,
                                         (uint32_t*)(columns + panel * PANEL * depth));
                    continue;
                }
#if defined(__AMX_BF16__) || defined(CHARLM_EMULATE_AMX)
                if constexpr (transposed) transpose(a + first, p.a_step, width, count, depth, rows + first * depth);
#endif
                if constexpr (!transposed)
                    pack_positions<A, E>(a + first, p.a_step, width, count, depth, (uint32_t*)(rows + first * depth));
                for (long k = 0; p.sums && k < count; k++)
                    for (long j = first; j < first + width; j += LANES)
                        store(p.sums + j, load(p.sums + j) + load(a + k * p.a_step + j));
            }
#pragma omp for collapse(2) schedule(dynamic)
            for (long strip = 0; strip < strips; strip++)
                for (long panel = 0; panel < panels; panel++) {
                    const long first = strip * STRIP, width = p.M - first < STRIP ? p.M - first : STRIP;
                    const long height = p.rows - first < width ? p.rows - first : width;
                    if (height <= 0) continue;
                    float* out = p.out + first * p.N + panel * PANEL;
                    if constexpr (transposed)
                        product<E>(height, rows + first * depth, depth, columns + panel * PANEL * depth, 1, depth, out, p.N, 0,
                                   k0 > 0);
                    else
                        product_by_position<E>(height, (const uint32_t*)(rows + first * depth), width,
                                               (const uint32_t*)(columns + panel * PANEL * depth), words<E>(depth), out, p.N,
                                               k0 > 0);
                }
        }
    }
}

template <class E>
static void weight_gradient(const WeightGradient& p) {
    if constexpr (sizeof(E) == 4)
        weight_gradient<E, float, float>(p);
    else if (p.a_is_float)
        p.b_is_float ? weight_gradient<E, float, float>(p) : weight_gradient<E, float, E>(p);
    else
        p.b_is_float ? weight_gradient<E, E, float>(p) : weight_gradient<E, E, E>(p);
}

}  // namespace charlm
