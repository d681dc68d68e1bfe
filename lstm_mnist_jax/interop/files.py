"""Files of named arrays: safetensors, Keras's HDF5, Flax's msgpack.

The libraries that read and write them are in the extra `interop`, and imported only when needed.
"""

import contextlib
import io
import json
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_mnist_jax.errors import WeightsError

MAX_EXPANSION = 1032
"""The largest ratio of sizes by Deflate, the compression of HDF5 and ZIP."""

SAFETENSORS_DTYPES: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "BOOL": np.bool_},
    **{f"{kind}{bits}": f"{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)},
}


def require(name: str) -> ModuleType:
    """Imports a module of the extra `interop`.

    Raises:
      WeightsError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise WeightsError(
            f"This needs the package {name.partition('.')[0]}, which is not installed. Install it with the extra "
            "'interop': pip install 'lstm-mnist-jax[interop]', or pip install -e '.[interop]' in a checkout."
        ) from error


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file by name.

    Raises:
      WeightsError: it is missing or damaged.
    """
    safetensors = require("safetensors")
    data = read_bytes(path)
    try:
        return {
            name: np.frombuffer(array["data"], SAFETENSORS_DTYPES[array["dtype"]]).reshape(array["shape"])
            for name, array in sorted(safetensors.deserialize(data))
        }
    except KeyError as error:
        raise WeightsError(f"{path} holds numbers of the type {error}; expected floats of 16 to 64 bits.") from error
    except Exception as error:  # the library's own type, which is no ValueError
        raise WeightsError(f"{path} cannot be read as safetensors: {error}.") from error


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a .safetensors file. Raises WeightsError."""
    safetensors = require("safetensors.numpy")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, safetensors.save(contiguous, metadata))


def read_hdf5(path: Path) -> tuple[dict[str, np.ndarray], list[tuple[str, dict[str, Any]]]]:
    """The arrays of a Keras file by their paths in it, and the kind and config of each layer, if it has them.

    Args:
      path: .weights.h5; a .keras archive, which contains such a file; or the .h5 of a whole model.

    Raises:
      WeightsError: it is missing or damaged.
    """
    h5py = require("h5py")
    data, config = read_bytes(path), "{}"
    most = MAX_EXPANSION * len(data)
    found: dict[str, np.ndarray] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub" and item.shape is not None:
            if item.external or item.nbytes + sum(array.nbytes for array in found.values()) > most:
                raise ValueError(f"{name} has {item.nbytes} bytes, which are not in the file")
            found[str(name)] = item[()]

    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(item.file_size for item in archive.infolist()) > most:
                    raise ValueError("its files are larger than it can hold")
                data, config = archive.read("model.weights.h5"), archive.read("config.json").decode()
        with h5py.File(io.BytesIO(data)) as file:
            config = file.attrs.get("model_config", config)
            file.visititems(take)
        layers = json.loads(config).get("config", {})
        layers = layers.get("layers", []) if isinstance(layers, dict) else layers  # a list in old Sequential models
        return found, [(str(layer["class_name"]), dict(layer["config"])) for layer in layers]
    except Exception as error:  # HDF5 raises OSError, KeyError, OverflowError, ... for damaged files
        raise WeightsError(f"{path} cannot be read as Keras's weights (.weights.h5, .keras, .h5): {error}.") from error


def write_hdf5(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an HDF5 file. Raises WeightsError."""
    h5py = require("h5py")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    write_bytes(path, buffer.getvalue())


def read_msgpack(path: Path) -> Any:
    """The tree in a file of `flax.serialization`: nested dictionaries of arrays.

    Raises:
      WeightsError: it is missing or damaged.
    """
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(read_bytes(path))
    except WeightsError:
        raise
    except Exception as error:  # of msgpack, or of NumPy
        raise WeightsError(f"{path} cannot be read as msgpack of Flax: {error}.") from error
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} holds no tree of parameters, but a {type(tree).__name__}.")
    return tree


def write_msgpack(path: Path, tree: Any) -> None:
    """Writes a tree as `flax.serialization.msgpack_restore` reads it. Raises WeightsError."""
    from flax import serialization

    write_bytes(path, serialization.msgpack_serialize(tree))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all, and makes its folder. Raises WeightsError."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except FileExistsError as error:
        raise WeightsError(f"{path} cannot be written: {path.parent} is not a folder.") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises WeightsError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
