// A whole training step: table of inputs, recurrent layers, output layer and loss, and all gradients, in one call.
//
// A plan is made once for a model. It owns all memory of the step, which grows to the largest batch. Parameters and gradients
// belong to the caller and have PyTorch's shapes; the plan pads H, D and V to whole panels in its own memory. Every sum has a
// fixed order that depends on the shapes alone, so results are bit-identical for any number of threads.
//
//   T time steps   B streams   N = T·B   L layers   H hidden units   D embedding width   V symbols
//   U distinct symbols of a batch   P, Q, W: H, D, V rounded up to whole panels
//   E type of the operands of products: float or bf16

#pragma once

#include <memory>
#include <vector>

#include "dropout.h"
#include "layer.h"
#include "linear.h"
#include "loss.h"

namespace charlm {

// What a plan is made for. In a one-hot model D is 0.
struct PlanShape {
    int64_t kind, bf16, layers, V, D, H, tied, residual;
    int64_t locked;  // dropout of outputs is the same at all time steps
    // Probabilities of a zero, times 65,536.
    int64_t drop_embedding, drop_outputs, drop_recurrent;
};

// The parameters of a layer, or their gradients.
struct PlanParameters {
    float *weight_ih, *weight_hh, *bias_ih, *bias_hh, *peepholes;
};

// One step.
struct PlanBatch {
    void* plan;
    int64_t threads, T, B, drops;
    int64_t first_stream, all_streams;          // of which these are B, for dropout
    const int64_t *ids, *targets;               // (T, B); a negative target is not scored
    double factor;                              // on all gradients
    const PlanParameters *weights, *gradients;  // (L,)
    const float *embedding, *output_weight, *output_bias;
    float *d_embedding, *d_output_weight, *d_output_bias;  // with tied weights, the embedding's serves both
    const float *h, *c;                                    // (L, B, H): the state before
    float *h_after, *c_after;                              // the state after
    // Keys of the random sequences of dropout: one per layer, and the embedding's.
    const uint64_t *key_outputs, *key_recurrent;
    uint64_t key_embedding;
    double nats;     // out: the sum of the losses
    int64_t bad_id;  // out: an id that is out of range
};

// Memory that grows and is never cleared.
class Memory {
    std::unique_ptr<char[]> block;
    size_t size = 0;
    char* start = nullptr;

  public:
    template <class A>
    A* take(size_t count) {
        if (const size_t wanted = count * sizeof(A); wanted > size) {
            block.reset();
            block.reset(new char[wanted + 64]);
            start = (char*)(((uintptr_t)block.get() + 63) / 64 * 64);
            size = wanted;
#if defined(__SANITIZE_ADDRESS__)
            memset(start, 0xff, size);  // not a number: tests notice what is read before it is written
#endif
        }
        return (A*)start;
    }
};

static inline long slots_of(int64_t kind) { return kind == GRU ? 4 : gates_of(kind); }

// Copies `rows` rows of `from` to `to`, row by row with other steps, and fills each up to `padded_width` with zeros.
static inline void copy_rows(const float* from, long step, long width, float* to, long to_step, long padded_width, long rows) {
    for (long r = 0; r < rows; r++) {
        memcpy(to + r * to_step, from + r * step, width * sizeof(float));
        for (long j = width; j < padded_width; j++) to[r * to_step + j] = 0;
    }
}

// The memory of a layer.
struct LayerMemory {
    Memory hh_forward, hh_backward, ih_forward, ih_backward;  // packed weights
    Memory bias, b_n, peepholes, dropped_hh;                  // (G·P,), (P,), (3·P,); W_hh after dropout (G·H, H)
    Memory x, h, carried, kept, rh, in;                       // activations
};

template <class E>
class Plan {
    const PlanShape s;
    const long G, S, P, Q, W;
    std::vector<LayerMemory> layers;
    Memory out_forward, out_backward, rows_of_id, distinct, operand_rows, table, d_table, d_rows, dropped_embedding;
    Memory d_out, d_in, dh, dc, nats, d_logits, d_bias, scratch, padded_gradient, sums, masked;
    PlanBatch* b = nullptr;
    long N = 0, U = 0, drop_embedding = 0, drop_outputs = 0, drop_recurrent = 0;

