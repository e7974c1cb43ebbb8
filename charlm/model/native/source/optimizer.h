// The update of all weights in one pass: gradient clipping, weight decay and the optimizer's rule together.
// The rules are PyTorch's (torch.optim), so that its stored moments serve both.

#pragma once

#include <cmath>
#include <vector>

#include "threads.h"

namespace charlm {

enum Rule : int64_t { SGD, ADAM, ADAMW, RMSPROP, RULE_COUNT };

struct Update {
    int64_t rule, threads, count;  // of tensors
    const int64_t* sizes;
    float* const* weights;
    const float* const* gradients;
    float* const* first;   // momentum buffer; Adam: mean of gradients. Null: no momentum
    float* const* second;  // mean of squared gradients
    const double* decay;   // weight decay of each tensor
    double factor;         // on all gradients
    double rate, momentum, beta1, beta2, epsilon;
    int64_t step;  // of this update, from 1
    double norm;   // out: of all gradients, before the factor
};

constexpr long CHUNK = 8192;  // numbers that are one thread's at a time

struct Chunk {
    long tensor, first, end;
};

static inline std::vector<Chunk> chunks_of(const Update& u) {
    std::vector<Chunk> chunks;
    for (long tensor = 0; tensor < u.count; tensor++)
        for (long first = 0; first < u.sizes[tensor]; first += CHUNK)
            chunks.push_back({tensor, first, first + CHUNK < u.sizes[tensor] ? first + CHUNK : (long)u.sizes[tensor]});
    return chunks;
}

// Summed chunk by chunk in fp64, so that the number of threads does not matter.
static void gradient_norm(Update& u) {
    const std::vector<Chunk> chunks = chunks_of(u);
    std::vector<double> squares(chunks.size());
#pragma omp parallel for num_threads(u.threads) schedule(static) if (u.threads > 1)
    for (size_t n = 0; n < chunks.size(); n++) {
        const float* gradient = u.gradients[chunks[n].tensor];
        double lanes[8] = {};
        long i = chunks[n].first;
        for (; i + 8 <= chunks[n].end; i += 8)
            for (int lane = 0; lane < 8; lane++) lanes[lane] += (double)gradient[i + lane] * gradient[i + lane];
        for (; i < chunks[n].end; i++) lanes[0] += (double)gradient[i] * gradient[i];
        for (double lane : lanes) squares[n] += lane;
    }
    double sum = 0;
    for (double square : squares) sum += square;
    u.norm = std::sqrt(sum);
}

static void update_chunk(const Update& u, const Chunk& c) {
    const long n = c.end - c.first;
    float* __restrict w = u.weights[c.tensor] + c.first;
    const float* __restrict gradient = u.gradients[c.tensor] + c.first;
    float* __restrict first = u.first[c.tensor] ? u.first[c.tensor] + c.first : nullptr;
    float* __restrict second = u.second[c.tensor] ? u.second[c.tensor] + c.first : nullptr;
    const float factor = (float)u.factor, rate = (float)u.rate, decay = (float)u.decay[c.tensor];
    const float momentum = (float)u.momentum, beta1 = (float)u.beta1, beta2 = (float)u.beta2, epsilon = (float)u.epsilon;
    switch (u.rule) {
        case SGD:
            for (long i = 0; i < n; i++) {
                float g = gradient[i] * factor + decay * w[i];
                if (first) g = first[i] = momentum * first[i] + g;
                w[i] -= rate * g;
            }
            break;
        case ADAM:
        case ADAMW: {
            const float coupled = u.rule == ADAM ? decay : 0,
                        shrink = u.rule == ADAMW ? 1 - (float)(u.rate * u.decay[c.tensor]) : 1;
            const float mean = (float)(1 / (1 - std::pow(u.beta1, (double)u.step)));
            const float root = (float)(1 / std::sqrt(1 - std::pow(u.beta2, (double)u.step)));
            for (long i = 0; i < n; i++) {
                const float g = gradient[i] * factor + coupled * w[i];
                first[i] = beta1 * first[i] + (1 - beta1) * g;
                second[i] = beta2 * second[i] + (1 - beta2) * g * g;
                w[i] = shrink * w[i] - rate * mean * first[i] / (std::sqrt(second[i]) * root + epsilon);
            }
            break;
        }
        case RMSPROP:
            for (long i = 0; i < n; i++) {
                const float g = gradient[i] * factor + decay * w[i];
                second[i] = beta2 * second[i] + (1 - beta2) * g * g;
                float change = g / (std::sqrt(second[i]) + epsilon);
                if (first) change = first[i] = momentum * first[i] + change;
                w[i] -= rate * change;
            }
            break;
    }
}

static void update(const Update& u) {
    const std::vector<Chunk> chunks = chunks_of(u);
#pragma omp parallel num_threads(u.threads) if (u.threads > 1)
    {
        Worker worker;
#pragma omp for schedule(static)
        for (size_t n = 0; n < chunks.size(); n++) update_chunk(u, chunks[n]);
    }
}

}  // namespace charlm
