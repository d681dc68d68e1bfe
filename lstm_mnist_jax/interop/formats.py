"""The formats of `lstm-mnist import` and `export` by name: how files are read and written."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lstm_mnist_jax.config import ModelConfig, OptimizerConfig
from lstm_mnist_jax.config.json import differences
from lstm_mnist_jax.errors import WeightsError, did_you_mean
from lstm_mnist_jax.interop import export, files, flax, keras, tf1, torch, torch_file
from lstm_mnist_jax.interop.tf_checkpoint import find_prefix, read_checkpoint
from lstm_mnist_jax.interop.weights import Adam, Arrays, Imported, from_params, ignoring
from lstm_mnist_jax.model import Params

NOT_IN_WEIGHTS = ("forget_bias", "chrono_steps", "dense_stddev", "dropout_rate", "permutation_seed")
"""Fields that matter to initialization and training alone."""


@dataclass(frozen=True)
class Settings:
    """Constants of a TensorFlow 1 program that are not in its checkpoints.

    Attributes:
      forget_bias: what the cells add to their forget gates; None is what the graph has, or 1.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
    """

    forget_bias: float | None = None
    b1: float = OptimizerConfig.b1
    b2: float = OptimizerConfig.b2


@dataclass(frozen=True)
class Exported:
    """A model to export.

    Attributes:
      config: the network.
      params: its parameters.
      opt_state: the optimizer's state; None where there is none.
      image_shape: (height, width) or (height, width, channels) of one image.
      class_names: one name a class.
      settings: of the program that will read a TensorFlow 1 checkpoint.
      step: the number of training steps.
      like: for tf1, a checkpoint whose names are taken instead of the tutorial's.
    """

    config: ModelConfig
    params: Params
    opt_state: Any
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    settings: Settings
    step: int = 0
    like: Path | None = None


IMPORT_FORMATS = ("tf1", "torch", "keras", "flax", "safetensors")

EXPORT_ENDINGS = {
    "tf1": "",
    "torch": ".safetensors",
    "keras": ".weights.h5",
    "flax": ".msgpack",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "stablehlo": ".stablehlo",
}
"""The ending of a file's name, for each format that can be exported."""


def list_arrays(format_name: str, path: Path, ignore: Iterable[str] = ()) -> Arrays:
    """The arrays in a file, by name. Raises WeightsError where it is missing or damaged."""
    _require_one_of(IMPORT_FORMATS, format_name)
    with _hint(format_name, path):
        return _read_file(format_name, path, ignore, choose=False)


def _read_file(format_name: str, path: Path, ignore: Iterable[str], *, choose: bool = True) -> Arrays:
    """The arrays that are not ignored. `choose`: refuse several sets of weights in a file of PyTorch."""
    match format_name:
        case "tf1":
            return ignoring(read_checkpoint(path), ignore)
        case "keras":
            return ignoring(files.read_hdf5(path).arrays, ignore)
        case "flax":
            leaves = flax.flatten(files.read_msgpack(path))
            return ignoring({name: leaf for name, leaf in leaves.items() if isinstance(leaf, np.ndarray)}, ignore)
        case "torch" if not _is_safetensors(path):
            return torch_file.read(path, ignore, choose=choose)
    arrays = files.read_safetensors(path)
    if format_name != "torch":
        arrays = {name.replace(".", "/"): array for name, array in arrays.items()}
    return ignoring(arrays, ignore)


def locate(format_name: str, path: Path) -> Path:
    """The file of a path; for tf1, the prefix of the checkpoint. Raises WeightsError."""
    return find_prefix(path) if format_name == "tf1" and not _kind(path) else path


@contextmanager
def _hint(format_name: str, path: Path) -> Iterator[None]:
    """Adds the format of the file to an error, where it is another one."""
    try:
        yield
    except WeightsError as error:
        if (kind := _kind(path)) and format_name not in kind:
            raise WeightsError(f"{path} looks like a file for: import {' or '.join(kind)}.") from error
        raise


def _kind(path: Path) -> tuple[str, ...]:
    """The possible formats of a file by its contents; none where these are unknown."""
    start = _start(path)
    if start.startswith(torch_file.ZIP):
        names = torch_file.names_in_zip(path)
        if any(name.endswith("/data.pkl") for name in names):
            return ("torch",)
        return ("keras",) if "model.weights.h5" in names else ()
    if start.startswith(b"\x89HDF"):
        return ("keras",)
    if torch_file.is_torch(start):
        return ("torch",)
    return ("torch", "safetensors") if start[8:9] == b"{" and start[6:8] == b"\0\0" else ()


def _is_safetensors(path: Path) -> bool:
    """By its contents; where these are neither that nor PyTorch's, by its name."""
    kind = _kind(path)
    return "safetensors" in kind or (path.suffix == ".safetensors" and not kind)


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(32)
    except OSError:
        return b""


