"""From the arrays of a file to a stack of layers: their order, whether they fit together, and what to say if not."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.weights import Arrays, Imported, Layer, Weights

MOST_LISTED = 40

LONGEST_NAME = 1000

MOST_PERMUTED = 7
"""Layers whose order is looked for by their widths; more would take too long, and the user is asked."""


def check(imported: Imported, found: Arrays) -> Imported:
    """What was put together, if it makes a stack: each layer takes what the one before gives.

    Args:
      imported: what was put together.
      found: everything in the file, for the error.

    Raises:
      WeightsError: the shapes do not fit together, or a value is not a finite number.
    """
    weights, names = imported.weights, imported.names
    width = None
    for name, (kernel, recurrent_kernel, bias) in zip(names, weights.layers, strict=False):
        hidden = recurrent_kernel.shape[0] if recurrent_kernel.ndim else 0
        if (kernel.ndim, kernel.shape[1:], recurrent_kernel.shape, bias.shape) != (
            2,
            (4 * hidden,),
            (hidden, 4 * hidden),
            (4 * hidden,),
        ):
            gru = kernel.shape[1:] == recurrent_kernel.shape[1:] == (3 * hidden,)
            raise WeightsError(
                f"The layer {name} is that of a GRU, expected an LSTM."
                if gru
                else f"The LSTM layer {name} does not fit together: weights {list(kernel.shape)} for its inputs, "
                f"{list(recurrent_kernel.shape)} for its state, biases {list(bias.shape)}. {listing(found)}"
            )
        if width not in (None, len(kernel)):
            raise WeightsError(
                f"The LSTM layer {name} takes {len(kernel)} features, but the layer before gives {width}. The "
                f"layers were read in the order {', '.join(names[:-1])}. {listing(found)}"
            )
        width = hidden
    if weights.dense_kernel.shape != (width, *weights.dense_bias.shape):
        raise WeightsError(
            f"The output layer {names[-1]} has weights {list(weights.dense_kernel.shape)} and biases "
            f"{list(weights.dense_bias.shape)}, but the last LSTM layer gives {width} features. {listing(found)}"
        )
    for name, arrays in zip(names, [*weights.layers, weights[1:]], strict=True):
        if not all(np.isfinite(array).all() for array in arrays):
            raise WeightsError(f"The layer {name} holds values that are not finite numbers; it cannot be of use.")
    return imported


def output_layer(rest: Arrays, found: Arrays) -> tuple[str, str]:
    """The names of the output layer's weights and biases: the one matrix and the one vector that no LSTM layer has.

    Raises:
      WeightsError: there is no such pair, or more than it.
    """
    matrices = [name for name, array in rest.items() if len(array.shape) == 2]
    vectors = [name for name, array in rest.items() if len(array.shape) == 1]
    if len(matrices) == len(vectors) == 1 and len(rest) == 2:
        return matrices[0], vectors[0]
    if not matrices or not vectors:
        raise WeightsError(
            f"The output layer is missing: expected a matrix and a vector besides the LSTM layers, there are "
            f"{', '.join(rest) or 'none'}. {listing(found)}"
        )
    raise WeightsError(
        "Expected LSTM layers and one output layer, a matrix and a vector, but there is more besides the LSTM layers: "
        f"{', '.join(rest)}. If the model does without some of these, leave them out with --ignore NAME. "
        f"{listing(found)}"
    )


def assemble(
    cells: Mapping[str, Layer],
    rest: Arrays,
    found: Arrays,
    *,
    order: Sequence[str] = (),
    in_order: bool = False,
    transposed: bool = False,
) -> Imported:
    """The classifier of these LSTM layers, and of the output layer in what is left.

    Args:
      cells: the LSTM layers, by what they are called in the file.
      rest: all but their arrays; counters and seeds among it, which are no floats or single numbers, do not matter.
      found: everything in the file, for errors.
      order, in_order: see `order_layers`.
      transposed: whether the output layer's weights are [classes, hidden].

    Raises:
      WeightsError: there is no output layer, or the layers do not fit together.
    """
    names = order_layers(cells, found, order, in_order)
    rest = {name: array for name, array in rest.items() if array.shape and "float" in str(array.dtype)}
    kernel, bias = output_layer(rest, found)
    dense = np.asarray(rest[kernel])
    dense_name = re.sub(r"[/.](kernel|weight|vars/0)$", "", kernel)
    layers = tuple(cells[name] for name in names)
    weights = Weights(layers, dense.T if transposed else dense, np.asarray(rest[bias]))
    return check(Imported(weights, (*names, dense_name)), found)


def order_layers(
    cells: Mapping[str, Layer], found: Arrays, given: Sequence[str] = (), in_order: bool = False
) -> list[str]:
    """The names of LSTM layers from the input to the output.

    Names that differ by numbers alone, such as lstm_1 and lstm_2, tell the order. Others do not; then the widths
    must: the order is the only one in which each layer takes what the one before gives.

    Args:
      cells: the layers by name.
      found: everything in the file, for errors.
      given: the names in the order that the user knows; none where the order is to be found.
      in_order: whether `cells` is in the order in which the model has its layers.

    Raises:
      WeightsError: names and widths leave the order open, or `given` does not name every layer once.
    """
    names = sorted(cells, key=natural)
    if given:
        if sorted(given, key=natural) != names:
            raise WeightsError(f"--layer names {', '.join(given)}; the LSTM layers are {', '.join(names)}.")
        return list(given)
    if len({re.sub(r"[._]?\d+", "", name) for name in names}) == 1:
        return names
    if in_order:
        return list(cells)
    widths = {name: (cell.kernel.shape[:1], cell.recurrent_kernel.shape[:1]) for name, cell in cells.items()}
    fitting = [
        order
        for order in itertools.permutations(names if len(names) <= MOST_PERMUTED else ())
        if all(widths[before][1] == widths[after][0] for before, after in itertools.pairwise(order))
    ]
    if len(fitting) > 1 or len(names) > MOST_PERMUTED:
        raise WeightsError(
            f"Neither their names nor their widths tell the order of the LSTM layers {', '.join(names)}. Name them "
            f"from the input to the output: {' '.join(f'--layer {name}' for name in names)}. {listing(found)}"
        )
    return list(fitting[0]) if fitting else names


def ignoring(found: Arrays, patterns: Iterable[str]) -> dict[str, Any]:
    """The arrays whose names match none of these patterns, in which * stands for anything.

    Raises:
      WeightsError: a pattern matches nothing, or a name is none.
    """
    for name in found:
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise WeightsError(f"The file has an array with the name {name[:100]!r}, which no program gives.")
    for pattern in patterns:
        kept = {name: array for name, array in found.items() if not fnmatchcase(name, pattern)}
        if len(kept) == len(found):
            raise WeightsError(f"Nothing is called {pattern!r}, so it cannot be ignored. {listing(found)}")
        found = kept
    return dict(found)


def listing(found: Arrays) -> str:
    """What a file holds, as a sentence."""
    if not found:
        return "The file holds no arrays."
    items = [f"{name} {list(array.shape)}" for name, array in found.items()]
    more = f" and {len(items) - MOST_LISTED} more, which --list shows" if len(items) > MOST_LISTED else ""
    return f"Found: {', '.join(items[:MOST_LISTED])}{more}."


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which to sort names so that cell_10 comes after cell_9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
