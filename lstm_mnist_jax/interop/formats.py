"""The formats of `lstm-mnist import` and `export` by name: how files are read and written."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lstm_mnist_jax.config import Config, ModelConfig, OptimizerConfig
from lstm_mnist_jax.errors import ConfigError, WeightsError, did_you_mean, os_errors_as
from lstm_mnist_jax.interop import export, files, flax, huggingface, keras, onnx, tf1, torch, torch_file
from lstm_mnist_jax.interop.assembly import Arrays, ignoring
from lstm_mnist_jax.interop.imported import (
    ACTIVATIONS,
    EXPORT_ENDINGS,
    NETWORK,
    READING,
    Imported,
    pooled,
    refuse_unusual,
    unusual,
)
from lstm_mnist_jax.interop.inputs import Inputs
from lstm_mnist_jax.interop.tf_checkpoint import find_prefix, read_checkpoint
from lstm_mnist_jax.interop.weights import Adam, from_params, pooling_of
from lstm_mnist_jax.model import Params


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
class Given:
    """What the user says of a network that its file does not hold; None is nothing.

    Attributes:
      dense_activation, activation, recurrent_activation, pooling: fields of the `ModelConfig`.
      input_activation: "linear" confirms that no activation follows a dense layer before the LSTM layers.
    """

    dense_activation: str | None = None
    activation: str | None = None
    recurrent_activation: str | None = None
    pooling: str | None = None
    input_activation: str | None = None


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
      training: for huggingface, the config of the run.
      counts: for huggingface, by split: the number of correctly classified images, and of all images.
    """

    config: ModelConfig
    params: Params
    opt_state: Any
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    settings: Settings
    step: int = 0
    like: Path | None = None
    training: Config | None = None
    counts: huggingface.Counts | None = None


IMPORT_FORMATS = ("tf1", "torch", "keras", "flax", "safetensors", "onnx", "huggingface")

WHOLE_MODELS = ("onnx", "huggingface")
"""Formats whose files have the network as well: nothing of them can be left out, or said by options."""


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
        case "onnx":
            return ignoring(onnx.arrays(path), ignore)
    arrays = files.read_safetensors(path / huggingface.WEIGHTS if format_name == "huggingface" else path)
    if format_name == "safetensors":
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
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError:
        return ()
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


def read(
    format_name: str,
    path: Path,
    *,
    ignore: Iterable[str] = (),
    layers: Sequence[str] = (),
    settings: Settings = Settings(),
    given: Given = Given(),
    inputs: Inputs = Inputs(),
) -> Imported:
    """The classifier in a file.

    Args:
      format_name: one of `IMPORT_FORMATS`.
      path: the file; for tf1, see `tf1.read`.
      ignore: patterns of names to leave out.
      layers: the names of the recurrent layers from the input to the output, where nothing else determines their order;
        or of the recurrent layers and the dense layers.
      settings: for tf1.
      given: what the user says of the network.
      inputs: the inputs that it was trained with. Others than pixels / 255 are folded into its first layer; the state
        of Adam, which does not fit the new weights, is then left out.

    Raises:
      WeightsError: there is no such file, it is damaged, or holds another network; or the format has no use for what
        was given.
    """
    _require_one_of(IMPORT_FORMATS, format_name)
    if format_name in WHOLE_MODELS and (*ignore, *layers):
        raise WeightsError(f"A file for {format_name} holds the whole network; leave out --ignore and --layer.")
    if settings.forget_bias is not None and format_name != "tf1":
        raise WeightsError(
            f"--forget-bias is of cells of TensorFlow 1, which add it to what the file holds; files for {format_name} "
            "hold whole biases. Leave it out."
        )
    if given.input_activation is not None and format_name == "tf1":
        raise WeightsError(
            "--input-activation is of a dense layer before the recurrent layers, which importing tf1 does not support. "
            "Leave it out."
        )
    with _hint(format_name, path):
        imported = _read(format_name, path, ignore, layers, settings, given)
        return _with_given(imported, format_name, given).with_inputs(inputs)


