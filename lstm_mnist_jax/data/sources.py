"""The named sources of labelled images, and how one of them becomes three splits.

A source gives training and test examples (and, some, a validation split of its own); this file cuts the
validation examples from the front of the training examples, as the classic `read_data_sets` did.
"""

from dataclasses import replace
from pathlib import Path

from lstm_mnist_jax.data.dataset import Dataset
from lstm_mnist_jax.data.idx_folder import is_idx_source, load_idx_folder
from lstm_mnist_jax.errors import DataError

EMBEDDED_MNIST = Path(__file__).parent / "mnist"


def load(
    source: str | Path = "mnist",
    *,
    validation_examples: int = 5000,
    train_examples: int | None = None,
    data_dir: str | None = None,
) -> Dataset:
    """Loads a data set.

    Args:
      source: "mnist" (embedded in the package, no network); a folder of IDX files, gzipped or not, as
        MNIST, Fashion-MNIST, KMNIST and EMNIST are published (`folder/prefix` where a folder holds several
        sets, as EMNIST's does); or "tfds:NAME", an image classification set of TensorFlow Datasets that was
        prepared in the array_record format. TensorFlow is not imported.
      validation_examples: how many examples to move from the front of the training examples to the
        validation split. Ignored where the source has a validation split of its own.
      train_examples: how many of the remaining training examples to keep, from the front; None keeps all.
      data_dir: the folder of prepared TFDS data; None is TFDS's own default. Ignored by other sources.

    Returns:
      The data set: uint8 images, int32 labels, class names and origin.

    Raises:
      DataError: the source is unknown, missing, damaged or inconsistent, or has too few examples.
    """
    source = str(source)
    if source == "mnist":
        dataset = replace(load_idx_folder(EMBEDDED_MNIST), origin="MNIST, embedded in the package")
    elif source.startswith("tfds:"):
        from lstm_mnist_jax.data.tfds import load_tfds  # a second of imports, only for those who use it

        dataset = load_tfds(source.removeprefix("tfds:"), data_dir)
    elif is_idx_source(path := _expand(source)):
        dataset = load_idx_folder(path)
    else:
        raise DataError(
            f"Unknown data source {source!r}: there is no folder of this name. Expected 'mnist', "
            "a folder of IDX files, or 'tfds:NAME' (such as tfds:fashion_mnist)."
        )
    return _split(dataset, validation_examples, train_examples)


def absolute_source(source: str) -> str:
    """The same source, whatever folder a program is started from later: folders become absolute."""
    named = source == "mnist" or source.startswith("tfds:")
    return source if named or not is_idx_source(path := _expand(source)) else str(path.absolute())


def _expand(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~nobody
        return Path(source)


def _split(dataset: Dataset, validation_examples: int, train_examples: int | None) -> Dataset:
    if len(dataset.validation) == 0:
        if not 0 < validation_examples < len(dataset.train):
            raise DataError(
                f"validation_examples is {validation_examples:,}, expected 1 to {len(dataset.train) - 1:,}: "
                f"{dataset.origin} has {len(dataset.train):,} training examples to share."
            )
        dataset = replace(
            dataset, validation=dataset.train[:validation_examples], train=dataset.train[validation_examples:]
        )
    if train_examples is not None:
        if not 0 < train_examples <= len(dataset.train):
            raise DataError(
                f"train_examples is {train_examples:,}, expected 1 to {len(dataset.train):,}: "
                f"so many of {dataset.origin} are left for training."
            )
        dataset = replace(dataset, train=dataset.train[:train_examples])
    return dataset
