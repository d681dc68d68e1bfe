"""A trained run as a function of images."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from jaxtyping import Float32, Int

from lstm_mnist_jax import model, reading
from lstm_mnist_jax.config import Execution, ModelConfig
from lstm_mnist_jax.data import Dataset, load
from lstm_mnist_jax.data.normal_form import normalise
from lstm_mnist_jax.data.pictures import pictures_of
from lstm_mnist_jax.errors import ConfigError, DataError
from lstm_mnist_jax.training.evaluation import MAX_BATCH, Evaluation, evaluate_one
from lstm_mnist_jax.training.member import load_checkpoint
from lstm_mnist_jax.training.metrics import as_columns, read_metrics
from lstm_mnist_jax.training.run_folder import RunFolder, read_run

BATCHES_AHEAD = 16
"""How many batches a device holds at once, at most: enough that it never waits for the next."""

Normalised = Float32[np.ndarray, "n height width *channels"]


@dataclass(frozen=True)
class TrainedRun:
    """The model of one checkpoint of a run.

    Attributes:
      folder: the run's folder, with its config and what it remembers of its data.
      step: the step of the checkpoint.
      params: the model's parameters, for `lstm_mnist_jax.model.apply`.
      opt_state: the optimizer's state, as `lstm_mnist_jax.training.optimizer` has it.
    """

    folder: RunFolder
    step: int
    params: model.Params
    opt_state: optax.OptState

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.folder.data.class_names

    def predict(self, images: np.ndarray) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, "n classes"]]:
        """Classifies images.

        Args:
          images: uint8 (0 to 255) or float (0 to 1), [n, height, width] or [n, height, width, channels], of the
            size that the run was trained on; MNIST's digits are white on black.

        Returns:
          The most probable class of each image, [n], and the probabilities of all classes, [n, classes].

        Raises:
          DataError: the images are of another shape or type, or hold floats outside 0 to 1.
        """
        images = self._checked(images)
        batches = [images[start : start + MAX_BATCH] for start in range(0, len(images), MAX_BATCH)]
        pending: list[jax.Array] = []
        for batch in batches:  # several are sent off before the first is waited for
            pending.append(self._probabilities(batch))
            if len(pending) >= BATCHES_AHEAD:
                jax.block_until_ready(pending[-BATCHES_AHEAD])
        probabilities = np.concatenate(
            [np.asarray(part)[: len(batch)] for part, batch in zip(pending, batches, strict=True)]
            or [np.zeros((0, len(self.class_names)), np.float32)]
        )
        return probabilities.argmax(axis=-1), probabilities

    def normalise(self, pictures: Iterable[np.ndarray], form: str | None = None) -> Normalised:
        """Brings pictures of any size, dark on light or light on dark, to the form of the images of the run.

        Args:
          pictures: uint8 or floats from 0 to 1, [height, width] or [height, width, 3] each; an array of them too.
          form: digit, whole or plain, see `lstm_mnist_jax.data.normal_form.normalise`. None is that of the run:
            digit where its classes are digits on grey images, else whole.

        Returns:
          float32 [n, height, width] or [n, height, width, channels], for `predict`.

        Raises:
          DataError: a picture is of one colour, of another shape or type.
        """
        shape = self.folder.data.image_shape
        normal = [
            normalise(picture, shape, form or self.form)
            for array in pictures
            for picture in pictures_of(np.asarray(array), "A picture")
        ]
        return np.stack(normal) if normal else np.zeros((0, *shape), np.float32)

    @property
    def form(self) -> str:
        """The form that pictures are brought to, unless another is asked for."""
        digits = set(self.class_names) <= set("0123456789")
        return "digit" if digits and len(self.folder.data.image_shape) == 2 else "whole"

    def read_along(self, images: np.ndarray) -> Float32[np.ndarray, "n time classes"]:
        """The probabilities of all classes after each time step, as if the images ended there.

        Args:
          images: as for `predict`.
        """
        logits = reading.logits_along(self.params, self._checked(images), self.folder.config.model)
        return np.asarray(jax.nn.softmax(logits))

    def states(self, images: np.ndarray) -> list[reading.LayerStates]:
        """Hidden and cell states of every layer after each time step, [n, time, features] each.

        Args:
          images: as for `predict`.
        """
        found = reading.states(self.params, self._checked(images), self.folder.config.model)
        return jax.tree.map(np.asarray, found)

    def saliency(
        self, images: np.ndarray, labels: Int[np.ndarray, " n"] | None = None
    ) -> Float32[np.ndarray, "n height width *channels"]:
        """The gradient of a class's log probability with respect to each pixel (0 to 1).

        Args:
          images: as for `predict`.
          labels: the classes that are asked about; None is the most probable of each image.
        """
        images = self._checked(images)
        if labels is None:
            labels, _ = self.predict(images)
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 255
        return np.asarray(reading.saliency(self.params, images, np.asarray(labels), self.folder.config.model))

    @property
    def step_name(self) -> str:
        """What the network reads in a time step, for people: row, column, pixel or just step."""
        return model.task_of(self.folder.config.model).step_name(self.folder.data.image_shape)

    def history(self) -> dict[str, np.ndarray]:
        """How it was trained: an array [epochs] for each field of `lstm_mnist_jax.training.metrics.EpochMetrics`, by
        its name. `pandas.DataFrame` makes a table of it, with a row an epoch."""
        return as_columns(read_metrics(self.folder.metrics, self.folder.member or 0))

    def _checked(self, images: np.ndarray) -> np.ndarray:
        """The images as uint8 or float32."""
        images = np.asarray(images)
        shape = self.folder.data.image_shape
        if images.shape[1:] != shape:
            hint = "Add an axis: images[None]." if images.shape == shape else "normalise() brings pictures to it."
            raise DataError(
                f"Images of shape [n, {', '.join(map(str, shape))}] were expected, got {list(images.shape)}. {hint}"
            )
        if np.issubdtype(images.dtype, np.floating):
            if not ((images >= 0) & (images <= 1)).all():  # nor is NaN
                raise DataError("Images of floats must hold numbers from 0 to 1 alone; divide by 255, or pass uint8.")
            return images.astype(np.float32)
        if images.dtype != np.uint8:
            raise DataError(f"Images must be uint8 (0 to 255) or floats (0 to 1), got {images.dtype}.")
        return images

    def _probabilities(self, images: np.ndarray) -> jax.Array:
        # Few different sizes, so that few are compiled: powers of two, and beyond 64 its multiples.
        count = len(images)
        missing = -count % 64 if count > 64 else (1 << (count - 1).bit_length()) - count
        if missing:
            images = np.pad(images, [(0, missing), *[(0, 0)] * (images.ndim - 1)])
        return _classify(self.params, images, self.folder.config.model)

    def export(
        self, format_name: str, path: Path | str, *, overwrite: bool = False, like: Path | str | None = None
    ) -> None:
        """Writes the model as a file of another program.

        Args:
          format_name: tf1, torch, keras, flax, safetensors, onnx or stablehlo.
          path: the file, with the ending that belongs to the format; for tf1 the prefix of a checkpoint.
          overwrite: replace what is there.
          like: for tf1, a checkpoint of the same network, whose names are taken rather than the tutorial's.

        Raises:
          WeightsError: the format is unknown, the name has another ending or is taken, or a package is missing.
        """
        from lstm_mnist_jax.interop import formats

        config = self.folder.config
        exported = formats.Exported(
            config=config.model,
            params=self.params,
            # The means of Adam belong to the parameters as they were trained, not to their own mean.
            opt_state=None if config.optimizer.ema_decay else self.opt_state,
            image_shape=self.folder.data.image_shape,
            class_names=self.class_names,
            settings=formats.Settings(config.model.forget_bias, config.optimizer.b1, config.optimizer.b2),
            step=self.step,
            like=None if like is None else Path(like).expanduser(),
        )
        formats.write(format_name, Path(path).expanduser(), exported, overwrite=overwrite)

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
          tta_shift_pixels: take the mean probabilities of each image moved by up to so many pixels either way
            (test-time averaging): another model than the run's own, and (2 n + 1)^2 times the work.

        Raises:
          DataError: the data cannot be loaded.
          RunError: they are not those of the run.
          ConfigError: `tta_shift_pixels` is negative, or more than a quarter of the images.
        """
        config = self.folder.config
        most = min(self.folder.data.image_shape[:2]) // 4
        if not 0 <= tta_shift_pixels <= most:
            raise ConfigError(
                f"tta_shift_pixels is {tta_shift_pixels}, expected 0 to {most} pixels, a quarter of the image."
            )
        dataset = load_data(self.folder, source, data_dir)
        return evaluate_one(self.params, config.model, dataset.splits, execution, tta_shift_pixels)


@partial(jax.jit, static_argnames="config")
def _classify(params: model.Params, images: jax.Array, config: ModelConfig) -> jax.Array:
    return jax.nn.softmax(model.apply(params, images, config))


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
      folder: the run's.
      source: where the data is now; None is where it was.
      data_dir: where prepared TFDS data is now; None is where it was.

    Raises:
      DataError: they cannot be loaded.
      RunError: they are not those of the run.
    """
    was = folder.config.data
    try:
        moved = {"source": source or was.source, "data_dir": data_dir or was.data_dir}
        dataset = load(**vars(was) | moved)
    except DataError as error:
        moved_hint = "" if source else " If they have moved, say with --source where they are now."
        raise DataError(f"The data of {folder.path} cannot be loaded. {error}{moved_hint}") from error
    folder.data.require_same(dataset, folder.path)
    return dataset
