"""The two loops of the LSTM recurrence in the compiled kernel, as a JAX primitive that batches and differentiates.

Depends on the kernel's calling convention and on `xla_loops`: the same functions in JAX, which run on every other
platform and give the derivatives of the loops themselves.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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


class Loop(NamedTuple):
    """Which loop, and its options: see `xla_loops`.

    Attributes:
      part: "forward" or "backward".
      reverse: see there.
      unroll: see there; the kernel does not use it.
      threads: the most that the kernel uses. None is one within a mesh of several devices, which share the cores, and
        otherwise all of XLA's.
      cells: see there.
      activations: see there.
      structure: of the arguments, some of which may be None.
    """

    part: str
    reverse: bool
    unroll: int
    threads: int | None
    cells: bool
    activations: bool
    structure: Any


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
) -> tuple[Any, ...]:
    """The forward loop: arguments and results of `xla_loops.forward`; `threads` as in `Loop`."""
    arrays, structure = jax.tree.flatten((projected, bias, recurrent_kernel, h, c, resets))
    loop = Loop("forward", reverse, unroll, threads, cells, activations, structure)
    results = iter(_bind(loop, *arrays))
    return tuple(next(results) if is_wanted else None for is_wanted in (True, cells, activations, True, True))


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
) -> tuple[Any, ...]:
    """The backward loop: arguments and results of `xla_loops.backward`; `threads` as in `Loop`."""
    all_arrays = (activations, cs, initial_c, recurrent_kernel, d_hs, d_cs, d_last_h, d_last_c, resets)
    arrays, structure = jax.tree.flatten(all_arrays)
    return tuple(_bind(Loop("backward", reverse, unroll, threads, True, True, structure), *arrays))


# The arrays of the primitive are those of `xla_loops` that are not None. Where it runs several networks, each has an
# axis of networks in front, weights included.
loop_p = Primitive("lstm_loop")
loop_p.multiple_results = True


def _bind(loop: Loop, *flat: Array) -> list[Array]:
    # The kernel's program is a parameter of the primitive, not made when it is lowered: JAX looks in the parameters for
    # whether a program (custom_partitioning) has to know its devices.
    return loop_p.bind(*flat, loop=loop, kernel=jax.make_jaxpr(functools.partial(_run_kernel, loop=loop))(*flat))


@loop_p.def_abstract_eval
def _(first: Any, *rest: Any, loop: Loop, kernel: Any) -> list[Any]:
    *networks, time, batch, gates = first.shape
    state = (*networks, batch, gates // 4)
    in_time = (*networks, time, batch, gates // 4)
    if loop.part == "forward":
        shapes = [in_time, *[in_time] * loop.cells, *[first.shape] * loop.activations, state, state]
    else:
        shapes = [first.shape, *[state] * (4 if _has_resets(loop) else 2)]
    # All results vary over the same axes of a shard_map as the first argument, as all arguments do.
    mesh = first.sharding.mesh
    return [
        first.update(shape=shape, sharding=NamedSharding(mesh, PartitionSpec(*[None] * len(shape)))) for shape in shapes
    ]


def _has_resets(loop: Loop) -> bool:
    *_, resets = loop.structure.unflatten(range(loop.structure.num_leaves))
    return resets is not None


@functools.cache
def _compiled(loop: Loop) -> Callable[..., Any]:
    return jax.jit(functools.partial(_bind, loop))


@loop_p.def_impl
def _(*flat: Array, loop: Loop, kernel: Any) -> Any:
    with jax.disable_jit(False):
        return _compiled(loop)(*flat)


def _run_xla(*flat: Array, loop: Loop) -> list[Array]:
    run: Callable[..., Any] = functools.partial(xla_loops.backward, reverse=loop.reverse, unroll=loop.unroll)
    if loop.part == "forward":
        run = functools.partial(
            xla_loops.forward,
            cells=loop.cells,
            activations=loop.activations,
            reverse=loop.reverse,
            unroll=loop.unroll,
        )
    several = flat[0].ndim == 4
    return jax.tree.leaves((jax.vmap(run) if several else run)(*loop.structure.unflatten(flat)))


def _run_kernel(*flat: Array, loop: Loop) -> list[Array]:
    if is_single := flat[0].ndim == 3:
        flat = tuple(array[None] for array in flat)
    *arrays, resets = loop.structure.unflatten(flat)
    is_forward = loop.part == "forward"
    given = [*arrays, *(resets or (None,) * (3 if is_forward else 2))]
    dtypes = [bool if n == (5 if is_forward else 8) else given[0].dtype for n in range(len(given))]
    given = [jnp.zeros((0,), dtype) if array is None else array for array, dtype in zip(given, dtypes, strict=True)]
    one_device, several_devices = (functools.partial(_ffi_call, loop, loop.threads or most) for most in (0, 1))
    run: Callable[..., Any] = several_devices
    if not jax.typeof(given[0]).sharding.mesh.manual_axes:
        run = _partitioned(loop, one_device, several_devices)
    results: Any = run(*given)
    wanted = (True, loop.cells, loop.activations, True, True) if is_forward else (True,) * 3 + (resets is not None,) * 2
    kept = [result for result, is_wanted in zip(results, wanted, strict=True) if is_wanted]
    return [result[0] for result in kept] if is_single else kept


def _ffi_call(loop: Loop, threads: int, *arrays: Array) -> tuple[Array, ...]:
    """The call of the library: arrays that are not given or not wanted have no elements."""
    names, reason = _register()
    if reason is not None:
        raise RuntimeError(f"The compiled recurrence is not available: {reason}.")
    first = arrays[0]
    networks, time, batch, gates = first.shape
    state = (networks, batch, gates // 4)
    in_time = (networks, time, *state[1:])
    none = (0,)
    # The activations take the place of the projected inputs, and their gradient the place of the activations: these are
    # the largest arrays of training.
    if loop.part == "forward":
        activations = first.shape if loop.activations else none
        shapes, aliases = [in_time, in_time if loop.cells else none, activations, state, state], {0: 2}
        aliases = aliases if loop.activations else {}
    else:
        of_resets = state if arrays[-1].ndim > 1 else none
        shapes, aliases = [first.shape, state, state, of_resets, of_resets], {0: 0}
    # All results vary over the same axes of a shard_map as the first argument, as all arguments do.
    like = jax.typeof(first)
    mesh = like.sharding.mesh

    def result(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        sharding = None if mesh.empty else NamedSharding(mesh, PartitionSpec(*[None] * len(shape)))
        return jax.ShapeDtypeStruct(shape, like.dtype, sharding=sharding, manual_axis_type=like.manual_axis_type)

    call = jax.ffi.ffi_call(names[loop.part], [*map(result, shapes)], input_output_aliases=aliases)
    return tuple(call(*arrays, reverse=loop.reverse, threads=np.int64(threads)))


def _default_lowering(*flat: Array, loop: Loop, kernel: Any) -> Any:
    return _run_xla(*flat, loop=loop)


def _cpu_lowering(*flat: Array, loop: Loop, kernel: Any) -> Any:
    return jaxpr_as_fun(kernel)(*flat)


mlir.register_lowering(loop_p, mlir.lower_fun(_default_lowering, multiple_results=True))
mlir.register_lowering(loop_p, mlir.lower_fun(_cpu_lowering, multiple_results=True), platform="cpu")


def _jvp(primals: Any, tangents: Any, *, loop: Loop, kernel: Any) -> Any:
    """Where the loop itself is differentiated, XLA's is."""

    def tangent(primal: Any, tangent: Any) -> Any:
        if not isinstance(tangent, ad.Zero):
            return tangent
        dtype = jax.dtypes.float0 if primal.dtype == bool else primal.dtype
        return np.zeros(primal.shape, dtype) if dtype == jax.dtypes.float0 else jnp.zeros_like(primal)

    return jax.jvp(functools.partial(_run_xla, loop=loop), [*primals], [*map(tangent, primals, tangents)])


