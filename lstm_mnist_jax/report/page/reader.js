// When the network reads: at once where that is quick enough to go along with the pen, else once the stroke is
// finished, a slice at a time, so that the page stays alive. What is asked later makes what was asked before void.

const LIVE_WORK = 1e7; // multiplications that fit between two frames of a phone
const SLICE_MILLISECONDS = 10;
const MOST_BEGINNINGS = 28; // that a network of both directions reads anew

/** The steps after which the network is asked. */
function stopsOf({ steps, bidirectional }) {
  const count = bidirectional && steps > 2 * MOST_BEGINNINGS ? MOST_BEGINNINGS : steps;
  return Array.from({ length: count }, (_, n) => Math.round(((n + 1) * steps) / count));
}

/** ask(seen, drawing) leads to onFound({seen, stops, found}), or to onFound(null) where nothing is seen. */
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

  /** Whether it has been asked at once: false where the answer comes later. */
  function ask(seen, drawing) {
    const number = ++latest;
    if (seen === null) onFound(null);
    else if (live) onFound({ seen, stops, found: finish(network.along(seen, stops)) });
    else if (!drawing) done = inSlices(seen, number);
    return seen === null || live;
  }

  /** Resolves when nothing is being read. */
  async function settled() {
    let waited;
    do await (waited = done);
    while (waited !== done);
  }
  return { ask, settled, live };
}
