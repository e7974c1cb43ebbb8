"use strict";
// A character-level language model that runs in the browser: the equations of charlm/model/cells.py in plain JavaScript.
// One stream, one step at a time. Weights are Float32Array; sums are JavaScript numbers (float64).
//
//   H hidden units   D input width   G gates   V symbols   L layers

/** sigma(x) = 1 / (1 + exp(-x)) */
const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** y = W x + b for W (rows, columns), row by row. Eight rows at a time share each load of x: 1.5 times as fast as four. */
function product(W, x, b, y, rows, columns, firstRow = 0) {
  const C = columns, end = firstRow + rows;
  let row = firstRow;
  for (; row + 8 <= end; row += 8) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
    for (let j = 0, i = row * C; j < C; j++, i++) {
      const v = x[j];
      s0 += W[i] * v;
      s1 += W[i + C] * v;
      s2 += W[i + 2 * C] * v;
      s3 += W[i + 3 * C] * v;
      s4 += W[i + 4 * C] * v;
      s5 += W[i + 5 * C] * v;
      s6 += W[i + 6 * C] * v;
      s7 += W[i + 7 * C] * v;
    }
    y[row] = s0; y[row + 1] = s1; y[row + 2] = s2; y[row + 3] = s3;
    y[row + 4] = s4; y[row + 5] = s5; y[row + 6] = s6; y[row + 7] = s7;
  }
  for (; row < end; row++) {
    let sum = 0;
    for (let j = 0, i = row * C; j < C; j++, i++) sum += W[i] * x[j];
    y[row] = sum;
  }
  if (b) for (row = firstRow; row < end; row++) y[row] += b[row];
  return y;
}

/**
 * The cells: name of the entry in charlm/cells.py -> one step.
 *
 * A step receives the layer (its weights, H, and work space), x = W_ih input + b_ih, and the state {h, c}, which it
 * changes in place. It leaves the gates' values in layer.gates, (G H).
 */
const CELLS = {
  rnn_tanh(layer, x, state) { plain(layer, x, state, Math.tanh); },
  rnn_relu(layer, x, state) { plain(layer, x, state, (v) => Math.max(0, v)); },

  // i, f, o = sigma(.)  g = tanh(.)   c' = f c + i g   h' = o tanh(c')
  lstm(layer, x, { h, c }) {
    const { H, gates: a } = layer;
    product(layer.weight_hh, h, layer.bias_hh, a, 4 * H, H);
    for (let k = 0; k < H; k++) {
      const i = sigmoid(x[k] + a[k]), f = sigmoid(x[H + k] + a[H + k]);
      const g = Math.tanh(x[2 * H + k] + a[2 * H + k]), o = sigmoid(x[3 * H + k] + a[3 * H + k]);
      c[k] = f * c[k] + i * g;
      h[k] = o * Math.tanh(c[k]);
      a[k] = i; a[H + k] = f; a[2 * H + k] = g; a[3 * H + k] = o;
    }
  },

  // As lstm; i and f also see p c, o sees p c' (Gers & Schmidhuber 2000).
  lstm_peephole(layer, x, { h, c }) {
    const { H, gates: a, weight_peephole: p } = layer;
    product(layer.weight_hh, h, layer.bias_hh, a, 4 * H, H);
    for (let k = 0; k < H; k++) {
      const i = sigmoid(x[k] + a[k] + p[k] * c[k]);
      const f = sigmoid(x[H + k] + a[H + k] + p[H + k] * c[k]);
      const g = Math.tanh(x[2 * H + k] + a[2 * H + k]);
      c[k] = f * c[k] + i * g;
      const o = sigmoid(x[3 * H + k] + a[3 * H + k] + p[2 * H + k] * c[k]);
      h[k] = o * Math.tanh(c[k]);
      a[k] = i; a[H + k] = f; a[2 * H + k] = g; a[3 * H + k] = o;
    }
  },

  // c' = f c + (1 - f) g
  lstm_coupled(layer, x, { h, c }) {
    const { H, gates: a } = layer;
    product(layer.weight_hh, h, layer.bias_hh, a, 3 * H, H);
    for (let k = 0; k < H; k++) {
      const f = sigmoid(x[k] + a[k]), g = Math.tanh(x[H + k] + a[H + k]), o = sigmoid(x[2 * H + k] + a[2 * H + k]);
      c[k] = f * c[k] + (1 - f) * g;
      h[k] = o * Math.tanh(c[k]);
      a[k] = f; a[H + k] = g; a[2 * H + k] = o;
    }
  },

  // r, z = sigma(.)   n = tanh(x_n + r (W_n h + b_n))   h' = (1 - z) n + z h
  gru(layer, x, { h }) {
    const { H, gates: a } = layer;
    product(layer.weight_hh, h, layer.bias_hh, a, 3 * H, H);
    for (let k = 0; k < H; k++) {
      const r = sigmoid(x[k] + a[k]), z = sigmoid(x[H + k] + a[H + k]);
      const n = Math.tanh(x[2 * H + k] + r * a[2 * H + k]);
      h[k] = (1 - z) * n + z * h[k];
      a[k] = r; a[H + k] = z; a[2 * H + k] = n;
    }
  },

  // n = tanh(x_n + W_n (r h) + b_n)   h' = (1 - z) n + z h   (Cho et al. 2014)
  gru_reset_before(layer, x, { h }) {
    const { H, gates: a, work } = layer;
    product(layer.weight_hh, h, layer.bias_hh, a, 2 * H, H);
    for (let k = 0; k < H; k++) {
      a[k] = sigmoid(x[k] + a[k]);
      a[H + k] = sigmoid(x[H + k] + a[H + k]);
      work[k] = a[k] * h[k];
    }
    product(layer.weight_hh, work, layer.bias_hh, a, H, H, 2 * H);
    for (let k = 0; k < H; k++) {
      const n = Math.tanh(x[2 * H + k] + a[2 * H + k]), z = a[H + k];
      h[k] = (1 - z) * n + z * h[k];
      a[2 * H + k] = n;
    }
  },
};