ad.primitive_jvps[loop_p] = _jvp


def _partitioned(loop: Loop, one_device: Callable[..., Any], several_devices: Callable[..., Any]) -> Callable[..., Any]:
    """The loop for `jit` over several devices: each computes its part of the batch, and nothing is gathered."""
    gates, in_time, state = "n t b g", "n t b h", "n b h"

    def axes_of(arguments: Sequence[Any]) -> tuple[list[str], list[str]]:
        """The axes of the arguments and of the results. An array that is not computed or not given has one axis."""

        def given(names: dict[str, str], first: int) -> list[str]:
            shapes = [argument.shape for argument in arguments[first:]]
            return [
                axes if len(shape) > 1 else none for (none, axes), shape in zip(names.items(), shapes, strict=False)
            ]

        if loop.part == "forward":
            resets = given({"r": "n t b q", "s": state, "w": state}, 5)
            results = [in_time, in_time if loop.cells else "x", gates if loop.activations else "y", state, state]
            return [gates, "n g", "n k g", state, state, *resets], results
        gradients = given({"x": in_time, "y": in_time}, 4)
        resets = given({"r": "n t b q", "s": state}, 8)
        of_resets = [state, state] if resets[1] == state else ["u", "v"]
        arguments_axes = [gates, in_time, state, "n k g", *gradients, state, state, *resets]
        return arguments_axes, [gates, state, state, *of_resets]

    def rule(mesh: Any, arguments: Any, results: Any) -> str:
        return " -> ".join(", ".join(axes) for axes in axes_of(arguments))

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        first = arguments[0]
        if isinstance(first.sharding, NamedSharding):
            networks, _, batch, *_ = (*tuple(first.sharding.spec), None, None, None)
        else:  # of no mesh: then a mesh of as many parts
            parts = [
                -(-size // part)
                for size, part in zip(first.shape, first.sharding.shard_shape(first.shape), strict=True)
            ]
            devices = np.array(sorted(first.sharding.device_set, key=lambda device: device.id))
            mesh = Mesh(devices.reshape(parts[0], parts[2], -1), ("networks", "batch", "copies"))
            networks, batch = "networks", "batch"
        split = {"n": networks, "b": batch}

        def shardings(names: list[str]) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, PartitionSpec(*map(split.get, axes.split()))) for axes in names)

        of_arguments, of_results = map(shardings, axes_of(arguments))
        return mesh, several_devices, of_results, of_arguments

    run = custom_partitioning(one_device)
    run.def_partition(partition, sharding_rule=rule)
    return run


