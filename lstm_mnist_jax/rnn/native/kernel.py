"""The loops of the compiled kernel, and those in Pallas, as a JAX primitive that batches and differentiates.

Depends on the kernels' calling conventions and on `xla_loops`: the same functions in JAX, which run on every platform
without a kernel and give the derivatives of the loops themselves.
"""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import Array
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlib import xla_client

from lstm_mnist_jax.rnn import xla_loops
from lstm_mnist_jax.rnn.native import build
from lstm_mnist_jax.rnn.native.projection import is_projected_before, with_projected_inputs
from lstm_mnist_jax.rnn.products import state_dtype


class Result(NamedTuple):
    """A result of a loop.

    Attributes:
      axes: see `Signature`.
      is_wide: whether it has the dtype of the states, which may be wider than that of the weights.
      option: the option of `run` that asks for it; "" is always, "optional" where such arguments are given.
    """

    axes: str
    is_wide: bool = False
    option: str = ""


class Signature(NamedTuple):
    """The arrays of a loop, in the order in which the library's function of its name takes and returns them.

    Axes: networks n, time t, batch b, features f, gates g, biases d, hidden units h and k; q is 1. An array without b
    is a weight.

    Attributes:
      run: the loop in JAX, whose last positional argument is None or the tuple of `optional`.
      arguments: the axes of each.
      optional: the axes of the arguments that are given together or not at all.
      results: what it returns.
      aliases: for arguments whose memory a result takes, the place of that result. These are the largest arrays of
        training. (Of the first argument of a forward loop, where it has been projected.)
    """

    run: Callable[..., Any]
    arguments: dict[str, str]
    optional: dict[str, str]
    results: dict[str, Result]
    aliases: dict[int, int]

    @property
    def projects(self) -> bool:
        """Whether it is a forward loop, whose first arguments are inputs and their weights."""
        return "input_kernel" in self.arguments

    @property
    def summed(self) -> str:
        """The axis over which devices that divide it add up their projected inputs, or their results; "" if none."""
        return "f" if self.projects else "" if any("b" in result.axes for result in self.results.values()) else "b"

    @property
    def all_arguments(self) -> dict[str, str]:
        """The axes of all arguments."""
        return self.arguments | self.optional


STATE, SEQUENCE, GATES, WEIGHTS, RESETS = "n b h", "n t b h", "n t b g", "n k g", "n t b q"
INPUTS, INPUT_WEIGHTS = "n t b f", "n f g"

SIGNATURES = {
    "lstm_forward": Signature(
        xla_loops.lstm_forward,
        {"inputs": INPUTS, "input_kernel": INPUT_WEIGHTS, "bias": "n g", "kernel": WEIGHTS, "h": STATE, "c": STATE},
        {"resets": RESETS, "reset_h": STATE, "reset_c": STATE},
        {
            "hs": Result(SEQUENCE),
            "cs": Result(SEQUENCE, is_wide=True, option="cells"),
            "activations": Result(GATES, option="activations"),
            "last_h": Result(STATE, is_wide=True),
            "last_c": Result(STATE, is_wide=True),
        },
        {0: 2},
    ),
    "lstm_backward": Signature(
        xla_loops.lstm_backward,
        {"activations": GATES, "cs": SEQUENCE, "initial_c": STATE, "kernel": WEIGHTS, "d_hs": SEQUENCE,
         "d_cs": SEQUENCE, "d_last_h": STATE, "d_last_c": STATE},
        {"resets": RESETS, "reset_c": STATE},
        {
            "d_projected": Result(GATES),
            "d_h": Result(STATE, is_wide=True),
            "d_c": Result(STATE, is_wide=True),
            "d_reset_h": Result(STATE, is_wide=True, option="optional"),
            "d_reset_c": Result(STATE, is_wide=True, option="optional"),
        },
        {0: 0},
    ),
    "gru_forward": Signature(
        xla_loops.gru_forward,
        {"inputs": INPUTS, "input_kernel": INPUT_WEIGHTS, "bias": "n d", "kernel": WEIGHTS, "h": STATE},
        {"resets": RESETS, "reset_h": STATE},
        {
            "hs": Result(SEQUENCE),
            "activations": Result(GATES, option="activations"),
            "recurrents": Result(SEQUENCE, option="activations"),
            "last_h": Result(STATE, is_wide=True),
        },
        {0: 1},
    ),
    "gru_backward": Signature(
        xla_loops.gru_backward,
        {"activations": GATES, "recurrents": SEQUENCE, "hs": SEQUENCE, "initial_h": STATE, "kernel": WEIGHTS,
         "d_hs": SEQUENCE, "d_last_h": STATE},
        {"resets": RESETS, "reset_h": STATE},
        {
            "d_projected": Result(GATES),
            "d_recurrents": Result(SEQUENCE),
            "d_h": Result(STATE, is_wide=True),
            "d_reset_h": Result(STATE, is_wide=True, option="optional"),
        },
        {0: 0, 1: 1},
    ),
    "weight_gradient": Signature(
        xla_loops.weight_gradient,
        {"inputs": INPUTS, "gradients": GATES},
        {"initial": "n b f"},
        {"d_kernel": Result(INPUT_WEIGHTS), "d_bias": Result("n g", option="bias")},
        {},
    ),
}  # fmt: skip

