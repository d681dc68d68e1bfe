"""IDX files, the format in which MNIST is published, and folders of them as data sets.

The format is described on MNIST's home page (LeCun, Cortes and Burges, "The MNIST database of handwritten digits"):
two zero bytes, a byte for the element type, a byte for the number of dimensions, the dimensions as big-endian 32-bit
integers, then the elements in C order, big-endian. A file may be gzipped.

EMNIST (Cohen, Afshar, Tapson and van Schaik 2017, "EMNIST: an extension of MNIST to handwritten letters") stores its
images transposed, and names its classes in a mapping file. `letters` numbers its 26 classes from 1; TFDS declares 37.
`balanced` and `bymerge` join the cases of letters that look alike.
"""

import glob
import gzip
import io
import itertools
import math
import string
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from lstm_mnist_jax.data.dataset import Dataset, assembled, number_names
from lstm_mnist_jax.errors import DataError, os_errors_as

ELEMENT_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
READ_BLOCK = 1 << 24
MAPPED_BYTES = 1 << 28
"""Larger uncompressed files of bytes are mapped into memory rather than read: they may be larger than it."""

MAX_DIMENSIONS = 32
MAX_EMPTY_SIZE = 1 << 24
"""The largest dimension of an empty array: no data bound it, and NumPy can shape it."""

FREE_BYTES = 1 << 28
MAX_RATIO = 200
"""Files above FREE_BYTES may be packed by this factor at most. Images of digits are packed by 3 to 15."""

CLASSES_FILE = "classes.txt"

TRAIN_PREFIX = "train"
TEST_PREFIXES = ("t10k", "test")


