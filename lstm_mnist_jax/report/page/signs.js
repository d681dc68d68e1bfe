// What is no digit among the pieces of ink: ruled lines, signs and marks, as lstm_mnist_jax/data/signs.py, which says how: a
// change there needs the same here.

const FLAT = 0.36;
const [FLAT_LINE, STEEP_LINE] = [8, 26];
const FLAT_PIECE = 20;
const [FLAT_EDGE, STEEP_EDGE] = [5, 12];
const FINE_PEN = 40;
const [LEAST_STROKES, MOST_STROKES] = [0.5, 2.15];
const [DASH, FILLED] = [2, 0.7];
const MIDDLE = 0.0505;
const [BARS, BAR] = [0.82, 0.75];
const ARROW = 1.4;
const SHADOW = 3.6;
const BESIDE = 0.4;
const SLENDER = 4;
const BELOW = 0.1;
const SMALLER = 0.55;
const MARK = 0.06;
const [SMALL_DIGIT, FAR] = [0.2, 5];

/** Whether a piece is of ruled lines, of a margin or of a table: thin, straight and long, or a lattice or its crumbs. */
function isOfPaper(piece, flat, height, width) {
  const thickest = Math.max(2, Math.floor(Math.min(height, width) * LINE_THICKNESS));
  if (sizeOf(piece) < FLAT_EDGE || piece.thick > 2 * thickest) return false;
  const { long, wide, isFlat } = straightness(piece);
  if (piece.thick > thickest) return isFlat && piece.cut && long >= FLAT_EDGE * wide;
  const [flattest, steepest] = piece.cut ? [FLAT_EDGE, STEEP_EDGE] : [flat, STEEP_LINE];
  if (long >= (isFlat ? flattest : steepest) * wide) return true;
  const strokes = piece.area / piece.thick;
  const isLong = strokes > MOST_STROKES * (piece.bottom - piece.top + piece.right - piece.left);
  return sizeOf(piece) >= FINE_PEN * piece.thick && (strokes < LEAST_STROKES * sizeOf(piece) || isLong);
}

/** Whether a piece of any thickness is a flat line, wider than the others are large: it underlines them. */
function isRuleOf(line, groups) {
  const { long, wide, isFlat } = straightness(line);
  const others = groups.filter((group) => group !== line);
  if (!isFlat || long < FLAT_LINE * wide || !others.length) return false;
  return others.every((other) => sizeOf(line) >= 1.2 * sizeOf(other));
}

/** Whether a thin straight piece is a stroke of a digit with another piece, nearly touching, as dark and thick. */
function goesWith(line, other) {
  const isAlike = Math.max(line.thick, other.thick) <= 1.5 * Math.min(line.thick, other.thick);
  return line.near === other.near && isAlike && 2 * sizeOf(other) >= sizeOf(line) && other.peak >= 0.75 * line.peak;
}

/** Whether a piece is straight, steep, and longer than a 1 is. */
function isSteepLine(piece) {
  const { long, wide, isFlat } = straightness(piece);
  return !isFlat && long >= STEEP_LINE * wide;
}

/** Whether one of two pieces is a flat line below or above the other, apart from it, and wider. */
function isUnderlined(one, other) {
  const [line, above] = one.right - one.left > other.right - other.left ? [one, other] : [other, one];
  const { long, wide, isFlat } = straightness(line);
  if (!isFlat || long < FLAT_LINE * wide || line.left > above.left || line.right < above.right) return false;
  return Math.max(line.top - above.bottom, above.top - line.bottom) > 2 * NEAR * sizeOf(above);
}

function isDash(piece) {
  const { long, wide, isFlat } = straightness(piece);
  return isFlat && long >= DASH * wide && piece.area >= FILLED * long * wide;
}

/** Whether a piece is two straight strokes, about as long, that cross in their middles. */
function isCross(piece) {
  const [tall, wide] = [heightOf(piece), piece.right - piece.left];
  const [down, across] = spreadsOf(piece);
  const isMiddle = down + across <= 2 * MIDDLE && Math.min(tall, wide) >= BAR * Math.max(tall, wide);
  return isMiddle && piece.area <= BARS * piece.thick * (tall + wide - piece.thick);
}

function isArrow(piece) {
  const isWide = piece.right - piece.left >= ARROW * heightOf(piece);
  return isWide && spreadsOf(piece)[0] <= MIDDLE && straightness(piece).isFlat;
}

/** The mean squared distances of a piece's ink from its middle row and column, in heights and widths, squared. */
function spreadsOf(piece) {
  const [x, y, xx, , yy] = piece.sums.map((sum) => sum / piece.area);
  const [tall, wide] = [heightOf(piece), piece.right - piece.left];
  const [column, row] = [(piece.left + piece.right - 1) / 2, (piece.top + piece.bottom - 1) / 2];
  const [down, across] = [yy - 2 * row * y + row * row, xx - 2 * column * x + column * column];
  return [down / (tall * tall), across / (wide * wide)];
}

/** Whether all pieces of a digit are flat and straight. */
const isOfDashes = (digit, pieces) => partsOf(digit, pieces).every(isDash);

