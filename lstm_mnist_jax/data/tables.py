"""Data sets in .npz, .npy and .csv files, one or several of a folder: arrays by their usual names as splits."""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstm_mnist_jax.data.csv_table import counts_up, read_csv
from lstm_mnist_jax.data.dataset import Dataset, assembled, number_names
from lstm_mnist_jax.data.idx import emnist_names, emnist_upright, read_class_names
from lstm_mnist_jax.data.image_folder import SPLIT_OF, naturally
from lstm_mnist_jax.data.npz import npz_members, read_npy
from lstm_mnist_jax.data.pictures import printable
from lstm_mnist_jax.errors import DataError

TEXT_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
ENDINGS = (".npz", ".npy", *TEXT_ENDINGS)

IMAGES = ("x", "image", "images", "img", "imgs", "data", "feature", "features", "pixels", "input", "inputs")
LABELS = ("y", "label", "labels", "target", "targets", "class", "classes")
ROLE_OF = dict.fromkeys(IMAGES, "images") | dict.fromkeys(LABELS, "labels")
JOINED = {f"{a}{b}": (split, role) for split_word, split in SPLIT_OF.items() for word, role in (("x", "images"),
          ("y", "labels")) for a, b in ((word, split_word), (split_word, word))}  # fmt: skip
"""Such as xtrain and trainx."""

FEW_LEVELS = 16
"""Integers up to it, as those of scikit-learn's digits, are scaled to 255; fractions are no pixels."""

OTHER_SEQUENCES = "For sequences that are no images, train the layers: see docs/layers.md."

ROUNDED_ONE = 1.001
"""The largest 1 of images that were resized or averaged."""


class _Part(NamedTuple):
    """Images, labels or both of a split, if a name says which; `read` gives those that it has."""

    split: str | None
    role: str | None
    where: str
    read: Callable[[], dict[str, Any]]


def is_table(path: Path) -> bool:
    """Whether a file has the ending of a table, and is not hidden."""
    return path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")


def load_tables(path: Path, image_size: tuple[int, ...] = ()) -> Dataset:
    """Loads a file, or the files of a folder. Splits that are not there are left empty.

    Args:
      path: a .csv or .tsv file, gzipped or not; a .npz file; or a folder of these and .npy files, whose names say
        which split they are.
      image_size: of images that are rows of pixels; () for square ones.

    Raises:
      DataError: there are not both images and labels, they do not fit together, or a file is damaged.
    """
    files = sorted(filter(is_table, path.iterdir())) if path.is_dir() else [path]
    parts, unread = _named_splits([part for file in files for part in _parts(file)], path)
    images, labels, notes = dict[str, np.ndarray](), dict[str, np.ndarray](), list[str]()
    for split in ("train", "validation", "test"):
        of_split = [part for part in parts if part.split == split]
        found = {role: array for part in of_split for role, array in part.read().items() if array is not None}
        where = ", ".join(part.where for part in of_split)
        place = str(path) if where == path.name else f"{path} ({where})"
        if missing := [role for role in ("images", "labels") if role not in found]:
            if found and split != "train" and missing == ["labels"]:
                notes.append(f"{where} without labels: not used")
            elif found or split == "train":
                names = ", ".join([part.where for part in parts] or unread) or "nothing"
                advice = (
                    " Arrays get names with numpy.savez(file, x_train=..., y_train=...)."
                    if any(re.search(r": arr_[0-9]+$", name) for name in unread)
                    else ""
                )
                raise DataError(
                    f"{path}: of the {split} split, the {' and '.join(missing)} are missing; found: {names}. Name "
                    f"arrays such as x_train, y_train, x_test, y_test, and a table's column of labels 'label'.{advice}"
                )
            continue
        images[split], flat = _shaped(found["images"], image_size, place, found["labels"])
        labels[split], hot = _flat_labels(found["labels"], len(images[split]), place)
        notes += [str(found.get("note", "")), flat, hot]
    if len(shapes := {array.shape[1:] for array in images.values()}) > 1:
        sizes = ", ".join(" x ".join(map(str, shape)) for shape in sorted(shapes))
        raise DataError(f"{path}: the splits have images of several sizes: {sizes}. Make them of one size.")
    images, scaled = _as_bytes(images, path)
    part_of_emnist = _part_of_emnist(parts, path)
    if part_of_emnist is not None:
        images = {split: emnist_upright(array) for split, array in images.items()}
        notes.append("transposed, as EMNIST is published")
    labels, class_names = _numbered(labels, part_of_emnist, path)
    if unread:
        notes.append(f"not read: {', '.join(unread[:5])}{' ...' * (len(unread) > 5)}")
    size = " x ".join(map(str, images["train"].shape[1:]))
    return assembled(
        {split: (images[split], labels[split]) for split in images},
        class_names,
        origin=f"table {path}" if not path.is_dir() else f"tables in {path}",
        notes=tuple(dict.fromkeys(filter(None, [f"{size} pixels, {len(class_names)} classes", *scaled, *notes]))),
    )


