"""`load`: the named sources of labelled images.

Where a source has no validation split, it is cut from the front of the training examples, as by the classic
`read_data_sets`; or stratified, where classes would be lacking at the front.
"""

import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from lstm_mnist_jax.config.json import from_dict
from lstm_mnist_jax.config.options import DataConfig
from lstm_mnist_jax.data.cache import cached
from lstm_mnist_jax.data.dataset import Dataset
from lstm_mnist_jax.data.idx import has_idx_files, is_idx_source, load_idx_folder, refuse_bomb
from lstm_mnist_jax.data.image_folder import has_class_folders, load_image_folder
from lstm_mnist_jax.data.npz import damaged
from lstm_mnist_jax.data.pictures import SUFFIXES, checked_levels
from lstm_mnist_jax.data.splits import split
from lstm_mnist_jax.data.tables import TEXT_ENDINGS, is_table, load_tables
from lstm_mnist_jax.errors import ConfigError, DataError, did_you_mean
from lstm_mnist_jax.progress import Reading

EMBEDDED_MNIST = Path(__file__).parent / "mnist"

MAX_ZIP_MEMBERS = 2_000_000
MAX_ZIP_BYTES = 1 << 34

FOLDERS_OF_A_RUN = 4
"""The files of a checkpoint of a sweep are so many folders below the sweep's."""

