// Finds the pieces of ink on a picture, as lstm_mnist_jax/data/ink.py, which says how: a change there needs the same here.
//
// A picture is {height, width, levels}. Pixels are compared in whole levels, so that both decide the same.

const LEVELS = 4000;
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
const SHADED_BLOT = 0.2;
const SECOND_BINS = 8192;
const LINE_EDGE = 0.2;
const LINE = 0.8;
const DENSE = 0.4;
const LINE_THICKNESS = 1 / 40;
const STEEPEST = 16; // hundredths: the slopes of lines that are searched

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
  const levels = new Int16Array(height * width);
  for (let at = 0; at < levels.length; at++) levels[at] = LEVELS * smooth.levels[at] + 0.5; // rounded down
  return { height, width, levels, noise, left: noise * SMOOTHED[passes] };
}

/**
 * Closes lines of levels, times `sign`, by windows of 2 * reach + 1 pixels: `paper` becomes the result where it is larger.
 * The maximum of each window is by van Herk (1992), of what is before and after the end of a block. Both change rarely
 * from one window to the next, so that only the changes are kept, and the minimum of the maxima is sought among them.
 */
function close(levels, sign, paper, reach, lines, stride, length, step) {
  const window = 2 * reach + 1;
  const line = new Int16Array(length);
  const [starts, values, queue, lasts, before, firsts, after] = Array.from({ length: 7 }, () => new Int32Array(length + window));
  before[0] = after[0] = -LEVELS - 1;
  for (let number = 0; number < lines; number++) {
    let [count, value] = [0, LEVELS + 1];
    for (let middle = 0, at = number * stride; middle < length + window; middle += window) {
      // The windows that start before `middle` and end there or later: the last ones with each maximum before it,
      let [left, most] = [0, -LEVELS - 1];
      lasts[0] = middle - 1;
      for (let n = Math.min(middle, length) - 1, end = Math.max(0, middle - window); n >= end; n--) {
        if (line[n] <= most) continue;
        lasts[++left] = n;
        before[left] = most = line[n];
      }
      let right = 0; // and the first ones with each maximum after it
      most = -LEVELS - 1;
      for (let n = middle, end = Math.min(length, middle + window); n < end; n++, at += step) {
        const level = (line[n] = sign * levels[at]);
        if (level <= most) continue;
        firsts[++right] = n - window + 1;
        after[right] = most = level;
      }
      firsts[right + 1] = middle;
      right = 0;
      for (let start = Math.max(middle, 1) - window, end = Math.min(middle, length); start < end; ) {
        while (left && lasts[left] < start) left--;
        while (firsts[right + 1] <= start) right++;
        most = Math.max(before[left], after[right]);
        if (most !== value) {
          starts[count] = start;
          values[count++] = value = most;
        }
        start = Math.min(lasts[left] + 1, firsts[right + 1]);
      }
    }
    starts[count] = length;
    let [head, tail, next] = [0, 0, 0]; // a queue of starts whose values rise
    for (let n = 0, at = number * stride; n < length; ) {
      for (; next < count && starts[next] <= n; queue[tail++] = next++) {
        while (tail > head && values[queue[tail - 1]] >= values[next]) tail--;
      }
      while (starts[queue[head] + 1] + window <= n + 1) head++;
      const least = values[queue[head]];
      for (const end = Math.min(starts[next], starts[queue[head] + 1] + window - 1, length); n < end; n++, at += step) {
        if (paper[at] < least) paper[at] = least;
      }
    }
  }
}

/** How much darker than the paper each pixel is, in levels: {depth, paper}. The levels of light ink have sign -1. */
function depthsOf({ height, width, levels }, sign) {
  const reach = Math.max(1, Math.floor(Math.min(height, width) / 4));
  const paper = new Int16Array(levels.length).fill(-LEVELS);
  close(levels, sign, paper, reach, height, width, width, 1);
  close(levels, sign, paper, reach, width, 1, height, width);
  const depth = new Int16Array(levels.length);
  const counts = new Uint32Array(LEVELS + 1);
  for (let at = 0; at < depth.length; at++) counts[(depth[at] = paper[at] - sign * levels[at])]++;
  const typical = medianOf(counts, depth.length);
  for (let at = 0; at < depth.length; at++) {
    paper[at] -= typical;
    depth[at] = depth[at] > typical ? depth[at] - typical : 0;
  }
  return { depth, paper };
}

