"""Matrix products over time, and the dtypes in which a recurrence computes.

Depends on arrays; not on equations.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from lstm_mnist_jax.rnn.derivatives import Function


def state_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which a recurrence with weights of `dtype` keeps its states: float32 at least."""
    return wider_dtype(dtype, jnp.float32)


def wider_dtype(dtype: DTypeLike, other: DTypeLike) -> DTypeLike:
    """The dtype of floats with more bits, also where JAX promotes none (jax_numpy_dtype_promotion="strict")."""
    return dtype if jnp.finfo(dtype).bits >= jnp.finfo(other).bits else other


def project(inputs: Array, kernel: Array) -> Array:
    """inputs @ kernel at all steps: [time, batch, in] @ [in, out].

    Time and batch are not flattened: where devices share the batch, XLA would gather it.
    """
    if inputs.shape[1] == 1:  # of one sequence, XLA would copy a result with three axes
        return (inputs[:, 0] @ kernel)[:, None]
    return inputs @ kernel


def _project_backward(_: None, arrays: Any, kept: None, d_outputs: Array) -> Any:
    inputs, kernel = arrays
    inputs, d_outputs = vary_alike((inputs, d_outputs))
    return project(d_outputs, kernel.T), outer(inputs, d_outputs)


project_differentiably = partial(
    Function(lambda _, *arrays: project(*arrays), lambda _, *arrays: (project(*arrays), None), _project_backward), None
)
"""As `project`, where JAX differentiates it: its own gradient of a product with three axes takes twice as long."""


def product(rows: Array, kernel: Array) -> Array:
    """rows @ kernel, multiplied in the kernel's dtype, added up and given in that of the states."""
    return jnp.matmul(rows.astype(kernel.dtype), kernel, preferred_element_type=state_dtype(kernel.dtype))


def outer(inputs: Array, outputs: Array) -> Array:
    """The gradient of a matrix, [in, out], from what entered it and the gradient of what came out, at all steps."""
    dtype = outputs.dtype
    inputs = inputs.astype(dtype)
    if _is_in_one_place(outputs):
        found = jax.lax.platform_dependent(inputs, outputs, cpu=_outer_of_rows, default=_outer)
    else:
        found = _outer(inputs, outputs)
    return found.astype(dtype)


def _outer(inputs: Array, outputs: Array) -> Array:
    over_time_and_batch = (((0, 1), (0, 1)), ((), ()))
    return jax.lax.dot_general(inputs, outputs, over_time_and_batch, preferred_element_type=state_dtype(outputs.dtype))


def _outer_of_rows(inputs: Array, outputs: Array) -> Array:
    """As `_outer`; spares a CPU the two transposed copies that XLA makes of arrays with three axes."""
    count = inputs.shape[0] * inputs.shape[1]  # not -1, which has no answer where there are no features
    inputs, outputs = (array.reshape(count, array.shape[-1]) for array in (inputs, outputs))
    by_rows = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(inputs, outputs, by_rows, preferred_element_type=state_dtype(outputs.dtype))


def _is_in_one_place(array: Array) -> bool:
    """Whether no devices can share the array: there is one device, or a shard_map has divided it already."""
    mesh = jax.typeof(array).sharding.mesh
    return jax.device_count() == 1 or (not mesh.empty and set(mesh.manual_axes) == set(mesh.axis_names))


def shift(initial: Array, states: Array, reverse: bool) -> Array:
    """The state before each step, from the state after each: [time, batch, hidden]."""
    if states.shape[0] == 0:
        return states
    first = initial[None].astype(states.dtype)
    return jnp.concatenate([states[1:], first] if reverse else [first, states[:-1]])


def vary_alike(tree: Any) -> Any:
    """Arrays that vary over the same axes of a surrounding shard_map: all those that any of them varies over."""
    structure: Any
    leaves, structure = jax.tree.flatten(tree)
    varying = [jax.typeof(leaf).manual_axis_type.varying for leaf in leaves]
    everywhere = frozenset().union(*varying)
    return structure.unflatten(
        jax.lax.pcast(leaf, tuple(everywhere - axes), to="varying") if everywhere - axes else leaf
        for leaf, axes in zip(leaves, varying, strict=True)
    )
