// The recurrent cells: forward and backward pass of one time step for a row of 32 hidden units.
//
// Names follow charlm/model/cells.py; docs/backpropagation.md derives the backward equations in the same notation.
// The caller computes W·h before `forward` (`Wh`: the sums of each gate) and Wᵀ·d after `backward`.
//
//   kept   the row's values for the backward pass: `slots` blocks of H numbers in the precision of the operands.
//          `backward` overwrites them with d, the gradients of the gates' pre-activations.
//
// The first `gates` blocks of d belong to the hidden side. The blocks of the input side depend on the cell.

#pragma once

#include "products.h"

namespace charlm {

// Pointers to the 32 units of one row. The block of a gate starts H numbers after that of the previous gate.
template <class E, class X>
struct Forward {
    const float* Wh;  // the sums of gate g are at Wh + g · Wh_gate
    long Wh_gate;
    const X* x;  // the input of gate g is at x + g · H
    long H;
    const float* b_n;        // GRU with reset after: the bias inside r∘(W_n·h + b_n)
    const float* peepholes;  // LSTM with peepholes: p_i; p_f and p_o follow, H numbers apart
    const E* h;              // before the step
    const float* before;     // LSTM: c before; GRU: h before, in fp32
    float* after;
    E* kept;
    E* rh;  // GRU with reset before: r∘h
    E* h_next;
};

template <class E>
struct Backward {
    const E* d_output;  // may be null
    long H;
    const E* h;  // before the step
    const E* h_next;
    const float *c, *c_next;
    const float* peepholes;  // as in Forward
    E* kept;
    float* dh;  // in: gradient of h_next from later steps; out: the part of the gradient of h that does not pass through W
    float* dc;
};

template <class E>
static inline Vector incoming_gradient(const Backward<E>& p, long v) {
    Vector dh = load(p.dh + v);
    return p.d_output ? dh + load(p.d_output + v) : dh;
}

struct RnnTanh {
    static constexpr int gates = 1, slots = 1;
    static constexpr bool direct = false;  // whether h also reaches h_next without passing through W

    template <class E, class X>
    static void forward(const Forward<E, X>& p) {
        for (long v = 0; v < PANEL; v += LANES) store(p.h_next + v, tanh(load(p.Wh + v) + load(p.x + v)));
    }

    template <class E>
    static void backward(const Backward<E>& p) {
        for (long v = 0; v < PANEL; v += LANES) {
            Vector h_next = load(p.h_next + v);
            store(p.kept + v, incoming_gradient(p, v) * (splat(1) - h_next * h_next));
        }
    }
};

struct RnnRelu {
    static constexpr int gates = 1, slots = 1;
    static constexpr bool direct = false;

    template <class E, class X>
    static void forward(const Forward<E, X>& p) {
        for (long v = 0; v < PANEL; v += LANES) store(p.h_next + v, relu(load(p.Wh + v) + load(p.x + v)));
    }

    template <class E>
    static void backward(const Backward<E>& p) {
        for (long v = 0; v < PANEL; v += LANES) {
            Vector dh = incoming_gradient(p, v);
            store(p.kept + v, load(p.h_next + v) > splat(0) ? dh : dh * splat(0));
        }
    }
};

struct Lstm {
    static constexpr int gates = 4, slots = 4;
    static constexpr bool direct = false;

    template <class E, class X>
    static void forward(const Forward<E, X>& p) {
        for (long v = 0; v < PANEL; v += LANES) {
            Vector i = sigmoid(load(p.Wh + v) + load(p.x + v));
            Vector f = sigmoid(load(p.Wh + p.Wh_gate + v) + load(p.x + p.H + v));
            Vector g = tanh(load(p.Wh + 2 * p.Wh_gate + v) + load(p.x + 2 * p.H + v));
            Vector o = sigmoid(load(p.Wh + 3 * p.Wh_gate + v) + load(p.x + 3 * p.H + v));
            Vector c = f * load(p.before + v) + i * g;
            store(p.after + v, c);
            store(p.h_next + v, o * tanh(c));
            store(p.kept + v, i), store(p.kept + p.H + v, f), store(p.kept + 2 * p.H + v, g), store(p.kept + 3 * p.H + v, o);
        }
    }

