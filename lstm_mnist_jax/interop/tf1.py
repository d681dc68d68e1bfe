"""TensorFlow 1: `BasicLSTMCell`s, with an output layer and Adam's slots, as the variables of a checkpoint.

    rnn/multi_rnn_cell/cell_0/basic_lstm_cell/kernel [in + hidden, 4 hidden], input rows first, gates i, j, f, o
    rnn/multi_rnn_cell/cell_0/basic_lstm_cell/bias   [4 hidden]; the cell adds forget_bias to gate f at every step
    Variable [hidden, classes], Variable_1 [classes]
    NAME/Adam, NAME/Adam_1, beta1_power, beta2_power

A cell's j is our g. `LSTMCell` without peepholes, projection and clipping, and `LSTMBlockCell` without clipping,
compute and store the same.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.stack import check, ignoring, listing, order_layers
from lstm_mnist_jax.interop.tf1_names import CUDNN_CELL, Places, locate, scalar, scalar_name
from lstm_mnist_jax.interop.tf_checkpoint import find_prefix, read_checkpoint, write_checkpoint
from lstm_mnist_jax.interop.weights import GATES, Adam, Arrays, Imported, Layer, Weights, reorder_gates

TF1_GATES = "igfo"
"""The order i, j, f, o, in this package's letters."""

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
      forget_bias: what the cells added to their forget gates, which is no part of a checkpoint; TensorFlow's
        default is 1. It is moved into the biases.
      ignore: patterns of names to leave out, such as `model2/*`.
      order: the names of the cells where neither names nor widths tell their order.
      b1: Adam's; with it, the stored power of b1 gives the number of steps.
      b2: Adam's; likewise.

    Raises:
      WeightsError: there is no such checkpoint, it is damaged, or holds another network.
    """
    found = ignoring(read_checkpoint(path), ignore)
    imported = from_variables(found, forget_bias=forget_bias, order=order, b1=b1, b2=b2)
    suffix = re.search(r"-(\d{1,18})$", find_prefix(path).name)
    if suffix and scalar(found, "global_step") is None:
        return imported._replace(step=int(suffix[1]))  # Adam's powers tell no more steps than 90,000 or so
    return imported


def from_variables(
    found: Arrays, *, forget_bias: float = 1.0, order: Sequence[str] = (), b1: float = 0.9, b2: float = 0.999
) -> Imported:
    """What a checkpoint's variables hold: see `read`."""
    places = _ordered(found, order)
    layers = tuple(
        _layer(found, pair, 0.0 if CUDNN_CELL in name else forget_bias) for name, pair in places.cells.items()
    )
    weights = Weights(layers, *(np.asarray(found[name], np.float32) for name in places.dense))
    imported = check(Imported(weights, (*places.cells, places.dense[0])), found)
    adam = _adam(found, places, b1, b2)
    return imported._replace(adam=adam, step=_global_step(found, adam))


def to_variables(
    weights: Weights, adam: Adam | None = None, *, forget_bias: float = 1.0, b1: float = 0.9, b2: float = 0.999
) -> dict[str, np.ndarray]:
    """The tutorial's variables by their names, Adam's slots and powers included where they are known.

    Args:
      weights: the weights.
      adam: the state of Adam.
      forget_bias: what the cells that read them will add to their forget gates.
      b1: Adam's.
      b2: Adam's.
    """
    variables = _named(weights, forget_bias)
    if adam is not None:
        for slot, moments in (("Adam", adam.mu), ("Adam_1", adam.nu)):
            variables |= {f"{name}/{slot}": array for name, array in _named(moments, 0.0).items()}
        for name, decay in (("beta1_power", b1), ("beta2_power", b2)):
            variables[name] = np.array(_powers(decay, adam.steps + 1)[-1])
    return {name: np.asarray(array, np.float32) for name, array in variables.items()}


