// The network: from pixels to the class probabilities after each step.
//
// The same as lstm_mnist_jax/model.py and rnn/cells.py, whose parameter names it uses. Sums are float64, weights the
// float32 of the checkpoint. What takes long is a generator that yields after every time step, so that the page can
// respond meanwhile (see `finish` and reader.js).

/** Decodes base64. */
const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

const sigmoid = (z) => 1 / (1 + Math.exp(-z));

const clip01 = (x) => Math.min(1, Math.max(0, x));

/** The activations by their names in the config. */
const ACTIVATIONS = {
  tanh: Math.tanh,
  sigmoid,
  relu: (x) => Math.max(0, x),
  linear: (x) => x,
  hard_sigmoid_keras2: (x) => clip01(0.2 * x + 0.5),
  hard_sigmoid_keras3: (x) => clip01(x / 6 + 0.5),
};

/** out += x K, for a kernel of rows [x.length, out.length]. */
function addProduct(out, x, kernel) {
  const width = out.length;
  for (let row = 0; row < x.length; row++) {
    const value = x[row];
    if (value === 0) continue;
    const start = row * width;
    for (let column = 0; column < width; column++) out[column] += value * kernel[start + column];
  }
  return out;
}

/** Flax's LayerNorm of a vector, in place; with a bias where one is given. */
function layerNorm(x, scale, bias) {
  let sum = 0;
  let squares = 0;
  for (const value of x) {
    sum += value;
    squares += value * value;
  }
  const mean = sum / x.length;
  const factor = 1 / Math.sqrt(Math.max(0, squares / x.length - mean * mean) + 1e-6);
  for (let n = 0; n < x.length; n++) x[n] = (x[n] - mean) * factor * scale[n] + (bias ? bias[n] : 0);
  return x;
}

/**
 * One step of each kind of cell: update(projected, recurrent, h, c, get, functions) overwrites the output h and the
 * cell state c. `projected` is x W and every bias, `recurrent` is h U; both hold the gates one after another.
 * `functions` are the activations of the LSTM: { gate, squash }.
 */
const UPDATES = {
  lstm(projected, recurrent, h, c, get, { gate: gateOf, squash }) {
    const width = h.length;
    const scale = get("norm_h.scale"); // of the layer-norm LSTM
    if (scale) layerNorm(recurrent, scale);
    for (let n = 0; n < width; n++) {
      const at = (gate) => projected[gate * width + n] + recurrent[gate * width + n];
      c[n] = gateOf(at(1)) * c[n] + gateOf(at(0)) * squash(at(2));
      h[n] = gateOf(at(3));
    }
    const normed = scale ? layerNorm(c.slice(), get("norm_c.scale"), get("norm_c.bias")) : c;
    for (let n = 0; n < width; n++) h[n] *= squash(normed[n]);
  },
  gru(projected, recurrent, h) {
    const width = h.length;
    for (let n = 0; n < width; n++) {
      const r = sigmoid(projected[n] + recurrent[n]);
      const z = sigmoid(projected[width + n] + recurrent[width + n]);
      const candidate = Math.tanh(projected[2 * width + n] + r * recurrent[2 * width + n]);
      h[n] = candidate + z * (h[n] - candidate);
    }
  },
  ur_lstm(projected, recurrent, h, c) {
    const width = h.length;
    for (let n = 0; n < width; n++) {
      const at = (gate) => projected[gate * width + n] + recurrent[gate * width + n];
      const f = sigmoid(at(0));
      const kept = f * (f + 2 * sigmoid(at(1)) * (1 - f));
      const u = Math.tanh(at(2));
      c[n] = u + kept * (c[n] - u);
      h[n] = sigmoid(at(3)) * Math.tanh(c[n]);
    }
  },
};
UPDATES.layer_norm_lstm = UPDATES.lstm;

/** One layer in one direction: `get(name)` is a parameter of its cell, or undefined. */
function makeLayer(cell, get, functions) {
  const kernel = get("dense_i.kernel");
  const recurrentKernel = get("dense_h.kernel");
  const gates = cell === "gru" ? 3 : 4;
  const width = Math.round(Math.sqrt(recurrentKernel.length / gates));
  const biases = [get("dense_i.bias"), get("bias")].filter(Boolean);
  const recurrentBias = get("dense_h.bias") ?? new Float64Array(gates * width); // a GRU's reset gate multiplies it

  function project(x) {
    const projected = addProduct(new Float64Array(gates * width), x, kernel);
    const scale = get("norm_i.scale");
    if (scale) layerNorm(projected, scale);
    for (const bias of biases) for (let n = 0; n < projected.length; n++) projected[n] += bias[n];
    return projected;
  }

  /** The outputs after each step, in the order of the inputs. */
  function* read(inputs, backwards) {
    const h = new Float64Array(width);
    const c = new Float64Array(width);
    const outputs = new Array(inputs.length);
    for (let n = 0; n < inputs.length; n++) {
      const step = backwards ? inputs.length - 1 - n : n;
      const recurrent = addProduct(Float64Array.from(recurrentBias), h, recurrentKernel);
      UPDATES[cell](project(inputs[step]), recurrent, h, c, get, functions);
      outputs[step] = h.slice();
      yield;
    }
    return outputs;
  }
  return { read, width };
}

function softmax(logits) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = logits.map((logit) => Math.exp(logit - most));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

