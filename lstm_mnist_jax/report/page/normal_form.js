// The digits on a picture in the form of the images that the network was trained on, as
// lstm_mnist_jax/data/normal_form.py makes it. A picture is {height, width, levels}: levels from 0 to 1, row after row.

const SOUGHT_SIDE = 512; // the longer side of pictures in which digits are sought; larger ones are reduced
const FACES = 20 / 28; // the longer side of a digit, as a fraction of the side of MNIST's images
const LEAST_CONTRAST = 0.06; // of ink; less is an empty picture
const EDGE = 0.25; // where a stroke ends, as a fraction of the level of the ink
const SURE_OF_EDGE = 3; // the least level of a stroke's edge, in standard deviations of the noise
const TAKEN_OFF = 2; // the noise that is subtracted after scaling, in standard deviations
const FAINT_EDGE = 0.01; // the same in a picture that is in normal form already
const FINE = 4; // strokes are thickened in so many times the size of a digit
const THIN = 1.1; // thinner strokes are thickened to THICK: pixels of a digit of 20
const THICK = 2.2;
const SIGN = "it may be a sign or a line";
const UNREAD = "a mark beside it is not read";

function peakOf(levels) {
  let peak = 0;
  for (let at = 0; at < levels.length; at++) if (levels[at] > peak) peak = levels[at];
  return peak;
}

/**
 * A triangle filter: for each of `after` pixels, the first of the `before` pixels of which it is a mean, and their `taps`
 * weights, whose sum is 1.
 */
function resampling(before, after) {
  const scale = before / after;
  const reach = Math.max(1, scale);
  const taps = Math.min(before, Math.ceil(2 * reach));
  const [firsts, weights] = [new Int32Array(after), new Float64Array(after * taps)];
  for (let n = 0; n < after; n++) {
    const centre = (n + 0.5) * scale - 0.5;
    const first = (firsts[n] = Math.min(Math.max(0, Math.floor(centre - reach) + 1), before - taps));
    let sum = 0;
    for (let tap = 0; tap < taps; tap++) {
      sum += weights[n * taps + tap] = Math.max(0, 1 - Math.abs(first + tap - centre) / reach);
    }
    for (let tap = 0; tap < taps; tap++) weights[n * taps + tap] /= sum;
  }
  return { taps, firsts, weights };
}

/** Resizes a picture. */
function resampled({ height, width, levels }, tall, wide) {
  const [across, down] = [resampling(width, wide), resampling(height, tall)];
  const narrow = new Float64Array(height * wide);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0, at = 0; x < wide; x++, to++) {
      const from = y * width + across.firsts[x];
      let sum = 0;
      for (let tap = 0; tap < across.taps; tap++, at++) sum += across.weights[at] * levels[from + tap];
      narrow[to] = sum;
    }
  }
  const found = new Float64Array(tall * wide);
  for (let y = 0, at = 0; y < tall; y++) {
    for (let tap = 0; tap < down.taps; tap++, at++) {
      const from = (down.firsts[y] + tap) * wide;
      for (let x = 0; x < wide; x++) found[y * wide + x] += down.weights[at] * narrow[from + x];
    }
  }
  return { height: tall, width: wide, levels: found };
}

/** The means over squares of pixels, of the smallest side that leaves at most `most` of them side by side. */
function reduced(picture, most) {
  const side = Math.ceil(longestOf(picture) / most);
  if (side === 1) return picture;
  const { height, width, levels } = picture;
  const [tall, wide] = [height, width].map((n) => Math.ceil(n / side));
  const sums = new Float32Array(width); // in the precision of Python's
  const found = kept("reduced", Float32Array, tall * wide);
  for (let y = 0, at = 0; y < tall; y++) {
    const count = Math.min(side, height - side * y);
    sums.fill(0);
    for (let n = 0; n < count; n++) {
      for (let x = 0, from = (side * y + n) * width; x < width; x++) sums[x] += levels[from + x];
    }
    for (let x = 0; x < width; at++) {
      const end = Math.min(width, x + side);
      const among = end - x;
      let sum = 0;
      for (; x < end; x++) sum = Math.fround(sum + Math.fround(sums[x] / count));
      found[at] = sum / among;
    }
  }
  return { height: tall, width: wide, levels: found };
}

const cutOut = (picture, edge) => cutOutOf(picture, edge)[0];

