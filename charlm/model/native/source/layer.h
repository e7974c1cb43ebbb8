// A recurrent layer over T time steps: forward pass and backpropagation through time.
//
//   T time steps   B streams   H hidden units, a multiple of 32 (the caller pads with zero units, which stay zero)
//   E type of the operands of products: float or bf16. Sums, the cell state and all carried values are fp32.

#pragma once

#include <type_traits>

#include "cells.h"
#include "threads.h"

namespace charlm {

enum Kind : int64_t { RNN_TANH, RNN_RELU, LSTM, GRU, GRU_RESET_BEFORE, LSTM_PEEPHOLE, LSTM_COUPLED, KIND_COUNT };

static inline bool has_cell_state(int64_t kind) { return kind == LSTM || kind == LSTM_PEEPHOLE || kind == LSTM_COUPLED; }

struct Layer {
    int64_t kind, bf16, threads, rows_split;
    int64_t T, B, H;
    const void* weights;     // packed W_hh: forward [H/32][gates][H][32], backward [H/32][gates·H][32]
    const float* b_n;        // (H,), GRU with reset after
    const float* peepholes;  // (3·H,): p_i, p_f, p_o; LSTM with peepholes
    const void* x;           // W_ih·input + biases: a table (V, gates·H) of floats if there are ids, else (T, B, gates·H) of E
    const int64_t* ids;      // (T, B), or null
    void* h;                 // (T+1, B, H) of E; h[0] is given
    float* carried;          // LSTM: c; GRU: h in fp32. (T+1, B, H), or (B, H) if carried_step = 0; [0] is given
    int64_t carried_step;    // B·H, or 0
    void* kept;              // (T, B, slots·H) of E, or (B, slots·H) if kept_step = 0. After the backward pass: d
    int64_t kept_step;
    void* rh;  // (T, B, H) of E, or (B, H) if rh_step = 0; GRU with reset before
    int64_t rh_step;
    const void* d_outputs;  // (T, B, H) of E, or null
    float* dh;              // (B, H): in: gradient of the last h; out: gradient of the first
    float* dc;              // the same for c (LSTM)
};

// Operands and results of one step.
template <class E, class X>
struct Step {
    const X* x;  // for stream 0, or the table
    const int64_t* ids;
    const E* h;
    E* h_next;
    const float* before;
    float* after;
    E *kept, *rh;
};

// base + offset; null stays null, for arrays that a cell does not have.
template <class P>
static inline P* at_offset(P* base, long offset) {
    return base ? base + offset : nullptr;
}

constexpr long ROWS = 32;  // number of streams whose sums are computed together

template <class Cell, class E, class X>
static void forward_step(const Layer& layer, const Step<E, X>& s, const WorkSlice& slice) {
    constexpr int G = Cell::gates;
    constexpr bool two_halves = std::is_same_v<Cell, GruResetBefore>;
    constexpr int AT_ONCE = G == 1 ? 4 : 1;  // number of panels whose sums are computed together
    const long H = layer.H, panel = H * PANEL;
    const E* W = (const E*)layer.weights;
    alignas(64) float sums[G * AT_ONCE * ROWS * PANEL];
    for (int half = 0; half <= two_halves; half++) {
        // The first or only half applies the weights of the gates to h. The second half applies W_n to r∘h.
        const bool second = half == 1;
        const E* operand = second ? s.rh : s.h;
        const long first_gate = second ? 2 : 0, gates = second ? 1 : two_halves ? 2 : G;
        for (long p = slice.panels.first; p < slice.panels.end; p += AT_ONCE) {
            const long blocks = slice.panels.end - p < AT_ONCE ? slice.panels.end - p : AT_ONCE;
            for (long row = slice.rows.first; row < slice.rows.end; row += ROWS) {
                const long rows = slice.rows.end - row < ROWS ? slice.rows.end - row : ROWS;
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
                            .peepholes = at_offset(layer.peepholes, j),
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
        slice.wait();
    }
}

template <class Cell, class E, class X>
static void forward_layer(const Layer& layer, const WorkSlice& slice) {
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
        forward_step<Cell>(layer, step, slice);
    }
}

template <class Cell, class E>
static void backward_layer(const Layer& layer, const WorkSlice& slice) {
    constexpr int G = Cell::gates, S = Cell::slots;
    constexpr bool two_halves = std::is_same_v<Cell, GruResetBefore>;
    const long H = layer.H, BH = layer.B * H, first = slice.rows.first, rows = slice.rows.end - first;
    const E* W = (const E*)layer.weights;
    const float* c = has_cell_state(layer.kind) ? layer.carried : nullptr;
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
                .peepholes = at_offset(layer.peepholes, j),
                .kept = d + row * S * H + j,
                .dh = layer.dh + at,
                .dc = layer.dc + at,
            };
        };
        for (long row = first; row < slice.rows.end; row++)
            for (long p = slice.panels.first; p < slice.panels.end; p++) Cell::backward(place(row, p * PANEL));
        slice.wait();
        if constexpr (two_halves) {
            alignas(64) float d_rh[ROWS * PANEL];
            for (long p = slice.panels.first; p < slice.panels.end; p++)
                for (long row = first; row < slice.rows.end; row += ROWS) {
                    const long count = slice.rows.end - row < ROWS ? slice.rows.end - row : ROWS;
                    product<E>(count, d + row * S * H + 2 * H, S * H, W + (p * G + 2) * H * PANEL, 1, H, d_rh, PANEL, 0, false);
                    for (long r = 0; r < count; r++) Cell::backward_reset(place(row + r, p * PANEL), d_rh + r * PANEL);
                }
            slice.wait();
        }
        const long K = (two_halves ? 2 : G) * H;
        for (long p = slice.panels.first; p < slice.panels.end; p++)
            product<E>(rows, d + first * S * H, S * H, W + p * G * H * PANEL, 1, K, layer.dh + first * H + p * PANEL, H, 0,
                       Cell::direct);
    }
}

