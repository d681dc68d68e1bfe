"""Functions with a gradient of their own, as `jax.custom_vjp` makes them, that have forward mode too.

Two primitives. `function_p` is the function; where it is differentiated, it computes what the gradient needs, and its
tangents come from `tangents_p`, which is linear in the tangents of the arguments. Reverse mode transposes that: this is
the gradient given by hand. Forward mode evaluates it: JAX differentiates the function.

Depends on JAX alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

Axes = tuple[int | None, ...]
"""For each array, 0 where a vmap maps over its first axis, None where it does not."""


@dataclass(frozen=True, eq=False)
class Function:
    """A function with its gradient. The first argument of each are settings, which are hashable.

    Attributes:
      run: (settings, *arguments) -> results. Arguments and results are pytrees of arrays.
      forward: (settings, *arguments) -> (results, kept): also what the gradient needs beside the arguments.
      backward: (settings, arguments, kept, gradients of the results) -> gradients of the arguments. A gradient is None
        where it is zero; an array of integers or booleans has none.
    """

    run: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]

    def __call__(self, settings: Any, *arguments: Any) -> Any:
        arguments = jax.tree.map(jnp.asarray, arguments)
        arrays, structure = jax.tree.flatten(arguments)
        program, results = jax.make_jaxpr(partial(self.run, settings), return_shape=True)(*arguments)
        # A function that depends on more than its arguments (traced values it closes over, collectives over the axis of
        # a vmap, checks) is left to JAX: a primitive would hide this from its transformations.
        if program.effects or any(isinstance(value, jax.core.Tracer) for value in program.consts):
            return self.run(settings, *arguments)
        precision = jax.config.values["jax_default_matmul_precision"]
        call = Call(self, settings, structure, jax.tree.structure(results), (), precision)
        return call.results.unflatten(function_p.bind(*arrays, call=call, program=program))


class Call(NamedTuple):
    """One call of a function, under some vmaps.

    Attributes:
      function, settings: see there.
      arguments, results: their structures.
      vmaps: the axes of the arguments in each vmap, the innermost first.
      precision: that of matrix products where the function was called. JAX transposes a product with the product's
        own; a gradient given by hand is traced later, where another may hold.
    """

    function: Function
    settings: Any
    arguments: Any
    results: Any
    vmaps: tuple[Axes, ...]
    precision: str | None

    def run(self, *arrays: Array) -> list[Array]:
        def one(*arrays: Array) -> list[Array]:
            return jax.tree.leaves(self.function.run(self.settings, *self.arguments.unflatten(arrays)))

        with jax.default_matmul_precision(self.precision):
            return _under(self.vmaps, one)(*arrays)

    def forward(self, *arrays: Array) -> tuple[list[Array], Any]:
        def one(*arrays: Array) -> tuple[list[Array], Any]:
            results, kept = self.function.forward(self.settings, *self.arguments.unflatten(arrays))
            return jax.tree.leaves(results), kept

        with jax.default_matmul_precision(self.precision):
            return _under(self.vmaps, one)(*arrays)


def _under(vmaps: tuple[Axes, ...], function: Callable[..., Any]) -> Callable[..., Any]:
    for axes in vmaps:
        function = jax.vmap(function, axes)
    return function


function_p = Primitive("function_with_gradient")
function_p.multiple_results = True


@function_p.def_abstract_eval
def _(*arrays: Any, call: Call, program: Any) -> list[Any]:
    return program.out_avals


def _run_program(*arrays: Array, call: Call, program: Any) -> list[Array]:
    return jaxpr_as_fun(program)(*arrays)


function_p.def_impl(_run_program)
mlir.register_lowering(function_p, mlir.lower_fun(_run_program, multiple_results=True))


def _jvp(arrays: Any, tangents: Any, *, call: Call, program: Any) -> tuple[list[Array], list[Any]]:
    results, kept = call.forward(*arrays)
    kept_arrays, kept_structure = jax.tree.flatten(kept)
    has = tuple(not isinstance(tangent, ad.Zero) for tangent in tangents)
    given = _chosen(tangents, has)
    vmaps = tuple((*axes, *(0,) * len(kept_arrays), *_chosen(axes, has)) for axes in call.vmaps)
    linear = Tangents(call._replace(vmaps=()), has, kept_structure, vmaps)
    types = tuple(jax.typeof(result).to_tangent_aval() for result in results)
    return results, tangents_p.bind(*arrays, *kept_arrays, *given, linear=linear, types=types)


ad.primitive_jvps[function_p] = _jvp


def _to_front(arrays: Any, axes: Any) -> tuple[list[Array], Axes]:
    moved = [array if axis is None else jnp.moveaxis(array, axis, 0) for array, axis in zip(arrays, axes, strict=True)]
    return moved, tuple(None if axis is None else 0 for axis in axes)


def _batched(arrays: Any, axes: Any, *, call: Call, program: Any) -> tuple[list[Array], list[int]]:
    arrays, axes = _to_front(arrays, axes)
    call = call._replace(vmaps=(*call.vmaps, axes))
    results = function_p.bind(*arrays, call=call, program=jax.make_jaxpr(call.run)(*arrays))
    return results, [0] * len(results)


batching.primitive_batchers[function_p] = _batched


class Tangents(NamedTuple):
    """The tangents of the results of a call, as a linear function of those of some arguments.

    Attributes:
      call: without vmaps.
      has: which arguments have a tangent.
      kept: the structure of what the forward pass kept.
      vmaps: the axes of arguments, kept arrays and tangents in each vmap, the innermost first.
    """

    call: Call
    has: tuple[bool, ...]
    kept: Any
    vmaps: tuple[Axes, ...]

    def split(self, operands: Any) -> tuple[list[Any], list[Any], list[Any]]:
        """Arguments, kept arrays and tangents."""
        arguments, kept = len(self.has), self.kept.num_leaves
        return [*operands[:arguments]], [*operands[arguments : arguments + kept]], [*operands[arguments + kept :]]

    def forward(self, *operands: Array) -> list[Array]:
        """The tangents of the results."""

        def one(*operands: Array) -> list[Array]:
            arrays, _, tangents = self.split(operands)

            def of_some(*some: Array) -> list[Array]:
                return self.call.run(*_replaced(arrays, self.has, some))

            return jax.jvp(of_some, _chosen(arrays, self.has), tuple(tangents))[1]

        return _under(self.vmaps, one)(*operands)

    def backward(self, arrays: list[Array], kept: list[Array], gradients: list[Any]) -> list[Array]:
        """The gradients of the arguments that have a tangent, from those of the results; some may be None."""
        given = tuple(gradient is not None for gradient in gradients)

        def one(*operands: Array) -> list[Array]:
            arrays, kept, some = self.split(operands)
            gradients = _replaced([None] * len(given), given, some)
            arguments = self.call.arguments.unflatten(arrays)
            found = self.call.function.backward(
                self.call.settings, arguments, self.kept.unflatten(kept), self.call.results.unflatten(gradients)
            )
            found = self.call.arguments.flatten_up_to(found)
            return [
                jnp.zeros_like(array) if gradient is None else gradient
                for gradient, array in zip(_chosen(found, self.has), _chosen(arrays, self.has), strict=True)
            ]

        for axes in self.vmaps:
            of_arguments, of_kept, of_tangents = self.split(axes)
            mapped = jax.vmap(one, (*of_arguments, *of_kept, *(0,) * sum(given)))
            one = partial(_summed, mapped, of_tangents)
        with jax.default_matmul_precision(self.call.precision):
            return one(*arrays, *kept, *(gradient for gradient in gradients if gradient is not None))


def _summed(mapped: Callable[..., list[Array]], axes: list[int | None], *operands: Array) -> list[Array]:
    """The gradients of arguments, summed where the vmap does not map over the argument."""
    return [
        gradient.sum(0) if axis is None else gradient for gradient, axis in zip(mapped(*operands), axes, strict=True)
    ]


def _chosen(values: Any, has: tuple[bool, ...]) -> tuple[Any, ...]:
    return tuple(value for value, there in zip(values, has, strict=True) if there)


def _replaced(values: list[Any], has: tuple[bool, ...], some: Any) -> list[Any]:
    """The values, with others for those that `_chosen` takes."""
    rest = iter(some)
    return [next(rest) if there else value for value, there in zip(values, has, strict=True)]


tangents_p = Primitive("tangents_of_function_with_gradient")
tangents_p.multiple_results = True


@tangents_p.def_abstract_eval
def _(*operands: Any, linear: Tangents, types: Any) -> list[Any]:
    return [*types]


def _run_tangents(*operands: Array, linear: Tangents, types: Any) -> list[Array]:
    return linear.forward(*operands)


tangents_p.def_impl(_run_tangents)
mlir.register_lowering(tangents_p, mlir.lower_fun(_run_tangents, multiple_results=True))


def _tangents_transposed(gradients: Any, *operands: Any, linear: Tangents, types: Any) -> list[Any]:
    arrays, kept, _ = linear.split(operands)
    given = [None if isinstance(gradient, ad.Zero) else gradient for gradient in gradients]
    nothing = [None] * (len(arrays) + len(kept))
    if all(gradient is None for gradient in given):
        return [*nothing, *[ad.Zero(operand.aval) for operand in operands[len(nothing) :]]]
    return [*nothing, *linear.backward(arrays, kept, given)]


ad.primitive_transposes[tangents_p] = _tangents_transposed


def _tangents_jvp(operands: Any, changes: Any, *, linear: Tangents, types: Any) -> tuple[list[Array], list[Any]]:
    results = tangents_p.bind(*operands, linear=linear, types=types)
    arrays, _, _ = linear.split(operands)
    of_arrays, _, of_tangents = linear.split(changes)  # what was kept is a function of the arguments
    changed = [ad.Zero(jax.typeof(result).to_tangent_aval()) for result in results]
    if not all(isinstance(change, ad.Zero) for change in of_tangents):
        start = len(operands) - len(of_tangents)
        filled = map(ad.instantiate_zeros, of_tangents)
        changed = tangents_p.bind(*operands[:start], *filled, linear=linear, types=types)
    if not all(isinstance(change, ad.Zero) for change in of_arrays):
        has = tuple(not isinstance(change, ad.Zero) for change in of_arrays)

        def of_some(*some: Array) -> list[Array]:
            return linear.forward(*_replaced(arrays, has, some), *operands[len(arrays) :])

        more = jax.jvp(of_some, _chosen(arrays, has), _chosen(of_arrays, has))[1]
        changed = [
            other if isinstance(one, ad.Zero) or other.dtype == jax.dtypes.float0 else one + other
            for one, other in zip(changed, more, strict=True)
        ]
    return results, changed


ad.primitive_jvps[tangents_p] = _tangents_jvp


def _tangents_batched(operands: Any, axes: Any, *, linear: Tangents, types: Any) -> tuple[list[Array], list[int]]:
    size = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
    operands, axes = _to_front(operands, axes)
    linear = linear._replace(vmaps=(*linear.vmaps, axes))
    types = tuple(_with_axis(result, size) for result in types)
    results = tangents_p.bind(*operands, linear=linear, types=types)
    return results, [0] * len(results)


batching.primitive_batchers[tangents_p] = _tangents_batched


def _with_axis(result: Any, size: int) -> Any:
    """The type of an array with another axis in front."""
    sharding = NamedSharding(result.sharding.mesh, PartitionSpec(None, *result.sharding.spec))
    return result.update(shape=(size, *result.shape), sharding=sharding)
