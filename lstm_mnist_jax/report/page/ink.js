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
const SECOND_BINS = 8192;
const LINE_EDGE = 0.2;
const LINE = 0.8;
const DENSE = 0.4;
const LINE_THICKNESS = 1 / 40;
const FILLED_MARGIN = 0.09;
const FILLED_SIZE = 16;
const RECTANGULAR = 0.85;
const TWO_LEVELS = 0.85;
const BESIDE = 0.4;
const SLOPES = Array.from({ length: 33 }, (_, n) => (n - 16) / 100);

function noiseOf({ height, width, levels }) {
  if (width < 3) return 0;
  const second = (at) => Math.abs(levels[at] - 2 * levels[at + 1] + levels[at + 2]);
  const binOf = (value) => (value < 1 ? (SECOND_BINS * value) | 0 : SECOND_BINS);
  const counts = new Uint32Array(SECOND_BINS + 1); // so that the median is sought among few
  for (let y = 0, at = 0; y < height; y++, at += 2) {
    for (const end = at + width - 2; at < end; at++) counts[binOf(second(at))]++;
  }
  let [rank, bin] = [(height * (width - 2) - 1) >> 1, 0];
  while (rank >= counts[bin]) rank -= counts[bin++];
  const among = new Float64Array(counts[bin]);
  for (let y = 0, at = 0, n = 0; y < height; y++, at += 2) {
    for (const end = at + width - 2; at < end; at++) {
      const value = second(at);
      if (binOf(value) === bin) among[n++] = value;
    }
  }
  let cut = 0;
  for (let at = 0; at < levels.length; at++) if (levels[at] <= 0 || levels[at] >= 1) cut++;
  return ranked(among, rank) / (cut > 0.25 * levels.length ? 0.76 : 0.6745 * Math.sqrt(6));
}

/** The value of a rank from 0, the smallest (quickselect); the array is reordered. */
function ranked(values, rank) {
  let [low, high] = [0, values.length - 1];
  while (low < high) {
    const pivot = values[(low + high) >> 1];
    let [i, j] = [low, high];
    while (i <= j) {
      while (values[i] < pivot) i++;
      while (values[j] > pivot) j--;
      if (i > j) break;
      const value = values[i];
      values[i++] = values[j];
      values[j--] = value;
    }
    if (rank <= j) high = j;
    else if (rank >= i) low = i;
    else break;
  }
  return values[rank];
}

/** The mean of 3 x 3 pixels, the border repeated. */
function meansOfNine({ height, width, levels }) {
  const down = new Float64Array(levels.length);
  const found = new Float64Array(levels.length);
  for (let y = 0, at = 0; y < height; y++) {
    const above = y > 0 ? width : 0;
    const below = y < height - 1 ? width : 0;
    for (let x = 0; x < width; x++, at++) down[at] = (levels[at - above] + levels[at] + levels[at + below]) / 3;
  }
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      found[at] = (down[x > 0 ? at - 1 : at] + down[at] + down[x < width - 1 ? at + 1 : at]) / 3;
    }
  }
  return { height, width, levels: found };
}

/** The largest values up to each place, and from it on, within blocks of `window` (van Herk 1992). */
function blockPeaks(line, count, window, forward, backward) {
  for (let from = 0; from < count; from += window) {
    const to = Math.min(count, from + window);
    let most = line[from];
    for (let n = from; n < to; n++) forward[n] = most = Math.max(most, line[n]);
    most = line[to - 1];
    for (let n = to - 1; n >= from; n--) backward[n] = most = Math.max(most, line[n]);
  }
}