INTERPRETED = {"pallas_interpret_tpu": "tpu", "pallas_interpret_gpu": "cuda"}
"""Backends that run the Pallas kernel of a platform in interpret mode, anywhere."""

_lock = threading.Lock()


def unavailable() -> str | None:
    """Why the kernel cannot be used on this machine; None if it can. The first call may compile it (seconds)."""
    with _lock:
        return _register().reason


def version() -> str | None:
    """A hash of the kernel's file, which also depends on its compiler; None where there is no kernel."""
    with _lock:
        return _register().version


class Registered(NamedTuple):
    """What XLA has of the kernel.

    Attributes:
      names: under which XLA finds its functions, by the name in `SIGNATURES`.
      version: see `version`.
      reason: see `unavailable`.
    """

    names: dict[str, str]
    version: str | None
    reason: str | None


@functools.cache
def _register() -> Registered:
    try:
        try:
            return _registered(*build.library())
        except jax.errors.JaxRuntimeError as error:  # a wheel's library is older or newer than what this jaxlib takes
            return _registered(*build.library(refused=f"jaxlib {jaxlib.__version__}: {error}"))
    except (build.BuildError, AttributeError, jax.errors.JaxRuntimeError) as error:
        return Registered({}, None, str(error))


def _registered(library: ctypes.CDLL, version: str) -> Registered:
    # JAX registers functions when it starts its CPU backend, which then does not start if XLA refuses one. With this
    # handler, which JAX sets itself at that time, it registers them now, and an error is one of this library alone.
    with contextlib.suppress(AttributeError):  # in a jaxlib that has it elsewhere
        xla_client.register_custom_call_handler("cpu", xla_client._xla.register_custom_call_target)
    # jax.export refuses custom calls, and names them in its error.
    names = {name: f'lstm_mnist_jax_{name}_{version} (backend="xla" can be exported)' for name in SIGNATURES}
    for name in SIGNATURES:
        jax.ffi.register_ffi_target(names[name], jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return Registered(names, version, None)


def supports(batch: Any, hidden: Any, dtype: Any) -> bool:
    """Whether the kernel computes such a recurrence; it is then faster than XLA's loops on a CPU."""
    # A symbolic size (jax.export's) cannot be compared, and such a program is made for other machines.
    if not isinstance(batch, int) or not isinstance(hidden, int) or jnp.dtype(dtype) != jnp.float32:
        return False
    return batch >= 1 and hidden >= 1


class Loop(NamedTuple):
    """Which loop, and its options.

    Attributes:
      name: of `SIGNATURES`.
      reverse: see `xla_loops`.
      backend: "native", "pallas", or one of `INTERPRETED`.
      threads: the most that the compiled kernel uses. None is one within a mesh of several devices, which share the
        cores, and otherwise all of XLA's.
      options: further options of the loop in JAX.
      given: which arguments are given, the optional ones included.
      wanted: which results are wanted.
      precision: that of JAX's matrix products where the loop was called; the kernel's products are float32.
    """

    name: str
    reverse: bool
    backend: str
    threads: int | None
    options: tuple[tuple[str, Any], ...]
    given: tuple[bool, ...]
    wanted: tuple[bool, ...]
    precision: str | None

    @property
    def signature(self) -> Signature:
        return SIGNATURES[self.name]


def _call(
    name: str, *arrays: Any, reverse: bool, backend: str = "native", threads: int | None = None, **options: Any
) -> tuple[Any, ...]:
    """Arguments and results of the loop of this name in `xla_loops`; `backend` and `threads` as in `Loop`."""
    signature = SIGNATURES[name]
    count = len(signature.arguments)
    (optional,) = arrays[count:] or (None,)
    arrays = *arrays[:count], *(optional or (None,) * len(signature.optional))
    given = tuple(array is not None for array in arrays)
    asked = {"": True, "optional": optional is not None, **options}
    wanted = tuple(asked[result.option] for result in signature.results.values())
    precision = jax.config.values["jax_default_matmul_precision"]
    loop = Loop(name, reverse, backend, threads, tuple(options.items()), given, wanted, precision)
    flat = (
        jnp.zeros((0,), bool if axes == RESETS else arrays[0].dtype) if array is None else array
        for array, axes in zip(arrays, signature.all_arguments.values(), strict=True)
    )
    results = iter(_bind(loop, *flat))
    return tuple(next(results) if is_wanted else None for is_wanted in wanted)


lstm_forward, lstm_backward, gru_forward, gru_backward, weight_gradient = (
    functools.partial(_call, name) for name in SIGNATURES
)


# Where the primitive runs several networks, each of its arrays has an axis of networks in front, weights included. An
# argument that is not given has no elements; the results are those that are wanted.
loop_p = Primitive("recurrent_loop")
loop_p.multiple_results = True


def _bind(loop: Loop, *arrays: Array) -> list[Array]:
    # The kernel's program is a parameter of the primitive, not made when it is lowered: JAX looks in the parameters for
    # whether a program (custom_partitioning) has to know its devices.
    return loop_p.bind(*arrays, loop=loop, kernel=jax.make_jaxpr(functools.partial(_run_kernel, loop=loop))(*arrays))


def _is_single(arrays: Any) -> bool:
    """Whether the arrays are those of one network. The first has the axes `INPUTS` or `GATES` in every loop."""
    return arrays[0].ndim == 3


@loop_p.def_abstract_eval
def _(*arrays: Any, loop: Loop, kernel: Any) -> list[Any]:
    return [_result_type(arrays[0], result.shape, result.dtype) for result in kernel.out_avals]


def _result_type(first: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The type of a result. It varies over the same axes of a shard_map as the first argument, as all arguments do."""
    sharding = NamedSharding(first.sharding.mesh, PartitionSpec(*[None] * len(shape)))
    return first.update(shape=shape, dtype=dtype, sharding=sharding)


@functools.cache
def _compiled(loop: Loop) -> Callable[..., Any]:
    return jax.jit(functools.partial(_bind, loop))


@loop_p.def_impl
def _(*arrays: Array, loop: Loop, kernel: Any) -> Any:
    with jax.disable_jit(False):
        return _compiled(loop)(*arrays)


def _run_xla(*arrays: Array, loop: Loop) -> list[Array]:
    count = len(loop.signature.arguments)

    def run(*arrays: Any) -> Any:
        optional = arrays[count:] if loop.given[-1] else None
        return loop.signature.run(*arrays[:count], optional, reverse=loop.reverse, **dict(loop.options))

    given = (array if has else None for array, has in zip(arrays, loop.given, strict=True))
    with jax.default_matmul_precision(loop.precision):
        return jax.tree.leaves((run if _is_single(arrays) else jax.vmap(run))(*given))


def _run_kernel(*arrays: Array, loop: Loop) -> list[Array]:
    if loop.backend != "native":
        sizes = [size for array, has in zip(arrays, loop.given, strict=True) if has for size in array.shape]
        if symbols := [size for size in sizes if not isinstance(size, int)]:
            raise ValueError(f'backend="{loop.backend}" needs numbers as sizes; got {symbols[0]}. Use backend="xla".')
        if 0 in sizes:  # no step, no sequence or no features
            return _run_xla(*arrays, loop=loop)
    if is_single := _is_single(arrays):
        arrays = tuple(array[None] if has else array for array, has in zip(arrays, loop.given, strict=True))
    is_manual = bool(jax.typeof(arrays[0]).sharding.mesh.manual_axes)
    shared = loop._replace(threads=loop.threads or 1)

    def partitioned(call: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(call, shared, None) if is_manual else _partitioned(loop, shared, call)

    if loop.backend == "native":
        run = partitioned(_ffi_call)
    elif loop.backend in INTERPRETED:
        run = partitioned(functools.partial(_pallas_call, INTERPRETED[loop.backend]))
    else:
        tpu, cuda = (functools.partial(_pallas_call, platform) for platform in ("tpu", "cuda"))
        # On several TPUs, it has to be in a `shard_map`: libtpu has no custom_partitioning.
        tpu = functools.partial(tpu, loop, None)
        run = functools.partial(jax.lax.platform_dependent, tpu=tpu, cuda=partitioned(cuda))
    wanted = [result for result, is_wanted in zip(run(*arrays), loop.wanted, strict=True) if is_wanted]
    return [result[0] for result in wanted] if is_single else wanted


def _ffi_call(loop: Loop, over: Any, *arrays: Array) -> tuple[Array, ...]:
    """The call of the library: arrays that are not given or not wanted have no elements.

    `over` are the axes of a mesh that divide the signature's `summed` axis, or None.
    """
    names, _, reason = _register()
    if reason is not None:
        raise RuntimeError(f"The compiled recurrence is not available: {reason}.")
    results, aliases = _results(loop, arrays), loop.signature.aliases
    if loop.signature.projects:
        is_kept = any(loop.wanted[result] for result in aliases.values())
        # Devices that divide the features add up what each projects.
        if over is not None or is_projected_before(arrays[0], arrays[1], is_kept):
            arrays = with_projected_inputs(arrays, over)
        else:
            aliases = {}
    aliases = {argument: result for argument, result in aliases.items() if loop.wanted[result]}
    call = jax.ffi.ffi_call(names[loop.name], results, input_output_aliases=aliases)
    found = tuple(call(*arrays, reverse=loop.reverse, threads=np.int64(loop.threads or 0)))
    return found if over is None or loop.signature.projects else jax.lax.psum(found, over)


def _results(loop: Loop, arrays: Any) -> list[Any]:
    """The types of the results; those that are not wanted have no elements."""
    sizes = {
        axis: size
        for axes, array, has in zip(loop.signature.all_arguments.values(), arrays, loop.given, strict=True)
        if has
        for axis, size in zip(axes.split(), array.shape, strict=True)
    }
    first = jax.typeof(arrays[0])

    def type_of(result: Result, is_wanted: bool) -> Any:
        shape = tuple(sizes[axis] for axis in result.axes.split()) if is_wanted else (0,)
        return _result_type(first, shape, state_dtype(first.dtype) if result.is_wide else first.dtype)

    return [*map(type_of, loop.signature.results.values(), loop.wanted)]


def _pallas_call(platform: str, loop: Loop, over: Any, *arrays: Array) -> tuple[Array, ...]:
    """The call of the kernel in Pallas for a platform; arrays as for `_ffi_call`."""
    from lstm_mnist_jax.rnn import pallas  # not at the start: JAX's part takes 0.15 s

    arguments, results, types = loop.signature.all_arguments, loop.signature.results, _results(loop, arrays)
    with jax.default_matmul_precision(loop.precision):  # JAX traces it again for several devices
        if loop.signature.projects:
            arrays = with_projected_inputs(arrays, over)
        found = pallas.run(
            loop.name,
            platform,
            {name: array for name, array, has in zip(arguments, arrays, loop.given, strict=True) if has},
            {name: of_result for name, of_result, has in zip(results, types, loop.wanted, strict=True) if has},
            axes=arguments | {name: result.axes for name, result in results.items()},
            reverse=loop.reverse,
            interpret=loop.backend in INTERPRETED,
        )
    return tuple(
        found[name] if name in found else jnp.zeros(of_result.shape, of_result.dtype)
        for name, of_result in zip(results, types, strict=True)
    )


def _lower(context: mlir.LoweringRuleContext, *arrays: Any, loop: Loop, kernel: Any) -> Any:
    platforms = {*(context.platforms or context.module_context.platforms)}
    served = {"native": {"cpu"}, "pallas": {"tpu", "cuda"}}.get(loop.backend, platforms)
    if loop.backend == "pallas" and (others := platforms - served):
        raise ValueError(
            f'backend="pallas" runs on TPUs and NVIDIA GPUs, and this program is compiled for {", ".join(others)}. '
            f'There, use another backend, such as "auto". For tests, backend={" or ".join(map(repr, INTERPRETED))} '
            f"runs the same kernels in Pallas's interpret mode, slowly."
        )
    if loop.backend == "pallas" and len(platforms) > 1:  # Pallas would lower each kernel for both
        raise ValueError(
            'backend="pallas" is lowered for one platform at a time, not for "cuda" and "tpu" together: export the '
            "program once for each."
        )
    run = jaxpr_as_fun(kernel) if platforms <= served else functools.partial(_run_xla, loop=loop)
    return mlir.lower_fun(run, multiple_results=True)(context, *arrays)


mlir.register_lowering(loop_p, _lower)
mlir.register_lowering(loop_p, _lower, platform="cpu")  # apart: a program for several platforms has both


def _jvp(primals: Any, tangents: Any, *, loop: Loop, kernel: Any) -> Any:
    """Where the loop itself is differentiated, XLA's is."""

    def tangent(primal: Any, tangent: Any) -> Any:
        if not isinstance(tangent, ad.Zero):
            return tangent
        return np.zeros(primal.shape, jax.dtypes.float0) if primal.dtype == bool else jnp.zeros_like(primal)

    return jax.jvp(functools.partial(_run_xla, loop=loop), [*primals], [*map(tangent, primals, tangents)])


ad.primitive_jvps[loop_p] = _jvp


def _partitioned(loop: Loop, shared: Loop, call: Callable[..., Any]) -> Callable[..., Any]:
    """The loop for `jit`. Of several devices, each runs `shared` on its part of the batch, and nothing is gathered."""

    def named(prefix: str, axes: Iterable[str], has: tuple[bool, ...]) -> list[str]:
        """The axes of arrays; one that is not given or not wanted has one axis, of its own."""
        return [names if there else f"{prefix}{n}" for n, (names, there) in enumerate(zip(axes, has, strict=True))]

    of_arguments = named("x", loop.signature.all_arguments.values(), loop.given)
    of_results = named("y", (result.axes for result in loop.signature.results.values()), loop.wanted)

    def rule(mesh: Any, arguments: Any, results: Any) -> str:
        return " -> ".join(", ".join(axes) for axes in (of_arguments, of_results))

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        first = arguments[0]
        if isinstance(first.sharding, NamedSharding):
            networks, _, batch, last, *_ = (*tuple(first.sharding.spec), None, None, None, None)
            features = last if of_arguments[0].endswith("f") else None
        else:  # of no mesh: each device has all of it
            mesh = Mesh(np.array(sorted(first.sharding.device_set, key=lambda device: device.id)), ("copies",))
            networks = batch = features = None
        split = {"n": networks, "b": batch, "f": features}

        def shardings(names: list[str]) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, PartitionSpec(*map(split.get, axes.split()))) for axes in names)

        run = functools.partial(call, shared, split.get(loop.signature.summed))
        return mesh, run, shardings(of_results), shardings(of_arguments)

    run = custom_partitioning(functools.partial(call, loop, None))
    run.def_partition(partition, sharding_rule=rule)
    return run


