"""The LSTM recurrence over plain arrays, with a hand-written backward pass.

Depends on arrays; not on modules or layers. Data is time-major. The equations are those of `flax.nnx.LSTMCell`
(Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000):

    i, f, o = sigmoid(x W + h U + b)    g = tanh(x W + h U + b)    c' = f c + i g    h' = o tanh(c')

Four things make it faster than a scan over a cell:

- All inputs are projected by one matrix product before the loop. The loop holds one product and one fused elementwise
  step. (The compiled kernel projects the inputs of each step where it uses them, unless their weights are too many.)
- sigmoid(z) = (1 + tanh(z/2)) / 2. XLA's loop and the compiled kernel multiply the weights by 1/2 once, so that one
  tanh runs over the four packed gates. (XLA's own sigmoid takes several times as long on a CPU.)
- The backward loop carries only dc and dh and returns only the gradients at the gates. What depends on neither, XLA's
  loop computes before it, over all time steps at once.
- The gradient of the recurrent weights is one matrix product after the loop. Differentiating the scan would
  add one, and a read and a write of the whole gradient, to every step. (On a CPU, XLA's products of such shapes reach
  a third of the rate of large ones; the compiled kernel has one of its own.)

On a CPU with a C++ compiler the loops run in a compiled kernel, `native`; elsewhere XLA runs them, `xla_loops`. On
TPUs and NVIDIA GPUs, kernels in Pallas run them where that is asked for, `pallas`.
"""

from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from lstm_mnist_jax.rnn import native, xla_loops
from lstm_mnist_jax.rnn.derivatives import Function
from lstm_mnist_jax.rnn.products import project, shift, state_dtype, vary_alike
from lstm_mnist_jax.rnn.sharding import with_automatic_axes

AnyArray = jax.Array | np.ndarray
"""The type of array arguments. Results are `jax.Array`s."""


class LSTMCarry(NamedTuple):
    """The carry of an LSTM between two time steps: a tuple (c, h), as in Flax.

    Attributes:
      c: the cell state, floats [batch, hidden].
      h: the hidden state, which is also the output, floats [batch, hidden].

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import LSTM, LSTMCarry
      >>> start = LSTMCarry(c=jnp.zeros((5, 32)), h=jnp.ones((5, 32)))
      >>> outputs, carries = LSTM(28, 32, rngs=nnx.Rngs(0))(jnp.ones((5, 10, 28)), initial_carries=[start])
      >>> c, h = carries[0]
      >>> c is carries[0].c, h.shape
      (True, (5, 32))
    """

    c: Array
    h: Array


class LSTMStates(NamedTuple):
    """What `lstm` returns.

    Attributes:
      h: the hidden state after each step, [time, batch, hidden], in the dtype of the recurrent kernel.
      c: the cell state after each step, [time, batch, hidden], float32 or wider; None with `return_cell_states=False`.
      last: the carry (c, h) after the last step that was computed, [batch, hidden] each, float32 or wider.

    Examples:
      >>> import jax.numpy as jnp
      >>> from lstm_mnist_jax.rnn import lstm
      >>> zeros = jnp.zeros((5, 8))
      >>> weights = jnp.ones((3, 32)), jnp.ones((8, 32)), jnp.zeros(32)
      >>> states = lstm(jnp.ones((10, 5, 3)), *weights, (zeros, zeros))
      >>> bool((states.last.c == states.c[-1]).all()), bool((states.last.h == states.h[-1]).all())
      (True, True)
    """

    h: Array
    c: Array | None
    last: LSTMCarry


BACKENDS = ("auto", "native", "xla", "pallas")