    bool has_table_product() const { return s.D > 0; }

    void pack(const float* matrix, long rows, long columns, long gates, Memory& forward, Memory* backward) {
        const long size = gates * padded(rows / gates) * padded(columns);
        charlm::pack<E>({.bf16 = s.bf16,
                         .threads = b->threads,
                         .matrix = matrix,
                         .rows = rows,
                         .columns = columns,
                         .gates = gates,
                         .transposed = forward.take<E>(size),
                         .plain = backward ? backward->take<E>(size) : nullptr});
    }

    // Rows of `row` elements; see Dropping.
    void drop(const void* values, void* out, bool is_bf16, long count, long row, long stride, long offset, uint64_t key,
              long threshold) {
        const Dropping d = {.bf16 = is_bf16,
                            .threads = b->threads,
                            .count = count,
                            .row = row,
                            .stride = stride,
                            .offset = offset,
                            .key = key,
                            .threshold = threshold,
                            .scale = 65536.0 / (65536 - threshold),
                            .values = values,
                            .out = out};
        is_bf16 ? charlm::drop<bf16>(d) : charlm::drop<float>(d);
    }
    void drop_weights(const float* from, float* to, long count, uint64_t key, long threshold) {
        drop(from, to, false, count, count, count, 0, key, threshold);
    }

    // Packs all weights, and pads the biases; at every call, since a step changes them.
    void prepare_weights() {
        for (long l = 0; l < s.layers; l++) {
            LayerMemory& m = layers[l];
            const PlanParameters& w = b->weights[l];
            const float* weight_hh = w.weight_hh;
            if (drop_recurrent) {
                float* dropped = m.dropped_hh.take<float>(G * s.H * s.H);
                drop_weights(weight_hh, dropped, G * s.H * s.H, b->key_recurrent[l], drop_recurrent);
                weight_hh = dropped;
            }
            pack(weight_hh, G * s.H, s.H, G, m.hh_forward, &m.hh_backward);
            if (l > 0 || has_table_product()) pack_input_weights(w.weight_ih, l ? s.H : s.D, m);
            float *bias = m.bias.take<float>(G * P), *b_n = m.b_n.take<float>(P);
            for (long g = 0; g < G; g++)
                for (long u = 0; u < P; u++) {
                    const bool is_b_n = s.kind == GRU && g == 2;
                    const float ih = u < s.H ? w.bias_ih[g * s.H + u] : 0, hh = u < s.H ? w.bias_hh[g * s.H + u] : 0;
                    bias[g * P + u] = is_b_n ? ih : ih + hh;
                    if (is_b_n) b_n[u] = hh;
                }
            if (s.kind == LSTM_PEEPHOLE) {
                float* peepholes = m.peepholes.take<float>(3 * P);
                for (long g = 0; g < 3; g++) copy_rows(w.peepholes + g * s.H, s.H, s.H, peepholes + g * P, P, P, 1);
            }
        }
        pack(s.tied ? b->embedding : b->output_weight, s.V, s.H, 1, out_forward, &out_backward);
    }

    // W_ih for A · Wᵀ with the gates one after the other, as the products of whole sequences read it, and for A · W.
    void pack_input_weights(const float* weight_ih, long width, LayerMemory& m) {
        const long K = padded(width), size = G * P * K;
        E *forward = m.ih_forward.take<E>(size), *backward = m.ih_backward.take<E>(size);
        // Gate by gate: the transposed panels of a gate follow those of the gate before, and so do the parts of a plain panel.
        charlm::pack<E>({.bf16 = s.bf16,
                         .threads = b->threads,
                         .matrix = weight_ih,
                         .rows = G * s.H,
                         .columns = width,
                         .gates = G,
                         .transposed = nullptr,
                         .plain = backward});
        for (long g = 0; g < G; g++)
            charlm::pack<E>({.bf16 = s.bf16,
                             .threads = b->threads,
                             .matrix = weight_ih + g * s.H * width,
                             .rows = s.H,
                             .columns = width,
                             .gates = 1,
                             .transposed = forward + g * P * K,
                             .plain = nullptr});
    }

