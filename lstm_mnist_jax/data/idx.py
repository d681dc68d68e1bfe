"""IDX files, the format in which MNIST is published, gzipped or not.

Knows bytes and arrays; knows nothing of images, labels or where files come from. The format is described on
MNIST's home page (LeCun, Cortes and Burges, "The MNIST database of handwritten digits"): two zero bytes, a
byte for the element type, a byte for the number of dimensions, the dimensions as big-endian 32-bit integers,
then the elements in C order, big-endian.
"""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from lstm_mnist_jax.errors import DataError

ELEMENT_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
READ_BLOCK = 1 << 24
MAPPED_BYTES = 1 << 28
"""An uncompressed file of bytes with more than so many is mapped into memory, which it may exceed, rather than read."""

MAX_DIMENSIONS = 32
MAX_EMPTY_SIZE = 1 << 24
"""What no real file exceeds, and NumPy can always shape: an empty array's other sizes are not bounded by its data."""


def read_idx(path: Path | str) -> np.ndarray:
    """Reads one IDX file, decompressing it if it is gzipped, whatever its name ends in.

    Returns:
      The array, in the machine's own byte order.

    Raises:
      DataError: the file is missing, unreadable, not IDX, or shorter or longer than its header says.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == GZIP_MAGIC
        with gzip.open(path) if gzipped else path.open("rb") as file:
            dtype, shape = _read_header(file.read(4), file, path)
            size = dtype.itemsize * math.prod(shape)
            if (
                not gzipped
                and dtype.itemsize == 1
                and size > MAPPED_BYTES
                and path.stat().st_size == file.tell() + size
            ):
                return np.memmap(path, dtype, mode="r", offset=file.tell(), shape=shape)
            data = _read_at_most(size + 1, file)  # one more than expected: a header that understates shows
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is a damaged or truncated gzip file ({error}). Fetch it again from its source."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
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
      path: the file; what is there is replaced.
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
    try:
        # Without a time stamp: the same array is the same file.
        path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error


def _read_at_most(size: int, file: io.BufferedIOBase) -> bytes:
    """Reads block by block, so that a header which overstates costs no memory."""
    blocks = []
    while size and (block := file.read(min(size, READ_BLOCK))):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


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
        raise DataError(f"{path} is damaged: its header tells of {len(shape)} dimensions {shape[:8]}.")
    return np.dtype(ELEMENT_TYPES[magic[2]]), shape