def _read(
    format_name: str,
    path: Path,
    ignore: Iterable[str],
    layers: Sequence[str],
    settings: Settings,
    given: Given,
) -> Imported:
    """The classifier as the file has it."""
    if format_name in WHOLE_MODELS:
        return onnx.read(path) if format_name == "onnx" else huggingface.read(path)
    if format_name == "tf1":
        return tf1.read(path, ignore=ignore, order=layers, **vars(settings))
    if format_name == "keras":
        return keras.from_file(
            files.read_hdf5(path),
            ignore=ignore,
            order=layers,
            recurrent_activation=given.recurrent_activation,
            input_activation=given.input_activation,
        )
    found = _read_file(format_name, path, ignore)
    if format_name == "torch":
        if any(name.endswith(".cell.dense_i.kernel") for name in found):
            raise WeightsError(f"{path} has the names of this package, not of PyTorch: import safetensors.")
        as_stored = not _is_safetensors(path)  # which sorts the names
        return torch.from_arrays(found, layers, input_activation=given.input_activation, as_stored=as_stored)
    imported = flax.from_arrays(found, layers, given.input_activation)
    if format_name == "safetensors":
        return _with_network_of_file(imported, path)
    if imported.config.cell == "gru" and any(name.endswith("dense_i/kernel") for name in found):
        note = "GRUCells of NNX are assumed: the arrays of other cells with three gates have the same names"
        return replace(imported, notes=(*imported.notes, note))
    return imported


def _with_network_of_file(imported: Imported, path: Path) -> Imported:
    """With the fields of the config in a file of this package; there are none in those of version 0.4."""
    try:
        network = json.loads(files.read_safetensors_metadata(path).get("network", "{}"))
        if unknown := network.keys() - {*NETWORK, *READING}:
            raise WeightsError(f"unknown fields {', '.join(unknown)}"[:300])
        found = imported.with_network(**network)
        if "pooling" in network and pooling_of(imported.weights, found.config) != found.config.pooling:
            raise WeightsError(
                f"the pooling {found.config.pooling}, but weights of the pooling {imported.config.pooling}"
            )
    except (AttributeError, ConfigError, RecursionError, TypeError, ValueError, WeightsError) as error:
        reason = str(error)[:300]
        raise WeightsError(
            f"{path} describes a network that this version or the file does not have: {reason}"
        ) from error
    return found


