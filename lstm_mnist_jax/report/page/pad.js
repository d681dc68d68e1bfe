// The drawing pad: strokes of a mouse, finger, pen or keyboard, on black or on an image; and the network's input made of
// them. An image is {height, width, channels}; its pixels are numbers from 0 to 1, row after row, the channels of a pixel
// side by side.

const PEN = 0.095; // the width of a stroke as a fraction of the pad's smaller side: about that of MNIST
const INK_SIDE = 256; // at most so many pixels has the longer side of the picture that is brought to the normal form
const KEY_STEP = 1 / 28; // of the pad's smaller side, for a press of an arrow key
const PASSING_OPACITY = 0.45;
const ARROWS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

/** Paints pixels on a canvas, which becomes as large as the image; tint(pixel, [r, g, b]) may change the colours. */
function paint(canvas, pixels, { height, width, channels }, tint = (_, color) => color) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const data = context.createImageData(width, height);
  for (let pixel = 0; pixel < height * width; pixel++) {
    const level = (channel) => 255 * (pixels ? pixels[pixel * channels + Math.min(channel, channels - 1)] : 0);
    data.data.set(tint(pixel, [level(0), level(1), level(2)]), 4 * pixel);
    data.data[4 * pixel + 3] = 255;
  }
  context.putImageData(data, 0, 0);
}

const EMPTY = Object.freeze({ picture: null, strokes: [], passing: false, caption: "", photo: null, number: 0 });

/**
 * A pad on a canvas.
 *
 * image: {height, width, channels, form, isLight} of the network's images; isLight: they are dark on light.
 * onChange(): called after every change.
 *
 * A state is {picture: pixels or null, strokes, passing, caption, photo, number}; the first stroke replaces a passing
 * picture. A picture may be digit `number` of a photo (photo.js). States are never changed, for undo.
 */
