"""Folders of pictures, one folder a class: `train/CLASS/*.png` and `test/CLASS/*.png`, or `CLASS/*.png` alone.

The arrangement is that of torchvision's ImageFolder and of Keras's image_dataset_from_directory.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from lstm_mnist_jax.data.dataset import Dataset, assembled
from lstm_mnist_jax.data.normal_form import normalise
from lstm_mnist_jax.data.pictures import SUFFIXES, Picture, printable, read_pictures
from lstm_mnist_jax.errors import DataError
from lstm_mnist_jax.progress import Reading

SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst", "t10k", "eval"),
}
SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
"""Names of splits: of folders, files and arrays."""

LARGEST_KEPT = 64
"""Pictures of one size up to this side keep it."""

USUAL_SIZE = (28, 28)
MAX_PICTURES = 10_000_000
MAX_IMAGE_BYTES = 1 << 36
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")

Files = dict[str, dict[str, list[Path]]]
"""By split and class."""


def has_class_folders(path: Path, at_least: int = 1) -> bool:
    """Whether so many of the folders in `path` hold a picture, at any depth."""
    holding = (True for folder in _folders(path) if any(True for _ in _pictures(folder)))
    return len(list(islice(holding, at_least))) == at_least


def load_image_folder(path: Path, form: str = "whole", image_size: tuple[int, ...] = ()) -> Dataset:
    """Loads the pictures of a folder with a folder for each class. Splits that are not there are left empty.

    Args:
      path: holds `train`, perhaps `validation` and `test` (or other usual names) with the folders of the classes in
        them; or the folders of the classes. Only one folder in it, which holds these, is entered.
      form: of `normalise`: "whole" or "digit".
      image_size: (height, width), or with 1 or 3 channels; () keeps a common size up to 64, else takes 28 x 28, and has
        three channels where a picture has colours.

    Raises:
      DataError: there are no class folders, or a picture is damaged.
    """
    root = _entered(path)
    files, notes = _find(root)
    names = tuple(naturally({name for split in files.values() for name in split}))
    count = sum(len(paths) for split in files.values() for paths in split.values())
    if len(names) < 2:
        raise DataError(f"{root} holds the folder of one class only, {', '.join(names)!r}. Expected two or more.")
    if count > MAX_PICTURES:
        raise DataError(f"{path} holds {count:,} pictures, more than the {MAX_PICTURES:,} that can be read.")
    every = [file for split in files.values() for paths in split.values() for file in paths]
    height, width = image_size[:2] or _common_size(every, form)
    channels = (3,) if image_size[2:] == (3,) else ()
    if channels and form == "digit":
        raise DataError("The form of digits is grey: leave out the channels of --image-size, or use --form whole.")
    if count * height * width > MAX_IMAGE_BYTES:
        raise DataError(f"{count:,} pictures of {height} x {width} do not fit into memory. Reduce --image-size.")
    with Reading(f"reading the pictures of {path}", count) as reading:
        try:
            splits = _read(files, names, (height, width, *channels), form, len(image_size) == 3, reading)
        except _Colours:
            splits = _read(files, names, (height, width, 3), form, True, reading)
    shape = splits["train"][0].shape[1:]
    few = [*names[:3], "..."] if len(names) > 4 else names
    what = f"{' x '.join(map(str, shape))} pixels, form {form}, {len(names)} classes: {', '.join(map(printable, few))}"
    return assembled(splits, tuple(map(printable, names)), f"pictures in {path}", (what, *notes), form)


def naturally(names: Iterable[str]) -> list[str]:
    """Sorted as people do: class 2 before class 10."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = [part for part in re.split(r"([0-9]+)", name) if part]
        return [(0, int(part[:300]), "") if part[0] in "0123456789" else (1, 0, part) for part in parts], name

    return sorted(names, key=key)


class _Colours(Exception):
    """A picture has colours, where all were grey so far."""


def _pictures(root: Path, others: "Counter[str] | None" = None) -> Iterable[Path]:
    """The pictures in a folder at any depth, in links to folders too, but not what is hidden or of the system's.

    `others` counts the endings of all other files.
    """
    above = dict[str, tuple[tuple[int, int], ...]]()
    try:
        for place, folders, names in os.walk(root, followlinks=True, onerror=_raise):
            status, parents = os.stat(place), above.get(os.path.dirname(place), ())
            above[place] = (*parents, (status.st_dev, status.st_ino))
            if above[place][-1] in parents:  # links can go in circles
                folders.clear()
                continue
            folders[:] = naturally(name for name in folders if name[0] != "." and name not in SYSTEM_FOLDERS)
            for name in naturally(names):
                ending = os.path.splitext(name)[1].lower()
                if name[0] != "." and ending in SUFFIXES:
                    yield Path(place, name)
                elif others is not None and name[0] != "." and name.lower() not in ("thumbs.db", "desktop.ini"):
                    others[ending or name] += 1
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read: {error.strerror or error}.") from error


def _raise(error: OSError) -> None:
    raise error


def _folders(path: Path) -> list[Path]:
    return [child for child in path.iterdir() if child.is_dir() and child.name[0] != "." and
            child.name not in SYSTEM_FOLDERS]  # fmt: skip


