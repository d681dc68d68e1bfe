"""The loops of the LSTM as Pallas kernels, for TPUs (Mosaic) and NVIDIA GPUs (Triton): each is one launch.

Depends on JAX alone; `native.kernel` makes a primitive of it that batches and differentiates. Arguments,
results and equations are those of `xla_loops`.

- TPU: the grid goes over blocks of the batch, and over time. The recurrent weights and the states stay in VMEM.
- GPU: the grid goes over blocks of the batch; the kernel loops over time. Products are computed in tiles, whose
  operands are read from the caches (L1 and L2): the weights need not fit into shared memory. JAX 0.12 warns that a
  later version removes Triton from Pallas. The successor, Mosaic GPU, compiles a kernel only where it runs, on a GPU.

Axes of arrays, here and in `native.kernel`: networks n, time t, batch b, gates g, hidden units h and k; q is 1.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton
from jax.typing import DTypeLike

DTYPES = (jnp.float32, jnp.bfloat16)

VMEM_BYTES = 14 << 20
"""Of the 16 MiB that XLA gives a kernel by default; Mosaic needs some for itself."""

WEIGHTS_BYTES = 6 << 20
"""The largest recurrent weights: up to 627 hidden features in float32, 886 in bfloat16."""

Refs = Any
"""A namespace of references to arrays, under these names; None where an array is not given or not wanted."""


def refusal(hidden: int, dtype: DTypeLike) -> str | None:
    """Why there are no kernels for such an LSTM; None if there are."""
    if jnp.dtype(dtype) not in map(jnp.dtype, DTYPES):
        return f"its kernels compute in float32 and bfloat16, not in {jnp.dtype(dtype)}"
    if (size := 4 * hidden**2 * jnp.dtype(dtype).itemsize) > WEIGHTS_BYTES:
        return (
            f"the recurrent weights of {hidden} hidden features in {jnp.dtype(dtype)} have {size / 2**20:.1f} MiB, and "
            f"its kernels keep at most {WEIGHTS_BYTES >> 20} MiB in a TPU's VMEM"
        )
    return None


def run(
    name: str, platform: str, arguments: Any, results: Any, *, axes: Any, reverse: bool, interpret: bool
) -> dict[str, Array]:
    """Runs a loop. Arrays have the names that `native.kernel` has for them.

    Args:
      name: "lstm_forward" or "lstm_backward".
      platform: "tpu" or "cuda", whose kernel it is.
      arguments: the arrays that are given, by name; no size is 0. `inputs` are projected, `input_kernel` is not used.
      results: the types of the results that are wanted, by name.
      axes: those of every argument and result, given and wanted or not, such as "n t b h".
      reverse: whether the forward loop starts at the last step.
      interpret: run it in Pallas's interpret mode, on any platform.

    Returns:
      The results that are wanted.
    """
    given = dict(arguments)
    if "resets" in given:  # Mosaic has no booleans in memory
        given["resets"] = given["resets"].astype(jnp.int32)
    if name == "lstm_forward":
        given["projected"] = given.pop("inputs")
        del given["input_kernel"]
        axes = axes | {"projected": "n t b g"}
    else:
        given["kernel"] = jnp.swapaxes(given["kernel"], -1, -2)
        axes = axes | {"kernel": "n g k"}
    found: dict[str, Array] = {"tpu": _call_tpu, "cuda": _call_gpu}[platform](
        name, given, results, axes, reverse, interpret
    )
    return found


def _namespace(axes: Any, refs: dict[str, Any]) -> Refs:
    return SimpleNamespace(**dict.fromkeys(axes) | refs)


def _sizes(arrays: Any, axes: Any) -> dict[str, int]:
    return {
        axis: size for key, array in arrays.items() for axis, size in zip(axes[key].split(), array.shape, strict=True)
    }


# One step, from values: the equations of `xla_loops`.


def _product(rows: Array, kernel: Array) -> Array:
    """As `products.product`, in float32."""
    # Products of bfloat16 are exact in any case, and Mosaic refuses to compute them with a higher precision.
    precision = None if kernel.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.matmul(rows.astype(kernel.dtype), kernel, precision=precision, preferred_element_type=jnp.float32)


def _cell(gates: Any, c: Array) -> tuple[tuple[Array, ...], Array, Array]:
    """The activations as `xla_loops` has them, the new c and the new h."""
    i, f, g, o = gates
    i, f, g, o = tanhs = tuple(map(jnp.tanh, (0.5 * i, 0.5 * f, g, 0.5 * o)))
    c = (0.5 * f + 0.5) * c + (0.5 * i + 0.5) * g
    return tanhs, c, (0.5 * o + 0.5) * jnp.tanh(c)


def _cell_gradients(tanhs: Any, c: Array, c_before: Array, dh: Array, dc: Array) -> tuple[tuple[Array, ...], Array]:
    """The gradients of the gates' arguments, and of c before the step."""
    i, f, g, o = tanhs
    i, f, o = 0.5 * i + 0.5, 0.5 * f + 0.5, 0.5 * o + 0.5
    tanh_c = jnp.tanh(c)
    dc = dc + dh * (o * (1 - tanh_c * tanh_c))
    of_gates = (g * i * (1 - i), f * (1 - f) * c_before, i * (1 - g * g), tanh_c * o * (1 - o))
    return (dc * of_gates[0], dc * of_gates[1], dc * of_gates[2], dh * of_gates[3]), dc * f