def lstm(
    inputs: Annotated[AnyArray, "time batch features"],
    kernel: Annotated[AnyArray, "features gates"],
    recurrent_kernel: Annotated[AnyArray, "hidden gates"],
    bias: Annotated[AnyArray, "gates"],
    initial_carry: tuple[Annotated[AnyArray, "batch hidden"], Annotated[AnyArray, "batch hidden"]],
    *,
    reverse: bool = False,
    unroll: int = 1,
    return_cell_states: bool = True,
    backend: str = "auto",
    resets: Annotated[AnyArray, "time batch"] | None = None,
    reset_carry: tuple[Annotated[AnyArray, "batch hidden"], Annotated[AnyArray, "batch hidden"]] | None = None,
) -> LSTMStates:
    """Runs an LSTM over a batch of sequences. Differentiable in every array.

        i, f, o = sigmoid(x W + h U + b)    g = tanh(x W + h U + b)    c' = f c + i g    h' = o tanh(c')

    (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.) All arrays are converted to the dtype
    of `recurrent_kernel`, in which the products are computed. If it is narrower than float32 (bfloat16), gates and
    carries are float32; the projected inputs, the outputs, and the activations that are kept for the gradient have the
    narrow dtype.

    Args:
      inputs: x, floats [time, batch, features].
      kernel: W, floats [features, 4 hidden], with the columns of the gates in the order i, f, g, o.
      recurrent_kernel: U, floats [hidden, 4 hidden], in the same order.
      bias: b, floats [4 hidden], in the same order.
      initial_carry: (c, h) before the first step, floats [batch, hidden] each.
      reverse: start at the last time step. Each output has the time index of its input.
      unroll: time steps per iteration of the loop, where XLA runs the loop.
      return_cell_states: whether to return the cell state c after every step. Writing it takes time.
      backend: what runs the loops. On a CPU: "native", the compiled kernel (float32); "xla"; or "auto", the kernel if
        it is available and faster. (Use "xla" for `jax.export` on a CPU, which refuses the kernel.) Elsewhere these
        three are XLA. "pallas", on TPUs and NVIDIA GPUs: one kernel that runs all steps (float32 and bfloat16; on
        several TPUs, in a `jax.shard_map`). "auto" does not choose it: it compiles for TPU v5e and H100, but has been
        run and measured on no device.
        "pallas_interpret_tpu" and "pallas_interpret_gpu" run its kernels on a CPU, slowly, for tests.
      resets: booleans [time, batch]: where True, the carry is `reset_carry` before this step. None is never.
      reset_carry: (c, h) as `initial_carry`; None is `initial_carry`.

    Returns:
      The states after each step, and the last carry: with `reverse`, that after the step of time 0.

    Raises:
      ValueError: an array does not have its shape, `recurrent_kernel` is not of floats, `unroll` is below 1, the
        backend is unknown, "native" is not available, or "pallas" has no kernel for this dtype, so many hidden
        features or this platform.

    Examples:
      >>> import jax
      >>> from lstm_mnist_jax.rnn import lstm
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> inputs = jax.random.normal(keys[0], (10, 5, 28))
      >>> kernel, recurrent_kernel = jax.random.normal(keys[1], (28, 128)), jax.random.normal(keys[2], (32, 128))
      >>> zeros = jax.numpy.zeros((5, 32))
      >>> states = lstm(inputs, kernel, recurrent_kernel, jax.numpy.zeros(128), (zeros, zeros))
      >>> states.h.shape, states.last.c.shape
      ((10, 5, 32), (5, 32))
    """
    require_options("lstm", unroll, reverse=reverse, return_cell_states=return_cell_states)
    recurrent_kernel = jnp.asarray(recurrent_kernel)
    hidden = hidden_features(recurrent_kernel, gates=4)
    dtype = recurrent_kernel.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"recurrent_kernel holds {dtype}; expected floats.")
    inputs, kernel, bias = (jnp.asarray(array, dtype) for array in (inputs, kernel, bias))
    c, h = (jnp.asarray(part, state_dtype(dtype)) for part in initial_carry)
    reset_c, reset_h = reset_carry or initial_carry
    _check_shapes(
        {"hidden": hidden, "4 hidden": 4 * hidden},
        inputs=("time, batch, features", inputs),
        kernel=("features, 4 hidden", kernel),
        bias=("4 hidden", bias),
        **{f"{part} of initial_carry": ("batch, hidden", array) for part, array in (("c", c), ("h", h))},
        **{f"{part} of reset_carry": ("batch, hidden", array) for part, array in (("c", reset_c), ("h", reset_h))},
        resets=("time, batch", resets),
    )
    after_reset = states_after(resets, (reset_h, reset_c), dtype)
    loops = Loops(chosen_backend(backend, c.shape, dtype), reverse, unroll, return_cell_states)
    # A shard_map may have some of these vary over its devices and others not; the loop needs one type for all.
    arrays = vary_alike((inputs, kernel, bias, recurrent_kernel, h, c, after_reset))
    run = with_automatic_axes(partial(_compiled_recurrence, loops), inputs, 0, 1, (0, 0, -1, -1))
    hs, cs, last_h, last_c = run(*arrays)
    return LSTMStates(hs, cs, LSTMCarry(last_c, last_h))


