// Chooses the digits among the pieces of ink on a picture, as lstm_mnist_jax/data/digits.py, which says how: a change there
// needs the same here.

const FILLED_MARGIN = 0.09;
const FILLED_SIZE = 16;
const RECTANGULAR = 0.85;
const TWO_LEVELS = 0.85;
const EDGED = 0.85;
const BLURRED = 0.65;
const APART = 0.15;
const [LOWER, GAP] = [0.65, 0.035];
const COLUMN = 0.6;
const CRUMB = 0.05;
const BETWEEN = 4;
const [SMALLEST, SHORT_DASH] = [0.4, 0.75];
const LEAST_SIZE = 8;

function scoreOf(piece) {
  const sharp = Math.max(0, piece.edge - 0.8) / 0.2;
  return (piece.peak ** 3 / LEVELS ** 2) * Math.max(0.1 * sizeOf(piece), sizeOf(piece) - 2 * piece.thick) * sharp;
}
const sumOf = (pieces) => pieces.reduce((sum, piece) => sum + scoreOf(piece), 0);
const best = (pieces, score) => pieces.reduce((a, b) => (score(b) > score(a) ? b : a));

function united(one, other) {
  const area = one.area + other.area;
  return {
    members: [...one.members, ...other.members],
    top: Math.min(one.top, other.top),
    bottom: Math.max(one.bottom, other.bottom),
    left: Math.min(one.left, other.left),
    right: Math.max(one.right, other.right),
    peak: Math.max(one.peak, other.peak),
    bright: (one.bright * one.area + other.bright * other.area) / area,
    area,
    span: one.span + other.span,
    edge: (one.edge * one.area + other.edge * other.area) / area,
    thick: (one.thick * one.area + other.thick * other.area) / area,
    near: one.near,
    cut: one.cut || other.cut,
    sums: one.sums.map((sum, n) => sum + other.sums[n]),
  };
}

/** Whether two pieces, or groups of them, are of one digit, by the size of a typical digit on the picture. */
function belongTogether(one, other, typical, areApart) {
  const both = united(one, other);
  const larger = Math.max(sizeOf(one), sizeOf(other));
  const across = Math.min(one.right, other.right) - Math.max(one.left, other.left);
  const down = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
  const [low, high] = [one.bottom - one.top, other.bottom - other.top].sort((a, b) => a - b);
  const covers = across >= 0.5 * Math.min(one.right - one.left, other.right - other.left);
  const isAlike = Math.max(one.thick, other.thick) <= 1.5 * Math.min(one.thick, other.thick);
  const most = isAlike ? APART * (sizeOf(both) <= 1.1 * typical ? typical : larger) : 0.12 * larger;
  if (covers && (down >= 0.5 * low || -down <= most)) return !isUnderlined(one, other);
  const isBroken = both.members.length > 3;
  const isLow = low < LOWER * high && across <= 0 && !isBroken;
  if (isLow && areApart(one, other, Math.ceil(GAP * Math.max(larger, typical)))) return false;
  if (low < 0.5 * high && Math.hypot(Math.min(0, across), Math.min(0, down)) <= 0.15 * larger) return true;
  const widest = across <= 0 ? 0.9 : 1.1;
  return one.near === other.near && both.right - both.left <= widest * (both.bottom - both.top);
}

/** Whether at least so many pixels of paper are between two pieces, on a picture with the number of the piece at each. */
function areApartOn(labels, height, width, one, other, least) {
  if (Math.max(one.left - other.right, other.left - one.right) >= least) return true;
  const [top, left] = [Math.max(0, one.top - least), Math.max(0, one.left - least)];
  const [tall, wide] = [Math.min(height, one.bottom + least) - top, Math.min(width, one.right + least) - left];
  const rows = Array.from({ length: tall }, (_, y) => (top + y) * width + left);
  const [ink, near] = [one, other].map(({ members }) => {
    const mask = new Uint8Array(tall * wide);
    for (const [y, from] of rows.entries()) {
      for (let x = 0; x < wide; x++) if (members.includes(labels[from + x])) mask[y * wide + x] = 1;
    }
    return mask;
  });
  const around = dilated(ink, tall, wide, least);
  return !near.some((isInk, at) => isInk && around[at]);
}

