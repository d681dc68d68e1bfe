"""PyTorch: the state_dict of `nn.LSTM` and `nn.Linear`, as arrays.

    lstm.weight_ih_l0 [4 hidden, in]    lstm.weight_hh_l0 [4 hidden, hidden]    lstm.bias_ih_l0, lstm.bias_hh_l0
    dense_hidden.0.weight, dense_hidden.0.bias of a hidden dense layer
    dense.weight [classes, hidden]      dense.bias [classes]

PyTorch's gates are i, f, g, o as here; it adds two biases. The layers of an `nn.LSTM` have one width; other stacks are
an `nn.ModuleList` of them: lstm.0.weight_ih_l0, lstm.1.weight_ih_l0 and so on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.weights import GATES, Arrays, Imported, Layer, assemble, from_params, to_params
from lstm_mnist_jax.model import Params, bind
from lstm_mnist_jax.rnn.weights import TORCH_NAME, from_torch, to_torch

KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
FORMS = (KINDS[:2], KINDS)
"""The arrays of a layer with bias=False, and with biases."""


def to_state_dict(params: Params) -> dict[str, np.ndarray]:
    """The model's parameters as a state_dict of NumPy arrays.

    `lstm` is one `nn.LSTM` where all layers have one width, otherwise an `nn.ModuleList` of one-layer `nn.LSTM`s. The
    hidden dense layers are the `nn.ModuleList` `dense_hidden`, the output layer is `dense`. The biases of the LSTM are
    in `bias_ih`; `bias_hh` is zero. A state_dict does not hold the activation of the hidden dense layers.
    """
    weights = from_params(params)
    state_dict = to_torch(bind(params, weights.config, (weights.steps or 1, weights.in_features)).rnn, prefix="lstm")
    names = [*(f"dense_hidden.{number}" for number in range(len(weights.dense_hidden))), "dense"]
    for name, (kernel, bias) in zip(names, weights.dense, strict=True):
        state_dict |= {f"{name}.weight": np.ascontiguousarray(kernel.T), f"{name}.bias": bias}
    return state_dict


def from_state_dict(
    state_dict: Mapping[str, Any], order: Sequence[str] = (), *, input_activation: str | None = None
) -> Params:
    """The model's parameters from a state_dict.

    Args:
      state_dict: tensors or arrays by name: of one or more `nn.LSTM`s and `nn.Linear`s; the modules may have any names.
        The LSTM layers are in the order of their numbers, or in that of the dictionary. Biases that are missing are
        zero. The activation of hidden dense layers is not in a state_dict: it is `dense_activation` of the
        `ModelConfig`.
      order: the names of all layers, where neither names nor widths determine the order of the dense layers.
      input_activation: "linear" confirms that no activation follows an `nn.Linear` before the LSTM layers, which is
        folded into the first of them.

    Raises:
      WeightsError: it is of another network.
    """
    arrays = {  # of tensors that require a gradient or are on a GPU, too
        name: np.asarray(tensor.detach().cpu().float() if hasattr(tensor, "detach") else tensor)
        for name, tensor in state_dict.items()
    }
    return to_params(from_arrays(arrays, order, in_order=True, input_activation=input_activation).weights)


def from_arrays(
    found: Arrays,
    order: Sequence[str] = (),
    in_order: bool = False,
    input_activation: str | None = None,
    as_stored: bool = False,
) -> Imported:
    """The classifier in a state_dict of arrays; for the arguments see `assemble`. Raises WeightsError."""
    options: dict[str, Any] = {
        "order": order,
        "in_order": in_order,
        "transposed": True,
        "input_activation": input_activation,
        "as_stored": as_stored,
    }
    return assemble(found, _place_of, FORMS, _layer, **options)


def _place_of(name: str) -> tuple[str, str] | None:
    """The layer and the kind of an array."""
    if (match := TORCH_NAME.fullmatch(name)) is None:
        return None
    module, kind, number, reverse = match.groups()
    if reverse or kind == "weight_hr":
        feature = "reads both directions" if reverse else "projects its outputs (proj_size)"
        raise WeightsError(f"The nn.LSTM of {name} {feature}, which this classifier does not.")
    return f"{module}l{number}", kind


def _layer(name: str, arrays: dict[str, np.ndarray]) -> Layer:
    if "bias_ih" in arrays and arrays["bias_ih"].shape != arrays["bias_hh"].shape:
        shapes = ", ".join(f"{kind} {list(array.shape)}" for kind, array in arrays.items())
        raise WeightsError(f"The arrays of the LSTM layer {name} do not fit together: {shapes}.")
    weights = from_torch(arrays, GATES)
    return Layer(**({"bias": np.zeros(weights["kernel"].shape[-1:], np.float32)} | weights))
