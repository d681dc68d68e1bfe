"""Files of named arrays: safetensors, Keras's HDF5, Flax's msgpack.

The libraries that read and write them are in the extra `interop`, and imported only when needed.
"""

import io
import itertools
import json
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lstm_mnist_jax.errors import WeightsError, how_to_install, os_errors_as

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
            f"'interop': {how_to_install('interop')}."
        ) from error


@contextmanager
def reading_as(path: Path, kind: str) -> Iterator[None]:
    """While entered, an error of a library is raised as WeightsError: PATH cannot be read as KIND, and why.

    Libraries raise whatever they like for damaged files: types of their own, or of HDF5, protobuf or NumPy.
    """
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"{path} cannot be read as {kind}: {first_line(error)}.") from error


def first_line(error: BaseException) -> str:
    """The first line of an error of a library, as it fits into a message."""
    line = str(error).strip().partition("\n")[0].rstrip(".")[:300] or type(error).__name__
    return line if line.isprintable() else ascii(line)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file by name.

    Raises:
      WeightsError: it is missing or damaged.
    """
    safetensors = require("safetensors")
    data = read_bytes(path)
    with reading_as(path, "safetensors"):
        found = dict(sorted(safetensors.deserialize(data)))
        if others := {array["dtype"] for array in found.values()} - SAFETENSORS_DTYPES.keys():
            raise WeightsError(f"{path} holds numbers of the type {min(others)!r}; expected floats of 16 to 64 bits.")
        return {
            name: np.frombuffer(array["data"], SAFETENSORS_DTYPES[array["dtype"]]).reshape(array["shape"])
            for name, array in found.items()
        }


def read_safetensors_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a .safetensors file that `read_safetensors` reads: texts by name."""
    data = read_bytes(path)
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a .safetensors file. Raises WeightsError."""
    safetensors = require("safetensors.numpy")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, safetensors.save(contiguous, metadata))


class KerasFile(NamedTuple):
    """The contents of a Keras file.

    Attributes:
      arrays: by their paths in the file.
      layers: the paths of the arrays of each layer, by the layer's name, in the order of the attributes `layer_names`
        and `weight_names`; empty where the file has none, as in Keras 3's .weights.h5.
      config: the model's config as decoded JSON; None where the file holds weights alone.
      version: the version of Keras that wrote it; empty where the file does not say.
      name: the name of the model in Keras 3's .weights.h5; empty where the file does not say.
    """

    arrays: dict[str, np.ndarray]
    layers: dict[str, list[str]]
    config: Any = None
    version: str = ""
    name: str = ""


def read_hdf5(path: Path) -> KerasFile:
    """Reads a file of Keras 1, 2 or 3. No link to another place in the file, or to another file, is followed.

    Args:
      path: .weights.h5; a .keras archive, which contains such a file; or an .h5 of a whole model or of weights alone.

    Raises:
      WeightsError: it is missing or damaged, or a file or folder that Keras's TensorFlow backend writes.
    """
    h5py = require("h5py")
    _refuse_tensorflow_files(path)
    data, config, version = read_bytes(path), None, ""
    most = MAX_EXPANSION * len(data)
    found: dict[str, np.ndarray] = {}
    groups: dict[str, list[str]] = {}

    def text(item: Any, name: str) -> list[str]:
        """The texts of an attribute, which Keras splits into NAME0, NAME1, ... where it is long."""
        if name not in item.attrs:
            parts = itertools.takewhile(item.attrs.__contains__, (f"{name}{number}" for number in itertools.count()))
            return [value for part in parts for value in text(item, part)]
        attribute = item.attrs.get_id(name)
        string, count = h5py.check_string_dtype(attribute.dtype), math.prod(attribute.shape or ())
        # Texts of variable length may all be the same bytes of the file.
        if count * (len(data) if string and string.length is None else attribute.dtype.itemsize) > most:
            raise ValueError(f"the attribute {name} is larger than the file can hold")
        if string and string.length is None:
            return _hdf5_texts(data, h5py.h5o.get_info(item["/"].id if item.name == "/" else item.id).addr, name, count)
        if attribute.dtype.kind not in "SUifub":
            raise ValueError(f"the attribute {name} has the type {attribute.dtype}, expected text")
        value = item.attrs[name]
        values = [value] if isinstance(value, bytes) else np.ravel(value).tolist()
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values]

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group):
            groups[str(name)] = text(item, "weight_names")
        elif isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub" and item.shape is not None:
            if item.external or item.nbytes + sum(array.nbytes for array in found.values()) > most:
                raise ValueError(f"{name} has {item.nbytes} bytes, which are not in the file")
            found[str(name)] = item[()]

    with reading_as(path, "Keras's weights (.weights.h5, .keras, .h5)"):
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(item.file_size for item in archive.infolist()) > most:
                    raise ValueError("its files are larger than it can hold")
                if missing := {"config.json", "model.weights.h5"} - set(archive.namelist()):
                    raise ValueError(f"this zip archive has no {' and no '.join(sorted(missing))}")
                data, config = archive.read("model.weights.h5"), json.loads(archive.read("config.json"))
                if "metadata.json" in archive.namelist():
                    version = str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
        with h5py.File(io.BytesIO(data)) as file:
            if "nb_layers" in file.attrs:
                raise ValueError("Keras 0 wrote it: load it in Keras 1 (load_weights) and save it there again")
            if stored := text(file, "model_config"):
                config = json.loads(stored[0])
            file.visititems(take)
            root = "model_weights/" if "model_weights" in groups else ""
            top = file[root] if root else file
            version = "".join(text(top, "keras_version") or text(file, "keras_version")) or version
            names = text(top, "layer_names")
            model = "".join(text(file["vars"], "name")) if "vars" in groups else ""
        if absent := [name for name in names if root + name not in groups]:
            raise ValueError(f"it lists the layer {absent[0]}, which is not there")
        layers = {name: [f"{root}{name}/{part}" for part in groups[root + name]] for name in names}
        if lacking := [part for parts in layers.values() for part in parts if part not in found]:
            raise ValueError(f"it names the array {lacking[0]}, which is not there")
        return KerasFile(found, layers, config, version, model)


def _refuse_tensorflow_files(path: Path) -> None:
    """Refuses a SavedModel and a checkpoint of TensorFlow by name, with what to save instead."""
    kind = ""
    if (path / "saved_model.pb").exists():
        kind = "a SavedModel, a folder of TensorFlow"
    elif path.suffix == ".pb":
        kind = "a graph of TensorFlow"
    elif not path.exists() and path.with_name(path.name + ".index").exists():
        kind = "the prefix of a checkpoint of TensorFlow"
    if kind:
        raise WeightsError(
            f"{path} is {kind}, which is not read. In the program that has the model, or after "
            "model = tf.keras.models.load_model(FOLDER) of a SavedModel, save it with model.save('model.keras'), "
            "model.save('model.h5') or model.save_weights('model.weights.h5'), and import that."
        )
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; expected a file of Keras: .keras, .weights.h5 or .h5.")


def write_hdf5(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> None:
    """Writes an HDF5 file like Keras 3's .weights.h5, of a model with this name. Raises WeightsError."""
    h5py = require("h5py")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_group("vars").attrs["name"] = name
        for name, array in arrays.items():
            file[name] = array
    write_bytes(path, buffer.getvalue())