    // The distinct symbols of the batch, in order, and the row of each character in the table. False: an id is out of range.
    bool number_symbols() {
        long* row = distinct.take<long>(2 * s.V);
        long* symbols = row + s.V;
        for (long v = 0; v < s.V; v++) row[v] = -1;
        for (long n = 0; n < N; n++) {
            if (b->ids[n] < 0 || b->ids[n] >= s.V) {
                b->bad_id = b->ids[n];
                return false;
            }
            if (b->targets[n] >= s.V) {
                b->bad_id = b->targets[n];
                return false;
            }
            row[b->ids[n]] = 0;
        }
        U = 0;
        for (long v = 0; v < s.V; v++)
            if (row[v] == 0) symbols[U] = v, row[v] = U++;
        int64_t* rows = rows_of_id.take<int64_t>(N);
        for (long n = 0; n < N; n++) rows[n] = row[b->ids[n]];
        return true;
    }
    const long* symbols() { return distinct.take<long>(2 * s.V) + s.V; }

    // W_ih·input + biases of each distinct symbol: (U, G·P).
    void make_table() {
        float* out = table.take<float>(U * G * P);
        const long* symbol = symbols();
        if (!has_table_product()) {
            const float *weight = b->weights[0].weight_ih, *bias = layers[0].bias.take<float>(G * P);
#pragma omp parallel for num_threads(b->threads) schedule(static) if (b->threads > 1)
            for (long u = 0; u < U; u++)
                for (long g = 0; g < G; g++) {
                    float* row = out + (u * G + g) * P;
                    for (long j = 0; j < P; j++)
                        row[j] = bias[g * P + j] + (j < s.H ? weight[(g * s.H + j) * s.V + symbol[u]] : 0);
                }
            return;
        }
        const float* embedding = b->embedding;
        if (drop_embedding) {
            float* dropped = dropped_embedding.take<float>(s.V * s.D);
            drop_weights(embedding, dropped, s.V * s.D, b->key_embedding, drop_embedding);
            embedding = dropped;
        }
        E* operand = operand_rows.take<E>(U * Q);
        for (long u = 0; u < U; u++)
            for (long j = 0; j < Q; j += PANEL)
                panel_words<E>(embedding + symbol[u] * s.D + j, s.D - j, (uint32_t*)(operand + u * Q + j));
        linear<E>({.bf16 = s.bf16,
                   .threads = b->threads,
                   .rows = U,
                   .K = Q,
                   .N = G * P,
                   .a = operand,
                   .a_step = Q,
                   .gap_at = Q,
                   .weights = layers[0].ih_forward.take<E>(0),
                   .bias = layers[0].bias.take<float>(0),
                   .out_is_float = 1,
                   .out = out});
    }

    Layer call_of(long l) {
        LayerMemory& m = layers[l];
        const long BP = b->B * P;
        const bool keeps = has_cell_state(s.kind), has_carried = keeps || s.kind == GRU || s.kind == GRU_RESET_BEFORE;
        return {.kind = s.kind,
                .bf16 = s.bf16,
                .threads = b->threads,
                .rows_split = 0,
                .T = b->T,
                .B = b->B,
                .H = P,
                .weights = m.hh_forward.take<E>(0),
                .b_n = s.kind == GRU ? m.b_n.take<float>(0) : nullptr,
                .peepholes = s.kind == LSTM_PEEPHOLE ? m.peepholes.take<float>(0) : nullptr,
                .x = l ? (void*)m.x.take<E>(N * G * P) : (void*)table.take<float>(0),
                .ids = l ? nullptr : rows_of_id.take<int64_t>(0),
                .h = m.h.take<E>((b->T + 1) * BP),
                .carried = has_carried ? m.carried.take<float>(keeps ? (b->T + 1) * BP : BP) : nullptr,
                .carried_step = keeps ? BP : 0,
                .kept = m.kept.take<E>(N * S * P),
                .kept_step = b->B * S * P,
                .rh = s.kind == GRU_RESET_BEFORE ? m.rh.take<E>(N * P) : nullptr,
                .rh_step = s.kind == GRU_RESET_BEFORE ? BP : 0};
    }

