"""What a run gets right and wrong on a split, in numbers. Plain NumPy; knows no pictures."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Int

from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.statistics import Share

SPLITS = ("test", "validation", "train")

BINS = 15
"""Of confidences, as Guo et al. (2017) have them."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Whether answers are as often right as the network is sure of them; Guo et al., "On Calibration of Modern Neural
    Networks" (2017). Confidences are put into bins of one width: bin m of M has those above (m-1)/M and up to m/M.

    Attributes:
      count, correct: int [bins], the answers of each bin, and those of them that are right.
      confidence: [bins], the mean of the probabilities that the network gave its answers; NaN in an empty bin.
    """

    count: Int[np.ndarray, " bins"]
    correct: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]

    @property
    def edges(self) -> Float[np.ndarray, " edges"]:
        """Of the bins: one more than there are."""
        return np.linspace(0, 1, len(self.count) + 1)

    @property
    def shares(self) -> list[Share]:
        """Of right answers, in each bin."""
        return [Share(int(right), int(count)) for right, count in zip(self.correct, self.count, strict=True)]

    @property
    def mean_confidence(self) -> float:
        """Of all answers."""
        return float(np.nansum(self.confidence * self.count) / self.count.sum())

    @property
    def expected_error(self) -> float:
        """The expected calibration error: the distance of confidence and accuracy, in the mean over all answers."""
        filled = self.count > 0
        gaps = np.abs(self.correct[filled] / self.count[filled] - self.confidence[filled])
        return float((gaps * self.count[filled]).sum() / self.count.sum())


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What a run says of every example of a split, and what follows from it.

    Attributes:
      split: test, validation or train.
      class_names: `class_names[label]` names a label.
      labels: int32 [n], what the examples are.
      probabilities: float32 [n, classes], what the run gives each class.
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
        """How many examples of each class (row) were taken for each class (column)."""
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
        """Mean cross-entropy, in nats; no example counts for more than 87, where float32 ends."""
        given = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(given, np.finfo(np.float32).tiny), dtype=np.float64).mean())

    @cached_property
    def calibration(self) -> Calibration:
        """How sure the run is, and how often it is right then."""
        bins = np.clip(np.ceil(self.confidences.astype(float) * BINS).astype(int) - 1, 0, BINS - 1)
        count = np.bincount(bins, minlength=BINS)
        correct = np.bincount(bins[self.predictions == self.labels], minlength=BINS)
        total = np.bincount(bins, weights=self.confidences, minlength=BINS)
        return Calibration(count, correct, np.divide(total, count, out=np.full(BINS, np.nan), where=count > 0))

    @cached_property
    def mistakes(self) -> Int[np.ndarray, " mistakes"]:
        """The examples that were taken for another class, by their place in the split: the most confident first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        return wrong[np.argsort(-self.confidences[wrong], kind="stable")]

    @cached_property
    def confused(self) -> list[tuple[int, int, int]]:
        """(class, what it was taken for, how many examples), the most frequent first."""
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        pairs = [(int(is_), int(said), int(wrong[is_, said])) for is_, said in np.argwhere(wrong)]
        return sorted(pairs, key=lambda pair: -pair[2])


def diagnose(run: TrainedRun, dataset: Dataset, split: str = "test") -> Diagnosis:
    """Asks a run about every example of a split.

    Args:
      run: of `lstm_mnist_jax.load_run`.
      dataset: of `lstm_mnist_jax.inference.load_data`.
      split: test, validation or train.

    Raises:
      ConfigError: there is no such split.
      RunError: the network gives no numbers.
    """
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}, expected one of {', '.join(SPLITS)}.")
    examples = dataset.splits[split]
    _, probabilities = run.predict(examples.images)
    if not np.isfinite(probabilities).all():
        raise RunError(
            f"The network of {run.folder.path} at step {run.step} answers with what is no number (NaN): its training "
            "diverged. Choose an earlier --checkpoint."
        )
    return Diagnosis(split, dataset.class_names, examples.labels, probabilities)
