// Finds the digits on a picture, as lstm_mnist_jax/data/ink.py does, which says how: a change there needs the same here.
//
// A picture is {height, width, levels}. The decisions are made on integers, so that both make the same.

const LEVELS = 4000;
const INK_EDGE = 0.35;
const SURE = 6;
const [QUIET, LOUD] = [0.008, 0.04];
const SMOOTHED = [1, 1 / 3, 19 / 81];
const SMOOTHED_SIZE = 100;
const EDGED = 0.85;
const BEYOND = 0.06;
const NEAR = 0.035;
const LINE_EDGE = 0.2;
const LINE = 0.8;
const DENSE = 0.4;
const LINE_THICKNESS = 1 / 40;
const FILLED_MARGIN = 0.09;
const FILLED_SIZE = 16;
const RECTANGULAR = 0.85;
const TWO_LEVELS = 0.85;
const SLOPES = Array.from({ length: 33 }, (_, n) => (n - 16) / 100);

function noiseOf({ height, width, levels }) {
  if (width < 3) return 0;
  const second = new Float64Array(height * (width - 2));
  let cut = 0;
  for (let y = 0, n = 0; y < height; y++) {
    for (let at = y * width + 1; at < (y + 1) * width - 1; at++) {
      second[n++] = Math.abs(levels[at - 1] - 2 * levels[at] + levels[at + 1]);
    }
  }
  for (let at = 0; at < levels.length; at++) if (levels[at] <= 0 || levels[at] >= 1) cut++;
  const scale = cut > 0.25 * levels.length ? 0.76 : 0.6745 * Math.sqrt(6);
  return lowerMedian(second) / scale;
}

/** Quickselect's lower median; the array is reordered. */
function lowerMedian(values) {
  const wanted = Math.floor((values.length - 1) / 2);
  let [low, high] = [0, values.length - 1];
  while (low < high) {
    const pivot = values[(low + high) >> 1];
    let [i, j] = [low, high];
    while (i <= j) {
      while (values[i] < pivot) i++;
      while (values[j] > pivot) j--;
      if (i <= j) {
        [values[i], values[j]] = [values[j], values[i]];
        i++;
        j--;
      }
    }
    if (wanted <= j) high = j;
    else if (wanted >= i) low = i;
    else break;
  }
  return values[wanted];
}

/** The mean of 3 x 3 pixels, the border repeated. */
function meansOfNine({ height, width, levels }) {
  const down = new Float64Array(levels.length);
  const found = new Float64Array(levels.length);
  for (let y = 0; y < height; y++) {
    const [above, here, below] = [Math.max(0, y - 1), y, Math.min(height - 1, y + 1)].map((row) => row * width);
    for (let x = 0; x < width; x++) down[here + x] = (levels[above + x] + levels[here + x] + levels[below + x]) / 3;
  }
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const row = y * width;
      found[row + x] = (down[row + Math.max(0, x - 1)] + down[row + x] + down[row + Math.min(width - 1, x + 1)]) / 3;
    }
  }
  return { height, width, levels: found };
}

/** The largest values up to each place, and from it on, within blocks of `window` (van Herk 1992). */
function blockPeaks(line, count, window, forward, backward) {
  for (let from = 0; from < count; from += window) {
    const to = Math.min(count, from + window);
    let most = line[from];
    for (let n = from; n < to; n++) forward[n] = most = line[n] > most ? line[n] : most;
    most = line[to - 1];
    for (let n = to - 1; n >= from; n--) backward[n] = most = line[n] > most ? line[n] : most;
  }
}

