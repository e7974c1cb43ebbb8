// A recurrent layer over T time steps, forwards and backwards through time.
//
//   T time steps   B streams   H hidden units (a multiple of 32: the caller pads with zero units, which stay zero)
//   E the type of a product's operands: float, or bf16. Sums, the cell state and all that is carried are fp32.

#pragma once

#include <type_traits>

#include "cells.h"
#include "threads.h"

namespace charlm {

enum Kind : int64_t { RNN_TANH, RNN_RELU, LSTM, GRU, GRU_RESET_BEFORE };

struct Layer {
    int64_t kind, bf16, threads, rows_split;
    int64_t T, B, H;
    const void* weights;   // packed W_hh: forward [H/32][gates][H][32], backward [H/32][gates·H][32]
    const float* b_n;      // (H,), GRU with reset after
    const void* x;         // W_ih·input + biases: with ids a table (V, gates·H) of floats, else (T, B, gates·H) of E
    const int64_t* ids;    // (T, B), or null
    void* h;               // (T+1, B, H) of E; h[0] is given
    float* carried;        // LSTM: c; GRU: h in fp32. (T+1, B, H), or (B, H) where carried_step = 0; the first is given
    int64_t carried_step;  // B·H, or 0
    void* kept;            // (T, B, slots·H) of E, or (B, slots·H) where kept_step = 0. After the backward pass: d
    int64_t kept_step;
    void* rh;  // (T, B, H) of E, or (B, H) where rh_step = 0; GRU with reset before
    int64_t rh_step;
    const void* d_outputs;  // (T, B, H) of E, or null
    float* dh;              // (B, H): in, the gradient of the last h; out, of the first
    float* dc;              // the same for c
};

// What one step reads and writes.
template <class E, class X>
struct Step {
    const X* x;  // of stream 0, or the table
    const int64_t* ids;
    const E* h;
    E* h_next;
    const float* before;
    float* after;
    E *kept, *rh;
};

// Where a cell has no such thing, there is nothing to be pointed at.
template <class P>
static inline P* at_offset(P* base, long offset) {
    return base ? base + offset : nullptr;
}

constexpr long ROWS = 32;  // streams whose sums are held at a time

template <class Cell, class E, class X>
static void forward_step(const Layer& layer, const Step<E, X>& s, const Share& share) {
    constexpr int G = Cell::gates;
    constexpr bool two_halves = std::is_same_v<Cell, GruResetBefore>;
    constexpr int AT_ONCE = G == 1 ? 4 : 1;  // panels of hidden units whose sums are held at a time
    const long H = layer.H, panel = H * PANEL;
    const E* W = (const E*)layer.weights;
    alignas(64) float sums[G * AT_ONCE * ROWS * PANEL];
    for (int half = 0; half <= two_halves; half++) {
        // The first half, or the only one, applies all gates' weights to h; the second half W_n to r∘h.
        const bool second = half == 1;
        const E* operand = second ? s.rh : s.h;
        const long first_gate = second ? 2 : 0, gates = second ? 1 : two_halves ? 2 : G;
        for (long p = share.panels.first; p < share.panels.end; p += AT_ONCE) {
            const long blocks = share.panels.end - p < AT_ONCE ? share.panels.end - p : AT_ONCE;
            for (long row = share.rows.first; row < share.rows.end; row += ROWS) {
                const long rows = share.rows.end - row < ROWS ? share.rows.end - row : ROWS;
                product<E>(rows, operand + row * H, H, W + (p * G + first_gate) * panel, gates * blocks, H, sums, PANEL,
                           ROWS * PANEL, false);
                for (long block = 0; block < blocks; block++)
                    for (long r = 0; r < rows; r++) {
                        const long at = (row + r) * H + (p + block) * PANEL, j = (p + block) * PANEL;
                        const Forward<E, X> place = {
                            .Wh = sums + (block * gates * ROWS + r) * PANEL,
                            .Wh_gate = ROWS * PANEL,
                            .x = s.x + (s.ids ? s.ids[row + r] : row + r) * G * H + j,
                            .H = H,
                            .b_n = at_offset(layer.b_n, j),
                            .h = s.h + at,
                            .before = at_offset(s.before, at),
                            .after = at_offset(s.after, at),
                            .kept = s.kept + (row + r) * Cell::slots * H + j,
                            .rh = at_offset(s.rh, at),
                            .h_next = s.h_next + at,
                        };
                        if constexpr (two_halves) {
                            if (!second) {
                                Cell::forward_gates(place);
                                continue;
                            }
                        }
                        Cell::forward(place);
                    }
            }
        }
        share.meet();
    }
}

template <class Cell, class E, class X>
static void forward_layer(const Layer& layer, const Share& share) {
    const long BH = layer.B * layer.H;
    for (long t = 0; t < layer.T; t++) {
        Step<E, X> step;
        step.x = (const X*)layer.x + (layer.ids ? 0 : t * BH * Cell::gates);
        step.ids = layer.ids ? layer.ids + t * layer.B : nullptr;
        step.h = (const E*)layer.h + t * BH;
        step.h_next = (E*)layer.h + (t + 1) * BH;
        step.before = at_offset(layer.carried, t * layer.carried_step);
        step.after = at_offset(layer.carried, (t + 1) * layer.carried_step);
        step.kept = (E*)layer.kept + t * layer.kept_step;
        step.rh = at_offset((E*)layer.rh, t * layer.rh_step);
        forward_step<Cell>(layer, step, share);
    }
}

template <class Cell, class E>
static void backward_layer(const Layer& layer, const Share& share) {
    constexpr int G = Cell::gates, S = Cell::slots;
    constexpr bool two_halves = std::is_same_v<Cell, GruResetBefore>;
    const long H = layer.H, BH = layer.B * H, first = share.rows.first, rows = share.rows.end - first;
    const E* W = (const E*)layer.weights;
    const float* c = layer.kind == LSTM ? layer.carried : nullptr;
    for (long t = layer.T - 1; t >= 0; t--) {
        E* d = (E*)layer.kept + t * layer.B * S * H;
        auto place = [&](long row, long j) {
            const long at = row * H + j;
            return Backward<E>{
                .d_output = at_offset((const E*)layer.d_outputs, t * BH + at),
                .H = H,
                .h = (const E*)layer.h + t * BH + at,
                .h_next = (const E*)layer.h + (t + 1) * BH + at,
                .c = at_offset(c, t * BH + at),
                .c_next = at_offset(c, (t + 1) * BH + at),
                .kept = d + row * S * H + j,
                .dh = layer.dh + at,
                .dc = layer.dc + at,
            };
        };
        for (long row = first; row < share.rows.end; row++)
            for (long p = share.panels.first; p < share.panels.end; p++) Cell::backward(place(row, p * PANEL));
        share.meet();
        if constexpr (two_halves) {
            alignas(64) float d_rh[ROWS * PANEL];
            for (long p = share.panels.first; p < share.panels.end; p++)
                for (long row = first; row < share.rows.end; row += ROWS) {
                    const long count = share.rows.end - row < ROWS ? share.rows.end - row : ROWS;
                    product<E>(count, d + row * S * H + 2 * H, S * H, W + (p * G + 2) * H * PANEL, 1, H, d_rh, PANEL, 0, false);
                    for (long r = 0; r < count; r++) Cell::backward_reset(place(row + r, p * PANEL), d_rh + r * PANEL);
                }
            share.meet();
        }
        const long K = (two_halves ? 2 : G) * H;
        for (long p = share.panels.first; p < share.panels.end; p++)
            product<E>(rows, d + first * S * H, S * H, W + p * G * H * PANEL, 1, K, layer.dh + first * H + p * PANEL, H, 0,
                       Cell::direct);
    }
}

template <class Cell, class E>
static void run_share(const Layer& layer, const Share& share, bool forward) {
    if (!forward)
        backward_layer<Cell, E>(layer, share);
    else if (layer.ids)
        forward_layer<Cell, E, float>(layer, share);
    else
        forward_layer<Cell, E, E>(layer, share);
}

template <class E>
static void run_share(const Layer& layer, const Share& share, bool forward) {
    switch (layer.kind) {
        case RNN_TANH: return run_share<RnnTanh, E>(layer, share, forward);
        case RNN_RELU: return run_share<RnnRelu, E>(layer, share, forward);
        case LSTM: return run_share<Lstm, E>(layer, share, forward);
        case GRU: return run_share<GruResetAfter, E>(layer, share, forward);
        case GRU_RESET_BEFORE: return run_share<GruResetBefore, E>(layer, share, forward);
    }
}

static inline long gates_of(int64_t kind) { return kind == LSTM ? 4 : kind == GRU || kind == GRU_RESET_BEFORE ? 3 : 1; }

static void run_layer(const Layer& layer, bool forward) {
    const long bytes = gates_of(layer.kind) * layer.H * layer.H * (layer.bf16 ? 2 : 4);
    Meeting meeting;
#pragma omp parallel num_threads(layer.threads) if (layer.threads > 1)
    {
        Worker worker;
        const Share share = share_of(thread_number(), thread_count(), layer.B, layer.H, bytes, layer.rows_split, &meeting);
        if (layer.bf16)
            run_share<bf16>(layer, share, forward);
        else
            run_share<float>(layer, share, forward);
    }
}

// The gradient of a table's rows: for each id the sum of d over the places where it stands.
struct SumById {
    int64_t bf16, threads;
    const void* d;       // (N, d_step) of E
    const int64_t* ids;  // (N,)
    int64_t N, d_step;
    int64_t H, gates;
    const int64_t* slots;  // (gates,): which block of d belongs to each gate's input
    float* sums;           // (V, gates·H), zeros
};

template <class E>
static void sum_by_id(const SumById& p) {
    const long panels = p.gates * p.H / PANEL;
    constexpr long WIDTH = 4;  // panels at a time: a small table's slice stays in the first cache
#pragma omp parallel for num_threads(p.threads) schedule(static) if (p.threads > 1)
    for (long first = 0; first < panels; first += WIDTH) {
        const long end = first + WIDTH < panels ? first + WIDTH : panels;
        for (long n = 0; n < p.N; n++)
            for (long panel = first; panel < end; panel++) {
                const long j = panel * PANEL, gate = j / p.H;
                const E* d = (const E*)p.d + n * p.d_step + p.slots[gate] * p.H + j % p.H;
                float* sum = p.sums + p.ids[n] * p.gates * p.H + j;
                for (long v = 0; v < PANEL; v += LANES) store(sum + v, load(sum + v) + load(d + v));
            }
    }
}

}  // namespace charlm
