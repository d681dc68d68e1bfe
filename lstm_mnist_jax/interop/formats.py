"""The formats by name: how a file of each is read and written. What `lstm-mnist import` and `export` know."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import export, files, flax, keras, tf1, torch
from lstm_mnist_jax.interop.tf_checkpoint import read_checkpoint
from lstm_mnist_jax.interop.weights import Adam, Arrays, Imported, from_params, ignoring
from lstm_mnist_jax.model import Params

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What a file of TensorFlow 1 does not say, though its weights mean nothing without it.

    Attributes:
      forget_bias: what its cells add to their forget gates.
      b1, b2: of Adam.
    """

    forget_bias: float = 1.0
    b1: float = 0.9
    b2: float = 0.999


@dataclass(frozen=True)
class Exported:
    """What a file can be made of.

    Attributes:
      params: the model's parameters.
      adam: the state of Adam.
      image_shape: (height, width) or (height, width, channels) of one image.
      class_names: one name a class.
      settings: what readers of a TensorFlow 1 checkpoint will assume.
    """

    params: Params
    adam: Adam | None
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    settings: Settings


def _read_tree(path: Path) -> Arrays:
    leaves = flax.flatten(files.read_msgpack(path))
    return {name: leaf for name, leaf in leaves.items() if isinstance(leaf, np.ndarray)}


def _read_keras(path: Path) -> Arrays:
    arrays, config = files.read_hdf5(path)
    if config:
        layers = config.get("config", {}).get("layers", [])
        keras.check_architecture([(layer["class_name"], layer["config"]) for layer in layers])
    return arrays


def _read_own(path: Path) -> Arrays:
    return {name.replace(".", "/"): array for name, array in files.read_safetensors(path).items()}


READERS: dict[str, Callable[[Path], Arrays]] = {
    "tf1": read_checkpoint,
    "torch": files.read_safetensors,
    "keras": _read_keras,
    "flax": _read_tree,
    "safetensors": _read_own,
}
"""Path -> arrays by name, for each format that can be imported."""

INTERPRETERS: dict[str, Callable[[Arrays], Imported]] = {
    "torch": torch.from_arrays,
    "keras": keras.from_arrays,
    "flax": flax.from_arrays,
    "safetensors": flax.from_arrays,
}


def list_arrays(format_name: str, path: Path) -> Arrays:
    """The arrays in a file, by name. Raises WeightsError where there is none, or it is damaged."""
    return _of(READERS, format_name)(path)


def read(format_name: str, path: Path, *, ignore: Iterable[str] = (), settings: Settings = Settings()) -> Imported:
    """The classifier in a file.

    Args:
      format_name: one of `READERS`.
      path: the file; for tf1, see `tf1.read`.
      ignore: patterns of names to leave out.
      settings: what a TensorFlow 1 checkpoint leaves open.

    Raises:
      WeightsError: there is no such file, it is damaged, or holds another network.
    """
    if format_name == "tf1":
        return tf1.read(path, ignore=ignore, **vars(settings))
    return INTERPRETERS[format_name](ignoring(list_arrays(format_name, path), ignore))


def _of(formats: dict[str, T], name: str) -> T:
    if name not in formats:
        raise WeightsError(f"Unknown format {name!r}; expected one of {', '.join(formats)}.")
    return formats[name]


def _write_tf1(path: Path, model: Exported) -> None:
    tf1.write(path, from_params(model.params), model.adam, **vars(model.settings))


def _write_torch(path: Path, model: Exported) -> None:
    files.write_safetensors(path, torch.to_state_dict(model.params), {"format": "pt"})


def _write_own(path: Path, model: Exported) -> None:
    metadata = {"program": "lstm-mnist-jax", "classes": "\n".join(model.class_names)}
    files.write_safetensors(path, flax.flatten(flax.to_tree(model.params, "nnx"), "."), metadata)


WRITERS: dict[str, tuple[str, Callable[[Path, Exported], None]]] = {
    "tf1": ("", _write_tf1),
    "torch": (".safetensors", _write_torch),
    "keras": (".weights.h5", lambda path, model: files.write_hdf5(path, keras.to_arrays(model.params))),
    "flax": (".msgpack", lambda path, model: files.write_msgpack(path, flax.to_tree(model.params))),
    "safetensors": (".safetensors", _write_own),
    "onnx": (
        ".onnx",
        lambda path, model: files.write_bytes(path, export.to_onnx(model.params, model.image_shape, model.class_names)),
    ),
    "stablehlo": (
        ".stablehlo",
        lambda path, model: files.write_bytes(path, export.to_stablehlo(model.params, model.image_shape)),
    ),
}
"""The ending of a file's name, and (path, model) -> None, for each format that can be exported."""


def write(format_name: str, path: Path, model: Exported, *, overwrite: bool = False) -> None:
    """Writes a file.

    Args:
      format_name: one of `WRITERS`.
      path: its name; for tf1, the prefix of a checkpoint.
      model: what to write.
      overwrite: replace what is there.

    Raises:
      WeightsError: the name has another ending than the format's, is taken, or cannot be written to.
    """
    ending, write_file = _of(WRITERS, format_name)
    if not path.name.endswith(ending) or path.name in ("", ending):
        raise WeightsError(
            f"{path} should be a file name that ends in {ending}: that is what reads {format_name} files."
        )
    taken = [path, path.with_name(path.name + ".index")] if format_name == "tf1" else [path]
    if not overwrite and any(file.exists() for file in taken):
        raise WeightsError(f"{path} exists already. Choose another name, or replace it with --overwrite.")
    write_file(path, model)
