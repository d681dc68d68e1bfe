"""Meshes with explicit axes, `jax.make_mesh`'s default: a batch that is sharded there stays so.

Depends on shardings; not on recurrences.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def explicit_sharding(array: Array) -> NamedSharding | None:
    """The sharding of an array that is a part of its type; None where no axis of its mesh is explicit."""
    sharding = jax.typeof(array).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def with_automatic_axes(run: Callable[..., Any], inputs: Array, time_axis: int, axes_of_results: Any) -> Callable[..., Any]:
    """`run` with the explicit axes of the inputs' mesh made automatic, so that XLA shards what is inside.

    Args:
      run: a function of pytrees of arrays.
      inputs: [..., features] with the axis of time at `time_axis`; all other axes are the batch.
      time_axis: an axis of `inputs`.
      axes_of_results: for each result of `run`, where it has an axis of time, or None: a pytree.

    Returns:
      `run`, whose results are sharded over the batch as the inputs are; `run` itself if no axis is explicit.

    Raises:
      ValueError: the axis of time is sharded.
    """
    sharding = explicit_sharding(inputs)
    if sharding is None:
        return run
    spec = [*tuple(sharding.spec), *[None] * inputs.ndim][: inputs.ndim - 1]
    if (over := spec.pop(time_axis)) is not None:
        raise ValueError(
            f"The time axis of the inputs is sharded over {over!r}, but a recurrence reads one step after another: "
            f"reshard it, jax.sharding.reshard(inputs, P(...)) with None for the time."
        )

    def result(axis: int) -> NamedSharding:
        batch = [*spec[:axis], None, *spec[axis:]] if axis >= 0 else spec
        return NamedSharding(sharding.mesh, PartitionSpec(*batch, None))

    return jax.sharding.auto_axes(run, out_sharding=jax.tree.map(result, axes_of_results))