/** Closes lines of `length` levels, `step` apart, by windows of 2 * reach + 1; `paper` becomes the larger of both. */
function close(levels, paper, reach, lines, stride, length, step) {
  const [line, forward, backward] = [0, 1, 2].map(() => new Int32Array(length + 2 * reach));
  const window = 2 * reach + 1;
  for (let number = 0; number < lines; number++) {
    const start = number * stride;
    for (let n = 0; n < length; n++) line[n] = levels[start + n * step];
    blockPeaks(line, length, window, forward, backward);
    const lastBlock = length - 1 - ((length - 1) % window);
    for (let n = 0; n < length + 2 * reach; n++) { // negative: the largest of these is the smallest
      const from = n - 2 * reach;
      const to = n < length ? n : length - 1;
      if (from <= 0) line[n] = -forward[to];
      else if (from >= lastBlock) line[n] = -backward[from];
      else line[n] = -(backward[from] > forward[to] ? backward[from] : forward[to]);
    }
    blockPeaks(line, length + 2 * reach, window, forward, backward);
    for (let n = 0, at = start; n < length; n++, at += step) {
      const level = -Math.max(backward[n], forward[n + 2 * reach]);
      if (level > paper[at]) paper[at] = level;
    }
  }
}

/** The brightness of the paper at each pixel. */
function paperOf({ height, width, levels }) {
  const reach = Math.max(1, Math.floor(Math.min(height, width) / 4));
  const paper = levels.slice();
  close(levels, paper, reach, height, width, width, 1);
  close(levels, paper, reach, width, 1, height, width);
  return paper;
}

let waiting = new Int32Array(0); // the pixels whose neighbours are still to be numbered, kept from call to call

/** Numbers the connected pieces of a mask, diagonals included, in the order of their first pixels: [labels, count]. */
function labelled(mask, height, width) {
  const labels = new Int32Array(mask.length);
  if (waiting.length < mask.length) waiting = new Int32Array(mask.length);
  const stack = waiting;
  let count = 0;
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || labels[start]) continue;
    labels[start] = ++count;
    stack[0] = start;
    for (let size = 1; size; ) {
      const at = stack[--size];
      const x = at % width;
      const from = x ? -1 : 0;
      const to = x < width - 1 ? 1 : 0;
      for (let row = at - width; row <= at + width; row += width) {
        if (row < 0 || row >= mask.length) continue;
        for (let next = row + from; next <= row + to; next++) {
          if (!mask[next] || labels[next]) continue;
          labels[next] = count;
          stack[size++] = next;
        }
      }
    }
  }
  return [labels, count];
}

/** The length of the run of ink at each pixel, along steps of `step` in lines of `length` that start `stride` apart. */
function runLengths(mask, lines, stride, length, step) {
  const runs = new Int32Array(mask.length);
  for (let line = 0; line < lines; line++) {
    for (let n = 0; n < length; ) {
      let end = n;
      while (end < length && mask[line * stride + end * step]) end++;
      for (let at = n; at < end; at++) runs[line * stride + at * step] = end - n;
      n = Math.max(end, n + 1);
    }
  }
  return runs;
}

/** The thin ink among which there may be lines: [at, along, other], each a typed array. */
function thinInk(mask, turned, height, width, thickness) {
  const [length, across] = turned ? [height, width] : [width, height];
  const [ahead, aside] = turned ? [width, 1] : [1, width];
  const runs = runLengths(mask, length, ahead, across, aside);
  const tall = Math.ceil(0.16 * length) + thickness + 3;
  const step = Math.max(1, Math.floor(tall / 2));
  const searched = new Uint8Array(across);
  const seen = new Int32Array(length).fill(-1); // the last of the rows above each with thin ink in this column
  const columns = new Int32Array(Math.ceil(across / step)); // with thin ink, of each window
  let most = 0;
  for (let other = 0; other < across; other++) {
    for (let along = 0; along < length; along++) {
      const run = runs[along * ahead + other * aside];
      if (!run || run > thickness) continue;
      // The windows from seen + 1 (or the first that reaches here) to the last that starts here or above.
      const first = Math.max(Math.ceil((other - tall - step + 1) / step), Math.ceil((seen[along] + 1) / step), 0);
      for (let n = first; n * step <= other; n++) columns[n]++;
      seen[along] = other;
      most++;
    }
  }
  for (let n = 0; n < columns.length; n++) {
    if (columns[n] >= LINE * length) searched.fill(1, n * step, n * step + tall + step);
  }
  if (!searched.includes(1)) return [[], [], []];
  let count = 0;
  const [places, alongs, others] = [0, 1, 2].map(() => new Int32Array(most));
  for (let along = 0; along < length; along++) {
    for (let other = 0; other < across; other++) {
      const at = along * ahead + other * aside;
      if (!searched[other] || !runs[at] || runs[at] > thickness) continue;
      places[count] = at;
      alongs[count] = along;
      others[count++] = other;
    }
  }
  return [places, alongs, others].map((each) => each.subarray(0, count));
}

