// When the network runs: at every move of the pen if it is fast enough, else after the stroke, in slices of time between
// which the page responds. A new input cancels the run of the one before.

const LIVE_WORK = 1e7; // multiplications that a phone makes between two frames
const SLICE_MILLISECONDS = 10;
const MAX_PREFIXES = 28; // of which a bidirectional network reads each anew

/** The steps after which there is a prediction. */
function stopsOf({ steps, bidirectional }) {
  const count = bidirectional && steps > 2 * MAX_PREFIXES ? MAX_PREFIXES : steps;
  return Array.from({ length: count }, (_, n) => Math.round(((n + 1) * steps) / count));
}

/** read(seen, drawing) leads to onFound({seen, stops, found}), or for an empty input, seen = null, to onFound(null). */
function makeReader(network, onFound) {
  const stops = stopsOf(network.spec);
  const live = network.work(stops) <= LIVE_WORK;
  let latest = 0;
  let done = Promise.resolve();

  async function inSlices(seen, number) {
    const generator = network.along(seen, stops);
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve));
      const until = performance.now() + SLICE_MILLISECONDS;
      while (performance.now() < until) {
        if (number !== latest) return;
        const next = generator.next();
        if (next.done) return onFound({ seen, stops, found: next.value });
      }
    }
  }

  /** Whether the result is there at once: false if it comes later. */
  function read(seen, drawing) {
    const number = ++latest;
    if (seen === null) onFound(null);
    else if (live) onFound({ seen, stops, found: finish(network.along(seen, stops)) });
    else if (!drawing) done = inSlices(seen, number);
    return seen === null || live;
  }

  /** Resolves when the network does not run. */
  async function settled() {
    let waited;
    do await (waited = done);
    while (waited !== done);
  }
  return { read, settled, live };
}
