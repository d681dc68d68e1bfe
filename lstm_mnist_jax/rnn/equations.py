"""The equations of a cell, for the cells that have a fast path.

Depends on Flax's cells and this package's; not on loops. A cell that was subclassed, whose layers were replaced, or
that has activations of its own, has no fast path.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import Array
from jax.typing import DTypeLike

from lstm_mnist_jax.rnn.cells import (
    GatedCell,
    GRUCell,
    ProjectedLSTMCell,
    explained_update,
    gru_update,
    is_plain,
    lstm_update,
)
from lstm_mnist_jax.rnn.gated import Gates, Update
from lstm_mnist_jax.rnn.products import project_differentiably, vary_alike

FAST_DTYPES = (jnp.float32, jnp.float64, jnp.bfloat16)

DENSE = ("dense_i", "dense_h", "dense_p")
"""The dense layers of a cell."""


@dataclass(frozen=True)
class Equations:
    """A cell as arrays and functions.

    Attributes:
      dtype: of the matrix products.
      widths: features of each part of the carry; the last part is h, the output.
      kernel: of the recurrent product, [output, gates].
      num_gates: how many gates are side by side in the result of the products.
      project: inputs [rows, in] to [rows, gates].
      update: see `gated`.
      params: what `update` reads.
      recurrent_bias: of the recurrent product, [gates].
      projection: kernel [hidden, output] of a projected output.
      loop: "lstm" or "gru", if `recurrence.lstm` or `gru.gru` computes it; else None.
      inputs: for these, the input kernel and the bias.
    """

    dtype: Any
    widths: tuple[int, ...]
    kernel: Array
    num_gates: int
    project: Callable[[Array], Array]
    update: Update
    params: Any = field(default_factory=dict)
    recurrent_bias: Array | None = None
    projection: Array | None = None
    loop: str | None = None
    inputs: tuple[Any, Any] = (None, None)


def equations_of(cell: Any, inputs_dtype: DTypeLike) -> Equations | None:
    """The equations of a cell on inputs of a dtype; None if the cell has no fast path."""
    recipes: dict[Any, Any] = {nnx.OptimizedLSTMCell: _lstm, nnx.GRUCell: _gru, GRUCell: _gru_with_recurrent_bias}
    known = recipes.get(type(cell))
    if known is None:
        known = _gated if isinstance(cell, GatedCell) and type(cell).__call__ is GatedCell.__call__ else None
    if known is None or not all(is_plain(getattr(cell, name)) for name in DENSE if hasattr(cell, name)):
        return None
    dtype = jnp.dtype(cell.dtype or jnp.promote_types(inputs_dtype, cell.dense_h.kernel[...].dtype))
    return known(cell, dtype) if dtype in map(jnp.dtype, FAST_DTYPES) else None


@dataclass(frozen=True)
class CellSpec:
    """A cell on its fast path, without its parameters: see `Equations`.

    Attributes:
      dtype, widths, loop: see there.
    """

    dtype: Any
    widths: tuple[int, ...]
    loop: str | None


def cell_spec(cell: Any, inputs_dtype: DTypeLike) -> CellSpec | None:
    """As `equations_of`, cached: for a user's own cell, its update has to be traced."""
    graph, state = nnx.split(cell)
    leaves, structure = jax.tree.flatten(state)
    kinds = tuple((kind.shape, kind.dtype) for kind in map(jax.typeof, leaves))
    find = _cell_spec if is_hashable(graph) else _cell_spec.__wrapped__
    return find(graph, structure, kinds, jnp.dtype(inputs_dtype))


def is_hashable(key: Any) -> bool:
    """Whether what holds a cell without its arrays can be the key of a cache: not if an attribute of it is a dict."""
    try:
        hash(key)
    except TypeError:
        return False
    return True


# Bounded: the keys hold a user's own functions and objects.
@lru_cache(maxsize=1024)
def _cell_spec(graph: Any, structure: Any, kinds: tuple[Any, ...], inputs_dtype: Any) -> CellSpec | None:
    found: list[CellSpec] = []

    def read(state: Any) -> None:
        equations = equations_of(nnx.merge(graph, state), inputs_dtype)
        if equations is not None:
            found.append(CellSpec(equations.dtype, equations.widths, equations.loop))

    jax.eval_shape(read, structure.unflatten(jax.ShapeDtypeStruct(*kind) for kind in kinds))
    return found[0] if found else None


def _has_own_activations(cell: Any) -> bool:
    known = (cell.gate_fn, nnx.sigmoid), (cell.activation_fn, nnx.tanh), (cell.promote_dtype, promote_dtype)
    return not all(_is_same(function, usual) for function, usual in known)


def _is_same(function: Any, other: Any) -> bool:
    """Whether two functions are one, or `copy.deepcopy` made one of the other: it copies what `jax.jit` returns."""
    return getattr(function, "_cache_miss", function) is getattr(other, "_cache_miss", other)