/** Crops a picture to its ink, to levels above `edge`: [picture, top, left]. */
function cutOutOf({ width, levels }, edge) {
  let [top, bottom, left, right] = [Infinity, -1, Infinity, -1];
  for (let y = 0, at = 0; at < levels.length; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (levels[at] <= edge) continue;
      [top, bottom, left, right] = [Math.min(top, y), y, Math.min(left, x), Math.max(right, x)];
    }
  }
  const found = { height: bottom - top + 1, width: right - left + 1 };
  found.levels = new Float64Array(found.height * found.width);
  for (let y = 0; y < found.height; y++) {
    const from = (top + y) * width + left;
    found.levels.set(levels.subarray(from, from + found.width), y * found.width);
  }
  return [found, top, left];
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

const longestOf = ({ height, width }) => Math.max(height, width);

/** The ink of a picture that is a digit in normal form already, or null. */
function normalOf({ height, width, levels }, tall, wide, side) {
  if (height !== tall || width !== wide) return null;
  const isBorder = (at) => at < width || at >= levels.length - width || at % width === 0 || at % width === width - 1;
  const border = levels.filter((_, at) => isBorder(at)).sort();
  const last = border.length - 1;
  const paper = (border[Math.floor(last / 2)] + border[Math.ceil(last / 2)]) / 2;
  if (paper !== 0 && paper !== 1) return null;
  const ink = { height, width, levels: levels.map((level) => Math.abs(level - paper)) };
  const peak = peakOf(ink.levels);
  if (peak < 0.9) return null;
  const isNormal = [FAINT_EDGE, EDGE].some((edge) => longestOf(cutOut(ink, edge * peak)) === side);
  return isNormal ? ink.levels : null;
}

/** The level of the ink: that which a quarter of the pixels of its strokes reaches. */
function levelOf({ levels, core }) {
  const inside = new Float64Array(core.length);
  let count = 0;
  for (let at = 0; at < core.length; at++) if (core[at]) inside[count++] = levels[at];
  return ranked(inside.subarray(0, count), Math.floor((3 * (count - 1)) / 4));
}

/** The largest level within a radius of each pixel: of rows that are that of the largest within ever more columns. */
function dilatedBy({ height, width, levels }, radius) {
  const found = new Float64Array(height * width);
  const reach = Math.floor(radius);
  for (let across = 0, row = levels; across <= reach; across++) {
    for (let dy = -reach; dy <= reach; dy++) {
      if (Math.hypot(dy, across) > radius || Math.hypot(dy, across + 1) <= radius) continue;
      const step = dy * width;
      const end = Math.min(found.length, found.length - step);
      for (let at = Math.max(0, -step); at < end; at++) if (row[at + step] > found[at]) found[at] = row[at + step];
    }
    const wider = row.slice();
    for (let at = 0, x = 0; at < row.length; at++, x = x < width - 1 ? x + 1 : 0) {
      if (x && row[at - 1] > wider[at]) wider[at] = row[at - 1];
      if (x < width - 1 && row[at + 1] > wider[at]) wider[at] = row[at + 1];
    }
    row = wider;
  }
  return { height, width, levels: found };
}

/** Strokes of a thin pen, up to the level of the ink, as thick as those of MNIST; null if they are that thick. */
function thickened(box, level, side) {
  const strokes = { ...box, levels: box.levels.slice() };
  for (let at = 0; at < strokes.levels.length; at++) if (strokes.levels[at] > level) strokes.levels[at] = level;
  const fine = FINE * side;
  const size = [strokes.height, strokes.width].map((n) => Math.max(1, Math.round((fine * n) / longestOf(strokes))));
  const scaled = resampled(strokes, ...size);
  const edge = 0.4 * peakOf(scaled.levels);
  const isInk = new Uint8Array(scaled.levels.length);
  let [all, inner] = [0, 0]; // pixels of ink, and those with ink around them
  for (let at = 0; at < isInk.length; at++) all += isInk[at] = scaled.levels[at] > edge ? 1 : 0;
  for (let at = scaled.width, x = 0, run = 0; at < isInk.length - scaled.width; at++, x = x < scaled.width - 1 ? x + 1 : 0) {
    run = isInk[at - scaled.width] & isInk[at] & isInk[at + scaled.width] ? (x && run) + 1 : 0; // of columns of three
    if (run >= 3) inner++;
  }
  const width = 2 / Math.max(1 - inner / Math.max(all, 1), 0.01);
  const missing = Math.round((THICK * (fine / 20) - width) / 2);
  if (width >= THIN * (fine / 20) || missing <= 0) return null;
  const padded = { height: scaled.height + 2 * missing, width: scaled.width + 2 * missing };
  padded.levels = new Float64Array(padded.height * padded.width);
  for (let y = 0; y < scaled.height; y++) {
    const row = scaled.levels.subarray(y * scaled.width, (y + 1) * scaled.width);
    padded.levels.set(row, (y + missing) * padded.width + missing);
  }
  return dilatedBy(padded, missing + 0.3);
}