/** h' = activation(x + W h + b) */
function plain(layer, x, { h }, activation) {
  const { H, gates: a } = layer;
  product(layer.weight_hh, h, layer.bias_hh, a, H, H);
  for (let k = 0; k < H; k++) h[k] = a[k] = activation(x[k] + a[k]);
}

/** The value of a half-precision number (IEEE 754 binary16). */
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Weights as one Float32Array, from base64 of little-endian fp16 or fp32. */
function decodeWeights(base64, precision) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const view = new DataView(bytes.buffer);
  const isHalf = precision === "fp16", size = isHalf ? 2 : 4;
  const table = isHalf ? Float32Array.from({ length: 65536 }, (_, bits) => fromHalf(bits)) : null;
  const weights = new Float32Array(bytes.length / size);
  for (let i = 0; i < weights.length; i++)
    weights[i] = isHalf ? table[view.getUint16(2 * i, true)] : view.getFloat32(4 * i, true);
  return weights;
}

class CharModel {
  /**
   * @param description what charlm/export/html.py writes: cell, gates, hidden, layers, residual, attention (window or 0),
   *   symbols, tensors ([name, shape], in the order of the weights).
   * @param weights all tensors, one after another.
   */
  constructor(description, weights) {
    this.about = description;
    this.H = description.hidden;
    this.V = description.size;
    this.step_ = CELLS[description.cell];
    this.tensors = {};
    let offset = 0;
    for (const [name, shape] of description.tensors) {
      const size = shape.reduce((a, b) => a * b, 1);
      this.tensors[name] = weights.subarray(offset, offset + size);
      offset += size;
    }
    const G = description.gates.length, H = this.H;
    this.layers = Array.from({ length: description.layers }, (_, number) => {
      const layer = { H, gates: new Float64Array(G * H), input: new Float64Array(G * H), work: new Float64Array(H) };
      for (const name of Object.keys(this.tensors))
        if (name.startsWith(`layers.${number}.`)) layer[name.split(".")[2]] = this.tensors[name];
      return layer;
    });
    this.first = new Map(); // id -> W_ih input + b_ih of the first layer, computed when first needed
    this.output = this.tensors.output_weight || this.tensors.embedding;
    this.logits = new Float64Array(this.V);
  }

  /** The state before the first character. */
  zeroState() {
    const zeros = () => Array.from({ length: this.layers.length }, () => new Float64Array(this.H));
    return { h: zeros(), c: this.about.state.includes("c") ? zeros() : null, past: [] };
  }

  copyState({ h, c, past }) {
    const copy = (parts) => parts && parts.map((part) => part.slice());
    return { h: copy(h), c: copy(c), past: past.slice() };
  }

  /** Read one symbol: changes the state, and returns the logits of the next one, valid until the next call. */
  step(id, state) {
    if (id === this.about.separator) Object.assign(state, this.zeroState()); // a record begins
    const H = this.H, G = this.about.gates.length;
    let values = null;
    this.layers.forEach((layer, number) => {
      const x = number ? product(layer.weight_ih, values, layer.bias_ih, layer.input, G * H, H) : this.firstInput(id);
      this.step_(layer, x, { h: state.h[number], c: state.c && state.c[number] });
      const own = state.h[number];
      values = this.about.residual && number ? own.map((v, k) => v + values[k]) : own;
    });
    if (this.about.attention) values = this.lookUp(values, state);
    return product(this.output, values, this.tensors.output_bias, this.logits, this.V, H);
  }