/** The pieces of a digit without crumbs; the largest at least. */
function partsOf(digit, pieces) {
  const parts = digit.members.map((number) => pieces[number - 1]);
  const least = Math.min(0.15 * sizeOf(digit), longestSizeOf(parts));
  return parts.filter((part) => sizeOf(part) >= least);
}

/** For each digit, the marks that are not read of which it is the nearest digit. */
function marksOf(pieces, digits) {
  const marks = digits.map(() => []);
  const members = new Set(digits.flatMap((digit) => digit.members));
  const least = Math.max(3, MARK * Math.min(...digits.map(sizeOf)));
  const leastDigit = SMALL_DIGIT * Math.max(...digits.map(sizeOf));
  for (const piece of pieces) {
    if (piece.cut || sizeOf(piece) < least || members.has(piece.members[0])) continue;
    let [nearest, distance] = [-1, Infinity];
    const isUpright = piece.right - piece.left <= 1.5 * heightOf(piece); // not an edge of the paper
    const reach = isUpright && heightOf(piece) >= leastDigit ? FAR : 1;
    for (const [n, digit] of digits.entries()) {
      const gap = gapToMark(piece, digit, reach);
      if (gap !== null && gap < distance) [nearest, distance] = [n, gap];
    }
    if (nearest >= 0 && !digits.some((digit) => liesWithin(piece, digit))) marks[nearest].push(piece);
  }
  return marks;
}

/** The distance of a piece from a digit, if it is a mark beside, below or above it; null if it is not. */
function gapToMark(piece, digit, reach = 1) {
  const size = sizeOf(digit);
  if (sizeOf(piece) < MARK * size || heightOf(piece) > 1.3 * size || darknessOf(piece, digit) < 0.6) return null;
  if (piece.thick < 0.35 * digit.thick || piece.thick > 2.5 * digit.thick) return null;
  const across = Math.max(digit.left - piece.right, piece.left - digit.right, 0);
  const down = Math.max(digit.top - piece.bottom, piece.top - digit.bottom, 0);
  return across <= reach * 0.8 * size && down <= reach * 0.4 * heightOf(digit) ? Math.sqrt(across * across + down * down) : null;
}

/** Whether a digit may be a sign or a line, as is_sign says. */
function isSign(digit, digits, pieces) {
  const tall = heightOf(digit);
  const overlapOf = (other) => Math.min(other.bottom, digit.bottom) - Math.max(other.top, digit.top);
  const near = digits.filter((other) => {
    const gap = Math.max(other.left - digit.right, digit.left - other.right);
    return other !== digit && gap <= Math.max(tall, heightOf(other)) && overlapOf(other) > 0;
  });
  if (near.length && near.every((other) => sizeOf(digit) <= SMALLER * sizeOf(other))) return true;
  if (isSteepLine(digit) || isCross(digit) || isArrow(digit) || isOfDashes(digit, pieces)) return true;
  const beside = near.filter((other) => overlapOf(other) >= BESIDE * Math.min(tall, heightOf(other)));
  if (isSlender(digit)) {
    const wide = beside.filter((other) => !isSlender(other));
    const reaches = (other) =>
      digit.bottom >= other.bottom + BELOW * heightOf(other) && digit.top <= other.top + BELOW * heightOf(other);
    return wide.length > 0 && wide.every(reaches);
  }
  if (!beside.length) return false;
  const parts = partsOf(digit, pieces);
  const stroke = best(parts, sizeOf);
  const sideOf = (part) => {
    const left = part.left + part.right - stroke.left - stroke.right;
    const above = part.top + part.bottom - stroke.top - stroke.bottom;
    return left < 0 && above < 0 ? 1 : Number(left > 0 && above > 0) * -1;
  };
  const sides = parts.map(sideOf);
  const isLong = sizeOf(stroke) >= 0.8 * sizeOf(digit) && isSlender(stroke);
  return isLong && sides.includes(1) && sides.includes(-1);
}

function isSlender(piece) {
  const { long, wide, isFlat } = straightness(piece);
  return !isFlat && long >= SLENDER * wide;
}

/** The length and the width of the rectangle with a piece's moments of inertia, and whether it lies flat. */
function straightness({ area, sums }) {
  const [x, y, xx, xy, yy] = sums.map((sum) => sum / area);
  const [across, both, down] = [xx - x * x, xy - x * y, yy - y * y];
  const middle = (across + down) / 2;
  const apart = Math.sqrt(((across - down) * (across - down)) / 4 + both * both);
  const [long, wide] = [middle + apart, Math.max(0, middle - apart)].map((each) => Math.sqrt(12 * each + 1));
  const isFlat = Math.abs(middle + apart - across) <= FLAT * Math.abs(both) || (both === 0 && across >= down);
  return { long, wide, isFlat };
}

/** How many times as dark as another a piece is. In a shadow, ink and paper differ less, by the same ratio. */
function darknessOf(piece, other) {
  const light = other.bright / piece.bright;
  return (piece.peak / other.peak) * (light > 1 && light <= SHADOW && !piece.cut ? light : 1);
}

function liesWithin(inner, outer) {
  const down = Math.min(inner.bottom, outer.bottom) - Math.max(inner.top, outer.top);
  const across = Math.min(inner.right, outer.right) - Math.max(inner.left, outer.left);
  return down >= 0.9 * (inner.bottom - inner.top) && across >= 0.9 * (inner.right - inner.left);
}
