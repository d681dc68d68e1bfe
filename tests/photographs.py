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


def rules(kind, *, tilt=0.03, height=300, width=400):
    """The darkness of ruled lines, from 0 to 1: lined, margin, squared or table."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    down, across = y + tilt * x, x - tilt * y

    def lines(place, gap):
        return np.clip(1.5 - np.abs((place + gap / 2) % gap - gap / 2), 0, 1)

    if kind == "table":
        inside = (down > 40) & (down < 261) & (across > 30) & (across < 361)
        return inside * np.maximum(lines(down - 41, 73), lines(across - 31, 66))
    ink = lines(down, 18 if kind == "squared" else 29) if kind != "margin" else np.zeros_like(y)
    if kind == "squared":
        ink = np.maximum(ink, lines(across, 18))
    return ink if kind in ("lined", "squared") else np.maximum(ink, np.clip(1.5 - np.abs(across - 70), 0, 1))


def lit(darkness, light, rng):
    """A photograph of ink, from 0 to 1, in light that is even, from one side, or has a shadow."""
    y, x = np.mgrid[0 : len(darkness), 0 : darkness.shape[1]] / max(darkness.shape)
    fall = {"even": 0, "side": 0.6 * x, "shadow": 0.45 / (1 + np.exp((0.6 - x - 0.3 * y) / 0.02))}[light]
    picture = gaussian_filter(0.85 * (1 - darkness) * (1 - fall), 0.6)
    return np.clip(picture + rng.normal(0, 0.006, picture.shape), 0, 1).astype(np.float32)


def papers(rng):
    """Photographs of paper without digits, of each kind in each light."""
    for kind in ("lined", "margin", "lined with margin", "squared", "table"):
        for light in ("even", "side", "shadow"):
            yield f"{kind}, {light}", lit(0.35 * rules(kind), light, rng)


def three(digits):
    """The ink of three digits (images) beside each other."""
    ink = np.zeros((300, 400))
    for number, image in enumerate(digits):
        large = np.asarray(Image.fromarray(image).resize((70, 70)), np.float32) / 255
        ink[90:160, 50 + 100 * number :][:, :70] = 0.8 * large
    return ink


def shaded(digits, rng):
    """A photograph of three digits (images) on lined paper, the last of them in a hand's shadow."""
    return lit(np.maximum(three(digits), 0.3 * rules("lined", tilt=0.02)), "shadow", rng)


def dark_shadows(digits, rng):
    """Photographs of three digits (images) in clear shadows: half of the paper, a bar and a spot around the second."""
    y, x = np.mgrid[0:300, 0:400].astype(float)
    bar, spot = np.maximum(np.abs(x - 185) - 60, 70 - y), 70 * np.hypot((x - 185) / 70, (y - 125) / 60) - 70
    for kind, outside, light in (("half", 240 - x - 0.4 * y, 0.35), ("bar", bar, 0.45), ("spot", spot, 0.55)):
        falls = 1 - (1 - light) / (1 + np.exp(outside / 2))
        yield kind, np.float32(lit(three(digits), "even", rng) * falls)


SIGNS = {  # strokes between two digits of a height of 1: points (x, y) of each
    "minus": [[(0, 0.5), (0.35, 0.5)]],
    "point": [[(0, 0.97), (0.01, 0.98)]],
    "colon": [[(0, 0.3), (0.01, 0.31)], [(0, 0.75), (0.01, 0.76)]],
    "comma": [[(0.06, 0.93), (0, 1.13)]],
    "long comma": [[(0.08, 0.9), (0, 1.28)]],
    "equals": [[(0, 0.4), (0.3, 0.4)], [(0, 0.6), (0.3, 0.6)]],
    "slash": [[(0, 1.15), (0.35, 0)]],
    "bracket": [[(0.15, -0.05), (0, 0.3), (0, 0.8), (0.15, 1.17)]],
    "plus": [[(0, 0.5), (0.36, 0.5)], [(0.18, 0.32), (0.18, 0.68)]],
    "large plus": [[(0, 0.5), (0.6, 0.5)], [(0.3, 0.2), (0.3, 0.8)]],
    "percent": [[(0, 0.95), (0.5, 0.05)], [(0, 0.1), (0.15, 0.1), (0.15, 0.3), (0, 0.3), (0, 0.1)],
                [(0.4, 0.7), (0.55, 0.7), (0.55, 0.9), (0.4, 0.9), (0.4, 0.7)]],
}  # fmt: skip


def row(*, sign=None, first=True, close=False, underlined=False, speck=False, size=90):
    """Two sevens with a sign between them, or before the second, on white paper; and the box of what is drawn there.

    The box of a sign that is `close` to the first is a fortieth of its height apart from it, its ink more.
    """
    canvas, strokes = Image.new("L", (500, 220), 0), SIGNS[sign] if sign else []
    drawing = ImageDraw.Draw(canvas)

    def draw(points, left):
        drawing.line([(left + size * x, 60 + size * y) for x, y in points], fill=255, width=8, joint="curve")
        for x, y in points:
            x, y = left + size * x, 60 + size * y
            drawing.ellipse([x - 4, y - 4, x + 4, y + 4], fill=255)

    for left in (90, 310) if first else (310,):
        draw([(0, 0), (0.55, 0), (0.2, 1)], left)
    before = np.asarray(canvas).copy()
    for points in strokes:
        draw(points, 150 if close else 210 if first else 245)
    if underlined:
        draw([(-0.1, 1.2), (3.2, 1.2)], 90)
    if speck:
        drawing.rectangle([470, 190, 473, 193], fill=255)
    ink = np.asarray(canvas)
    rows, columns = (np.flatnonzero((ink != before).any(axis=axis)) for axis in (1, 0))
    box = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) if len(rows) else None
    return (0.9 * (1 - gaussian_filter(ink.astype(np.float32) / 255, 0.7))).astype(np.float32), box


def thin_digits():
    """A 0, 7 and 8 as a paint program draws them, with lines of 1 and 2 pixels, dark and light."""
    for size, pen in ((60, 1), (150, 1), (300, 2)):
        for name, paper in (("0", 0), ("7", 255), ("8", 255)):
            canvas = Image.new("L", (size + 40, size + 40), paper)
            drawing, wide, middle = ImageDraw.Draw(canvas), round(0.7 * size), 20 + size // 2
            if name == "7":
                drawing.line([(20, 20), (20 + wide, 20), (40, 20 + size)], fill=255 - paper, width=pen)
            for top, bottom in {"0": [(20, 20 + size)], "8": [(20, middle), (middle, 20 + size)]}.get(name, []):
                drawing.ellipse([20, top, 20 + wide, bottom], outline=255 - paper, width=pen)
            yield (name, size, pen, paper), np.asarray(canvas) / np.float32(255), size
