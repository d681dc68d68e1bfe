"""TensorFlow 1: `BasicLSTMCell`s, with an output layer and Adam's slots, as the variables of a checkpoint.

    rnn/multi_rnn_cell/cell_0/basic_lstm_cell/kernel [in + hidden, 4 hidden], input rows first, gates i, j, f, o
    rnn/multi_rnn_cell/cell_0/basic_lstm_cell/bias   [4 hidden]; the cell adds forget_bias to gate f at every step
    Variable [hidden, classes], Variable_1 [classes]
    NAME/Adam, NAME/Adam_1, beta1_power, beta2_power

A cell's j is our g. `LSTMCell` without peepholes, projection and clipping, and `LSTMBlockCell` without clipping,
compute and store the same.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.tf_checkpoint import find_prefix, read_checkpoint, write_checkpoint
from lstm_mnist_jax.interop.weights import (
    GATES,
    Adam,
    Arrays,
    Imported,
    Layer,
    Weights,
    check,
    ignoring,
    listing,
    order_layers,
    output_layer,
)
from lstm_mnist_jax.rnn.weights import reorder_gates

TF1_GATES = "igfo"
"""The order i, j, f, o, in this package's letters."""

CELL = re.compile(
    r"((?:.*/)?[^/]*lstm[^/]*(?:/linear)?)/(?:(?P<kernel>kernel|weights|matrix)|bias(?:es)?)", re.IGNORECASE
)
"""`kernel` since TensorFlow 1.2, `weights` in 1.0, `Linear/Matrix` before."""

CUDNN_CELL = "cudnn_compatible_lstm_cell"
"""The name of CudnnLSTM's cells in checkpoints. They add nothing to their forget gates."""

SLOT = re.compile(r".*/(Adam|Momentum|RMSProp|Adagrad|Adadelta|Ftrl|ExponentialMovingAverage)(_\d+)?")
"""Slots of optimizers and moving averages, also where their variable is missing."""

FLOAT32_TINY = float(np.finfo(np.float32).tiny)


def read(
    path: Path,
    *,
    forget_bias: float = 1.0,
    ignore: Iterable[str] = (),
    order: Sequence[str] = (),
    b1: float = 0.9,
    b2: float = 0.999,
) -> Imported:
    """Reads the tutorial's model, of any number of layers and any widths, from a checkpoint.

    Args:
      path: what was given to `Saver.save`, one of the checkpoint's files, or their folder.
      forget_bias: what the cells added to their forget gates, which is not in a checkpoint; TensorFlow's default is 1.
        It is added to the biases.
      ignore: patterns of names to leave out, such as `model2/*`.
      order: the names of the cells, where neither names nor widths determine their order.
      b1: Adam's. The number of steps is computed from the powers of b1 and b2, which a checkpoint holds.
      b2: Adam's.

    Raises:
      WeightsError: there is no such checkpoint, it is damaged, or holds another network.
    """
    found = ignoring(read_checkpoint(path), ignore)
    imported = from_variables(found, forget_bias=forget_bias, order=order, b1=b1, b2=b2)
    suffix = re.search(r"-(\d{1,18})$", find_prefix(path).name)
    if suffix and _scalar(found, "global_step") is None:
        return imported._replace(step=int(suffix[1]))  # Adam's powers are 0 after 90,000 steps or so
    return imported


def from_variables(
    found: Arrays, *, forget_bias: float = 1.0, order: Sequence[str] = (), b1: float = 0.9, b2: float = 0.999
) -> Imported:
    """The model in a checkpoint's variables: see `read`."""
    places = _places(found, order)
    layers = tuple(
        _layer(found, pair, 0.0 if CUDNN_CELL in name else forget_bias) for name, pair in places.cells.items()
    )
    kernel, bias = (np.asarray(found[name], np.float32) for name in places.dense)
    weights = Weights(layers, kernel, bias)
    imported = check(Imported(weights, (*places.cells, places.dense[0])), found)
    adam, step = _adam(found, places, b1, b2), _scalar(found, "global_step")
    if step is None or not 0 <= step < 1 << 62:
        step = adam.steps if adam else 0
    return imported._replace(adam=adam, step=int(step))


