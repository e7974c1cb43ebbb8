// Generates text: all layers, output layer, softmax and draw for a block of characters in one call, for N parallel streams.
// The draw follows charlm/sampling.py: double precision, cumulative sums in the order of the ids.

#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "layer.h"

namespace charlm {

struct Generation {
    int64_t bf16, threads;
    int64_t kind, layers, V, H, N;  // V: the number of symbols rounded up to 32; N streams
    int64_t symbols, count;         // size of the vocabulary; characters to generate in each stream
    int64_t residual;               // every layer but the first adds its input to its output
    const void* const* weights;     // per layer: packed W_hh
    const void* const* weights_ih;  // per layer but the first: packed W_ih
    const float* const* bias;       // per layer but the first: (gates·H,), the sum of both biases
    const float* const* b_n;        // per layer: (H,)
    const float* const* peepholes;  // per layer: (3·H,)
    const float* table;             // (V, gates·H): W_ih·input + biases of the first layer
    const void* output;             // packed output layer
    const float* output_bias;       // (V,)
    void* h;                        // (layers, 2, N, H) of E; [:, 0] is the state on entry and exit
    void* sum;                      // (N, H) of E: with `residual`, the input of the next layer
    float* carried;                 // (layers, N, H): LSTM c, GRU h
    float* logits;                  // (N, V) for the next character, in and out
    double temperature, top_p;
    int64_t top_k;
    const uint8_t* banned;   // (symbols,)
    const double* uniforms;  // (count, N), in [0, 1)
    int64_t* drawn;          // (count, N)
    uint8_t* nonfinite;      // (N,): set to 1 where a logit was NaN or infinite
};

// Implements `distribution` and `draw` of charlm/sampling.py.
struct Sampler {
    const Generation& g;
    std::vector<double> scores;
    std::vector<int64_t> order;

    explicit Sampler(const Generation& g) : g(g), scores(g.symbols), order(g.symbols) {}

    int64_t draw(const float* logits, double uniform, uint8_t& nonfinite) {
        const long V = g.symbols;
        long best = -1;
        for (long v = 0; v < V; v++) {
            if (!std::isfinite(logits[v])) nonfinite = 1;
            scores[v] = g.banned[v] ? -INFINITY : (double)logits[v];
            if (!g.banned[v] && (best < 0 || scores[v] > scores[best])) best = v;
        }
        if (g.temperature == 0) return best;
        const double max_score = scores[best];
        for (long v = 0; v < V; v++) scores[v] = g.banned[v] ? 0 : std::exp((scores[v] - max_score) / g.temperature);
        if (g.top_k > 0 || g.top_p < 1) keep_most_likely(logits);
        double total = 0, mass = 0;
        for (long v = 0; v < V; v++) total += scores[v];
        const double threshold = uniform * total;
        long last = best;
        for (long v = 0; v < V; v++) {
            mass += scores[v];
            if (scores[v] > 0) {
                last = v;
                if (mass > threshold) return v;
            }
        }
        return last;
    }

    void keep_most_likely(const float* logits) {
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            return g.banned[a] != g.banned[b] ? g.banned[a] < g.banned[b] : logits[a] > logits[b];
        });
        const long V = g.symbols;
        if (g.top_k > 0)
            for (long k = g.top_k; k < V; k++) scores[order[k]] = 0;
        if (g.top_p < 1) {
            double total = 0, mass = 0;
            for (long v = 0; v < V; v++) total += scores[order[v]];
            long kept = 0;
            while (kept < V && (mass += scores[order[kept]]) < g.top_p * total) kept++;
            for (long k = kept + 1; k < V; k++) scores[order[k]] = 0;
        }
    }
};