template <class Cell, class E>
static void run_slice(const Layer& layer, const WorkSlice& slice, bool forward) {
    if (!forward)
        backward_layer<Cell, E>(layer, slice);
    else if (layer.ids)
        forward_layer<Cell, E, float>(layer, slice);
    else
        forward_layer<Cell, E, E>(layer, slice);
}

template <class E>
static void run_slice(const Layer& layer, const WorkSlice& slice, bool forward) {
    switch (layer.kind) {
        case RNN_TANH: return run_slice<RnnTanh, E>(layer, slice, forward);
        case RNN_RELU: return run_slice<RnnRelu, E>(layer, slice, forward);
        case LSTM: return run_slice<Lstm, E>(layer, slice, forward);
        case GRU: return run_slice<GruResetAfter, E>(layer, slice, forward);
        case GRU_RESET_BEFORE: return run_slice<GruResetBefore, E>(layer, slice, forward);
        case LSTM_PEEPHOLE: return run_slice<LstmPeephole, E>(layer, slice, forward);
        case LSTM_COUPLED: return run_slice<LstmCoupled, E>(layer, slice, forward);
    }
}

static inline long gates_of(int64_t kind) {
    switch (kind) {
        case LSTM:
        case LSTM_PEEPHOLE: return 4;
        case RNN_TANH:
        case RNN_RELU: return 1;
        default: return 3;
    }
}

static void run_layer(const Layer& layer, bool forward) {
    const long bytes = gates_of(layer.kind) * layer.H * layer.H * (layer.bf16 ? 2 : 4);
    Barrier barrier;
#pragma omp parallel num_threads(layer.threads) if (layer.threads > 1)
    {
        Worker worker;
        const WorkSlice slice = slice_of(thread_number(), thread_count(), layer.B, layer.H, bytes, layer.rows_split, &barrier);
        if (layer.bf16)
            run_slice<bf16>(layer, slice, forward);
        else
            run_slice<float>(layer, slice, forward);
    }
}

// The gradient of the rows of a table: for each id, the sum of d over all positions that have this id.
struct SumById {
    int64_t bf16, threads;
    const void* d;       // (N, d_step) of E
    const int64_t* ids;  // (N,)
    int64_t N, d_step;
    int64_t H, gates;
    const int64_t* slots;  // (gates,): the block of d that is the gradient of each gate's input
    float* sums;           // (V, gates·H), zero on entry
};

template <class E>
static void sum_by_id(const SumById& p) {
    const long panels = p.gates * p.H / PANEL;
    constexpr long WIDTH = 4;  // panels at a time; these columns of a small table stay in the L1 cache
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

// The gradient of the peepholes: the sums over all positions of d_i∘c, d_f∘c and d_o∘c_next, each in the order of positions.
struct PeepholeGradient {
    int64_t bf16, threads;
    int64_t T, B, H;
    const void* d;   // (T, B, 4·H) of E, for i, f, g, o
    const float* c;  // (T+1, B, H)
    float* sums;     // (3·H,)
};

template <class E>
static void peephole_gradient(const PeepholeGradient& p) {
#pragma omp parallel for num_threads(p.threads) schedule(static) if (p.threads > 1)
    for (long first = 0; first < p.H; first += PANEL) {
        Vector sums[3][PANEL / LANES] = {};
        for (long n = 0; n < p.T * p.B; n++) {
            const E* d = (const E*)p.d + n * 4 * p.H + first;
            const float *c = p.c + n * p.H + first, *c_next = c + p.B * p.H;
            for (long v = 0; v < PANEL; v += LANES) {
                sums[0][v / LANES] = sums[0][v / LANES] + load(d + v) * load(c + v);
                sums[1][v / LANES] = sums[1][v / LANES] + load(d + p.H + v) * load(c + v);
                sums[2][v / LANES] = sums[2][v / LANES] + load(d + 3 * p.H + v) * load(c_next + v);
            }
        }
        for (long gate = 0; gate < 3; gate++)
            for (long v = 0; v < PANEL; v += LANES) store(p.sums + gate * p.H + first + v, sums[gate][v / LANES]);
    }
}

}  // namespace charlm