def to_variables(
    weights: Weights,
    adam: Adam | None = None,
    *,
    forget_bias: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    like: Arrays | None = None,
    step: int = 0,
) -> dict[str, np.ndarray]:
    """The model as variables by name, with Adam's slots and powers if its state is given.

    Args:
      weights: the weights.
      adam: the state of Adam.
      forget_bias: what the cells that read them will add to their forget gates.
      b1: Adam's.
      b2: Adam's.
      like: the variables of a checkpoint of the same network, whose names are taken instead of the tutorial's. Other
        variables than the model's and Adam's stay as they are.
      step: the new value of `global_step` in `like`, if there is one.

    Raises:
      WeightsError: `like` is of another network, or has a state of Adam and none is given.
    """
    places = None if like is None else _places(like)
    if places is not None and any(CUDNN_CELL in name for name in places.cells):
        forget_bias = 0.0
    variables = _named(weights, forget_bias)
    if adam is not None:
        for slot, moments in (("Adam", adam.mu), ("Adam_1", adam.nu)):
            variables |= {f"{name}/{slot}": array for name, array in _named(moments, 0.0).items()}
        for name, decay in (("beta1_power", b1), ("beta2_power", b2)):
            variables[name] = np.array(_powers(decay, adam.steps + 1)[-1])
    variables = {name: np.asarray(array, np.float32) for name, array in variables.items()}
    return variables if like is None or places is None else _renamed(like, places, weights, variables, step)


def write(
    path: Path, weights: Weights, adam: Adam | None = None, *, like: Path | None = None, step: int = 0, **options: float
) -> None:
    """Writes a checkpoint that the tutorial's `Saver` restores, or one with the names of another checkpoint.

    Args:
      path: the prefix.
      weights: the weights.
      adam: the state of Adam.
      like: a checkpoint of the same network, whose names are taken.
      step: as of `to_variables`.
      **options: `forget_bias`, `b1` and `b2` of `to_variables`.

    Raises:
      WeightsError: it cannot be written, or `like` cannot be read or is of another network.
    """
    found = None if like is None else ignoring(read_checkpoint(like), ())
    write_checkpoint(path, to_variables(weights, adam, like=found, step=step, **options))


class _Places(NamedTuple):
    """The names of the parts of the model in a checkpoint.

    Attributes:
      cells: the names of each cell's kernel and bias, by the cell's name.
      dense: the names of the output layer's weights and biases.
      slots: the names of what optimizers and averages keep of a variable, by the variable's name and by kind.
    """

    cells: dict[str, tuple[str, str]]
    dense: tuple[str, str]
    slots: dict[str, dict[str, str]]

    @property
    def names(self) -> list[str]:
        """Of all weights and biases, the output layer's last."""
        return [name for pair in (*self.cells.values(), self.dense) for name in pair]


def _places(found: Arrays, order: Sequence[str] = ()) -> _Places:
    """Finds the parts of the model, the cells from the first layer to the last."""
    slots = _slots(found)
    owned = {name for names in slots.values() for name in names.values()}
    variables = {
        name: array
        for name, array in found.items()
        if name not in owned and not SLOT.fullmatch(name) and array.shape and "float" in str(array.dtype)
    }
    cells = _cells(variables)
    taken = {name for pair in cells.values() for name in pair}
    dense = output_layer({name: array for name, array in variables.items() if name not in taken}, variables)
    names = order_layers({name: _layer(found, pair, 0.0) for name, pair in cells.items()}, found, order)
    return _Places({name: cells[name] for name in names}, dense, slots)


def _slots(found: Arrays) -> dict[str, dict[str, str]]:
    """The slots of each variable. A slot is called [scope/]VARIABLE/KIND, and has the variable's shape."""
    slots: dict[str, dict[str, str]] = {}
    for name, array in found.items():
        parts = name.split("/")
        for start, end in itertools.combinations(range(len(parts)), 2):
            if end < len(parts) - 3:  # a kind has few parts, a name may have a thousand
                continue
            owner, kind = "/".join(parts[start:end]), "/".join(parts[end:])
            if owner in found and found[owner].shape == array.shape:
                slots.setdefault(owner, {})[kind] = name
                break
    return slots


