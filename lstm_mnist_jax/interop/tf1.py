"""TensorFlow 1: `BasicLSTMCell`s, with an output layer and Adam's slots, as the variables of a checkpoint.

    rnn/multi_rnn_cell/cell_0/basic_lstm_cell/kernel [in + hidden, 4 hidden], input rows first, gates i, j, f, o
    rnn/multi_rnn_cell/cell_0/basic_lstm_cell/bias   [4 hidden]; the cell adds forget_bias to gate f at every step
    Variable [hidden, classes], Variable_1 [classes]
    NAME/Adam, NAME/Adam_1, beta1_power, beta2_power

A cell's j is our g. `LSTMCell`, without peepholes and projection, and `LSTMBlockCell` compute and store the same.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
    natural,
    output_layer,
    reorder_gates,
)

TF1_GATES = "igfo"
"""The order i, j, f, o, in this package's letters."""

CELL = re.compile(r"(.*lstm[^/]*(?:/linear)?)/(?:(kernel|weights|matrix)|(bias|biases))", re.IGNORECASE)
"""`kernel` since TensorFlow 1.2, `weights` in 1.0, `Linear/Matrix` before."""

SLOT = re.compile(r".*/(Adam|Momentum|RMSProp|Adagrad|Adadelta|Ftrl|ExponentialMovingAverage)(_\d+)?")
"""What is certainly an optimizer's, or an average, even where the variable it belongs to is missing."""

FLOAT32_TINY = float(np.finfo(np.float32).tiny)


def read(
    path: Path, *, forget_bias: float = 1.0, ignore: Iterable[str] = (), b1: float = 0.9, b2: float = 0.999
) -> Imported:
    """Reads the tutorial's model, of any number of layers and any widths, from a checkpoint.

    Args:
      path: what was given to `Saver.save`, one of the checkpoint's files, or their folder.
      forget_bias: what the cells added to their forget gates, which is no part of a checkpoint; TensorFlow's
        default is 1. It is moved into the biases.
      ignore: patterns of names to leave out, such as `model2/*`.
      b1, b2: Adam's, with which the stored powers are read as a number of steps.

    Raises:
      WeightsError: there is no such checkpoint, it is damaged, or holds another network. Every message about what
        it holds lists that.
    """
    found = ignoring(read_checkpoint(path), ignore)
    imported = from_variables(found, forget_bias=forget_bias, b1=b1, b2=b2)
    suffix = re.search(r"-(\d+)$", find_prefix(path).name)
    return imported if imported.step or not suffix else imported._replace(step=int(suffix[1]))


def from_variables(found: Arrays, *, forget_bias: float = 1.0, b1: float = 0.9, b2: float = 0.999) -> Imported:
    """What a checkpoint's variables hold: see `read`."""
    slots = _slots(found)
    owned = {name for names in slots.values() for name in names.values()}
    variables = {
        name: array
        for name, array in found.items()
        if name not in owned and not SLOT.fullmatch(name) and array.shape and "float" in str(array.dtype)
    }
    cells = _cells(variables, found)
    taken = {name for pair in cells.values() for name in pair}
    dense = output_layer({name: array for name, array in variables.items() if name not in taken}, found)
    pairs = [*cells.values(), dense]
    weights = _assemble(found, pairs, forget_bias)
    imported = check(Imported(weights, (*cells, dense[0])), found)
    adam = _adam(found, pairs, slots, b1, b2)
    return imported._replace(adam=adam, step=_global_step(found, adam))


def to_variables(
    weights: Weights, adam: Adam | None = None, *, forget_bias: float = 1.0, b1: float = 0.9, b2: float = 0.999
) -> dict[str, np.ndarray]:
    """The tutorial's variables by their names, Adam's slots and powers included where they are known.

    Args:
      weights: the weights.
      adam: the state of Adam.
      forget_bias: what the cells that read them will add to their forget gates.
      b1, b2: Adam's.
    """
    variables = _named(weights, forget_bias)
    if adam is not None:
        for slot, moments in (("Adam", adam.mu), ("Adam_1", adam.nu)):
            variables |= {f"{name}/{slot}": array for name, array in _named(moments, 0.0).items()}
        for name, decay in (("beta1_power", b1), ("beta2_power", b2)):
            variables[name] = np.array(_powers(decay, adam.steps + 1)[-1])
    return {name: np.asarray(array, np.float32) for name, array in variables.items()}


