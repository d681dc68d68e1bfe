"""PyTorch: the state_dict of `nn.LSTM` and `nn.Linear`, as arrays.

    lstm.weight_ih_l0 [4 hidden, in]    lstm.weight_hh_l0 [4 hidden, hidden]    lstm.bias_ih_l0, lstm.bias_hh_l0
    dense.weight [classes, hidden]      dense.bias [classes]

PyTorch's gates are i, f, g, o as here; it adds two biases. The layers of an `nn.LSTM` have one width; other stacks are
an `nn.ModuleList` of them: lstm.0.weight_ih_l0, lstm.1.weight_ih_l0 and so on.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.weights import Arrays, Imported, Layer, assemble, from_params, listing, to_params
from lstm_mnist_jax.model import Params

CELL = re.compile(r"(?:(.*)\.)?(weight|bias)_(ih|hh|hr)_l(\d+)(_reverse)?")
KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def to_state_dict(params: Params) -> dict[str, np.ndarray]:
    """The model's parameters as a state_dict of NumPy arrays.

    `lstm` is one `nn.LSTM` where all layers have one width, otherwise an `nn.ModuleList` of one-layer `nn.LSTM`s. The
    output layer is `dense`. The biases are in `bias_ih`; `bias_hh` is zero.
    """
    weights = from_params(params)
    equal = len(set(weights.hidden_features)) == 1
    state_dict: dict[str, np.ndarray] = {}
    for number, layer in enumerate(weights.layers):
        prefix, suffix = ("lstm.", f"_l{number}") if equal else (f"lstm.{number}.", "_l0")
        arrays = layer.kernel.T, layer.recurrent_kernel.T, layer.bias, np.zeros_like(layer.bias)
        state_dict |= {f"{prefix}{kind}{suffix}": array for kind, array in zip(KINDS, arrays, strict=True)}
    state_dict |= {"dense.weight": weights.dense_kernel.T, "dense.bias": weights.dense_bias}
    return {name: np.ascontiguousarray(array) for name, array in state_dict.items()}


def from_state_dict(state_dict: Mapping[str, Any]) -> Params:
    """The model's parameters from a state_dict.

    Args:
      state_dict: tensors or arrays by name: of one or more `nn.LSTM`s with biases, and of one `nn.Linear`; the modules
        may have any names. The layers are in the order of their numbers, or in that of the dictionary.

    Raises:
      WeightsError: it is of another network.
    """
    arrays = {  # of tensors that require a gradient or are on a GPU, too
        name: np.asarray(tensor.detach().cpu().float() if hasattr(tensor, "detach") else tensor)
        for name, tensor in state_dict.items()
    }
    return to_params(from_arrays(arrays, in_order=True).weights)


def from_arrays(found: Arrays, order: Sequence[str] = (), in_order: bool = False) -> Imported:
    """The classifier in a state_dict of arrays; for `order` and `in_order` see `assemble`. Raises WeightsError."""
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for name in found:
        if match := CELL.fullmatch(name):
            module, kind, part, number, reverse = match.groups()
            if reverse or part == "hr":
                feature = "reads both directions" if reverse else "projects its outputs (proj_size)"
                raise WeightsError(f"The nn.LSTM of {name} {feature}, which this classifier does not.")
            cells.setdefault((module or "", int(number)), {})[f"{kind}_{part}"] = name
    if not cells:
        raise WeightsError(f"There is no nn.LSTM: no weight_ih_l0. {listing(found)}")
    layers: dict[str, Layer] = {}
    for (module, number), cell in cells.items():
        if missing := [kind for kind in KINDS if kind not in cell]:
            raise WeightsError(
                f"Layer {number} of the nn.LSTM {module!r} lacks {', '.join(f'{k}_l{number}' for k in missing)}. "
                f"{listing(found)}"
            )
        kernel, recurrent_kernel, *biases = (np.asarray(found[cell[kind]]) for kind in KINDS)
        if {bias.shape for bias in biases} != {kernel.shape[:1]} or kernel.ndim != 2 or recurrent_kernel.ndim != 2:
            shapes = ", ".join(f"{cell[kind]} {list(found[cell[kind]].shape)}" for kind in KINDS)
            raise WeightsError(f"The arrays of a layer do not fit together: {shapes}.")
        bias = biases[0].astype(np.float32) + biases[1].astype(np.float32)
        layers[f"{module}.l{number}".strip(".")] = Layer(kernel.T, recurrent_kernel.T, bias)
    taken = {name for cell in cells.values() for name in cell.values()}
    rest = {name: array for name, array in found.items() if name not in taken}
    return assemble(layers, rest, found, order=order, in_order=in_order, transposed=True)
