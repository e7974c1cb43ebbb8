// The page of one model: reads what is typed, shows the next characters, colours the text, writes.

const SLICE = 25; // milliseconds of work between two chances for the page to react
const SNAPSHOT = 16; // symbols between two stored states
const SHOWN = 3000; // symbols of the text that are coloured, its last ones

/** Reads a text symbol by symbol, and keeps for each its probability, the likeliest symbols, and one value to colour by. */
class Reader {
  constructor(model, channel) {
    this.model = model;
    this.channel = channel; // () -> a number, after a step: what the text is coloured by; null: surprisal
    this.reset();
  }

  reset() {
    this.records = [];
    this.state = this.model.zeroState();
    this.next = null; // the probabilities after the last symbol
    if (this.model.about.separator !== null) { // it is before the first record
      this.model.step(this.model.about.start, this.state);
      this.next = softmax(this.model.logits);
    }
    this.snapshots = [{ state: this.model.copyState(this.state), next: this.next }];
  }

  /** Forget everything after the first `kept` symbols. */
  cutTo(kept) {
    const number = Math.min(Math.floor(kept / SNAPSHOT), this.snapshots.length - 1), snapshot = this.snapshots[number];
    const again = this.records.slice(number * SNAPSHOT, kept);
    this.records.length = number * SNAPSHOT;
    this.snapshots.length = number + 1;
    this.state = this.model.copyState(snapshot.state);
    this.next = snapshot.next;
    for (const record of again) this.read(record.id);
  }

  read(id) {
    const model = this.model, before = this.next;
    const expected = before ? likeliest(before, 5).map((other) => [other, before[other]]) : [];
    model.step(id, this.state);
    this.next = softmax(model.logits);
    this.records.push({ id, p: before ? before[id] : null, expected, value: this.channel ? this.channel(this.state) : 0 });
    if (this.records.length % SNAPSHOT === 0)
      this.snapshots.push({ state: model.copyState(this.state), next: this.next });
  }

  /** The probabilities of what comes next. */
  expected() {
    if (this.next) return this.next;
    const state = this.model.zeroState();
    this.model.step(this.model.about.start, state);
    return softmax(this.model.logits);
  }
}

/** The `count` likeliest ids, the likeliest first. */
function likeliest(probabilities, count) {
  const best = [];
  for (let id = 0; id < probabilities.length; id++) {
    if (best.length === count && probabilities[id] <= probabilities[best[count - 1]]) continue;
    let place = best.length;
    while (place > 0 && probabilities[best[place - 1]] < probabilities[id]) place--;
    best.splice(place, 0, id);
    if (best.length > count) best.pop();
  }
  return best;
}

