"""`load`: the named sources of labelled images.

Where a source has no validation split, it is cut from the front of the training examples, as by the classic
`read_data_sets`.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from lstm_mnist_jax.data.dataset import Dataset
from lstm_mnist_jax.data.idx import is_idx_source, load_idx_folder
from lstm_mnist_jax.errors import DataError, did_you_mean

EMBEDDED_MNIST = Path(__file__).parent / "mnist"

FASHION_MNIST = "fashion-mnist"
SYSTEM_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""The folder of the package dataset-fashion-mnist of Debian and Ubuntu."""
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load(
    source: str | Path = "mnist",
    *,
    validation_examples: int = 5000,
    train_examples: int | None = None,
    data_dir: str | None = None,
) -> Dataset:
    """Loads a data set.

    Args:
      source: "mnist" (in the package, no network); "fashion-mnist" (a folder of this name, or what Debian's package
        dataset-fashion-mnist installs); a folder of IDX files, gzipped or not, as MNIST, Fashion-MNIST, KMNIST and
        EMNIST are published (`folder/prefix` where a folder holds several sets, as EMNIST's does); or "tfds:NAME", an
        image classification set of TensorFlow Datasets, prepared in the array_record format.
      validation_examples: the number of examples to move from the front of the training examples to the validation
        split. Ignored where the source has a validation split.
      train_examples: the number of the remaining training examples to keep, from the front; None keeps all.
      data_dir: the folder of prepared TFDS data; None is TFDS's own default. Ignored by other sources.

    Returns:
      The data set: splits `train`, `validation` and `test` of uint8 images [n, height, width] or [n, height, width,
      channels] and int32 labels [n]; the names of the classes; and where it came from.

    Raises:
      DataError: the source is unknown, missing, damaged or inconsistent, or has too few examples.

    Examples:
      >>> from lstm_mnist_jax import load
      >>> dataset = load()
      >>> dataset.train.images.shape, dataset.train.images.dtype, dataset.test.labels.shape
      ((55000, 28, 28), dtype('uint8'), (10000,))
    """
    source = str(source)
    if source == "mnist":
        dataset = _embedded_mnist()
    elif source.startswith("tfds:"):
        from lstm_mnist_jax.data.tfds import load_tfds  # a second of imports, only for those who use it

        dataset = load_tfds(source.removeprefix("tfds:"), data_dir)
    elif is_idx_source(path := _expand(source)):
        dataset = load_idx_folder(path)
        if path.name == FASHION_MNIST and not (path / "classes.txt").exists():
            dataset = replace(dataset, class_names=FASHION_CLASSES)
    elif source == FASHION_MNIST:
        dataset = _load_system_fashion_mnist()
    else:
        reason = "it is a file" if _is_file(path) else "there is no folder of this name"
        nearest = did_you_mean(source, ("mnist", FASHION_MNIST))
        raise DataError(
            f"Unknown data source {source!r}: {reason}. Expected 'mnist', 'fashion-mnist', a folder of IDX files, or "
            f"'tfds:NAME' (such as tfds:kmnist){nearest}"
        )
    return _split(dataset, validation_examples, train_examples)


@cache
def _embedded_mnist() -> Dataset:
    """Read once in a process (0.15 s, 55 MB). Its arrays are read-only."""
    dataset = replace(load_idx_folder(EMBEDDED_MNIST), origin="MNIST, embedded in the package")
    for examples in (dataset.train, dataset.test):
        examples.images.flags.writeable = examples.labels.flags.writeable = False
    return dataset


def _load_system_fashion_mnist() -> Dataset:
    if not is_idx_source(SYSTEM_FASHION_MNIST):
        raise DataError(
            "Fashion-MNIST is not here. Install it with apt-get install dataset-fashion-mnist (Debian, Ubuntu); or put "
            "its four IDX files (train-images-idx3-ubyte.gz and so on, from zalandoresearch/fashion-mnist on GitHub) "
            f"into a folder named {FASHION_MNIST}, or name their folder with --source; or use --source "
            "tfds:fashion_mnist."
        )
    return replace(load_idx_folder(SYSTEM_FASHION_MNIST), class_names=FASHION_CLASSES)


def absolute_source(source: str) -> str:
    """The source with an absolute path, for programs that are started in another folder."""
    named = source == "mnist" or source.startswith("tfds:")
    return source if named or not is_idx_source(path := _expand(source)) else str(path.absolute())


def _expand(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~nobody
        return Path(source)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def _split(dataset: Dataset, validation_examples: int, train_examples: int | None) -> Dataset:
    if len(dataset.validation) == 0:
        if not 0 < validation_examples < len(dataset.train):
            raise DataError(
                f"validation_examples is {validation_examples:,}, expected 1 to {len(dataset.train) - 1:,}: "
                f"{dataset.origin} has {len(dataset.train):,} training examples. A tenth is usual: "
                f"--validation-examples {max(1, len(dataset.train) // 10)}."
            )
        dataset = replace(
            dataset, validation=dataset.train[:validation_examples], train=dataset.train[validation_examples:]
        )
    if train_examples is not None:
        if not 0 < train_examples <= len(dataset.train):
            raise DataError(
                f"train_examples is {train_examples:,}, expected 1 to {len(dataset.train):,}: "
                f"{dataset.origin} has this many training examples after the validation split. --train-examples None "
                "takes all."
            )
        dataset = replace(dataset, train=dataset.train[:train_examples])
    counts = np.bincount(dataset.train.labels, minlength=dataset.train.num_classes)
    if missing := [name for name, count in zip(dataset.class_names, counts, strict=False) if not count]:
        raise DataError(
            f"Of the {len(dataset.train):,} training examples of {dataset.origin}, none is of class "
            f"{', '.join(missing[:10])}{' ...' * (len(missing) > 10)}. Train on more of them, or fix the labels."
        )
    return dataset