def _cells(variables: Arrays) -> dict[str, tuple[str, str]]:
    """The names of each cell's kernel and bias, by the cell's name."""
    parts: dict[str, dict[str, str]] = {}
    for name in variables:
        if match := CELL.fullmatch(name):
            parts.setdefault(match[1], {})["kernel" if match["kernel"] else "bias"] = name
    # A layer may be called lstm_logits; a cell's own name ends in cell, unless it was given another.
    parts = {scope: cell for scope, cell in parts.items() if "cell" in scope.lower() or _is_cell(variables, cell)}
    taken = {name for cell in parts.values() for name in cell.values()}
    if not parts:
        if any(".ATTRIBUTES" in name for name in variables):
            raise WeightsError(
                "This is an object-based checkpoint of TensorFlow 2. Load it there, and save_weights to a .weights.h5 "
                "file, for import keras."
            )
        raise WeightsError(f"There is no LSTM cell: no .../basic_lstm_cell/kernel. {listing(variables)}")
    for scope, cell in parts.items():
        if {"fw", "bw"} & set(scope.split("/")):
            raise WeightsError(f"The cell {scope} is part of a bidirectional layer, which this classifier has not.")
        others = [name for name in variables if name.startswith(f"{scope}/") and name not in taken]
        if others:
            raise WeightsError(
                f"The cell {scope} has also {', '.join(name.removeprefix(scope + '/') for name in others)}: peepholes, "
                "a projection, or another kind of cell. Expected a kernel and a bias, as a BasicLSTMCell has them."
            )
        if missing := {"kernel", "bias"} - set(cell):
            raise WeightsError(f"The cell {scope} lacks its {missing.pop()}. {listing(variables)}")
    return {scope: (cell["kernel"], cell["bias"]) for scope, cell in parts.items()}


def _is_cell(variables: Arrays, cell: Mapping[str, str]) -> bool:
    """Whether these are a kernel [in + hidden, 4 hidden] and a bias [4 hidden], by their shapes."""
    if len(cell) < 2:
        return False
    kernel, bias = variables[cell["kernel"]].shape, variables[cell["bias"]].shape
    return len(kernel) == 2 and bias == kernel[1:] and kernel[1] % 4 == 0 and kernel[0] > kernel[1] // 4


def _scalar(found: Arrays, basename: str) -> Any:
    """The value of the variable of this name in any scope; None where there is none."""
    name = _scalar_name(found, basename)
    return None if name is None else np.asarray(found[name])[()]


def _scalar_name(found: Arrays, basename: str) -> Any:
    names = [name for name in found if name.rpartition("/")[2] == basename and not found[name].shape]
    if len(names) > 1:
        raise WeightsError(f"There are several variables called {basename}: {', '.join(names)}. --ignore all but one.")
    return names[0] if names else None


def _renamed(found: Arrays, places: _Places, weights: Weights, own: Arrays, step: int) -> dict[str, np.ndarray]:
    """The variables of a checkpoint with the values of the tutorial's variables."""
    if len(places.cells) != len(weights.layers):
        raise WeightsError(f"The checkpoint has {len(places.cells)} LSTM layers, this model {len(weights.layers)}.")
    names = dict(zip(_named(weights, 0.0), places.names, strict=True))
    renamed = {name: own[ours] for ours, name in names.items()}
    if slots := [places.slots[name] for name in names.values() if "Adam" in places.slots.get(name, {})]:
        if "beta1_power" not in own or len(slots) != len(names):
            raise WeightsError(
                "The checkpoint whose names are wanted has a state of Adam, in part or where there is none to write. "
                "Take another one, or leave it out for the tutorial's names."
            )
        for ours, name in names.items():
            renamed |= {places.slots[name][kind]: own[f"{ours}/{kind}"] for kind in ("Adam", "Adam_1")}
        renamed |= {_scalar_name(found, power): own[power] for power in ("beta1_power", "beta2_power")}
    if (global_step := _scalar_name(found, "global_step")) is not None:
        renamed[global_step] = np.array(step)
    variables = {name: np.asarray(array) for name, array in found.items()}
    for name, array in renamed.items():
        if array.shape != variables[name].shape:
            raise WeightsError(
                f"{name} is {list(variables[name].shape)} in the checkpoint whose names are wanted, and "
                f"{list(array.shape)} in this model. {listing(found)}"
            )
        variables[name] = array.astype(variables[name].dtype)
    return variables


def _layer(found: Arrays, names: tuple[str, str], forget_bias: float) -> Layer:
    """A layer from the names of its kernel and its bias."""
    kernel, bias = (np.asarray(found[name]) for name in names)
    hidden = bias.size // 4
    if bias.ndim != 1 or bias.size != 4 * hidden or kernel.ndim != 2 or kernel.shape[1] != bias.size:
        raise WeightsError(
            f"{names[0]} {list(kernel.shape)} and {names[1]} {list(bias.shape)} are not those of an LSTM cell: "
            f"expected [in + hidden, 4 hidden] and [4 hidden]. {listing(found)}"
        )
    if len(kernel) <= hidden:
        raise WeightsError(
            f"{names[0]} {list(kernel.shape)} leaves no rows for the inputs of a cell of {hidden} units."
        )
    kernel, bias = (reorder_gates(np.asarray(array, np.float32), TF1_GATES, GATES) for array in (kernel, bias))
    bias[hidden : 2 * hidden] += np.float32(forget_bias)
    return Layer(kernel[:-hidden], kernel[-hidden:], bias)