    void set_state(const Layer& call, long l) {
        alignas(64) float row[PANEL];
        for (long r = 0; r < b->B; r++)
            for (long j = 0; j < P; j += PANEL) {
                const long count = s.H - j, at = (l * b->B + r) * s.H + j;
                panel_words<E>(b->h + at, count, (uint32_t*)((E*)call.h + r * P + j));
                if (!call.carried) continue;
                panel_words<float>((has_cell_state(s.kind) ? b->c : b->h) + at, count, (uint32_t*)row);
                memcpy(call.carried + r * P + j, row, sizeof row);
            }
    }

    void keep_state(const Layer& call, long l) {
        const long BP = b->B * P, at = l * b->B * s.H;
        const float* carried = call.carried + b->T * call.carried_step;
        if (s.kind == GRU || s.kind == GRU_RESET_BEFORE) {
            copy_rows(carried, P, s.H, b->h_after + at, s.H, s.H, b->B);
            return;
        }
        if (has_cell_state(s.kind)) copy_rows(carried, P, s.H, b->c_after + at, s.H, s.H, b->B);
        const E* last = (const E*)call.h + b->T * BP;
        alignas(64) float row[PANEL];
        for (long r = 0; r < b->B; r++)
            for (long j = 0; j < s.H; j += PANEL) {
                for (long v = 0; v < PANEL; v += LANES) store(row + v, load(last + r * P + j + v));
                memcpy(b->h_after + at + r * s.H + j, row, (s.H - j < PANEL ? s.H - j : PANEL) * sizeof(float));
            }
    }

    // to = a + b, element by element.
    void add(const E* first, const E* second, E* to) {
#pragma omp parallel for num_threads(b->threads) schedule(static) if (b->threads > 1)
        for (long n = 0; n < N; n++)
            for (long j = 0; j < P; j += LANES) store(to + n * P + j, load(first + n * P + j) + load(second + n * P + j));
    }

    // Dropout of a layer's outputs (T, B, P), whose mask is that of (T, B, H).
    void drop_outputs_of(const E* from, E* to, long l) {
        const long all = s.locked ? 0 : b->all_streams * s.H, offset = b->first_stream * s.H;
        const long row = all == b->B * s.H ? N * s.H : b->B * s.H;  // rows that follow each other are one row
        const E* values = from;
        E* rows = to;
        if (P != s.H) {
            rows = masked.take<E>(N * s.H);
            for (long n = 0; n < N; n++) memcpy(rows + n * s.H, from + n * P, s.H * sizeof(E));
            values = rows;
        }
        drop(values, rows, s.bf16, N * s.H, row, all, offset, b->key_outputs[l], drop_outputs);
        if (P == s.H) return;
        for (long n = 0; n < N; n++) {
            memcpy(to + n * P, rows + n * s.H, s.H * sizeof(E));
            memset((void*)(to + n * P + s.H), 0, (P - s.H) * sizeof(E));
        }
    }

    // Runs all layers. Returns the features, (N, P).
    const E* forward() {
        const E* in = nullptr;
        for (long l = 0; l < s.layers; l++) {
            LayerMemory& m = layers[l];
            if (l)
                linear<E>({.bf16 = s.bf16,
                           .threads = b->threads,
                           .rows = N,
                           .K = P,
                           .N = G * P,
                           .a = in,
                           .a_step = P,
                           .gap_at = P,
                           .weights = m.ih_forward.take<E>(0),
                           .bias = m.bias.take<float>(0),
                           .out_is_float = 0,
                           .out = m.x.take<E>(N * G * P)});
            const Layer call = call_of(l);
            set_state(call, l);
            run_layer(call, true);
            keep_state(call, l);
            const E* out = (const E*)call.h + b->B * P;
            // What the next layer, or the output layer, reads; kept for the gradient of its weights.
            if (s.residual && l) {
                E* sum = m.in.take<E>(N * P);
                add(out, in, sum);
                out = sum;
            }
            if (drop_outputs) {
                E* dropped = m.in.take<E>(N * P);
                drop_outputs_of(out, dropped, l);
                out = dropped;
            }
            in = out;
        }
        return in;
    }