def require_options(name: str, unroll: Any = 1, **flags: Any) -> None:
    """Raises ValueError where `unroll` is no count of steps, or a flag is not True or False, as the text "no" is not.

    Args:
      name: of the function or class, for messages.
      unroll, flags: its options, by name.
    """
    if isinstance(unroll, bool) or not isinstance(unroll, int | np.integer) or unroll < 1:
        raise ValueError(f"{name} expected unroll to be an integer, 1 or more; got {unroll!r}.")
    for option, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} needs {option} to be True or False; got {value!r}.")


def hidden_features(recurrent_kernel: Array, gates: int) -> int:
    """The number of hidden features. Raises ValueError where it is no matrix for so many gates."""
    if recurrent_kernel.ndim != 2:
        raise ValueError(
            f"recurrent_kernel has shape {list(recurrent_kernel.shape)}; expected [hidden, {gates} hidden]."
        )
    hidden, columns = recurrent_kernel.shape
    if columns != gates * hidden:
        raise ValueError(
            f"recurrent_kernel is {hidden} x {columns}; with {hidden} hidden features, expected {gates * hidden} "
            f"columns."
        )
    return hidden


def _check_shapes(sizes: dict[str, Any], **arrays: tuple[str, Any]) -> None:
    """Raises ValueError where arrays, by name with their axes, do not agree in size; None is an array not given.

    Otherwise some would be broadcast, and a kernel would read others as if they had the right shape.
    """
    sizes = dict(sizes)
    for name, (axes, array) in arrays.items():
        if array is None:
            continue
        shape, names = np.shape(array), axes.split(", ")
        if len(shape) == len(names):
            sizes = dict(zip(names, shape, strict=True)) | sizes
        if shape != tuple(map(sizes.get, names)):
            wanted = ", ".join(str(sizes.get(axis, axis)) for axis in names)
            raise ValueError(f"{name} has shape {list(shape)}; expected [{axes}], which is [{wanted}] here.")


def states_after(resets: Any, states: Any, dtype: DTypeLike) -> Any:
    """Resets as the loops take them: booleans [time, batch, 1] and the states after them; None where there are none."""
    if resets is None:
        return None
    return jnp.asarray(resets, bool)[..., None], *(jnp.asarray(state, state_dtype(dtype)) for state in states)


def entering(initial_h: Array, hs: Array, resets: Any, reverse: bool) -> tuple[Array, tuple[Array] | None]:
    """The first and third argument of `weight_gradient` for the recurrent weights, by which h is multiplied."""
    if resets is None:
        return hs, (initial_h,)
    before = shift(initial_h, hs, reverse)
    return jnp.where(resets[0], resets[1].astype(before.dtype), before), None


class Loops(NamedTuple):
    """How to run the loops: by which backend, as `chosen_backend` returns it, and options of `lstm`."""

    backend: str
    reverse: bool
    unroll: int
    return_cell_states: bool


