"""Which variable of a TensorFlow 1 checkpoint is what, by names and shapes. Reads no values but single numbers."""

import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.stack import listing, output_layer
from lstm_mnist_jax.interop.weights import Arrays

CELL = re.compile(
    r"((?:.*/)?[^/]*lstm[^/]*(?:/linear)?)/(?:(?P<kernel>kernel|weights|matrix)|bias(?:es)?)", re.IGNORECASE
)
"""`kernel` since TensorFlow 1.2, `weights` in 1.0, `Linear/Matrix` before."""

CUDNN_CELL = "cudnn_compatible_lstm_cell"
"""What CudnnLSTM is saved as: a cell that adds nothing to its forget gate."""

SLOT = re.compile(r".*/(Adam|Momentum|RMSProp|Adagrad|Adadelta|Ftrl|ExponentialMovingAverage)(_\d+)?")
"""What is certainly an optimizer's, or an average, even where the variable it belongs to is missing."""


class Places(NamedTuple):
    """The names of what a checkpoint holds.

    Attributes:
      cells: of each cell's kernel and bias, by the cell's.
      dense: of the output layer's weights and biases.
      slots: of what an optimizer or an average keeps of a variable, by the variable's and by its kind.
    """

    cells: dict[str, tuple[str, str]]
    dense: tuple[str, str]
    slots: dict[str, dict[str, str]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The names of all weights and biases, the output layer's last."""
        return [*self.cells.values(), self.dense]


def locate(found: Arrays) -> Places:
    """Finds the parts of the classifier in a checkpoint, its cells in no order. Raises WeightsError."""
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
    return Places(cells, dense, slots)


def _slots(found: Arrays) -> dict[str, dict[str, str]]:
    """What optimizers and moving averages keep of each variable: its name -> kind -> their name.

    A slot is called [scope/]VARIABLE/KIND, and has the variable's shape.
    """
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
    """The names of each cell's kernel and bias, by the cell's."""
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
        if len(cell) < 2:
            raise WeightsError(
                f"The cell {scope} lacks its {({'kernel', 'bias'} - set(cell)).pop()}. {listing(variables)}"
            )
    return {scope: (cell["kernel"], cell["bias"]) for scope, cell in parts.items()}


def _is_cell(variables: Arrays, cell: Mapping[str, str]) -> bool:
    """Whether these are a kernel [in + hidden, 4 hidden] and a bias [4 hidden], by their shapes."""
    if len(cell) < 2:
        return False
    kernel, bias = variables[cell["kernel"]].shape, variables[cell["bias"]].shape
    return len(kernel) == 2 and bias == kernel[1:] and kernel[1] % 4 == 0 and kernel[0] > kernel[1] // 4


def scalar(found: Arrays, basename: str) -> Any:
    """The value of the variable of this name, in whatever scope; None where there is none."""
    name = scalar_name(found, basename)
    return None if name is None else np.asarray(found[name])[()]


def scalar_name(found: Arrays, basename: str) -> Any:
    names = [name for name in found if name.rpartition("/")[2] == basename and not found[name].shape]
    if len(names) > 1:
        raise WeightsError(f"There are several variables called {basename}: {', '.join(names)}. --ignore all but one.")
    return names[0] if names else None