    // What layer l+1, or the output layer, has read.
    const E* output_of(long l) {
        const bool changed = drop_outputs || (s.residual && l);
        return changed ? layers[l].in.take<E>(0) : layers[l].h.take<E>(0) + b->B * P;
    }

    // C = Aᵀ·B over K positions into an unpadded gradient: `blocks` blocks of `height` rows from ⌈height⌉ columns of A each.
    template <bool A_IS_FLOAT = false>
    void gradient(const void* a, long a_step, const E* in, long in_step, long K, long blocks, long height, long width,
                  float* out, float* column_sums, bool adds = false) {
        const long M = blocks * padded(height), columns = padded(width), depth = padded(K < 512 ? K : 512);
        const bool direct = width == columns && (height == padded(height) || blocks == 1) && !adds;
        float* to = direct ? out : padded_gradient.take<float>(M * columns);
        weight_gradient<E>({.bf16 = s.bf16,
                            .threads = b->threads,
                            .K = K,
                            .M = M,
                            .N = columns,
                            .rows = direct ? blocks * height : M,
                            .a_is_float = A_IS_FLOAT,
                            .b_is_float = sizeof(E) == 4,
                            .a = a,
                            .a_step = a_step,
                            .b = in,
                            .b_step = in_step,
                            .packed = scratch.take<E>((M + columns) * depth),
                            .depth = depth,
                            .out = to,
                            .sums = column_sums});
        if (direct) return;
        for (long block = 0; block < blocks; block++)
            for (long r = 0; r < height; r++) {
                const float* row = to + (block * padded(height) + r) * columns;
                float* into = out + (block * height + r) * width;
                if (adds)
                    for (long j = 0; j < width; j++) into[j] += row[j];
                else
                    memcpy(into, row, width * sizeof(float));
            }
    }

    // Output layer and loss: fills d_features (N, P) and the gradients of the output layer.
    void loss(const E* features, E* d_features) {
        float* d_weight = s.tied ? b->d_embedding : b->d_output_weight;
        double* row_nats = nats.take<double>(N);
        long at_once = (1 << 24) / W / 32 * 32;
        if (at_once < 32) at_once = 32;
        for (long v = 0; v < s.V; v++) b->d_output_bias[v] = 0;
        for (long first = 0; first < N; first += at_once) {
            const long count = N - first < at_once ? N - first : at_once, blocks = (count + 31) / 32;
            E* d = d_logits.take<E>(count * W);
            float* d_biases = d_bias.take<float>(blocks * W);
            cross_entropy<E>({.bf16 = s.bf16,
                              .threads = b->threads,
                              .N = count,
                              .H = P,
                              .V = s.V,
                              .V_padded = W,
                              .features = features + first * P,
                              .weights = out_forward.take<E>(0),
                              .weights_back = out_backward.take<E>(0),
                              .bias = b->output_bias,
                              .targets = b->targets + first,
                              .factor = b->factor,
                              .nats = row_nats + first,
                              .d_logits = d,
                              .d_features = d_features + first * P,
                              .d_bias = d_biases});
            gradient(d, W, features + first * P, P, count, 1, s.V, s.H, d_weight, nullptr, first > 0);
            for (long block = 0; block < blocks; block++)
                for (long v = 0; v < s.V; v++) b->d_output_bias[v] += d_biases[block * W + v];
        }
        b->nats = 0;
        for (long n = 0; n < N; n++) b->nats += row_nats[n];
    }