/** A mask without straight thin lines of `weak` ink across most of the picture; itself if nothing else is on it. */
function withoutLines(mask, weak, height, width) {
  const thickness = Math.max(2, Math.floor(Math.min(height, width) * LINE_THICKNESS));
  const kept = mask.slice();
  let [left, all] = [0, 0];
  for (const turned of [false, true]) {
    const [length, across] = turned ? [height, width] : [width, height];
    const [at, along, other] = thinInk(weak, turned, height, width, thickness);
    if (!at.length) continue;
    const half = Math.floor(length / 2);
    const cover = new Int32Array(Math.floor((across + 2 * length) / (thickness + 1)) + 2);
    const last = new Int32Array(cover.length);
    const shift = new Int32Array(length);
    const bands = new Int32Array(at.length);
    const dense = new Int32Array(across + 2 * length + 2); // the thin ink of each row of a slope
    for (const slope of SLOPES) {
      for (let n = 0; n < length; n++) shift[n] = Math.floor(0.5 - slope * (n - half)) + half;
      for (const offset of [0, Math.floor(thickness / 2) + 1]) {
        cover.fill(0);
        last.fill(-1);
        for (let n = 0; n < at.length; n++) {
          const band = (bands[n] = ((other[n] + shift[along[n]] + offset) / (thickness + 1)) | 0);
          if (last[band] !== along[n]) cover[band]++;
          last[band] = along[n];
        }
        if (cover.every((each) => each < LINE * length)) continue;
        dense.fill(0);
        for (let n = 0; n < at.length; n++) dense[other[n] + shift[along[n]]]++;
        for (let n = 0; n < at.length; n++) {
          const isDense = dense[other[n] + shift[along[n]]] >= DENSE * length;
          if (isDense && cover[bands[n]] >= LINE * length) kept[at[n]] = 0;
        }
      }
    }
  }
  for (let n = 0; n < mask.length; n++) {
    left += kept[n];
    all += mask[n];
  }
  return left < all && left > 0.02 * all ? kept : mask;
}

const sizeOf = ({ top, bottom, left, right }) => Math.max(bottom - top, right - left);
const scoreOf = (piece) => (piece.peak ** 2 / LEVELS) * Math.max(0.1 * sizeOf(piece), sizeOf(piece) - 2 * piece.thick);
const best = (pieces, score) => pieces.reduce((a, b) => (score(b) > score(a) ? b : a));

/** The square of side 2 * reach + 1 around each pixel of a mask. */
function dilated(mask, height, width, reach) {
  const found = new Uint8Array(mask.length);
  const left = new Int32Array(width); // rows that are still to be filled in each column
  for (const upwards of [false, true]) {
    left.fill(0);
    for (let n = 0; n < height; n++) {
      const row = (upwards ? height - 1 - n : n) * width;
      for (let x = 0; x < width; x++) {
        if (mask[row + x]) left[x] = reach + 1;
        if (left[x] && left[x]--) found[row + x] = 1;
      }
    }
  }
  const tall = found.slice();
  for (let row = 0; row < mask.length; row += width) {
    for (let x = 0; x < width; x++) {
      const [before, after] = [x && tall[row + x - 1], x < width - 1 && tall[row + x + 1]];
      if (!tall[row + x] || (before && after)) continue;
      found.fill(1, row + Math.max(0, x - reach), row + Math.min(width, x + reach + 1));
    }
  }
  return found;
}

