"""A model as a folder in the style of the Hugging Face Hub, and back. Nothing is uploaded.

model.safetensors   the weights, with this package's names
config.json         the network, the image's shape, the classes, and the training config
README.md           the model card: metadata, metrics, programs that load the model, the training config
model.onnx          for onnxruntime, where ONNX's operators can hold the network
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lstm_mnist_jax import __version__, model
from lstm_mnist_jax.config import Config, ModelConfig
from lstm_mnist_jax.config.json import from_dict
from lstm_mnist_jax.errors import ConfigError, WeightsError, os_errors_as
from lstm_mnist_jax.interop.files import read_bytes, read_safetensors, write_bytes, write_safetensors
from lstm_mnist_jax.interop.imported import NETWORK, READING, Imported, counted
from lstm_mnist_jax.statistics import Share

MODEL_TYPE, FORMAT = "lstm-mnist-jax", 1

WEIGHTS, CONFIG, CARD, ONNX = "model.safetensors", "config.json", "README.md", "model.onnx"

MAX_CONFIG_BYTES, MAX_SIDE, MAX_LAYERS = 2**20, 2**15, 1000

Counts = Mapping[str, tuple[int, int]]
"""By split: the number of correctly classified images, and of all images."""


def write(
    folder: Path,
    params: model.Params,
    config: ModelConfig,
    image_shape: tuple[int, ...],
    class_names: tuple[str, ...],
    *,
    training: Config | None = None,
    step: int = 0,
    counts: Counts | None = None,
    onnx: bytes | None = None,
) -> None:
    """Writes the files of a folder, config.json last.

    Args:
      folder: new, or one whose files of these names are replaced; a model.onnx there is removed if `onnx` is None.
      params: the model's parameters.
      config: the network.
      image_shape: (height, width) or (height, width, channels) of one image.
      class_names: one name a class.
      training: the config of the run. Of paths in it, to the data, the last part alone is written.
      step: the number of training steps.
      counts: of "validation" and "test", the correctly classified images and all of them.
      onnx: the model as an ONNX file, if ONNX can hold it.

    Raises:
      WeightsError: a file cannot be written, or the package safetensors is missing.
    """
    training = training and _without_places(training)
    arrays = {".".join(map(str, path)): np.asarray(leaf) for path, leaf in flatten_dict(params).items()}
    contents = {
        "model_type": MODEL_TYPE,
        "architectures": ["LSTMClassifier"],
        "format": FORMAT,
        "version": __version__,
        "image_shape": list(image_shape),
        "id2label": {str(number): name for number, name in enumerate(class_names)},
        "label2id": {name: number for number, name in enumerate(class_names)},
        "step": step,
        "model": asdict(config),
        "training": None if training is None else asdict(training),
    }
    card = model_card(folder.absolute().name, contents, config, training, counts or {}, onnx is not None)
    with os_errors_as(WeightsError, folder / ONNX, "removed"):  # first, as these may fail
        if onnx is None:
            (folder / ONNX).unlink(missing_ok=True)  # of the model that was there before
        else:
            write_bytes(folder / ONNX, onnx)
    write_safetensors(folder / WEIGHTS, arrays, {"program": MODEL_TYPE, "classes": "\n".join(class_names)})
    write_bytes(folder / CARD, card.encode())
    write_bytes(folder / CONFIG, (json.dumps(contents, indent=2, ensure_ascii=False) + "\n").encode())


def _without_places(training: Config) -> Config:
    """The config without the folders of this machine: a folder's own name is written as ./NAME, which is no source of
    that name, such as mnist."""

    def own_name(path: str) -> str:
        parts = [part for part in re.split(r"[/\\]", path) if part]
        return f"./{parts[-1]}" if re.search(r"[/\\]", path) and parts else path

    source, data_dir = training.data.source, training.data.data_dir
    source = source if source.startswith("tfds:") else own_name(source)
    return replace(training, data=replace(training.data, source=source, data_dir=data_dir and own_name(data_dir)))


def read(folder: Path) -> Imported:
    """The classifier in a folder that `write` made.

    Args:
      folder: with model.safetensors and config.json.

    Returns:
      The network and its parameters, to the bit; `training` is the config that it was trained with.

    Raises:
      WeightsError: a file is missing or damaged, or the folder is of another model.
    """
    contents = _read_config(folder)
    try:
        config = from_dict(ModelConfig, contents["model"], "model")
        training = contents["training"] and from_dict(Config, contents["training"], "training")
    except (ConfigError, OverflowError, RecursionError, TypeError) as error:
        raise WeightsError(f"{folder / CONFIG}: {error}") from error
    arrays = read_safetensors(folder / WEIGHTS)
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise WeightsError(f"{folder / WEIGHTS} has {name[:100]} in {array.dtype}, expected float32.")
        if not np.isfinite(array).all():
            raise WeightsError(f"{name[:100]} holds values that are not finite numbers; it cannot be of use.")
    shape = tuple(contents["image_shape"])
    params = _params(folder, arrays, config, shape, len(contents["id2label"]))
    names = [f"rnn.layers.{number}" for number in range(len(config.hidden_features))]
    names += [f"dense_hidden.{number}" for number in range(len(config.dense_features))]
    return Imported(
        config,
        params,
        (*names, "dense"),
        known=frozenset((*NETWORK, *READING)),
        step=contents["step"],
        training=training or None,
        image_shape=shape,
        class_names=tuple(contents["id2label"].values()),
        knows_inputs=True,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    """The contents of config.json, with the types that `read` relies on."""
    path = folder / CONFIG
    if not path.is_file():
        there = sorted(item.name for item in folder.iterdir())[:20] if folder.is_dir() else None
        found = "it is not a folder" if there is None else f"there is {', '.join(there) or 'nothing'}"
        raise WeightsError(f"{folder} is no folder of a model in the Hugging Face style: no {CONFIG}; {found}.")
    data = read_bytes(path)
    if len(data) > MAX_CONFIG_BYTES:
        raise WeightsError(f"{path} has {len(data):,} bytes, expected at most {MAX_CONFIG_BYTES:,}.")
    try:
        contents = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}.") from error
    kind = contents.get("model_type") if isinstance(contents, dict) else None
    if kind != MODEL_TYPE:
        what = f"of a model of the type {str(kind)[:100]!r}" if kind else "without a model_type"
        raise WeightsError(
            f"{path} is {what}, expected {MODEL_TYPE!r}, as `lstm-mnist export huggingface` writes it. LSTM weights "
            "of another program are read from their file: lstm-mnist import torch FILE."
        )
    if contents.get("format") != FORMAT:
        raise WeightsError(
            f"{path} has the format {str(contents.get('format'))[:100]}, expected {FORMAT}. It is of another version "
            f"of this package: {str(contents.get('version'))[:100]}; this is {__version__}."
        )
    shape, labels, step = (contents.get(name) for name in ("image_shape", "id2label", "step"))
    sides = shape if isinstance(shape, list) else []
    if not (2 <= len(sides) <= 3 and all(type(side) is int and 0 < side <= MAX_SIDE for side in sides)):
        raise WeightsError(f"{path} has the image_shape {str(shape)[:100]}, expected [height, width].")
    named = isinstance(labels, dict) and all(isinstance(name, str) for name in labels.values())
    if not named or list(labels) != [str(number) for number in range(len(labels))]:
        raise WeightsError(f"{path} has no id2label, an object with a name for each class, from 0.")
    if type(step) is not int or not 0 <= step < 2**31:
        raise WeightsError(f"{path} has the step {str(step)[:100]}, expected an integer from 0 to 2147483647.")
    if missing := [name for name in ("model", "training") if name not in contents]:
        raise WeightsError(f"{path} lacks {' and '.join(missing)}.")
    return contents


def _params(
    folder: Path, arrays: Mapping[str, np.ndarray], config: ModelConfig, shape: tuple[int, ...], classes: int
) -> model.Params:
    """The arrays as the parameters of this network. Raises WeightsError where they are those of another."""
    widths = (*config.hidden_features, *config.dense_features, classes)
    largest = max((side for array in arrays.values() for side in array.shape), default=0)
    if len(widths) > min(len(arrays), MAX_LAYERS) or max(widths) > largest:  # not even shapes are computed of these
        raise WeightsError(
            f"{folder / WEIGHTS} has {counted(len(arrays), 'array')}, of at most {largest:,} rows or columns; {CONFIG} "
            f"says {counted(len(widths) - 1, 'layer')} of up to {max(widths):,} features, and at most {MAX_LAYERS:,} "
            "layers are read."
        )
    try:
        expected = flatten_dict(model.param_shapes(config, shape, classes))
    except (ConfigError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise WeightsError(f"{folder / CONFIG} describes no network: {reason}.") from error
    wanted = {".".join(map(str, path)): leaf.shape for path, leaf in expected.items()}
    found = {name: array.shape for name, array in arrays.items()}
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            raise WeightsError(
                f"{folder / WEIGHTS} does not fit {CONFIG}: {name[:100]} is {found.get(name, 'missing')}, expected "
                f"{wanted.get(name, 'none')}."
            )
    return unflatten_dict({path: arrays[name] for path, name in zip(expected, wanted, strict=True)})


def model_card(
    name: str,
    contents: Mapping[str, Any],
    config: ModelConfig,
    training: Config | None,
    counts: Counts,
    has_onnx: bool,
) -> str:
    """The text of README.md.

    Args:
      name: of the model.
      contents: what is in config.json.
      config: the network.
      training: the config of the run, if there is one.
      counts: see `write`.
      has_onnx: whether there is a model.onnx.
    """
    shape = "x".join(map(str, contents["image_shape"]))
    classes = list(contents["id2label"].values())
    source = training.data.source if training else "mnist"
    data = source.removeprefix("tfds:").partition(":")[0] if "/" not in source and "\\" not in source else ""
    parts = [
        _front_matter(name, data, counts),
        f"# {name}",
        f"Classifies images of {shape} pixels into {counted(len(classes), 'class', 'es')}: {', '.join(classes[:20])}"
        f"{', ...' if len(classes) > 20 else ''}. {model.describe_layers(config)}, then a dense layer; an image is "
        f"read as {config.task}. Trained with lstm-mnist-jax {__version__}"
        + (f" on {data}" if data else "")
        + (f", {counted(contents['step'], 'step')}." if contents["step"] else "."),
        "Images are uint8 from 0 to 255, [n, height, width]; the outputs are logits, [n, classes].",
        "## Metrics",
        _metrics_table(counts),
        "## Use it",
        "Each program is run in this folder. `images.npy` holds the images.",
        "### JAX\n\n" + JAX_PROGRAM,
    ]
    if config.cell in ("lstm", "gru") and not model.runs_through_flax(config):
        parts.append("### PyTorch\n\n" + TORCH_PROGRAM)
    if has_onnx:
        parts.append("### onnxruntime\n\n" + ONNX_PROGRAM)
    if training is not None:
        settings = json.dumps(asdict(training), indent=2, ensure_ascii=False)
        parts += [
            "## Training config",
            f"```json\n{settings}\n```",
            "`lstm-mnist import huggingface . --run-dir RUN_DIR` makes a run of this folder with this config, which "
            "can be evaluated, and trained further.",
        ]
    return "\n\n".join(parts) + "\n"


def _front_matter(name: str, data: str, counts: Counts) -> str:
    """The metadata, in YAML, of which JSON is a part."""
    word = json.dumps
    lines = [
        "---",
        "# license: choose one for your weights, such as apache-2.0",
        "library_name: lstm-mnist-jax",
        "pipeline_tag: image-classification",
        f"tags: {word(['jax', 'flax', 'lstm', 'rnn', 'image-classification'])}",
    ]
    if data:
        lines.append(f"datasets: {word([data])}")
    if counts:
        lines += ['metrics: ["accuracy"]', "model-index:", f"- name: {word(name)}", "  results:"]
    for split, (correct, count) in counts.items():
        share = Share(correct, count)
        low, high = share.interval
        metric = {
            "type": "accuracy",
            "name": f"Accuracy (95 % confidence interval {low:.4f} to {high:.4f})",
            "value": share.value,
            "args": {"correct": correct, "examples": count, "confidence_interval_95": [low, high], "method": "Wilson"},
        }
        task = {"type": "image-classification", "name": "Image classification"}
        lines += [
            f"  - task: {word(task)}",
            f"    dataset: {word({'type': data or 'images', 'name': data or 'images', 'split': split})}",
            f"    metrics: {word([metric])}",
        ]
    return "\n".join([*lines, "---"])


def _metrics_table(counts: Counts) -> str:
    if not counts:
        return "Not evaluated: the data were not there when this folder was written."
    rows = ["| split | images | accuracy | 95 % confidence interval (Wilson) |", "| --- | --- | --- | --- |"]
    for split, (correct, count) in counts.items():
        share = Share(correct, count)
        low, high = share.interval
        rows.append(f"| {split} | {count:,} | {share.value:.2%} | {low:.2%} to {high:.2%} |")
    return "\n".join(rows)


JAX_PROGRAM = """```python
from pathlib import Path

import jax
import numpy as np
from lstm_mnist_jax import model
from lstm_mnist_jax.interop import huggingface

imported = huggingface.read(Path("."))
images = np.load("images.npy")
logits = jax.jit(model.apply, static_argnames="config")(imported.params, images, config=imported.config)
```"""

ONNX_PROGRAM = """```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = np.load("images.npy")
probabilities, logits = session.run(["probabilities", "logits"], {"images": images})
```"""

TORCH_PROGRAM = '''```python
import json

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn


class Classifier(nn.Module):
    """The network of config.json with the weights of model.safetensors."""

    def __init__(self, config, weights):
        super().__init__()
        self.config, self.attention = config, weights.get("attention.kernel")
        lstm, both = config["cell"] == "lstm", config["bidirectional"]
        self.layers = nn.ModuleList()
        for number, hidden in enumerate(config["hidden_features"]):
            state = {}
            for direction, suffix in (("forward_rnn.", ""), ("backward_rnn.", "_reverse")) if both else (("", ""),):
                cell = f"rnn.layers.{number}.{direction}cell."
                kernel, bias = weights[cell + "dense_i.kernel"], weights[cell + f"dense_{'h' if lstm else 'i'}.bias"]
                state["weight_ih_l0" + suffix] = kernel.T
                state["weight_hh_l0" + suffix] = weights[cell + "dense_h.kernel"].T
                second = None if lstm else weights.get(cell + "dense_h.bias")  # with recurrent_bias
                state["bias_ih_l0" + suffix] = bias
                state["bias_hh_l0" + suffix] = torch.zeros_like(bias) if second is None else second
            layer = (nn.LSTM if lstm else nn.GRU)(len(kernel), hidden, bidirectional=both)
            layer.load_state_dict(state)
            self.layers.append(layer)
        self.dense = nn.ModuleList()
        for name in [*(f"dense_hidden.{n}" for n in range(len(config["dense_features"]))), "dense"]:
            layer = nn.Linear(*weights[f"{name}.kernel"].shape)
            layer.load_state_dict({"weight": weights[f"{name}.kernel"].T, "bias": weights[f"{name}.bias"]})
            self.dense.append(layer)

    def forward(self, images):
        config, (n, height, width) = self.config, images.shape[:3]
        if config["task"] == "columns":
            images = images.transpose(1, 2)
        if config["task"] == "permuted":
            order = np.random.RandomState(config["permutation_seed"]).permutation(height * width)
            images = images.reshape(n, height * width, -1)[:, torch.from_numpy(order)]
        natural = {"rows": height, "columns": width}.get(config["task"], height * width)
        outputs = images.reshape(n, config["sequence_length"] or natural, -1).transpose(0, 1) / 255
        for layer in self.layers:
            outputs, state = layer(outputs)
        last = state[0] if isinstance(state, tuple) else state
        pooled = {
            "last": lambda: torch.cat(tuple(last), dim=-1),
            "last_step": lambda: outputs[-1],
            "all": lambda: outputs.transpose(0, 1).flatten(1),
            "mean": lambda: outputs.mean(0),
            "max": lambda: outputs.amax(0),
            "attention": lambda: (outputs * torch.softmax(outputs @ self.attention, 0)).sum(0),
        }[config["pooling"]]()
        activation = {"relu": torch.relu, "tanh": torch.tanh, "linear": nn.Identity()}[config["dense_activation"]]
        for layer in self.dense[:-1]:
            pooled = activation(layer(pooled))
        return self.dense[-1](pooled)


with open("config.json") as file:
    config = json.load(file)["model"]
images = torch.from_numpy(np.load("images.npy"))
logits = Classifier(config, load_file("model.safetensors"))(images).detach().numpy()
```'''