/** What the dense layers read: pool.add(output of a step), then pool.value(). Of "all", steps not added are zero. */
function makePool(pooling, width, attention, steps) {
  if (pooling === "all") {
    const flat = new Float64Array(steps * width);
    let added = 0;
    return { add: (output) => flat.set(output, width * added++), value: () => flat };
  }
  if (!["last", "mean", "max", "attention"].includes(pooling)) throw new Error(`unknown pooling ${pooling}`);
  const sum = new Float64Array(width).fill(pooling === "max" ? -Infinity : 0);
  let total = 0; // of the weights in `sum`
  let peak = -Infinity; // the highest score so far: the weights are relative to it, against overflow
  function add(output) {
    if (pooling === "last") sum.set(output);
    if (pooling === "max") for (let n = 0; n < width; n++) sum[n] = Math.max(sum[n], output[n]);
    if (pooling !== "mean" && pooling !== "attention") return;
    let weight = 1;
    if (pooling === "attention") {
      const [score] = addProduct(new Float64Array(1), output, attention);
      const rescaled = Math.exp(Math.min(0, peak - score));
      peak = Math.max(peak, score);
      weight = Math.exp(score - peak);
      total *= rescaled;
      for (let n = 0; n < width; n++) sum[n] *= rescaled;
    }
    total += weight;
    for (let n = 0; n < width; n++) sum[n] += weight * output[n];
  }
  const value = () => (pooling === "mean" || pooling === "attention" ? sum.map((each) => each / total) : sum);
  return { add, value };
}

/**
 * The network that `describe` in build.py describes.
 *
 * spec: cell, layers (their number), bidirectional, pooling, steps, order (the pixels of the image, counted row after
 * row, in the order of reading; null is row after row), channels, classes (names), parameters ([name, length]),
 * activation and recurrentActivation (of the LSTM), dense (the number of hidden dense layers), denseActivation.
 * weights: Float32Array, all parameters in this order.
 */
function makeNetwork(spec, weights) {
  const parameters = new Map();
  let offset = 0;
  for (const [name, length] of spec.parameters) {
    parameters.set(name, weights.subarray(offset, offset + length));
    offset += length;
  }
  const functions = { gate: ACTIVATIONS[spec.recurrentActivation], squash: ACTIVATIONS[spec.activation] };
  const layers = [];
  for (let number = 0; number < spec.layers; number++) {
    const directions = spec.bidirectional ? ["forward_rnn.cell.", "backward_rnn.cell."] : ["cell."];
    const named = (direction) => (name) => parameters.get(`rnn.layers.${number}.${direction}${name}`);
    layers.push(directions.map((direction) => makeLayer(spec.cell, named(direction), functions)));
  }
  const outWidth = layers.at(-1).reduce((sum, layer) => sum + layer.width, 0);
  const forwardWidth = layers.at(-1)[0].width;
  const named = (name) => ({ kernel: parameters.get(`${name}.kernel`), bias: parameters.get(`${name}.bias`) });
  const hidden = Array.from({ length: spec.dense }, (_, n) => named(`dense_hidden.${n}`));
  const dense = named("dense");
  const attention = parameters.get("attention.kernel");

  /** The image, [pixels * channels] row after row, as `steps` vectors. */
  function sequence(pixels) {
    const { order, channels, steps } = spec;
    const ordered = new Float64Array(pixels.length);
    const count = pixels.length / channels;
    for (let n = 0; n < count; n++) {
      const from = order ? order[n] : n;
      for (let channel = 0; channel < channels; channel++) {
        ordered[n * channels + channel] = pixels[from * channels + channel];
      }
    }
    const features = pixels.length / steps;
    return Array.from({ length: steps }, (_, n) => ordered.subarray(n * features, (n + 1) * features));
  }

  function* outputs(inputs) {
    let below = inputs;
    for (const directions of layers) {
      const found = [];
      for (const [number, layer] of directions.entries()) found.push(yield* layer.read(below, number === 1));
      below = found.length === 1 ? found[0] : below.map((_, n) => Float64Array.of(...found[0][n], ...found[1][n]));
    }
    return below;
  }

  function classify(pooled) {
    const apply = (layer, x) => addProduct(Float64Array.from(layer.bias), x, layer.kernel);
    let features = pooled;
    for (const layer of hidden) features = apply(layer, features).map(ACTIVATIONS[spec.denseActivation]);
    return softmax(apply(dense, features));
  }

  function pooledOf(read) {
    if (spec.pooling === "last" && spec.bidirectional) {
      const last = read.at(-1).slice(); // the backward direction ends at the first step
      last.set(read[0].subarray(forwardWidth), forwardWidth);
      return last;
    }
    if (spec.pooling === "last_step") return read.at(-1);
    const pool = makePool(spec.pooling, outWidth, attention, spec.steps);
    for (const output of read) pool.add(output);
    return pool.value();
  }

  /** The probabilities of one image. */
  function* predict(pixels) {
    return classify(pooledOf(yield* outputs(sequence(pixels))));
  }

  /**
   * The probabilities after each of `stops` (1 to steps, ascending), as if the image ended there.
   * One direction needs one pass; both need a pass for each stop.
   */
  function* along(pixels, stops) {
    const inputs = sequence(pixels);
    const found = [];
    if (spec.bidirectional) {
      for (const stop of stops) found.push(classify(pooledOf(yield* outputs(inputs.slice(0, stop)))));
      return found;
    }
    const pool = makePool(spec.pooling, outWidth, attention, spec.steps);
    const wanted = new Set(stops);
    const read = yield* outputs(inputs.slice(0, stops.at(-1)));
    for (let n = 0; n < read.length; n++) {
      pool.add(read[n]);
      if (wanted.has(n + 1)) found.push(classify(pool.value()));
    }
    return found;
  }

  return { predict, along, spec };
}

/** The result of a generator; undefined if it is not there at the time `until`. */
function finish(generator, until = Infinity) {
  let next = generator.next();
  while (!next.done && performance.now() < until) next = generator.next();
  return next.done ? next.value : undefined;
}