def _known(cell: Any, dtype: Any, of_inputs: Any, update: Update) -> Equations:
    """An LSTM or a GRU whose bias `of_inputs` is added to the projected inputs; None is zero."""
    kernel = jnp.asarray(cell.dense_i.kernel[...], dtype)
    bias = jnp.zeros(kernel.shape[1], dtype) if of_inputs is None else jnp.asarray(of_inputs[...], dtype)
    is_lstm = update is lstm_update
    return Equations(
        dtype=dtype,
        widths=(cell.hidden_features,) * (2 if is_lstm else 1),
        kernel=jnp.asarray(cell.dense_h.kernel[...], dtype),
        num_gates=4 if is_lstm else 3,
        project=lambda inputs: project_differentiably(*vary_alike((inputs, kernel))) + bias,
        update=update,
        loop="lstm" if is_lstm else "gru",
        inputs=(kernel, bias),
    )


def _lstm(cell: Any, dtype: Any) -> Equations | None:
    if _has_own_activations(cell) or cell.dense_h.bias is None or cell.dense_i.bias is not None:
        return None
    return _known(cell, dtype, cell.dense_h.bias, lstm_update)


def _gru(cell: Any, dtype: Any) -> Equations | None:
    if _has_own_activations(cell) or cell.dense_i.bias is None or cell.dense_h.bias is not None:
        return None
    return _known(cell, dtype, cell.dense_i.bias, gru_update)


def _gru_with_recurrent_bias(cell: Any, dtype: Any) -> Equations | None:
    if not cell.reset_after:
        return None  # its step has a product of its own
    equations = _known(cell, dtype, cell.dense_i.bias, gru_update)
    bias = cell.dense_h.bias
    return equations if bias is None else replace(equations, recurrent_bias=jnp.asarray(bias[...], dtype))


def _gated(cell: Any, dtype: Any) -> Equations | None:
    parts: Any = nnx.split(cell, nnx.Param, ...)
    graph, params, other = parts
    if jax.tree.leaves(other) or cell.dense_h.bias is not None:  # a state that `update` might change
        return None
    params = nnx.to_pure_dict(params)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params)):
        return None
    # The gradients of the matrices are not computed step by step, so `update` must not read them.
    matrices = {name: params.pop(name) for name in DENSE if name in params}

    def whole(matrices: Any, params: Any, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        return explained_update(nnx.merge(graph, params | matrices, {}), carry, projected, recurrent)

    carry = jax.eval_shape(partial(cell.initialize_carry, (1, cell.in_features)))
    gates = (jax.ShapeDtypeStruct((1, cell.hidden_features), dtype),) * cell.num_gates
    after = jax.eval_shape(whole, matrices, params, carry, gates, gates)
    output = gates[0] if hasattr(cell, "dense_p") else carry[-1]
    wanted, found = (jax.tree.map(lambda part: part.shape, tree) for tree in ((*carry[:-1], output), after))
    if not isinstance(found, tuple | list) or tuple(found) != wanted:
        raise ValueError(
            f"{type(cell).__name__}.update has to return a tuple of arrays, with a batch of 1 of shapes {wanted}; it "
            f"returned {found}."
        )
    if _reads_first(whole, matrices, params, carry, gates, gates):
        return None
    # Not of JAX: the update is a key of caches, which must not keep what belongs to this trace.
    stand_ins = jax.tree.map(lambda matrix: np.broadcast_to(np.zeros((), matrix.dtype), matrix.shape), matrices)
    known: dict[str, Any] = {}
    if type(cell) is ProjectedLSTMCell and not hasattr(cell, "dense_p"):
        bias = jnp.zeros(4 * cell.hidden_features) if cell.dense_i.bias is None else cell.dense_i.bias[...]
        known = {"loop": "lstm", "inputs": (jnp.asarray(cell.dense_i.kernel[...], dtype), jnp.asarray(bias, dtype))}
    return Equations(
        dtype=dtype,
        widths=tuple(part.shape[-1] for part in carry),
        kernel=jnp.asarray(cell.dense_h.kernel[...], dtype),
        num_gates=cell.num_gates,
        project=cell.project,
        update=partial(whole, stand_ins),
        params=params,
        projection=jnp.asarray(cell.dense_p.kernel[...], dtype) if hasattr(cell, "dense_p") else None,
        **known,
    )


def _reads_first(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether anything that a function computes or returns depends on its first argument."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    first = {id(variable) for variable in jaxpr.invars[: len(jax.tree.leaves(arguments[0]))]}
    read = [*jaxpr.outvars, *(variable for equation in jaxpr.eqns for variable in equation.invars)]
    return any(id(variable) in first for variable in read)
