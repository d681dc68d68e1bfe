// Runs the network in slices of time, between which the page responds. A new input cancels the run of the one before.

const SLICE_MILLISECONDS = 10;
const MAX_PREFIXES = 28; // of which a bidirectional network reads each anew

/** The steps after which there is a prediction. */
function stopsOf({ steps, bidirectional }) {
  const count = bidirectional && steps > 2 * MAX_PREFIXES ? MAX_PREFIXES : steps;
  return Array.from({ length: count }, (_, n) => Math.round(((n + 1) * steps) / count));
}

/** read(seen) leads to onFound({seen, stops, found}), or for an empty input, seen = null, to onFound(null). */
function makeReader(network, onFound) {
  const stops = stopsOf(network.spec);
  let latest = 0;
  let done = Promise.resolve();

  async function run(seen) {
    const number = ++latest;
    if (seen === null) return onFound(null);
    const generator = network.along(seen, stops);
    while (number === latest) {
      const found = finish(generator, performance.now() + SLICE_MILLISECONDS);
      if (found) return onFound({ seen, stops, found });
      await new Promise((resolve) => setTimeout(resolve));
    }
  }

  const read = (seen) => void (done = run(seen)); // up to the end of the first slice, at once

  /** Resolves when the network does not run. */
  async function settled() {
    let waited;
    do await (waited = done);
    while (waited !== done);
  }
  return { read, settled };
}