function startPage(model, initial) {
  const $ = (id) => document.getElementById(id);
  const visible = (id) => {
    const code = id === model.about.unknown ? null : model.about.symbols[id];
    if (code === 32) return "␣";
    if (code === 10) return "↵";
    if (code === 9) return "⇥";
    // Control characters, and those that would change the order or the look of what is around them.
    const isHidden = model.about.unit === "char" && code !== null && /[\p{C}\p{Z}\p{M}]/u.test(String.fromCodePoint(code));
    return isHidden ? `U+${code.toString(16).toUpperCase().padStart(4, "0")}` : model.shown(id);
  };
  const channels = [["surprisal (bits)", null]];
  for (const part of model.about.state) channels.push([`state ${part}`, (layer, unit) => (state) => state[part][layer][unit]]);
  if (model.about.gates.length > 1)
    model.about.gates.forEach((gate, number) =>
      channels.push([`gate ${gate}`, (layer, unit) => () => model.layers[layer].gates[number * model.H + unit]]));
  channels.forEach(([name], number) => $("what").add(new Option(name, String(number))));
  $("layer").max = String(model.layers.length - 1);
  $("unit").max = String(model.H - 1);

  const reader = new Reader(model, null);
  let turn = 0; // a new one ends the work of the one before
  let drawn = 0; // records that are already on the page

  function chooseChannel() {
    const make = channels[Number($("what").value)][1];
    const layer = Math.min(Math.max(0, Math.floor(Number($("layer").value)) || 0), model.layers.length - 1);
    const unit = Math.min(Math.max(0, Math.floor(Number($("unit").value)) || 0), model.H - 1);
    reader.channel = make && make(layer, unit);
    $("layer").disabled = $("unit").disabled = !make;
    $("legend").textContent = make
      ? "orange: above 0, blue: below 0; the stronger the colour, the larger the value"
      : "the stronger the colour, the more the character surprised the model; hover for what it expected";
    reader.reset();
    clear();
    update();
  }

  function clear() {
    $("reading").replaceChildren();
    drawn = 0;
  }

  function colour(record) {
    if (!reader.channel) return record.p === null ? null : [Math.min(1, -Math.log2(record.p) / 10), "--warm"];
    return [Math.min(1, Math.abs(record.value)), record.value >= 0 ? "--warm" : "--cold"];
  }

  function describe(record) {
    const lines = [];
    if (record.p !== null) lines.push(`${visible(record.id)}  p ${record.p.toPrecision(3)}, ${(-Math.log2(record.p)).toFixed(2)} bits`);
    if (record.p !== null) lines.push("expected: " + record.expected.map(([id, p]) => `${visible(id)} ${p.toFixed(3)}`).join("  "));
    if (reader.channel) lines.push(`value ${record.value.toFixed(3)}`);
    return lines.join("\n");
  }

  function draw_() {
    const box = $("reading"), records = reader.records;
    const from = Math.max(drawn, records.length - SHOWN);
    for (let i = from; i < records.length; i++) {
      const span = document.createElement("span"), record = records[i];
      const text = visible(record.id);
      span.textContent = { "␣": " ", "↵": "↵\n", "⇥": "\t" }[text] ?? text;
      const found = colour(record);
      if (found) span.style.backgroundColor = `rgb(var(${found[1]}) / ${(found[0] * 0.85).toFixed(3)})`;
      span.addEventListener("mouseenter", () => { span.title = describe(record); }, { once: true });
      box.append(span);
    }
    drawn = records.length;
    while (box.childElementCount > SHOWN) box.firstElementChild.remove();
    box.scrollTop = box.scrollHeight;
  }

  function showNext() {
    const expected = reader.expected(), body = $("next").tBodies[0];
    body.replaceChildren(...likeliest(expected, Math.min(10, model.V)).map((id) => {
      const row = document.createElement("tr");
      row.insertCell().textContent = visible(id);
      row.insertCell().textContent = expected[id].toFixed(4);
      const cell = row.insertCell(), bar = document.createElement("div");
      cell.className = "bar";
      cell.setAttribute("aria-hidden", "true");
      bar.style.width = `${(100 * expected[id]).toFixed(1)}%`;
      cell.append(bar);
      return row;
    }));
  }

  const pause = () => new Promise((resume) => setTimeout(resume));

  /** Read what is in the text field, from the first symbol that differs from what was read before. */
  async function update() {
    const mine = ++turn, ids = model.encode($("text").value);
    let same = 0;
    while (same < ids.length && same < reader.records.length && reader.records[same].id === ids[same]) same++;
    if (same < reader.records.length) {
      reader.cutTo(same);
      clear();
    }
    let until = performance.now() + SLICE;
    for (let i = reader.records.length; i < ids.length; i++) {
      reader.read(ids[i]);
      if (performance.now() > until) {
        $("status").textContent = `reading ${i + 1} of ${ids.length}`;
        await pause();
        if (mine !== turn) return false;
        until = performance.now() + SLICE;
      }
    }
    const unknown = ids.filter((id) => id === model.about.unknown).length;
    $("status").textContent = unknown ? `${unknown} characters are not in the vocabulary; the model reads them as <unk>` : "";
    draw_();
    showNext();
    return true;
  }

  async function write() {
    if (!(await update())) return;
    const mine = ++turn, field = $("text"), uniform = random(Number($("seed").value) || 0);
    const length = Math.min(100000, Math.max(1, Math.floor(Number($("length").value)) || 1));
    const temperature = Number($("temperature").value), topP = Number($("top-p").value);
    $("write").disabled = true;
    $("stop").disabled = false;
    const start = field.value, ids = [], began = performance.now();
    let until = began + SLICE;
    for (let count = 0; count < length && mine === turn; count++) {
      const logits = reader.expected().map(Math.log);
      const id = draw(logits, temperature, topP, model.about.unknown, uniform());
      if (id === model.about.separator) count = length - 1; // the record ends
      ids.push(id);
      reader.read(id);
      if (performance.now() > until || count === length - 1) {
        field.value = start + model.decode(ids);
        field.scrollTop = field.scrollHeight;
        const seconds = (performance.now() - began) / 1000, speed = Math.round((count + 1) / Math.max(seconds, 0.001));
        $("status").textContent = `${(count + 1).toLocaleString("en")} characters, ${speed.toLocaleString("en")} per second`;
        draw_();
        await pause();
        until = performance.now() + SLICE;
      }
    }
    $("write").disabled = false;
    $("stop").disabled = true;
    showNext();
  }

  for (const id of ["temperature", "top-p"]) {
    const show = () => { $(id).nextElementSibling.value = $(id).value; };
    $(id).addEventListener("input", show);
    show();
  }
  $("text").value = initial;
  $("text").addEventListener("input", update);
  $("write").addEventListener("click", write);
  $("stop").addEventListener("click", () => { turn++; });
  for (const id of ["what", "layer", "unit"]) $(id).addEventListener("change", chooseChannel);
  chooseChannel();
}

/** Symbols that the model alone writes in a second, for tests of speed. */
function symbolsPerSecond(model, count) {
  const state = model.zeroState(), uniform = random(1), began = performance.now();
  let id = model.about.start;
  for (let i = 0; i < count; i++) id = draw(model.step(id, state), 0.8, 1, model.about.unknown, uniform());
  return (count / (performance.now() - began)) * 1000;
}

{
  const description = JSON.parse(document.getElementById("model").textContent);
  const weights = decodeWeights(document.getElementById("weights").textContent.trim(), description.precision);
  const model = new CharModel(description, weights);
  window.charlm = { model, symbolsPerSecond };
  startPage(model, description.initial);
}