/** The connected pieces of ink: their boxes, darkest pixels and areas, which is enough to find frames. */
function outlined(depth, labels, count, height, width) {
  const filledWith = (n) => new Int32Array(count + 1).fill(n);
  const [left, right, top, bottom, peak, area] = [width, 0, height, 0, 0, 0].map(filledWith);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const number = labels[at];
      if (!number) continue;
      if (x < left[number]) left[number] = x;
      if (x >= right[number]) right[number] = x + 1;
      if (y < top[number]) top[number] = y;
      bottom[number] = y + 1;
      if (depth[at] > peak[number]) peak[number] = depth[at];
      area[number]++;
    }
  }
  return Array.from({ length: count }, (_, n) => n + 1).map((n) => ({
    members: [n], top: top[n], bottom: bottom[n], left: left[n], right: right[n], peak: peak[n], area: area[n],
    cut: top[n] === 0 || left[n] === 0 || bottom[n] === height || right[n] === width,
  }));
}

function piecesOf(depth, levels, labels, count, height, width) {
  const pieces = outlined(depth, labels, count, height, width);
  const down = runLengths(labels, width, 1, height, width);
  const across = runLengths(labels, height, width, width, 1);
  const longest = pieces.reduce((most, piece) => Math.max(most, sizeOf(piece)), 0);
  const [near] = labelled(dilated(labels, height, width, Math.round(NEAR * longest)), height, width);
  const [outline, changes, span, thick, group, last, rowLeft, rowOf] = [0, 0, 0, 0, 0, 0, 0, -1].map((n) =>
    new Int32Array(count + 1).fill(n),
  );
  const distance = Math.max(3, Math.round(BEYOND * longest));
  const [above, before] = [distance * width, distance];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const number = labels[at];
      if (!number) continue;
      group[number] = near[at];
      thick[number] += Math.min(down[at], across[at]);
      if (rowOf[number] !== y) [rowOf[number], rowLeft[number]] = [y, x];
      else span[number] -= last[number];
      last[number] = x - rowLeft[number] + 1;
      span[number] += last[number];
      const check = (there) => {
        if (labels[there] === number) return;
        outline[number]++;
        if (Math.abs(levels[at] - levels[there]) >= 0.4 * depth[at]) changes[number]++;
      };
      if (y >= distance) check(at - above);
      if (y + distance < height) check(at + above);
      if (x >= distance) check(at - before);
      if (x + distance < width) check(at + before);
    }
  }
  return pieces.map((piece, n) => ({
    ...piece,
    span: span[n + 1],
    edge: changes[n + 1] / Math.max(outline[n + 1], 1),
    thick: thick[n + 1] / piece.area,
    near: group[n + 1],
  }));
}

/** Whether a piece is a thin outline around other ink of some size, or several such side by side. */
function isFrame(piece, pieces) {
  const [height, width] = [piece.bottom - piece.top, piece.right - piece.left];
  const size = width > 1.5 * height ? height : sizeOf(piece);
  const margin = 0.04 * size;
  if (piece.area >= 0.35 * height * width) return false;
  return pieces.some(
    (other) =>
      sizeOf(other) >= 0.2 * size && other.peak >= 0.35 * piece.peak &&
      other.top >= piece.top + margin && other.bottom <= piece.bottom - margin &&
      other.left >= piece.left + margin && other.right <= piece.right - margin,
  );
}

/** Whether two pieces have about the same height, width and area. */
function alike(one, other) {
  const lengths = ({ top, bottom, left, right, area }) => [bottom - top, right - left, area];
  const others = lengths(other);
  return lengths(one).every((each, n) => Math.abs(each - others[n]) <= 0.1 * others[n]);
}

function united(one, other) {
  const area = one.area + other.area;
  return {
    members: [...one.members, ...other.members],
    top: Math.min(one.top, other.top),
    bottom: Math.max(one.bottom, other.bottom),
    left: Math.min(one.left, other.left),
    right: Math.max(one.right, other.right),
    peak: Math.max(one.peak, other.peak),
    area,
    span: one.span + other.span,
    edge: Math.min(one.edge, other.edge),
    thick: (one.thick * one.area + other.thick * other.area) / area,
    near: one.near,
    cut: one.cut || other.cut,
  };
}

