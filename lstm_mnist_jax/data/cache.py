"""A cache of data sets that take long to read: pictures and tables of text as arrays, in the user's cache folder."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lstm_mnist_jax.data.dataset import Dataset, assembled

MAX_TOTAL_BYTES = 4 << 30
"""Beyond it, the files that were used the longest time ago are removed."""

LEAST_SECONDS = 0.5
"""What is read faster is not kept."""


def cached(path: Path, options: tuple[Any, ...], read: Callable[[], Dataset]) -> Dataset:
    """The data set of a file or folder, from the cache if no file in it has changed since.

    Args:
      path: of the data.
      options: how they are read; anything with a repr.
      read: reads them.

    Returns:
      What `read` returns. A cache that is damaged, or cannot be written to, is as none.
    """
    file = cache_folder() / f"{_key(path, options)}.npz"
    with suppress(Exception):  # a file that is not there, damaged or of another version
        dataset = _load(file)
        os.utime(file)
        return dataset
    began = time.monotonic()
    dataset = read()
    if time.monotonic() - began > LEAST_SECONDS:
        with suppress(OSError):
            _save(file, dataset)
    return dataset


def cache_folder() -> Path:
    """The folder of cached data sets: `data` beside the compiled kernels, in the user's cache folder."""
    # As rnn/native/build.py has it, whose import takes seconds for JAX. A test compares the two.
    default = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser(default)) / "lstm_mnist_jax" / "data"


def _key(path: Path, options: tuple[Any, ...]) -> str:
    """A digest of the names, sizes and times of change of all files, and of the code that reads them."""
    digest = hashlib.sha256(repr((str(path.absolute()), options)).encode("utf-8", "surrogateescape"))
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    status = os.stat(path)
    facts, seen, folders = [f"{status.st_size} {status.st_mtime_ns}"], set[tuple[int, int]](), [str(path)]
    while folders and os.path.isdir(path):
        place = folders.pop()
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # links can go in circles
            continue
        seen.add((status.st_dev, status.st_ino))
        with suppress(PermissionError), os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                    facts.append(f"{entry.path}/")
                    continue
                try:
                    status = entry.stat()
                except OSError:  # such as a link to nothing
                    continue
                facts.append(f"{entry.path} {status.st_size} {status.st_mtime_ns}")
    facts.sort()
    digest.update("\0".join(facts).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _load(file: Path) -> Dataset:
    """Each array has a checksum, of the format, which NumPy compares."""
    with np.load(file, allow_pickle=False) as arrays:
        facts = json.loads(str(arrays["facts"]))
        splits = {
            name: (arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in ("train", "validation", "test")
        }
    return assembled(splits, tuple(facts["class_names"]), facts["origin"], tuple(facts["notes"]), facts["form"])


def _save(file: Path, dataset: Dataset) -> None:
    arrays = {f"{name}_images": split.images for name, split in dataset.splits.items()}
    arrays |= {f"{name}_labels": split.labels for name, split in dataset.splits.items()}
    if sum(array.nbytes for array in arrays.values()) > MAX_TOTAL_BYTES // 2:
        return
    facts = {name: getattr(dataset, name) for name in ("class_names", "origin", "notes", "form")}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.stem}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as written:
            np.savez(written, **{"facts": np.array(json.dumps(facts)), **arrays})  # type: ignore[arg-type]
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    files = sorted(file.parent.glob("*.npz"), key=lambda other: other.stat().st_mtime, reverse=True)
    total = 0
    for other in files:
        total += other.stat().st_size
        if total > MAX_TOTAL_BYTES:
            other.unlink(missing_ok=True)