def _batched(flat: Any, axes: Any, *, loop: Loop, kernel: Any) -> Any:
    """One loop for a vmap of it.

    Sequences under the same weights are one larger batch; those with weights of their own are several networks.
    """
    size = next(array.shape[axis] for array, axis in zip(flat, axes, strict=True) if axis is not None)
    flat = [array if axis is None else jnp.moveaxis(array, axis, 0) for array, axis in zip(flat, axes, strict=True)]
    has_axis = [axis is not None for axis in axes]
    weights = {"forward": (1, 2), "backward": (3,)}[loop.part]  # the arrays that have no batch
    is_shared = not any(has_axis[n] for n in weights)
    is_single = flat[0].ndim - has_axis[0] == 3

    def merge(n: int) -> Array:
        if n in weights and is_shared:
            return flat[n]
        array = flat[n] if has_axis[n] else jnp.broadcast_to(flat[n], (size, *flat[n].shape))
        if is_shared:
            array = jnp.moveaxis(array, 0, -3)
            return array.reshape(*array.shape[:-3], size * array.shape[-2], array.shape[-1])
        return array if is_single else array.reshape(size * array.shape[1], *array.shape[2:])

    def split(array: Array) -> Array:
        if is_shared:
            array = array.reshape(*array.shape[:-2], size, array.shape[-2] // size, array.shape[-1])
            return jnp.moveaxis(array, -3, 0)
        return array if is_single else array.reshape(size, array.shape[0] // size, *array.shape[1:])

    if size == 0:
        one = [jax.ShapeDtypeStruct(array.shape[1:] if has else array.shape, array.dtype)
               for array, has in zip(flat, has_axis, strict=True)]  # fmt: skip
        shapes = jax.eval_shape(functools.partial(_bind, loop), *one)
        results = [jnp.zeros((0, *shape.shape), shape.dtype) for shape in shapes]
    else:
        results = [split(result) for result in _bind(loop, *map(merge, range(len(flat))))]
    return results, [0] * len(results)


batching.primitive_batchers[loop_p] = _batched