/** Whether a piece is of a digit like another but for its outline, as in a shadow, where ruled lines join them. */
function isBlurred(piece, sharp) {
  if (piece.edge < BLURRED || piece.cut || darknessOf(piece, sharp) < 0.75) return false;
  const [smaller, larger] = [sizeOf(piece), sizeOf(sharp)].sort((a, b) => a - b);
  const [thinner, thicker] = [piece.thick, sharp.thick].sort((a, b) => a - b);
  return smaller >= 0.6 * larger && thinner >= 0.4 * thicker;
}

/** Whether a piece is about as dark as the main one, or paler but about as thick: else it is of a ruled line or a pen. */
function isAsStrong(piece, main) {
  const dark = darknessOf(piece, main);
  const [thinner, thicker] = [piece.thick, main.thick].sort((a, b) => a - b);
  return dark >= 0.75 || (dark >= 0.5 && dark * thinner >= 0.3 * thicker);
}

/** Whether a piece that touches the border is a stroke of a digit that does not: as thick, and nearly touching it. */
function goesOn(piece, inner, areApart) {
  return inner.some(
    (other) =>
      piece.near === other.near &&
      Math.max(piece.thick, other.thick) <= 1.5 * Math.min(piece.thick, other.thick) &&
      belongTogether(piece, other, sizeOf(other), areApart),
  );
}

/** Unites the pieces of one digit, until no two belong together. */
function grouped(pieces, areApart) {
  const groups = [...pieces];
  const typical = sizeOf(best(pieces, scoreOf));
  const merge = () => {
    for (let first = 0; first < groups.length; first++) {
      for (let second = first + 1; second < groups.length; second++) {
        if (!belongTogether(groups[first], groups[second], typical, areApart)) continue;
        groups[first] = united(groups[first], groups.splice(second, 1)[0]);
        return true;
      }
    }
    return false;
  };
  while (merge());
  return groups;
}

/** The digits among the pieces of ink, and what is of ruled lines: {digits, lines}. */
function chosen({ pieces: all, labels }, height, width) {
  const areApart = areApartOn.bind(null, labels, height, width);
  const edged = all.filter((piece) => piece.edge >= EDGED);
  if (!edged.length) return { digits: [], lines: [] };
  const sharpest = best(edged, scoreOf);
  const sharp = all.filter((piece) => piece.edge >= EDGED || isBlurred(piece, sharpest));
  const areLines = sharp.map((piece) => isOfPaper(piece, FLAT_PIECE, height, width));
  const others = sharp.filter((_, n) => !areLines[n]);
  const [lines, strokes] = [[], []];
  for (const piece of sharp.filter((_, n) => areLines[n])) {
    const isStroke = !piece.cut && others.some((other) => goesWith(piece, other));
    (isStroke ? strokes : lines).push(piece);
  }
  let pieces = [...others, ...strokes];
  if (!pieces.length) return { digits: lines.filter((line) => lines.length === 1 && isSteepLine(line) && !line.cut), lines };
  const strongest = best(pieces, scoreOf);
  pieces = pieces.filter((piece) => sizeOf(piece) >= 0.03 * sizeOf(strongest));
  const inner = pieces.filter((piece) => !piece.cut);
  if (inner.length && scoreOf(best(inner, scoreOf)) >= 0.15 * scoreOf(best(pieces, scoreOf))) {
    pieces = [...inner, ...pieces.filter((piece) => piece.cut && goesOn(piece, inner, areApart))];
  }
  const strong = best(pieces, scoreOf);
  const found = grouped(pieces.filter((piece) => isAsStrong(piece, strong)), areApart);
  const ofPaper = found.filter((group) => isOfPaper(group, FLAT_LINE, height, width));
  lines.push(...ofPaper);
  const groups = found.filter((group) => !ofPaper.includes(group) && !isRuleOf(group, found));
  if (!groups.length) return { digits: [], lines };
  const upright = groups.filter((group) => !isOfDashes(group, all) && !isCross(group));
  const main = best(upright.length ? upright : groups, scoreOf);
  if (lines.length && scoreOf(main) < CRUMB * scoreOf(best(lines, scoreOf))) return { digits: [], lines };
  const least = Math.min(height, width) >= SMOOTHED_SIZE ? LEAST_SIZE : 0;
  const isMark = (group) => !upright.includes(group) && upright.some((other) => gapToMark(group, other) !== null);
  const limitOf = (group) => Math.max(least, (isMark(group) ? SHORT_DASH : SMALLEST) * sizeOf(main));
  return { digits: groups.filter((group) => sizeOf(group) >= limitOf(group)), lines };
}

