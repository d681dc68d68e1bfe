"""What this package, Flax and cuDNN share: devices, compilation ahead of time, one layer with its backward pass."""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.libraries import Job
from benchmarks.work import Epoch, Inference, Layer
from lstm_mnist_jax import Config, Execution
from lstm_mnist_jax.config import DataConfig, ModelConfig, OptimizerConfig
from lstm_mnist_jax.training.mesh import make_mesh, use_cpu_devices

SYNCHRONOUS = "synchronous dispatch"


def config_of(work: Epoch) -> Config:
    """The config with which this package does the same work: as many examples as the steps need."""
    return Config(
        epochs=1000,  # one a call
        batch_size=work.batch_size,
        data=DataConfig(
            validation_examples=5000,  # also of few examples, which are the first of `load().train` then
            train_examples=None if work.steps == Epoch.steps else work.steps * work.batch_size,
        ),
        model=ModelConfig(hidden_features=work.hidden_features),
        optimizer=OptimizerConfig(learning_rate=work.learning_rate),
    )


def mesh_of(work: Epoch, devices: int | None = None) -> jax.sharding.Mesh:
    """So many devices, or those that `lstm-mnist train` chooses."""
    jax.config.update("jax_enable_compilation_cache", False)
    use_cpu_devices(Execution(), work.batch_size)
    return make_mesh(Execution(devices=devices), work.batch_size)


def settings_of(work: Inference) -> list[str]:
    """A call of little work takes longer where JAX's CPU backend hands it to a thread, which is the default."""
    is_cpu = os.environ.get("LSTM_BENCHMARK_PLATFORM", "cpu") == "cpu"
    return [SYNCHRONOUS, ""] if is_cpu and work.images == 1 else [""]


def dispatch(setting: str) -> str:
    """Makes one of `settings_of` that of this process, before JAX starts its backend. Returns it for people."""
    jax.config.update("jax_cpu_enable_async_dispatch", setting != SYNCHRONOUS)
    return ", ".join(filter(None, (jax.devices()[0].platform, setting)))


def compile_timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    """A jitted function compiled for its arguments, and the seconds that tracing, lowering and compiling took.

    The first compilation of a process loads and starts the compiler: it is not counted.
    """
    jax.jit(lambda x: jnp.tanh(x) + 1)(jnp.ones(3)).block_until_ready()
    began = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - began


def with_weights(make: Callable[[], Any], *arrays: np.ndarray) -> Any:
    """The layer or cell that `make` makes, with given weights: its own are not drawn, which would take a second.

    Args:
      make: () -> a cell of Flax, or a `StackedRNN` of one layer.
      arrays: kernel, recurrent kernel and bias; the one bias is that of the state in an LSTM, of the inputs in a GRU.
    """
    made = nnx.eval_shape(make)
    cell = made.layers[0].cell if hasattr(made, "layers") else made
    with_bias = cell.dense_i if cell.dense_h.bias is None else cell.dense_h
    variables = cell.dense_i.kernel, cell.dense_h.kernel, with_bias.bias
    for variable, array in zip(variables, arrays, strict=True):
        variable.set_value(jnp.asarray(array))
    return made


def layer_job(work: Layer, forward: Callable[[Any, jax.Array], Any], params: Any, inputs: np.ndarray) -> Job:
    """The job of `forward(params, inputs) -> (outputs, carry)`, in any tree of parameters."""

    def loss(params: Any, inputs: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(forward(params, inputs)[0]))

    function: Any = jax.value_and_grad(loss, argnums=(0, 1)) if work.backward else forward
    on_device = jax.block_until_ready(jnp.asarray(inputs))
    compiled, compile_seconds = compile_timed(jax.jit(function), params, on_device)

    def check() -> list[float]:
        if not work.backward:
            return [float(jnp.mean(jnp.square(compiled(params, on_device)[0])))]
        value, gradients = compiled(params, on_device)
        return [float(value), *sorted(float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(gradients))]

    return Job(
        lambda: jax.block_until_ready(compiled(params, on_device)), check, compile_seconds, jax.devices()[0].platform
    )
