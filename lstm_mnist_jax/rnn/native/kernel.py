"""The two loops of the LSTM recurrence in the compiled kernel, as JAX functions that batch and differentiate.

Depends on the kernel's calling convention and on `xla_loops`: the same functions in JAX, which run on every other
platform and give the derivatives.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from lstm_mnist_jax.rnn import xla_loops
from lstm_mnist_jax.rnn.native import build

SYMBOLS = {"forward": "LstmForward", "backward": "LstmBackward"}

RESETS = {"forward": 5, "backward": 8}
"""The place of the resets among the arrays that the kernel takes."""

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
        # jax.export refuses custom calls, and names them in its error.
        names = {part: f'lstm_mnist_jax_{part}_{version} (backend="xla" can be exported)' for part in SYMBOLS}
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
    projected: Array,
    bias: Array,
    recurrent_kernel: Array,
    h: Array,
    c: Array,
    resets: Any = None,
    *,
    cells: bool,
    activations: bool,
    reverse: bool,
    unroll: int = 1,
    threads: int | None = None,
) -> Any:
    """The forward loop: arguments and results of `xla_loops.forward`.

    `threads` is the most that the kernel uses. None is one within a mesh of several devices, which share the cores, and
    otherwise all of XLA's.
    """
    arrays = (projected, bias, recurrent_kernel, h, c, resets)
    options = (reverse, unroll, threads, cells, activations)
    return jax.lax.platform_dependent(*arrays, cpu=_kernel("forward", *options), default=_xla("forward", *options))


def backward(
    activations: Array,
    cs: Array,
    initial_c: Array,
    recurrent_kernel: Array,
    d_hs: Array | None,
    d_cs: Array | None,
    d_last_h: Array,
    d_last_c: Array,
    resets: Any = None,
    *,
    reverse: bool,
    unroll: int = 1,
    threads: int | None = None,
) -> Any:
    """The backward loop: arguments and results of `xla_loops.backward`. `threads` as for `forward`."""
    arrays = (activations, cs, initial_c, recurrent_kernel, d_hs, d_cs, d_last_h, d_last_c, resets)
    options = (reverse, unroll, threads)
    return jax.lax.platform_dependent(*arrays, cpu=_kernel("backward", *options), default=_xla("backward", *options))


def _xla(
    part: str, reverse: bool, unroll: int, threads: int | None, cells: bool = True, activations: bool = True
) -> Callable[..., Any]:
    """XLA's loop, for other platforms and for derivatives of the loop itself."""
    if part == "backward":
        return functools.partial(xla_loops.backward, reverse=reverse, unroll=unroll)
    return functools.partial(xla_loops.forward, cells=cells, activations=activations, reverse=reverse, unroll=unroll)