/** 1 at the darker pixels of a picture of two levels, else 0; null of other pictures. */
function darkerOf(levels, height, width) {
  if (Math.min(height, width) < FILLED_SIZE) return null;
  const all = new Int32Array(LEVELS + 1);
  for (let at = 0; at < levels.length; at++) all[levels[at]]++;
  let [least, end] = [0, all.length];
  while (!all[least]) least++;
  while (!all[end - 1]) end--;
  const counts = all.subarray(least, end);
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
  const darker = kept("darker", Int16Array, levels.length);
  for (let at = 0; at < levels.length; at++) darker[at] = levels[at] <= limit ? 1 : 0;
  return darker;
}

/** Of the pixels of one kind, the ink of a digit that fills the picture up to the border; null if there is none. */
function filling(kind, height, width) {
  const dots = above(kind, rowsOf(height, width), [0]);
  const area = areaOf(dots);
  if (area < 0.12 * kind.length || 0.97 * area > 0.6 * kind.length) return null; // as below, whatever the pieces are
  const all = labelled(dots, width);
  const whole = best(outlined(kind, all, height, width), (piece) => piece.area);
  const share = whole.area / kind.length;
  if (share < 0.12 || share > 0.6 || whole.area < 0.97 * area) return null;
  if (Math.max(whole.top, height - whole.bottom) > FILLED_MARGIN * height) return null;
  if (Math.max(whole.left, width - whole.right) > FILLED_MARGIN * width) return null;
  const ink = above(kind, all, Int32Array.from({ length: all.count + 1 }, (_, n) => (n === whole.members[0] ? 0 : 1)));
  const down = runsDown(ink, height, width);
  const core = new Uint8Array(kind.length);
  const [lefts, rights] = [width, 0].map((n) => new Int32Array(height).fill(n)); // of each row
  let [border, thick] = [0, 0];
  for (let n = 0; n < ink.starts.length; n++) {
    const [start, end] = [ink.starts[n], ink.ends[n]];
    const y = (start / width) | 0;
    const [left, right] = [start - y * width, end - y * width];
    if (y === 0 || y === height - 1) border += right - left;
    else border += Number(left === 0) + Number(right === width);
    lefts[y] = Math.min(lefts[y], left);
    rights[y] = right;
    for (let at = start; at < end; at++) thick += Math.min(down[at], right - left);
    core.fill(1, start, end);
  }
  if (border > height + width - 2) return null;
  let span = 0;
  for (let y = whole.top; y < whole.bottom; y++) span += rights[y] - lefts[y];
  if (span > RECTANGULAR * (whole.bottom - whole.top) * (whole.right - whole.left)) return null;
  return thick / whole.area >= 0.05 * Math.min(height, width) ? core : null;
}

/** Whether the ink is light on dark paper, by the digits that are found in each case, and the scores of ruled lines. */
function isLight(dark, darkLines, light, lightLines) {
  if (!dark.length) return sumOf(light) >= BETWEEN * darkLines;
  if (!light.length) return sumOf(dark) < BETWEEN * lightLines;
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
  return sumOf(light) > sumOf(dark);
}