def chosen_backend(backend: str, shape: tuple[Any, ...], dtype: Any) -> str:
    """What runs the loops over states of this shape, [batch, hidden]: "native" only if the program runs on a CPU."""
    if backend not in (*BACKENDS, *native.INTERPRETED):
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}.")
    if backend == "auto":
        supported = jax.default_backend() == "cpu" and native.supports(shape[0], shape[1], dtype)
        return "native" if supported and native.unavailable() is None else "xla"
    reason = None
    if backend == "native":
        reason = native.unavailable() if dtype == jnp.float32 else f"it computes in float32, not in {dtype}"
    elif backend != "xla":
        from lstm_mnist_jax.rnn import pallas  # not at the start: JAX's part takes 0.15 s

        reason = pallas.refusal(shape[1], dtype)
    if reason is not None:
        raise ValueError(f'backend="{backend}" is not available: {reason}. Leave it to "auto".')
    return backend


def loop_of(name: str, backend: str) -> Any:
    """The loop of this name, run by a backend that `chosen_backend` returned."""
    in_xla = backend == "xla"
    if name == "weight_gradient":
        # A product, of which a kernel in Pallas would gain nothing. Under `jax.set_mesh`, JAX 0.12 lowers the psum of a
        # partitioned one to an all-reduce that XLA refuses.
        mesh = jax.sharding.get_abstract_mesh()
        in_xla = backend != "native" or not (mesh.empty or set(mesh.manual_axes) == set(mesh.axis_names))
    return getattr(xla_loops, name) if in_xla else partial(getattr(native, name), backend=backend)


def _recurrence(loops: Loops, *arrays: Any) -> Any:
    """(hs, cs, last h, last c) of (inputs, kernel, bias, recurrent kernel, h, c, resets).

    `resets` is None or (booleans [time, batch, 1], h, c).
    """
    options: dict[str, Any] = {"reverse": loops.reverse, "unroll": loops.unroll, "cells": loops.return_cell_states}
    hs, cs, _, *last = loop_of("lstm_forward", loops.backend)(*arrays, activations=False, **options)
    return hs, cs, *last


def _forward(loops: Loops, *arrays: Any) -> Any:
    options: dict[str, Any] = {"reverse": loops.reverse, "unroll": loops.unroll, "cells": True, "activations": True}
    hs, cs, activations, *last = loop_of("lstm_forward", loops.backend)(*arrays, **options)
    return (hs, cs if loops.return_cell_states else None, *last), (hs, cs, activations)


def _backward(loops: Loops, arguments: Any, kept: Any, gradients: Any) -> tuple[Any, ...]:
    inputs, kernel, _, recurrent_kernel, initial_h, initial_c, resets = arguments
    hs, cs, activations = kept
    # Outputs that were not used have no gradient to add. This is the usual case (a classifier reads the last state
    # only), and saves reading an array of zeros in every step.
    used, last = gradients[:2], [jnp.zeros_like(initial_h) if d is None else d for d in gradients[2:]]
    activations, used, last = vary_alike((activations, used, last))
    backward = loop_of("lstm_backward", loops.backend)
    arrays = (activations, cs, initial_c, recurrent_kernel, *used, *last, resets and (resets[0], resets[2]))
    d_projected, d_h, d_c, *d_reset = backward(*arrays, reverse=loops.reverse, unroll=loops.unroll)
    weight_gradient = loop_of("weight_gradient", loops.backend)
    d_kernel, d_bias = weight_gradient(inputs, d_projected, reverse=loops.reverse, bias=True)
    entered, initial = entering(initial_h, hs, resets, loops.reverse)
    d_recurrent_kernel, _ = weight_gradient(entered, d_projected, initial, reverse=loops.reverse, bias=False)
    d_inputs = project(d_projected, kernel.T)
    return d_inputs, d_kernel, d_bias, d_recurrent_kernel, d_h, d_c, resets and (None, *d_reset)


# Compiled here, so that calls outside `jit` compile once and not each time.
_compiled_recurrence = jax.jit(Function(_recurrence, _forward, _backward), static_argnums=0)
