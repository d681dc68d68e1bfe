"""Novelty detection: whether an image looks unlike the images that a network was trained on.

The features of an image are histograms of gradient directions (Dalal and Triggs 2005) in 5 x 5 cells, reduced by
principal component analysis. Each class is a Gaussian of these. The score of an image is its squared Mahalanobis
distance from the nearest class, and a fraction of what the components leave of it (as in the modified quadratic
discriminant function, Kimura et al. 1987). The threshold is a quantile of the scores of the validation images, as in
conformal prediction: of images like these, at most a fraction `FALSE_WARNINGS` is above it.

It depends on the data alone, not on the network: all runs of a sweep share it. A report's page computes the same in
JavaScript (report/page/novelty.js): a change here needs the same change there.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int8, UInt8

from lstm_mnist_jax.data.dataset import Examples
from lstm_mnist_jax.data.normal_form import resampling
from lstm_mnist_jax.errors import DataError

FILE = "novelty.npz"
"""In the folder of a run or of a sweep."""

FALSE_WARNINGS = 0.007
"""The fraction of the validation images above the threshold."""

FALSE_PAIRS = 0.0025
"""The further fraction of the validation images that look like two digits that touch."""

FALSE_TURNS = 0.003
"""The fraction of the validation images that would look better turned."""

MOST_GAIN = 3.0

NOT_WIDE = 0.95
INK = 0.25
"""The edge of ink, as a fraction of the brightest pixel."""

DIRECTIONS = 8
CELLS = 5
SIDE = 28
"""Images are resized to so many pixels a side."""

MOST_EXAMPLES = 6_000
"""More training images find no more letters, and take longer."""

MOST_THRESHOLD_EXAMPLES = 5_000
MOST_TURNED_EXAMPLES = 2_000
AT_ONCE = 50
"""So many images fit into a processor's cache."""

MOST_BYTES = 24_000
"""The components and the shapes of the classes take no more, in int8: fewer components where there are more classes."""

RIDGE = 0.02
"""Of the mean variance of a class, added to each of its variances."""

SHARED = 20
"""A class's covariance is averaged with that of all classes, which counts as so many images."""

LEFT = 0.05
"""The weight of what the components leave, relative to the distance within them."""

_BEFORE, _AFTER = (np.eye(SIDE, dtype=np.float32)[np.clip(np.arange(SIDE) + n, 0, SIDE - 1)] for n in (-1, 1))
SOFT = (_BEFORE + 2 * np.eye(SIDE, dtype=np.float32) + _AFTER) / 4
"""Smooths a line of pixels, the border repeated."""

SLOPE = (_AFTER - _BEFORE) @ SOFT
"""The gradient of a line of pixels, smoothed."""

Images = (
    UInt8[np.ndarray, "n height width *channels"]
    | Float32[np.ndarray, "n height width *channels"]
    | Float64[np.ndarray, "n height width *channels"]
)


