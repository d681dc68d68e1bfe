"""A folder of IDX files as a data set: MNIST and the sets published in its likeness.

Knows the names under which MNIST, Fashion-MNIST, KMNIST and EMNIST are published, and EMNIST's two habits: its
images are stored transposed, and a mapping file names its classes.
"""

from pathlib import Path

import numpy as np

from lstm_mnist_jax.data.dataset import Dataset, Examples, check_labels
from lstm_mnist_jax.data.idx import read_idx
from lstm_mnist_jax.errors import DataError

TRAIN_PREFIX = "train"
TEST_PREFIXES = ("t10k", "test")


def is_idx_source(path: Path) -> bool:
    """Whether `path` is a folder, or `folder/prefix` with files of that prefix."""
    try:
        return path.is_dir() or any(_is_images_of(path.name + "-", other.name) for other in path.parent.iterdir())
    except OSError:  # no such folder, or no such name possible
        return False


def _is_images_of(prefix: str, name: str) -> bool:
    return len(prefix) > 1 and name.startswith(prefix + TRAIN_PREFIX) and "-images" in name


def load_idx_folder(path: Path) -> Dataset:
    """Loads the training and test files of a folder; the validation split is left empty.

    The files are called `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte` (or `test-...`), each with or without `.gz`, perhaps behind a prefix such as
    `emnist-letters-`. A text file `classes.txt` beside them, one name a line, names the classes.

    Args:
      path: the folder, or `folder/prefix` where the folder holds several sets.

    Raises:
      DataError: a file is missing, damaged or does not fit the others.
    """
    folder, prefix = (path, "") if path.is_dir() else (path.parent, path.name + "-")
    if not prefix:
        prefix = _only_prefix(folder)
    train_images, train_labels = _read_pair(folder, prefix, (TRAIN_PREFIX,))
    test_images, test_labels = _read_pair(folder, prefix, TEST_PREFIXES)
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DataError(
            f"{folder}: training images are {_size(train_images)}, test images {_size(test_images)}; "
            "both must be of one size."
        )
    mapping = folder / f"{prefix}mapping.txt"
    if prefix.startswith("emnist-"):
        train_images, test_images = train_images.swapaxes(1, 2), test_images.swapaxes(1, 2)
        if mapping.exists():
            class_names, first_label = _read_mapping(mapping)
            train_labels, test_labels = train_labels - first_label, test_labels - first_label
        else:
            class_names = _read_class_names(folder, train_labels)
    else:
        class_names = _read_class_names(folder, train_labels)
    check_labels(train_labels, class_names, f"{folder}, training labels")
    check_labels(test_labels, class_names, f"{folder}, test labels")
    train = Examples(train_images, train_labels, len(class_names))
    test = Examples(test_images, test_labels, len(class_names))
    return Dataset(train, train[:0], test, class_names, origin=f"IDX files {folder / prefix.rstrip('-')}")


def _read_pair(folder: Path, prefix: str, splits: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    image_file = _find(folder, prefix, splits, "images-idx3-ubyte")
    label_file = _find(folder, prefix, splits, "labels-idx1-ubyte")
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{image_file} holds {images.dtype} {_size(images, 0)}, expected uint8 images "
            "[count, height, width], at least one. Is it a file of labels under the name of images?"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{label_file} holds {labels.dtype} {_size(labels, 0)}, expected one integer an image. "
            "Is it a file of images under the name of labels?"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{image_file} has {len(images):,} images but {label_file.name} {len(labels):,} labels: "
            "the two files do not belong together."
        )
    return images, labels.astype(np.int32)


def _find(folder: Path, prefix: str, splits: tuple[str, ...], kind: str) -> Path:
    stems = [f"{prefix}{split}-{kind}" for split in splits]
    names = [name for stem in stems for name in (stem, stem.replace("-idx", ".idx"))]
    for name in names:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.exists():
                return candidate
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    raise DataError(f"{folder} has no {stems[0]} or {stems[0]}.gz. It holds: {present}.")


def _only_prefix(folder: Path) -> str:
    """The prefix of the folder's one data set: '' for MNIST's own names."""
    marker = f"{TRAIN_PREFIX}-images"
    prefixes = {path.name.split(marker)[0] for path in folder.iterdir() if marker in path.name}
    if "" in prefixes or not prefixes:
        return ""
    if len(prefixes) > 1:
        choices = ", ".join(str(folder / prefix.rstrip("-")) for prefix in sorted(prefixes))
        raise DataError(f"{folder} holds several data sets; name one of them: {choices}.")
    return prefixes.pop()


def _read_class_names(folder: Path, labels: np.ndarray) -> tuple[str, ...]:
    names_file = folder / "classes.txt"
    if names_file.exists():
        try:
            names = [line.strip() for line in names_file.read_text("utf-8").splitlines() if line.strip()]
        except ValueError as error:
            raise DataError(f"{names_file} is not UTF-8 text: {error}.") from error
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{names_file} names several classes {twice!r}.")
        return tuple(names)
    return tuple(str(label) for label in range(int(labels.max()) + 1))


def _read_mapping(path: Path) -> tuple[tuple[str, ...], int]:
    """EMNIST's mapping: a label and the ASCII code of its character (perhaps of both cases) a line."""
    try:
        rows = [[int(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip()]
        names = tuple("/".join(chr(code) for code in row[1:]) for row in rows)
        labels = [row[0] for row in rows]
    except (ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{path} is not a mapping of labels to ASCII codes: {error}.") from error
    if not labels or labels != list(range(labels[0], labels[0] + len(labels))):
        raise DataError(f"{path} does not number the classes one by one: {labels}.")
    return names, labels[0]


def _size(array: np.ndarray, first_axis: int = 1) -> str:
    return " x ".join(map(str, array.shape[first_axis:]))