function belongTogether(one, other) {
  const larger = Math.max(sizeOf(one), sizeOf(other));
  const across = Math.min(one.right, other.right) - Math.max(one.left, other.left);
  const down = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
  const [low, high] = [one.bottom - one.top, other.bottom - other.top].sort((a, b) => a - b);
  const covers = across >= 0.5 * Math.min(one.right - one.left, other.right - other.left);
  if (covers && (down >= 0.5 * low || -down <= 0.12 * larger)) return true;
  if (low < 0.5 * high && Math.hypot(Math.min(0, across), Math.min(0, down)) <= 0.15 * larger) return true;
  const both = united(one, other);
  return one.near === other.near && both.right - both.left <= 0.9 * (both.bottom - both.top);
}

/** Unites the pieces of one digit, until no two belong together. */
function grouped(pieces) {
  const groups = [...pieces];
  const merge = () => {
    for (let first = 0; first < groups.length; first++) {
      for (let second = first + 1; second < groups.length; second++) {
        if (!belongTogether(groups[first], groups[second])) continue;
        groups[first] = united(groups[first], groups.splice(second, 1)[0]);
        return true;
      }
    }
    return false;
  };
  while (merge());
  return groups;
}

/** The digits among the pieces of ink. */
function chosen(all) {
  let pieces = all.filter((piece) => piece.edge >= EDGED);
  if (!pieces.length) return [];
  const strongest = best(pieces, scoreOf);
  pieces = pieces.filter((piece) => sizeOf(piece) >= 0.03 * sizeOf(strongest));
  const inner = pieces.filter((piece) => !piece.cut);
  if (inner.length && scoreOf(best(inner, scoreOf)) >= 0.15 * scoreOf(best(pieces, scoreOf))) pieces = inner;
  const { peak } = best(pieces, scoreOf);
  const groups = grouped(pieces.filter((piece) => piece.peak >= 0.5 * peak));
  const main = best(groups, scoreOf);
  return groups.filter((group) => sizeOf(group) >= 0.4 * sizeOf(main));
}

/** The digits of one polarity: {labels, digits}. */
function digitsOf(depth, levels, height, width, noise) {
  const least = Math.floor(LEVELS * Math.max(LEAST_CONTRAST, SURE * noise));
  const mask = new Uint8Array(depth.length);
  for (let at = 0; at < mask.length; at++) mask[at] = depth[at] > Math.floor(least / 2) ? 1 : 0;
  let [labels, count] = labelled(mask, height, width);
  if (count === 0) return { labels, digits: [] };
  const peaks = new Int32Array(count + 1);
  for (let at = 0; at < mask.length; at++) if (depth[at] > peaks[labels[at]]) peaks[labels[at]] = depth[at];
  const weak = mask.slice();
  for (let at = 0; at < mask.length; at++) {
    const peak = peaks[labels[at]];
    if (depth[at] <= INK_EDGE * peak || peak < least) mask[at] = 0;
    if (depth[at] <= LINE_EDGE * peak || peak < least) weak[at] = 0;
  }
  [labels, count] = labelled(mask, height, width);
  const whole = outlined(depth, labels, count, height, width).filter((piece) => sizeOf(piece) >= 3);
  const frames = whole.filter((piece) => isFrame(piece, whole));
  const isOut = new Uint8Array(count + 1);
  for (const piece of whole) if (frames.some((frame) => alike(piece, frame))) isOut[piece.members[0]] = 1;
  for (let at = 0; frames.length && at < mask.length; at++) if (isOut[labels[at]]) mask[at] = 0;
  const kept = withoutLines(mask, frames.length ? mask : weak, height, width);
  if (frames.length || kept !== mask) [labels, count] = labelled(kept, height, width);
  return { labels, digits: chosen(piecesOf(depth, levels, labels, count, height, width)) };
}

