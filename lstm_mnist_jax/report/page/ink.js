// Finds the pieces of ink on a picture, as lstm_mnist_jax/data/ink.py, which says how: a change there needs the same here.
//
// A picture is {height, width, levels}. Pixels are compared in whole levels, so that both decide the same.

const LEVELS = 4000;
const NOTHING = -LEVELS - 1; // below all levels
const INK_EDGE = 0.35;
const SURE = 6;
const [QUIET, LOUD] = [0.008, 0.04];
const SMOOTHED = [1, 1 / 3, 19 / 81];
const SMOOTHED_SIZE = 100;
const BEYOND = 0.06;
const NEAR = 0.045;
const SHADED_OUTLINE = 0.7;
const DARK_EDGE = 0.6;
const SHADED_AREA = 0.7;
const [BLOT, LARGE] = [0.2, 0.2];
const WITHIN = 0.3;
const [DARKEST, FEW] = [0.8, 0.15];
const SECOND_BINS = 8192;
const LINE_EDGE = 0.2;
const LINE = 0.8;
const DENSE = 0.4;
const LINE_THICKNESS = 1 / 40;
const STEEPEST = 16; // hundredths: the slopes of lines that are searched

const arrays = new Map();

/** An array of the last picture, with what was in it: to allocate large ones takes longer than to fill them. */
function kept(name, Kind, length) {
  if (arrays.get(name)?.length !== length) arrays.set(name, new Kind(length));
  return arrays.get(name);
}

const heightOf = ({ top, bottom }) => bottom - top;
const sizeOf = ({ top, bottom, left, right }) => Math.max(bottom - top, right - left);

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

/** A picture in LEVELS, smoothed where it is noisy: {height, width, levels, noise, left}. */
function inLevels(picture) {
  const { height, width } = picture;
  const noise = noiseOf(picture);
  const passes = Math.max(height, width) < SMOOTHED_SIZE ? 0 : Number(noise > QUIET) + Number(noise > LOUD);
  let smooth = picture;
  for (let n = 0; n < passes; n++) smooth = meansOfNine(smooth);
  const levels = kept("levels", Int16Array, height * width);
  for (let at = 0; at < levels.length; at++) levels[at] = LEVELS * smooth.levels[at] + 0.5; // rounded down
  return { height, width, levels, noise, left: noise * SMOOTHED[passes] };
}

/** The larger of two levels, without a branch, which the processor would often predict wrong. */
const larger = (one, other) => one - ((one - other) & ((one - other) >> 31));

/**
 * Closes lines of levels, times a sign, by windows of 2 * reach + 1 pixels: `paper` becomes the result where it is larger.
 *
 * By van Herk (1992), the maximum of a window that starts in one block of a line and ends in the next is the larger of
 * the maximum up to the end of the one and from the start of the other. As the window moves, the first falls and the second
 * rises. The minimum over the windows on a pixel is therefore the pixel's own maximum, or the least of all windows across
 * the block's start or end. The least of these is where the one that falls meets the one that rises.
 */
function close(levels, sign, paper, reach, lines, stride, length, step) {
  const window = 2 * reach + 1;
  const padded = Math.ceil(length / window) * window;
  const [line, before, after] = [0, 1, 2].map(() => new Int16Array(padded).fill(NOTHING)); // before: from the block's start
  for (let number = 0; number < lines; number++) {
    for (let n = 0, at = number * stride; n < length; n++, at += step) line[n] = sign * levels[at];
    for (let from = 0; from < length; from += window) {
      const to = Math.min(from + window, length);
      let [most, mostAfter] = [NOTHING, NOTHING];
      for (let n = from, back = to - 1; n < to; n++, back--) {
        before[n] = most = larger(most, line[n]);
        after[back] = mostAfter = larger(mostAfter, line[back]);
      }
      if (to === length) before.fill(most, length);
    }
    let [atStart, at] = [NOTHING, number * stride];
    for (let from = 0; from < length; from += window) {
      const to = Math.min(from + window, length);
      let [low, high] = [from + 1, to < length ? to : from + 1]; // the window that starts at `from` ends in this block
      while (low < high) {
        const middle = (low + high) >> 1;
        if (after[middle] > before[middle + window - 1]) low = middle + 1;
        else high = middle;
      }
      const rising = low < to ? before[low + window - 1] : LEVELS;
      const atEnd = to < length ? Math.min(after[low - 1], rising) : NOTHING;
      for (let n = from; n < to; n++, at += step) {
        const closed = Math.min(Math.max(atStart, before[n]), Math.max(atEnd, after[n]));
        paper[at] = larger(paper[at], closed);
      }
      atStart = atEnd;
    }
  }
}