def read(
    format_name: str,
    path: Path,
    *,
    ignore: Iterable[str] = (),
    layers: Sequence[str] = (),
    settings: Settings = Settings(),
    recurrent_activation: str | None = None,
) -> Imported:
    """The classifier in a file.

    Args:
      format_name: one of `IMPORT_FORMATS`.
      path: the file; for tf1, see `tf1.read`.
      ignore: patterns of names to leave out.
      layers: the names of the LSTM layers from the input to the output, where nothing else determines their order.
      settings: for tf1.
      recurrent_activation: for keras, see `keras.from_file`.

    Raises:
      WeightsError: there is no such file, it is damaged, or holds another network.
    """
    _require_one_of(IMPORT_FORMATS, format_name)
    if recurrent_activation is not None and format_name != "keras":
        raise WeightsError(f"--recurrent-activation is for keras, not for {format_name}; leave it out.")
    with _hint(format_name, path):
        if format_name == "tf1":
            return tf1.read(path, ignore=ignore, order=layers, **vars(settings))
        if format_name == "keras":
            file = files.read_hdf5(path)
            return keras.from_file(file, ignore=ignore, order=layers, recurrent_activation=recurrent_activation)
        found = _read_file(format_name, path, ignore)
        if format_name == "torch" and any(name.endswith(".cell.dense_i.kernel") for name in found):
            raise WeightsError(f"{path} has the names of this package, not of PyTorch: import safetensors.")
        return (torch if format_name == "torch" else flax).from_arrays(found, layers)


def _require_one_of(formats: Iterable[str], name: str) -> None:
    if name not in formats:
        raise WeightsError(
            f"Unknown format {name!r}; expected one of {', '.join(formats)}{did_you_mean(name, formats)}"
        )


def _write_file(format_name: str, path: Path, model: Exported) -> None:
    params, shape = model.params, model.image_shape
    match format_name:
        case "tf1":
            adam = None if model.opt_state is None else Adam.from_optax(model.opt_state)
            tf1.write(path, from_params(params), adam, like=model.like, step=model.step, **vars(model.settings))
        case "torch":
            files.write_safetensors(path, torch.to_state_dict(params), {"format": "pt"})
        case "keras":
            files.write_hdf5(path, keras.to_arrays(params), "sequential")
        case "flax":
            files.write_msgpack(path, flax.to_tree(params))
        case "safetensors":
            metadata = {"program": "lstm-mnist-jax", "classes": "\n".join(model.class_names)}
            files.write_safetensors(path, flax.flatten(flax.to_tree(params, "nnx"), "."), metadata)
        case "onnx":
            files.write_bytes(path, export.to_onnx(params, shape, model.class_names))
        case "stablehlo":
            files.write_bytes(path, export.to_stablehlo(params, shape, config=model.config))


def _refuse_unusual(format_name: str, config: ModelConfig) -> None:
    """All formats but stablehlo hold LSTMs over rows, with the last output through a dense layer."""
    own = {name: getattr(config, name) for name in ("hidden_features", *NOT_IN_WEIGHTS)}
    unusual = differences(ModelConfig(**own), config)
    if unusual:
        fields = ", ".join(f"{name} {value}" for name, (_, value) in unusual.items())
        raise WeightsError(
            f"Files for {format_name} hold LSTM layers in one direction that read rows, the last output through a "
            f"dense layer; this model has {fields}. Only stablehlo holds such a model."
        )


def write(format_name: str, path: Path, model: Exported, *, overwrite: bool = False) -> None:
    """Writes a file.

    Args:
      format_name: one of `EXPORT_ENDINGS`.
      path: its name; for tf1, the prefix of a checkpoint.
      model: the model.
      overwrite: replace an existing file.

    Raises:
      WeightsError: the format cannot hold such a network, or the name has another ending, is taken, or cannot be
        written to.
    """
    _require_one_of(EXPORT_ENDINGS, format_name)
    ending = EXPORT_ENDINGS[format_name]
    if format_name != "stablehlo":
        _refuse_unusual(format_name, model.config)
    if not path.name.endswith(ending) or path.name == ending:
        raise WeightsError(
            f"{path} has another ending than files for {format_name}: "
            f"expected NAME{ending or ', the prefix of a checkpoint'}."
        )
    if model.like is not None and format_name != "tf1":
        raise WeightsError(f"Only tf1 takes the names of another file, not {format_name}; leave out --like.")
    if format_name == "tf1" and re.search(r"\.(index|meta|data-\d{5}-of-\d{5})$", path.name):
        raise WeightsError(f"{path} names one of a checkpoint's files; expected what Saver.save is given, without it.")
    taken = [path, path.with_name(path.name + ".index")] if format_name == "tf1" else [path]
    try:
        is_taken = any(file.exists() for file in taken)
    except OSError as error:  # such as a name that is too long
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}.") from error
    if is_taken and not overwrite:
        raise WeightsError(f"{path} exists already. Choose another name, or replace it with --overwrite.")
    _write_file(format_name, path, model)
