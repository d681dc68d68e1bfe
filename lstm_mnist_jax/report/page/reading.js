// The prediction step by step: the part of the input that has been read, and a lane for each class, as wide as it is
// probable. Time runs down beside the image, or if columns are read, to the right below it.

const MOST_LANES = 10;
const PLAY_MILLISECONDS = 3600; // from the first step to the last
const HEAD_PIXELS = 9; // the width of a letter; names that are wider than their lanes are turned

/** The most probable class and where it changes: [{label, from}]. */
function turnsOf(found) {
  const turns = [];
  for (const [from, probabilities] of found.entries()) {
    const label = leaderOf(probabilities);
    if (turns.at(-1)?.label !== label) turns.push({ label, from });
  }
  return turns;
}

/** The predictions in words. */
function storyOf(found, stops, classes, step) {
  const turns = turnsOf(found);
  const changes = turns.length - 1;
  if (changes === 0) return `The prediction is ${classes[turns[0].label]} from the first ${step.one} to the last.`;
  const last = turns.slice(-6);
  const first = last.length < turns.length ? `… ${classes[last[0].label]}` : classes[last[0].label];
  const rest = last.slice(1).map(({ label, from }) => `from ${step.one} ${stops[from]} on ${classes[label]}`);
  return `The prediction changes ${changes === 1 ? "once" : `${changes} times`}: ${[first, ...rest].join(", ")}.`;
}

/**
 * elements: scene, seen (canvas), heads, lanes (with an svg), position (slider), count, play, story.
 * network: of makeNetwork; image, step: of the page's data; onPosition(index): called when stops[index] is shown.
 */
