"""One layer in JAX, whoever's it is: compiled ahead of time, with or without its backward pass."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_mnist_jax.benchmark.peers import Job
from lstm_mnist_jax.benchmark.work import Layer


def compile_timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    """A jitted function compiled for its arguments, and the seconds that tracing, lowering and compiling took.

    The first compilation of a process loads and starts the compiler, which is nobody's fault: another comes before.
    """
    jax.jit(lambda x: jnp.tanh(x) + 1)(jnp.ones(3)).block_until_ready()
    began = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - began


def layer_job(work: Layer, forward: Callable[[Any, jax.Array], Any], params: Any, inputs: np.ndarray) -> Job:
    """The job of `forward(params, inputs) -> (outputs, carry)`, in any tree of parameters."""

    def loss(params: Any, inputs: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(forward(params, inputs)[0]))

    function = jax.value_and_grad(loss, argnums=(0, 1)) if work.backward else forward
    on_device = jax.block_until_ready(jnp.asarray(inputs))
    compiled, compile_seconds = compile_timed(jax.jit(function), params, on_device)

    def check() -> list[float]:
        if not work.backward:
            return [float(jnp.mean(jnp.square(compiled(params, on_device)[0])))]
        value, (weights, inputs) = compiled(params, on_device)
        return [float(value), *sorted(float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves((weights, inputs)))]

    return Job(
        lambda: jax.block_until_ready(compiled(params, on_device)), check, compile_seconds, jax.devices()[0].platform
    )