def _entered(path: Path) -> Path:
    """The folder that holds several: archives often have one around all."""
    while (
        len(inner := _folders(path)) == 1
        and inner[0].name.lower() not in SPLIT_OF
        and len(_folders(inner[0])) > 0
        and not any(file.parent == path for file in islice(_pictures(path), 1))
    ):
        path = inner[0]
    return path


def _find(root: Path) -> tuple[Files, list[str]]:
    """The pictures of each class of each split, and notes on what is left out."""
    children, others = _folders(root), Counter[str]()
    split_of = {child.name: SPLIT_OF[child.name.lower()] for child in children if child.name.lower() in SPLIT_OF}
    if "train" not in split_of.values():  # perhaps training_set and test_set
        said = {child.name: SPLIT_OF.keys() & set(re.findall("[a-z0-9]+", child.name.lower())) for child in children}
        split_of = {name: SPLIT_OF[found.pop()] for name, found in said.items() if len(found) == 1}
        if not {"train"} < set(split_of.values()):  # a class may be train_station
            split_of = {}
    if len(set(split_of.values())) < len(split_of):
        raise DataError(f"{root} has several folders for one split: {', '.join(sorted(split_of))}. Keep one each.")
    files: Files = {split: {} for split in split_of.values()} or {"train": {}}
    loose, unused = 0, Counter[str]()
    for file in _pictures(root, others):
        parts = file.relative_to(root).parts
        split = split_of.get(parts[0]) if split_of else "train"
        inner = parts[1:] if split_of else parts
        if split is None:
            unused[parts[0]] += 1
        elif len(inner) < 2:
            loose += 1
        elif words := [word for word in inner[:-1] if word.lower() in SPLIT_OF]:
            raise DataError(
                f"{file.parent}: a folder {words[0]!r} within a class. Expected {words[0]}/CLASS/, not "
                f"CLASS/{words[0]}/, and one data set in a folder."
            )
        else:
            files[split].setdefault(_class_name(inner[0], root), []).append(file)
    if split_of:
        for split_name, split in split_of.items():
            for child in _folders(root / split_name):
                files[split].setdefault(_class_name(child.name, root), [])
    else:
        for child in children:
            files["train"].setdefault(_class_name(child.name, root), [])
    if not any(files["train"].values()):
        listed = ", ".join(sorted(others)[:5]) or "none"
        raise DataError(
            f"{root} has no pictures for training in folders of classes (read are {', '.join(SUFFIXES)}; other files: "
            f"{printable(listed)})."
        )
    notes = [f"{loose:,} pictures outside of class folders left out"] * bool(loose)
    notes += [f"folder {printable(name)!r} left out ({number:,} pictures)" for name, number in unused.items()]
    if others:
        listed = ", ".join(f"{number:,} {printable(ending)}" for ending, number in others.most_common(3))
        notes.append(f"other files left out: {listed}{' ...' * (len(others) > 3)}")
    files = {split: classes for split, classes in files.items() if split == "train" or any(classes.values())}
    return files, notes


def _class_name(folder: str, root: Path) -> str:
    """The name of a class, the same however the file system composes accents."""
    try:
        folder.encode()
    except UnicodeEncodeError:
        raise DataError(f"{root}: the name of the folder {folder!a} is not UTF-8. Rename it.") from None
    return unicodedata.normalize("NFC", folder)


def _common_size(files: list[Path], form: str) -> tuple[int, int]:
    """The size of all pictures, where it is one and small; else MNIST's. Reads their headers only."""
    from PIL import Image

    if form == "digit":
        return USUAL_SIZE
    sizes = set[tuple[int, int]]()
    for file in files:
        try:
            if file.suffix.lower() == ".npy":
                sizes |= {picture.shape[:2] for _, picture in read_pictures(str(file))}
            else:
                with Image.open(file) as image:
                    sizes.add(image.size[::-1])
        except Exception:  # it is reported when the picture is decoded
            continue
        if len(sizes) > 1 or max(max(size) for size in sizes) > LARGEST_KEPT:
            return USUAL_SIZE
    return sizes.pop() if sizes else USUAL_SIZE


def _read(
    files: Files, names: tuple[str, ...], shape: tuple[int, ...], form: str, fixed: bool, reading: Reading
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each split. Raises _Colours at one with colours, where `shape` is grey and not `fixed`."""
    splits = {}
    for split, classes in files.items():
        images, labels = list[np.ndarray](), list[int]()
        for label, name in enumerate(names):
            for file in classes.get(name, []):
                for shown, picture in read_pictures(str(file)):
                    if picture.ndim == 3 and len(shape) == 2 and form == "whole" and not fixed:
                        raise _Colours
                    images.append(_normal(picture, shape, form, shown))
                    labels.append(label)
                reading.advance(1)
        splits[split] = np.stack(images), np.array(labels, np.int32)
    return splits


def _normal(picture: Picture, shape: tuple[int, ...], form: str, shown: str) -> np.ndarray:
    try:
        return np.rint(255 * normalise(picture, shape, form)).astype(np.uint8)
    except DataError as error:
        raise DataError(f"{printable(shown)}: {error}") from error