def _named(weights: Weights, forget_bias: float) -> dict[str, np.ndarray]:
    """The variables by the tutorial's names: the inverse of `_layer`."""
    if weights.config != ModelConfig(hidden_features=weights.hidden_features):
        raise WeightsError("Checkpoints for tf1 have one dense layer, of the last output; these weights have more.")
    named = {}
    for number, (kernel, recurrent_kernel, bias) in enumerate(weights.layers):
        hidden = len(recurrent_kernel)
        bias = np.array(bias, np.float32)
        bias[hidden : 2 * hidden] -= np.float32(forget_bias)
        scope = f"rnn/multi_rnn_cell/cell_{number}/basic_lstm_cell"
        named[f"{scope}/kernel"] = reorder_gates(np.concatenate([kernel, recurrent_kernel]), GATES, TF1_GATES)
        named[f"{scope}/bias"] = reorder_gates(bias, GATES, TF1_GATES)
    return named | {"Variable": weights.dense_kernel, "Variable_1": weights.dense_bias}


def _adam(found: Arrays, places: _Places, b1: float, b2: float) -> Adam | None:
    """The state of Adam; None where the variables have no slots of Adam."""
    slots = {name: places.slots.get(name, {}) for name in places.names}
    if not any({"Adam", "Adam_1"} & kinds.keys() for kinds in slots.values()):
        return None
    powers = {name: _scalar(found, name) for name in ("beta1_power", "beta2_power")}
    missing = [f"{name}/{kind}" for name in slots for kind in ("Adam", "Adam_1") if kind not in slots[name]]
    missing += [name for name, power in powers.items() if power is None]
    if missing:
        patterns = [p for p in ("*/Adam", "*/Adam_1", "*beta?_power") if any(fnmatchcase(name, p) for name in found)]
        raise WeightsError(
            f"The state of Adam is incomplete: there is no {', '.join(missing)}. To take the weights alone, leave the "
            f"rest of it out: {' '.join(f'--ignore {pattern!r}' for pattern in patterns)}."
        )
    steps = _steps(float(powers["beta1_power"]), float(powers["beta2_power"]), b1, b2)
    owners = ["Adam's state of " + kernel for kernel, _ in (*places.cells.values(), places.dense)]
    moments = []
    for kind in ("Adam", "Adam_1"):
        layers = (
            _layer(found, (slots[kernel][kind], slots[bias][kind]), 0.0) for kernel, bias in places.cells.values()
        )
        kernel, bias = (np.asarray(found[slots[name][kind]], np.float32) for name in places.dense)
        moments.append(check(Imported(Weights(tuple(layers), kernel, bias), tuple(owners)), found).weights)
    return Adam(steps, *moments)


def _steps(b1_power: float, b2_power: float, b1: float, b2: float) -> int:
    """The number of steps after which TensorFlow has these powers, b^(steps + 1), in float32.

    Below float32's smallest normal number, the powers have no influence any more.
    """
    most = 3 + int(np.log(FLOAT32_TINY) / np.log(max(b1, b2, 0.5)))
    powers = [np.maximum(_powers(decay, most).astype(np.float64), FLOAT32_TINY) for decay in (b1, b2)]
    steps = int(np.argmin(np.abs(powers[1] - max(b2_power, FLOAT32_TINY))))
    for name, decay, stored, computed in (("beta2", b2, b2_power, powers[1]), ("beta1", b1, b1_power, powers[0])):
        expected = float(computed[steps])
        if not abs(max(stored, FLOAT32_TINY) - expected) <= (1 - decay) / 4 * expected:  # nor is NaN
            raise WeightsError(
                f"Adam's {name}_power is {stored:.9g}, which is no power of {decay:g}"
                + (f" for {steps} steps, the number from beta2_power" if name == "beta1" else "")
                + ". Give the beta1 and beta2 that the model was trained with as --b1 and --b2."
            )
    return steps


def _powers(decay: float, number: int) -> np.ndarray:
    """decay, decay^2, ..., as TensorFlow computes them: one float32 product after the other."""
    return np.multiply.accumulate(np.full(number, decay, np.float32))