function makePad(canvas, image, onChange) {
  const { height, width, channels, form, isLight } = image;
  const states = [EMPTY];
  const cursor = { x: width / 2, y: height / 2, down: false };
  const scale = Math.max(1, Math.floor(INK_SIDE / Math.max(height, width)));
  const sharpness = 3 * scale; // pixels of the visible canvas for each pixel of an image
  const inkCanvas = document.createElement("canvas");
  [inkCanvas.width, inkCanvas.height] = [width * scale, height * scale];
  const inkContext = inkCanvas.getContext("2d", { willReadFrequently: true });
  const small = document.createElement("canvas");
  let stroke = null; // the unfinished one
  let pointer = null;
  canvas.width = width * sharpness;
  canvas.height = height * sharpness;

  const current = () => states.at(-1);

  function shown() {
    const state = current();
    if (stroke === null) return state;
    return { ...EMPTY, picture: state.passing ? null : state.picture, strokes: [...state.strokes, stroke] };
  }

  function push(state) {
    states.push(state);
    render();
    onChange();
  }

  function drawStrokes(context, strokes, factor) {
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = "#fff";
    context.lineWidth = PEN * Math.min(height, width) * factor;
    for (const points of strokes) {
      context.beginPath();
      context.moveTo(points[0].x * factor, points[0].y * factor);
      for (let n = 1; n < points.length - 1; n++) {
        const [here, next] = [points[n], points[n + 1]]; // a curve from midpoint to midpoint
        context.quadraticCurveTo(
          here.x * factor, here.y * factor, ((here.x + next.x) / 2) * factor, ((here.y + next.y) / 2) * factor,
        );
      }
      context.lineTo(points.at(-1).x * factor, points.at(-1).y * factor);
      context.stroke();
    }
  }

  function render() {
    const { picture, strokes, passing } = shown();
    const context = canvas.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (picture) {
      paint(small, picture, image);
      context.imageSmoothingEnabled = false;
      context.globalAlpha = passing ? PASSING_OPACITY : 1;
      context.drawImage(small, 0, 0, canvas.width, canvas.height);
      context.globalAlpha = 1;
    }
    drawStrokes(context, strokes, sharpness);
    if (document.activeElement !== canvas || !canvas.matches(":focus-visible")) return;
    context.strokeStyle = cursor.down ? "#e69f00" : "#56b4e9";
    context.lineWidth = sharpness / 3;
    context.beginPath();
    context.arc(cursor.x * sharpness, cursor.y * sharpness, 1.2 * sharpness, 0, 2 * Math.PI);
    context.stroke();
  }

  /** The strokes as a picture: white on black, of one channel. */
  function inkOf(strokes) {
    inkContext.fillStyle = "#000";
    inkContext.fillRect(0, 0, inkCanvas.width, inkCanvas.height);
    drawStrokes(inkContext, strokes, scale);
    const { data } = inkContext.getImageData(0, 0, inkCanvas.width, inkCanvas.height);
    const levels = new Float64Array(data.length / 4);
    for (let n = 0; n < levels.length; n++) levels[n] = data[4 * n] / 255;
    return { height: inkCanvas.height, width: inkCanvas.width, levels };
  }

  /** The network's input, [pixels * channels]; null if the pad is empty. */
  function input() {
    const { picture, strokes } = shown();
    if (strokes.length === 0) return picture;
    const ink = inkOf(strokes);
    const levels = picture === null && form === "digit" ? drawnDigit(ink, height, width) : whole(ink, height, width);
    if (levels === null) return picture;
    const pixels = new Float64Array(height * width * channels);
    for (let n = 0; n < pixels.length; n++) {
      const level = levels[Math.floor(n / channels)];
      const before = picture ? picture[n] : Number(isLight);
      pixels[n] = isLight ? before * (1 - level) : before + (1 - before) * level;
    }
    return pixels;
  }

  function begin(point) {
    stroke = [point];
    extend({ x: point.x + 0.01, y: point.y }); // a line of length 0 is not drawn
  }

  function extend(point) {
    const last = stroke.at(-1);
    if (stroke.length > 1 && Math.hypot(point.x - last.x, point.y - last.y) < width / 500) return;
    stroke.push(point);
    render();
    onChange();
  }

  function end() {
    if (stroke === null) return;
    const state = shown();
    stroke = null;
    push(state);
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * width,
      y: ((event.clientY - box.top) / box.height) * height,
    };
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return;
    end(); // of the keyboard
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    begin(place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) extend(place(each));
  });
  canvas.addEventListener("pointerup", (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    end();
  });
  canvas.addEventListener("pointercancel", (event) => {
    if (event.pointerId !== pointer) return;
    pointer = stroke = null; // the system took the touch as a gesture
    render();
    onChange();
  });

  function move([dx, dy], draws) {
    if (draws && stroke === null) begin({ x: cursor.x, y: cursor.y });
    if (!draws) end();
    const step = KEY_STEP * Math.min(height, width);
    cursor.x = Math.min(width, Math.max(0, cursor.x + dx * step));
    cursor.y = Math.min(height, Math.max(0, cursor.y + dy * step));
    if (draws) extend({ x: cursor.x, y: cursor.y });
  }

  function lift() {
    cursor.down = false;
    end();
    render();
  }

  canvas.addEventListener("keydown", (event) => {
    if (pointer !== null || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in ARROWS) move(ARROWS[event.key], cursor.down || event.shiftKey);
    else if (event.key === " " && cursor.down) lift();
    else if (event.key === " ") {
      cursor.down = true;
      if (stroke === null) begin({ x: cursor.x, y: cursor.y });
    } else if (event.key === "Delete" || event.key === "Backspace") clear();
    else return;
    event.preventDefault();
    render();
  });
  canvas.addEventListener("keyup", (event) => {
    if (event.key === "Shift" && !cursor.down && pointer === null) end();
  });
  canvas.addEventListener("focus", render);
  canvas.addEventListener("blur", () => pointer === null && lift());

  function drop() {
    pointer = stroke = null; // the pointer draws nothing more until it is lifted
    cursor.down = false;
  }

  function undo() {
    if (stroke !== null) drop();
    else if (states.length > 1) states.pop();
    render();
    onChange();
  }

  function clear() {
    drop();
    if (!isEmpty()) return push(EMPTY);
    render();
    onChange();
  }

  /** Shows an image of the network's size, [pixels * channels] from 0 to 1, which is the input as it is. */
  function show(pixels, { passing = false, photo = null, ...others } = {}) {
    drop();
    if (passing || (photo && photo === current().photo)) states.pop(); // it is not undone
    push({ ...EMPTY, picture: Float64Array.from(pixels), passing, photo, ...others });
  }

  const isEmpty = () => shown().picture === null && shown().strokes.length === 0;
  const canUndo = () => stroke !== null || states.length > 1;
  const isPassing = () => shown().passing;
  render();
  return { undo, clear, show, input, isEmpty, isPassing, canUndo, shown };
}