/** The darker pixels of a picture of two levels; null of other pictures. */
function darkerOf(levels, height, width) {
  if (Math.min(height, width) < FILLED_SIZE) return null;
  const least = levels.reduce((a, b) => Math.min(a, b), Infinity);
  const counts = new Float64Array(levels.reduce((a, b) => Math.max(a, b), -Infinity) - least + 1);
  for (let at = 0; at < levels.length; at++) counts[levels[at] - least]++;
  const total = counts.reduce((sum, count, n) => sum + count * n, 0);
  const mean = total / levels.length;
  const variance = counts.reduce((sum, count, n) => sum + count * (n - mean) ** 2, 0) / levels.length;
  let [below, sum, most, limit] = [0, 0, -1, least];
  for (let n = 0; n < counts.length - 1; n++) {
    below += counts[n];
    sum += counts[n] * n;
    const between = ((total * below) / levels.length - sum) ** 2 / (below * (levels.length - below));
    if (between > most) [most, limit] = [between, least + n];
  }
  if (counts.length < 2 || most < TWO_LEVELS * variance) return null;
  return Uint8Array.from(levels, (level) => (level <= limit ? 1 : 0));
}

/** Of the pixels of one kind, the ink of a digit that fills the picture up to the border; null if there is none. */
function filling(kind, height, width) {
  const [labels, count] = labelled(kind, height, width);
  const pieces = outlined(kind, labels, count, height, width);
  const whole = best(pieces, ({ area }) => area);
  const sum = pieces.reduce((all, { area }) => all + area, 0);
  if (whole.area < 0.12 * kind.length || whole.area > 0.6 * kind.length || whole.area < 0.97 * sum) return null;
  if (Math.max(whole.top, height - whole.bottom) > FILLED_MARGIN * height) return null;
  if (Math.max(whole.left, width - whole.right) > FILLED_MARGIN * width) return null;
  const core = Uint8Array.from(labels, (label) => (label === whole.members[0] ? 1 : 0));
  let border = 0;
  for (let x = 0; x < width; x++) border += core[x] + core[(height - 1) * width + x];
  for (let y = 1; y < height - 1; y++) border += core[y * width] + core[(y + 1) * width - 1];
  if (2 * border > 2 * (height + width) - 4) return null;
  const spanOf = (row) => row.lastIndexOf(1) + 1 - row.indexOf(1);
  let [span, rows] = [0, 0];
  for (let y = whole.top; y < whole.bottom; y++, rows++) span += spanOf(core.subarray(y * width, (y + 1) * width));
  if (span > RECTANGULAR * rows * (whole.right - whole.left)) return null;
  const [down, across] = [runLengths(core, width, 1, height, width), runLengths(core, height, width, width, 1)];
  const thick = down.reduce((all, run, at) => all + Math.min(run, across[at]), 0) / whole.area;
  return thick >= 0.05 * Math.min(height, width) ? core : null;
}

function liesWithin(inner, outer) {
  const down = Math.min(inner.bottom, outer.bottom) - Math.max(inner.top, outer.top);
  const across = Math.min(inner.right, outer.right) - Math.max(inner.left, outer.left);
  return down >= 0.9 * (inner.bottom - inner.top) && across >= 0.9 * (inner.right - inner.left);
}

/** Whether the ink is light on dark paper, by the digits that are found in each case. */
function isLight(dark, light) {
  if (!dark.length || !light.length) return light.length > 0;
  const whole = [dark, light].map((digits) => digits.reduce(united));
  const ratios = [dark, light].map(
    (digits) => digits.reduce((sum, digit) => sum + digit.thick / sizeOf(digit), 0) / digits.length,
  );
  for (const [inner, outer] of [[0, 1], [1, 0]]) {
    const [one, other] = [whole[inner], whole[outer]];
    const isSheet = ratios[outer] >= 0.26 && one.area + other.area >= 0.9 * other.span;
    const isThinner = ratios[inner] < ratios[outer] && one.thick < 0.3 * other.thick;
    const isStroke = isThinner && sizeOf(one) >= 0.12 * sizeOf(other) && one.edge >= 0.9;
    if (isSheet && isStroke && liesWithin(one, other)) return inner === 1;
  }
  const [darkScore, lightScore] = [dark, light].map((each) => each.reduce((sum, digit) => sum + scoreOf(digit), 0));
  return lightScore > darkScore;
}