def _steps(time: int, number: Any, reverse: bool) -> tuple[Any, Any]:
    """The time of step `number` of the forward loop, and that of the step before it (for the first, any)."""
    t = time - 1 - number if reverse else number
    return t, jnp.clip(t + 1 if reverse else t - 1, 0, time - 1)


# TPU


def _forward_tpu(at: Refs, *, reverse: bool, steps: int) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        at.last_h[...], at.last_c[...] = at.h[...], at.c[...]

    h, c = at.last_h[...], at.last_c[...]
    if at.resets is not None:
        reset = at.resets[...] != 0
        h, c = jnp.where(reset, at.reset_h[...], h), jnp.where(reset, at.reset_c[...], c)
    gates = at.projected[...].astype(h.dtype) + at.bias[...].astype(h.dtype) + _product(h, at.kernel[...])
    tanhs, c, h = _cell(jnp.split(gates, 4, axis=-1), c)
    at.last_h[...], at.last_c[...], at.hs[...] = h, c, h.astype(at.hs.dtype)
    if at.cs is not None:
        at.cs[...] = c
    if at.activations is not None:
        at.activations[...] = jnp.concatenate(tanhs, axis=-1).astype(at.activations.dtype)


def _backward_tpu(at: Refs, *, reverse: bool, steps: int) -> None:
    number = pl.program_id(2)

    @pl.when(number == 0)
    def _() -> None:
        at.d_h[...], at.d_c[...] = at.d_last_h[...], at.d_last_c[...]
        if at.resets is not None:
            at.d_reset_h[...] = jnp.zeros_like(at.d_reset_h)
            at.d_reset_c[...] = jnp.zeros_like(at.d_reset_c)

    dh, dc = at.d_h[...], at.d_c[...]
    dh = dh if at.d_hs is None else dh + at.d_hs[...].astype(dh.dtype)
    dc = dc if at.d_cs is None else dc + at.d_cs[...]
    c_before = jnp.where(number == steps - 1, at.initial_c[...], at.cs_before[...])
    if at.resets is not None:
        reset = at.resets[...] != 0
        c_before = jnp.where(reset, at.reset_c[...], c_before)
    tanhs = jnp.split(at.activations[...].astype(dh.dtype), 4, axis=-1)
    d_gates, dc = _cell_gradients(tanhs, at.cs[...], c_before, dh, dc)
    d_projected = jnp.concatenate(d_gates, axis=-1).astype(at.d_projected.dtype)
    at.d_projected[...] = d_projected
    dh = _product(d_projected, at.kernel[...])
    if at.resets is not None:
        at.d_reset_h[...] += jnp.where(reset, dh, 0.0)
        at.d_reset_c[...] += jnp.where(reset, dc, 0.0)
        dh, dc = jnp.where(reset, 0.0, dh), jnp.where(reset, 0.0, dc)
    at.d_h[...], at.d_c[...] = dh, dc


