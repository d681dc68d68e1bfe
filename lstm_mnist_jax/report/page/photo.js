// A picture on the page: opened, taken, dropped or pasted. Its digits are found and read, and boxes are drawn over it.
//
// A photo is {canvas, name, digits, note}; of each digit {pixels, box, marks, label, probability, warning}.

const PHOTO_SIDE = 1000; // larger pictures are reduced to so many pixels of their longer side
const SMALL_PHOTO = 200; // the pixels of smaller ones are shown as squares
const HEIC = /^ftyp(hei|hev|mif1|msf1)/;

/** A picture of a file on a canvas, upright, which is at most PHOTO_SIDE wide and high. */
async function canvasOf(file) {
  const bitmap = await createImageBitmap(file); // rotated as the EXIF data of the file require
  const scale = Math.min(1, PHOTO_SIDE / longestOf(bitmap));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height].map((n) => Math.max(1, Math.round(scale * n)));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

/** The picture on a canvas in grey. Its transparent parts become white, or black where the opaque ones are light. */
function greyOf(canvas) {
  const { height, width } = canvas;
  const context = canvas.getContext("2d");
  let { data } = context.getImageData(0, 0, width, height);
  let [opacity, brightness] = [0, 0];
  for (let at = 0; at < data.length; at += 4) {
    opacity += data[at + 3];
    brightness += (data[at + 3] * (data[at] + data[at + 1] + data[at + 2])) / 765;
  }
  if (opacity < 255 * height * width) {
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = brightness > 0.5 * opacity ? "#000" : "#fff";
    context.fillRect(0, 0, width, height);
    ({ data } = context.getImageData(0, 0, width, height));
  }
  const levels = new Float32Array(height * width);
  for (let n = 0, at = 0; n < levels.length; n++, at += 4) {
    levels[n] = (0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2]) / 255; // the luma of ITU-R BT.601
  }
  return { height, width, levels };
}

/** Why the picture of a file cannot be shown, and what to do. */
async function reasonFor(file, name) {
  if (file.size === 0) return `${name} is empty. Choose another file.`;
  const start = new TextDecoder("latin1").decode(await file.slice(4, 12).arrayBuffer());
  if (!HEIC.test(start)) return `${name} is no picture that this browser can decode. Choose a PNG, JPEG or WebP file.`;
  return `${name} is a HEIC picture, which this browser cannot decode. Save it as JPEG, or paste a screenshot of it.`;
}

/** Why no digit is found on a picture, and what to do. */
function reasonWithout({ levels }, name) {
  const isFlat = peakOf(levels) - levels.reduce((a, b) => Math.min(a, b)) < LEAST_CONTRAST;
  const lines = "or only straight lines, as of ruled paper, a minus or =";
  const without = `No digit can be seen on ${name}. No part of it differs from its surroundings as strokes do, ${lines}`;
  const why = isFlat ? `Nothing can be seen on ${name}. It is of one colour, or nearly so` : without;
  return `${why}. Choose a picture with dark digits on light paper, or light ones on dark.`;
}

/** A probability in whole percent. */
function roundly(share) {
  if (share >= 0.995) return "> 99 %";
  return share < 0.005 ? "< 1 %" : `${Math.round(100 * share)} %`;
}

/**
 * Reads pictures and shows them.
 *
 * elements: photo (with a canvas and a list of boxes), found (a text), open and take (buttons), file and camera (inputs).
 * warningOf(pixels, isSign): why a digit's input is doubtful, a text without a full stop; null if it is not.
 * onChoose(photo, number, clicked): a digit is to be the network's input; the first one where none was clicked.
 */
