"""Accuracy, confusion, calibration and errors of a run on a split, and its accuracy after each time step."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Int

from lstm_mnist_jax.data import Dataset, Examples
from lstm_mnist_jax.errors import ConfigError, did_you_mean
from lstm_mnist_jax.inference import TrainedRun, classify, require_finite
from lstm_mnist_jax.model import task_of
from lstm_mnist_jax.statistics import Share

SPLITS = ("test", "validation", "train")

BINS = 15
"""Of confidences, as in Guo et al. (2017)."""

MAX_CLASSES = 50
"""Tables and figures show at most so many classes."""

STEP_EXAMPLES = 1000
"""The accuracy after each step is computed on at most so many examples, the first of a split,"""

MIN_STEP_EXAMPLES = 100
"""and not at all on fewer than these,"""

MAX_STEPS = STEP_EXAMPLES * 784
"""where reading them takes more than so many steps. (Bidirectional networks read each prefix anew.)"""

STEP_BATCH = 250


@dataclass(frozen=True, eq=False)
class Calibration:
    """Confidence and accuracy in bins of equal width: bin m of M holds the confidences above (m-1)/M and up to m/M; Guo
    et al., "On Calibration of Modern Neural Networks" (2017).

    Attributes:
      count, correct: int [bins], the predictions of each bin, and the correct ones of them.
      confidence: [bins], the mean confidence; NaN in an empty bin.
    """

    count: Int[np.ndarray, " bins"]
    correct: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]

    @property
    def edges(self) -> Float[np.ndarray, " edges"]:
        """The edges of the bins, [bins + 1]."""
        return np.linspace(0, 1, len(self.count) + 1)

    @property
    def shares(self) -> list[Share]:
        """The accuracy in each bin."""
        return [Share(int(right), int(count)) for right, count in zip(self.correct, self.count, strict=True)]

    @property
    def mean_confidence(self) -> float:
        """Of all predictions."""
        return float(np.nansum(self.confidence * self.count) / self.count.sum())

    @property
    def expected_error(self) -> float:
        """The expected calibration error: the mean of |accuracy - confidence| over all predictions."""
        filled = self.count > 0
        gaps = np.abs(self.correct[filled] / self.count[filled] - self.confidence[filled])
        return float((gaps * self.count[filled]).sum() / self.count.sum())


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The predictions of a run on a split, and statistics of them.

    Attributes:
      split: test, validation or train.
      class_names: `class_names[label]` is the name of a label.
      labels: int32 [n], the true classes.
      probabilities: float32 [n, classes], the predicted probabilities.
    """

    split: str
    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    probabilities: Float32[np.ndarray, "n classes"]

    @cached_property
    def predictions(self) -> Int[np.ndarray, " n"]:
        """The most probable class of each example."""
        return self.probabilities.argmax(axis=-1)

    @cached_property
    def confidences(self) -> Float32[np.ndarray, " n"]:
        """The probability of that class."""
        return self.probabilities.max(axis=-1)

    @cached_property
    def confusion(self) -> Int[np.ndarray, "classes classes"]:
        """The confusion matrix: rows are true classes, columns predicted classes."""
        classes = len(self.class_names)
        pairs = np.bincount(self.labels * classes + self.predictions, minlength=classes**2)
        return pairs.reshape(classes, classes)

    @property
    def accuracy(self) -> Share:
        """Of all examples."""
        return Share(int(self.confusion.trace()), len(self.labels))

    @property
    def by_class(self) -> list[Share]:
        """The accuracy on the examples of each class."""
        rights, counts = self.confusion.diagonal(), self.confusion.sum(axis=1)
        return [Share(int(right), int(count)) for right, count in zip(rights, counts, strict=True)]

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats; an example counts for at most 87, where float32 ends."""
        given = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(given, np.finfo(np.float32).tiny), dtype=np.float64).mean())

    @cached_property
    def calibration(self) -> Calibration:
        """The confidence of the predictions compared with their accuracy."""
        bins = np.clip(np.ceil(self.confidences.astype(float) * BINS).astype(int) - 1, 0, BINS - 1)
        count = np.bincount(bins, minlength=BINS)
        correct = np.bincount(bins[self.predictions == self.labels], minlength=BINS)
        total = np.bincount(bins, weights=self.confidences, minlength=BINS)
        return Calibration(count, correct, np.divide(total, count, out=np.full(BINS, np.nan), where=count > 0))

    @cached_property
    def mistakes(self) -> Int[np.ndarray, " mistakes"]:
        """The places in the split of the misclassified examples, the most confident first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        return wrong[np.argsort(-self.confidences[wrong], kind="stable")]

    @cached_property
    def confused(self) -> list[tuple[int, int, int]]:
        """(true class, predicted class, number of examples) of all confused pairs, the most frequent first."""
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        pairs = [(int(true), int(predicted), int(wrong[true, predicted])) for true, predicted in np.argwhere(wrong)]
        return sorted(pairs, key=lambda pair: -pair[2])

    @property
    def shown_classes(self) -> list[int]:
        """The classes that tables and figures show, in order: at most `MAX_CLASSES`, those with the most errors."""
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        most = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")
        return sorted(int(label) for label in most[:MAX_CLASSES])


def diagnose(run: TrainedRun, dataset: Dataset, split: str = "test") -> Diagnosis:
    """Classifies every example of a split.

    Args:
      run: of `lstm_mnist_jax.load_run`.
      dataset: of `lstm_mnist_jax.inference.load_data`.
      split: test, validation or train.

    Raises:
      ConfigError: there is no such split.
      RunError: a probability is not finite: the training diverged.
    """
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}, expected one of {', '.join(SPLITS)}{did_you_mean(split, SPLITS)}")
    examples = dataset.splits[split]
    _, probabilities = classify(run, examples.images)
    require_finite(run, probabilities)
    return Diagnosis(split, dataset.class_names, examples.labels, probabilities)


@dataclass(frozen=True, eq=False)
class StepAccuracy:
    """Predictions after each time step.

    Attributes:
      examples: the number of examples.
      correct: int [time], how many of them are classified correctly after each step.
      given: [time], the mean probability of the true class.
    """

    examples: int
    correct: Int[np.ndarray, " time"]
    given: Float[np.ndarray, " time"]

    @property
    def accuracy(self) -> Float[np.ndarray, " time"]:
        """The accuracy after each step."""
        return self.correct / self.examples

    def first_step(self, accuracy: float) -> int | None:
        """The first step, counted from 1, with this accuracy or more; None if there is none."""
        reached = np.flatnonzero(self.accuracy >= accuracy)
        return int(reached[0]) + 1 if len(reached) else None


def step_accuracy(run: TrainedRun, examples: Examples) -> StepAccuracy | None:
    """The accuracy after each time step on the first of some examples; None where it would take too long."""
    config = run.folder.config.model
    steps, _ = task_of(config).shape(run.folder.data.image_shape)
    count = min(STEP_EXAMPLES, MAX_STEPS // (steps * steps if config.bidirectional else steps))
    if count < MIN_STEP_EXAMPLES:
        return None
    examples = examples[:count]
    correct, given = np.zeros(steps, int), np.zeros(steps)
    for start in range(0, len(examples), STEP_BATCH):
        part = examples[start : start + STEP_BATCH]
        along = run.read_along(part.images)
        correct += (along.argmax(axis=-1) == part.labels[:, None]).sum(axis=0)
        given += along[np.arange(len(part)), :, part.labels].sum(axis=0)
    return StepAccuracy(len(examples), correct, given / len(examples))