    void backward(E* d_features) {
        E* incoming = d_features;  // the gradient of the outputs of layer l, after residual and dropout
        for (long l = s.layers - 1; l >= 0; l--) {
            if (drop_outputs) drop_outputs_of(incoming, incoming, l);
            Layer call = call_of(l);
            LayerMemory& m = layers[l];
            call.weights = m.hh_backward.take<E>(0);
            call.d_outputs = incoming;
            call.dh = dh.take<float>(b->B * P), call.dc = dc.take<float>(b->B * P);
            memset(call.dh, 0, b->B * P * sizeof(float));
            memset(call.dc, 0, b->B * P * sizeof(float));
            run_layer(call, false);
            recurrent_gradients(call, l);
            if (l == 0) break;
            // The input side's gradients are those of the hidden side, except the GRU's: block 3 takes the place of block 2.
            const E *d = (const E*)call.kept, *in = output_of(l - 1);
            const long gap_at = s.kind == GRU ? 2 * P : G * P;
            float* d_weight = b->gradients[l].weight_ih;
            if (s.kind == GRU) {
                gradient(d, S * P, in, P, N, 2, s.H, s.H, d_weight, nullptr);
                gradient(d + 3 * P, S * P, in, P, N, 1, s.H, s.H, d_weight + 2 * s.H * s.H, input_sums() + 2 * P);
            } else
                gradient(d, S * P, in, P, N, G, s.H, s.H, d_weight, nullptr);
            bias_gradients(l);
            E* below = incoming == d_out.take<E>(0) ? d_in.take<E>(N * P) : d_out.take<E>(0);
            linear<E>({.bf16 = s.bf16,
                       .threads = b->threads,
                       .rows = N,
                       .K = G * P,
                       .N = P,
                       .a = d,
                       .a_step = S * P,
                       .gap_at = gap_at,
                       .gap = s.kind == GRU ? P : 0,
                       .weights = m.ih_backward.take<E>(0),
                       .added = s.residual ? incoming : nullptr,
                       .out_is_float = 0,
                       .out = below});
            incoming = below;
        }
        table_gradients();
    }

    // Column sums of d: (S·P,), of the hidden side's blocks, then those of the input side.
    float* hidden_sums() { return sums.take<float>(2 * G * P); }
    float* input_sums() { return hidden_sums() + G * P; }

    void recurrent_gradients(const Layer& call, long l) {
        const E *d = (const E*)call.kept, *before = (const E*)call.h;
        float *d_weight = b->gradients[l].weight_hh, *totals = hidden_sums();
        memset(totals, 0, 2 * G * P * sizeof(float));
        if (s.kind == GRU_RESET_BEFORE) {
            gradient(d, S * P, before, P, N, 2, s.H, s.H, d_weight, totals);
            gradient(d + 2 * P, S * P, (const E*)call.rh, P, N, 1, s.H, s.H, d_weight + 2 * s.H * s.H, totals + 2 * P);
        } else
            gradient(d, S * P, before, P, N, G, s.H, s.H, d_weight, totals);
        if (s.kind == LSTM_PEEPHOLE) {
            float* padded_sums = padded_gradient.take<float>(3 * P);
            peephole_gradient<E>({.bf16 = s.bf16,
                                  .threads = b->threads,
                                  .T = b->T,
                                  .B = b->B,
                                  .H = P,
                                  .d = d,
                                  .c = call.carried,
                                  .sums = padded_sums});
            for (long g = 0; g < 3; g++) memcpy(b->gradients[l].peepholes + g * s.H, padded_sums + g * P, s.H * sizeof(float));
        }
        if (drop_recurrent) drop_weights(d_weight, d_weight, G * s.H * s.H, b->key_recurrent[l], drop_recurrent);
    }

    void bias_gradients(long l) {
        const PlanParameters& to = b->gradients[l];
        for (long g = 0; g < G; g++) {
            const bool differ = s.kind == GRU && g == 2;
            const float *hidden = hidden_sums() + g * P, *input = differ ? input_sums() + g * P : hidden;
            memcpy(to.bias_hh + g * s.H, hidden, s.H * sizeof(float));
            memcpy(to.bias_ih + g * s.H, input, s.H * sizeof(float));
        }
    }