def read_msgpack(path: Path) -> Any:
    """The tree in a file of `flax.serialization`: nested dictionaries of arrays.

    Raises:
      WeightsError: it is missing or damaged.
    """
    from flax import serialization

    with reading_as(path, "msgpack of Flax"):
        tree = serialization.msgpack_restore(read_bytes(path))
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
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises WeightsError."""
    with os_errors_as(WeightsError, path, "read"):
        return path.read_bytes()


_HDF5_ATTRIBUTE, _HDF5_CONTINUATION = 0x0C, 0x10


def _hdf5_texts(data: bytes, header: int, name: str, count: int) -> list[str]:
    """The texts of variable length in an attribute of an HDF5 file, read from its bytes.

    The HDF5 library (2.0, as in h5py 3.16) crashes, loops without end or takes gigabytes where such a text is damaged.
    "HDF5 File Format Specification", III.E (global heaps) and IV.A (object headers, attribute messages).

    Args:
      data: the file.
      header: the address of the header of the object that has the attribute.
      name: the name of the attribute.
      count: how many texts it has.

    Raises:
      ValueError: the file is damaged, or keeps the attribute elsewhere, as files of Keras do not.
    """
    for kind, message in _hdf5_messages(data, header):
        if kind == _HDF5_ATTRIBUTE and (found := _hdf5_attribute(message)) and found[0] == name.encode():
            return [
                _hdf5_heap_object(data, heap, number, length).decode() if length else ""
                for length, heap, number in struct.iter_unpack("<IQI", _hdf5_bytes(found[1], 0, 16 * count))
            ]
    raise ValueError(f"the attribute {name} cannot be found")


def _hdf5_bytes(data: bytes, place: int, size: int) -> bytes:
    if not 0 <= place <= place + size <= len(data):
        raise ValueError(f"it points to byte {place + size} of {len(data)}")
    return data[place : place + size]


def _hdf5_messages(data: bytes, header: int) -> Iterator[tuple[int, bytes]]:
    """The messages of an object header of version 1, which is what h5py writes unless it is asked for another."""
    version, size = struct.unpack_from("<B7xI", data, header)
    if version != 1:
        raise ValueError("it has object headers of another version than 1, which Keras does not write")
    blocks = [(header + 16, size)]
    for place, size in blocks:
        block = _hdf5_bytes(data, place, size)
        at = 0
        while at + 8 <= len(block):
            kind, length = struct.unpack_from("<HH", block, at)
            message = _hdf5_bytes(block, at + 8, length)
            at += 8 + length
            if kind == _HDF5_CONTINUATION:
                blocks.append(struct.unpack_from("<QQ", message))
                if len(blocks) > 1000:
                    raise ValueError("an object header has no end")
            yield kind, message


def _hdf5_attribute(message: bytes) -> tuple[bytes, bytes] | None:
    """The name and the contents of an attribute message; None of one with a shared type."""
    version, flags, *sizes = struct.unpack_from("<BBHHH", message)
    if version not in (1, 2, 3) or (version > 1 and flags):
        return None
    start = 9 if version == 3 else 8
    name = _hdf5_bytes(message, start, sizes[0]).rstrip(b"\0")
    return name, message[start + sum((size + 7) // 8 * 8 if version == 1 else size for size in sizes) :]


def _hdf5_heap_object(data: bytes, heap: int, number: int, length: int) -> bytes:
    """The first bytes of an object in a global heap."""
    if _hdf5_bytes(data, heap, 8) != b"GCOL\x01\0\0\0":
        raise ValueError(f"there is no global heap at byte {heap}")
    place, end = heap + 16, heap + struct.unpack_from("<Q", data, heap + 8)[0]
    while place + 16 <= end:
        found, size = struct.unpack_from("<H6xQ", data, place)
        if found == number and length <= size:
            return _hdf5_bytes(data, place + 16, length)
        if found in (0, number):
            break
        place += 16 + (size + 7) // 8 * 8
    raise ValueError(f"the global heap at byte {heap} is damaged")