@functools.cache
def _kernel(
    part: str, reverse: bool, unroll: int, threads: int | None, cells: bool = True, activations: bool = True
) -> Callable[..., Any]:
    """The kernel's loop of one network, or of several: then every array has an axis of networks in front."""

    def ffi_call(most: int, *arrays: Array) -> tuple[Array, ...]:
        names, reason = _register()
        if reason is not None:
            raise RuntimeError(f"The compiled recurrence is not available: {reason}.")
        first = arrays[0]
        networks, time, batch, gates = first.shape
        state = (networks, batch, gates // 4)
        in_time = (networks, time, *state[1:])
        none = (0,)
        in_resets = state if arrays[-1].ndim > 1 else none
        shapes: list[tuple[int, ...]] = [first.shape, state, state, in_resets, in_resets]
        if part == "forward":
            shapes = [in_time, in_time if cells else none, first.shape if activations else none, state, state]
        # The activations take the place of the projected inputs, and their gradient the place of the activations:
        # these are the largest arrays of training.
        aliases = {"forward": {0: 2} if activations else {}, "backward": {0: 0}}[part]
        # All results vary over the same axes of a shard_map as the first argument, as all arguments do.
        like = jax.typeof(first)
        mesh = like.sharding.mesh

        def result(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
            sharding = None if mesh.empty else NamedSharding(mesh, PartitionSpec(*[None] * len(shape)))
            return jax.ShapeDtypeStruct(shape, like.dtype, sharding=sharding, manual_axis_type=like.manual_axis_type)

        run = jax.ffi.ffi_call(names[part], [*map(result, shapes)], input_output_aliases=aliases)
        return tuple(run(*arrays, reverse=reverse, threads=np.int64(most)))

    one_device = functools.partial(ffi_call, threads or 0)
    several_devices = functools.partial(ffi_call, threads or 1)
    partitioned = _partitioned(part, one_device, several_devices, cells, activations)

    @custom_vmap
    def call(*arrays: Any) -> Any:
        if is_single := arrays[0].ndim == 3:
            arrays = jax.tree.map(lambda array: array[None], arrays)
        *rest, resets = arrays
        has_resets = resets is not None
        given = [*rest, *(resets if has_resets else (None,) * (3 if part == "forward" else 2))]
        dtypes = [bool if n == RESETS[part] else given[0].dtype for n in range(len(given))]
        given = [jnp.zeros((0,), dtype) if array is None else array for array, dtype in zip(given, dtypes, strict=True)]
        mesh = jax.typeof(given[0]).sharding.mesh
        results: Any = (several_devices if mesh.manual_axes else partitioned)(*given)
        if part == "forward":
            results = (results[0], results[1] if cells else None, results[2] if activations else None, *results[3:])
        elif not has_resets:
            results = results[:3]
        return jax.tree.map(lambda array: array[0], results) if is_single else results

    weights = {"forward": (1, 2), "backward": (3,)}[part]
    call.def_vmap(functools.partial(_batched, call, weights))
    differentiable = jax.custom_jvp(call)
    xla = _xla(part, reverse, unroll, threads, cells, activations)
    differentiable.defjvp(functools.partial(jax.jvp, xla))
    return differentiable


def _partitioned(
    part: str, one_device: Callable[..., Any], several_devices: Callable[..., Any], cells: bool, activations: bool
) -> Callable[..., Any]:
    """The loop for `jit` over several devices: each computes its part of the batch, and nothing is gathered."""
    gates, in_time, state = "n t b g", "n t b h", "n b h"

    def axes_of(arguments: Sequence[Any]) -> tuple[list[str], list[str]]:
        """The axes of the arguments and of the results. An array that is not computed or not given has one axis."""

        def given(names: dict[str, str], first: int) -> list[str]:
            shapes = [argument.shape for argument in arguments[first:]]
            return [
                axes if len(shape) > 1 else none for (none, axes), shape in zip(names.items(), shapes, strict=False)
            ]

        if part == "forward":
            resets = given({"r": "n t b q", "s": state, "w": state}, 5)
            results = [in_time, in_time if cells else "x", gates if activations else "y", state, state]
            return [gates, "n g", "n k g", state, state, *resets], results
        gradients = given({"x": in_time, "y": in_time}, 4)
        resets = given({"r": "n t b q", "s": state}, 8)
        of_resets = [state, state] if resets[1] == state else ["u", "v"]
        arguments_axes = [gates, in_time, state, "n k g", *gradients, state, state, *resets]
        return arguments_axes, [gates, state, state, *of_resets]

    def rule(mesh: Any, arguments: Any, results: Any) -> str:
        return " -> ".join(", ".join(axes) for axes in axes_of(arguments))

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        networks, _, batch, *_ = (*tuple(arguments[0].sharding.spec), None, None, None)
        split = {"n": networks, "b": batch}

        def shardings(names: list[str]) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, PartitionSpec(*map(split.get, axes.split()))) for axes in names)

        of_arguments, of_results = map(shardings, axes_of(arguments))
        return mesh, several_devices, of_results, of_arguments

    run = custom_partitioning(one_device)
    run.def_partition(partition, sharding_rule=rule)
    return run


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