/** Closes lines of `length` levels, `step` apart, by windows of 2 * reach + 1; `paper` becomes the larger of both. */
function close(levels, paper, reach, lines, stride, length, step) {
  const wider = length + 2 * reach;
  const [line, forward, backward] = [0, 1, 2].map(() => new Int16Array(wider));
  const window = 2 * reach + 1;
  const lastBlock = length - 1 - ((length - 1) % window);
  for (let number = 0; number < lines; number++) {
    const start = number * stride;
    for (let n = 0, at = start; n < length; n++, at += step) line[n] = levels[at];
    blockPeaks(line, length, window, forward, backward);
    const early = Math.min(2 * reach + 1, wider); // lines of negative levels: the largest of these is the smallest
    for (let n = 0; n < early; n++) line[n] = -forward[Math.min(n, length - 1)];
    for (let n = early; n < length; n++) line[n] = -Math.max(forward[n], backward[n - 2 * reach]);
    for (let n = Math.max(early, length); n < wider; n++) {
      const from = n - 2 * reach;
      line[n] = -(from < lastBlock ? Math.max(forward[length - 1], backward[from]) : backward[from]);
    }
    blockPeaks(line, wider, window, forward, backward);
    for (let n = 0, at = start; n < length; n++, at += step) {
      paper[at] = Math.max(paper[at], -Math.max(backward[n], forward[n + 2 * reach]));
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

// Below, ink is a list of its pixels' places, row after row, each y * width + x: it is a small part of a picture.

/** The places of what is above a level. */
function placesAbove(levels, least) {
  let count = 0;
  for (let at = 0; at < levels.length; at++) if (levels[at] > least) count++;
  const found = new Int32Array(count);
  for (let at = 0, n = 0; n < count; at++) if (levels[at] > least) found[n++] = at;
  return found;
}

/** The places for which a test holds. */
function placesWhere(places, test) {
  const found = new Int32Array(places.length);
  let count = 0;
  for (let n = 0; n < places.length; n++) if (test(places[n])) found[count++] = places[n];
  return found.subarray(0, count);
}

/**
 * Numbers the connected pieces of ink, diagonals included, in the order of their first pixels: into `labels`, which are
 * 0 before. How many they are is returned.
 */
function label(places, labels, width) {
  const parents = new Int32Array(places.length + 1); // of numbers that turned out to be of one piece, the smaller ones
  const rootOf = (number) => {
    let root = number;
    while (parents[root] !== root) root = parents[root] = parents[parents[root]];
    return root;
  };
  let made = 0;
  for (const at of places) {
    const x = at % width;
    const above = at >= width ? labels[at - width] : 0;
    let number = above;
    if (!above) {
      const before = (x && ((at >= width && labels[at - width - 1]) || labels[at - 1])) || 0;
      const after = (at >= width && x < width - 1 && labels[at - width + 1]) || 0;
      number = before || after;
      if (before && after && before !== after) {
        const [one, other] = [rootOf(before), rootOf(after)];
        if (one < other) parents[other] = one;
        else parents[one] = other;
      }
    }
    if (!number) parents[++made] = number = made;
    labels[at] = number;
  }
  let count = 0;
  for (let number = 1; number <= made; number++) {
    parents[number] = parents[number] === number ? ++count : parents[parents[number]];
  }
  for (const at of places) labels[at] = parents[labels[at]];
  return count;
}

/** The length of the run of ink at each of its pixels, along rows (step 1) or columns (step = width). */
function runLengths(places, height, width, step) {
  const runs = new Int16Array(height * width);
  for (const at of places) runs[at] = (step > 1 || at % width ? (runs[at - step] | 0) : 0) + 1;
  for (let n = places.length - 1; n >= 0; n--) {
    const at = places[n];
    const next = step > 1 || (at + 1) % width ? runs[at + step] | 0 : 0;
    if (next) runs[at] = next;
  }
  return runs;
}

/** The thin ink among which there may be lines, line by line as they run: [places, along, other], typed arrays. */
function thinInk(places, runs, turned, height, width, thickness) {
  const [length, across] = turned ? [height, width] : [width, height];
  const tall = Math.ceil(0.16 * length) + thickness + 3;
  const step = Math.max(1, Math.floor(tall / 2));
  const searched = new Uint8Array(across);
  const seen = new Int32Array(length).fill(-1); // the last of the rows above each with thin ink in this column
  const columns = new Int32Array(Math.ceil(across / step)); // with thin ink, of each window
  const thin = placesWhere(places, (at) => runs[at] <= thickness);
  for (const at of thin) {
    const [along, other] = turned ? [(at / width) | 0, at % width] : [at % width, (at / width) | 0];
    // The windows from seen + 1 (or the first that reaches here) to the last that starts here or above.
    const first = Math.max(Math.ceil((other - tall - step + 1) / step), Math.ceil((seen[along] + 1) / step), 0);
    for (let n = first; n * step <= other; n++) columns[n]++;
    seen[along] = other;
  }
  for (let n = 0; n < columns.length; n++) {
    if (columns[n] >= LINE * length) searched.fill(1, n * step, n * step + tall + step);
  }
  const alongOf = (at) => (turned ? (at / width) | 0 : at % width);
  const otherOf = (at) => (turned ? at % width : (at / width) | 0);
  if (!searched.includes(1)) return [[], [], []];
  let found = placesWhere(thin, (at) => searched[otherOf(at)]);
  if (!turned) { // column by column
    const starts = new Int32Array(length + 1);
    for (const at of found) starts[alongOf(at) + 1]++;
    for (let n = 0; n < length; n++) starts[n + 1] += starts[n];
    const sorted = new Int32Array(found.length);
    for (const at of found) sorted[starts[alongOf(at)]++] = at;
    found = sorted;
  }
  return [found, found.map(alongOf), found.map(otherOf)];
}

/**
 * Ink without straight thin lines of `weak` ink across most of the picture; the same list if nothing else is there, or no
 * line.
 */
function withoutLines(places, weak, height, width) {
  const thickness = Math.max(2, Math.floor(Math.min(height, width) * LINE_THICKNESS));
  let isLine = null;
  for (const turned of [false, true]) {
    const [length, across] = turned ? [height, width] : [width, height];
    const [runs, strong] = [weak, places].map((ink) => runLengths(ink, height, width, turned ? 1 : width));
    for (const at of places) runs[at] = strong[at];
    const [at, along, other] = thinInk(weak, runs, turned, height, width, thickness);
    if (!at.length) continue;
    isLine ??= new Uint8Array(height * width);
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
          if (isDense && cover[bands[n]] >= LINE * length) isLine[at[n]] = 1;
        }
      }
    }
  }
  if (isLine === null) return places;
  const kept = placesWhere(places, (at) => !isLine[at]);
  return kept.length < places.length && kept.length > 0.02 * places.length ? kept : places;
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
function outlined(depth, places, labels, count, height, width) {
  const filledWith = (n) => new Int32Array(count + 1).fill(n);
  const [left, right, top, bottom, peak, area] = [width, 0, height, 0, 0, 0].map(filledWith);
  for (const at of places) {
    const number = labels[at];
    const x = at % width;
    const y = (at / width) | 0;
    if (x < left[number]) left[number] = x;
    if (x >= right[number]) right[number] = x + 1;
    if (y < top[number]) top[number] = y;
    bottom[number] = y + 1;
    if (depth[at] > peak[number]) peak[number] = depth[at];
    area[number]++;
  }
  return Array.from({ length: count }, (_, n) => n + 1).map((n) => ({
    members: [n], top: top[n], bottom: bottom[n], left: left[n], right: right[n], peak: peak[n], area: area[n],
    cut: top[n] === 0 || left[n] === 0 || bottom[n] === height || right[n] === width,
  }));
}

/** A number of each piece: one for those that nearly touch, where squares around their pixels do, of 2 * reach + 1. */
function nearOnes(places, labels, count, height, width, reach) {
  const gap = 2 * reach + 1;
  const groups = Int32Array.from({ length: count + 1 }, (_, n) => n);
  const groupOf = (number) => {
    let group = number;
    while (groups[group] !== group) group = groups[group] = groups[groups[group]];
    return group;
  };
  const unite = (one, other) => {
    if (groups[one] !== groups[other]) groups[groupOf(one)] = groupOf(other);
  };
  const firsts = new Int32Array(height + 1); // of the runs in each row
  const [starts, ends] = [0, 1].map(() => new Int32Array(places.length));
  let runs = 0;
  for (let n = 0, y = 0; y < height; y++) {
    firsts[y] = runs;
    for (const end = (y + 1) * width; n < places.length && places[n] < end; n++) {
      if (runs > firsts[y] && places[n] === ends[runs - 1] + 1) ends[runs - 1]++;
      else starts[runs] = ends[runs++] = places[n];
    }
  }
  firsts[height] = runs;
  for (let y = 0; y < height; y++) {
    for (let row = Math.max(0, y - gap); row <= y; row++) {
      const down = (y - row) * width;
      let from = firsts[row];
      for (let n = firsts[y]; n < firsts[y + 1]; n++) {
        while (from < firsts[row + 1] && ends[from] + down < starts[n] - gap) from++;
        for (let other = from; other < firsts[row + 1] && starts[other] + down <= ends[n] + gap; other++) {
          unite(labels[starts[n]], labels[starts[other]]);
        }
      }
    }
  }
  return groups.map((_, number) => groupOf(number));
}

/** The pieces of `outlined` with what their pixels show. */
function piecesOf(pieces, depth, levels, places, labels, height, width) {
  const count = pieces.length;
  const [down, right] = [width, 1].map((step) => runLengths(places, height, width, step));
  const longest = pieces.reduce((most, piece) => Math.max(most, sizeOf(piece)), 0);
  const near = nearOnes(places, labels, count, height, width, Math.round(NEAR * longest));
  const [outline, changes, span, thick, last, rowLeft, rowOf] = [0, 0, 0, 0, 0, 0, -1].map((n) =>
    new Int32Array(count + 1).fill(n),
  );
  const distance = Math.max(3, Math.round(BEYOND * longest));
  const check = (at, there) => {
    const number = labels[at];
    if (labels[there] === number) return;
    outline[number]++;
    if (Math.abs(levels[at] - levels[there]) >= 0.4 * depth[at]) changes[number]++;
  };
  for (const at of places) {
    const number = labels[at];
    const x = at % width;
    const y = (at / width) | 0;
    thick[number] += Math.min(down[at], right[at]);
    if (rowOf[number] !== y) {
      rowOf[number] = y;
      rowLeft[number] = x;
    } else span[number] -= last[number];
    last[number] = x - rowLeft[number] + 1;
    span[number] += last[number];
    if (y >= distance) check(at, at - distance * width);
    if (y + distance < height) check(at, at + distance * width);
    if (x >= distance) check(at, at - distance);
    if (x + distance < width) check(at, at + distance);
  }
  return pieces.map((piece, n) => ({
    ...piece,
    span: span[n + 1],
    edge: changes[n + 1] / Math.max(outline[n + 1], 1),
    thick: thick[n + 1] / piece.area,
    near: near[n + 1],
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
  const places = placesAbove(depth, Math.floor(least / 2));
  const labels = new Int32Array(depth.length);
  let count = label(places, labels, width);
  const peaks = new Int32Array(count + 1);
  for (const at of places) if (depth[at] > peaks[labels[at]]) peaks[labels[at]] = depth[at];
  const relabel = (wanted, all) => {
    for (const at of all) labels[at] = 0;
    count = label(wanted, labels, width);
  };
  const above = (edge) => placesWhere(places, (at) => depth[at] > edge * peaks[labels[at]] && peaks[labels[at]] >= least);
  const [strong, weak] = [above(INK_EDGE), above(LINE_EDGE)];
  relabel(strong, places);
  let pieces = outlined(depth, strong, labels, count, height, width);
  const whole = pieces.filter((piece) => sizeOf(piece) >= 3);
  const frames = whole.filter((piece) => isFrame(piece, whole));
  const isOut = new Uint8Array(count + 1);
  for (const piece of whole) if (frames.some((frame) => alike(piece, frame))) isOut[piece.members[0]] = 1;
  const unframed = frames.length ? placesWhere(strong, (at) => !isOut[labels[at]]) : strong;
  const kept = withoutLines(unframed, frames.length ? unframed : weak, height, width);
  if (kept !== strong) {
    relabel(kept, strong);
    pieces = outlined(depth, kept, labels, count, height, width);
  }
  return { labels, digits: chosen(piecesOf(pieces, depth, levels, kept, labels, height, width)) };
}

/** 1 at the darker pixels of a picture of two levels, else 0; null of other pictures. */
function darkerOf(levels, height, width) {
  if (Math.min(height, width) < FILLED_SIZE) return null;
  let [least, most] = [Infinity, -Infinity];
  for (let at = 0; at < levels.length; at++) {
    least = Math.min(least, levels[at]);
    most = Math.max(most, levels[at]);
  }
  const counts = new Uint32Array(most - least + 1);
  for (let at = 0; at < levels.length; at++) counts[levels[at] - least]++;
  const total = counts.reduce((sum, count, n) => sum + count * n, 0);
  const mean = total / levels.length;
  const variance = counts.reduce((sum, count, n) => sum + count * (n - mean) ** 2, 0) / levels.length;
  let [below, sum, largest, limit] = [0, 0, -1, least];
  for (let n = 0; n < counts.length - 1; n++) {
    below += counts[n];
    sum += counts[n] * n;
    const between = ((total * below) / levels.length - sum) ** 2 / (below * (levels.length - below));
    if (between > largest) [largest, limit] = [between, least + n];
  }
  if (counts.length < 2 || largest < TWO_LEVELS * variance) return null;
  return Uint8Array.from(levels, (level) => (level <= limit ? 1 : 0));
}

/** Of the pixels of one kind, the ink of a digit that fills the picture up to the border; null if there is none. */
function filling(kind, height, width) {
  const places = placesAbove(kind, 0);
  const labels = new Int32Array(kind.length);
  const pieces = outlined(kind, places, labels, label(places, labels, width), height, width);
  const whole = best(pieces, ({ area }) => area);
  const share = whole.area / kind.length;
  if (share < 0.12 || share > 0.6 || whole.area < 0.97 * places.length) return null;
  if (Math.max(whole.top, height - whole.bottom) > FILLED_MARGIN * height) return null;
  if (Math.max(whole.left, width - whole.right) > FILLED_MARGIN * width) return null;
  const ink = placesWhere(places, (at) => labels[at] === whole.members[0]);
  const [down, right] = [width, 1].map((step) => runLengths(ink, height, width, step));
  const core = new Uint8Array(kind.length);
  const [lefts, rights] = [width, 0].map((n) => new Int32Array(height).fill(n)); // of each row
  let [border, thick] = [0, 0];
  for (const at of ink) {
    const [y, x] = [(at / width) | 0, at % width];
    if (y === 0 || y === height - 1 || x === 0 || x === width - 1) border++;
    lefts[y] = Math.min(lefts[y], x);
    rights[y] = x + 1;
    thick += Math.min(down[at], right[at]);
    core[at] = 1;
  }
  if (border > height + width - 2) return null;
  let span = 0;
  for (let y = whole.top; y < whole.bottom; y++) span += rights[y] - lefts[y];
  if (span > RECTANGULAR * (whole.bottom - whole.top) * (whole.right - whole.left)) return null;
  return thick / whole.area >= 0.05 * Math.min(height, width) ? core : null;
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
  const overlap = (one, other) => {
    const smaller = Math.min(one.bottom - one.top, other.bottom - other.top);
    return (Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top)) / smaller;
  };
  const middleOf = (line) => line.reduce((sum, { top, bottom }) => sum + top + bottom, 0) / line.length;
  for (const digit of [...digits].sort((a, b) => a.left - b.left || a.top + a.bottom - b.top - b.bottom)) {
    const overlapWith = (line) => Math.max(...line.slice(-2).map((other) => overlap(digit, other)));
    const nearest = lines.length ? best(lines, overlapWith) : null;
    if (nearest && overlapWith(nearest) >= BESIDE) nearest.push(digit);
    else lines.push([digit]);
  }
  return lines.sort((a, b) => middleOf(a) - middleOf(b)).flat();
}

/** The ink of each digit on a picture: [{height, width, levels, core, top, left, noise, cut}]. */
function findInk(picture) {
  const { height, width } = picture;
  const noise = noiseOf(picture);
  const passes = Math.max(height, width) < SMOOTHED_SIZE ? 0 : Number(noise > QUIET) + Number(noise > LOUD);
  let smooth = picture;
  for (let n = 0; n < passes; n++) smooth = meansOfNine(smooth);
  const levels = new Int16Array(height * width);
  for (let at = 0; at < levels.length; at++) levels[at] = LEVELS * smooth.levels[at] + 0.5; // rounded down
  const darker = darkerOf(levels, height, width);
  for (const sign of darker ? [1, -1] : []) {
    const core = filling(sign > 0 ? darker : darker.map((each) => 1 - each), height, width);
    if (!core) continue;
    const others = levels.filter((_, at) => !core[at]).sort();
    const last = others.length - 1;
    const paper = Math.floor((others[last >> 1] + others[(last + 1) >> 1]) / 2) / LEVELS;
    const found = Float64Array.from(picture.levels, (level) => Math.max(0, sign * (paper - level)));
    return [{ height, width, levels: found, core, top: 0, left: 0, noise, cut: true }];
  }
  const offers = [1, -1].map((sign) => {
    const [signed, depth] = [new Int16Array(levels.length), new Int16Array(levels.length)];
    for (let at = 0; at < levels.length; at++) signed[at] = sign * levels[at];
    const paper = paperOf({ height, width, levels: signed });
    for (let at = 0; at < levels.length; at++) depth[at] = paper[at] - signed[at];
    const typical = typicalOf(depth);
    for (let at = 0; at < levels.length; at++) depth[at] = Math.max(0, depth[at] - typical);
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