def read_idx(path: Path | str) -> np.ndarray:
    """Reads one IDX file, decompressing it if it is gzipped, whatever its name ends in.

    Returns:
      The array, in the machine's own byte order.

    Raises:
      DataError: the file is missing, unreadable, not IDX, or shorter or longer than its header says.
    """
    path = Path(path)
    with reading(path) as (file, gzipped):
        dtype, shape = _read_header(file.read(4), file, path)
        size, packed = dtype.itemsize * math.prod(shape), path.stat().st_size
        mapped = not gzipped and dtype.itemsize == 1 and size > MAPPED_BYTES
        if mapped and packed == file.tell() + size:
            return np.memmap(path, dtype, mode="r", offset=file.tell(), shape=shape)
        most = max(FREE_BYTES, MAX_RATIO * packed)
        # One more byte than expected: a file that is too long is found.
        if len(data := read_at_most(min(size, most) + 1, file)) > most:
            refuse_bomb(size, packed, str(path))
    if len(data) != size:
        fault, found = ("longer", "more") if len(data) > size else ("shorter", f"only {len(data):,}")
        raise DataError(
            f"{path} is {fault} than its header says: {' x '.join(map(str, shape))} elements need "
            f"{size:,} bytes, found {found}. Fetch it again from its source."
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def write_idx(path: Path | str, array: np.ndarray) -> None:
    """Writes an array as an IDX file, gzipped where the name ends in .gz.

    Args:
      path: the file; an existing one is replaced.
      array: of uint8, int8, int16, int32, float32 or float64.

    Raises:
      DataError: the format has no such element type, or the file cannot be written.
    """
    array = np.asarray(array)
    codes = {np.dtype(name).newbyteorder("="): code for code, name in ELEMENT_TYPES.items()}
    code = codes.get(array.dtype.newbyteorder("="))
    if code is None:
        raise DataError(f"IDX files cannot hold {array.dtype}; expected one of {', '.join(map(str, codes))}.")
    if array.ndim > MAX_DIMENSIONS:
        raise DataError(f"The array has {array.ndim} dimensions; expected {MAX_DIMENSIONS} at most.")
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(ELEMENT_TYPES[code]).tobytes()
    path = Path(path)
    with os_errors_as(DataError, path, "written"):
        # Without a time stamp: the same array is the same file.
        path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def is_idx_source(path: Path) -> bool:
    """Whether `path` is a folder, or `folder/prefix` with files of that prefix."""
    images = f"{glob.escape(path.name)}-{TRAIN_PREFIX}*-images*"
    try:
        return path.is_dir() or (path.name != "" and any(path.parent.glob(images)))
    except OSError:  # such as a name that is too long
        return False


def has_idx_files(folder: Path) -> bool:
    """Whether a folder holds files under the names of the format."""
    return any("-idx" in path.name or ".idx" in path.name for path in folder.iterdir() if path.name[0] != ".")


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
    is_emnist, mapping = prefix.startswith("emnist-"), folder / f"{prefix}mapping.txt"
    names, first_label = None, 0
    if is_emnist:
        train_images, test_images = emnist_upright(train_images), emnist_upright(test_images)
        if mapping.exists():
            names, first_label = _read_mapping(mapping)
        elif not (folder / CLASSES_FILE).exists():
            part = prefix.removeprefix("emnist-").rstrip("-")
            names, first_label = emnist_names(part, train_labels)
        train_labels, test_labels = train_labels - first_label, test_labels - first_label
    class_names = names or read_class_names(folder) or number_names(train_labels, f"{folder}, training labels")
    splits = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    return assembled(splits, class_names, origin=f"IDX files {folder / prefix.rstrip('-')}")


@contextmanager
def reading(path: Path) -> Iterator[tuple[gzip.GzipFile | io.BufferedReader, bool]]:
    """Opens a file, decompressing it if it is gzipped, whatever its name ends in; and whether it is.

    Raises:
      DataError: it cannot be read, or within the context an error of gzip or of the system has occurred.
    """
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == GZIP_MAGIC
        with gzip.open(path) if gzipped else path.open("rb") as file:
            yield file, gzipped
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is a damaged or truncated gzip file ({error}). Fetch it again from its source."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_at_most(size: int, file: io.BufferedIOBase | IO[bytes]) -> bytes:
    """Reads block by block: a header that gives too large a size costs no memory."""
    blocks = []
    while size and (block := file.read(min(size, READ_BLOCK))):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def refuse_bomb(unpacked: int, packed: int, where: str) -> None:
    """Raises DataError where a file takes far more memory than its size lets expect."""
    if unpacked > FREE_BYTES and unpacked > MAX_RATIO * packed:
        raise DataError(
            f"{where} has {packed:,} bytes and would take {unpacked:,} in memory, {unpacked // max(1, packed):,} "
            f"times as many; above {FREE_BYTES >> 20} MiB at most {MAX_RATIO} times are read. Is it damaged?"
        )


def _read_header(magic: bytes, file: io.BufferedIOBase, path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in ELEMENT_TYPES:
        raise DataError(
            f"{path} is not an IDX file: it starts with the bytes {magic.hex(' ') or '(none)'}, expected 00 00, "
            f"a type ({', '.join(f'{code:02x}' for code in ELEMENT_TYPES)}) and the number of dimensions."
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path} is truncated: it ends within its header of {magic[3]} dimensions.")
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    if len(shape) > MAX_DIMENSIONS or (0 in shape and max(shape) > MAX_EMPTY_SIZE):
        raise DataError(f"{path} is damaged: its header gives {len(shape)} dimensions {shape[:8]}.")
    return np.dtype(ELEMENT_TYPES[magic[2]]), shape


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
    for stem, ending in itertools.product(stems, ("", ".gz")):
        for name in (stem, stem.replace("-idx", ".idx")):
            if (path := folder / f"{name}{ending}").exists():
                return path
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


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """The lines of classes.txt; None where there is no such file."""
    names_file = folder / CLASSES_FILE
    if not names_file.exists():
        return None
    try:
        names = [line.strip() for line in names_file.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{names_file} is not UTF-8 text: {error}.") from error
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{names_file} names several classes {twice!r}.")
    return tuple(names)


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


_MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"
CHARACTERS = {  # those of `digits` and `mnist` are their labels
    "letters": string.ascii_lowercase,
    "balanced": _MERGED,
    "bymerge": _MERGED,
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
}


def emnist_upright(images: np.ndarray) -> np.ndarray:
    """Images [n, rows, columns, ...] as EMNIST is read by people: rows and columns are exchanged."""
    return images.swapaxes(1, 2)


def emnist_names(part: str, labels: np.ndarray) -> tuple[tuple[str, ...] | None, int]:
    """The names of the classes of a part of EMNIST, and the label of the first.

    Args:
      part: such as "letters" or "balanced".
      labels: integers [n].

    Returns:
      One character a class, and 1 where `letters` numbers them from 1, else 0; (None, 0) for another part, or labels
      that are not of it.
    """
    names, first = CHARACTERS.get(part, ""), int(part == "letters" and labels.min(initial=1) > 0)
    fits = bool(names) and labels.min(initial=first) >= first and labels.max(initial=0) < len(names) + first
    return (tuple(names), first) if fits else (None, 0)