    template <class E>
    static void backward(const Backward<E>& p) {
        const Vector one = splat(1);
        for (long v = 0; v < PANEL; v += LANES) {
            E *to_i = p.kept + v, *to_f = to_i + p.H, *to_g = to_f + p.H, *to_o = to_g + p.H;
            Vector i = load(to_i), f = load(to_f), g = load(to_g), o = load(to_o);
            Vector dh = incoming_gradient(p, v), tanh_c = tanh(load(p.c_next + v));
            Vector dc = load(p.dc + v) + dh * o * (one - tanh_c * tanh_c);
            store(to_i, dc * g * i * (one - i));
            store(to_f, dc * load(p.c + v) * f * (one - f));
            store(to_g, dc * i * (one - g * g));
            store(to_o, dh * tanh_c * o * (one - o));
            store(p.dc + v, dc * f);
        }
    }
};

// The gates also see the cell state: i and f see c, o sees c_next.
struct LstmPeephole {
    static constexpr int gates = 4, slots = 4;
    static constexpr bool direct = false;

    template <class E, class X>
    static void forward(const Forward<E, X>& p) {
        for (long v = 0; v < PANEL; v += LANES) {
            const float *p_i = p.peepholes + v, *p_f = p_i + p.H, *p_o = p_f + p.H;
            Vector before = load(p.before + v);
            Vector i = sigmoid(load(p.Wh + v) + load(p.x + v) + load(p_i) * before);
            Vector f = sigmoid(load(p.Wh + p.Wh_gate + v) + load(p.x + p.H + v) + load(p_f) * before);
            Vector g = tanh(load(p.Wh + 2 * p.Wh_gate + v) + load(p.x + 2 * p.H + v));
            Vector c = f * before + i * g;
            Vector o = sigmoid(load(p.Wh + 3 * p.Wh_gate + v) + load(p.x + 3 * p.H + v) + load(p_o) * c);
            store(p.after + v, c);
            store(p.h_next + v, o * tanh(c));
            store(p.kept + v, i), store(p.kept + p.H + v, f), store(p.kept + 2 * p.H + v, g), store(p.kept + 3 * p.H + v, o);
        }
    }

    template <class E>
    static void backward(const Backward<E>& p) {
        const Vector one = splat(1);
        for (long v = 0; v < PANEL; v += LANES) {
            const float *p_i = p.peepholes + v, *p_f = p_i + p.H, *p_o = p_f + p.H;
            E *to_i = p.kept + v, *to_f = to_i + p.H, *to_g = to_f + p.H, *to_o = to_g + p.H;
            Vector i = load(to_i), f = load(to_f), g = load(to_g), o = load(to_o);
            Vector dh = incoming_gradient(p, v), tanh_c = tanh(load(p.c_next + v));
            Vector d_o = dh * tanh_c * o * (one - o);
            Vector dc = load(p.dc + v) + dh * o * (one - tanh_c * tanh_c) + d_o * load(p_o);
            Vector d_i = dc * g * i * (one - i), d_f = dc * load(p.c + v) * f * (one - f);
            store(to_i, d_i), store(to_f, d_f), store(to_g, dc * i * (one - g * g)), store(to_o, d_o);
            store(p.dc + v, dc * f + d_i * load(p_i) + d_f * load(p_f));
        }
    }
};

// The input gate is 1 − f. Slots f, g, o.
struct LstmCoupled {
    static constexpr int gates = 3, slots = 3;
    static constexpr bool direct = false;

    template <class E, class X>
    static void forward(const Forward<E, X>& p) {
        for (long v = 0; v < PANEL; v += LANES) {
            Vector f = sigmoid(load(p.Wh + v) + load(p.x + v));
            Vector g = tanh(load(p.Wh + p.Wh_gate + v) + load(p.x + p.H + v));
            Vector o = sigmoid(load(p.Wh + 2 * p.Wh_gate + v) + load(p.x + 2 * p.H + v));
            Vector c = f * load(p.before + v) + (splat(1) - f) * g;
            store(p.after + v, c);
            store(p.h_next + v, o * tanh(c));
            store(p.kept + v, f), store(p.kept + p.H + v, g), store(p.kept + 2 * p.H + v, o);
        }
    }

