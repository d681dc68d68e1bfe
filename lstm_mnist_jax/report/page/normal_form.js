// A drawing in the form of the images that the network was trained on.
//
// The same as lstm_mnist_jax/data/normal_form.py for white ink on black without noise, in at most 256 x 256 pixels. A
// picture is {height, width, levels}: levels from 0 to 1, row after row.

const FACES = 20 / 28; // the longer side of a digit, as a fraction of the side of MNIST's images
const LEAST_CONTRAST = 0.06; // of ink; less is an empty picture
const EDGE = 0.25; // where a stroke ends, as a fraction of the brightest ink
const FAINT_EDGE = 0.01; // the same in a picture that is in normal form already

const peakOf = (levels) => levels.reduce((a, b) => Math.max(a, b), 0);

/** For each of `after` pixels, [first of `before` pixels, weights]: a triangle filter, whose weights sum to 1. */
function resampling(before, after) {
  const scale = before / after;
  const reach = Math.max(1, scale);
  return Array.from({ length: after }, (_, n) => {
    const centre = (n + 0.5) * scale - 0.5;
    const first = Math.max(0, Math.ceil(centre - reach));
    const last = Math.min(before - 1, Math.floor(centre + reach));
    const weights = [];
    for (let at = first; at <= last; at++) weights.push(Math.max(0, 1 - Math.abs(at - centre) / reach));
    const sum = weights.reduce((a, b) => a + b, 0);
    return [first, weights.map((weight) => weight / sum)];
  });
}

/** Resizes a picture. */
function resampled({ height, width, levels }, tall, wide) {
  const narrow = new Float64Array(height * wide);
  for (const [x, [first, weights]] of resampling(width, wide).entries()) {
    for (let y = 0; y < height; y++) {
      for (let n = 0; n < weights.length; n++) narrow[y * wide + x] += weights[n] * levels[y * width + first + n];
    }
  }
  const found = new Float64Array(tall * wide);
  for (const [y, [first, weights]] of resampling(height, tall).entries()) {
    for (let n = 0; n < weights.length; n++) {
      for (let x = 0; x < wide; x++) found[y * wide + x] += weights[n] * narrow[(first + n) * wide + x];
    }
  }
  return { height: tall, width: wide, levels: found };
}

/** Crops a picture to its ink: to levels above `edge` times the brightest. */
function cutOut({ width, levels }, edge) {
  const peak = peakOf(levels);
  let [top, bottom, left, right] = [Infinity, -1, Infinity, -1];
  for (let at = 0; at < levels.length; at++) {
    if (levels[at] <= edge * peak) continue;
    const [y, x] = [Math.floor(at / width), at % width];
    [top, bottom, left, right] = [Math.min(top, y), Math.max(bottom, y), Math.min(left, x), Math.max(right, x)];
  }
  const found = { height: bottom - top + 1, width: right - left + 1 };
  found.levels = new Float64Array(found.height * found.width);
  for (let y = 0; y < found.height; y++) {
    const from = (top + y) * width + left;
    found.levels.set(levels.subarray(from, from + found.width), y * found.width);
  }
  return found;
}

/** Where to place a profile of ink in `length` pixels: its centre of mass in the middle, as far as it fits. */
function start(mass, length) {
  let sum = 0;
  let moment = 0;
  for (const [at, value] of mass.entries()) {
    sum += value;
    moment += at * value;
  }
  const wanted = Math.round(length / 2 - moment / sum);
  return Math.min(length - mass.length, Math.max(0, wanted));
}

/** A digit in MNIST's normal form: [height * width] from 0 to 1; null if the picture is empty. */
function digit(picture, height, width) {
  if (peakOf(picture.levels) < LEAST_CONTRAST) return null;
  const side = Math.round(FACES * Math.min(height, width));
  let strokes = cutOut(picture, FAINT_EDGE);
  if (Math.max(strokes.height, strokes.width) !== side) strokes = cutOut(picture, EDGE);
  const longest = Math.max(strokes.height, strokes.width);
  const [tall, wide] = [strokes.height, strokes.width].map((n) => Math.max(1, Math.round((side * n) / longest)));
  if (strokes.height !== tall || strokes.width !== wide) strokes = resampled(strokes, tall, wide);
  const peak = peakOf(strokes.levels);
  const rows = new Float64Array(tall);
  const columns = new Float64Array(wide);
  for (const [at, level] of strokes.levels.entries()) {
    rows[Math.floor(at / wide)] += level;
    columns[at % wide] += level;
  }
  const [y0, x0] = [start(rows, height), start(columns, width)];
  const normal = new Float64Array(height * width);
  for (let y = 0; y < tall; y++) {
    for (let x = 0; x < wide; x++) {
      normal[(y0 + y) * width + x0 + x] = strokes.levels[y * wide + x] / peak;
    }
  }
  return normal;
}

/** The whole picture, resized to the network's images; null if it is empty. */
function whole(picture, height, width) {
  if (peakOf(picture.levels) < LEAST_CONTRAST) return null;
  return resampled(picture, height, width).levels.map((level) => Math.min(1, Math.max(0, level)));
}