def _batched(arrays: Any, axes: Any, *, loop: Loop, kernel: Any) -> Any:
    """One loop for a vmap of it.

    Sequences under the same weights are one larger batch; those with weights of their own are several networks. So are
    gradients of weights, which are sums over the batch.
    """
    of_one = kernel.out_avals
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    if size == 0:
        return [jnp.zeros((0, *kind.shape), kind.dtype) for kind in of_one], [0] * len(of_one)
    is_single = arrays[0].ndim - (axes[0] is not None) == 3
    is_weight = ["b" not in names.split() for names in loop.signature.all_arguments.values()]
    has_own_weights = any(axis is not None for axis, is_one in zip(axes, is_weight, strict=True) if is_one)
    is_shared = loop.signature.summed != "b" and not has_own_weights

    def merge(array: Array, axis: int | None, is_given: bool, is_weight: bool) -> Array:
        if not is_given or (is_weight and is_shared):
            return array
        array = jnp.broadcast_to(array, (size, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)
        if is_shared:
            array = jnp.moveaxis(array, 0, -3)
            return array.reshape(*array.shape[:-3], size * array.shape[-2], array.shape[-1])
        return array if is_single else array.reshape(size * array.shape[1], *array.shape[2:])

    def split(array: Array, kind: Any) -> Array:
        if is_shared:
            return jnp.moveaxis(array.reshape(*kind.shape[:-2], size, *kind.shape[-2:]), -3, 0)
        return array.reshape(size, *kind.shape)

    results = _bind(loop, *map(merge, arrays, axes, loop.given, is_weight))
    return [*map(split, results, of_one)], [0] * len(results)


batching.primitive_batchers[loop_p] = _batched
