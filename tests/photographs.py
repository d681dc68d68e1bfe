"""Digits as they are photographed: drawn strokes on paper, with what makes them hard to find."""

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter


def seven(*, gap=0, height=300, width=400, top=70):
    """The ink of a 7, from 0 to 1, whose stem is a stroke of its own below a `gap` of pixels, and its box."""
    canvas = Image.new("L", (width, height), 0)
    drawing = ImageDraw.Draw(canvas)
    drawing.line([(150, top), (230, top), (215, top + 45)], fill=255, width=9, joint="curve")
    drawing.line([(212, top + 55 + gap), (180, top + 150 + gap)], fill=255, width=9)
    ink = np.asarray(canvas, np.float32) / 255
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    return ink, (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)


def sevens(rng):
    """Of each kind a picture, from 0 to 1, with the box (top, bottom, left, right) of its digit, in pixels."""
    for kind in ("lifted pen", "to the border", "soft shadow"):
        ink, box = seven(gap=4 if kind == "lifted pen" else 0, top=149 if kind == "to the border" else 70)
        picture = np.full(ink.shape, 0.88)
        if kind == "soft shadow":
            picture[90:, 222:330] *= 0.55
            picture = gaussian_filter(picture, 6, mode="nearest")
        picture = picture * (1 - 0.85 * gaussian_filter(ink, 0.7)) * np.linspace(1, 0.85, ink.shape[1])
        yield kind, np.clip(picture + rng.normal(0, 0.008, ink.shape), 0, 1).astype(np.float32), box
