"""The two loops of the LSTM recurrence in the compiled kernel, as JAX functions that batch and differentiate.

Depends on the kernel's calling convention and on `xla_loops`: the same functions in JAX, which run on every other
platform and give the derivatives.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import custom_vmap

from lstm_mnist_jax.rnn import xla_loops
from lstm_mnist_jax.rnn.native import build

SYMBOLS = {"forward": "LstmForward", "backward": "LstmBackward"}

_lock = threading.Lock()


def unavailable() -> str | None:
    """Why the kernel cannot be used on this machine; None if it can. The first call may compile it (seconds)."""
    with _lock:
        return _register()[1]


@functools.cache
def _register() -> tuple[dict[str, str], str | None]:
    """The names under which XLA finds the kernel's functions, and why there are none."""
    try:
        library, version = build.library()
        names = {part: f"lstm_mnist_jax_{part}_{version}" for part in SYMBOLS}
        for part, symbol in SYMBOLS.items():
            jax.ffi.register_ffi_target(names[part], jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu")
    except (build.BuildError, AttributeError) as error:
        return {}, str(error)
    return names, None


def supports(batch: Any, hidden: Any, dtype: Any) -> bool:
    """Whether the kernel computes such a recurrence; it is then faster than XLA's loops on a CPU."""
    # A symbolic size (jax.export's) cannot be compared, and such a program is made for other machines.
    if not isinstance(batch, int) or not isinstance(hidden, int) or jnp.dtype(dtype) != jnp.float32:
        return False
    return batch >= 1 and hidden >= 1


def forward(
    *arrays: Array, cells: bool, activations: bool, reverse: bool, unroll: int = 1, threads: int | None = None
) -> Any:
    """The forward loop: arguments and results of `xla_loops.forward`.

    Args:
      arrays: the arrays of `xla_loops.forward`.
      cells: see there.
      activations: see there.
      reverse: see there.
      unroll: see there; the kernel does not use it.
      threads: the most that the kernel uses. None is one within a mesh of several devices, which share the cores, and
        otherwise all of XLA's.
    """
    xla = functools.partial(xla_loops.forward, cells=cells, activations=activations, reverse=reverse, unroll=unroll)
    return _either(_kernel("forward", reverse, threads, cells, activations), xla, *arrays)


def backward(*arrays: Any, reverse: bool, unroll: int = 1, threads: int | None = None) -> Any:
    """The backward loop: arguments and results of `xla_loops.backward`. See `forward`."""
    xla = functools.partial(xla_loops.backward, reverse=reverse, unroll=unroll)
    return _either(_kernel("backward", reverse, threads), xla, *arrays)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _either(kernel: Callable[..., Any], xla: Callable[..., Any], *arrays: Any) -> Any:
    """The kernel in programs for a CPU; XLA's loop in all others, and where the loop itself is differentiated."""
    return jax.lax.platform_dependent(*arrays, cpu=kernel, default=xla)


@_either.defjvp
def _(kernel: Callable[..., Any], xla: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    return jax.jvp(xla, primals, tangents)


@functools.cache
def _kernel(
    part: str, reverse: bool, threads: int | None, cells: bool = True, activations: bool = True
) -> Callable[..., Any]:
    """The kernel's loop of one network, or of several: then every array has an axis of networks in front."""

    @custom_vmap
    def call(*arrays: Any) -> Any:
        names, reason = _register()
        if reason is not None:
            raise RuntimeError(f"The compiled recurrence is not available: {reason}.")
        if is_single := arrays[0].ndim == 3:
            arrays = jax.tree.map(lambda array: array[None], arrays)
        first = arrays[0]
        networks, time, batch, gates = first.shape
        state = (networks, batch, gates // 4)
        if part == "forward":
            in_time = (networks, time, *state[1:])
            shapes = [in_time, in_time if cells else (0,), first.shape if activations else (0,), state, state]
        else:
            shapes = [first.shape, state, state]
            arrays = tuple(jnp.zeros((0,), first.dtype) if array is None else array for array in arrays)
        # The activations take the place of the projected inputs, and their gradient the place of the activations:
        # these are the largest arrays of training.
        aliases = {"forward": {0: 2} if activations else {}, "backward": {0: 0}}[part]
        # All results vary over the same axes of a shard_map as the first argument, as all arguments do.
        like = jax.typeof(first)
        mesh = like.sharding.mesh

        def result(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
            spec = jax.sharding.PartitionSpec(*[None] * len(shape))
            sharding = None if mesh.empty else jax.sharding.NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(shape, like.dtype, sharding=sharding, manual_axis_type=like.manual_axis_type)

        most = (1 if mesh.size > 1 else 0) if threads is None else threads
        ffi_call = jax.ffi.ffi_call(names[part], [*map(result, shapes)], input_output_aliases=aliases)
        results: Any = ffi_call(*arrays, reverse=reverse, threads=np.int64(most))
        if part == "forward":
            results = [results[0], results[1] if cells else None, results[2] if activations else None, *results[3:]]
        return jax.tree.map(lambda array: array[0], tuple(results)) if is_single else tuple(results)

    weights = {"forward": (1, 2), "backward": (3,)}[part]
    call.def_vmap(functools.partial(_batched, call, weights))
    return call


def _batched(call: Callable[..., Any], weights: tuple[int, ...], size: int, batched: Any, *arrays: Any) -> Any:
    """One call of the kernel for a vmap of it over `size` instances.

    Sequences under the same weights are one larger batch; those with weights of their own are several networks.

    Args:
      call: takes and returns arrays [..., batch, features], or None, with or without an axis of networks.
      weights: the places of the arrays that have no batch.
      size: how many instances.
      batched: for each array, whether it has the axis of instances.
      arrays: with the axis of instances in front.
    """
    is_shared = not any(batched[n] for n in weights)
    is_single = arrays[0].ndim - batched[0] == 3

    def merge(array: Any, has_axis: Any) -> Any:
        array = array if has_axis else jnp.broadcast_to(array, (size, *array.shape))
        if is_shared:
            array = jnp.moveaxis(array, 0, -3)
            return array.reshape(*array.shape[:-3], size * array.shape[-2], array.shape[-1])
        return array if is_single else array.reshape(size * array.shape[1], *array.shape[2:])

    def split(array: Any) -> Any:
        if is_shared:
            array = array.reshape(*array.shape[:-2], size, array.shape[-2] // size, array.shape[-1])
            return jnp.moveaxis(array, -3, 0)
        return array if is_single else array.reshape(size, array.shape[0] // size, *array.shape[1:])

    def instance(array: Any, has_axis: Any) -> Any:
        return jax.ShapeDtypeStruct(array.shape[1:] if has_axis else array.shape, array.dtype)

    if size == 0:
        shapes = jax.eval_shape(call, *jax.tree.map(instance, arrays, tuple(batched)))
        results = jax.tree.map(lambda shape: jnp.zeros((0, *shape.shape), shape.dtype), shapes)
    else:
        merged = [
            array if n in weights and is_shared else jax.tree.map(merge, array, has_axis)
            for n, (array, has_axis) in enumerate(zip(arrays, batched, strict=True))
        ]
        results = jax.tree.map(split, call(*merged))
    return results, jax.tree.map(lambda _: True, results)