/** Line by line from the top, and from left to right. */
function inOrder(digits) {
  let lines = [];
  const areOne = (one, other) => {
    const [low, high] = [one, other].map((line) => heightOf(line.at(-1))).sort((a, b) => a - b);
    const isApart = one.every((digit) => other.every((near) => Math.abs(digit.left - near.left) >= COLUMN * low));
    return high <= 1.5 * low && isApart;
  };
  const overlap = (one, other) => {
    const smaller = Math.min(one.bottom - one.top, other.bottom - other.top);
    return (Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top)) / smaller;
  };
  const middleOf = (line) => line.reduce((sum, { top, bottom }) => sum + top + bottom, 0) / line.length;
  for (const digit of [...digits].sort((a, b) => a.left - b.left || a.top + a.bottom - b.top - b.bottom)) {
    const overlapWith = (line) => Math.max(...line.slice(-2).map((other) => overlap(digit, other)));
    const beside = lines.filter((line) => overlapWith(line) >= BESIDE);
    const nearest = beside.length ? best(beside, overlapWith) : null;
    const same = beside.filter((line) => line === nearest || areOne(line, nearest));
    lines = [...lines.filter((line) => !same.includes(line)), [...same.flat().sort((a, b) => a.left - b.left), digit]];
  }
  return lines.sort((a, b) => middleOf(a) - middleOf(b)).flat();
}

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

/** The ink of a digit with its soft edges: {height, width, levels, core, top, left, noise, cut}. */
function inkOf(picture, noise, digit, { sign, paperAt, labels, pieces }) {
  const { height, width } = picture;
  const soft = Math.max(2, Math.floor(sizeOf(digit) / 20));
  const [top, left] = [Math.max(0, digit.top - soft), Math.max(0, digit.left - soft)];
  const tall = Math.min(height, digit.bottom + soft) - top;
  const wide = Math.min(width, digit.right + soft) - left;
  const core = new Uint8Array(tall * wide);
  const isMember = new Uint8Array(pieces.length + 1);
  for (const number of digit.members) isMember[number] = 1;
  for (let y = 0; y < tall; y++) {
    for (let x = 0; x < wide; x++) core[y * wide + x] = isMember[labels[(top + y) * width + left + x]];
  }
  const near = dilated(core, tall, wide, soft);
  const levels = new Float64Array(tall * wide);
  for (let y = 0; y < tall; y++) {
    for (let x = 0; x < wide; x++) {
      const at = (top + y) * width + left + x;
      if (near[y * wide + x]) levels[y * wide + x] = Math.max(0, paperAt(at) / LEVELS - sign * picture.levels[at]);
    }
  }
  return { height: tall, width: wide, levels, core, top, left, noise, cut: digit.cut };
}

/** The ink of each digit on a picture: [{height, width, levels, core, top, left, noise, cut, marks, isSign}]. */
function findInk(picture) {
  const { height, width } = picture;
  const sought = inLevels(picture);
  const { levels, noise } = sought;
  const darker = darkerOf(levels, height, width);
  for (const sign of darker ? [1, -1] : []) {
    if (sign < 0) for (let at = 0; at < darker.length; at++) darker[at] = 1 - darker[at];
    const core = filling(darker, height, width);
    if (!core) continue;
    const others = levels.filter((_, at) => !core[at]).sort();
    const last = others.length - 1;
    const paper = Math.floor((others[last >> 1] + others[(last + 1) >> 1]) / 2) / LEVELS;
    const found = Float64Array.from(picture.levels, (level) => Math.max(0, sign * (paper - level)));
    return [{ height, width, levels: found, core, top: 0, left: 0, noise, cut: true, marks: [], isSign: false }];
  }
  const offers = [1, -1].map((sign) => {
    const { ruled, ...found } = piecesOf(sought, sign);
    const { digits, lines } = chosen(found, height, width);
    const ofRules = (ruled ** 3 / LEVELS ** 2) * Math.min(height, width);
    return { ...found, sign, digits, ofLines: Math.max(0, ofRules, ...lines.map(scoreOf)) };
  });
  const [dark, light] = offers;
  const offer = offers[Number(isLight(dark.digits, dark.ofLines, light.digits, light.ofLines))];
  const marks = marksOf(offer.pieces, offer.digits);
  return inOrder(offer.digits).map((digit) => ({
    ...inkOf(picture, noise, digit, offer),
    marks: marks[offer.digits.indexOf(digit)],
    isSign: isSign(digit, offer.digits, offer.pieces),
  }));
}