template <class Cell, class E>
static void generate(const Generation& g, int number, int threads, float* x, Barrier& barrier) {
    const long H = g.H, N = g.N, G = Cell::gates, layer_size = N * H;
    Layer layer = {};
    layer.H = H;
    Sampler sampler(g);
    const WorkSlice slice = slice_of(number, threads, N, H, 0, 1, &barrier);
    const Range vocabulary = part(g.V / PANEL, number, threads), streams = part(N, number, threads);
    E* rh = (E*)g.h + g.layers * 2 * layer_size;
    E* kept = rh + layer_size;
    E* sum = (E*)g.sum;
    const Range units = part(layer_size / LANES, number, threads);
    for (long n = 0; n < g.count; n++) {
        int64_t* drawn = g.drawn + n * N;
        for (long row = streams.first; row < streams.end; row++)
            drawn[row] = sampler.draw(g.logits + row * g.V, g.uniforms[n * N + row], g.nonfinite[row]);
        barrier.wait(threads);
        for (long l = 0; l < g.layers; l++) {
            E* h = (E*)g.h + l * 2 * layer_size;
            E *before = h + n % 2 * layer_size, *after = h + (n + 1) % 2 * layer_size;
            layer.weights = g.weights[l];
            layer.b_n = g.b_n[l];
            layer.peepholes = g.peepholes[l];
            float* carried = g.carried + l * layer_size;
            Step<E, float> step = {
                .x = g.table,
                .ids = drawn,
                .h = before,
                .h_next = after,
                .before = carried,
                .after = carried,
                .kept = kept,
                .rh = rh,
            };
            if (l > 0) {
                const E* below = g.residual ? sum : (const E*)g.h + (l - 1) * 2 * layer_size + (n + 1) % 2 * layer_size;
                for (long p = slice.panels.first; p < slice.panels.end; p++)
                    for (long gate = 0; gate < G; gate++) {
                        const long j = gate * H + p * PANEL;
                        product<E>(N, below, H, (const E*)g.weights_ih[l] + (p * G + gate) * H * PANEL, 1, H, x + j, G * H, 0,
                                   false);
                        for (long row = 0; row < N; row++)
                            for (long v = 0; v < PANEL; v++) x[row * G * H + j + v] += g.bias[l][j + v];
                    }
                step.x = x;
                step.ids = nullptr;
            }
            forward_step<Cell>(layer, step, slice);
            if (!slice.barrier) barrier.wait(threads);
            if (g.residual) {
                for (long i = units.first * LANES; i < units.end * LANES; i += LANES)
                    store(sum + i, l > 0 ? load(after + i) + load(sum + i) : load(after + i));
                barrier.wait(threads);
            }
        }
        const E* top = g.residual ? sum : (const E*)g.h + (g.layers - 1) * 2 * layer_size + (n + 1) % 2 * layer_size;
        for (long p = vocabulary.first; p < vocabulary.end; p++) {
            product<E>(N, top, H, (const E*)g.output + p * H * PANEL, 1, H, g.logits + p * PANEL, g.V, 0, false);
            for (long row = 0; row < N; row++)
                for (long v = p * PANEL; v < (p + 1) * PANEL; v++) g.logits[row * g.V + v] += g.output_bias[v];
        }
        barrier.wait(threads);
    }
    if (g.count % 2)  // move the state to [:, 0]
        for (long l = number; l < g.layers; l += threads) {
            E* h = (E*)g.h + l * 2 * layer_size;
            std::copy(h + layer_size, h + 2 * layer_size, h);
        }
}

template <class E>
static void generate(const Generation& g) {
    std::vector<float> x(g.N * gates_of(g.kind) * g.H);
    Barrier barrier;
#pragma omp parallel num_threads(g.threads) if (g.threads > 1)
    {
        Worker worker;
        const int number = thread_number(), threads = thread_count();
        switch (g.kind) {
            case RNN_TANH: generate<RnnTanh, E>(g, number, threads, x.data(), barrier); break;
            case RNN_RELU: generate<RnnRelu, E>(g, number, threads, x.data(), barrier); break;
            case LSTM: generate<Lstm, E>(g, number, threads, x.data(), barrier); break;
            case GRU: generate<GruResetAfter, E>(g, number, threads, x.data(), barrier); break;
            case GRU_RESET_BEFORE: generate<GruResetBefore, E>(g, number, threads, x.data(), barrier); break;
            case LSTM_PEEPHOLE: generate<LstmPeephole, E>(g, number, threads, x.data(), barrier); break;
            case LSTM_COUPLED: generate<LstmCoupled, E>(g, number, threads, x.data(), barrier); break;
        }
    }
}

}  // namespace charlm