  firstInput(id) {
    if (!this.first.has(id)) {
      const layer = this.layers[0], rows = layer.bias_ih.length, table = this.tensors.embedding;
      const x = new Float64Array(rows), W = layer.weight_ih;
      if (table) {
        const D = table.length / this.V;
        product(W, table.subarray(id * D, (id + 1) * D), layer.bias_ih, x, rows, D);
      } else {
        for (let row = 0; row < rows; row++) x[row] = W[row * this.V + id] + layer.bias_ih[row];
      }
      this.first.set(id, x);
    }
    return this.first.get(id);
  }

  /** Attention (charlm/model/attention.py): h + W_o sum_s a_s h_s over the last outputs. */
  lookUp(h, state) {
    const { H } = this, past = state.past, scale = 1 / Math.sqrt(H);
    const query = product(this.tensors["attention.query"], h, null, new Float64Array(H), H, H);
    // As in charlm, an output that is all zeros is not looked at.
    const scores = past.map((old) =>
      old.some((v) => v !== 0) ? old.reduce((sum, v, k) => sum + v * query[k], 0) * scale : -Infinity);
    const most = Math.max(0, ...scores);
    const weights = scores.map((score) => Math.exp(score - most));
    const total = weights.reduce((a, b) => a + b, Math.exp(-most));
    const found = new Float64Array(H);
    past.forEach((old, s) => { for (let k = 0; k < H; k++) found[k] += (weights[s] / total) * old[k]; });
    const looked = product(this.tensors["attention.output"], found, null, new Float64Array(H), H, H);
    past.push(Float64Array.from(h));
    if (past.length > this.about.attention) past.shift();
    return looked.map((v, k) => v + h[k]);
  }

  /** Text -> ids; unknown characters become <unk>. */
  encode(text) {
    if (this.about.unit === "byte") return Array.from(new TextEncoder().encode(text));
    this.ids ??= new Map(this.about.symbols.map((symbol, index) => [symbol, index]));
    return Array.from(text, (character) => this.ids.get(character.codePointAt(0)) ?? this.about.unknown);
  }

  decode(ids) {
    if (this.about.unit === "byte") return new TextDecoder().decode(Uint8Array.from(ids));
    return ids.map((id) => (id === this.about.unknown ? "\ufffd" : String.fromCodePoint(this.about.symbols[id]))).join("");
  }

  /** A symbol as people read it. */
  shown(id) {
    const symbol = this.about.symbols[id];
    if (id === this.about.unknown) return "<unk>";
    if (this.about.unit === "byte" && (symbol < 32 || symbol > 126)) return `\\x${symbol.toString(16).padStart(2, "0")}`;
    return String.fromCodePoint(symbol);
  }

  /** The probabilities of the next symbol after a text from a zero state: (V). */
  probabilities(text) {
    const ids = this.encode(text), state = this.zeroState();
    if (!ids.length || this.about.separator !== null) ids.unshift(this.about.start);
    for (const id of ids) this.step(id, state);
    return softmax(this.logits);
  }
}

function softmax(logits) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const scores = logits.map((v) => Math.exp(v - most)), total = scores.reduce((a, b) => a + b, 0);
  return scores.map((v) => v / total);
}

/**
 * Draw a symbol.
 *
 * @param banned an id that is never drawn, or null.
 * @param uniform in [0, 1).
 */
function draw(logits, temperature, topP, banned, uniform) {
  const order = Array.from(logits.keys()).filter((id) => id !== banned).sort((a, b) => logits[b] - logits[a]);
  if (temperature === 0) return order[0];
  let scores = order.map((id) => Math.exp((logits[id] - logits[order[0]]) / temperature));
  if (topP < 1) {
    const total = scores.reduce((a, b) => a + b, 0);
    let mass = 0, kept = 0;
    while (kept < scores.length && mass < topP * total) mass += scores[kept++];
    scores = scores.slice(0, kept);
  }
  let left = uniform * scores.reduce((a, b) => a + b, 0);
  for (let i = 0; i < scores.length; i++) if ((left -= scores[i]) < 0) return order[i];
  return order[scores.length - 1];
}

/** Uniform numbers in [0, 1) from a seed (mulberry32). */
function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
