// The pixels of the network's images on canvases. An image is {height, width, channels}, its pixels numbers from 0 to
// 1, row after row, the channels of a pixel side by side.

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

/** The bytes that base64 text stands for. */
function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let n = 0; n < binary.length; n++) bytes[n] = binary.charCodeAt(n);
  return bytes;
}