/** The sum of squared weights of the middle pixel of a resized line, by which noise shrinks. */
function squaresOf(before, after) {
  const { taps, weights } = resampling(before, after);
  const middle = Math.floor(after / 2);
  return weights.subarray(middle * taps, (middle + 1) * taps).reduce((sum, weight) => sum + weight ** 2, 0);
}

/** The ink of findInk in MNIST's normal form. With `known`, the level of a drawing's ink, strokes are not thickened. */
function formOf(ink, height, width, side, known = null) {
  const level = known ?? levelOf(ink);
  const [box, top, left] = cutOutOf(ink, Math.max(EDGE * level, Math.min(SURE_OF_EDGE * ink.noise, 0.75 * level)));
  const thicker = known ? null : thickened(box, level, side);
  let [strokes, noise] = thicker ? [thicker, 0] : [box, ink.noise];
  const longest = longestOf(strokes);
  const [tall, wide] = [strokes.height, strokes.width].map((n) => Math.max(1, Math.round((side * n) / longest)));
  if (strokes.height !== tall || strokes.width !== wide) {
    noise *= Math.sqrt(squaresOf(strokes.height, tall) * squaresOf(strokes.width, wide));
    strokes = resampled(strokes, tall, wide);
  }
  const most = Math.min(level, peakOf(strokes.levels));
  const least = Math.min(TAKEN_OFF * noise, 0.5 * most);
  const levels = strokes.levels.map((each) => Math.min(1, Math.max(0, (each - least) / (most - least))));
  const rows = new Float64Array(tall);
  const columns = new Float64Array(wide);
  for (let y = 0, at = 0; y < tall; y++) {
    for (let x = 0; x < wide; x++, at++) {
      rows[y] += levels[at];
      columns[x] += levels[at];
    }
  }
  const [y0, x0] = [start(rows, height), start(columns, width)];
  const normal = new Float64Array(height * width);
  for (let y = 0; y < tall; y++) {
    for (let x = 0; x < wide; x++) normal[(y0 + y) * width + x0 + x] = levels[y * wide + x];
  }
  return { pixels: normal, box: [ink.top + top, ink.left + left, box.height, box.width] };
}

/**
 * The digits on a picture: [{pixels, box: [top, left, height, width] as fractions, marks: such boxes, warning}], the last as
 * normal_form.py has it, or null.
 */
function findDigits(whole, height, width) {
  const picture = reduced(whole, SOUGHT_SIDE);
  const side = Math.round(FACES * Math.min(height, width));
  const normal = normalOf(picture, height, width, side);
  if (normal) return [{ pixels: normal, box: [0, 0, 1, 1], marks: [], warning: null }];
  return findInk(picture).map((ink) => {
    const { pixels, box } = formOf(ink, height, width, side);
    const fractions = (lengths) => lengths.map((each, n) => each / (n % 2 ? picture.width : picture.height));
    const marks = ink.marks.map(({ top, bottom, left, right }) => fractions([top, left, bottom - top, right - left]));
    const warning = [ink.isSign && SIGN, marks.length && UNREAD].filter(Boolean).join("; ") || null;
    return { pixels, box: fractions(box), marks, warning };
  });
}

/** The largest digit on a picture: [height * width] from 0 to 1; null if there is none. */
function digit(picture, height, width) {
  const found = findDigits(picture, height, width);
  return found.length ? best(found, ({ box }) => Math.max(box[2], box[3])).pixels : null;
}

/** A drawing on black, all its strokes one digit: [height * width] from 0 to 1; null if it is empty. */
function drawnDigit(picture, height, width) {
  const peak = peakOf(picture.levels);
  if (peak < LEAST_CONTRAST) return null;
  const side = Math.round(FACES * Math.min(height, width));
  return formOf({ ...picture, top: 0, left: 0, noise: 0 }, height, width, side, peak).pixels;
}

/** The whole picture, resized to the network's images; null if it is empty. */
function whole(picture, height, width) {
  if (peakOf(picture.levels) < LEAST_CONTRAST) return null;
  return resampled(picture, height, width).levels.map((level) => Math.min(1, Math.max(0, level)));
}