def to_variables_like(
    found: Arrays,
    weights: Weights,
    adam: Adam | None = None,
    step: int = 0,
    *,
    forget_bias: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
) -> dict[str, np.ndarray]:
    """The variables of a checkpoint, under the names that they have there, with these values.

    Args:
      found: the variables of a checkpoint of the same network. What has no new value here stays as it is.
      weights: the weights.
      adam: the state of Adam.
      forget_bias: see `to_variables`.
      b1: Adam's.
      b2: Adam's.
      step: the new value of `global_step`, where there is one.

    Raises:
      WeightsError: it is the checkpoint of another network, or has a state of Adam and there is none to write.
    """
    places = _ordered(found, ())
    if any(CUDNN_CELL in name for name in places.cells):
        forget_bias = 0.0
    own = to_variables(weights, adam, forget_bias=forget_bias, b1=b1, b2=b2)
    if len(places.cells) != len(weights.layers):
        raise WeightsError(f"The checkpoint has {len(places.cells)} LSTM layers, this model {len(weights.layers)}.")
    theirs = [name for pair in places.pairs for name in pair]
    names = dict(zip(_named(weights, 0.0), theirs, strict=True))
    renamed = {name: own[ours] for ours, name in names.items()}
    if slots := [places.slots.get(name, {}) for name in names.values() if "Adam" in places.slots.get(name, {})]:
        if adam is None or len(slots) != len(names):
            raise WeightsError(
                "The checkpoint whose names are wanted has a state of Adam, in part or where there is none to write. "
                "Take another one, or leave it out for the tutorial's names."
            )
        for ours, name in names.items():
            renamed |= {places.slots[name][kind]: own[f"{ours}/{kind}"] for kind in ("Adam", "Adam_1")}
        renamed |= {scalar_name(found, power): own[power] for power in ("beta1_power", "beta2_power")}
    if (global_step := scalar_name(found, "global_step")) is not None:
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


def write(
    path: Path, weights: Weights, adam: Adam | None = None, *, like: Path | None = None, step: int = 0, **options: float
) -> None:
    """Writes a checkpoint that the tutorial's `Saver` restores, or one like another checkpoint.

    Args:
      path: the prefix.
      weights: the weights.
      adam: the state of Adam.
      like: a checkpoint of the same network, whose names are taken: see `to_variables_like`.
      step: the new value of `global_step`, with `like`.
      **options: `forget_bias`, `b1` and `b2` of `to_variables`.

    Raises:
      WeightsError: it cannot be written, or `like` cannot be read or is of another network.
    """
    if like is None:
        write_checkpoint(path, to_variables(weights, adam, **options))
    else:
        write_checkpoint(path, to_variables_like(ignoring(read_checkpoint(like), ()), weights, adam, step, **options))


def _ordered(found: Arrays, order: Sequence[str]) -> Places:
    """The names of the classifier's parts, the cells from the first layer to the last."""
    places = locate(found)
    layers = {name: _layer(found, pair, 0.0) for name, pair in places.cells.items()}
    names = order_layers(layers, found, order)
    return places._replace(cells={name: places.cells[name] for name in names})


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
    named = {}
    for number, (kernel, recurrent_kernel, bias) in enumerate(weights.layers):
        hidden = len(recurrent_kernel)
        bias = np.array(bias, np.float32)
        bias[hidden : 2 * hidden] -= np.float32(forget_bias)
        scope = f"rnn/multi_rnn_cell/cell_{number}/basic_lstm_cell"
        named[f"{scope}/kernel"] = reorder_gates(np.concatenate([kernel, recurrent_kernel]), GATES, TF1_GATES)
        named[f"{scope}/bias"] = reorder_gates(bias, GATES, TF1_GATES)
    return named | {"Variable": weights.dense_kernel, "Variable_1": weights.dense_bias}


def _adam(found: Arrays, places: Places, b1: float, b2: float) -> Adam | None:
    """The state of Adam, if it trained these variables."""
    pairs, slots = places.pairs, places.slots
    names = [name for pair in pairs for name in pair]
    powers = [scalar(found, "beta1_power"), scalar(found, "beta2_power")]
    missing = [f"{name}/{kind}" for name in names for kind in ("Adam", "Adam_1") if kind not in slots.get(name, {})]
    missing += [f"beta{n}_power" for n, power in enumerate(powers, start=1) if power is None]
    if not any({"Adam", "Adam_1"} & slots.get(name, {}).keys() for name in names):
        return None
    if missing:
        patterns = [p for p in ("*/Adam", "*/Adam_1", "*beta?_power") if any(fnmatchcase(name, p) for name in found)]
        raise WeightsError(
            f"The state of Adam is incomplete: there is no {', '.join(missing)}. To take the weights alone, leave the "
            f"rest of it out: {' '.join(f'--ignore {pattern!r}' for pattern in patterns)}."
        )
    steps = _steps(float(powers[0]), float(powers[1]), b1, b2)
    *cells, dense = pairs
    mu, nu = (
        Weights(
            tuple(_layer(found, (slots[kernel][kind], slots[bias][kind]), 0.0) for kernel, bias in cells),
            *(np.asarray(found[slots[name][kind]], np.float32) for name in dense),
        )
        for kind in ("Adam", "Adam_1")
    )
    for moments in (mu, nu):
        check(Imported(moments, (*("Adam's state of " + kernel for kernel, _ in pairs),)), found)
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
        if not abs(max(stored, FLOAT32_TINY) - expected) <= (1 - decay) / 4 * expected:  # nor is NaN
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
    step = scalar(found, "global_step")
    if step is not None and 0 <= step < 1 << 62:
        return int(step)
    return adam.steps if adam else 0