FASHION_MNIST = "fashion-mnist"
SYSTEM_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""The folder of the package dataset-fashion-mnist of Debian and Ubuntu."""
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load(
    source: str | os.PathLike[str] = "mnist",
    *,
    validation_examples: int | None = None,
    train_examples: int | None = None,
    data_dir: str | None = None,
    validation: str = "auto",
    test_fraction: float = 0.1,
    split_seed: int = 0,
    classes: str = "declared",
    form: str = "whole",
    image_size: tuple[int, ...] = (),
) -> Dataset:
    """Loads a data set.

    Args:
      source: "mnist" (in the package, no network); "fashion-mnist" (a folder of this name, or what Debian's package
        dataset-fashion-mnist installs); "tfds:NAME", an image classification set of TensorFlow Datasets,
        prepared in the array_record format; a .csv file with an image and its label a line (gzipped or not), a .npz
        file with arrays such as x_train and y_train, or a .zip archive of a folder; or a folder, of
        - IDX files, gzipped or not, as MNIST, Fashion-MNIST, KMNIST and EMNIST are published (`folder/prefix` where it
          holds several sets, as EMNIST's does),
        - .csv, .npz and .npy files, whose names say train and test, or
        - pictures: `train/CLASS/*.png` and `test/CLASS/*.png`, or `CLASS/*.png`.
      validation_examples: the number of examples to move from the training examples to the validation split. Ignored
        where the source has a validation split. None is a twelfth of those that are trained on, from 500 to 5000, and
        a tenth of all at most.
      train_examples: the largest number of the remaining training examples to keep, from the front; None keeps all.
      data_dir: the folder of prepared TFDS data; None is TFDS's own default.
      validation: how validation examples are chosen: "front"; "stratified", of each class in proportion, at random; or
        "auto", from the front unless classes would be lacking there or in what is left, else stratified.
      test_fraction: where the source has no test split, the fraction of the training examples that become one.
      split_seed: of stratified splits.
      classes: "declared", or "present" to leave out classes that have no training example.
      form: of `normalise`, for pictures in class folders: "whole" scales the picture, "digit" finds the digit in it.
      image_size: (height, width) or (height, width, channels) of pictures in class folders, or of the images in tables
        of pixels. () keeps a common size of pictures up to 64, else takes 28 x 28; images in tables are square.

    Returns:
      The data set: splits `train`, `validation` and `test` of uint8 images [n, height, width] or [n, height, width,
      channels] and int32 labels [n]; the names of the classes; where it came from, and notes on what was assumed.

    Raises:
      DataError: the source is unknown, missing, damaged or inconsistent, or has too few examples.
      ConfigError: an option has an impossible value.

    Examples:
      >>> from lstm_mnist_jax import load
      >>> dataset = load()
      >>> dataset.train.images.shape, dataset.train.images.dtype, dataset.test.labels.shape
      ((55000, 28, 28), dtype('uint8'), (10000,))
    """
    if not isinstance(source, str | os.PathLike):
        raise DataError(
            f"The source is an object of {type(source)}, expected text or a Path. Save arrays to a file: "
            "numpy.savez('data.npz', x_train=..., y_train=..., x_test=..., y_test=...)."
        )
    if not isinstance(image_size, tuple | list):
        raise ConfigError(f"image_size is {image_size!r}, expected (height, width) or (height, width, channels).")
    options = {
        "source": os.fsdecode(source),
        "validation_examples": validation_examples,
        "train_examples": train_examples,
        "data_dir": None if data_dir is None else os.fspath(data_dir),
        "validation": validation,
        "test_fraction": test_fraction,
        "split_seed": split_seed,
        "classes": classes,
        "form": form,
        "image_size": image_size,
    }
    dataset = _load(from_dict(DataConfig, options))  # which refuses impossible values
    if (*dataset.image_shape, 1)[: len(image_size)] != tuple(image_size):
        size, asked = ("x".join(map(str, shape)) for shape in (dataset.image_shape, image_size))
        raise DataError(
            f"image_size is {asked}, but the images of {dataset.origin} are {size}; only pictures in class folders are "
            "scaled."
        )
    if form == "digit" != dataset.form:
        raise DataError(f"form is digit, which is for pictures in class folders; leave it out for {dataset.origin}.")
    for name, examples in dataset.splits.items():
        checked_levels(examples.images, f"The array of {name} images of {dataset.origin}")
    return dataset


def load_again(data: DataConfig, was: DataConfig) -> Dataset:
    """The data of a run, to be compared with its fingerprint: with options and levels that `load` refuses, which older
    versions did not.

    Args:
      data: the run's config, perhaps with another source and data_dir, where the data is now.
      was: the config that the run has.

    Raises:
      DataError: as `load` does.
    """
    ignored = data.data_dir == was.data_dir and not data.source.startswith("tfds:")
    return _load(replace(data, data_dir=None) if ignored else data, of_run=True)


def _load(data: DataConfig, *, of_run: bool = False) -> Dataset:
    source, form, image_size = data.source, data.form, data.image_size
    if data.data_dir is not None and not source.startswith("tfds:"):
        raise DataError(
            f"data_dir is {data.data_dir}, but it is for tfds:NAME alone; leave it out (--data-dir None). Other data "
            "are named by their source."
        )
    if source == "mnist":
        dataset = _embedded_mnist()
    elif source.startswith("tfds:"):
        from lstm_mnist_jax.data.tfds import load_tfds  # a second of imports, only for those who use it

        dataset = load_tfds(source.removeprefix("tfds:"), data.data_dir)
    elif (dataset_at := _at_path(path := _expand(source), form, image_size)) is not None:
        dataset = dataset_at
        if path.name == FASHION_MNIST and not (path / "classes.txt").exists() and len(dataset.class_names) == 10:
            dataset = replace(dataset, class_names=FASHION_CLASSES)
    elif source == FASHION_MNIST:
        dataset = _load_system_fashion_mnist()
    else:
        reason, nearest = "there is no folder or file of this name", did_you_mean(source, ("mnist", FASHION_MNIST))
        if _is_file(path):
            _refuse_run_folder(path, *path.absolute().parents[:FOLDERS_OF_A_RUN])
            reason = "files of this kind are not read"
            nearest = (
                ". Load it in Python, with the library that wrote it, and save its arrays: numpy.savez('data.npz', "
                "x_train=..., y_train=..., x_test=..., y_test=...)."
            )
        raise DataError(
            f"Unknown data source {source!r}: {reason}. Expected 'mnist', 'fashion-mnist', a folder of IDX files or of "
            "class folders with pictures, a .csv, .npz or .zip file, or 'tfds:NAME' (such as tfds:kmnist)" + nearest
        )
    if alike := _same_but_for_case(dataset.class_names):
        dataset = replace(dataset, notes=(*dataset.notes, f"classes whose names differ only in case: {alike}"))
    if dataset.is_light:
        dataset = replace(dataset, notes=(*dataset.notes, "dark on a light background: predict makes pictures so, too"))
    return split(
        dataset,
        validation_examples=data.validation_examples,
        train_examples=data.train_examples,
        validation=data.validation,
        test_fraction=data.test_fraction,
        split_seed=data.split_seed,
        classes=data.classes,
        of_run=of_run,
    )


def _same_but_for_case(names: Sequence[str]) -> str:
    """The first such names; "" where there are none. Letters are not meant, of which both cases may be classes."""
    by_case = dict[str, list[str]]()
    for name in names:
        by_case.setdefault(name.casefold(), []).append(name)
    alike = [" and ".join(map(repr, group)) for group in by_case.values() if len(group) > 1 and len(group[0]) > 1]
    return ", ".join(alike[:5]) + " ..." * (len(alike) > 5)


def _at_path(path: Path, form: str, image_size: tuple[int, ...]) -> Dataset | None:
    """The data set of a file or folder; None where there is none of a known kind."""
    try:
        if path.is_dir():
            return _in_folder(path, form, image_size)
        if is_idx_source(path):
            return load_idx_folder(path)
        if not path.is_file():
            return None
        if path.suffix.lower() == ".zip":
            return cached(path, (form, image_size), lambda: _in_zip(path, form, image_size))
        if path.suffix.lower() == ".npy":
            raise DataError(f"{path} is one array. Name its folder, with files such as x_train.npy and y_train.npy.")
        if is_table(path):
            return _tables(path, image_size)
    except DataError:
        _refuse_run_folder(path, *path.absolute().parents[:FOLDERS_OF_A_RUN])
        raise
    except OSError as error:  # such as a name that is too long, or a folder without permission
        if _is_file(path) or isinstance(error, PermissionError) or error.filename not in (None, str(path)):
            raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from error
    return None


def _refuse_run_folder(path: Path, *parents: Path) -> None:
    """Raises DataError where a path, or one of these folders in which it is, is a run folder."""
    for folder in (path, *parents):
        with suppress(OSError, LookupError, TypeError, ValueError):  # there is no config.json, or another program's
            contents = json.loads((folder / "config.json").read_text("utf-8"))
            source = contents["config"]["data"]["source"]
            break
    else:
        return
    what = "is a run folder" if folder == path else f"is a file or folder of the run {folder}"
    raise DataError(
        f"{path} {what}, but a source is images with labels. That run was trained on the source {source!r}; "
        "--resume trains it further."
    )


def _in_folder(path: Path, form: str, image_size: tuple[int, ...]) -> Dataset:
    _refuse_run_folder(path)  # whose results.csv or figures are no data
    if has_idx_files(path):
        return load_idx_folder(path)
    tables = any(is_table(file) for file in path.iterdir())
    if has_class_folders(path, at_least=2 if tables else 1):
        return cached(path, (form, image_size), lambda: load_image_folder(path, form, image_size))
    if tables:
        return _tables(path, image_size)
    names = sorted(file.name for file in path.iterdir())
    present = ", ".join(names[:12]) or "nothing"
    if loose := [name for name in names if name.lower().endswith(SUFFIXES)]:
        raise DataError(
            f"{path} has pictures, but no folder for each class. Move them into such folders, so that the folder names "
            f"the class: {path / 'CLASS' / loose[0]}."
        )
    raise DataError(
        f"{path} has no train-images-idx3-ubyte or train-images-idx3-ubyte.gz, no folders of classes with pictures "
        f"in them ({', '.join(SUFFIXES)}), and no .csv or .npz files. It holds: {present}."
    )


def _tables(path: Path, image_size: tuple[int, ...]) -> Dataset:
    files = list(path.iterdir()) if path.is_dir() else [path]
    if not any(file.name.lower().endswith(TEXT_ENDINGS) for file in files):  # arrays are read as fast as a cache
        return load_tables(path, image_size)
    return cached(path, image_size, lambda: load_tables(path, image_size))


def _in_zip(path: Path, form: str, image_size: tuple[int, ...]) -> Dataset:
    """The data set in an archive, unpacked into a temporary folder for the time of reading."""
    with tempfile.TemporaryDirectory(prefix="lstm_mnist_jax-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                unpacked, packed = (sum(getattr(m, size) for m in members) for size in ("file_size", "compress_size"))
                refuse_bomb(unpacked, packed, str(path))
                if len(members) > MAX_ZIP_MEMBERS or unpacked > MAX_ZIP_BYTES:
                    raise DataError(
                        f"{path} holds {len(members):,} files of {unpacked:,} bytes, too many to unpack into a "
                        "temporary folder. Unpack it, and name the folder."
                    )
                with Reading(f"unpacking {path.name}", len(members)) as reading:
                    for member in members:
                        archive.extract(member, folder)  # which leaves out .. and leading /
                        reading.advance(1)
        except DataError:
            raise
        except Exception as error:  # damaged directories, checksums, passwords, methods of compression
            raise damaged(str(path), error) from error
        root = Path(folder)
        while len(inner := [child for child in root.iterdir() if child.name != "__MACOSX"]) == 1 and inner[0].is_dir():
            root = inner[0]
        try:
            dataset = _in_folder(root, form, image_size)
        except DataError as error:
            raise DataError(str(error).replace(str(root), str(path))) from error
    return replace(dataset, origin=dataset.origin.replace(str(root), str(path)))


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
    path = _expand(source)
    return str(path.absolute()) if not named and (is_idx_source(path) or _is_file(path)) else source


def _expand(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~nobody
        return Path(source)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long, or a folder without permission
        return False
