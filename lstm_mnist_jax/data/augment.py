"""Data augmentation on the device, each image by its own key. Traceable by JAX."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from lstm_mnist_jax.config import AugmentationConfig

Images = Float[Array, "batch height width *channels"]

SMOOTHNESS = 0.6
"""Standard deviation of the bumps that make up a smooth displacement, in units of the distance between them."""


def augment(
    images: UInt8[Array | np.ndarray, "batch height width *channels"],
    keys: Key[Array, " batch"],
    config: AugmentationConfig,
) -> Images:
    """Augments images, and scales them to 0 to 1.

    The random numbers of an image depend on its key alone. Pixels from outside the image are 0.

    Args:
      images: with a background of 0, as MNIST has.
      keys: one for each image.
      config: the augmentations and their strengths.
    """
    warp_keys, erase_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    shape = images.shape[1:3]
    if config.moves_pixels:
        floats = _sample(jnp.asarray(images), jax.vmap(lambda key: _sources(key, shape, config))(warp_keys))
    else:
        floats = jnp.asarray(images, jnp.float32) * (1 / 255)
    if config.erasing_probability:
        kept = jax.vmap(lambda key: _kept(key, shape, config))(erase_keys)
        floats = jnp.where(kept.reshape(*kept.shape, *[1] * (floats.ndim - 3)), floats, 0)
    return floats


def mix(
    images: Images,
    labels: Float[Array, "batch classes"],
    other_images: Images,
    other_labels: Float[Array, "batch classes"],
    keys: Key[Array, " batch"],
    config: AugmentationConfig,
) -> tuple[Images, Float[Array, "batch classes"]]:
    """Mixup (Zhang et al. 2018): each image and its label mixed with another one, which has the smaller weight."""
    share = jax.vmap(lambda key: jax.random.beta(key, config.mixup_alpha, config.mixup_alpha))(keys)
    share = jnp.minimum(share, 1 - share)

    def mixed(own: Array, other: Array) -> Array:
        weight = share.reshape(-1, *[1] * (own.ndim - 1))
        return own + weight * (other - own)

    return mixed(images, other_images), mixed(labels, other_labels)


def _sources(key: Array, shape: tuple[int, ...], config: AugmentationConfig) -> Array:
    """The row and the column of the original from which each pixel is taken: [2, height * width]."""
    affine_key, elastic_key = jax.random.split(key)
    turn, stretch_y, stretch_x, slant, move_y, move_x, side = jax.random.uniform(affine_key, (7,), minval=-1.0)
    angle = turn * math.radians(config.rotation_degrees)
    log_scale = math.log1p(config.scaling)
    flip = jnp.where(side < 2 * config.flip_probability - 1, -1.0, 1.0)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    turned_y, turned_x = jnp.stack([cos, sin]), jnp.stack([-sin, cos])
    turned_x -= slant * config.shear * turned_y
    to_rows = turned_y * jnp.exp(-stretch_y * log_scale)
    to_columns = turned_x * jnp.exp(-stretch_x * log_scale) * flip
    centre = np.array([(size - 1) / 2 for size in shape], np.float32)
    matrix = jnp.stack([to_rows, to_columns])
    offset = centre - matrix @ (centre + config.shift_pixels * jnp.stack([move_y, move_x]))
    # As a matrix product, which XLA computes once. Sums would be fused into all of their users and computed again.
    pixels = np.stack([*np.indices(shape).reshape(2, -1), np.ones(math.prod(shape))]).astype(np.float32)
    sources = jnp.matmul(jnp.column_stack([matrix, offset]), pixels, precision="highest")
    if config.elastic_pixels:
        along_y, along_x = (_bumps(size, config.elastic_spacing) for size in shape)
        drawn = jax.random.normal(elastic_key, (2, along_y.shape[1], along_x.shape[1]))
        sources += config.elastic_pixels * jnp.einsum("yi,aij,xj->ayx", along_y, drawn, along_x).reshape(sources.shape)
    return sources


def _bumps(size: int, spacing: float) -> np.ndarray:
    """[size, bumps]: smooth functions whose sum, weighted by independent numbers of variance 1, has variance 1."""
    count = math.ceil(size / spacing) + 3
    centres = (np.arange(count) - (count - 1) / 2) * spacing + (size - 1) / 2
    bumps = np.exp(-0.5 * ((np.arange(size)[:, None] - centres) / (SMOOTHNESS * spacing)) ** 2)
    return np.asarray(bumps / np.linalg.norm(bumps, axis=1, keepdims=True), np.float32)


def _sample(images: Array, sources: Array) -> Array:
    """Bilinear interpolation of the images at [batch, 2, height * width], 0 to 1; outside, they are 0."""
    batch, height, width, *channels = images.shape
    # The four neighbours of a place are packed into one word: one gather for each place, which takes most of the time.
    padded = jnp.pad(images, [(0, 0), (1, 1), (1, 1), *[(0, 0)] * len(channels)]).astype(jnp.uint32)
    above, below = padded[:, :-1], padded[:, 1:]
    words = above[:, :, :-1] | above[:, :, 1:] << 8 | below[:, :, :-1] << 16 | below[:, :, 1:] << 24
    words = jax.lax.bitcast_convert_type(words, jnp.int32).reshape(batch, (height + 1) * (width + 1), *channels)
    y, x = jnp.clip(sources[:, 0] + 1, 0, height + 1), jnp.clip(sources[:, 1] + 1, 0, width + 1)
    top, left = jnp.minimum(jnp.floor(y), height), jnp.minimum(jnp.floor(x), width)
    places = top.astype(jnp.int32) * (width + 1) + left.astype(jnp.int32)
    fetched = jax.vmap(lambda words, places: words.at[places].get(mode="promise_in_bounds"))(words, places)
    y, x = (part.reshape(*part.shape, *[1] * len(channels)) for part in (y - top, x - left))
    corners = [(jax.lax.shift_right_logical(fetched, shift) & 255).astype(jnp.float32) for shift in (0, 8, 16, 24)]
    upper, lower = (one + x * (other - one) for one, other in (corners[:2], corners[2:]))
    return ((upper + y * (lower - upper)) * (1 / 255)).reshape(images.shape)


def _kept(key: Array, shape: tuple[int, ...], config: AugmentationConfig) -> Array:
    """Random erasing (Zhong et al. 2020): [height, width], false within the rectangle, if one is erased."""
    whether, *draws = jax.random.uniform(key, (5,))

    def outside(size: int, length: Array, start: Array) -> Array:
        length = length * config.erasing_size * size
        start = start * (size - length)
        at = jnp.arange(size) + 0.5
        return (at < start) | (at >= start + length)

    kept = outside(shape[0], *draws[:2])[:, None] | outside(shape[1], *draws[2:])[None, :]
    return kept | (whether >= config.erasing_probability)