def write(path: Path, weights: Weights, adam: Adam | None = None, **options: float) -> None:
    """Writes a checkpoint that the tutorial's `Saver` restores: see `to_variables`. Raises WeightsError."""
    write_checkpoint(path, to_variables(weights, adam, **options))


def _slots(found: Arrays) -> dict[str, dict[str, str]]:
    """What optimizers and moving averages keep of each variable: its name -> kind -> their name.

    A slot is called [scope/]VARIABLE/KIND, and has the variable's shape.
    """
    slots: dict[str, dict[str, str]] = {}
    for name, array in found.items():
        parts = name.split("/")
        for start, end in itertools.combinations(range(len(parts)), 2):
            owner, kind = "/".join(parts[start:end]), "/".join(parts[end:])
            if owner in found and found[owner].shape == array.shape:
                slots.setdefault(owner, {})[kind] = name
                break
    return slots


def _cells(variables: Arrays, found: Arrays) -> dict[str, tuple[str, str]]:
    """The names of each cell's kernel and bias, by the cell's, from the first layer to the last."""
    parts: dict[str, dict[str, str]] = {}
    for name in variables:
        if match := CELL.fullmatch(name):
            parts.setdefault(match[1], {})["kernel" if match[2] else "bias"] = name
    if not parts:
        if any(".ATTRIBUTES" in name for name in found):
            raise WeightsError(
                "This is an object-based checkpoint of TensorFlow 2. Load it there, and save_weights to a .weights.h5 "
                "file, for import keras."
            )
        raise WeightsError(f"There is no LSTM cell: no .../basic_lstm_cell/kernel. {listing(found)}")
    for scope, cell in parts.items():
        if {"fw", "bw"} & set(scope.split("/")):
            raise WeightsError(f"The cell {scope} is part of a bidirectional layer, which this classifier has not.")
        others = [name for name in variables if name.startswith(f"{scope}/") and name not in cell.values()]
        if others:
            raise WeightsError(
                f"The cell {scope} has also {', '.join(name.removeprefix(scope + '/') for name in others)}: peepholes, "
                "a projection, or another kind of cell. Expected a kernel and a bias, as a BasicLSTMCell has them."
            )
        if len(cell) < 2:
            raise WeightsError(f"The cell {scope} lacks its {({'kernel', 'bias'} - set(cell)).pop()}. {listing(found)}")
    return {scope: (parts[scope]["kernel"], parts[scope]["bias"]) for scope in sorted(parts, key=natural)}


def _assemble(found: Arrays, pairs: list[tuple[str, str]], forget_bias: float) -> Weights:
    """The weights from the names of each layer's kernel and bias, the output layer's last."""
    layers = []
    for kernel_name, bias_name in pairs[:-1]:
        kernel, bias = np.asarray(found[kernel_name]), np.asarray(found[bias_name])
        hidden = bias.size // 4
        if bias.ndim != 1 or bias.size != 4 * hidden or kernel.ndim != 2 or kernel.shape[1] != bias.size:
            raise WeightsError(
                f"{kernel_name} {list(kernel.shape)} and {bias_name} {list(bias.shape)} are not those of an LSTM cell: "
                f"expected [in + hidden, 4 hidden] and [4 hidden]. {listing(found)}"
            )
        if len(kernel) <= hidden:
            raise WeightsError(
                f"{kernel_name} {list(kernel.shape)} leaves no rows for the inputs of a cell of {hidden} units."
            )
        kernel, bias = (reorder_gates(np.asarray(array, np.float32), TF1_GATES, GATES) for array in (kernel, bias))
        bias[hidden : 2 * hidden] += np.float32(forget_bias)
        layers.append(Layer(kernel[:-hidden], kernel[-hidden:], bias))
    return Weights(tuple(layers), *(np.asarray(found[name], np.float32) for name in pairs[-1]))