def _with_given(imported: Imported, format_name: str, given: Given) -> Imported:
    """The classifier with what the user says of it. Raises WeightsError where this contradicts, or is missing."""
    config, known = imported.config, set(imported.known)
    fields = {name: getattr(given, name) for name in NETWORK if getattr(given, name) is not None}
    if fields.get("pooling") == "last_step" and not config.bidirectional:
        fields["pooling"] = "last"  # the same in one direction
    has_attention = "attention" in imported.unfolded
    if has_attention != (fields.get("pooling") == "attention") and "pooling" not in known:
        raise WeightsError(
            "The file has the weights of attention pooling, but not what it computes with them. Where the outputs are "
            "averaged with the softmax over time of outputs @ weights, confirm this with --pooling attention."
            if has_attention
            else "--pooling is attention, but the file has no attention.weight or attention/kernel [features, 1]."
        )
    if fields.get("pooling") == "all" and "pooling" not in known:
        raise WeightsError("--pooling is all, but the dense layers of the file take the features of one step.")
    for name, value in fields.items():
        if name in known and value != getattr(config, name):
            raise WeightsError(
                f"--{name.replace('_', '-')} is {value}, but the network of the file has {getattr(config, name)}. "
                "Leave it out."
            )
    hidden = ", ".join(imported.names[len(config.hidden_features) : -1])
    if hidden and "dense_activation" not in known | fields.keys():
        raise WeightsError(
            f"The model has hidden dense layers: {hidden}. The file does not hold the activation that follows them: "
            "look into the program that trained the model, and give --dense-activation relu, tanh or linear (none)."
        )
    if "dense_activation" in fields and not hidden:
        raise WeightsError("--dense-activation is of hidden dense layers, of which the file has none. Leave it out.")
    # Keras has a default, which is noted.
    if config.bidirectional and format_name != "keras" and "pooling" not in known | fields.keys():
        raise WeightsError(
            "The model reads both directions, and the file does not hold which outputs its dense layers take. Look "
            "into the program, and give --pooling last_step where it takes outputs[:, -1], of which the backward half "
            "has read one step; --pooling last where it joins the final states of both directions (h_n[-2] and "
            "h_n[-1]); or --pooling mean or max, over time."
        )
    if format_name in ("flax", "safetensors") and "activation" not in known | fields.keys():
        note = "the file does not hold the activations of the cells: assumed are Flax's defaults, tanh and sigmoid"
        imported = replace(imported, notes=(*imported.notes, note))
    try:
        return imported.with_network(**fields)
    except ConfigError as error:
        raise WeightsError(f"{error}") from error


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
            network = json.dumps({name: getattr(model.config, name) for name in (*READING, *NETWORK)})
            metadata = {"program": "lstm-mnist-jax", "classes": "\n".join(model.class_names), "network": network}
            files.write_safetensors(path, flax.flatten(flax.to_tree(params, "nnx"), "."), metadata)
        case "onnx":
            files.write_bytes(path, export.to_onnx(params, shape, model.class_names, model.config))
        case "stablehlo":
            files.write_bytes(path, export.to_stablehlo(params, shape, config=model.config))
        case "huggingface":
            held = not unusual("onnx", model.config)
            graph = export.to_onnx(params, shape, model.class_names, model.config) if held else None
            run: dict[str, Any] = {"training": model.training, "step": model.step, "counts": model.counts}
            huggingface.write(path, params, model.config, shape, model.class_names, onnx=graph, **run)


def not_in_file(format_name: str, config: ModelConfig) -> list[str]:
    """What the program that reads an exported file must have, since the file does not hold it."""
    if format_name not in ("torch", "keras", "flax"):
        return []
    needed = []
    for name in ACTIVATIONS:
        if getattr(config, name) != getattr(ModelConfig, name):
            needed.append(f"{name} {getattr(config, name)} in its LSTM layers")
    if config.bidirectional or config.pooling != ModelConfig.pooling:
        needed.append(f"{pooled(config)}, before its dense layers")
    if config.dense_features:
        needed.append(f"{config.dense_activation} after each hidden dense layer")
    return needed


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
    refuse_unusual(format_name, model.config)
    if not path.name.endswith(ending) or path.name == ending:
        wanted = "NAME" + (ending or (", the prefix of a checkpoint" if format_name == "tf1" else " of a folder"))
        hint = ""
        if format_name == "torch" and path.suffix in (".pt", ".pth"):
            hint = f' For {path.name}: torch.save(safetensors.torch.load_file("{path.stem}{ending}"), "{path.name}").'
        raise WeightsError(f"{path} has another ending than files for {format_name}: expected {wanted}.{hint}")
    if model.like is not None and format_name != "tf1":
        raise WeightsError(f"Only tf1 takes the names of another file, not {format_name}; leave out --like.")
    if format_name == "tf1" and re.search(r"\.(index|meta|data-\d{5}-of-\d{5})$", path.name):
        raise WeightsError(f"{path} names one of a checkpoint's files; expected what Saver.save is given, without it.")
    taken = [path, path.with_name(path.name + ".index")] if format_name == "tf1" else [path]
    with os_errors_as(WeightsError, path, "written"):
        is_empty_folder = format_name == "huggingface" and path.is_dir() and not any(path.iterdir())
        is_taken = any(file.exists() for file in taken) and not is_empty_folder
    if is_taken and not overwrite:
        raise WeightsError(f"{path} exists already. Choose another name, or replace it with --overwrite.")
    _write_file(format_name, path, model)