/** Line by line from the top, and from left to right. */
function inOrder(digits) {
  const lines = [];
  const sorted = [...digits].sort((a, b) => a.top + a.bottom - b.top - b.bottom || a.left - b.left);
  for (const digit of sorted) {
    const tallest = lines.length && best(lines.at(-1), ({ top, bottom }) => bottom - top);
    if (tallest && (digit.top + digit.bottom) / 2 < tallest.bottom) lines.at(-1).push(digit);
    else lines.push([digit]);
  }
  return lines.flatMap((line) => line.sort((a, b) => a.left - b.left));
}

/** The ink of each digit on a picture: [{height, width, levels, core, top, left, noise, cut}]. */
function findInk(picture) {
  const { height, width } = picture;
  const noise = noiseOf(picture);
  const passes = Math.max(height, width) < SMOOTHED_SIZE ? 0 : Number(noise > QUIET) + Number(noise > LOUD);
  let smooth = picture;
  for (let n = 0; n < passes; n++) smooth = meansOfNine(smooth);
  const levels = new Int32Array(height * width);
  for (let at = 0; at < levels.length; at++) levels[at] = Math.floor(LEVELS * smooth.levels[at] + 0.5);
  const darker = darkerOf(levels, height, width);
  for (const sign of darker ? [1, -1] : []) {
    const core = filling(sign > 0 ? darker : darker.map((each) => 1 - each), height, width);
    if (!core) continue;
    const others = levels.filter((_, at) => !core[at]).sort();
    const last = others.length - 1;
    const paper = Math.trunc((others[Math.floor(last / 2)] + others[Math.ceil(last / 2)]) / 2) / LEVELS;
    const found = picture.levels.map((level) => Math.max(0, sign * (paper - level)));
    return [{ height, width, levels: found, core, top: 0, left: 0, noise, cut: true }];
  }
  const offers = [1, -1].map((sign) => {
    const signed = levels.slice();
    if (sign < 0) for (let at = 0; at < signed.length; at++) signed[at] = -signed[at];
    const paper = paperOf({ height, width, levels: signed });
    const depth = paper.slice();
    for (let at = 0; at < depth.length; at++) depth[at] -= signed[at];
    const typical = typicalOf(depth);
    for (let at = 0; at < depth.length; at++) depth[at] = Math.max(0, depth[at] - typical);
    return { sign, paper, typical, ...digitsOf(depth, levels, height, width, noise * SMOOTHED[passes]) };
  });
  const { sign, paper, typical, labels, digits } = offers[Number(isLight(offers[0].digits, offers[1].digits))];
  return inOrder(digits).map((digit) => {
    const soft = Math.max(2, Math.floor(sizeOf(digit) / 20));
    const [top, bottom] = [Math.max(0, digit.top - soft), Math.min(height, digit.bottom + soft)];
    const [left, right] = [Math.max(0, digit.left - soft), Math.min(width, digit.right + soft)];
    const [tall, wide] = [bottom - top, right - left];
    const core = new Uint8Array(tall * wide);
    const members = new Set(digit.members);
    const found = new Float64Array(tall * wide);
    for (let y = 0; y < tall; y++) {
      for (let x = 0; x < wide; x++) core[y * wide + x] = members.has(labels[(top + y) * width + left + x]);
    }
    const near = dilated(core, tall, wide, soft);
    for (let y = 0; y < tall; y++) {
      for (let x = 0; x < wide; x++) {
        const at = (top + y) * width + left + x;
        const level = Math.max(0, (paper[at] - typical) / LEVELS - sign * picture.levels[at]);
        found[y * wide + x] = near[y * wide + x] * level;
      }
    }
    return { height: tall, width: wide, levels: found, core, top, left, noise, cut: digit.cut };
  });
}

/** The median of whole numbers of 0 or more, rounded down between two middle ones, as int(numpy.median()). */
function typicalOf(depth) {
  const counts = new Uint32Array(2 * LEVELS + 1);
  for (let n = 0; n < depth.length; n++) counts[depth[n]]++;
  const at = (rank) => {
    let left = rank;
    for (let value = 0; ; value++) if ((left -= counts[value]) < 0) return value;
  };
  const last = depth.length - 1;
  return Math.floor((at(Math.floor(last / 2)) + at(Math.ceil(last / 2))) / 2);
}