/**
 * How much darker than the paper each pixel is, in levels: {depth, paper}, below 0 where it is less so than most of them are.
 * The levels of light ink have sign -1.
 */
function depthsOf({ height, width, levels }, sign) {
  const reach = Math.max(1, Math.floor(Math.min(height, width) / 4));
  const paper = kept(`paper ${sign}`, Int16Array, levels.length).fill(-LEVELS);
  const depth = kept("depth", Int16Array, levels.length);
  close(levels, sign, paper, reach, height, width, width, 1);
  close(levels, sign, paper, reach, width, 1, height, width);
  const counts = new Int32Array(2 * LEVELS + 2); // two of each: a processor waits where it counts the same one again
  for (let at = 0; at < depth.length; at++) counts[2 * (depth[at] = paper[at] - sign * levels[at]) + (at & 1)]++;
  const typical = medianOf(counts, depth.length);
  for (let at = 0; at < depth.length; at++) depth[at] -= typical;
  return { depth, paper, typical };
}

/** The median of numbers of which there are two counts, rounded down between two middle ones, as int(numpy.median()). */
function medianOf(counts, count) {
  const at = (rank) => {
    let left = rank;
    for (let value = 0; ; value++) if ((left -= counts[2 * value] + counts[2 * value + 1]) < 0) return value;
  };
  return Math.floor((at((count - 1) >> 1) + at(count >> 1)) / 2);
}

// Below, ink is its runs along the rows, one after another: {starts, ends, numbers, count}. A place is y * width + x; a run
// goes from its start up to its end, which is not in it; its number is that of the piece it is in, of 1 to count.

/** All pixels of a picture as runs, whose number is 0. */
function rowsOf(height, width) {
  const starts = Int32Array.from({ length: height }, (_, y) => y * width);
  return { starts, ends: starts.map((start) => start + width), numbers: new Int32Array(height), count: 0 };
}

/** The runs of the pixels in ink whose level is above the limit for the number of their run. */
function above(levels, ink, limits) {
  const room = ["starts", "ends", "numbers"].map((name) => kept(name, Int32Array, levels.length));
  const [starts, ends, numbers] = room;
  let count = 0;
  for (let n = 0; n < ink.starts.length; n++) {
    const end = ink.ends[n];
    const number = ink.numbers[n];
    const limit = limits[number];
    for (let at = ink.starts[n]; at < end; at++) {
      if (levels[at] <= limit) continue;
      starts[count] = at;
      for (at++; at < end && levels[at] > limit; ) at++;
      ends[count] = at;
      numbers[count++] = number;
    }
  }
  const found = room.map((each) => each.slice(0, count));
  return { starts: found[0], ends: found[1], numbers: found[2], count: ink.count };
}

function areaOf({ starts, ends }) {
  let area = 0;
  for (let n = 0; n < starts.length; n++) area += ends[n] - starts[n];
  return area;
}

/** Numbers the connected pieces of ink, diagonals included, in the order of their first pixels. */
function labelled({ starts, ends }, width) {
  const numbers = new Int32Array(starts.length);
  const parents = new Int32Array(starts.length); // of runs that turned out to be of one piece, the earlier ones
  for (let n = 0, above = 0, rowEnd = 0; n < starts.length; n++) {
    while (starts[n] >= rowEnd) rowEnd += width;
    const from = starts[n] > rowEnd - width ? starts[n] - 1 : starts[n];
    const to = ends[n] < rowEnd ? ends[n] + 1 : rowEnd;
    let root = (parents[n] = n);
    while (ends[above] + width <= from) above++;
    for (let other = above; starts[other] + width < to; other++) {
      let otherRoot = other;
      while (parents[otherRoot] !== otherRoot) otherRoot = parents[otherRoot] = parents[parents[otherRoot]];
      if (otherRoot < root) root = parents[root] = otherRoot;
      else parents[otherRoot] = root;
    }
  }
  let count = 0;
  for (let n = 0; n < starts.length; n++) numbers[n] = parents[n] === n ? ++count : numbers[parents[n]];
  return { starts, ends, numbers, count };
}

