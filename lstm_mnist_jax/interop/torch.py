"""PyTorch: the state_dict of `nn.LSTM`s or `nn.GRU`s and `nn.Linear`s, as arrays.

    lstm.weight_ih_l0 [4 hidden, in]    lstm.weight_hh_l0 [4 hidden, hidden]    lstm.bias_ih_l0, lstm.bias_hh_l0
    gru.weight_ih_l0 [3 hidden, in] and so on, of an nn.GRU; lstm.weight_ih_l0_reverse and so on, if bidirectional
    attention.weight [1, hidden] of attention pooling
    dense_hidden.0.weight, dense_hidden.0.bias of a hidden dense layer
    dense.weight [classes, hidden]      dense.bias [classes]

PyTorch's gates are i, f, g, o and r, z, n as here. It adds two biases, of which the second is within the GRU's
recurrent product. The layers of a module have one width; other stacks are an `nn.ModuleList` of them:
lstm.0.weight_ih_l0, lstm.1.weight_ih_l0 and so on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.assembly import Arrays, Place, assemble
from lstm_mnist_jax.interop.imported import Imported
from lstm_mnist_jax.interop.weights import Direction, direction, from_params
from lstm_mnist_jax.model import Params, bind
from lstm_mnist_jax.rnn.weights import TORCH_NAME, to_torch

KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
FORMS = (KINDS[:2], KINDS)
"""The arrays of a cell with bias=False, and with biases."""


def to_state_dict(params: Params) -> dict[str, np.ndarray]:
    """The model's parameters as a state_dict of NumPy arrays.

    `lstm` (or `gru`) is one `nn.LSTM` (or `nn.GRU`) where all layers have one width, otherwise an `nn.ModuleList` of
    one-layer modules. The hidden dense layers are the `nn.ModuleList` `dense_hidden`, the output layer is `dense`. The
    biases of an LSTM are in `bias_ih`, and `bias_hh` is zero. A state_dict does not hold the pooling and the activation
    of the hidden dense layers.
    """
    weights = from_params(params)
    layers = bind(params, weights.config, (weights.steps or 1, weights.in_features)).rnn
    state_dict = to_torch(layers, prefix=weights.cell)
    if weights.attention is not None:
        state_dict["attention.weight"] = np.ascontiguousarray(weights.attention.T)
    names = [*(f"dense_hidden.{number}" for number in range(len(weights.dense) - 1)), "dense"]
    for name, (kernel, bias) in zip(names, weights.dense, strict=True):
        state_dict |= {f"{name}.weight": np.ascontiguousarray(kernel.T), f"{name}.bias": bias}
    return state_dict


def from_state_dict(
    state_dict: Mapping[str, Any], order: Sequence[str] = (), *, input_activation: str | None = None
) -> Params:
    """The model's parameters from a state_dict.

    A state_dict does not hold the pooling over time and the activation of hidden dense layers: these are `pooling` and
    `dense_activation` of the `ModelConfig`. Of a bidirectional network, the pooling "last" is that of a program that
    joins `h_n[-2]` and `h_n[-1]`, and "last_step" that of one that takes `outputs[:, -1]`.

    Args:
      state_dict: tensors or arrays by name: of one or more `nn.LSTM`s or `nn.GRU`s, and `nn.Linear`s; the modules may
        have any names. The recurrent layers are in the order of their numbers, or in that of the dictionary. Biases
        that are missing are zero.
      order: the names of all layers, where neither names nor widths determine the order of the dense layers.
      input_activation: "linear" confirms that no activation follows an `nn.Linear` before the recurrent layers, which
        is folded into the first of them.

    Raises:
      WeightsError: it is of another network.
    """
    arrays = {  # of tensors that require a gradient or are on a GPU, too
        name: np.asarray(tensor.detach().cpu().float() if hasattr(tensor, "detach") else tensor)
        for name, tensor in state_dict.items()
    }
    return from_arrays(arrays, order, in_order=True, input_activation=input_activation).unfolded


def from_arrays(found: Arrays, order: Sequence[str] = (), **options: Any) -> Imported:
    """The classifier in a state_dict of arrays; for the arguments see `assemble`. Raises WeightsError."""
    imported = assemble(found, _place_of, FORMS, _direction, order=order, transposed=True, **options)
    return imported.with_network(activation="tanh", recurrent_activation="sigmoid")  # PyTorch has no others


def _place_of(name: str) -> Place | None:
    if ".parametrizations." in name:
        raise WeightsError(
            f"{name} is not a weight, but what a parametrization computes one from. In PyTorch, make it plain first: "
            "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')."
        )
    if (match := TORCH_NAME.fullmatch(name)) is None:
        return None
    module, kind, number, reverse = match.groups()
    if kind == "weight_hr":
        raise WeightsError(f"The nn.LSTM of {name} projects its outputs (proj_size), which this classifier does not.")
    return Place(f"{module}l{number}", kind, reverse is not None)


def _direction(name: str, arrays: dict[str, np.ndarray]) -> Direction:
    return direction(name, *(array.T for array in arrays.values()))