    template <class E>
    static void backward(const Backward<E>& p) {
        const Vector one = splat(1);
        for (long v = 0; v < PANEL; v += LANES) {
            E *to_f = p.kept + v, *to_g = to_f + p.H, *to_o = to_g + p.H;
            Vector f = load(to_f), g = load(to_g), o = load(to_o);
            Vector dh = incoming_gradient(p, v), tanh_c = tanh(load(p.c_next + v));
            Vector dc = load(p.dc + v) + dh * o * (one - tanh_c * tanh_c);
            store(to_f, dc * (load(p.c + v) - g) * f * (one - f));
            store(to_g, dc * (one - f) * (one - g * g));
            store(to_o, dh * tanh_c * o * (one - o));
            store(p.dc + v, dc * f);
        }
    }
};

// Slots r, z, n and W_n·h + b_n; after `backward` d_r, d_z, d_n∘r (hidden side), d_n (input side).
struct GruResetAfter {
    static constexpr int gates = 3, slots = 4;
    static constexpr bool direct = true;

    template <class E, class X>
    static void forward(const Forward<E, X>& p) {
        for (long v = 0; v < PANEL; v += LANES) {
            Vector r = sigmoid(load(p.Wh + v) + load(p.x + v));
            Vector z = sigmoid(load(p.Wh + p.Wh_gate + v) + load(p.x + p.H + v));
            Vector h_n = load(p.Wh + 2 * p.Wh_gate + v) + load(p.b_n + v);
            Vector n = tanh(load(p.x + 2 * p.H + v) + r * h_n);
            Vector h = (splat(1) - z) * n + z * load(p.before + v);
            store(p.after + v, h);
            store(p.h_next + v, h);
            store(p.kept + v, r), store(p.kept + p.H + v, z), store(p.kept + 2 * p.H + v, n), store(p.kept + 3 * p.H + v, h_n);
        }
    }

    template <class E>
    static void backward(const Backward<E>& p) {
        const Vector one = splat(1);
        for (long v = 0; v < PANEL; v += LANES) {
            E *to_r = p.kept + v, *to_z = to_r + p.H, *to_n = to_z + p.H, *to_h_n = to_n + p.H;
            Vector r = load(to_r), z = load(to_z), n = load(to_n), h_n = load(to_h_n);
            Vector dh = incoming_gradient(p, v);
            Vector d_n = dh * (one - z) * (one - n * n);
            store(to_r, d_n * h_n * r * (one - r));
            store(to_z, dh * (load(p.h + v) - n) * z * (one - z));
            store(to_n, d_n * r);
            store(to_h_n, d_n);
            store(p.dh + v, dh * z);
        }
    }
};

// In two halves, since W_n is applied to r∘h of all units. Slots r, z, n.
struct GruResetBefore {
    static constexpr int gates = 3, slots = 3;
    static constexpr bool direct = true;

    template <class E, class X>
    static void forward_gates(const Forward<E, X>& p) {
        for (long v = 0; v < PANEL; v += LANES) {
            Vector r = sigmoid(load(p.Wh + v) + load(p.x + v));
            store(p.kept + v, r);
            store(p.kept + p.H + v, sigmoid(load(p.Wh + p.Wh_gate + v) + load(p.x + p.H + v)));
            store(p.rh + v, r * load(p.before + v));
        }
    }

    template <class E, class X>
    static void forward(const Forward<E, X>& p) {  // Wh: only W_n·(r∘h)
        for (long v = 0; v < PANEL; v += LANES) {
            Vector z = load(p.kept + p.H + v), n = tanh(load(p.Wh + v) + load(p.x + 2 * p.H + v));
            Vector h = (splat(1) - z) * n + z * load(p.before + v);
            store(p.after + v, h);
            store(p.h_next + v, h);
            store(p.kept + 2 * p.H + v, n);
        }
    }

    template <class E>
    static void backward(const Backward<E>& p) {  // d_z and d_n; `backward_reset` follows with d_r
        const Vector one = splat(1);
        for (long v = 0; v < PANEL; v += LANES) {
            E *to_z = p.kept + p.H + v, *to_n = to_z + p.H;
            Vector z = load(to_z), n = load(to_n), dh = incoming_gradient(p, v);
            store(to_z, dh * (load(p.h + v) - n) * z * (one - z));
            store(to_n, dh * (one - z) * (one - n * n));
            store(p.dh + v, dh * z);
        }
    }

    template <class E>
    static void backward_reset(const Backward<E>& p, const float* d_rh) {  // d_rh: W_nᵀ·d_n
        for (long v = 0; v < PANEL; v += LANES) {
            Vector r = load(p.kept + v), d = load(d_rh + v);
            store(p.kept + v, d * load(p.h + v) * r * (splat(1) - r));
            store(p.dh + v, load(p.dh + v) + d * r);
        }
    }
};

}  // namespace charlm
