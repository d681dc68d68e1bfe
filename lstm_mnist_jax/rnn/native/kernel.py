"""The compiled recurrence as JAX functions that batch and differentiate.

Knows the kernel's calling convention; the reference that it stands for is given by the caller.
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

from lstm_mnist_jax.rnn.native import build

SYMBOLS = {"forward": "LstmForward", "backward": "LstmBackward"}

_lock = threading.Lock()


def unavailable() -> str | None:
    """Why the kernel cannot be had on this machine; None if it can. The first call may compile it (seconds)."""
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


def serves(batch: Any, hidden: Any, dtype: Any) -> bool:
    """Whether the kernel takes such a recurrence; it is then the quicker way on a CPU."""
    # A symbolic size (jax.export's) is no number to compare with, and such a program leaves this machine anyway.
    if not isinstance(batch, int) or not isinstance(hidden, int) or jnp.dtype(dtype) != jnp.float32:
        return False
    return batch >= 1 and hidden >= 1


def forward(
    reference: Callable[..., Any], *, reverse: bool, cells: bool, activations: bool, threads: int | None = None
) -> Callable[..., Any]:
    """The forward loop: (projected, bias, recurrent kernel, h, c) -> (hs, cs, activations, last h, last c).

    Args:
      reference: the same function in JAX. Runs on every platform but the CPU, and gives the derivatives.
      reverse: run from the last time step to the first.
      cells, activations: whether to return `cs` and `activations`; None otherwise.
      threads: at most so many; None is one within a mesh of several devices, which share the cores, else all of XLA's.
    """
    call = _forward(reverse, cells, activations, threads)
    return _standing_for(reference, call)


def backward(reference: Callable[..., Any], *, reverse: bool, threads: int | None = None) -> Callable[..., Any]:
    """The backward loop.

    A function (activations, cs, c, recurrent kernel, d_hs, d_cs, d_last_h, d_last_c) -> (d_projected, d_h, d_c), in
    which d_hs and d_cs may be None for zeros. Arguments as of `forward`.
    """
    return _standing_for(reference, _backward(reverse, threads))


def _standing_for(reference: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` in programs for a CPU, `reference` in all others and wherever somebody differentiates."""

    @jax.custom_jvp
    def either(*args: Any) -> Any:
        return jax.lax.platform_dependent(*args, cpu=call, default=reference)

    @either.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return jax.jvp(reference, primals, tangents)

    return either


# Functions of one instance; `_batched` below adds the axis of instances that the kernel wants.


@functools.cache
def _forward(reverse: bool, cells: bool, activations: bool, threads: int | None) -> Callable[..., Any]:
    def call(projected: Array, bias: Array, recurrent_kernel: Array, h: Array, c: Array) -> Any:
        instances, time, batch, gates = projected.shape
        hidden = gates // 4
        states = (instances, time, batch, hidden)
        none = (0,)
        shapes = [
            states,
            states if cells else none,
            projected.shape if activations else none,
            (instances, batch, hidden),
            (instances, batch, hidden),
        ]
        arguments = (projected, bias, recurrent_kernel, h, c)
        # The activations take the place of `projected`, as in `_backward` the gradient takes that of the activations:
        # these are the largest arrays of a training.
        aliases = {0: 2} if activations else {}
        hs, cs, tanhs, last_h, last_c = _call("forward", shapes, aliases, reverse, threads, *arguments)
        return hs, cs if cells else None, tanhs if activations else None, last_h, last_c

    return _batched(call, weights=(1, 2))


@functools.cache
def _backward(reverse: bool, threads: int | None) -> Callable[..., Any]:
    def call(activations: Array, cs: Array, c: Array, recurrent_kernel: Array, *gradients: Any) -> Any:
        given = [jnp.zeros((0,), activations.dtype) if gradient is None else gradient for gradient in gradients]
        shapes = [activations.shape, c.shape, c.shape]
        arguments = (activations, cs, c, recurrent_kernel, *given)
        return tuple(_call("backward", shapes, {0: 0}, reverse, threads, *arguments))

    return _batched(call, weights=(3,))


def _call(
    part: str, shapes: list[Any], aliases: dict[int, int], reverse: bool, threads: int | None, *args: Array
) -> Any:
    names, reason = _register()
    if reason is not None:
        raise RuntimeError(f"The compiled recurrence is not available: {reason}.")
    # All results vary over the same axes of a shard_map as the first argument, as all arguments do.
    like = jax.typeof(args[0])
    mesh = like.sharding.mesh
    if threads is None:
        threads = 1 if mesh.size > 1 else 0
    results = []
    for shape in shapes:
        spec = jax.sharding.PartitionSpec(*[None] * len(shape))
        sharding = None if mesh.empty else jax.sharding.NamedSharding(mesh, spec)
        results.append(
            jax.ShapeDtypeStruct(shape, like.dtype, sharding=sharding, manual_axis_type=like.manual_axis_type)
        )
    call = jax.ffi.ffi_call(names[part], results, input_output_aliases=aliases)
    return call(*args, reverse=reverse, threads=np.int64(threads))


def _batched(call: Callable[..., Any], weights: tuple[int, ...]) -> Callable[..., Any]:
    """From a function of arrays with an axis of instances, one without it, which vmap turns into one call.

    Args:
      call: takes and returns arrays [instances, ..., batch, features], or None.
      weights: the arguments that have no batch.
    """

    @custom_vmap
    def instances(*args: Any) -> Any:
        return call(*args)

    @instances.def_vmap
    def _(size: int, batched: Any, *args: Any) -> Any:
        shared = not any(batched[n] for n in weights)
        # Sequences under the same weights are one larger batch; those with weights of their own are instances.
        into = -3 if shared else 0

        def merge(array: Any, has_axis: Any) -> Any:
            array = array if has_axis else jnp.broadcast_to(array, (size, *array.shape))
            array = jnp.moveaxis(array, 0, into)
            at = array.ndim + into if into < 0 else into
            return array.reshape(*array.shape[:at], size * array.shape[at + 1], *array.shape[at + 2 :])

        if size == 0:

            def instance(array: Any, has_axis: Any) -> Any:
                return jnp.zeros(array.shape[1:] if has_axis else array.shape, array.dtype)

            one_each = [jax.tree.map(instance, arg, has_axis) for arg, has_axis in zip(args, batched, strict=True)]
            shapes = jax.eval_shape(call, *one_each)
            results = jax.tree.map(lambda shape: jnp.zeros((0, *shape.shape), shape.dtype), shapes)
            return results, jax.tree.map(lambda _: True, results)

        def split(array: Any) -> Any:
            at = array.ndim - 2 if shared else 0
            array = array.reshape(*array.shape[:at], size, array.shape[at] // size, *array.shape[at + 1 :])
            return jnp.moveaxis(array, at, 0)

        merged = [
            args[n] if n in weights and shared else jax.tree.map(merge, args[n], batched[n]) for n in range(len(args))
        ]
        results = jax.tree.map(split, instances(*merged))
        return results, jax.tree.map(lambda _: True, results)

    def one(*args: Any) -> Any:
        return jax.tree.map(lambda array: array[0], instances(*(jax.tree.map(lambda array: array[None], args))))

    return one