def _call_tpu(name: str, given: Any, wanted: Any, axes: Any, reverse: bool, interpret: bool) -> Any:
    given = dict(given)
    if name == "lstm_forward":
        given["bias"] = given["bias"][:, None]
        axes = axes | {"bias": "n q g"}
    else:
        given["cs_before"] = given["cs"]
        axes = axes | {"cs_before": axes["cs"]}
    sizes = _sizes(given, axes)
    steps = sizes["t"]
    is_backward = name == "lstm_backward"

    def block(key: str, rows: int) -> tuple[Any, ...]:
        return tuple({"n": None, "t": None, "b": rows}.get(axis, sizes[axis]) for axis in axes[key].split())

    def memory(rows: int) -> int:
        """Bytes of VMEM, estimated: blocks in tiles of 16 x 128, all but the weights twice (one is being copied)."""
        total = 0
        for key, array in (given | wanted).items():
            *_, height, width = block(key, rows)
            size = -(-height // 16) * 16 * -(-width // 128) * 128 * array.dtype.itemsize
            total += size if key == "kernel" else 2 * size
        return total + 4 * rows * 4 * sizes["g"]  # and what is computed from them

    def spec(key: str, rows: int) -> pl.BlockSpec:
        def index(network: Any, part: Any, number: Any) -> tuple[Any, ...]:
            t, before = _steps(steps, steps - 1 - number if is_backward else number, reverse)
            places = {"n": network, "t": before if key == "cs_before" else t, "b": part}
            return tuple(places.get(axis, np.int32(0)) for axis in axes[key].split())  # with jax_enable_x64, too

        mode = {"pipeline_mode": pl.Buffered(1)} if key == "kernel" and not interpret else {}
        return pl.BlockSpec(block(key, rows), index, **mode)

    rows = next((rows for rows in (512, 256, 128, 64, 32) if memory(rows) <= VMEM_BYTES), 16)
    rows = min(rows, sizes["b"])
    body = _backward_tpu if is_backward else _forward_tpu

    def kernel(*refs: Any) -> None:
        body(_namespace(axes, dict(zip((*given, *wanted), refs, strict=True))), reverse=reverse, steps=steps)

    found = pl.pallas_call(
        kernel,
        out_shape=list(wanted.values()),
        grid=(sizes["n"], pl.cdiv(sizes["b"], rows), steps),
        in_specs=[spec(key, rows) for key in given],
        out_specs=[spec(key, rows) for key in wanted],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name=name,
    )(*given.values())
    return dict(zip(wanted, found, strict=True))


# GPU


def _tiles(size: int, tile: int, body: Callable[[Any], None]) -> None:
    jax.lax.fori_loop(0, size // tile, lambda number, _: body(pl.ds(number * tile, tile)), None)


def _forward_gpu(at: Refs, *, reverse: bool, rows: int, tile: int, barrier: Callable[[], None]) -> None:
    n, b = pl.program_id(0), pl.ds(pl.program_id(1) * rows, rows)
    _, steps, _, _, hidden = at.projected.shape
    dtype = at.last_c.dtype

    def start(k: Any) -> None:
        at.last_c[n, b, k] = at.c[n, b, k]

    def step(number: Any, _: None) -> None:
        t, before = _steps(steps, number, reverse)
        reset = None if at.resets is None else at.resets[n, t, b] != 0

        def after_reset(new: Any, k: Any, old: Array) -> Array:
            return old if reset is None else jnp.where(reset[:, None], new[n, b, k].astype(old.dtype), old)

        def units(k: Any) -> None:
            def add(part: Any, gates: tuple[Array, ...]) -> tuple[Array, ...]:
                inner = pl.ds(part * tile, tile)
                h = jnp.where(number == 0, at.h[n, b, inner].astype(at.hs.dtype), at.hs[n, before, b, inner])
                h = after_reset(at.reset_h, inner, h)
                return tuple(gate + _product(h, at.kernel[n, inner, g, k]) for g, gate in enumerate(gates))

            gates = tuple(
                at.projected[n, t, b, g, k].astype(dtype) + at.bias[n, g, k].astype(dtype)[None] for g in range(4)
            )
            gates = jax.lax.fori_loop(0, hidden // tile, add, gates)
            tanhs, c, h = _cell(gates, after_reset(at.reset_c, k, at.last_c[n, b, k]))
            at.last_h[n, b, k], at.last_c[n, b, k], at.hs[n, t, b, k] = h, c, h.astype(at.hs.dtype)
            if at.cs is not None:
                at.cs[n, t, b, k] = c
            if at.activations is not None:
                for g, tanh in enumerate(tanhs):
                    at.activations[n, t, b, g, k] = tanh.astype(at.activations.dtype)

        _tiles(hidden, tile, units)
        barrier()

    _tiles(hidden, tile, start)
    barrier()
    jax.lax.fori_loop(0, steps, step, None)


def _backward_gpu(at: Refs, *, reverse: bool, rows: int, tile: int, barrier: Callable[[], None]) -> None:
    n, b = pl.program_id(0), pl.ds(pl.program_id(1) * rows, rows)
    _, steps, _, hidden = at.cs.shape
    dtype = at.d_h.dtype

    def start(k: Any) -> None:
        at.d_h[n, b, k], at.d_c[n, b, k] = at.d_last_h[n, b, k], at.d_last_c[n, b, k]
        if at.resets is not None:
            at.d_reset_h[n, b, k] = at.d_reset_c[n, b, k] = jnp.zeros((rows, tile), dtype)

    def step(number: Any, _: None) -> None:
        t, before = _steps(steps, steps - 1 - number, reverse)
        reset = None if at.resets is None else (at.resets[n, t, b] != 0)[:, None]

        def write(d: Any, d_reset: Any, k: Any, value: Array) -> None:
            if reset is not None:
                d_reset[n, b, k] += jnp.where(reset, value, 0.0)
                value = jnp.where(reset, 0.0, value)
            d[n, b, k] = value

        def gates(k: Any) -> None:
            dh, dc = at.d_h[n, b, k], at.d_c[n, b, k]
            dh = dh if at.d_hs is None else dh + at.d_hs[n, t, b, k].astype(dtype)
            dc = dc if at.d_cs is None else dc + at.d_cs[n, t, b, k]
            c_before = jnp.where(number == steps - 1, at.initial_c[n, b, k], at.cs[n, before, b, k])
            c_before = c_before if reset is None else jnp.where(reset, at.reset_c[n, b, k], c_before)
            tanhs = tuple(at.activations[n, t, b, g, k].astype(dtype) for g in range(4))
            d_gates, dc = _cell_gradients(tanhs, at.cs[n, t, b, k], c_before, dh, dc)
            for g, d_gate in enumerate(d_gates):
                at.d_projected[n, t, b, g, k] = d_gate.astype(at.d_projected.dtype)
            write(at.d_c, at.d_reset_c, k, dc)

        def outputs(k: Any) -> None:
            def add(part: Any, dh: Array) -> Array:
                inner = pl.ds(part * tile, tile)
                for g in range(4):
                    dh = dh + _product(at.d_projected[n, t, b, g, inner], at.kernel[n, g, inner, k])
                return dh

            dh = jax.lax.fori_loop(0, hidden // tile, add, jnp.zeros((rows, tile), dtype))
            write(at.d_h, at.d_reset_h, k, dh)

        _tiles(hidden, tile, gates)
        barrier()
        _tiles(hidden, tile, outputs)
        barrier()

    _tiles(hidden, tile, start)
    barrier()
    jax.lax.fori_loop(0, steps, step, None)


def _call_gpu(name: str, given: Any, wanted: Any, axes: Any, reverse: bool, interpret: bool) -> Any:
    sizes = _sizes(given, axes)
    hidden = sizes["g"] // 4
    # Triton multiplies 16 rows and columns at least; a tile of 32 divides the sizes that are usual.
    tile = 16 if hidden <= 16 else 32
    rows = 16 if sizes["b"] <= 16 * 132 else 64  # 132 processors of an H100: first a block for each
    exact = sizes | {"g": 4, "h": hidden, "k": hidden}
    padded = {axis: -(-exact[axis] // size) * size for axis, size in {"b": rows, "h": tile, "k": tile}.items()}

    def names(key: str) -> list[str]:
        """The axes of an array with the gates on one of their own and without q."""
        return axes[key].replace("g", "g h").replace(" q", "").split()

    def pad(key: str, array: Array) -> Array:
        array = array.reshape([exact[axis] for axis in names(key)])
        return jnp.pad(array, [(0, padded.get(axis, exact[axis]) - exact[axis]) for axis in names(key)])

    def cut(key: str, array: Array) -> Array:
        return array[tuple(slice(exact[axis]) for axis in names(key))].reshape(wanted[key].shape)

    def kernel(*refs: Any) -> None:
        at = _namespace(axes, dict(zip((*given, *wanted), refs, strict=True)))
        body(at, reverse=reverse, rows=rows, tile=tile, barrier=(lambda: None) if interpret else triton.debug_barrier)

    body = _forward_gpu if name == "lstm_forward" else _backward_gpu
    found = pl.pallas_call(
        kernel,
        out_shape=[
            kind.update(shape=tuple(padded.get(axis, exact[axis]) for axis in names(key)))
            for key, kind in wanted.items()
        ],
        grid=(sizes["n"], padded["b"] // rows),
        # One stage: Triton must not read ahead what an earlier step has yet to write.
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name=name,
    )(*(pad(key, array) for key, array in given.items()))
    return {key: cut(key, array) for key, array in zip(wanted, found, strict=True)}
