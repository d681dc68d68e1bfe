// Whether an image looks unlike the training images, as lstm_mnist_jax/data/novelty.py, which says how: a change there
// needs the same change here.

const DIRECTIONS = 8;
const CELLS = 5;
const FEATURES_SIDE = 28;
const WIDTH_EDGE = 0.25;

/** The directions of an image's gradient: [features], of norm 1. */
function featuresOf(image) {
  const side = FEATURES_SIDE;
  // Rounding errors on a background would be a gradient.
  const grey = { ...image, levels: image.levels.map((level) => level - image.levels[0]) };
  const { levels } = grey.height === side && grey.width === side ? grey : resampled(grey, side, side);
  const last = side - 1;
  const at = (grey, y, x) => grey[Math.min(last, Math.max(0, y)) * side + Math.min(last, Math.max(0, x))];
  const each = (make) => Float64Array.from({ length: side * side }, (_, n) => make(Math.floor(n / side), n % side));
  const down = each((y, x) => (at(levels, y - 1, x) + 2 * at(levels, y, x) + at(levels, y + 1, x)) / 4);
  const soft = each((y, x) => (at(down, y, x - 1) + 2 * at(down, y, x) + at(down, y, x + 1)) / 4);
  const channels = Array.from({ length: DIRECTIONS }, () => new Float64Array(side * side));
  for (let n = 0; n < side * side; n++) {
    const [y, x] = [Math.floor(n / side), n % side];
    const [dy, dx] = [at(soft, y + 1, x) - at(soft, y - 1, x), at(soft, y, x + 1) - at(soft, y, x - 1)];
    const angle = (Math.atan2(dy, dx) * DIRECTIONS) / (2 * Math.PI) + DIRECTIONS;
    const lower = Math.floor(angle);
    const size = Math.hypot(dy, dx);
    channels[lower % DIRECTIONS][n] += size * (1 - angle + lower);
    channels[(lower + 1) % DIRECTIONS][n] += size * (angle - lower);
  }
  const found = channels.flatMap((levels) => [
    ...resampled({ height: side, width: side, levels }, CELLS, CELLS).levels.map(Math.sqrt),
  ]);
  const norm = Math.sqrt(found.reduce((sum, value) => sum + value * value, 0)) + 1e-9;
  return found.map((value) => value / norm);
}

/** The width of the ink on an image, as a fraction of its height. */
function widthOf({ levels, height, width }) {
  const peak = peakOf(levels);
  if (!(peak > 0)) return 1;
  const [ink] = cutOutOf({ height, width, levels }, WIDTH_EDGE * peak);
  return ink.width / ink.height;
}

/**
 * spec: of `novelty_of` in build.py, or null: nothing is said then.
 * Returns ({score, warning}): functions of the network's input, [pixels * channels] from 0 to 1.
 */
function makeNovelty(spec, { height, width, channels }) {
  if (!spec) return { score: () => null, warning: () => null };
  const floats = (name) => new Float32Array(bytesOf(spec[name]).buffer);
  const bytes = (name) => new Int8Array(bytesOf(spec[name]).buffer);
  const [mean, steps, classMeans] = [floats("mean"), floats("component_steps"), floats("class_means")];
  const [rowSteps, leftWeights] = [floats("whitening_steps"), floats("left_weights")];
  const [components, whitening] = [bytes("components"), bytes("whitening")];
  const count = steps.length;
  const triangle = (count * (count + 1)) / 2;

  function greyOf(pixels) {
    const levels = new Float64Array(height * width);
    for (let n = 0; n < pixels.length; n++) levels[Math.floor(n / channels)] += pixels[n] / channels;
    return { height, width, levels };
  }

  function scoreOf(grey) {
    const centred = featuresOf(grey).map((value, n) => value - mean[n]);
    const square = (values) => values.reduce((sum, value) => sum + value * value, 0);
    const place = (n) => steps[n] * centred.reduce((sum, value, m) => sum + value * components[n * mean.length + m], 0);
    const places = Array.from({ length: count }, (_, n) => place(n));
    const left = square(centred) - square(places);
    let nearest = Infinity;
    for (let label = 0; label < leftWeights.length; label++) {
      let score = leftWeights[label] * left;
      const apart = places.map((value, n) => value - classMeans[label * count + n]);
      for (let row = 0, at = label * triangle; row < count; row++) {
        let sum = 0;
        for (let n = 0; n <= row; n++, at++) sum += whitening[at] * apart[n];
        score += (rowSteps[label * count + row] * sum) ** 2;
      }
      nearest = Math.min(nearest, score);
    }
    return nearest;
  }

  function warning(pixels, isSign = false) {
    const grey = greyOf(pixels);
    const [score, width] = [scoreOf(grey), widthOf(grey)];
    const isUnlike = score > spec.threshold;
    const mayBePair = !isSign && (isUnlike ? width > spec.wide : score * width > spec.pair_threshold);
    const texts = [isUnlike && spec.unlike, mayBePair && spec.pair].filter(Boolean);
    return texts.length ? texts.join(": ") : null;
  }
  return { score: (pixels) => scoreOf(greyOf(pixels)), warning };
}