def _named(weights: Weights, forget_bias: float) -> dict[str, np.ndarray]:
    """The variables by the tutorial's names: the inverse of `_assemble`."""
    named = {}
    for number, (kernel, recurrent_kernel, bias) in enumerate(weights.layers):
        hidden = len(recurrent_kernel)
        bias = np.array(bias, np.float32)
        bias[hidden : 2 * hidden] -= np.float32(forget_bias)
        scope = f"rnn/multi_rnn_cell/cell_{number}/basic_lstm_cell"
        named[f"{scope}/kernel"] = reorder_gates(np.concatenate([kernel, recurrent_kernel]), GATES, TF1_GATES)
        named[f"{scope}/bias"] = reorder_gates(bias, GATES, TF1_GATES)
    return named | {"Variable": weights.dense_kernel, "Variable_1": weights.dense_bias}


def _adam(
    found: Arrays, pairs: list[tuple[str, str]], slots: Mapping[str, Mapping[str, str]], b1: float, b2: float
) -> Adam | None:
    """The state of Adam, if it trained these variables."""
    names = [name for pair in pairs for name in pair]
    powers = [_scalar(found, "beta1_power"), _scalar(found, "beta2_power")]
    missing = [f"{name}/{kind}" for name in names for kind in ("Adam", "Adam_1") if kind not in slots.get(name, {})]
    missing += [f"beta{n}_power" for n, power in enumerate(powers, start=1) if power is None]
    if len(missing) == 2 * len(names) + 2:
        return None
    if missing:
        raise WeightsError(
            f"The state of Adam is incomplete: there is no {', '.join(missing)}. To take the weights alone, ignore "
            f"the rest of it: --ignore '*/Adam' '*/Adam_1' 'beta?_power'. {listing(found)}"
        )
    steps = _steps(float(powers[0]), float(powers[1]), b1, b2)
    mu, nu = (
        _assemble(found, [(slots[kernel][kind], slots[bias][kind]) for kernel, bias in pairs], 0.0)
        for kind in ("Adam", "Adam_1")
    )
    return Adam(steps, mu, nu)


def _steps(b1_power: float, b2_power: float, b1: float, b2: float) -> int:
    """After how many steps TensorFlow has arrived at these powers, b^(steps + 1), in float32.

    Below float32's smallest normal number, steps make no difference any more, here or there.
    """
    most = 3 + int(np.log(FLOAT32_TINY) / np.log(max(b1, b2, 0.5)))
    powers = [np.maximum(_powers(decay, most).astype(np.float64), FLOAT32_TINY) for decay in (b1, b2)]
    steps = int(np.argmin(np.abs(powers[1] - max(b2_power, FLOAT32_TINY))))
    for name, decay, stored, computed in (("beta2", b2, b2_power, powers[1]), ("beta1", b1, b1_power, powers[0])):
        expected = float(computed[steps])
        if abs(max(stored, FLOAT32_TINY) - expected) > (1 - decay) / 4 * expected:
            raise WeightsError(
                f"Adam's {name}_power is {stored:.9g}, which is no power of {decay:g}"
                + (f" for {steps} steps, as the other one says" if name == "beta1" else "")
                + ". Give the beta1 and beta2 that the model was trained with as --b1 and --b2."
            )
    return steps


def _powers(decay: float, number: int) -> np.ndarray:
    """decay, decay^2, ..., as TensorFlow computes them: one float32 product after the other."""
    return np.multiply.accumulate(np.full(number, decay, np.float32))


def _global_step(found: Arrays, adam: Adam | None) -> int:
    step = _scalar(found, "global_step")
    if step is not None and step >= 0:
        return int(step)
    return adam.steps if adam else 0


def _scalar(found: Arrays, basename: str) -> Any:
    """The value of the variable of this name, in whatever scope; None where there is none."""
    names = [name for name in found if name.rpartition("/")[2] == basename and not found[name].shape]
    if len(names) > 1:
        raise WeightsError(f"There are several variables called {basename}: {', '.join(names)}. --ignore all but one.")
    return np.asarray(found[names[0]])[()] if names else None