/** The median of whole numbers that are counted, rounded down between two middle ones, as int(numpy.median()). */
function medianOf(counts, count) {
  const at = (rank) => {
    let left = rank;
    for (let value = 0; ; value++) if ((left -= counts[value]) < 0) return value;
  };
  return Math.floor((at((count - 1) >> 1) + at(count >> 1)) / 2);
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
  if (step === 1) {
    for (let n = 0, end = 0; n < places.length; n = end) {
      const rowEnd = (((places[n] / width) | 0) + 1) * width;
      for (end = n + 1; end < places.length && places[end] === places[end - 1] + 1 && places[end] < rowEnd; ) end++;
      runs.fill(end - n, places[n], places[n] + end - n);
    }
    return runs;
  }
  for (const at of places) runs[at] = (at >= width ? runs[at - width] : 0) + 1;
  for (let n = places.length - 1; n >= 0; n--) {
    const at = places[n];
    const below = at + width < runs.length ? runs[at + width] : 0;
    if (below) runs[at] = below;
  }
  return runs;
}

/** The number of bits of a word of 32 that are 1. */
function bitsIn(word) {
  const pairs = word - ((word >>> 1) & 0x55555555);
  const fours = (pairs & 0x33333333) + ((pairs >>> 2) & 0x33333333);
  return (((fours + (fours >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}

/** The columns of a picture by how far a line of a slope rises there: words of 32 columns, their bits, rows up. */
function shiftsOf(slope, length) {
  const half = Math.floor(length / 2);
  const [words, bits, shifts] = [0, 1, 2].map(() => new Int32Array(length));
  let [count, before] = [0, null];
  for (let n = 0; n < length; n++) {
    const shift = Math.floor(0.5 - slope * (n - half)) + half;
    if (n % 32 === 0 || shift !== before) {
      words[count] = n >> 5;
      shifts[count++] = shift;
    }
    bits[count - 1] |= 1 << (n % 32);
    before = shift;
  }
  return { words, bits, shifts, count };
}

/** The columns where a line of `shiftsOf` covers bits of ink; with `found`, their words as well. */
function coveredBy(ink, start, { words, bits, shifts, count }, wide, first, last, found = null) {
  let covered = 0;
  for (let n = 0; n < count; n++) {
    const row = Math.max(first, Math.min(last, start - shifts[n]));
    const word = ink[(row - first) * wide + words[n]] & bits[n];
    covered += bitsIn(word);
    if (found) found[n] = word;
  }
  return covered;
}

/**
 * Marks in `isLine` the straight thin lines of ink across most of the picture, along its rows, or its columns where it
 * is `turned`: true if there are any. `runs` is the length of the run of ink across a line at each pixel.
 */
function markLines(isLine, places, runs, thickness, height, width, turned) {
  const [length, across] = turned ? [height, width] : [width, height];
  const wide = Math.ceil(length / 32);
  const band = thickness + 1;
  // A bit for each pixel: thin ink, from `band` rows above the picture to as many below it; and such in so many rows.
  const [isThin, isBand] = [0, 1].map(() => new Int32Array((across + 2 * band) * wide));
  for (const at of places) {
    if (runs[at] > thickness) continue;
    const [n, row] = turned ? [(at / width) | 0, at % width] : [at % width, (at / width) | 0];
    isThin[(band + row) * wide + (n >> 5)] |= 1 << (n % 32);
  }
  // A line of any slope is within a window of rows, where most columns have thin ink.
  const tall = Math.ceil((STEEPEST / 100) * length) + thickness + 3;
  const step = Math.max(1, tall >> 1);
  let [first, last] = [across, 0];
  for (let top = 0; top < across; top += step) {
    const bottom = Math.min(across, top + tall + step);
    let covered = 0;
    for (let word = 0; word < wide; word++) {
      let bits = 0;
      for (let row = top; row < bottom; row++) bits |= isThin[(band + row) * wide + word];
      covered += bitsIn(bits);
    }
    if (covered < LINE * length) continue;
    first = Math.min(first, top);
    last = bottom;
  }
  if (first >= last) return false;
  for (let at = 0; at < (across + band) * wide; at++) {
    for (let row = 0; row < band; row++) isBand[at] |= isThin[at + row * wide];
  }
  const found = new Int32Array(length);
  let isFound = false;
  for (let slope = -STEEPEST; slope <= STEEPEST; slope++) {
    const columns = shiftsOf(slope / 100, length);
    const { words, shifts } = columns;
    const [least, most] = [shifts[0], shifts[columns.count - 1]].sort((a, b) => a - b);
    for (const offset of [0, (thickness >> 1) + 1]) { // in bands that overlap
      const end = Math.floor((last - 1 + most + offset) / band);
      for (let number = Math.floor((first + least + offset) / band); number <= end; number++) {
        const start = number * band - offset;
        if (coveredBy(isBand, start, columns, wide, -band, across) < LINE * length) continue;
        for (let row = start; row < start + band; row++) {
          if (coveredBy(isThin, row, columns, wide, -band, across, found) < DENSE * length) continue;
          isFound = true;
          for (let n = 0; n < columns.count; n++) {
            for (let bit = 0; bit < 32; bit++) {
              if (!((found[n] >>> bit) & 1)) continue;
              const [along, other] = [32 * words[n] + bit, row - shifts[n]];
              isLine[turned ? along * width + other : other * width + along] = 1;
            }
          }
        }
      }
    }
  }
  return isFound;
}

/**
 * Ink without straight thin lines of `weak` ink across most of the picture; the same list if nothing else is there, or no
 * line.
 */
function withoutLines(places, weak, height, width) {
  const thickness = Math.max(2, Math.floor(Math.min(height, width) * LINE_THICKNESS));
  const isLine = new Uint8Array(height * width);
  let isFound = false;
  for (const turned of [false, true]) {
    const [runs, strong] = [weak, places].map((ink) => runLengths(ink, height, width, turned ? 1 : width));
    for (const at of places) runs[at] = strong[at];
    isFound = markLines(isLine, weak, runs, thickness, height, width, turned) || isFound;
  }
  if (!isFound) return places;
  const kept = placesWhere(places, (at) => !isLine[at]);
  return kept.length < places.length && kept.length > 0.02 * places.length ? kept : places;
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
  const pieces = [];
  for (let n = 1; n <= count; n++) {
    const cut = top[n] === 0 || left[n] === 0 || bottom[n] === height || right[n] === width;
    pieces.push({
      members: [n], top: top[n], bottom: bottom[n], left: left[n], right: right[n],
      peak: peak[n], area: area[n], span: 0, edge: 0, thick: 0, near: 0, cut,
    });
  }
  return pieces;
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
function described(pieces, depth, levels, places, labels, height, width) {
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
  for (const [n, piece] of pieces.entries()) {
    piece.span = span[n + 1];
    piece.edge = changes[n + 1] / Math.max(outline[n + 1], 1);
    piece.thick = thick[n + 1] / piece.area;
    piece.near = near[n + 1];
  }
}

/** Whether a piece is a thin outline around other ink of some size, or several such side by side. */
function isFrame(piece, pieces) {
  const [height, width] = [piece.bottom - piece.top, piece.right - piece.left];
  const size = width > 1.5 * height ? height : sizeOf(piece);
  const margin = 0.04 * size;
  if (piece.area >= 0.35 * height * width) return false;
  return pieces.some(
    (other) =>
      sizeOf(other) >= 0.2 * size && other.peak >= 0.5 * piece.peak &&
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

/** Whether a piece is strokes in a shadow, by the fraction of its pixels that are nearly as dark as the darkest. */
function isShaded(piece, dark) {
  const isBlot = piece.thick > 0.2 * sizeOf(piece);
  return (dark < SHADED_AREA && piece.edge < SHADED_OUTLINE) || (dark < SHADED_BLOT && isBlot);
}

/** The pieces of ink on a picture of `inLevels`, without ruled lines and frames: {pieces, labels, paper}. */
function piecesOf(picture, sign) {
  const { height, width, levels, left } = picture;
  const { depth, paper } = depthsOf(picture, sign);
  const least = Math.floor(LEVELS * Math.max(LEAST_CONTRAST, SURE * left));
  const places = placesAbove(depth, Math.floor(least / 2));
  const labels = new Int32Array(depth.length);
  let count = label(places, labels, width);
  const peaks = new Int32Array(count + 1);
  for (const at of places) if (depth[at] > peaks[labels[at]]) peaks[labels[at]] = depth[at];
  const relabel = (wanted, all) => {
    for (const at of all) labels[at] = 0;
    count = label(wanted, labels, width);
  };
  for (let n = 0; n < peaks.length; n++) if (peaks[n] < least) peaks[n] = 2 * LEVELS / LINE_EDGE; // above which nothing is
  const above = (edge, among) => placesWhere(among, (at) => depth[at] > edge * peaks[labels[at]]);
  const weak = above(LINE_EDGE, places);
  const strong = above(INK_EDGE, weak);
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
  described(pieces, depth, levels, kept, labels, height, width);
  const areas = new Int32Array(count + 1);
  const isDark = (at) => depth[at] > DARK_EDGE * pieces[labels[at] - 1].peak;
  for (const at of kept) if (isDark(at)) areas[labels[at]]++;
  const mayBeShaded = (piece) => sizeOf(piece) >= 3 && piece.peak >= 2 * least;
  const shaded = pieces.map((piece, n) => mayBeShaded(piece) && isShaded(piece, areas[n + 1] / piece.area));
  if (shaded.includes(true)) {
    const lit = placesWhere(kept, (at) => !shaded[labels[at] - 1] || isDark(at));
    relabel(lit, kept);
    pieces = outlined(depth, lit, labels, count, height, width);
    described(pieces, depth, levels, lit, labels, height, width);
  }
  return { pieces, labels, paper };
}