@dataclass(frozen=True, eq=False)
class Novelty:
    """What the training images look like. Its fields are the arrays of novelty.npz.

    Attributes:
      mean: of the features.
      components: the principal components, in steps of `component_steps`.
      component_steps: the size of a step, for each component.
      class_means: the mean of each class, in the components.
      whitening: the inverse Cholesky factor of the covariance of each class, a lower triangle row after row, in steps
        of `whitening_steps`.
      whitening_steps: the size of a step, for each row.
      left_weights: for each class, the weight of the squared features that the components leave.
      threshold: images with a higher score are unlike the training images.
      pair_threshold: other images whose score times the width of their ink, in heights, is higher may be two digits.
      turn_threshold: a picture whose digits gain more in total by a turn is turned.
      wide: the width of ink, in heights, that `NOT_WIDE` of the training images do not exceed.
    """

    mean: Float32[np.ndarray, " features"]
    components: Int8[np.ndarray, "components features"]
    component_steps: Float32[np.ndarray, " components"]
    class_means: Float32[np.ndarray, "classes components"]
    whitening: Int8[np.ndarray, "classes triangle"]
    whitening_steps: Float32[np.ndarray, "classes components"]
    left_weights: Float32[np.ndarray, " classes"]
    threshold: Float32[np.ndarray, ""]
    pair_threshold: Float32[np.ndarray, ""]
    turn_threshold: Float32[np.ndarray, ""]
    wide: Float32[np.ndarray, ""]

    def scores(self, images: Images) -> Float64[np.ndarray, " n"]:
        """The distances of images from the nearest class; above `threshold`, they are unlike the training images.

        Args:
          images: as for `lstm_mnist_jax.inference.TrainedRun.predict`.
        """
        return self._distances(features_of(images))

    def _distances(self, features: np.ndarray) -> Float64[np.ndarray, " n"]:
        centred = features - self.mean.astype(np.float64)
        places = centred @ (self.components * self.component_steps[:, None]).T.astype(np.float64)
        left = np.square(centred).sum(1) - np.square(places).sum(1)
        count = len(self.components)
        factor = np.zeros((count, count))
        nearest = np.full(len(features), np.inf)
        for number, mean in enumerate(self.class_means):
            factor[np.tril_indices(count)] = self.whitening[number]
            whitened = (places - mean) @ (factor * self.whitening_steps[number][:, None]).T
            np.minimum(nearest, np.square(whitened).sum(1) + self.left_weights[number] * left, out=nearest)
        return nearest

    def unlike_and_pairs(self, images: Images) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Whether images are unlike the training images, and whether they may be of two digits that touch: those with
        wide ink, of the others those whose score times the width of their ink is above `pair_threshold`."""
        scores, widths = self.scores(images), widths_of(images)
        unlike = scores > self.threshold
        return unlike, np.where(unlike, widths > self.wide, scores * widths > self.pair_threshold)

    def turn_gains(self, images: Images) -> Float64[np.ndarray, "n 3"]:
        """How much more likely square images are turned by 90, 180 and 270 degrees to the left, in units of the
        threshold; more than `MOST_GAIN` of them counts as that."""
        return self._turn_gains(features_of(images))

    def _turn_gains(self, features: np.ndarray) -> Float64[np.ndarray, "n 3"]:
        histograms, scores = features.reshape(-1, DIRECTIONS, CELLS, CELLS), []
        for turns in range(4):  # an image that is turned has the same histograms, turned
            turned = np.roll(np.rot90(histograms, turns, (2, 3)), -turns * DIRECTIONS // 4, axis=1)
            scores.append(np.minimum(self._distances(turned.reshape(features.shape)) / self.threshold, MOST_GAIN))
        return np.stack([scores[0] - score for score in scores[1:]], axis=1)


def features_of(images: Images) -> Float32[np.ndarray, "n features"]:
    """Histograms of the directions of an image's gradient, whatever its contrast: square roots, of norm 1.

    Args:
      images: uint8 or floats, [n, height, width] or [n, height, width, channels].
    """
    return np.concatenate([_features_of(grey) for grey in _grey_parts(images)])


def _grey_parts(images: Images) -> Iterator[Float32[np.ndarray, "part height width"]]:
    """The images in grey, `AT_ONCE` at a time: all at once would take four bytes for each pixel. One part or more."""
    for start in range(0, max(1, len(images)), AT_ONCE):
        part = images[start : start + AT_ONCE].astype(np.float32)
        yield part.mean(axis=-1) if part.ndim == 4 else part


def _features_of(grey: np.ndarray) -> Float32[np.ndarray, "n features"]:
    grey -= grey[:, :1, :1]  # rounding errors on a background would be a gradient
    if grey.shape[1:] != (SIDE, SIDE):
        grey = resampling(grey.shape[1], SIDE) @ grey @ resampling(grey.shape[2], SIDE).T
    down, right = SLOPE @ (grey @ SOFT.T), SOFT @ (grey @ SLOPE.T)
    size = np.sqrt(np.square(down) + np.square(right))
    angle = np.arctan2(down, right) * np.float32(DIRECTIONS / (2 * math.pi))  # from -4 to 4
    pool, found = resampling(SIDE, CELLS), np.empty((len(grey), DIRECTIONS, CELLS, CELLS), np.float32)
    for direction in range(DIRECTIONS // 2):
        away = np.abs(angle - np.float32(direction))
        away = np.minimum(away, DIRECTIONS - away)  # from 0 to 4, which is the opposite direction
        for number, share in ((direction, 1 - away), (direction + DIRECTIONS // 2, away - (DIRECTIONS // 2 - 1))):
            found[:, number] = pool @ (np.maximum(share, 0) * size) @ pool.T
    found = np.sqrt(found.reshape(len(grey), DIRECTIONS * CELLS**2))
    return found / (np.linalg.norm(found, axis=1, keepdims=True) + 1e-9)


def widths_of(images: Images) -> Float64[np.ndarray, " n"]:
    """The width of the ink on each image, as a fraction of its height; 1 where there is none."""
    return np.concatenate([_widths_of(grey) for grey in _grey_parts(images)])


def _widths_of(grey: np.ndarray) -> Float64[np.ndarray, " n"]:
    is_ink = grey > INK * grey.max(axis=(1, 2), keepdims=True)
    lengths = []
    for axis in (1, 2):
        lines = is_ink.any(axis=axis)
        lengths.append(lines.shape[1] - lines.argmax(1) - lines[:, ::-1].argmax(1))
    return np.where(is_ink.any(axis=(1, 2)), lengths[0] / lengths[1], 1.0)


def fit(train: Examples, validation: Examples) -> Novelty | None:
    """What training images look like, with a threshold from validation images.

    Returns:
      None where there are fewer than 142 validation images, too few for the threshold.
    """
    train = train[_spread(len(train), MOST_EXAMPLES)]
    held_out = validation.images[_spread(len(validation), MOST_THRESHOLD_EXAMPLES)]
    digest = hashlib.blake2b()
    for array in (train.images, train.labels, held_out):
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)  # a copy of transposed images, as of EMNIST, else none
    key = digest.digest()
    if key not in _fitted:
        _fitted.clear()
        _fitted[key] = _fit(train, held_out)
    return _fitted[key]


_fitted: dict[bytes, Novelty | None] = {}
"""The last result, by its data: many runs of a process have the same."""


def _fit(train: Examples, held_out: np.ndarray) -> Novelty | None:
    rank = math.ceil((len(held_out) + 1) * (1 - FALSE_WARNINGS))
    if rank > len(held_out) or len(train) < 2:
        return None
    features = features_of(train.images)
    _, labels = np.unique(train.labels, return_inverse=True)
    mean = features.mean(axis=0).astype(np.float32)
    centred = features - mean
    classes, width = int(labels.max()) + 1, features.shape[1]
    count = 1
    while count < width - 1 and width * (count + 1) + classes * (count + 1) * (count + 2) // 2 <= MOST_BYTES:
        count += 1
    _, directions = np.linalg.eigh(centred.T @ centred)
    components, component_steps = _in_steps(directions[:, ::-1][:, :count].T)
    places = centred @ (components * component_steps[:, None]).T
    left = np.square(centred).sum(axis=1) - np.square(places).sum(axis=1)
    class_means = np.stack([places[labels == label].mean(axis=0) for label in range(classes)]).astype(np.float32)
    apart = places - class_means[labels]
    shared, factors, left_weights = SHARED * (apart.T @ apart) / len(apart), [], []
    for label in range(classes):
        own = apart[labels == label]
        covariance = (own.T @ own + shared) / (len(own) + SHARED)
        covariance += (RIDGE * np.trace(covariance) / count + 1e-12) * np.eye(count)
        factors.append(np.linalg.inv(np.linalg.cholesky(covariance)))
        left_weights.append(LEFT * (width - count) / max(left[labels == label].mean(), 1e-6))
    whitening, whitening_steps = _in_steps(np.stack(factors))
    rows, columns = np.tril_indices(count)
    found = Novelty(
        mean=mean,
        components=components,
        component_steps=component_steps,
        class_means=class_means,
        whitening=whitening[:, rows, columns],
        whitening_steps=whitening_steps,
        left_weights=np.array(left_weights, np.float32),
        threshold=np.array(np.inf, np.float32),
        pair_threshold=np.array(np.inf, np.float32),
        turn_threshold=np.array(np.inf, np.float32),
        wide=np.array(np.quantile(widths_of(train.images), NOT_WIDE), np.float32),
    )
    features = features_of(held_out)
    scores = found._distances(features)
    threshold = max(1e-6, np.sort(scores)[rank - 1])
    products = np.sort((scores * widths_of(held_out))[scores <= threshold])
    pair_threshold = max(1e-6, products[-1 - int(FALSE_PAIRS * len(held_out))])
    found = replace(found, threshold=_not_below(threshold), pair_threshold=_not_below(pair_threshold))
    gains = found._turn_gains(features[_spread(len(features), MOST_TURNED_EXAMPLES)]).max(axis=1)
    turn_threshold = max(0, np.quantile(gains, 1 - FALSE_TURNS, method="higher"))
    return replace(found, turn_threshold=np.array(turn_threshold, np.float32))


def _not_below(value: float) -> np.ndarray:
    """In float32, rounded up: an image with exactly this score has no higher one."""
    return np.array(np.nextafter(np.float32(value), np.float32(np.inf)))


def _spread(count: int, most: int) -> np.ndarray | slice:
    """At most so many of `count` numbers, evenly spaced. All of them are a slice, which copies nothing."""
    return np.linspace(0, count - 1, most).astype(int) if count > most else slice(None)


def _in_steps(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of numbers in int8, and the size of a step for each."""
    steps = (np.abs(rows).max(axis=-1) / 127).astype(np.float32)
    return np.rint(rows / np.maximum(steps, 1e-30)[..., None]).astype(np.int8), steps


def save(path: Path, novelty: Novelty) -> None:
    """Writes novelty.npz atomically."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **{field.name: getattr(novelty, field.name) for field in fields(Novelty)})
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path) -> Novelty | None:
    """Reads novelty.npz; None where there is none: of a run of another version, or of imported weights.

    Raises:
      DataError: it is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        values.setdefault("pair_threshold", np.array(np.inf, np.float32))  # of a run before 30 November 2026
        found = Novelty(**values)
        found.scores(np.zeros((1, SIDE, SIDE), np.float32))
    except FileNotFoundError:
        return None
    except Exception as error:  # of a file that may hold anything
        raise DataError(
            f"{path} is damaged ({error or type(error).__name__}). Remove it: the images are classified without "
            "warnings then, and lstm-mnist train --resume writes it again."
        ) from error
    return found
