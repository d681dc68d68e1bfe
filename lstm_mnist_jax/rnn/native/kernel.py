"""The loops of the compiled kernel, and those in Pallas, as a JAX primitive that batches and differentiates.

Depends on the kernels' calling conventions and on `xla_loops`: the same functions in JAX, which run on every platform
without a kernel and give the derivatives of the loops themselves.
"""

import contextlib
import ctypes
import functools
import math
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
from lstm_mnist_jax.rnn.products import project, state_dtype


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
    """The arrays of a loop, in the order in which the library's function takes and returns them.

    Axes: networks n, time t, batch b, features f, gates g, biases d, hidden units h and k; q is 1. An array without b
    is a weight.

    Attributes:
      symbol: the name of the library's function.
      run: the loop in JAX, whose last positional argument is None or the tuple of `optional`.
      arguments: the axes of each.
      optional: the axes of the arguments that are given together or not at all.
      results: what it returns.
      aliases: for arguments whose memory a result takes, the place of that result. These are the largest arrays of
        training. (Of the first argument of a forward loop, where it has been projected.)
    """

    symbol: str
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
        "LstmForward",
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
        "LstmBackward",
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
        "GruForward",
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
        "GruBackward",
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
        "WeightGradientHandler",
        xla_loops.weight_gradient,
        {"inputs": INPUTS, "gradients": GATES},
        {"initial": "n b f"},
        {"d_kernel": Result(INPUT_WEIGHTS), "d_bias": Result("n g", option="bias")},
        {},
    ),
}  # fmt: skip

WEIGHTS_OF_A_SEQUENCE = 1 << 12
"""The compiled kernel projects the inputs if their weights are at most so many for each sequence of the batch.

Each step reads them all: with few sequences this takes longer. In a layer's forward pass, one sequence with 2^13
weights took longer than with a product before the loop, with 2^12 as long; 16 sequences with 2^16 took 0.84 to 0.87 of
the time, with 2^18 0.93 to 0.99, with 2^20 0.97 to 1.13 (28 steps, one Zen 5 core, AVX-512 and AVX2)."""

PROJECTED_BYTES = 64 << 20
"""It also projects the inputs if they would take more memory projected, and no result takes this memory afterwards.

In a layer's forward pass with 2^20 weights, 8,400 steps of one sequence (66 MiB) took 1.26 times as long as with a
product before the loop; 784 steps of 16 and of 64 sequences (98 and 392 MiB) took 0.79 and 0.83 of the time (two Zen 5
cores)."""

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
    for name, signature in SIGNATURES.items():
        function = jax.ffi.pycapsule(getattr(library, signature.symbol))
        jax.ffi.register_ffi_target(names[name], function, platform="cpu")
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
    name: str,
    *arrays: Any,
    reverse: bool,
    backend: str = "native",
    threads: int | None = None,
    **options: Any,
) -> tuple[Any, ...]:
    """Arguments and results of the loop of this name in `xla_loops`; `backend` and `threads` as in `Loop`."""
    signature = SIGNATURES[name]
    count = len(signature.arguments)
    (optional,) = arrays[count:] or (None,)
    arrays = *arrays[:count], *(optional or (None,) * len(signature.optional))
    given = tuple(array is not None for array in arrays)
    asked = {"": True, "optional": optional is not None, **options}
    options_of_results = [result.option for result in signature.results.values()]
    wanted = tuple(asked[option] for option in options_of_results)
    precision = jax.config.values["jax_default_matmul_precision"]
    loop = Loop(name, reverse, backend, threads, tuple(options.items()), given, wanted, precision)
    results = iter(_bind(loop, *[array for array in arrays if array is not None]))
    return tuple(
        next(results) if asked[option] else None for option in options_of_results if option != "optional" or optional
    )


lstm_forward, lstm_backward, gru_forward, gru_backward, weight_gradient = (
    functools.partial(_call, name) for name in SIGNATURES
)


# The arrays of the primitive are those that are given. Where it runs several networks, each has an axis of networks in
# front, weights included.
loop_p = Primitive("recurrent_loop")
loop_p.multiple_results = True


def _bind(loop: Loop, *flat: Array) -> list[Array]:
    # The kernel's program is a parameter of the primitive, not made when it is lowered: JAX looks in the parameters for
    # whether a program (custom_partitioning) has to know its devices.
    return loop_p.bind(*flat, loop=loop, kernel=jax.make_jaxpr(functools.partial(_run_kernel, loop=loop))(*flat))