function makeReading(elements, network, image, step, onPosition) {
  const { order, classes, steps } = network.spec;
  const { scene, position, play } = elements;
  const svg = elements.lanes.querySelector("svg");
  const cursors = scene.querySelectorAll(".cursor");
  const aligned = order === null || step.sideways;
  const readAt = new Int32Array(image.height * image.width); // the step at which a pixel is read, from 1
  const pixelsPerStep = readAt.length / steps;
  for (let n = 0; n < readAt.length; n++) readAt[order ? order[n] : n] = Math.floor(n / pixelsPerStep) + 1;
  let reading = null; // {seen, stops, found}
  let index = 0;
  let frame = null;
  scene.classList.toggle("sideways", step.sideways);
  scene.style.setProperty("--aspect", image.width / image.height);

  function lanesOf() {
    const labels = Array.from(classes.keys());
    if (classes.length <= MANY || reading === null) return labels.slice(0, Math.max(MOST_LANES, MANY));
    const peaks = labels.map((label) => reading.found.reduce((most, each) => Math.max(most, each[label]), 0));
    const best = labels.sort((a, b) => peaks[b] - peaks[a]).slice(0, MOST_LANES);
    return best.sort((a, b) => a - b);
  }

  /** A box from one time to another, across a lane; time runs down or sideways. */
  function box(from, to, across0, across1) {
    const [x0, x1, y0, y1] = step.sideways ? [from, to, across0, across1] : [across0, across1, from, to];
    return `M${x0.toFixed(2)} ${y0.toFixed(2)}H${x1.toFixed(2)}V${y1.toFixed(2)}H${x0.toFixed(2)}Z`;
  }

  function drawLanes() {
    const labels = lanesOf();
    const [along, across] = [steps, labels.length * 100];
    svg.setAttribute("viewBox", step.sideways ? `0 0 ${along} ${across}` : `0 0 ${across} ${along}`);
    const longest = Math.max(...labels.map((label) => [...classes[label]].length));
    elements.heads.replaceChildren(...labels.map((label) => element("span", "head", classes[label])));
    scene.style.setProperty("--lanes", labels.length);
    const room = elements.heads.clientWidth / labels.length;
    elements.heads.classList.toggle("upright", !step.sideways && longest * HEAD_PIXELS > room);
    const paths = { middle: "", others: "", leading: "" };
    for (const [lane, label] of labels.entries()) {
      const middle = 100 * lane + 50;
      paths.middle += step.sideways ? `M0 ${middle}H${along}` : `M${middle} 0V${along}`;
      for (const [n, probabilities] of (reading?.found ?? []).entries()) {
        const half = 46 * probabilities[label];
        if (half < 0.1) continue;
        const piece = box(n ? reading.stops[n - 1] : 0, reading.stops[n], middle - half, middle + half);
        paths[label === reading.leaders[n] ? "leading" : "others"] += piece;
      }
    }
    for (const [name, path] of Object.entries(paths)) svg.querySelector(`.${name}`).setAttribute("d", path);
    elements.heads.dataset.labels = labels.join(" ");
  }

  function drawPosition() {
    const read = reading ? reading.stops[index] : 0;
    const end = reading === null || index === reading.stops.length - 1;
    paint(elements.seen, reading?.seen, image, (pixel, color) => {
      return reading === null || readAt[pixel] <= read ? color : color.map((level) => 44 + 0.3 * level);
    });
    const veil = svg.querySelector(".veil");
    const [x, y] = step.sideways ? [read, 0] : [0, read];
    const { width, height } = svg.viewBox.baseVal;
    for (const [name, value] of Object.entries({ x, y, width: width - x, height: height - y })) {
      veil.setAttribute(name, reading ? Math.max(0, value) : 0);
    }
    for (const cursor of cursors) {
      cursor.hidden = end || (cursor.parentElement.classList.contains("seen") && !aligned);
      cursor.style[step.sideways ? "left" : "top"] = `${(100 * read) / steps}%`;
    }
    const labels = elements.heads.dataset.labels.split(" ").map(Number);
    for (const [n, head] of [...elements.heads.children].entries()) {
      head.classList.toggle("leads", reading !== null && labels[n] === reading.leaders[index]);
    }
    position.value = index + 1;
    elements.count.textContent = reading ? `${read} of ${steps} ${step.many}` : "";
    if (reading) {
      const label = reading.leaders[index];
      const share = percent(reading.found[index][label]);
      position.setAttribute("aria-valuetext", `${read} of ${steps} ${step.many}: ${classes[label]}, ${share}`);
    } else position.removeAttribute("aria-valuetext");
  }

  function moveTo(wanted) {
    if (reading === null) return;
    index = Math.min(reading.stops.length - 1, Math.max(0, wanted));
    drawPosition();
    onPosition(index);
  }

  function pause() {
    if (frame !== null) cancelAnimationFrame(frame);
    frame = null;
    play.textContent = "Play";
  }

  function start() {
    pause();
    if (reading === null) return;
    const count = reading.stops.length;
    const from = index === count - 1 ? 0 : index;
    const perStop = PLAY_MILLISECONDS / count;
    let began = null;
    play.textContent = "Pause";
    const tick = (now) => {
      began ??= now;
      const next = from + Math.floor((now - began) / perStop);
      if (next !== index) moveTo(next);
      frame = requestAnimationFrame(tick);
      if (next >= count - 1) pause();
    };
    moveTo(from);
    frame = requestAnimationFrame(tick);
  }

  /** Shows the end of a reading {seen, stops, found}; null is an empty pad. */
  function show(shown) {
    pause();
    reading = shown && { ...shown, leaders: shown.found.map(leaderOf) };
    index = reading ? reading.stops.length - 1 : 0;
    position.disabled = play.disabled = reading === null;
    position.max = reading ? reading.stops.length : 1;
    elements.story.textContent = reading
      ? storyOf(reading.found, reading.stops, classes, step)
      : "The pad is empty.";
    drawLanes();
    drawPosition();
  }

  function scrub(event) {
    if (reading === null) return;
    const area = elements.lanes.getBoundingClientRect();
    const share = step.sideways
      ? (event.clientX - area.left) / area.width
      : (event.clientY - area.top) / area.height;
    const after = reading.stops.findIndex((stop) => stop >= share * steps);
    pause();
    moveTo(after < 0 ? reading.stops.length - 1 : after);
  }
  for (const place of [elements.lanes, aligned ? elements.seen : null].filter(Boolean)) {
    place.addEventListener("click", scrub);
    place.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" && event.buttons === 1) scrub(event);
    });
  }
  position.addEventListener("input", () => {
    pause();
    moveTo(position.valueAsNumber - 1);
  });
  play.addEventListener("click", () => (frame === null ? start() : pause()));

  show(null);
  return { show, start };
}
