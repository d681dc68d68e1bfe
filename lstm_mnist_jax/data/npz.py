"""Files of NumPy, .npz and .npy, of any origin: nothing is unpickled, and no header takes memory that is not filled."""

import io
import math
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from lstm_mnist_jax.data.idx import read_at_most, reading, refuse_bomb
from lstm_mnist_jax.data.pictures import printable
from lstm_mnist_jax.errors import DataError

MAX_MEMBERS = 1000


def npz_members(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """The arrays of a .npz file by their names: functions that read them.

    Raises:
      DataError: the file is missing or no zip archive; or, when an array is read, its member is damaged, holds Python
        objects, or is packed more densely than any images are.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
    except Exception as error:  # of many types, where the directory at its end is damaged
        raise damaged(str(path), error) from error
    if not members or len(members) > MAX_MEMBERS:
        raise DataError(f"{path} holds {len(members):,} arrays, expected 1 to {MAX_MEMBERS:,}.")
    return {member.filename.removesuffix(".npy"): partial(_read_member, path, member) for member in members}


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file.

    Raises:
      DataError: it is missing, damaged or holds Python objects.
    """
    with reading(path) as (file, _):
        return _read_array(file, path.stat().st_size, str(path))


def _read_member(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    where = f"{path}, array {member.filename.removesuffix('.npy')!r},"
    refuse_bomb(member.file_size, member.compress_size, where)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            return _read_array(file, member.file_size, where)
    except DataError:
        raise
    except Exception as error:  # checksums, passwords, methods of compression, truncation
        raise damaged(where, error) from error


def _read_array(file: io.BufferedIOBase | IO[bytes], size: int, where: str) -> np.ndarray:
    try:
        major, _ = np.lib.format.read_magic(file)
        # Version 3 differs from 2 in the names of fields alone, which no images have.
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
    except (OSError, zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:  # a header is a Python literal, which may hold anything
        raise DataError(f"{where} is a damaged .npy file: its header cannot be read.") from error
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects, which are not read: they could run programs. Save numbers, or names as "
            "text: np.array(names, dtype=str)."
        )
    if any(length < 0 for length in shape) or dtype.itemsize == 0:
        raise DataError(f"{where} is damaged: its header gives {dtype} of shape {list(shape)}.")
    needed = math.prod(shape) * dtype.itemsize  # Python's integers do not overflow
    if needed > size:
        raise DataError(
            f"{where} is damaged: its header gives {dtype} of shape {list(shape)[:8]}, more than the {size:,} bytes "
            "that are there."
        )
    data = read_at_most(needed + 1, file)  # one byte more: the checksum is compared at the end
    if len(data) != needed:
        raise DataError(f"{where} is damaged: it has {len(data):,} bytes of numbers, expected {needed:,}.")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def damaged(where: str, error: Exception) -> DataError:
    what = printable(str(error))[:150].rstrip(".") or type(error).__name__
    return DataError(f"{where} cannot be read: {what}. Is it damaged?")
