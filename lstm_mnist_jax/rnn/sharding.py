"""Meshes with explicit axes, `jax.make_mesh`'s default: a batch that is sharded there stays so.

Depends on shardings; not on recurrences.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def with_automatic_axes(
    run: Callable[..., Any], inputs: Any, time_axis: int, feature_axes: int, time_axes: tuple[int | None, ...]
) -> Callable[..., Any]:
    """`run` with the explicit axes of the inputs' mesh made automatic: XLA shards what is inside.

    Args:
      run: a function of pytrees of arrays, which returns a tuple of pytrees.
      inputs: the axis of time is `time_axis`, the last `feature_axes` are features; all other axes are the batch.
      time_axis: of the inputs.
      feature_axes: how many of the inputs' last axes are features.
      time_axes: for each result, where its arrays have the axis of time; -1 where they have none, and None where they
        have no batch either.

    Returns:
      A function like `run` whose results are sharded over the batch as the inputs are. It is `run` itself if no axis of
      the mesh is explicit, and calls it so where no array is sharded.

    Raises:
      ValueError: the axis of time is sharded.
    """
    sharding = jax.typeof(inputs).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return run
    batch = [*tuple(sharding.spec), *[None] * inputs.ndim][: inputs.ndim - feature_axes]
    if (over := batch.pop(time_axis)) is not None:
        raise ValueError(
            f"The time axis of the inputs is sharded over {over!r}, but a recurrence reads one step after another. "
            f"Give the inputs another sharding with jax.sharding.reshard, with None for the axis of time."
        )

    def of_result(array: Any, time: int | None) -> NamedSharding:
        axes: list[Any] = [] if time is None else list(batch)
        if time is not None and time >= 0:
            axes.insert(time, None)
        return NamedSharding(sharding.mesh, PartitionSpec(*axes, *[None] * (array.ndim - len(axes))))

    def sharded(*arrays: Any) -> Any:
        # Outside `jit`, what a gradient keeps would be in two meshes, one explicit and one automatic, which JAX refuses
        # of arrays that are in none yet.
        specs = [jax.typeof(array).sharding.spec for array in jax.tree.leaves(arrays)]
        if not any(map(any, specs)) and not _maps_over_a_mesh():
            return run(*arrays)
        shapes = jax.eval_shape(jax.sharding.auto_axes(run, out_sharding=replicated), *arrays)
        shardings = tuple(
            jax.tree.map(lambda array, time=time: of_result(array, time), result)
            for result, time in zip(shapes, time_axes, strict=True)
        )
        return jax.sharding.auto_axes(run, out_sharding=shardings)(*arrays)

    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    return sharded


def _maps_over_a_mesh() -> bool:
    """Whether a vmap maps over an axis of a mesh, which is then in no spec. JAX's API does not have this; True where it
    is not to be had."""
    try:
        from jax._src.core import get_axis_env

        return bool(get_axis_env().explicit_mesh_axis_names)
    except (ImportError, AttributeError):
        return True
