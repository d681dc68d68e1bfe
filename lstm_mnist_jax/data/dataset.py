"""A data set: labelled images in three splits, as NumPy arrays."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from lstm_mnist_jax.errors import DataError

Images = UInt8[np.ndarray, "n height width"] | UInt8[np.ndarray, "n height width channels"]
Labels = Int32[np.ndarray, " n"]

MAX_CLASSES = 100_000
"""Of sets whose classes have no names but numbers."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images.

    Attributes:
      images: uint8 [n, height, width], or [n, height, width, channels] where there are several channels.
      labels: int32 [n], the class of each image, 0 to num_classes - 1.
      num_classes: how many classes there are in the whole data set.
    """

    images: Images
    labels: Labels
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, selection: slice | np.ndarray) -> "Examples":
        return Examples(self.images[selection], self.labels[selection], self.num_classes)

    def fingerprint(self) -> str:
        """SHA-256 over every image and label."""
        return _digest({"": self})

    @property
    def one_hot_labels(self) -> Float32[np.ndarray, "n classes"]:
        """The labels as float32 [n, num_classes], 1 at the class and 0 elsewhere."""
        return np.eye(self.num_classes, dtype=np.float32)[self.labels]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one data set.

    Attributes:
      train: the training split.
      validation: the validation split, for model selection.
      test: the test split.
      class_names: one name a class; `class_names[label]` names a label.
      origin: where the data came from, as text.
      notes: what else was found, assumed or left out, one line each.
      form: the form of `normalise` that pictures were brought to; None where the arrays are used as they are.
      cut_splits: those that were cut from the training examples of its source.
      validation_examples: how many were to be cut for validation; a stratified split may have fewer.
    """

    train: Examples
    validation: Examples
    test: Examples
    class_names: tuple[str, ...]
    origin: str
    notes: tuple[str, ...] = ()
    form: str | None = None
    cut_splits: tuple[str, ...] = ()
    validation_examples: int | None = None

    @property
    def is_light(self) -> bool:
        """Whether grey images that are used as they are have a light background: most pixels at their borders."""
        images = self.train.images[:1000]
        if self.form is not None or images.ndim != 3:
            return False
        borders = [images[:, edge] for edge in (0, -1)] + [images[:, :, edge] for edge in (0, -1)]
        return float(np.median(np.concatenate(borders, axis=None))) > 127

    @property
    def splits(self) -> dict[str, Examples]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width) or (height, width, channels)."""
        return self.train.images.shape[1:]

    def describe(self) -> str:
        """The origin and the sizes of the splits in a line, and a line for each note."""
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        return "\n  ".join([f"{self.origin} ({sizes})", *self.notes])

    def fingerprint(self) -> str:
        """SHA-256 over every image and label of every split."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return _digest(self.splits)


def _digest(splits: dict[str, Examples]) -> str:
    digest = hashlib.sha256()
    for name, examples in splits.items():
        digest.update(f"{name} {examples.images.shape}".encode())
        digest.update(np.ascontiguousarray(examples.images).data)
        digest.update(np.ascontiguousarray(examples.labels).data)
    return digest.hexdigest()


def assembled(
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
    class_names: tuple[str, ...],
    origin: str,
    notes: tuple[str, ...] = (),
    form: str | None = None,
) -> Dataset:
    """The data set of the images and labels of its splits; those that are not there are empty.

    Raises:
      DataError: a label is outside the classes.
    """
    examples = {}
    for split, (images, labels) in splits.items():
        outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
        if outside.size:
            raise DataError(
                f"{origin}, {split} labels: label {labels[outside[0]]} of example {outside[0]} is outside the classes "
                f"0 to {len(class_names) - 1} ({outside.size:,} such labels)."
            )
        examples[split] = Examples(images, labels.astype(np.int32, copy=False), len(class_names))
    empty = examples["train"][:0]
    validation, test = (examples.get(split, empty) for split in ("validation", "test"))
    return Dataset(examples["train"], validation, test, class_names, origin, notes, form)


def number_names(labels: np.ndarray, where: str) -> tuple[str, ...]:
    """The names of classes that have none: their numbers from 0 to the largest label.

    Raises:
      DataError: the largest label is above any sensible number of classes.
    """
    most = int(labels.max(initial=0))
    if most >= MAX_CLASSES:
        raise DataError(f"{where}: the label {most} is too large. Number the classes from 0, or name them.")
    return tuple(map(str, range(most + 1)))