function makePhotos(elements, network, image, warningOf, onChoose) {
  const { classes } = network.spec;
  const frame = elements.photo.querySelector(".photo");
  const list = frame.querySelector("ol");
  let latest = 0; // the number of the last file
  let shown = null;
  let done = Promise.resolve();

  function say(text, head = "") {
    if (elements.found.textContent === head + text) return; // screen readers get it once
    elements.found.replaceChildren(...(head ? [element("strong", "", head)] : []), text);
    elements.found.classList.toggle("notice", text !== "" && !head);
  }

  /** The probabilities for an input, computed in slices of time; null where there is a newer file. */
  async function classified(pixels, number) {
    const generator = network.predict(pixels);
    while (number === latest) {
      const found = finish(generator, performance.now() + SLICE_MILLISECONDS);
      if (found) return found;
      await new Promise((resolve) => setTimeout(resolve));
    }
    return null;
  }

  /** A photo; a text where the file holds none, and null where there is a newer file. */
  async function photoOf(file, number) {
    const name = file.name || "The picture";
    const canvas = await canvasOf(file).catch(() => null);
    if (canvas === null) return reasonFor(file, name);
    const picture = greyOf(canvas);
    const digits = findDigits(picture, image.height, image.width);
    if (!digits.length) return reasonWithout(picture, name);
    for (const digit of digits) {
      if (image.isLight) digit.pixels = digit.pixels.map((level) => 1 - level);
      const probabilities = await classified(digit.pixels, number);
      if (probabilities === null) return null;
      digit.label = leaderOf(probabilities);
      digit.probability = probabilities[digit.label];
      const isSign = digit.warning?.includes(SIGN);
      digit.warning = [warningOf(digit.pixels, isSign), digit.warning].filter(Boolean).join("; ") || null;
    }
    return { canvas, name, digits };
  }

  /** Reads one of the files that were dropped, pasted or chosen: the first that is a picture. */
  async function read(files) {
    const number = ++latest;
    const file = files.find(({ type }) => type.startsWith("image/")) ?? files[0];
    say(`Reading ${file.name} …`);
    const photo = await photoOf(file, number);
    if (number !== latest) return;
    if (typeof photo === "string") return say(photo);
    photo.note = files.length > 1 ? ` This is ${photo.name}; of ${files.length} files, one is read.` : "";
    onChoose(photo, 0, false);
  }

  /** Says "3 digits: 7 2? 1", and the warnings. */
  function sum({ digits, note }) {
    const labels = digits.map(({ label, warning }) => classes[label] + (warning ? "?" : "")).join(" ");
    const doubts = new Map(); // the numbers of digits by their warnings
    for (const [n, { warning }] of digits.entries()) {
      if (warning) doubts.set(warning, [...(doubts.get(warning) ?? []), n + 1]);
    }
    const warnings = Array.from(doubts, ([warning, numbers]) => ` Digit ${numbers.join(", ")}: ${warning}.`).join("");
    const end = warnings || note ? "." : "";
    say(warnings + note, `${digits.length} ${digits.length === 1 ? "digit" : "digits"}: ${labels}${end}`);
  }

  /** Makes the labels small, where they would hide other digits. */
  function arrange() {
    frame.classList.remove("crowded");
    const places = [...list.querySelectorAll("button")].map((button) =>
      [button, ...button.children].map((each) => each.getBoundingClientRect()),
    );
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const isCrowded = places.some(([, ...labels], n) =>
      places.some((others, m) => m !== n && labels.some((label) => others.some((other) => meet(label, other)))),
    );
    frame.classList.toggle("crowded", isCrowded);
  }

  /** Places a box by its fractions of the picture. */
  const placeAt = (box, [top, left, tall, wide]) => {
    const places = { x: left + wide / 2, y: top + tall / 2, wide, tall };
    for (const [name, value] of Object.entries(places)) box.style.setProperty(`--${name}`, value);
  };

  function boxOf(photo, number) {
    const { box, label, probability, warning } = photo.digits[number];
    const button = element("button", warning ? "box doubtful" : "box");
    const words = `${classes[label]}, ${percent(probability)}${warning ? `; ${warning}` : ""}`;
    button.type = "button";
    button.title = words;
    button.setAttribute("aria-label", `Digit ${number + 1} of ${photo.digits.length}: ${words}`);
    placeAt(button, box);
    button.append(element("span", "name", classes[label] + (warning ? "?" : "")));
    button.append(element("span", "share", roundly(probability)));
    button.addEventListener("click", () => onChoose(photo, number, true));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }

  /** The place on the picture of a mark that is not read. */
  function markOf(box) {
    const mark = element("div", "mark");
    placeAt(mark, box);
    mark.setAttribute("aria-hidden", "true"); // it is in the warning of its digit
    return mark;
  }

  /** Shows a photo and which of its digits is the network's input; null hides it. */
  function show(photo, number) {
    if (photo === null || photo !== shown) latest++; // a file that is still being read is not shown any more
    if (photo) sum(photo);
    else say("");
    elements.photo.hidden = photo === null;
    if (photo && photo !== shown) {
      const { canvas, name, digits } = photo;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", name);
      frame.querySelector("canvas").replaceWith(canvas);
      frame.style.setProperty("--shape", canvas.width / canvas.height);
      frame.classList.toggle("small", longestOf(canvas) < SMALL_PHOTO);
      list.replaceChildren(...digits.map((_, n) => boxOf(photo, n)));
      for (const mark of frame.querySelectorAll(".mark")) mark.remove();
      frame.append(...digits.flatMap(({ marks }) => marks.map(markOf)));
      arrange();
    }
    shown = photo;
    for (const [n, item] of photo ? [...list.children].entries() : []) {
      item.firstChild.setAttribute("aria-pressed", n === number);
    }
  }

  new ResizeObserver(() => shown && arrange()).observe(frame);
  const take = (files, otherwise) => (files.length ? void (done = read([...files])) : say(otherwise));

  for (const [button, input] of [[elements.open, elements.file], [elements.take, elements.camera]]) {
    button.addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      take(input.files, "No file was chosen.");
      input.value = ""; // so that the same file can be chosen again
    });
  }
  const mark = (isOver) => document.body.classList.toggle("drops", isOver);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || mark(false)); // the window is left
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(false);
    take(event.dataTransfer.files, "What was dropped is no file. Save the picture, and drop its file here.");
  });
  document.addEventListener("paste", ({ clipboardData }) => {
    take(clipboardData.files, "The clipboard holds no picture. Copy a picture or its file, and paste it here.");
  });

  /** Resolves when no file is being read. */
  async function settled() {
    let waited;
    do await (waited = done);
    while (waited !== done);
  }
  return { show, settled };
}
