// The output layer and its loss in one pass: logits, softmax, Σ −ln p(target), and the gradients.
// Only the logits of 32 rows are in memory at a time.

#pragma once

#include <cmath>
#include <vector>

#include "threads.h"

namespace charlm {

struct CrossEntropy {
    int64_t bf16, threads;
    int64_t N, H, V, V_padded;  // rows, features, symbols, and symbols rounded up to 32
    const void* features;       // (N, H) of E
    const void* weights;        // packed for logits = features · Wᵀ: [V_padded/32][H][32]
    const void* weights_back;   // packed for d_features = d_logits · W: [H/32][V_padded][32]; null: no gradients
    const float* bias;          // (V,)
    const int64_t* targets;     // (N,); rows with a negative target are not scored
    double factor;              // on all gradients
    double* nats;               // (N,)
    void* d_logits;             // (N, V_padded) of E
    void* d_features;           // (N, H) of E
    float* d_bias;              // (N/32 rounded up, V_padded): sums over 32 rows each
};

// Returns −ln softmax(logits)[target] of the first V of `width` logits, a multiple of LANES, and overwrites all of them with
// the gradient times `factor`: softmax − 1[target], and zero for the rest. NaN propagates.
static inline double softmax_loss(float* logits, long V, long width, long target, float factor) {
    const float of_target = logits[target];
    for (long v = V; v < width; v++) logits[v] = -INFINITY;
    Vector largest = load(logits);
    for (long v = LANES; v < width; v += LANES) {
        Vector x = load(logits + v);
        largest = x > largest ? x : largest;
    }
    float maximum = largest[0];
    for (int lane = 1; lane < LANES; lane++) maximum = largest[lane] > maximum ? largest[lane] : maximum;
    double sum = 0;
    for (long v = 0; v < width; v += LANES) {
        Vector x = load(logits + v) - splat(maximum);
        Exponential e = exponential(x);
        Vector weight = e.rest * e.scale + e.scale;
        weight = x < splat(-87) ? Vector{} : weight;
        store(logits + v, weight);
        float lanes = 0;
        for (int lane = 0; lane < LANES; lane++) lanes += weight[lane];
        sum += lanes;
    }
    const Vector scale = splat((float)(factor / sum));
    for (long v = 0; v < width; v += LANES) store(logits + v, load(logits + v) * scale);
    logits[target] -= factor;
    return std::log(sum) + ((double)maximum - of_target);
}

template <class E>
static void cross_entropy(const CrossEntropy& p) {
    const long panels = p.V_padded / PANEL, blocks = (p.N + 31) / 32;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
        Worker worker;
        std::vector<float> logits(32 * p.V_padded), d_features(32 * PANEL);
#pragma omp for schedule(static)
        for (long block = 0; block < blocks; block++) {
            const long first = block * 32, rows = p.N - first < 32 ? p.N - first : 32;
            const E* features = (const E*)p.features + first * p.H;
            product<E>(rows, features, p.H, (const E*)p.weights, panels, p.H, logits.data(), p.V_padded, PANEL, false);
            float* d_bias = p.d_bias ? p.d_bias + block * p.V_padded : nullptr;
            for (long v = 0; d_bias && v < p.V_padded; v++) d_bias[v] = 0;
            for (long r = 0; r < rows; r++) {
                float* row = logits.data() + r * p.V_padded;
                const long target = p.targets[first + r];
                for (long v = 0; v < p.V; v++) row[v] += p.bias[v];
                p.nats[first + r] = target < 0 ? 0 : softmax_loss(row, p.V, p.V_padded, target, (float)p.factor);
                if (!p.weights_back) continue;
                E* d_logits = (E*)p.d_logits + (first + r) * p.V_padded;
                for (long v = 0; target < 0 && v < p.V_padded; v++) row[v] = 0;
                for (long v = 0; v < p.V_padded; v += LANES) {
                    store(d_logits + v, load(row + v));
                    store(d_bias + v, load(d_bias + v) + load(row + v));
                }
            }
            for (long panel = 0; p.weights_back && panel < p.H / PANEL; panel++) {
                product<E>(rows, (const E*)p.d_logits + first * p.V_padded, p.V_padded,
                           (const E*)p.weights_back + panel * p.V_padded * PANEL, 1, p.V_padded, d_features.data(), PANEL, 0,
                           false);
                for (long r = 0; r < rows; r++)
                    for (long v = 0; v < PANEL; v += LANES)
                        store((E*)p.d_features + (first + r) * p.H + panel * PANEL + v,
                              load(d_features.data() + r * PANEL + v));
            }
        }
    }
}

}  // namespace charlm