/** The length of the run of ink down the columns at each of its pixels. */
function runsDown({ starts, ends }, height, width) {
  const runs = kept("runs", Int16Array, height * width).fill(0);
  for (let n = 0; n < starts.length; n++) {
    for (let at = starts[n]; at < ends[n]; at++) runs[at] = at < width ? 1 : runs[at - width] + 1;
  }
  const lastRow = runs.length - width;
  for (let n = starts.length - 1; n >= 0; n--) {
    if (starts[n] >= lastRow) continue;
    for (let at = starts[n]; at < ends[n]; at++) if (runs[at + width]) runs[at] = runs[at + width];
  }
  return runs;
}

/** The number of bits of a word of 32 that are 1. */
function bitsIn(word) {
  const pairs = word - ((word >>> 1) & 0x55555555);
  const fours = (pairs & 0x33333333) + ((pairs >>> 2) & 0x33333333);
  return (((fours + (fours >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}

/** The columns by how far a line of a slope rises there: of each, words of 32 columns back, the bits of one, rows up. */
function shiftsOf(slope, length, wide) {
  const half = Math.floor(length / 2);
  const columns = new Int32Array(3 * length);
  let [count, before] = [0, null];
  for (let n = 0; n < length; n++) {
    const shift = Math.floor(0.5 - slope * (n - half)) + half;
    if (n % 32 === 0 || shift !== before) {
      columns[count] = shift * wide - (n >> 5);
      columns[count + 2] = shift;
      count += 3;
    }
    columns[count - 2] |= 1 << (n % 32);
    before = shift;
  }
  return columns.subarray(0, count);
}

/** Whether a line of `shiftsOf` covers bits of ink in all columns but `most`. */
function isCovered(ink, start, columns, most) {
  for (let n = 0, missed = 0; n < columns.length; n += 3) {
    missed += bitsIn(columns[n + 1] & ~ink[start - columns[n]]);
    if (missed > most) return false;
  }
  return true;
}

/**
 * A bit for each pixel of ink, in `wide` words a row, `margin` empty rows around it. The rows are the picture's columns
 * where it is `turned`.
 */
function bitsOf({ starts, ends }, height, width, turned, wide, margin) {
  const bits = new Int32Array(((turned ? width : height) + 2 * margin) * wide);
  for (let n = 0; n < starts.length; n++) {
    const y = (starts[n] / width) | 0;
    const [x, last] = [starts[n] - y * width, ends[n] - 1 - y * width];
    if (turned) for (let row = x; row <= last; row++) bits[(margin + row) * wide + (y >> 5)] |= 1 << y;
    else {
      for (let word = x >> 5; word <= last >> 5; word++) {
        const [from, to] = [Math.max(x, 32 * word), Math.min(last, 32 * word + 31)];
        bits[(margin + y) * wide + word] |= (-1 << from) & (-1 >>> (31 - to));
      }
    }
  }
  return bits;
}

/** The bits that are in columns of fewer than `band` ones. */
function thinOf(bits, wide, band) {
  const thin = bits.slice();
  for (let at = 0; at + (band - 1) * wide < bits.length; at++) {
    let all = bits[at];
    for (let n = 1; n < band && all; n++) all &= bits[at + n * wide];
    for (let n = 0; n < band && all; n++) thin[at + n * wide] &= ~all;
  }
  return thin;
}

/**
 * Takes the straight thin lines of ink across most of the picture, along its rows, or its columns where it is `turned`,
 * out of `isKept`: whether there are any.
 */
function takeLines(isKept, ink, weak, thickness, height, width, turned) {
  const [length, across] = turned ? [height, width] : [width, height];
  const wide = Math.ceil(length / 32);
  const band = thickness + 1;
  // A line of any slope is within a window of rows, where most columns have thin ink.
  const tall = Math.ceil((STEEPEST / 100) * length) + thickness + 3;
  // A bit for each pixel: thin ink, from `tall` rows above the picture to as many below it; and such in `band` rows.
  const isThin = thinOf(bitsOf(weak, height, width, turned, wide, tall), wide, band);
  if (weak !== ink) {
    const isStrong = bitsOf(ink, height, width, turned, wide, tall);
    const isThinAlone = thinOf(isStrong, wide, band);
    for (let at = 0; at < isThin.length; at++) isThin[at] = (isThin[at] & ~isStrong[at]) | isThinAlone[at];
  }
  const isBand = new Int32Array(isThin.length);
  const least = Math.ceil(LINE * length);
  const step = Math.max(1, tall >> 1);
  let [first, last] = [across, 0];
  for (let top = 0; top < across; top += step) {
    const bottom = Math.min(across, top + tall + step);
    let covered = 0;
    for (let word = 0; word < wide; word++) {
      let bits = 0;
      for (let row = top; row < bottom; row++) bits |= isThin[(tall + row) * wide + word];
      covered += bitsIn(bits);
    }
    if (covered < least) continue;
    first = Math.min(first, top);
    last = bottom;
  }
  if (first >= last) return false;
  for (let at = 0; at < (tall + across) * wide; at++) {
    for (let row = 0; row < band; row++) isBand[at] |= isThin[at + row * wide];
  }
  const isLine = new Int32Array(isThin.length);
  let isFound = false;
  for (let slope = -STEEPEST; slope <= STEEPEST; slope++) {
    const columns = shiftsOf(slope / 100, length, wide);
    const [lowest, highest] = [columns[2], columns[columns.length - 1]].sort((a, b) => a - b);
    for (const offset of [0, (thickness >> 1) + 1]) { // in bands that overlap
      const end = Math.floor((last - 1 + highest + offset) / band);
      for (let number = Math.floor((first + lowest + offset) / band); number <= end; number++) {
        const start = (tall + number * band - offset) * wide;
        if (!isCovered(isBand, start, columns, length - least)) continue;
        for (let row = start; row < start + band * wide; row += wide) {
          if (!isCovered(isThin, row, columns, length - Math.ceil(DENSE * length))) continue;
          isFound = true;
          for (let n = 0; n < columns.length; n += 3) {
            const at = row - columns[n];
            isLine[at] |= isThin[at] & columns[n + 1];
          }
        }
      }
    }
  }
  for (let at = 0; at < isLine.length; at++) {
    for (let left = isLine[at]; left; left &= left - 1) {
      const [along, other] = [32 * (at % wide) + 31 - Math.clz32(left & -left), ((at / wide) | 0) - tall];
      isKept[turned ? along * width + other : other * width + along] = 0;
    }
  }
  return isFound;
}

/** Ink without straight thin lines of `weak` ink across most of the picture; the same if nothing else is there, or no line. */
function withoutLines(ink, weak, height, width) {
  const thickness = Math.max(2, Math.floor(Math.min(height, width) * LINE_THICKNESS));
  const isKept = kept("isKept", Int16Array, height * width).fill(1);
  const found = [false, true].filter((turned) => takeLines(isKept, ink, weak, thickness, height, width, turned));
  if (!found.length) return ink;
  const others = above(isKept, ink, new Int32Array(ink.count + 1));
  const [before, after] = [ink, others].map(areaOf);
  return after < before && after > 0.02 * before ? others : ink;
}

/** The darkest pixel of each piece of ink, by its number. */
function peaksOf(depth, { starts, ends, numbers, count }) {
  const peaks = new Int32Array(count + 1);
  for (let n = 0; n < starts.length; n++) {
    let peak = peaks[numbers[n]];
    for (let at = starts[n]; at < ends[n]; at++) if (depth[at] > peak) peak = depth[at];
    peaks[numbers[n]] = peak;
  }
  return peaks;
}

/** The pieces of ink: their boxes, darkest pixels and areas, which is enough to find frames. */
function outlined(depth, ink, height, width) {
  const { starts, ends, numbers, count } = ink;
  const [left, right, top, bottom, area] = [width, 0, height, 0, 0].map((n) => new Int32Array(count + 1).fill(n));
  for (let n = 0; n < starts.length; n++) {
    const number = numbers[n];
    const y = (starts[n] / width) | 0;
    left[number] = Math.min(left[number], starts[n] - y * width);
    right[number] = Math.max(right[number], ends[n] - y * width);
    top[number] = Math.min(top[number], y);
    bottom[number] = y + 1;
    area[number] += ends[n] - starts[n];
  }
  const peak = peaksOf(depth, ink);
  const pieces = [];
  for (let n = 1; n <= count; n++) {
    const cut = top[n] === 0 || left[n] === 0 || bottom[n] === height || right[n] === width;
    pieces.push({
      members: [n], top: top[n], bottom: bottom[n], left: left[n], right: right[n],
      peak: peak[n], bright: 1, area: area[n], span: 0, edge: 0, thick: 0, near: 0, cut, sums: null,
    });
  }
  return pieces;
}

const longestSizeOf = (pieces) => pieces.reduce((most, piece) => Math.max(most, sizeOf(piece)), 0);

/** Gives pieces that nearly touch one number, `near`: where squares around their pixels do, of 2 * reach + 1. */
function findNear(pieces, { starts, ends, numbers, count }, width) {
  const reach = Math.round(NEAR * longestSizeOf(pieces));
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
  // The latest pixel of ink in each column: its row and piece. Those that are near each other are united already.
  const [rows, latest] = [-gap - 1, 0].map((n) => new Int32Array(width).fill(n));
  for (let n = 0; n < starts.length; ) {
    const y = (starts[n] / width) | 0;
    for (; n < starts.length && starts[n] < (y + 1) * width; n++) {
      for (let x = starts[n] - y * width, end = ends[n] - y * width; x < end; x++) {
        if (latest[x] !== numbers[n] && rows[x] >= y - gap) unite(latest[x], numbers[n]);
        rows[x] = y;
        latest[x] = numbers[n];
      }
    }
    for (let x = 0, before = -gap - 1; x < width; x++) {
      if (rows[x] < y - gap) continue;
      if (x - before <= gap && latest[x] !== latest[before]) unite(latest[x], latest[before]);
      before = x;
    }
  }
  for (const piece of pieces) piece.near = groupOf(piece.members[0]);
}

/** The sum of the squares of the whole numbers below one. */
const squaresBelow = (end) => ((end - 1) * end * (2 * end - 1)) / 6;

/** What the pixels of the pieces of `outlined` show; `labels` becomes the number of the piece at each pixel. */
function described(pieces, { depth, paper, typical }, levels, ink, labels, height, width) {
  const { starts, ends, numbers, count } = ink;
  const down = runsDown(ink, height, width);
  const [outline, changes, span, thick, last, rowLeft, rowOf] = [0, 0, 0, 0, 0, 0, -1].map((n) =>
    new Int32Array(count + 1).fill(n),
  );
  const sums = Array.from({ length: count + 1 }, () => [0, 0, 0, 0, 0]);
  const bright = new Float64Array(count + 1);
  const distance = Math.max(3, Math.round(BEYOND * longestSizeOf(pieces)));
  const compare = (number, start, end, step) => { // with the picture so many places on
    let [among, small] = [0, 0];
    for (let at = start; at < end; at++) {
      if (labels[at + step] === number) continue;
      among++;
      const change = Math.abs(levels[at] - levels[at + step]);
      small += (5 * change - 2 * depth[at]) >>> 31; // without a branch, which the processor would often predict wrong
    }
    outline[number] += among;
    changes[number] += among - small;
  };
  labels.fill(0);
  for (let n = 0; n < starts.length; n++) for (let at = starts[n]; at < ends[n]; at++) labels[at] = numbers[n];
  for (let n = 0; n < starts.length; n++) {
    const [number, start, end] = [numbers[n], starts[n], ends[n]];
    const y = (start / width) | 0;
    if (rowOf[number] !== y) {
      rowOf[number] = y;
      rowLeft[number] = start;
    } else span[number] -= last[number];
    last[number] = end - rowLeft[number];
    span[number] += last[number];
    let [sum, light] = [0, 0];
    for (let at = start; at < end; at++) {
      sum += Math.min(down[at], end - start);
      light += Math.max(paper[at] - typical, depth[at] - paper[at] + typical);
    }
    thick[number] += sum;
    bright[number] += light;
    const [from, to] = [start - y * width, end - y * width];
    const across = ((to - from) * (from + to - 1)) / 2;
    const each = sums[number];
    each[0] += across;
    each[1] += y * (to - from);
    each[2] += squaresBelow(to) - squaresBelow(from);
    each[3] += y * across;
    each[4] += y * y * (to - from);
    if (y >= distance) compare(number, start, end, -distance * width);
    if (y + distance < height) compare(number, start, end, distance * width);
    compare(number, Math.max(start, y * width + distance), Math.min(end, start + distance), -distance);
    compare(number, Math.max(start, end - distance), Math.min(end, (y + 1) * width - distance), distance);
  }
  for (const [n, piece] of pieces.entries()) {
    piece.bright = bright[n + 1] / piece.area;
    piece.span = span[n + 1];
    piece.edge = changes[n + 1] / Math.max(outline[n + 1], 1);
    piece.thick = thick[n + 1] / piece.area;
    piece.sums = sums[n + 1];
  }
}

/** Whether a piece is a thin outline around other ink of some size, or several such side by side. */
function isFrame(piece, pieces, ink, picture) {
  const [height, width] = [piece.bottom - piece.top, piece.right - piece.left];
  const size = width > 1.5 * height ? height : sizeOf(piece);
  const margin = 0.04 * size;
  const least = size >= 0.35 * Math.min(picture.height, picture.width) ? 0.2 : 0.4;
  if (piece.area >= 0.35 * height * width) return false;
  return pieces.some(
    (other) =>
      sizeOf(other) >= least * size && other.peak >= 0.5 * piece.peak &&
      other.top >= piece.top + margin && other.bottom <= piece.bottom - margin &&
      other.left >= piece.left + margin && other.right <= piece.right - margin &&
      goesAround(piece.members[0], other, ink, picture.width),
  );
}

/** Whether there is ink of a piece above, below, left and right of another: that of a broken digit is not all around. */
function goesAround(number, { top, bottom, left, right }, { starts, ends, numbers }, width) {
  let [above, below, before, after] = [false, false, false, false];
  for (let n = 0; n < starts.length; n++) {
    if (numbers[n] !== number) continue;
    const y = (starts[n] / width) | 0;
    const [from, to] = [starts[n] - y * width, ends[n] - y * width];
    const isOver = from < right && to > left;
    const isBeside = y >= top && y < bottom;
    above = above || (isOver && y < top);
    below = below || (isOver && y >= bottom);
    before = before || (isBeside && from < left);
    after = after || (isBeside && to > right);
  }
  return above && below && before && after;
}

/** Whether two pieces have about the same height, width and area. */
function alike(one, other) {
  const lengths = ({ top, bottom, left, right, area }) => [bottom - top, right - left, area];
  const others = lengths(other);
  return lengths(one).every((each, n) => Math.abs(each - others[n]) <= 0.1 * others[n]);
}

/**
 * Where a blot is paper in a shadow, with strokes at least so dark: measures `depth` there, from the paper within the blot.
 * Returns the edge of the strokes; 0 if there are none.
 */
function shadowTaken({ depth, paper, typical }, sign, levels, labels, width, blot, least) {
  const [tall, wide] = [heightOf(blot), blot.right - blot.left];
  const each = (act) => { // pixel of the blot: its places in the box and on the picture
    for (let y = 0, n = 0; y < tall; y++) {
      for (let at = (blot.top + y) * width + blot.left, end = at + wide; at < end; at++, n++) {
        if (labels[at] === blot.members[0]) act(n, at);
      }
    }
  };
  let [dark, peak] = [0, 0];
  each((n, at) => (dark += Number(depth[at] > DARKEST * blot.peak)));
  if (dark > FEW * blot.area) return 0;
  const reach = Math.floor(WITHIN * blot.thick) + 1;
  const [inner, own] = [0, 1].map(() => new Int16Array(tall * wide).fill(-LEVELS));
  each((n, at) => (inner[n] = sign * levels[at]));
  close(inner, 1, own, reach, tall, wide, wide, 1);
  close(inner, 1, own, reach, wide, 1, tall, wide);
  each((n) => (peak = Math.max(peak, own[n] - inner[n])));
  if (peak < least) return 0;
  each((n, at) => {
    depth[at] = own[n] - inner[n];
    paper[at] = own[n] + typical;
  });
  return INK_EDGE * peak;
}

/** The sum of the levels of ink. */
function depthIn(depth, { starts, ends }) {
  let sum = 0;
  for (let n = 0; n < starts.length; n++) for (let at = starts[n]; at < ends[n]; at++) sum += depth[at];
  return sum;
}

/**
 * The pieces of ink on a picture of `inLevels`, without ruled lines and frames: {pieces, labels, paperAt, ruled}, the last the
 * darkness of the ruled lines.
 */
function piecesOf(picture, sign) {
  const { height, width, levels, left } = picture;
  const sought = depthsOf(picture, sign);
  const { depth, paper, typical } = sought;
  const least = Math.floor(LEVELS * Math.max(LEAST_CONTRAST, SURE * left));
  const all = labelled(above(depth, rowsOf(height, width), [Math.floor(least / 2)]), width);
  const peaks = peaksOf(depth, all);
  const [weak, strong] = [LINE_EDGE, INK_EDGE].map((edge) => {
    return above(depth, all, peaks.map((peak) => (peak < least ? 2 * LEVELS : edge * peak))); // above twice, nothing is
  });
  const labels = kept(`labels ${sign}`, Int32Array, depth.length);
  let ink, pieces;
  const take = (found) => {
    ink = labelled(found, width);
    pieces = outlined(depth, ink, height, width);
  };
  take(strong);
  const whole = pieces.filter((piece) => sizeOf(piece) >= 3);
  const frames = whole.filter((piece) => isFrame(piece, whole, ink, picture));
  const isOut = new Int32Array(ink.count + 1);
  for (const piece of whole) if (frames.some((frame) => alike(piece, frame))) isOut[piece.members[0]] = 2 * LEVELS;
  const unframed = frames.length ? above(depth, ink, isOut) : ink;
  const unruled = withoutLines(unframed, frames.length ? unframed : weak, height, width);
  let ruled = 0;
  if (unruled !== unframed) {
    const [before, after] = [unframed, unruled].map((found) => [areaOf(found), depthIn(depth, found)]);
    ruled = Math.floor((before[1] - after[1]) / (before[0] - after[0]));
  }
  if (unruled !== ink) take(unruled);
  described(pieces, sought, levels, ink, labels, height, width);
  const dark = above(depth, ink, Int32Array.from([0, ...pieces], (piece) => piece && DARK_EDGE * piece.peak));
  const areas = new Int32Array(ink.count + 1);
  for (let n = 0; n < dark.starts.length; n++) areas[dark.numbers[n]] += dark.ends[n] - dark.starts[n];
  const limits = Int32Array.from([0, ...pieces], (piece, n) => { // of the strokes in a shadow
    if (!n || sizeOf(piece) < 3 || piece.peak < 2 * least) return 0;
    const isBlot = piece.thick > BLOT * sizeOf(piece) && sizeOf(piece) >= LARGE * Math.min(height, width);
    const edge = isBlot ? shadowTaken(sought, sign, levels, labels, width, piece, 2 * least) : 0;
    return edge || (areas[n] < SHADED_AREA * piece.area && piece.edge < SHADED_OUTLINE ? DARK_EDGE * piece.peak : 0);
  });
  if (limits.some((limit) => limit > 0)) {
    take(above(depth, ink, limits));
    described(pieces, sought, levels, ink, labels, height, width);
  }
  findNear(pieces, ink, width);
  return { pieces, labels, ruled, paperAt: (at) => paper[at] - typical };
}
