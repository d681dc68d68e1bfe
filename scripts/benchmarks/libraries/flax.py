"""Flax: `nnx.RNN` over `nnx.OptimizedLSTMCell` or `nnx.GRUCell`.

The rest is as in this package's own training: the data on the devices, the whole epoch in one compiled loop, the same
optimizer, the batch split over CPU devices if that is faster.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.libraries import CHECKED_STEPS, Job, inference_job
from benchmarks.libraries.in_jax import (
    compile_timed,
    config_of,
    dispatch,
    layer_job,
    mesh_of,
    settings_of,
    with_weights,
)
from benchmarks.work import Epoch, Inference, Layer, Work
from lstm_mnist_jax import load
from lstm_mnist_jax.interop.weights import Weights
from lstm_mnist_jax.training.mesh import describe
from lstm_mnist_jax.training.optimizer import make_optimizer

ALL_DEVICES, ONE_DEVICE = "all devices", "one device"


def settings(work: Work) -> list[str]:
    if isinstance(work, Epoch):
        return [ALL_DEVICES, ONE_DEVICE]
    return settings_of(work) if isinstance(work, Inference) else [""]


class Recurrent(nnx.RNN):
    """One layer with given weights; its initial carry is zeros, for which Flax would want random numbers."""

    def __init__(self, *arrays: np.ndarray, kind: Any = nnx.OptimizedLSTMCell) -> None:
        cell = with_weights(lambda: kind(arrays[0].shape[0], arrays[1].shape[0], rngs=nnx.Rngs(0)), *arrays)
        super().__init__(cell, time_major=True, return_carry=True, rngs=False)
        self.hidden_features = arrays[1].shape[0]

    def __call__(self, inputs: jax.Array, seq_lengths: Any = None) -> Any:  # type: ignore[override]
        """Outputs and last carry of inputs [time, batch, features]."""
        zeros = jnp.zeros((inputs.shape[1], self.hidden_features), jnp.float32)
        initial_carry = zeros if isinstance(self.cell, nnx.GRUCell) else (zeros, zeros)
        carry, outputs = super().__call__(inputs, initial_carry=initial_carry, seq_lengths=seq_lengths)
        return outputs, carry


class Classifier(nnx.Module):
    """The tutorial's network with given weights."""

    def __init__(self, weights: Weights) -> None:
        self.layers = nnx.List([Recurrent(*layer.forward[:3]) for layer in weights.layers])
        self.dense = nnx.Linear(*weights.dense[0].kernel.shape, rngs=nnx.Rngs(0))
        bias: Any = self.dense.bias
        self.dense.kernel[...], bias[...] = map(jnp.asarray, weights.dense[0])

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits [batch, classes] of uint8 images [batch, height, width]."""
        outputs: Any = jnp.moveaxis(images, 1, 0).astype(jnp.float32) * (1 / 255)
        for layer in self.layers:
            outputs, (_, h) = layer(outputs)
        return self.dense(h)


def epoch(work: Epoch, setting: str) -> Job:
    mesh = mesh_of(work, 1 if setting == ONE_DEVICE else None)
    graph, params = nnx.split(Classifier(work.start.weights), nnx.Param)
    optimizer = make_optimizer(config_of(work).optimizer)

    def train(state: Any, order: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        def step(state: Any, batch: jax.Array) -> Any:
            params, opt_state = state

            def mean_loss(params: Any) -> jax.Array:
                logits = nnx.merge(graph, params)(images[batch])
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

            loss, gradient = jax.lax.pmean(jax.value_and_grad(mean_loss)(params), "data")
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        return jax.lax.scan(step, state, order)

    whole, split = P(), P(None, "data")
    program = jax.shard_map(
        train, mesh=mesh, in_specs=(whole, split, whole, whole), out_specs=(whole, whole), check_vma=False
    )
    examples = load().train
    state, images, labels = jax.device_put(
        ((params, optimizer.init(params)), examples.images, examples.labels), NamedSharding(mesh, whole)
    )
    order = jax.device_put(work.start.order, NamedSharding(mesh, split))
    compiled, compile_seconds = compile_timed(jax.jit(program), state, order, images, labels)

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, order, images, labels))

    def check() -> list[float]:
        return np.asarray(compiled(state, order, images, labels)[1])[:CHECKED_STEPS].tolist()

    return Job(run, check, compile_seconds, describe(mesh))


def layer(work: Layer, setting: str) -> Job:
    inputs, *arrays = work.arrays()
    kind = nnx.GRUCell if work.cell == "gru" else nnx.OptimizedLSTMCell
    graph, params = nnx.split(Recurrent(*arrays, kind=kind), nnx.Param)
    lengths = work.lengths()

    def forward(params: Any, inputs: jax.Array) -> Any:
        outputs, carry = nnx.merge(graph, params)(inputs, lengths)
        if lengths is not None:  # nnx.RNN goes on after the end of a sequence
            outputs = jnp.where(jnp.arange(work.time)[:, None, None] < lengths[:, None], outputs, 0)
        return outputs, carry

    return layer_job(work, forward, params, inputs)


def inference(work: Inference, setting: str) -> Job:
    how = dispatch(setting)
    graph, state = nnx.split(Classifier(work.start.weights))
    classify = jax.jit(lambda state, images: jax.nn.softmax(nnx.merge(graph, state)(images)))
    return inference_job(work, lambda images: np.asarray(classify(state, images)), how)
