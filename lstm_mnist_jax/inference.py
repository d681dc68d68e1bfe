"""A trained run as a function of images: predictions, preprocessing of pictures, warnings; evaluation and export."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import get_type_hints

import jax
import numpy as np
import optax
from jaxtyping import Float32, Int

from lstm_mnist_jax import model
from lstm_mnist_jax.config import Execution, ModelConfig
from lstm_mnist_jax.data import Dataset, novelty
from lstm_mnist_jax.data.digits import reading_order
from lstm_mnist_jax.data.normal_form import SIGN, Digit, are_digits, find_digits, normalise
from lstm_mnist_jax.data.pictures import array_of, as_floats, checked_levels, one_picture, pictures_of
from lstm_mnist_jax.data.sources import load_again
from lstm_mnist_jax.errors import ConfigError, DataError, RunError
from lstm_mnist_jax.introspection import LayerStates, layer_states, probabilities_along, saliency
from lstm_mnist_jax.introspection import logits_along as logits_along
from lstm_mnist_jax.training.checkpoint import load_checkpoint
from lstm_mnist_jax.training.evaluation import MAX_BATCH, Evaluation, evaluate_one
from lstm_mnist_jax.training.metrics import EpochMetrics, read_metrics
from lstm_mnist_jax.training.run_folder import RunFolder, read_run

UNLIKE = "this looks unlike the training images"
TURNED = ("by 90 degrees to the left", "upside down", "by 90 degrees to the right")

BATCHES_AHEAD = 16
"""At most so many batches are on a device at once: enough that it never waits for the next."""

Normalised = Float32[np.ndarray, "n height width *channels"]


@dataclass(frozen=True)
class TrainedRun:
    """The model of one checkpoint of a run.

    Attributes:
      folder: the run's folder, with its config and the facts about its data.
      step: the step of the checkpoint.
      params: the model's parameters, for `lstm_mnist_jax.model.apply`.
      opt_state: the optimizer's state, as `lstm_mnist_jax.training.optimizer` has it.
    """

    folder: RunFolder
    step: int
    params: model.Params
    opt_state: optax.OptState

    def __repr__(self) -> str:  # without the weights
        return f"TrainedRun({str(self.folder.path)!r}, step={self.step})"

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.folder.data.class_names

    def predict(self, images: np.ndarray) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, "n classes"]]:
        """Classifies images.

        Args:
          images: integers from 0 to 255, uint16 (0 to 65,535), bool or floats from 0 to 1, [n, height, width] or
            [n, height, width, channels], of the size that the run was trained on; MNIST's digits are white on black.

        Returns:
          The most probable class of each image, [n], and the probabilities of all classes, [n, classes].

        Raises:
          DataError: the images are of another shape or type, or hold numbers outside its range, or none above 16 / 255
            of white, such as integers of 0 and 1.

        Warns:
          UserWarning: the brightest of integers is below half of white, as where 100 was meant to be white.
        """
        found, given = classify(self, images), np.asarray(images)
        white = np.iinfo(np.uint16 if given.dtype == np.uint16 else np.uint8).max
        if given.dtype.kind in "iu" and 0 < (brightest := given.max(initial=0)) < white // 2:
            warnings.warn(
                f"The brightest pixel of the images is {brightest}, and white is {white}. If {brightest} should be "
                f"white, multiply them by {white / brightest:.4g}.",
                stacklevel=2,
            )
        return found

    def normalise(self, pictures: np.ndarray | Iterable[np.ndarray], form: str | None = None) -> Normalised:
        """Converts pictures of any size, dark on light or light on dark, to the form of the run's images.

        Args:
          pictures: one array, which is one picture or several by its axes: [height, width] or [height, width, 3], or
            with n in front; or an image of Pillow; or a list of either, one picture each. The numbers are as for
            `predict`. A last axis of 3 is colours, unless the run's images are grey and so wide. Nested lists of
            numbers are one array.
          form: digit, whole or plain, see `lstm_mnist_jax.data.normal_form.normalise`. None is that of the training
            pictures, if the run was trained on class folders; else digit if the classes are digits and the images are
            about as MNIST's, else whole. Of several digits on a picture, the largest; `find_digits` gives all.

        Returns:
          float32 [n, height, width] or [n, height, width, channels], for `predict`.

        Raises:
          DataError: a picture has only one colour, or another shape or type, or an array in a list is several pictures.
        """
        shape, form = self.folder.data.image_shape, form or self.form
        normal = [normalise(picture, shape, form) for picture in pictures_of(pictures, "A picture", shape)]
        images = np.stack(normal) if normal else np.zeros((0, *shape), np.float32)
        return images if form == "plain" else self._on_background(images)

    def _on_background(self, images: np.ndarray) -> np.ndarray:
        """Images that are light on dark, on the background of the training images."""
        return np.float32(1) - images if self.folder.data.is_light else images

    def find_digits(self, picture: np.ndarray) -> list[Digit]:
        """The digits on a picture, from left to right and line by line, in the form of the run's images.

        Args:
          picture: as for `normalise`, one of them.

        Returns:
          Of each digit its image [height, width] for `predict`, its box on the picture, a warning (those of `warnings`,
          and of signs), and the boxes of marks beside it that are not read.

        Raises:
          DataError: nothing can be seen on the picture, or the run's images are no grey ones.
        """
        shape = self.folder.data.image_shape
        if len(shape) != 2:
            raise DataError(f"Digits are found for grey images; this run reads {list(shape)}. Use normalise().")
        levels = one_picture(picture, "The picture", shape)
        digits = [digit._replace(image=self._on_background(digit.image)) for digit in find_digits(levels, *shape)]
        warnings = self.warnings(np.stack([digit.image for digit in digits]))
        found = []
        for digit, text in zip(digits, warnings, strict=True):
            if text and SIGN in (digit.warning or ""):  # which is no pair
                text = UNLIKE if UNLIKE in text else None
            found.append(digit._replace(warning="; ".join(filter(None, (text, digit.warning))) or None))
        return found

    @cached_property
    def novelty(self) -> novelty.Novelty | None:
        """What the training images look like; None if the run does not hold it (imported weights, older versions, fewer
        than 142 validation images). Raises DataError where its file is damaged."""
        return novelty.read(self.folder.novelty)

    def warnings(self, images: np.ndarray, form: str | None = None) -> list[str | None]:
        """What speaks against the prediction for each image: that it looks unlike the training images, or in the form
        digit that it may be two digits that touch.

        Of MNIST's test images, 0.7 % are unlike the training images, and of the other digits 0.1 % may be pairs.
        With fewer than some thousands of validation images it is more.

        Args:
          images: as for `predict`.
          form: of `normalise`, by which the images were made; None is the default form.

        Returns:
          A text for each image; None where nothing was found, and everywhere if `novelty` is None.

        Examples:
          >>> import numpy as np
          >>> from lstm_mnist_jax import load_run
          >>> load_run("runs/first").warnings(np.random.default_rng(0).integers(0, 256, (1, 28, 28), np.uint8))
          ['this looks unlike the training images']
        """
        images = self._checked(images)
        if self.novelty is None:
            return [None] * len(images)
        unlike, pairs = self.novelty.unlike_and_pairs(images)
        if (form or self.form) != "digit":
            pairs = np.zeros_like(pairs)
        texts = {(True, False): UNLIKE, (True, True): f"{UNLIKE}: {self.pair}", (False, True): self.pair}
        return [texts.get((bool(new), bool(two))) for new, two in zip(unlike, pairs, strict=True)]

    @property
    def pair(self) -> str:
        """The warning for an image that may be of two characters, wide and far from the training images."""
        return f"it may be two touching {'digits' if self._has_digits else 'characters'}"

    def turned_reading(self, digits: Sequence[Digit]) -> str | None:
        """That the digits of a picture look more like the training images if the picture is turned, and what is read
        then; None if they do not. Of upright digits, at most 0.5 % do.

        Args:
          digits: all that `find_digits` found on a picture.
        """
        shape = self.folder.data.image_shape
        if self.novelty is None or not digits or shape[0] != shape[1]:
            return None
        images = np.stack([digit.image for digit in digits])
        gains = self.novelty.turn_gains(images).sum(axis=0)
        best = int(gains.argmax())
        turned = np.ascontiguousarray(np.rot90(images, best + 1, (1, 2)))
        if gains[best] <= self.novelty.turn_threshold or self.novelty.scores(turned).mean() > self.novelty.threshold:
            return None
        boxes = [digit.box for digit in digits]
        for _ in range(best + 1):  # to the left
            boxes = [(1 - left - width, top, width, height) for top, left, height, width in boxes]
        order = reading_order([(top, top + height, left) for top, left, height, _ in boxes])
        labels, _ = classify(self, turned[order])
        return f"it reads better turned {TURNED[best]}: {' '.join(self.class_names[label] for label in labels)}"

    @property
    def form(self) -> str:
        """The default form of `normalise`: that of the training pictures, where they were pictures; else see
        `lstm_mnist_jax.data.normal_form.default_form`."""
        if self.folder.data.form is not None:
            return self.folder.data.form
        # An older run folder does not have it.
        return "digit" if self._has_digits and len(self.folder.data.image_shape) == 2 else "whole"

    @property
    def _has_digits(self) -> bool:
        return are_digits(self.class_names)

    def read_along(self, images: np.ndarray) -> Float32[np.ndarray, "n time classes"]:
        """The probabilities of all classes after each time step, as if the images ended there.

        Args:
          images: as for `predict`.
        """
        return np.asarray(probabilities_along(self.params, self._checked(images), self.folder.config.model))

    def states(self, images: np.ndarray) -> list[LayerStates]:
        """Hidden and cell states of every layer after each time step, [n, time, features] each.

        Args:
          images: as for `predict`.
        """
        return jax.tree.map(np.asarray, layer_states(self.params, self._checked(images), self.folder.config.model))

    def saliency(
        self, images: np.ndarray, labels: Int[np.ndarray, " n"] | None = None
    ) -> Float32[np.ndarray, "n height width *channels"]:
        """The gradient of a class's log probability with respect to each pixel (0 to 1).

        Args:
          images: as for `predict`.
          labels: the classes; None is the most probable one of each image.

        Raises:
          DataError: the images are those that `predict` refuses, or there is not one class for each of them.
        """
        images = self._checked(images)
        labels = classify(self, images)[0] if labels is None else np.asarray(labels)
        classes = len(self.class_names)
        fits = labels.shape == images.shape[:1] and labels.dtype.kind in "iu"
        if not fits or not ((labels >= 0) & (labels < classes)).all():
            raise DataError(
                f"labels are {labels.dtype} of shape {list(labels.shape)}; expected integers [{len(images)}] from 0 to "
                f"{classes - 1}, the class of each image."
            )
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 255
        return np.asarray(saliency(self.params, images, labels, self.folder.config.model))

    @property
    def step_name(self) -> str:
        """What the network reads in a time step: row, column, pixel or step."""
        return model.task_of(self.folder.config.model).step_name(self.folder.data.image_shape)

    def history(self) -> dict[str, np.ndarray]:
        """The metrics of all epochs: an array [epochs] for each field of
        `lstm_mnist_jax.training.metrics.EpochMetrics`, by its name. `pandas.DataFrame` makes a table of it."""
        epochs, kinds = read_metrics(self.folder.metrics, self.folder.member or 0), get_type_hints(EpochMetrics)
        del kinds["member"]
        return {name: np.array([getattr(metrics, name) for metrics in epochs], kind) for name, kind in kinds.items()}

    def _checked(self, images: np.ndarray) -> np.ndarray:
        """The images as uint8 or float32."""
        images, shape = array_of(images, "The array of images"), self.folder.data.image_shape
        if images.shape[1:] != shape:
            hint = "Add an axis: images[None]." if images.shape == shape else "normalise() converts pictures to it."
            raise DataError(
                f"Images of shape [n, {', '.join(map(str, shape))}] were expected, got {list(images.shape)}. {hint}"
            )
        images = checked_levels(images, "The array of images")
        return images if images.dtype == np.uint8 else as_floats(images, images.dtype)

    def export(
        self, format_name: str, path: Path | str, *, overwrite: bool = False, like: Path | str | None = None
    ) -> None:
        """Writes the model as a file of another program.

        Args:
          format_name: tf1, torch, keras, flax, safetensors, onnx, stablehlo or huggingface.
          path: the file, with the ending that belongs to the format; for tf1 the prefix of a checkpoint, for
            huggingface a folder.
          overwrite: replace what is there.
          like: for tf1, a checkpoint of the same network, whose variable names are used instead of the tutorial's.

        Raises:
          WeightsError: the format is unknown, the name has another ending or is taken, or a package is missing.
        """
        from lstm_mnist_jax.interop import formats

        config = self.folder.config
        exported = formats.Exported(
            config=config.model,
            params=self.params,
            # Adam's moments belong to the trained weights, not to their EMA.
            opt_state=None if config.optimizer.ema_decay else self.opt_state,
            image_shape=self.folder.data.image_shape,
            class_names=self.class_names,
            settings=formats.Settings(config.model.forget_bias, config.optimizer.b1, config.optimizer.b2),
            step=self.step,
            like=None if like is None else Path(like).expanduser(),
            training=config,
            counts=self._counts() if format_name == "huggingface" else None,
        )
        formats.write(format_name, Path(path).expanduser(), exported, overwrite=overwrite)

    def _counts(self) -> dict[str, tuple[int, int]]:
        """By split, the correctly classified images and all of them; none where the data are not there."""
        try:
            splits = load_data(self.folder).splits
        except (DataError, RunError):
            return {}
        wanted = {name: splits[name] for name in ("test", "validation")}
        found = evaluate_one(self.params, self.folder.config.model, wanted)
        return {name: (int(value.correct.sum()), int(value.count.sum())) for name, value in found.items()}

    def evaluate(
        self,
        execution: Execution = Execution(),
        *,
        source: str | None = None,
        data_dir: str | None = None,
        tta_shift_pixels: int = 0,
    ) -> dict[str, Evaluation]:
        """Loss and accuracy on each split of the data that the run was trained on: train, validation, test.

        Args:
          execution: on which devices.
          source: where the data is now; None is where it was.
          data_dir: where prepared TFDS data is now; None is where it was.
          tta_shift_pixels: test-time augmentation: the mean probabilities over shifts of each image by up to n pixels
            each way. Another model than the run's, at (2 n + 1)^2 times the cost.

        Raises:
          DataError: the data cannot be loaded.
          RunError: it is not the data of the run.
          ConfigError: `tta_shift_pixels` is no integer, negative, or more than a quarter of the images.
        """
        config = self.folder.config
        most = min(self.folder.data.image_shape[:2]) // 4
        is_integer = isinstance(tta_shift_pixels, int | np.integer) and not isinstance(tta_shift_pixels, bool)
        if not is_integer or not 0 <= tta_shift_pixels <= most:
            raise ConfigError(
                f"tta_shift_pixels is {tta_shift_pixels}, expected an integer from 0 to {most}, a quarter of the image."
            )
        dataset = load_data(self.folder, source, data_dir)
        return evaluate_one(self.params, config.model, dataset.splits, execution, int(tta_shift_pixels))


@partial(jax.jit, static_argnames="config")
def _classify(params: model.Params, images: jax.Array, config: ModelConfig) -> jax.Array:
    return jax.nn.softmax(model.apply(params, images, config))


def require_finite(run: TrainedRun, probabilities: np.ndarray) -> None:
    """Raises RunError if a run predicts NaN."""
    if not np.isfinite(probabilities).all():
        raise RunError(
            f"The network of {run.folder.path} at step {run.step} predicts no numbers (NaN): its training diverged. "
            "Choose an earlier --checkpoint."
        )


def load_run(path: Path | str, checkpoint_name: str | int = "best") -> TrainedRun:
    """Loads the model of a run.

    Args:
      path: the run's folder, or a run of a sweep: SWEEP/NUMBER or SWEEP/best.
      checkpoint_name: "best" (on validation; the last weights if no epoch has ended), "last", or the step of a
        checkpoint.

    Returns:
      The model, with `predict`, `evaluate`, `export` and more: see `TrainedRun`.

    Raises:
      RunError: the folder is not a run's, or the checkpoint is missing or damaged.

    Examples:
      >>> from lstm_mnist_jax import load, load_run
      >>> run = load_run("runs/first")
      >>> classes, probabilities = run.predict(load().test.images[:5])
      >>> classes.shape, probabilities.shape
      ((5,), (5, 10))
    """
    folder = read_run(Path(path).expanduser())
    step, state = load_checkpoint(folder, str(checkpoint_name))
    return TrainedRun(folder, step, state.trained, state.opt_state)


def load_data(folder: RunFolder, source: str | None = None, data_dir: str | None = None) -> Dataset:
    """The data that a run was trained on.

    Args:
      folder: of the run.
      source: where the data is now; None is where it was.
      data_dir: where prepared TFDS data is now; None is where it was.

    Raises:
      DataError: it cannot be loaded.
      RunError: it is not the data of the run.
    """
    was = folder.config.data
    there = replace(was, source=source or was.source, data_dir=data_dir or was.data_dir)
    try:
        dataset = load_again(there, was)
    except DataError as error:
        hint = "" if source else " If it has moved, give its new place with --source."
        raise DataError(f"The data of {folder.path} cannot be loaded. {error}{hint}") from error
    folder.data.require_same(dataset, folder.path)
    return dataset


def classify(run: TrainedRun, images: np.ndarray) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, "n classes"]]:
    """What `TrainedRun.predict` returns, without its warning, for images of a data set."""
    images = run._checked(images)
    pending: list[jax.Array] = []
    for start in range(0, len(images), MAX_BATCH):  # several are queued before the first is waited for
        batch = images[start : start + MAX_BATCH]
        # Padded to powers of two, and above 64 to multiples of it, so that few sizes are compiled.
        count = len(batch)
        missing = -count % 64 if count > 64 else (1 << (count - 1).bit_length()) - count
        padded = np.pad(batch, [(0, missing), *[(0, 0)] * (batch.ndim - 1)]) if missing else batch
        pending.append(_classify(run.params, padded, run.folder.config.model))
        if len(pending) >= BATCHES_AHEAD:
            jax.block_until_ready(pending[-BATCHES_AHEAD])
    parts = [np.asarray(part) for part in pending] or [np.zeros((0, len(run.class_names)), np.float32)]
    # Copied also where there is one: what JAX gives cannot be written to.
    probabilities = np.concatenate(parts)[: len(images)] if len(parts) > 1 else parts[0][: len(images)].copy()
    return probabilities.argmax(axis=-1), probabilities
