"""IDX files, written from the description of their format."""

import gzip
import struct

import numpy as np

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array):
    """An IDX file, written from the description of the format."""
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    header = struct.pack(">BBBB", 0, 0, CODES[kind], array.ndim)
    sizes = b"".join(struct.pack(">I", size) for size in array.shape)
    return header + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_folder(folder, prefix="", test="t10k", gzipped=True, dot=False, **changed):
    """A small set under MNIST's file names: 20 training and 8 test images of 4 x 3 pixels in 3 classes."""
    rng = np.random.default_rng(0)
    content = {
        f"{prefix}train-images-idx3-ubyte": rng.integers(0, 256, (20, 4, 3), np.uint8),
        f"{prefix}train-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 3,
        f"{prefix}{test}-images-idx3-ubyte": rng.integers(0, 256, (8, 4, 3), np.uint8),
        f"{prefix}{test}-labels-idx1-ubyte": np.arange(8, dtype=np.uint8) % 3,
    }
    folder.mkdir(exist_ok=True)
    for name, array in content.items():
        key = name.removeprefix(prefix)[: -len("-idx3-ubyte")].replace("-", "_")
        data = changed.get(key, array)
        data = data if isinstance(data, bytes) else idx_bytes(data)
        file = name.replace("-idx", ".idx") if dot else name
        (folder / (file + ".gz" * gzipped)).write_bytes(gzip.compress(data) if gzipped else data)
    return content
