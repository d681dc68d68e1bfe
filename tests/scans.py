"""Digits as scanners give them."""

import numpy as np
from PIL import Image


def scan(image, size, rng, noise=0.02):
    """A digit as a scanner gives it: of another size, anywhere on the paper, in greys, not quite clean."""
    pixels = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    pixels = np.pad(pixels, rng.integers(0, size, (2, 2)))
    contrast = rng.uniform(0.5, 1)
    pixels = rng.uniform(0, 1 - contrast) + contrast * pixels + rng.normal(0, noise, pixels.shape)
    return np.round(np.clip(1 - pixels if rng.random() < 0.5 else pixels, 0, 1) * 255).astype(np.uint8)
