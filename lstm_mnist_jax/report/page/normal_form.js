// What is drawn, in the form that the network was trained on.
//
// Twin of lstm_mnist_jax/data/normal_form.py for what a pad gives: white ink on black paper without noise, in at most
// 256 x 256 pixels. A picture is {height, width, levels}: levels from 0 to 1, row after row. Knows arrays; knows
// nothing of the page.

const FACES = 20 / 28; // the share of the side of MNIST's images that a digit's largest side takes
const LEAST_CONTRAST = 0.06; // of ink: below, there is nothing to be seen
const EDGE = 0.25; // the share of the brightest ink at which a stroke's edge is taken to be
const FAINT_EDGE = 0.01; // the same in a picture that is in normal form already

const peakOf = (levels) => levels.reduce((a, b) => Math.max(a, b), 0);

/** For each of `after` pixels [first pixel before, weights]: a weighted mean by a triangle, which sums to 1. */
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

/** A picture brought to another size. */
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

/** The rectangle of what is written; `edge` is the share of the brightest ink at which it begins. */
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

/** Where a line of ink begins, so that its centre of mass is the middle, as far as it has room. */
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

/** Something written, in MNIST's normal form: [height * width] from 0 to 1; null where nothing is written. */
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

/** The picture as it is, reduced to the size of the network's images; null where nothing is on it. */
function whole(picture, height, width) {
  if (peakOf(picture.levels) < LEAST_CONTRAST) return null;
  return resampled(picture, height, width).levels.map((level) => Math.min(1, Math.max(0, level)));
}