    // Gradients of the first layer's input weights, its biases and the embedding.
    void table_gradients() {
        static const int64_t in_order[] = {0, 1, 2, 3}, of_gru[] = {0, 1, 3};
        float* d = d_table.take<float>(U * G * P);
        memset(d, 0, U * G * P * sizeof(float));
        sum_by_id<E>({.bf16 = s.bf16,
                      .threads = b->threads,
                      .d = layers[0].kept.take<E>(0),
                      .ids = rows_of_id.take<int64_t>(0),
                      .N = N,
                      .d_step = S * P,
                      .H = P,
                      .gates = G,
                      .slots = s.kind == GRU ? of_gru : in_order,
                      .sums = d});
        if (s.kind == GRU)
            for (long u = 0; u < U; u++)
                for (long j = 2 * P; j < 3 * P; j++) input_sums()[j] += d[u * G * P + j];
        bias_gradients(0);
        const long* symbol = symbols();
        float* d_weight = b->gradients[0].weight_ih;
        if (!has_table_product()) {
#pragma omp parallel for num_threads(b->threads) schedule(static) if (b->threads > 1)
            for (long row = 0; row < G * s.H; row++) {
                float* to = d_weight + row * s.V;
                const long column = row / s.H * P + row % s.H;
                for (long v = 0; v < s.V; v++) to[v] = 0;
                for (long u = 0; u < U; u++) to[symbol[u]] = d[u * G * P + column];
            }
            return;
        }
        gradient<true>(d, G * P, operand_rows.take<E>(0), Q, U, G, s.H, s.D, d_weight, nullptr);
        // The gradient of the rows of the embedding: d · W_ih, with d rounded to E.
        E* rounded = masked.take<E>(U * G * P);
        for (long u = 0; u < U; u++)
            for (long j = 0; j < G * P; j += PANEL)
                panel_words<E>(d + u * G * P + j, PANEL, (uint32_t*)(rounded + u * G * P + j));
        float* rows = d_rows.take<float>(U * Q);
        linear<E>({.bf16 = s.bf16,
                   .threads = b->threads,
                   .rows = U,
                   .K = G * P,
                   .N = Q,
                   .a = rounded,
                   .a_step = G * P,
                   .gap_at = G * P,
                   .weights = layers[0].ih_backward.take<E>(0),
                   .out_is_float = 1,
                   .out = rows});
        float* to = b->d_embedding;
        if (drop_embedding) {
            to = dropped_embedding.take<float>(s.V * s.D);
            memset(to, 0, s.V * s.D * sizeof(float));
        } else if (!s.tied)
            memset(to, 0, s.V * s.D * sizeof(float));
        for (long u = 0; u < U; u++)
            for (long j = 0; j < s.D; j++) to[symbol[u] * s.D + j] += rows[u * Q + j];
        if (!drop_embedding) return;
        drop_weights(to, to, s.V * s.D, b->key_embedding, drop_embedding);
        for (long n = 0; n < s.V * s.D; n++) b->d_embedding[n] = (s.tied ? b->d_embedding[n] : 0) + to[n];
    }

  public:
    explicit Plan(const PlanShape& shape)
        : s(shape),
          G(gates_of(shape.kind)),
          S(slots_of(shape.kind)),
          P(padded(shape.H)),
          Q(padded(shape.D)),
          W(padded(shape.V)),
          layers(shape.layers) {}

    // False: an id is out of range, and nothing was computed.
    bool run(PlanBatch* batch) {
        b = batch;
        N = b->T * b->B;
        drop_embedding = b->drops ? s.drop_embedding : 0;
        drop_outputs = b->drops ? s.drop_outputs : 0;
        drop_recurrent = b->drops ? s.drop_recurrent : 0;
        if (!number_symbols()) return false;
        prepare_weights();
        make_table();
        const E* features = forward();
        E* d_features = d_out.take<E>(N * P);
        loss(features, d_features);
        backward(d_features);
        return true;
    }
};

// The type of operands is decided once.
struct AnyPlan {
    std::unique_ptr<Plan<float>> fp32;
    std::unique_ptr<Plan<bf16>> half;

    explicit AnyPlan(const PlanShape& shape) {
        if (shape.bf16)
            half = std::make_unique<Plan<bf16>>(shape);
        else
            fp32 = std::make_unique<Plan<float>>(shape);
    }
    bool run(PlanBatch* batch) { return half ? half->run(batch) : fp32->run(batch); }
};

}  // namespace charlm