def _is_single(flat: Any) -> bool:
    """Whether the arrays are those of one network. The first has the axes `INPUTS` or `GATES` in every loop."""
    return flat[0].ndim == 3


def _missing(loop: Loop, flat: Any, missing: Any) -> list[Any]:
    """All arguments: the arrays that are given, and for the others what `missing` returns of their axes."""
    arrays = iter(flat)
    return [
        next(arrays) if has else missing(axes)
        for axes, has in zip(loop.signature.all_arguments.values(), loop.given, strict=True)
    ]


@loop_p.def_abstract_eval
def _(*flat: Any, loop: Loop, kernel: Any) -> list[Any]:
    return [_result_type(flat[0], result.shape, result.dtype) for result in kernel.out_avals]


def _result_type(first: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The type of a result. It varies over the same axes of a shard_map as the first argument, as all arguments do."""
    sharding = NamedSharding(first.sharding.mesh, PartitionSpec(*[None] * len(shape)))
    return first.update(shape=shape, dtype=dtype, sharding=sharding)


@functools.cache
def _compiled(loop: Loop) -> Callable[..., Any]:
    return jax.jit(functools.partial(_bind, loop))


@loop_p.def_impl
def _(*flat: Array, loop: Loop, kernel: Any) -> Any:
    with jax.disable_jit(False):
        return _compiled(loop)(*flat)


def _run_xla(*flat: Array, loop: Loop) -> list[Array]:
    def run(*flat: Array) -> Any:
        arrays = _missing(loop, flat, lambda axes: None)
        count = len(loop.signature.arguments)
        optional = tuple(arrays[count:]) if loop.given[-1] else None
        return loop.signature.run(*arrays[:count], optional, reverse=loop.reverse, **dict(loop.options))

    with jax.default_matmul_precision(loop.precision):
        return jax.tree.leaves((run if _is_single(flat) else jax.vmap(run))(*flat))


def _run_kernel(*flat: Array, loop: Loop) -> list[Array]:
    if loop.backend != "native":
        sizes = [size for array in flat for size in array.shape]
        if symbols := [size for size in sizes if not isinstance(size, int)]:
            raise ValueError(f'backend="{loop.backend}" needs numbers as sizes; got {symbols[0]}. Use backend="xla".')
        if 0 in sizes:  # no step, no sequence or no features
            return _run_xla(*flat, loop=loop)
    if is_single := _is_single(flat):
        flat = tuple(array[None] for array in flat)
    given = _missing(loop, flat, lambda axes: jnp.zeros((0,), bool if axes == RESETS else flat[0].dtype))
    is_manual = bool(jax.typeof(given[0]).sharding.mesh.manual_axes)

    def partitioned(one_device: Callable[..., Any], several_devices: Callable[..., Any]) -> Callable[..., Any]:
        if is_manual:
            return functools.partial(several_devices, None)
        return _partitioned(loop, functools.partial(one_device, None), several_devices)

    if loop.backend == "native":
        run = partitioned(*(functools.partial(_ffi_call, loop, loop.threads or most) for most in (0, 1)))
    elif loop.backend in INTERPRETED:
        run = functools.partial(_pallas_call, loop, INTERPRETED[loop.backend])
        run = partitioned(run, run)
    else:
        tpu, cuda = (functools.partial(_pallas_call, loop, platform) for platform in ("tpu", "cuda"))
        # On several TPUs, it has to be in a `shard_map`: libtpu has no custom_partitioning.
        run = functools.partial(
            jax.lax.platform_dependent, tpu=functools.partial(tpu, None), cuda=partitioned(cuda, cuda)
        )
    kept = [result for result, is_wanted in zip(run(*given), loop.wanted, strict=True) if is_wanted]
    return [result[0] for result in kept] if is_single else kept


def _projected(arrays: Any, over: Any) -> tuple[Any, ...]:
    """The arrays of a forward loop with projected inputs, and without their weights.

    `over` are the axes of a mesh that divide the features, or None.
    """
    inputs, kernel, *others = arrays
    # (Of the product of one network under a vmap, XLA makes a copy.)
    projected = project(inputs[0], kernel[0])[None] if len(kernel) == 1 else jax.vmap(project)(inputs, kernel)
    return projected if over is None else jax.lax.psum(projected, over), jnp.zeros((0,), kernel.dtype), *others


def _projects_before(loop: Loop, inputs: Array, kernel: Array) -> bool:
    """Whether a forward loop of the library is given projected inputs, as each step would read too many weights.

    That is with more than `WEIGHTS_OF_A_SEQUENCE` for each sequence, unless the projected inputs take more than
    `PROJECTED_BYTES`. Where the activations are wanted (for a gradient), these take their memory, and it costs none.
    """
    networks, time, batch, _ = inputs.shape
    _, features, gates = kernel.shape
    if features * gates <= WEIGHTS_OF_A_SEQUENCE * batch:
        return False
    if any(loop.wanted[result] for result in loop.signature.aliases.values()):
        return True
    sizes = networks, time, batch, gates, kernel.dtype.itemsize
    # (A symbolic size cannot be compared, and such a program is made for other platforms.)
    return all(isinstance(size, int) for size in sizes) and math.prod(sizes) <= PROJECTED_BYTES


def _ffi_call(loop: Loop, threads: int, over: Any, *arrays: Array) -> tuple[Array, ...]:
    """The call of the library: arrays that are not given or not wanted have no elements.

    `over` are the axes of a mesh that divide the signature's `summed` axis, or None.
    """
    names, _, reason = _register()
    if reason is not None:
        raise RuntimeError(f"The compiled recurrence is not available: {reason}.")
    results, aliases = _results(loop, arrays), loop.signature.aliases
    if loop.signature.projects:
        inputs, kernel, *_ = arrays
        # Devices that divide the features add up what each projects.
        if over is not None or _projects_before(loop, inputs, kernel):
            arrays = _projected(arrays, over)
        else:
            aliases = {}
    aliases = {argument: result for argument, result in aliases.items() if loop.wanted[result]}
    call = jax.ffi.ffi_call(names[loop.name], results, input_output_aliases=aliases)
    found = tuple(call(*arrays, reverse=loop.reverse, threads=np.int64(threads)))
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


def _pallas_call(loop: Loop, platform: str, over: Any, *arrays: Array) -> tuple[Array, ...]:
    """The call of the kernel in Pallas for a platform; arrays as for `_ffi_call`."""
    from lstm_mnist_jax.rnn import pallas  # not at the start: JAX's part takes 0.15 s

    arguments, results, types = loop.signature.all_arguments, loop.signature.results, _results(loop, arrays)
    with jax.default_matmul_precision(loop.precision):  # JAX traces it again for several devices
        if loop.signature.projects:
            arrays = _projected(arrays, over)
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


def _lower(context: mlir.LoweringRuleContext, *flat: Any, loop: Loop, kernel: Any) -> Any:
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
    return mlir.lower_fun(run, multiple_results=True)(context, *flat)


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


def _partitioned(loop: Loop, one_device: Callable[..., Any], several_devices: Callable[..., Any]) -> Callable[..., Any]:
    """The loop for `jit` over several devices: each computes its part of the batch, and nothing is gathered."""

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
        else:  # of no mesh: then a mesh of as many parts
            parts = [
                -(-size // part)
                for size, part in zip(first.shape, first.sharding.shard_shape(first.shape), strict=True)
            ]
            devices = np.array(sorted(first.sharding.device_set, key=lambda device: device.id))
            mesh = Mesh(devices.reshape(parts[0], parts[2], -1), ("networks", "batch", "copies"))
            networks, batch, features = "networks", "batch", None
        split = {"n": networks, "b": batch, "f": features}

        def shardings(names: list[str]) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, PartitionSpec(*map(split.get, axes.split()))) for axes in names)

        run = functools.partial(several_devices, split.get(loop.signature.summed))
        return mesh, run, shardings(of_results), shardings(of_arguments)

    run = custom_partitioning(one_device)
    run.def_partition(partition, sharding_rule=rule)
    return run


def _batched(flat: Any, axes: Any, *, loop: Loop, kernel: Any) -> Any:
    """One loop for a vmap of it.

    Sequences under the same weights are one larger batch; those with weights of their own are several networks. So are
    gradients of weights, which are sums over the batch.
    """
    size = next(array.shape[axis] for array, axis in zip(flat, axes, strict=True) if axis is not None)
    flat = [array if axis is None else jnp.moveaxis(array, axis, 0) for array, axis in zip(flat, axes, strict=True)]
    has_axis = [axis is not None for axis in axes]
    is_single = flat[0].ndim - has_axis[0] == 3
    given = [axes for axes, has in zip(loop.signature.all_arguments.values(), loop.given, strict=True) if has]
    weights = [n for n, axes in enumerate(given) if "b" not in axes.split()]
    is_shared = loop.signature.summed != "b" and not any(has_axis[n] for n in weights)

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
