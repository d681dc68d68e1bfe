// The page, made of its parts. `window.lstm` below is for the console and for tests.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const network = makeNetwork(data.network, new Float32Array(bytesOf($("weights").textContent).buffer));
const { classes } = network.spec;
const { image, step } = data;
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const novelty = makeNovelty(data.novelty, image);

/** What speaks against the prediction for an image of the network's size, [pixels * channels]: a text or null. */
const unlikeTraining = novelty.warning;

const DEMONSTRATION_MILLISECONDS = 300; // for the choice of the example at the beginning

let reading = null; // the last one: {seen, stops, found}
let warning = null; // on what it reads
let pending = null; // the frame in which the drawing will be read
let playNext = false;
let waitingToSpeak = null;

const bars = makeBars($("bars"), classes);
const elements = Object.fromEntries(
  ["scene", "seen", "heads", "lanes", "position", "count", "play", "story"].map((id) => [id, $(id)]),
);
const along = makeReading(elements, network, image, step, showPrediction);
const reader = makeReader(network, found);
const pad = makePad($("pad"), image, changed);
const photos = image.form === "digit" && image.channels === 1 ? readPhotos() : null;

function showPrediction(index) {
  const probabilities = reading?.found[index];
  const end = !reading || index === reading.found.length - 1;
  const label = reading && leaderOf(probabilities);
  $("when").textContent = end ? "Prediction" : `After ${reading.stops[index]} of ${network.spec.steps} ${step.many}`;
  $("prediction").textContent = reading ? classes[label] : "?";
  $("prediction").classList.toggle("long", reading !== null && [...classes[label]].length > 2);
  $("probability").textContent = reading ? percent(probabilities[label]) : "";
  bars.show(probabilities ?? null);
}

/** Announces the prediction to screen readers, once nothing has changed for a moment. */
function speak() {
  clearTimeout(waitingToSpeak);
  waitingToSpeak = setTimeout(() => {
    if (pad.isPassing()) return; // the example at the beginning
    if (!reading) return void ($("spoken").textContent = "The pad is empty.");
    const probabilities = reading.found.at(-1);
    const [first, second] = Array.from(classes.keys()).sort((a, b) => probabilities[b] - probabilities[a]);
    const words = (label) => `${classes[label]}, ${percent(probabilities[label])}`;
    const rest = `${second === undefined ? "" : `; then ${words(second)}`}${warning ? `. Warning: ${warning}` : ""}.`;
    $("spoken").textContent = `Prediction: ${words(first)}${rest}`;
  }, 700);
}

function setWaiting(waits) {
  for (const part of [$("live"), $("reading")]) part.classList.toggle("waits", waits);
}

function found(newReading) {
  reading = newReading;
  setWaiting(false);
  along.show(reading);
  showPrediction(reading ? reading.found.length - 1 : 0);
  warning = reading && !pad.isPassing() ? unlikeTraining(reading.seen) : null;
  $("warning").textContent = warning ? `Warning: ${warning}.` : "";
  speak();
  if (playNext && reading && !calm.matches) along.start();
  playNext = false;
}

function changed() {
  $("invitation").hidden = !(pad.isEmpty() || pad.isPassing());
  $("undo").disabled = !pad.canUndo();
  $("clear").disabled = pad.isEmpty();
  const { caption, photo, number } = pad.shown();
  $("origin").textContent = caption;
  $("slate").hidden = photo !== null;
  $("live").classList.toggle("pictured", photo !== null);
  photos?.show(photo, number);
  if (pending !== null) cancelAnimationFrame(pending);
  pending = requestAnimationFrame(() => {
    pending = null;
    setWaiting(true);
    reader.read(pad.input());
  });
}

function pixelsOf(example) {
  return Float64Array.from(bytesOf(example.pixels), (level) => level / 255);
}

function showExample(example, passing) {
  playNext = !passing; // at the beginning the result is shown, not its replay
  pad.show(pixelsOf(example), { caption: `An example: ${classes[example.label]}`, passing });
}

function readPhotos() {
  const parts = ["photo", "found", "open", "take", "file", "camera"].map((id) => [id, $(id)]);
  $("sources").hidden = $("sorts").hidden = false;
  return makePhotos(Object.fromEntries(parts), network, image, unlikeTraining, (photo, number, clicked) => {
    playNext = clicked;
    const caption = `Digit ${number + 1} of ${photo.digits.length} on ${photo.name}`;
    pad.show(photo.digits[number].pixels, { caption, photo, number });
  });
}

function listExamples() {
  for (const example of data.examples) {
    const wrong = example.label !== example.prediction;
    const button = element("button", "thumb");
    const canvas = button.appendChild(document.createElement("canvas"));
    paint(canvas, pixelsOf(example), image);
    const name = classes[example.label];
    button.type = "button";
    button.title = wrong ? `${name}, predicted as ${classes[example.prediction]}` : name;
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", () => showExample(example, false));
    const item = document.createElement("li");
    item.append(button);
    $(wrong ? "misclassified" : "thumbs").append(item);
  }
  $("examples").hidden = data.examples.length === 0;
  $("right-part").hidden = $("thumbs").children.length === 0;
  $("wrong-part").hidden = $("misclassified").children.length === 0;
}

$("undo").addEventListener("click", pad.undo);
$("clear").addEventListener("click", pad.clear);
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.shiftKey || event.key.toLowerCase() !== "z") return;
  event.preventDefault();
  pad.undo();
});

for (const button of document.querySelectorAll(".enlarge")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.closest("figure").classList.toggle("enlarged"));
  });
}

/** Shows an example until something is drawn: of those that are read in time, that with the most changes. */
function demonstrate() {
  const right = data.examples.filter(({ label, prediction }) => label === prediction);
  if (right.length === 0) return changed();
  const until = performance.now() + DEMONSTRATION_MILLISECONDS;
  const found = right.map((each) => finish(network.along(pixelsOf(each), stopsOf(network.spec)), until) ?? []);
  const turns = found.map((probabilities) => turnsOf(probabilities).length);
  showExample(right[turns.indexOf(Math.max(...turns))], true);
}

listExamples();
demonstrate();

/**
 * show(pixels): shows an image of the network's size on the pad, as `predict` in Python takes it: row after row, the
 * channels of a pixel side by side, from 0 to 1.
 * settled(): resolves with the reading when the network has finished: {seen, stops, found}, or null. A picture that was
 * dropped, pasted or chosen has been read then.
 * network(spec, weights): another network, of `describe` in build.py, its weights in base64: {predict, along}.
 * digit(picture, height, width), findDigits(...), whole(...): see normal_form.js.
 * unlikeTraining(pixels): a warning or null; noveltyOf(pixels): the score behind it, see novelty.js.
 */
window.lstm = Object.freeze({
  show: (pixels) => pad.show(pixels),
  async settled() {
    await photos?.settled();
    while (pending !== null) await new Promise((resolve) => requestAnimationFrame(resolve));
    await reader.settled();
    return reading;
  },
  network(spec, weights) {
    const made = makeNetwork(spec, new Float32Array(bytesOf(weights).buffer));
    const plain = (rows) => rows.map((row) => Array.from(row));
    return {
      predict: (pixels) => Array.from(finish(made.predict(pixels))),
      along: (pixels, stops = stopsOf(spec)) => plain(finish(made.along(pixels, stops))),
    };
  },
  digit,
  findDigits,
  whole,
  unlikeTraining,
  noveltyOf: novelty.score,
});