def _parts(file: Path) -> list[_Part]:
    split, role = _meaning(file.name.split(".")[0])
    name = file.name.lower()
    if name.endswith(".npy"):
        return [_Part(split, role, file.name, lambda: {str(role): read_npy(file)})]
    if not name.endswith(".npz"):
        return [_Part(split, "both", file.name, lambda: read_csv(file)._asdict())]
    found = []
    for member, read in npz_members(file).items():
        own_split, own_role = _meaning(member)
        named = str(own_role or role)
        where = f"{file.name}: {member}"
        found.append(_Part(own_split or split, own_role or role, where, partial(_under, named, read)))
    return found


def _under(role: str, read: Callable[[], np.ndarray]) -> dict[str, Any]:
    return {role: read()}


def _meaning(name: str) -> tuple[str | None, str | None]:
    """The split and the role that a name says."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    words = re.findall(r"t10k|[a-z]+", name)
    if "names" in words:  # such as class_names
        return None, None
    joined = [JOINED[word] for word in words if word in JOINED]
    splits = [SPLIT_OF[word] for word in words if word in SPLIT_OF] + [split for split, _ in joined]
    roles = [ROLE_OF[word] for word in words if word in ROLE_OF] + [role for _, role in joined]
    return splits[0] if len(set(splits)) == 1 else None, roles[-1] if roles else None


def _named_splits(parts: list[_Part], path: Path) -> tuple[list[_Part], list[str]]:
    """The parts of each split, where one is named, else all as training examples; and the names of the others."""
    used = [part for part in parts if part.role is not None]
    has_train = any(part.split == "train" for part in used)
    if has_train:
        used = [part for part in used if part.split is not None]
    elif (not path.is_dir() and len(used) == 1) or not any(part.split for part in used):  # a file that is named alone
        used = [part._replace(split="train") for part in used]
    else:
        used = [part._replace(split=part.split or "train") for part in used]
    for n, part in enumerate(used):
        for other in used[:n]:
            if part.split == other.split and (part.role == other.role or "both" in (part.role, other.role)):
                raise DataError(
                    f"{path}: both {other.where} and {part.where} could be the {part.split} split. Keep one, or name "
                    "one file with --source."
                )
    kept = {part.where for part in used}
    return used, [part.where for part in parts if part.where not in kept]


def _shaped(array: np.ndarray, image_size: tuple[int, ...], where: str, labels: np.ndarray) -> tuple[np.ndarray, str]:
    """Images [n, height, width] or [n, height, width, 3], and a note on what was assumed."""
    shape = array.shape
    if array.dtype.kind not in "buif":
        raise DataError(f"{where}: the images are of type {array.dtype}, expected numbers.")
    if array.ndim < 2 or 0 in shape:
        raise DataError(f"{where}: the images have shape {list(shape)}, expected [n, height, width], at least one.")
    note = ""
    if array.ndim == 2:
        side = math.isqrt(shape[1])
        size = image_size or (side, side)
        if math.prod(size) != shape[1]:
            hint = "it is no square: give height and width, such as --image-size 20 30"
            index = [name for name, column in (("taken for labels", labels), ("first of the pixels", array[:, 0]),
                     ("last of the pixels", array[:, -1])) if counts_up(column)]  # fmt: skip
            if index and math.isqrt(shape[1] - 1) ** 2 == shape[1] - 1:
                side = math.isqrt(shape[1] - 1)
                hint = (
                    f"without one they would be {side} x {side}. The column {index[0]} counts the rows and looks like "
                    "an index: drop it, or add a header that names the columns, such as id, label, pixel0"
                )
            elif math.isqrt(shape[0]) ** 2 == shape[0] or math.isqrt(shape[0] - 1) ** 2 == shape[0] - 1:
                hint += "; or is the table transposed, with an image a column?"
            what = hint if not image_size else f"--image-size {' '.join(map(str, image_size))} has {math.prod(size)}."
            raise DataError(f"{where}: an image has {shape[1]:,} pixels; {what}")
        array = array.reshape(-1, *size)
        if size[2:] == (3,):
            note = "the three channels of a pixel stand together in a row, which is assumed"
    elif array.ndim == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        array, note = np.moveaxis(array, 1, -1), "channels moved from the second axis to the last"
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] != 3):
        raise DataError(
            f"{where}: the images have shape {list(shape)}, expected [n, pixels], [n, height, width], or one or three "
            "channels after or before the two."
        )
    if image_size and array.shape[1:] != tuple(image_size[: 2 if image_size[2:] == (1,) else 3]):
        raise DataError(
            f"{where}: the images are {' x '.join(map(str, array.shape[1:]))}, not of --image-size "
            f"{' '.join(map(str, image_size))}; only pictures are resized."
        )
    return array, note


def _as_bytes(images: dict[str, np.ndarray], path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """uint8 images, by one scale for all splits; and notes on it."""
    for split, array in images.items():
        if not array.min() >= 0:  # also not a number
            place = tuple(int(n) for n in np.argwhere(~(array >= 0))[0])
            raise DataError(
                f"{path}, {split} split: pixel {list(place[1:])} of image {place[0]} is {array[place]}; expected 0 to "
                f"255, or 0 to 1. Undo a normalization before saving. {OTHER_SEQUENCES}"
            )
    brightest = {split: float(array.max()) for split, array in images.items()}
    most = max(brightest.values())
    if min(brightest.values()) < most / 4:
        listed = ", ".join(f"{value:g} in {split}" for split, value in brightest.items())
        raise DataError(f"{path}: the splits have several scales: the brightest pixel is {listed}. Save all by one.")
    types = {array.dtype for array in images.values()}
    is_whole = all(array.dtype.kind in "bui" or (array == np.rint(array)).all() for array in images.values())
    if most <= ROUNDED_ONE:
        factor, note = 255.0, "" if types == {np.dtype(bool)} else "pixels from 0 to 1, times 255"
    elif most <= FEW_LEVELS and is_whole:
        factor, note = 255 / most, f"pixels from 0 to {most:g}, scaled to 255"
    elif FEW_LEVELS < most <= 255:
        factor, note = 1.0, "" if is_whole else "pixels rounded"
    elif types == {np.dtype(np.uint16)} and most >= 1 << 15:
        factor, note = 1 / 257, "16 bits reduced to 8"
    else:
        raise DataError(
            f"{path}: a pixel is {most:g}, and none is brighter; expected 0 to 255, 0 to 1, or uint16 up to 65,535. "
            f"Scale the images before saving. {OTHER_SEQUENCES}"
        )
    notes = [note, f"the brightest pixel is {most:g} of 255" if factor == 1 and most < 128 else ""]
    if factor == 1 and is_whole:
        return {split: array.astype(np.uint8, copy=False) for split, array in images.items()}, notes
    scaled = {split: np.minimum(np.rint(array * np.float32(factor)), 255) for split, array in images.items()}
    return {split: array.astype(np.uint8) for split, array in scaled.items()}, notes


def _flat_labels(labels: np.ndarray, count: int, where: str) -> tuple[np.ndarray, str]:
    """Labels [n] as integers or text, and a note where they were one-hot."""
    note = ""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "buif" and len(labels):
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise DataError(f"{where}: labels of shape {list(labels.shape)} are not one-hot (one 1 a row, else 0).")
        labels, note = labels.argmax(axis=1), "labels were one-hot"
    if labels.ndim != 1 or labels.dtype.kind not in "buifUS":
        raise DataError(
            f"{where}: labels are {labels.dtype} of shape {list(labels.shape)}, expected one integer or name an image."
        )
    if len(labels) != count:
        raise DataError(f"{where}: there are {count:,} images but {len(labels):,} labels. They do not belong together.")
    if labels.dtype.kind == "S":
        labels = np.array([text.decode("utf-8", "replace") for text in labels.tolist()], dtype=str)
    if labels.dtype.kind == "U":
        return labels, note
    bad = ~np.isfinite(labels) | (labels != np.rint(labels)) if labels.dtype.kind == "f" else np.zeros(count, bool)
    bad = bad | (labels < 0) | (labels > np.iinfo(np.int32).max)
    if bad.any():
        n = int(np.flatnonzero(bad)[0])
        raise DataError(f"{where}: label {labels[n]} of example {n} is no class; expected integers from 0.")
    return labels.astype(np.int32), note


def _part_of_emnist(parts: list[_Part], path: Path) -> str | None:
    """Such as "letters", by the names of the files as they are published; None for other files."""
    names = [re.match(r"emnist-([a-z]+)", part.where.lower()) for part in parts]
    found = {name and name[1] for name in names}
    if len(found) > 1:
        listed = ", ".join(part.where for part in parts)
        raise DataError(f"{path} holds files of several sets, or of EMNIST and others: {listed}. Name one.")
    return found.pop()


def _numbered(
    labels: dict[str, np.ndarray], part_of_emnist: str | None, path: Path
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels as numbers, and the names of the classes."""
    names = read_class_names(path) if path.is_dir() else None
    every = np.concatenate(list(labels.values()))
    if every.dtype.kind == "U":
        names = names or tuple(naturally(set(every.tolist())))
        number_of = {name: number for number, name in enumerate(names)}
        numbers = {}
        for split, array in labels.items():
            texts = array.astype(str).tolist()
            for n, text in enumerate(texts):
                if not text or text not in number_of:
                    fault = f"label {printable(text[:50])!r} of example {n} is not in classes.txt" if text else (
                        f"example {n} has no label")  # fmt: skip
                    raise DataError(f"{path}, {split} split: {fault}.")
            numbers[split] = np.array([number_of[text] for text in texts], np.int32)
        return numbers, tuple(printable(name[:100]) for name in names)
    if names is None and part_of_emnist is not None:
        names, first = emnist_names(part_of_emnist, every)
        labels = {split: array - np.int32(first) for split, array in labels.items()}
    return labels, names or number_names(every, str(path))
